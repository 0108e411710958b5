"""A pole on a cart is held up for 475 of 500 steps, learned from 20 episodes of another's play.

    pip install 'jaxdl[rl]'
    python launch.py --experiment=ppo_cartpole --workdir=runs/ppo_cartpole
    python launch.py --experiment=behaviour_cloning
    python launch.py sweep --experiment=behaviour_cloning

Behaviour cloning (Pomerleau 1991, https://doi.org/10.1162/neco.1991.3.1.88) of the policy that the
run of `ppo_cartpole` found: it plays 25 episodes, of which 20 are learned from and 5 are tested on.
`played/return` is the number, over 100 episodes that begin otherwise; `demonstrator/return` is that
of the episodes learned from. The sweep asks how few episodes would do, with
three seeds each; with 20 all three shall reach 475.
"""

from jaxdl.data.demonstrations import DemonstrationsOfRun
from jaxdl.envs.gymnax import Gymnax
from jaxdl.episodes import Episodes
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import Adam, Cosine
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.behaviour_cloning import BehaviourCloning, Demonstrator


def config() -> Experiment:
    return Experiment(
        task=BehaviourCloning(model=MLP(widths=(64, 64), classes=2),
                              env=Gymnax(name="CartPole-v1")),
        data=DemonstrationsOfRun(run="runs/ppo_cartpole", count=25, test=0.2),
        optimizer=Adam(learning_rate=Cosine(peak=1e-3)),
        evals={"test": Evaluate(every=1_000), "played": Episodes(every=1_000, limit=500),
               "demonstrator": Demonstrator(every=4_000)},
        best=Best(metric="played/return"),
        steps=4_000, batch_size=256, log_every=200,
    )


def sweep() -> list[Trial]:
    return repeat([{"data.episodes": n} for n in (1, 5, 20)], 3)

"""MinAtar's Breakout: 28 bricks and more in an episode, learned by PPO on one core.

    pip install 'jaxdl[rl]'
    python launch.py --experiment=ppo_minatar_breakout
    python launch.py sweep --experiment=ppo_minatar_breakout

Breakout on ten by ten fields (Young & Tian 2019, https://arxiv.org/abs/1903.03176), as gymnax has
it, where an episode ends after 1,000 steps. gymnax publishes a return of 28 for PPO with two dense
layers of 256 units after 10,000,000 steps (its README of version 1.0.1); here it is two of 64 for
the policy and two for the value, as many steps in 64 environments, and the same is expected of
`test/return`, over 100 episodes of the likeliest actions, from each of the sweep's three seeds. The
layers are dense: on CPU, gradients of convolutions inside the loop over minibatches take fifty
times as long. With "tanh" in place of "relu" it never got past the seventh brick, and with the
usual 0.01 for the entropy a policy may be certain too early, and stay where it is.
"""

from jaxdl.data.nothing import Nothing
from jaxdl.envs.gymnax import Gymnax
from jaxdl.episodes import Episodes
from jaxdl.experiment import Best, Experiment
from jaxdl.models.actor_critic import ActorCritic
from jaxdl.optimizer import Adam, Linear
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.ppo import PPO


def config() -> Experiment:
    return Experiment(
        task=PPO(model=ActorCritic(outputs=3, widths=(64, 64), activation="relu"),
                 env=Gymnax(name="Breakout-MinAtar"), horizon=128, minibatches=8,
                 entropy_weight=0.03),
        data=Nothing(),
        optimizer=Adam(learning_rate=Linear(peak=2.5e-3, end=0.), clip=0.5),
        evals={"test": Episodes(every=244, count=100, limit=1_000)},
        best=Best(metric="test/return"),
        steps=1_220, batch_size=64, log_every=10,  # 1,220 * 64 * 128 = 10,000,000 steps
    )


def sweep() -> list[Trial]:
    return repeat([{}], 3)

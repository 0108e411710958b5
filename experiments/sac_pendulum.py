"""A pendulum is swung up and held there: a mean return above -200, learned by soft actor-critic.

    pip install 'jaxdl[rl]'
    python launch.py --experiment=sac_pendulum
    python launch.py sweep --experiment=sac_pendulum

Haarnoja et al. (2018), https://arxiv.org/abs/1812.05905, on Pendulum-v1 as gymnax has it, 20,480
steps in 4 environments, nearly a gradient step for each. An episode of 200 steps costs the square
of the angle and a little for speed and torque, so that 0 is the most; how high the return can be
depends on where it begins. `test/return` is the number, over 100 episodes of the policy's mode; a
random policy has about -1,200.
"""

from jaxdl.data.nothing import Nothing
from jaxdl.envs.gymnax import Gymnax
from jaxdl.episodes import Episodes
from jaxdl.experiment import Best, Experiment
from jaxdl.models.soft_actor_critic import SoftActorCritic
from jaxdl.optimizer import Adam, Constant
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.sac import SAC


def config() -> Experiment:
    return Experiment(
        task=SAC(model=SoftActorCritic(outputs=2, widths=(128, 128)),
                 env=Gymnax(name="Pendulum-v1"), horizon=8, updates=32, sample=128, memory=20_480,
                 warmup=20),
        data=Nothing(),
        optimizer=Adam(learning_rate=Constant(peak=1e-3)),
        evals={"test": Episodes(every=160, count=100, limit=200)},
        best=Best(metric="test/return"),
        steps=640, batch_size=4, log_every=20,
    )


def sweep() -> list[Trial]:
    return repeat([{}], 10)

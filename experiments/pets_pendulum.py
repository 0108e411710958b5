"""A pendulum is swung up by planning with a learned model: a mean return above -200.

    pip install 'jaxdl[rl]'
    python launch.py --experiment=pets_pendulum

Chua et al. (2018), https://arxiv.org/abs/1805.12114, on Pendulum-v1 as gymnax has it: five networks
learn what follows an action, from 3,000 steps in one environment, a seventh of those of
`sac_pendulum`, which stands beside. `test/return` is the number, over 20 episodes of 200 steps; a
random policy has about -1,200.
"""

from jaxdl.data.nothing import Nothing
from jaxdl.envs.gymnax import Gymnax
from jaxdl.episodes import Episodes
from jaxdl.experiment import Best, Experiment
from jaxdl.models.dynamics import Dynamics
from jaxdl.optimizer import Adam, Constant
from jaxdl.tasks.pets import PETS


def config() -> Experiment:
    return Experiment(
        task=PETS(model=Dynamics(outputs=4, widths=(64, 64)), env=Gymnax(name="Pendulum-v1"),
                  horizon=25, updates=50, warmup=8),
        data=Nothing(),
        optimizer=Adam(learning_rate=Constant(peak=1e-3)),
        evals={"test": Episodes(every=60, count=20, limit=200)},
        best=Best(metric="test/return"),
        steps=120, batch_size=1, log_every=5,
    )

"""A pole on a cart is held up for 475 of 500 steps, learned by Q-learning with two networks.

    pip install 'jaxdl[rl]'
    python launch.py --experiment=dqn_cartpole
    python launch.py sweep --experiment=dqn_cartpole

Double Q-learning (van Hasselt et al. 2016, https://arxiv.org/abs/1509.06461) with duelling heads
(Wang et al. 2016, https://arxiv.org/abs/1511.06581) and sums of three rewards, on CartPole-v1 as
gymnax has it, 512,000 steps in 8 environments. Gymnasium calls CartPole-v1 solved at a mean return
of 475, of 500 that an episode can have. `test/return` is the number, over 100 episodes of the best
actions; `ppo_cartpole` stands beside. Eight of the sweep's ten seeds shall reach
475.
"""

from jaxdl.data.nothing import Nothing
from jaxdl.envs.gymnax import Gymnax
from jaxdl.episodes import Episodes
from jaxdl.experiment import Best, Experiment
from jaxdl.models.q_network import QNetwork
from jaxdl.optimizer import Adam, Linear
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.dqn import DQN


def config() -> Experiment:
    return Experiment(
        task=DQN(model=QNetwork(actions=2, widths=(120, 84), duelling=True),
                 env=Gymnax(name="CartPole-v1"), horizon=8, updates=8, sample=128, n=3,
                 memory=100_000, explored=1_000.),
        data=Nothing(),
        optimizer=Adam(learning_rate=Linear(peak=1e-3, end=0.), clip=10.),
        evals={"test": Episodes(every=2_000, count=100, limit=500)},
        best=Best(metric="test/return"),
        steps=8_000, batch_size=8, log_every=250,
    )


def sweep() -> list[Trial]:
    return repeat([{}], 10)

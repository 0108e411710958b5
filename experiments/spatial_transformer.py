"""Spatial transformer on distorted Fashion-MNIST: better test accuracy than the plain CNN, in %.

    python launch.py --experiment=spatial_transformer
    python launch.py sweep --experiment=spatial_transformer

Images, to train and to test, are turned by up to 90 degrees, scaled by 0.7 to 1.2 and shifted by up
to a seventh of a side. Jaderberg et al. (2015), table 1, put a localisation network before a CNN
and halve its error on distorted digits; here the sweep trains both with three seeds each, and the
spatial transformer must be ahead in the mean. The images come from where those of fashion_mnist_cnn
do.
"""

from jaxdl.data.idx import FashionMnist
from jaxdl.data.transforms import Affine, Fixed
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.cnn import CNN
from jaxdl.models.spatial_transformer import SpatialTransformer
from jaxdl.optimizer import Adam, Cosine
from jaxdl.sweep import Trial, grid
from jaxdl.tasks.classification import Classification

DISTORTED = (Affine(degrees=90., fraction=0.14, scale=(0.7, 1.2)),)
PLAIN = CNN(channels=(16, 32), dense=(64,), classes=10)
TURNED = SpatialTransformer(
    localisation=CNN(channels=(8, 16), kernel=5, dense=(), classes=32), classifier=PLAIN)


def config() -> Experiment:
    return Experiment(
        task=Classification(model=TURNED),
        data=FashionMnist(augment=DISTORTED, evaluation=(Fixed(transforms=DISTORTED),)),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05)),
        evals={"test": Evaluate(split="test", every=469)},
        best=Best(metric="test/accuracy"),
        steps=1_407, batch_size=128, save_every=469,  # three epochs
    )


def sweep() -> list[Trial]:
    return grid(**{"task.model": [PLAIN, TURNED], "seed": range(3)})

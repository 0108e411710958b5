"""What is learned from 8,000 digits without labels? A linear probe with 100: 93 % test accuracy.

    python launch.py --experiment=self_supervision
    python launch.py sweep --experiment=self_supervision

A small CNN learns from MNIST's digits without labels; then a linear classifier of its features, and
their nearest neighbours, are fitted to ten labels of each class. SimCLR (Chen et al. 2020, the
default), BYOL (Grill et al. 2020) and rotations (Gidaris et al. 2018), over three seeds, must beat
the same network trained on the hundred labels from scratch, by the same probe of its features, and
its random features. The networks from scratch see the same views of their images as SimCLR's and
BYOL's; so far it is ahead (RESULTS.md). The masked autoencoder (He et al. 2022) has a small ViT, to
be compared with that ViT. No paper states these numbers.
"""

from jaxdl.data.few_labels import FewLabels
from jaxdl.data.mnist_sample import MnistSample
from jaxdl.data.transforms import Affine
from jaxdl.experiment import Best, Experiment
from jaxdl.models.cnn import CNN
from jaxdl.models.vit import VisionTransformer
from jaxdl.optimizer import Adam, Constant, Cosine
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.masked_autoencoder import MAE
from jaxdl.tasks.representations import KNN, LinearProbe
from jaxdl.tasks.self_supervised import BYOL, Rotation, SimCLR

DIGITS = MnistSample(mean=(0.,), std=(1.,))
MODEL = CNN(channels=(16, 32), dense=(128,), classes=10, batch_norm=True)
VIT = VisionTransformer(patch=4, width=64, layers=3, heads=4, classes=10, pool="mean")
VIEW = (Affine(degrees=25., fraction=0.1, scale=(0.7, 1.3)),)


def config() -> Experiment:
    return Experiment(
        task=SimCLR(model=MODEL, augment=VIEW, temperature=0.5),
        data=DIGITS,
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05)),
        evals={"probe": LinearProbe(labels=100, every=1_000),
               "knn": KNN(labels=100, neighbours=5, every=1_000)},
        best=Best(metric="probe/accuracy"),
        steps=1_000, batch_size=128, log_every=50,
    )


def sweep() -> list[Trial]:
    viewed = MnistSample(mean=(0.,), std=(1.,), augment=VIEW)
    few = FewLabels(data=viewed, labels=100, share=None)
    alone: Trial = {"data": few, "batch_size": 32, "steps": 500}
    random: Trial = {"optimizer": Adam(learning_rate=Constant(peak=0.)), "steps": 1}
    return repeat([
        {"task": config().task},
        {"task": BYOL(model=MODEL, augment=VIEW, steps=1_000)},
        {"task": Rotation(model=MODEL.clone(classes=4))},
        {"task": MAE(model=VIT, visible=12, width=32, layers=1, heads=4)},
        *({"task": Classification(model=model), **other}
          for model in (MODEL, VIT) for other in (alone, random)),
    ], 3)

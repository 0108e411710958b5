"""Clothes of their outlines, in pairs: a mean absolute error of 0.07, beside 0.14 of a linear map.

    python launch.py --experiment=edges_to_clothes

pix2pix of Isola et al. (2017), https://arxiv.org/abs/1611.07004: a U-Net draws the image of
Fashion-MNIST, in [-1, 1], of which it sees the edges by Sobel's kernels, and a discriminator judges
patches of both. `test/l1` is the number; the best linear map of all pixels has 0.1406 (`python
benchmarks/image_baselines.py`). The sweep leaves out the discriminator's part or that of the error,
as their section 4.2 does. No paper has these pairs.
"""

from dataclasses import replace

from jaxdl.data.idx import FashionMnist
from jaxdl.data.transforms import Edges
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.dcgan import Discriminator
from jaxdl.models.translator import Translator
from jaxdl.optimizer import Adam, Linear
from jaxdl.sweep import Trial
from jaxdl.tasks.image_translation import Pix2Pix

TASK = Pix2Pix(generator=Translator(channels=(16, 32, 64), blocks=1, skips=True),
               discriminator=Discriminator(channels=(32, 64), norm="spectral", patches=True),
               l1=100.)


def config() -> Experiment:
    optimizer = Adam(learning_rate=Linear(peak=5e-4, end=0.), b1=0.5)
    return Experiment(
        task=TASK,
        data=FashionMnist(mean=(0.5,), std=(0.5,), augment=(Edges(),), evaluation=(Edges(),)),
        optimizer={"generator": optimizer, "discriminator": optimizer},
        evals={"test": Evaluate(split="test", every=1_876, batch_size=250)},
        best=Best(metric="test/l1", mode="min"),
        steps=7_504, batch_size=32, log_every=67, save_every=938,  # four epochs
    )


def sweep() -> list[Trial]:
    return [{"task": TASK}, {"task": replace(TASK, l1=1e5)}, {"task": replace(TASK, l1=0.)}]

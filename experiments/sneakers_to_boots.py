"""Sneakers into ankle boots and back, without pairs: 80 % are taken for the other kind, both ways.

    python launch.py --experiment=fashion_mnist_cnn --workdir=runs/fashion_mnist_cnn
    python launch.py --experiment=sneakers_to_boots
    python launch.py sweep --experiment=sneakers_to_boots

CycleGAN of Zhu et al. (2017), https://arxiv.org/abs/1703.10593, on 6,000 images of each kind of
Fashion-MNIST. The first run's network says what a translated test image is: `translated/forth` and
`translated/back` are the numbers, `translated/real_image` and `translated/real_other` what it says
of real ones; `test/image_cycle` and `test/other_cycle` are the errors after both ways, in [-1, 1].
An image that is left alone is taken for the other kind in less than one of ten. The sweep has
DiscoGAN (Kim et al. 2017, https://arxiv.org/abs/1703.05192) beside it. No paper has this pair.
"""

from jaxdl.data.idx import FashionMnist
from jaxdl.data.two_domains import TwoDomains
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.dcgan import Discriminator
from jaxdl.models.translator import Translator
from jaxdl.optimizer import Adam, Linear
from jaxdl.sweep import Trial
from jaxdl.tasks.image_translation import CycleGAN, Translated

GENERATOR = Translator(channels=(16, 32), blocks=2)
DISCRIMINATOR = Discriminator(channels=(32, 64), norm="spectral")
TASK = CycleGAN(generator=GENERATOR, discriminator=DISCRIMINATOR)


def config() -> Experiment:
    optimizer = Adam(learning_rate=Linear(peak=4e-4, end=0.), b1=0.5)
    return Experiment(
        task=TASK,
        data=TwoDomains(data=FashionMnist(mean=(0.5,), std=(0.5,)), first=("Sneaker",),
                        second=("Ankle boot",)),
        optimizer={"generator": optimizer, "discriminator": optimizer},
        evals={"test": Evaluate(split="test", every=750, batch_size=100),
               "translated": Translated(split="test", every=750, batch_size=100,
                                        classifier="runs/fashion_mnist_cnn", image=(7,),
                                        other=(9,))},
        best=Best(metric="translated/back"),
        steps=3_000, batch_size=16, log_every=50, save_every=375,  # eight epochs
    )


def sweep() -> list[Trial]:
    return [{"task": TASK}, {"task": CycleGAN(
        generator=GENERATOR, discriminator=DISCRIMINATOR, objective="non_saturating",
        distance="l2", cycle=1.)}]

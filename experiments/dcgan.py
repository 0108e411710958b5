"""Clothes out of noise: a GAN makes all ten kinds, at half of the VAE's Frechet distance.

    python launch.py --experiment=fashion_mnist_cnn --workdir=runs/fashion_mnist_cnn
    python launch.py --experiment=vae
    python launch.py --experiment=dcgan
    python launch.py sweep --experiment=dcgan

The networks of Radford et al. (2016), https://arxiv.org/abs/1511.06434, narrower, with spectral
normalisation of the discriminator (Miyato et al. 2018, https://arxiv.org/abs/1802.05957) and the
loss of Goodfellow et al. (2014), https://arxiv.org/abs/1406.2661, that does not saturate. The
distance is between features of the first experiment's network: it is no FID, and compares with that
of other experiments here alone. Expected are ten `quality/classes` and a `quality/frechet_distance`
less than half of the VAE's, whose samples are blurred. The sweep has the other losses.
"""

from dataclasses import replace

from jaxdl.data.idx import FashionMnist
from jaxdl.experiment import Best, Experiment
from jaxdl.generative import SampleQuality, Samples
from jaxdl.models.dcgan import Discriminator, Generator
from jaxdl.optimizer import Adam, Linear
from jaxdl.sweep import Trial
from jaxdl.tasks.gan import GAN

TASK = GAN(generator=Generator(size=28, channels=(64, 32)),
           discriminator=Discriminator(channels=(32, 64), norm="spectral"), noise=64, ema=0.999)


def config() -> Experiment:
    optimizer = Adam(learning_rate=Linear(peak=4e-4, end=0.1), b1=0.5)
    return Experiment(
        task=TASK,
        data=FashionMnist(mean=(0.5,), std=(0.5,)),
        optimizer={"generator": optimizer, "discriminator": optimizer},
        evals={"samples": Samples(every=3_752),
               "quality": SampleQuality(classifier="runs/fashion_mnist_cnn", every=9_380)},
        best=Best(metric="quality/frechet_distance", mode="min"),
        steps=18_760, batch_size=64, log_every=67, save_every=938,  # twenty epochs
    )


def sweep() -> list[Trial]:
    return [{"task": TASK}, {"task": replace(TASK, objective="least_squares")},
            {"task": replace(TASK, objective="hinge")},
            {"task": replace(TASK, objective="wasserstein", gradient_penalty=10., critic_steps=2)}]

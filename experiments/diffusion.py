"""Clothes out of noise by diffusion: all ten kinds, at half of the VAE's Frechet distance.

    python launch.py --experiment=fashion_mnist_cnn --workdir=runs/fashion_mnist_cnn
    python launch.py --experiment=vae
    python launch.py --experiment=diffusion

Karras et al. (2022), https://arxiv.org/abs/2206.00364: their loss, noise levels and Heun's sampler
of 18 steps, with a small U-Net on squares of 2 x 2 pixels. It is told the class, but for one in ten
examples, so samples can be guided (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598). The
distance is that of `dcgan`. Expected are ten `quality/classes`, and a `quality/frechet_distance`
less than half of the VAE's.
"""

from jaxdl.data.idx import FashionMnist
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Experiment
from jaxdl.generative import SampleQuality, Samples
from jaxdl.models.unet import UNet
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.diffusion import Diffusion


def config() -> Experiment:
    return Experiment(
        task=Diffusion(model=UNet(channels=(32, 64), blocks=1, patch=2, classes=10),
                       shape=(28, 28, 1), data_deviation=0.7, conditional=True, label_dropout=0.1,
                       ema=0.999),
        data=FashionMnist(mean=(0.5,), std=(0.5,)),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.02), clip=1.),
        evals={"test": Evaluate(split="test", every=1_876, batch_size=250),
               "samples": Samples(every=1_876),
               "quality": SampleQuality(classifier="runs/fashion_mnist_cnn", samples=2_000,
                                        every=7_504)},
        steps=7_504, batch_size=64, log_every=67, save_every=938,  # eight epochs
    )

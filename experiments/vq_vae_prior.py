"""Clothes drawn code by code: samples of a VQ-VAE at a Frechet distance below that of the VAE.

    python launch.py --experiment=fashion_mnist_cnn --workdir=runs/fashion_mnist_cnn
    python launch.py --experiment=vae
    python launch.py --experiment=vq_vae --workdir=runs/vq_vae
    python launch.py --experiment=vq_vae_prior

A gated PixelCNN over the 49 codes of the images of Fashion-MNIST (van den Oord et al. 2017,
https://arxiv.org/abs/1711.00937, section 3.2) draws new ones, which the decoder of `vq_vae` turns
into images. Expected are ten `quality/classes` and a `quality/frechet_distance` below that of
`vae`, in the features of the first run. `test/loss` is in nats for an image: 237.7 if all codes
were equally likely.
"""

from jaxdl.data.idx import FashionMnist
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment, InitFrom
from jaxdl.generative import SampleQuality, Samples
from jaxdl.models.autoencoder import Decoder, Encoder
from jaxdl.models.pixel_cnn import PixelCNN
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.vq_vae import VQVAE, CodePrior

VQ_VAE = VQVAE(encoder=Encoder(features=None, channels=(32, 64)),
               decoder=Decoder(size=28, channels=(64, 32)), codes=128, width=3)


def config() -> Experiment:
    return Experiment(
        task=CodePrior(vq=VQ_VAE, model=PixelCNN(levels=128, width=32, layers=4, embedded=True),
                       shape=(7, 7)),
        data=FashionMnist(mean=(0.,), std=(1.,)),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05), clip=100.),
        init_from=InitFrom(path="runs/vq_vae", rename=(("^params/", "params/vq/"),),
                           fresh=("params/prior/.*",)),
        evals={"test": Evaluate(split="test", every=938, batch_size=250),
               "samples": Samples(every=938),
               "quality": SampleQuality(classifier="runs/fashion_mnist_cnn", every=4_690)},
        best=Best(metric="test/loss", mode="min"),
        steps=4_690, batch_size=64, log_every=67, save_every=469,  # five epochs
    )

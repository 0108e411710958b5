"""Clothes as 49 codes of 7 bits: a mean squared error of 0.012, beside 0.015 of 32 numbers.

    python launch.py --experiment=vq_vae
    python launch.py sweep --experiment=vq_vae

Van den Oord et al. (2017), https://arxiv.org/abs/1711.00937: each place of a map of 7 x 7 is one of
128 learned vectors, 343 bits for an image of Fashion-MNIST in [0, 1]. `test/error` is the number;
the first ten principal components, which take 320 bits as they are stored, have 0.0237, 32 of them
0.0145 (`python benchmarks/image_baselines.py`). `train/codes` says how many codes are in use, as
it were: half of them, 64, are expected. Vectors have three numbers: the sweep shows that with more
of them fewer codes are in use. `vq_vae_prior` learns to draw codes.
"""

from jaxdl.data.idx import FashionMnist
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.autoencoder import Decoder, Encoder
from jaxdl.optimizer import Adam, Cosine
from jaxdl.sweep import Trial
from jaxdl.tasks.vq_vae import VQVAE


def config() -> Experiment:
    return Experiment(
        task=VQVAE(encoder=Encoder(features=None, channels=(32, 64)),
                   decoder=Decoder(size=28, channels=(64, 32)), codes=128, width=3),
        data=FashionMnist(mean=(0.,), std=(1.,)),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05)),
        evals={"test": Evaluate(split="test", every=938, batch_size=250)},
        best=Best(metric="test/error", mode="min"),
        steps=4_690, batch_size=64, log_every=67, save_every=469,  # five epochs
    )


def sweep() -> list[Trial]:
    return [{"task.width": width} for width in (3, 4, 8)]

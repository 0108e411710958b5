"""Clothes out of noise of half their contrast: a mean squared error of 0.011, beside 0.018.

    python launch.py --experiment=denoise

A denoising autoencoder of Vincent et al. (2008), https://doi.org/10.1145/1390156.1390294, on
Fashion-MNIST in [0, 1] with normal noise of deviation 0.5. It is a U-Net: what a layer of features
alone lets through is blurred. `test/loss` is the number; the best linear map of all pixels has
0.0182 and the noisy image itself, clipped, 0.1178 (`python benchmarks/image_baselines.py`). No
paper has this noise.
"""

from jaxdl.data.idx import FashionMnist
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.unet import UNet
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.autoencoder import Autoencoder


def config() -> Experiment:
    return Experiment(
        task=Autoencoder(encoder=UNet(channels=(16, 32, 64), blocks=1, attention=None),
                         deviation=0.5),
        data=FashionMnist(mean=(0.,), std=(1.,)),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05)),
        evals={"test": Evaluate(split="test", every=938, batch_size=250)},
        best=Best(metric="test/loss", mode="min"),
        steps=2_814, batch_size=64, log_every=67, save_every=469,  # three epochs
    )

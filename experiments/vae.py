"""Clothes out of 32 numbers: a variational autoencoder, a bound of -234 nats for each test image.

    python launch.py --experiment=fashion_mnist_cnn --workdir=runs/fashion_mnist_cnn
    python launch.py --experiment=vae

Kingma & Welling (2014), https://arxiv.org/abs/1312.6114, with convolutions, on Fashion-MNIST whose
pixels are drawn as 0 or 1 (Salakhutdinov & Murray 2008). `bound/bound` is the number, by 64 samples
(Burda et al. 2016, https://arxiv.org/abs/1509.00519, equation 8). A mixture of 500 images of
independent pixels has -248.8, independent pixels -385, and the entropy of the drawing is 190
(`python benchmarks/densities.py`); the mixture must be beaten. No paper has this drawing's number.
The first run is the network in whose features `quality` compares means of samples with grey images.
"""

from jaxdl.data.idx import FashionMnist
from jaxdl.data.transforms import Binarise
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Experiment
from jaxdl.generative import SampleQuality, Samples
from jaxdl.models.autoencoder import Decoder, Encoder
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.vae import VAE, ImportanceWeighted


def config() -> Experiment:
    return Experiment(
        task=VAE(encoder=Encoder(features=128, channels=(16, 32)),
                 decoder=Decoder(size=28, channels=(32, 16), dense=128), latents=32),
        data=FashionMnist(mean=(0.,), std=(1.,), augment=(Binarise(),), evaluation=(Binarise(),)),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.02), clip=100.),
        evals={"test": Evaluate(split="test", every=1_876, batch_size=250),
               "bound": ImportanceWeighted(split="test", every=7_035, batch_size=100),
               "samples": Samples(every=1_876),
               "quality": SampleQuality(classifier="runs/fashion_mnist_cnn", every=7_035)},
        steps=7_035, batch_size=128, log_every=67, save_every=938,  # fifteen epochs
    )

"""Clothes as normal numbers: a flow with the exact likelihood, 3.8 bits for each pixel.

    python launch.py --experiment=fashion_mnist_cnn --workdir=runs/fashion_mnist_cnn
    python launch.py --experiment=flow

RealNVP of Dinh et al. (2017), https://arxiv.org/abs/1605.08803, of narrow networks, on the 256
grey levels of Fashion-MNIST. `test/bits_per_dim` is the number, an upper bound of the bits that a
pixel takes; the frequencies of each pixel's levels have 4.59, WebP without loss 4.55 and PNG 5.19
(`python benchmarks/densities.py`). They have 3.49 for photographs in colour of 32 x 32 pixels
(table 1). The last of the three scales sees all of an image: with two its samples were no clothes.
The first run is the network in whose features `quality` compares samples.
"""

from jaxdl.data.idx import FashionMnist
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Experiment
from jaxdl.generative import SampleQuality, Samples
from jaxdl.models.real_nvp import RealNVP
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.flow import Flow


def config() -> Experiment:
    return Experiment(
        task=Flow(model=RealNVP(shape=(28, 28, 1), scales=3, width=16, blocks=1)),
        data=FashionMnist(mean=(0.,), std=(1.,)),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3, warmup=0.05), clip=100.),
        evals={"test": Evaluate(split="test", every=500, batch_size=250),
               "samples": Samples(every=500),
               "quality": SampleQuality(classifier="runs/fashion_mnist_cnn", every=3_000)},
        steps=3_000, batch_size=64, log_every=67, save_every=500,  # three epochs and a bit
    )

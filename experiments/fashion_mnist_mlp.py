"""MLP on Fashion-MNIST: 88 % test accuracy or more.

    python launch.py --experiment=fashion_mnist_mlp

The data set's README lists 87 to 88 % for multilayer perceptrons of one and two hidden layers
without augmentation. The images come from where those of fashion_mnist_cnn do.
"""

from jaxdl.data.idx import FashionMnist
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import AdamW, Cosine
from jaxdl.tasks.classification import Classification


def config() -> Experiment:
    return Experiment(
        task=Classification(model=MLP(widths=(256, 128), classes=10, dropout=0.2)),
        data=FashionMnist(),
        optimizer=AdamW(learning_rate=Cosine(peak=1e-3, warmup=0.05), weight_decay=0.02),
        evals={"test": Evaluate(split="test", every=469)},
        best=Best(metric="test/accuracy"),
        steps=4_690, batch_size=128, save_every=469,  # ten epochs
    )

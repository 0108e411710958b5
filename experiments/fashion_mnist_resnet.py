"""ResNet-20 on Fashion-MNIST with augmentation: 94 % test accuracy or more.

    python launch.py --experiment=fashion_mnist_resnet

The data set's README lists 94.9 % for a ResNet-18 of 11 million parameters; this network has 0.27
million, and trains for ten epochs. "averaged" is the accuracy of predictions over mirrored copies.
The images come from where those of fashion_mnist_cnn do.
"""

from jaxdl.data.idx import FashionMnist
from jaxdl.data.transforms import Flip
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.resnet import ResNet
from jaxdl.optimizer import SGD, Cosine
from jaxdl.tasks.classification import Classification, TestTimeAugmentation


def config() -> Experiment:
    return Experiment(
        task=Classification(model=ResNet(depth=20, classes=10)),
        data=FashionMnist(augment=(Flip(),)),
        optimizer=SGD(learning_rate=Cosine(peak=0.1, warmup=0.1), momentum=0.9, nesterov=True,
                      l2=5e-4),
        evals={"test": Evaluate(split="test", every=938),
               "averaged": TestTimeAugmentation(split="test", every=9_380, copies=4)},
        best=Best(metric="test/accuracy"),
        steps=9_380, batch_size=64, save_every=938,  # ten epochs
    )

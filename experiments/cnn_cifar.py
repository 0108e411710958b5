"""Two wide convolutions on CIFAR-10 at 64 x 64: 70 % test accuracy after ten epochs.

    python launch.py --experiment=cnn_cifar

Images are resized to 64 x 64 and normalised by mean and deviation 0.5; convolutions of 64 and 128
channels, each with a pooling, a dense layer of 1,024; SGD at 0.01 with momentum 0.9. No paper
states a number; two convolutions without augmentation usually end near 70 %. Where CIFAR-10 cannot
be had, 250 steps on scikit-learn's real 8 x 8 digits, enlarged: 97 % or more.
"""

from jaxdl.data.cifar import Cifar10
from jaxdl.data.digits import Digits
from jaxdl.data.source import StandIn
from jaxdl.data.transforms import Resize
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.cnn import CNN
from jaxdl.optimizer import SGD, Constant
from jaxdl.tasks.classification import Classification

LARGE = (Resize(size=64),)
HALF = (0.5,)


def config() -> Experiment:
    return Experiment(
        task=Classification(model=CNN(channels=(64, 128), dense=(1_024,), classes=10)),
        data=Cifar10(
            augment=LARGE, evaluation=LARGE, mean=HALF, std=HALF, stand_in=StandIn(
                data=Digits(augment=LARGE, evaluation=LARGE, mean=HALF, std=HALF), steps=250)),
        optimizer=SGD(learning_rate=Constant(peak=0.01), momentum=0.9),
        evals={"test": Evaluate(split="test", every=782)},
        best=Best(metric="test/accuracy"),
        steps=7_820, batch_size=64, save_every=782,
    )

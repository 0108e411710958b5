"""ResNet-20 on CIFAR-10: 91.25 % test accuracy (He et al. 2015, section 4.2 and table 6).

    python launch.py --experiment=resnet_cifar

Where CIFAR-10 is neither on the machine nor to be downloaded, the same network trains for 250 steps
on scikit-learn's real 8 x 8 digits, enlarged to 32 x 32 x 3, and says so: expected 97 % or more on
their test split (plain JAX reaches 98 % in 300 steps).
"""

from jaxdl.data.cifar import Cifar10
from jaxdl.data.digits import Digits
from jaxdl.data.source import StandIn
from jaxdl.data.transforms import Flip, PadCrop
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.resnet import ResNet
from jaxdl.optimizer import SGD, StepDecay
from jaxdl.tasks.classification import Classification


def config() -> Experiment:
    return Experiment(
        task=Classification(model=ResNet(depth=20, classes=10)),
        data=Cifar10(augment=(PadCrop(pad=4), Flip()),
                     stand_in=StandIn(data=Digits(), steps=250)),
        optimizer=SGD(learning_rate=StepDecay(peak=0.1, at=(0.5, 0.75), factor=0.1), momentum=0.9,
                      l2=1e-4),
        evals={"test": Evaluate(split="test", every=1_000)},
        best=Best(metric="test/accuracy"),
        steps=64_000, batch_size=128,
    )

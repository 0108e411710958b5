"""ResNet-20 on scikit-learn's digits at 16 x 16: 98 % test accuracy or more.

    python launch.py --experiment=resnet_digits

No paper states a number for this split of 1,797 images; a support vector machine reaches about 97 %
in scikit-learn's own example, and the network should beat it.
"""

from jaxdl.data.digits import Digits
from jaxdl.data.transforms import PadCrop
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.resnet import ResNet
from jaxdl.optimizer import SGD, Cosine
from jaxdl.tasks.classification import Classification


def config() -> Experiment:
    return Experiment(
        task=Classification(model=ResNet(depth=20, classes=10)),
        data=Digits(size=16, channels=1, augment=(PadCrop(pad=1),)),
        optimizer=SGD(learning_rate=Cosine(peak=0.1, warmup=0.05), momentum=0.9, nesterov=True,
                      l2=5e-4),
        evals={"test": Evaluate(split="test", every=200)},
        best=Best(metric="test/accuracy"),
        steps=800, batch_size=128, save_every=200,
    )

"""The teacher of `distillation`, ResNet-8 on MNIST's digits: 98 % test accuracy.

    python launch.py --experiment=distillation_teacher --workdir=runs/distillation_teacher
"""

from jaxdl.data.mnist_sample import MnistSample
from jaxdl.data.transforms import PadCrop
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.resnet import ResNet
from jaxdl.optimizer import SGD, Cosine
from jaxdl.tasks.classification import Classification


def config() -> Experiment:
    return Experiment(
        task=Classification(model=ResNet(depth=8, classes=10)),
        data=MnistSample(augment=(PadCrop(pad=2),)),
        optimizer=SGD(learning_rate=Cosine(peak=0.1, warmup=0.1), momentum=0.9, nesterov=True),
        evals={"test": Evaluate(split="test", every=500)},
        best=Best(metric="test/accuracy"),
        steps=500, batch_size=128,
    )

"""ResNet-50 on ImageNet, 90 epochs: 76 % top-1 accuracy (Goyal et al. 2017, table 1: 76.3 %).

    python launch.py --experiment=resnet50_imagenet --data.directory=DIR

DIR is a TFDS data directory in which imagenet2012 was prepared in the format array_record. Images
are decoded on the host to 256 x 256; the random crops are taken on the devices. For 8 devices.
"""

from jaxdl.data.tfds import Tfds
from jaxdl.data.transforms import CenterCrop, Flip, RandomResizedCrop
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment
from jaxdl.models.resnet import ResNet
from jaxdl.optimizer import SGD, PathRule, StepDecay
from jaxdl.tasks.classification import Classification


def config() -> Experiment:
    return Experiment(
        task=Classification(model=ResNet(depth=50, classes=1000, zero_scale=True),
                            label_smoothing=0.1, top_k=(5,), compute_dtype="bfloat16"),
        data=Tfds(name="imagenet2012", size=256, augment=(RandomResizedCrop(size=224), Flip()),
                  evaluation=(CenterCrop(size=224),)),
        optimizer=SGD(
            learning_rate=StepDecay(peak=0.4, warmup=5 / 90, at=(30 / 90, 60 / 90, 80 / 90)),
            momentum=0.9, l2=1e-4, rules=(PathRule(path=".*/(scale|bias)", weight_decay=0.0),)),
        evals={"validation": Evaluate(split="validation", every=5_000)},
        best=Best(metric="validation/accuracy"),
        steps=112_600, batch_size=1_024,
    )

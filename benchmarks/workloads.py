"""The reference workloads as experiments of jaxdl, on random data of the right shapes.

The other contenders of `train.py` build the same networks in `peers/`; sizes are in
`peers/worker.py`. This file is an experiment too: ResNet-18 on little data, for `start.py`, or
another of the workloads. So the operations of a step that cost most are listed by

    WORKLOAD=lstm python launch.py --experiment=benchmarks/workloads.py --steps=23 --profile=3:23
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax

from jaxdl.config import Size
from jaxdl.data.source import Arrays, Source, Transform
from jaxdl.evaluate import Context
from jaxdl.experiment import Experiment
from jaxdl.layers import Conv
from jaxdl.models.mlp import MLP
from jaxdl.models.resnet import ResNet
from jaxdl.models.rnn import RNN
from jaxdl.models.transformer import Transformer
from jaxdl.optimizer import SGD, Adam, AdamW, Constant, Optimizer
from jaxdl.task import LossTask
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.language import LanguageModel

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from worker import BATCH, CNN, GPT, LSTM, VOCABULARY, WIDTHS, examples, is_text

Array = jax.Array
STEPS = 100_000  # of a long run, which is what the steps are compiled for


@dataclass(frozen=True, kw_only=True)
class Random:
    """Random examples of a workload: as many for every split, and no transforms.

    Attributes:
      workload: whose shapes they have.
      size: how many examples.
    """

    workload: str
    size: int = 8_192

    stand_in: ClassVar[None] = None

    def prepare(self) -> None:
        """Nothing to fetch."""

    def open(self, split: str) -> Source:
        x, y = examples(self.workload, self.size)
        names = ("tokens", "next") if is_text(self.workload) else ("image", "label")
        transforms: tuple[Transform, ...] = ()
        return Arrays(arrays=dict(zip(names, (x, y), strict=True)), transforms=transforms)

    def fingerprint(self) -> str:
        return f"random-{self.workload}-{self.size}"


class SmallCNN(nn.Module):
    """3 x 3 convolutions of stride 2, the mean over pixels, a dense layer."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for i, channels in enumerate(CNN[1:]):
            x = nn.relu(Conv(channels, (3, 3), 2, padding=1, name=f"conv{i + 1}")(x))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


def experiment(workload: str, task: LossTask, optimizer: Optimizer, batch_size: int) -> Experiment:
    return Experiment(task=task, data=Random(workload=workload), optimizer=optimizer, steps=STEPS,
                      batch_size=batch_size)


def classifier(workload: str, model: nn.Module) -> Experiment:
    """SGD with momentum."""
    return experiment(workload, Classification(model=model),
                      SGD(learning_rate=Constant(peak=0.01), momentum=0.9), BATCH)


def resnet18() -> Experiment:
    return classifier("resnet18", ResNet(depth=18, stem="cifar"))


def resnet20() -> Experiment:
    return classifier("resnet20", ResNet(depth=20, shortcut="projection"))


def mlp() -> Experiment:
    return classifier("mlp", MLP(widths=WIDTHS[1:-1]))


def cnn() -> Experiment:
    return classifier("cnn", SmallCNN())


def gpt(compute_dtype: Literal["float32", "bfloat16"] = "float32") -> Experiment:
    model = Transformer(vocabulary=VOCABULARY, layers=GPT["layers"], width=GPT["width"],
                        heads=GPT["heads"], block=GPT["block"], bias=True)
    return experiment("gpt", LanguageModel(model=model, compute_dtype=compute_dtype),
                      AdamW(learning_rate=Constant(peak=1e-3)), GPT["batch"])


def lstm() -> Experiment:
    model = RNN(vocabulary=VOCABULARY, width=LSTM["width"], embedding=LSTM["embedding"])
    return experiment("lstm", LanguageModel(model=model), Adam(learning_rate=Constant(peak=1e-3)),
                      LSTM["batch"])


@dataclass(frozen=True, kw_only=True)
class FirstStep:
    """Says when the first step is done, for `start.py`.

    Attributes:
      every: steps between two calls.
    """

    every: Size = STEPS

    def __call__(self, task: Any, state: Any, context: Context) -> dict[str, float]:
        jax.block_until_ready(state)
        print("first step done", flush=True)
        return {}


def config() -> Experiment:
    """The workload that the environment names, else ResNet-18 on little data, for `start.py`."""
    if "WORKLOAD" in os.environ:
        return EXPERIMENTS[os.environ["WORKLOAD"]]()
    return replace(resnet18(), data=Random(workload="resnet18", size=1_280),
                   evals={"clock": FirstStep(every=1)})


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "resnet18": resnet18, "resnet20": resnet20, "gpt": gpt, "gpt_bf16": lambda: gpt("bfloat16"),
    "mlp": mlp, "lstm": lstm, "mlp_sweep": mlp, "cnn_sweep": cnn,
    "lstm_sweep": lstm}

"""A small experiment with all that can go wrong on resume: dropout, batch norm, EMA, augmentation,
a schedule, weight decay, and an order of data over several epochs.

With JAXDL_TEST_KILL=N in the environment the process kills itself when it reads example N. With
JAXDL_TEST_UNSEEDED the order of the data is another one in each process.
"""

import os
import signal
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import optax

from jaxdl.data.digits import Digits
from jaxdl.data.source import Arrays, Source
from jaxdl.data.transforms import PadCrop
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment, Mesh
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import SGD, Adam, Constant, Cosine
from jaxdl.tasks.classification import Classification


class Mortal(Arrays):
    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        kill = int(os.environ.get("JAXDL_TEST_KILL", "-1"))
        if position <= kill < position + batch_size:
            os.kill(os.getpid(), signal.SIGKILL)
        if "JAXDL_TEST_UNSEEDED" in os.environ:
            position += batch_size * os.getpid()
        return super().index(seed, position, batch_size)


@dataclass(frozen=True, kw_only=True)
class MortalDigits(Digits):
    def open(self, split: str) -> Source:
        source: Any = super().open(split)
        return Mortal(arrays=source.arrays, transforms=source.transforms)


def config() -> Experiment:
    return Experiment(
        task=Classification(model=MLP(widths=(32,), batch_norm=True, dropout=0.2), ema=0.95),
        data=MortalDigits(size=8, channels=1, augment=(PadCrop(pad=1),)),
        optimizer=Adam(learning_rate=Cosine(peak=1e-2, warmup=0.1), weight_decay=1e-3, clip=1.0),
        evals={"test": Evaluate(every=8)},
        best=Best(metric="test/accuracy"),
        steps=40, batch_size=128, log_every=3, save_every=5, mesh=Mesh(data=1),
    )


def shorter(**changes: Any) -> Experiment:
    return replace(config(), **changes)


def plain(**changes: Any) -> Experiment:
    """The least that trains: compiled in a second."""
    return shorter(**{
        "task": Classification(model=MLP(widths=())), "data": Digits(size=8, channels=1),
        "optimizer": SGD(learning_rate=Constant(peak=0.1)), "evals": {}, "best": Best(),
        "steps": 6, "log_every": 6, "save_every": 6, **changes})


def state_of(task: Any, batch: Any) -> Any:
    """The first state of a task, with SGD, compiled: its operations, one by one, take ten times as
    long."""
    return jax.jit(lambda batch: task.init(jax.random.key(0), batch, optax.sgd(1.)))(batch)

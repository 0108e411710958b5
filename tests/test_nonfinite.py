"""Where a number that is not finite began: the layer, the line, the examples; by running again."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import apart, parallel, train
from jaxdl.data.source import Arrays, permutation
from jaxdl.errors import NotFinite
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.mlp import MLP
from jaxdl.nonfinite import Search, layers
from jaxdl.optimizer import SGD, Constant
from jaxdl.process import Preempted
from jaxdl.tasks.classification import Classification
from tests.test_train import fit
from tests.tiny import plain

SIZE, BATCH, STEP, ROW = 64, 16, 2, 5
BAD = int(permutation(0, 0, SIZE)[STEP * BATCH + ROW])  # the id of the example that has the fault


class Log(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return jnp.log(x)


class Standardize(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred ** 2).mean(-1, keepdims=True))


class Exp(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return jnp.exp(x)


class Root(nn.Module):
    """Finite at 0, but its slope is not."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return jnp.sqrt(x * self.param("scale", nn.initializers.ones, (1,)).astype(x.dtype))


class Net(nn.Module):
    """Each layer gets features of its own, so that the data says which one fails."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        # A mask of infinities and an overflow that both disappear are nobody's fault.
        masked = jnp.where(jnp.arange(3) < 2, x[:, 6:], -jnp.inf)
        x = jnp.concatenate([
            Log()(x[:, :1]), Standardize()(x[:, 1:4]), Exp()(x[:, 4:5]), Root()(x[:, 5:6]),
            nn.softmax(masked), 1 / (1 + jnp.exp(1e4 * x[:, 6:] ** 2))], -1)
        return nn.Dense(10)(x)


CASES = {
    "log of zero": ([0.], 0, 'in layer "Net/Log_0": log of [0, 1] gives an infinity ({file}:', "Log_0"),
    "no variance": ([7., 7., 7.], 1, 'in layer "Net/Standardize_0": div of [-2, 2] and [0, ', ""),
    "overflow": ([100.], 4, 'in layer "Net/Exp_0": exp of [0, 100] gives an infinity (', ""),
    "slope": ([0.], 5, 'in the gradient of layer "Net/Root_0": ', ""),
    "pixel": ([np.nan], 7, 'in the data: 1 of the values of "image", in 1 of 16 examples', ""),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planted:
    case: str | None
    stand_in: None = None

    def open(self, split: str) -> Arrays:
        rng = np.random.default_rng(0)
        image = np.ones((SIZE, 9), np.float32)
        image[:, 1:4] = rng.integers(-2, 3, (SIZE, 1)) * np.array([1, 0, -1]) + [0, 1, 0]
        image[:, 1:4] = [-2, 0, 2]
        image[:, 4] = 0
        image[:, 6:] = rng.normal(size=(SIZE, 3))
        if self.case is not None:
            values, at, *_ = CASES[self.case]
            image[BAD, at:at + len(values)] = values
        return Arrays(arrays={"image": image,
                              "label": rng.integers(0, 10, SIZE).astype(np.int32)})

    def prepare(self) -> None:
        pass

    def fingerprint(self) -> str:
        return str(self.case)


def planted(case: str | None, **changes: Any) -> Experiment:
    return plain(**{
        "task": Classification(model=Net(), compute_dtype="bfloat16"), "data": Planted(case=case),
        "optimizer": SGD(learning_rate=Constant(peak=1e-3)), "batch_size": BATCH, "steps": 4,
        **changes})


def searched(program: train.Program, case: str | None, folder: Path) -> Search:
    """The search of a run of which there is no more than it needs."""
    program.arrays = program.devices.replicate(Planted(case=case).open("train").arrays)
    nothing = SimpleNamespace(poll=lambda: None, alive=lambda: None, restore=lambda target: None)
    fit: Any = SimpleNamespace(
        run=SimpleNamespace(folder=folder), program=program, signals=nothing, clock=nothing,
        checkpoints=nothing, fresh=lambda: program.init(program.knobs))
    return Search(fit)


def compiled(**changes: Any) -> train.Program:
    experiment = planted(None, **changes)
    return train.Program(experiment, experiment.data.open("train"),
                         parallel.arrange(experiment.mesh))


def test_the_layer_is_named_in_each_planted_case(tmp_path: Path) -> None:
    program = compiled()
    search = searched(program, None, tmp_path)
    assert search.at(STEP) is None and not (tmp_path / "nonfinite").exists()
    for case, (_, _, text, _) in CASES.items():
        search = searched(program, case, tmp_path)
        assert search.at(STEP - 1) is None, case
        found = search.at(STEP)
        assert found is not None, case
        print(found.text)
    raise SystemExit

"""A second trace of what is compiled once is told and names the leaf; --strict_compile ends it."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import train
from jaxdl.errors import RunError
from jaxdl.evaluate import Evaluate
from jaxdl.models.mlp import MLP
from jaxdl.retrace import once
from jaxdl.tasks.classification import Classification
from tests.test_train import fit, run_of
from tests.tiny import plain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drifting(Classification):
    """The mistake of a task that gives back another type than it was given."""

    def step(self, state: Any, batch: Any, tx: Any) -> Any:
        new, metrics = super().step(state, batch, tx)
        return dataclasses.replace(new, mutable={"a": {"x": jnp.float16(1)}}), metrics

    def init(self, key: Any, batch: Any, tx: Any) -> Any:
        state = super().init(key, batch, tx)
        return dataclasses.replace(state, mutable={"a": {"x": jnp.float32(1)}})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graphs:
    """Read on the host. The number of nodes is no axis of the batch, and grows once."""

    stand_in: None = None
    grows: str

    def open(self, split: str) -> Any:
        return Nodes(grows=split == self.grows)

    def prepare(self) -> None:
        pass

    def fingerprint(self) -> str:
        return self.grows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nodes:
    grows: bool
    arrays: None = None
    size: int = 32

    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        return np.arange(position, position + batch_size, dtype=np.int32) % self.size

    def read(self, index: Any) -> Any:
        later = self.grows and index[0] >= 16
        return {"image": np.ones((len(index), 4), np.float32), "label": index % 10,
                "nodes": np.ones((5 if later else 3, 2), np.float32)}

    def transform(self, batch: Any, key: Any) -> Any:
        return batch


def told(text: str, what: str, leaf: str) -> bool:
    return f"{what} is compiled again: {leaf}" in " ".join(text.split())


@pytest.mark.parametrize(("grows", "what"), [("train", "the step"), ("test", "evals.test"),
                                             ("none", "")])
def test_a_batch_of_another_shape_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                          grows: str, what: str) -> None:
    experiment = plain(data=Graphs(grows=grows), batch_size=8, steps=4,
                       evals={"test": Evaluate(every=4)})
    fit(tmp_path / "warned", experiment)
    text, leaf = capsys.readouterr().out, "inputs/nodes was float32[3, 2], and is float32[5, 2]"
    assert told(text, f"warning: {what}", leaf) if what else "compiled again" not in text
    if what:
        with pytest.raises(RunError) as error:
            train.fit(experiment, run_of(tmp_path / "strict", experiment), strict_compile=True)
        assert str(error.value) == (f"--strict_compile: {what} is compiled again: {leaf}. What is "
                                    "committed is intact.")


def test_a_state_of_another_type_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "FUSED", 1)
    fit(tmp_path, plain(task=Drifting(model=MLP(widths=())), steps=3))
    text = capsys.readouterr().out
    assert told(text, "warning: the step",
                "carry/state/mutable/a/x was float32[], and is float16[]"), text
    assert text.count("compiled again") == 1


def test_a_weak_type_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    function = jax.jit(once(lambda x: x + 1, "it", ("x",)))
    function(jnp.float32(1))
    function(jnp.float32(2))
    assert "again" not in capsys.readouterr().out
    function(1.)
    assert told(capsys.readouterr().out, "it", "x was float32[], and is float32[], weakly typed")

"""The same experiment without the command line."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdl import api, cli, record
from jaxdl.data.digits import Digits
from jaxdl.data.folder import ImageFolder
from jaxdl.data.source import StandIn
from jaxdl.errors import UserError
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment, Mesh
from jaxdl.tasks.classification import Classification
from tests.tiny import plain


@dataclass(frozen=True, kw_only=True)
class Mine(Classification):
    """A class of the user's own."""


def experiment(**changes: object) -> Experiment:
    first = plain(evals={"test": Evaluate(every=3)}, best=Best(metric="test/accuracy"),
                  batch_size=32, mesh=Mesh(data=1))
    return dataclasses.replace(
        first, task=Mine(model=first.task.model), **changes)  # type: ignore[arg-type]


def test_it_trains_and_returns_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = api.fit(experiment(), tmp_path / "run")
    assert run.over and run.step == 6 and run.name == "run"
    steps, values = run.curves["test/accuracy"]
    assert list(steps) == [3, 6]
    assert run.best() == (steps[values.argmax()], values.max())
    assert {"test_api.py", "tiny.py"} <= run.record.code.keys()

    task, state = experiment().task, api.state(tmp_path / "run", experiment=experiment())[1]
    batch = {**Digits(size=8, channels=1).open("test").arrays, "mask": np.ones(359)}  # type: ignore
    batch["image"] = (batch["image"] / 255 - 0.305) / 0.376
    found = jax.jit(task.evaluate)(state, batch)["accuracy"].value()
    assert found == pytest.approx(run.curves["test/accuracy"][1][-1])

    capfd.readouterr()
    assert api.fit(experiment(), tmp_path / "run").curves.keys() == run.curves.keys()
    assert "is finished (step 6)" in capfd.readouterr().out
    with pytest.raises(UserError, match="holds another experiment \\(steps: 6 then, 9 now\\)"):
        api.fit(experiment(steps=9), tmp_path / "run")
    assert api.fit(experiment(steps=9), tmp_path / "run", accept_changes=True).step == 9


def test_a_run_of_it_is_one_for_the_command(tmp_path: Path,
                                            capfd: pytest.CaptureFixture[str]) -> None:
    """With the file that has its classes, as always."""
    api.fit(plain(evals={"test": Evaluate(every=3)}, mesh=Mesh(data=1)), tmp_path / "run")
    capfd.readouterr()
    assert cli.main(["evaluate", f"--experiment={tmp_path / 'run'}"]) == 0
    assert "test/accuracy" in capfd.readouterr().out


def test_a_stand_in_is_said_and_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    missing = ImageFolder(path=str(tmp_path / "nowhere"), size=8, channels=1, stand_in=StandIn(
        data=Digits(size=8, channels=1), steps=3))
    run = api.fit(experiment(data=missing), tmp_path / "run")
    assert "STAND-IN DATA" in capfd.readouterr().out
    assert run.record.stand_in == "Digits in place of ImageFolder" and run.steps == 3
    kept, _ = api.state(tmp_path / "run", "best", experiment=experiment(data=missing))
    assert isinstance(kept.data, Digits)
    with pytest.raises(UserError, match="strict_data"):
        api.fit(experiment(data=missing), tmp_path / "run", strict_data=True)


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="steps=0: expected int, at least 1"):
        api.fit(experiment(steps=0), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="not a run directory"):
        api.state(tmp_path)
    api.fit(experiment(steps=3), tmp_path / "run")
    assert record.read(tmp_path / "run") is not None
    with pytest.raises(UserError, match="Mine"):  # A record cannot choose what to import.
        api.state(tmp_path / "run")

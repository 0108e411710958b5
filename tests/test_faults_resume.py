"""What may have changed when a run is continued: where it was killed, its experiment, the machine,
the clock, the disk."""

import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdl import config, parallel, record, train
from jaxdl.checkpoint import Checkpoints, committed
from jaxdl.cli import main
from jaxdl.clock import Clock
from jaxdl.data.digits import Digits
from jaxdl.data.transforms import Flip
from jaxdl.errors import UserError
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment, InitFrom, Mesh
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import SGD, Adam, AdamW, Constant, Cosine
from jaxdl.process import Signals
from jaxdl.resume import metrics
from jaxdl.task import named
from tests.test_train import arrays, fit, run_of
from tests.tiny import plain, shorter


def bits(carry: Any) -> dict[str, bytes]:
    return {path: np.asarray(jax.random.key_data(x) if jax.numpy.issubdtype(
        x.dtype, jax.dtypes.prng_key) else x).tobytes() for path, x in named(carry).items()}


def test_continued_at_every_step_it_is_the_same_run(tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its checkpoints, alone in a directory, is continued to the end."""
    ends: list[tuple[dict[str, bytes], list[Any]]] = []
    keep = train.Fit.keep

    def ended(self: Any, step: int, carry: Any) -> None:
        self.flush()
        ends.append((bits(carry), metrics(self.run.folder)))
        if len(ends) == 1:
            keep(self, step, carry)

    monkeypatch.setattr(train.Fit, "keep", ended)
    experiment = shorter(save_every=1, keep=100, steps=40)
    opened = train.splits(experiment)
    program = train.Program(experiment, opened("train"), parallel.arrange(experiment.mesh))
    compiled = program.compile().result()
    program.compile = lambda: type("Done", (), {"result": lambda _: compiled,  # type: ignore
                                                "done": lambda _: True})()
    program._drawn = program._draw(program.knobs)
    program.init = lambda knobs: train.Carry(program._drawn, program.empty())  # type: ignore

    def go(folder: Path) -> None:
        run = run_of(folder, experiment)
        checkpoints = Checkpoints(folder / "checkpoints", 100)
        with Signals() as signals:
            train.Fit(experiment, run, program, checkpoints, opened, signals, Clock())(())
            run.close()
        checkpoints.close()

    straight = tmp_path / "straight"
    go(straight)
    assert committed(straight / "checkpoints") == list(range(1, 41))
    monkeypatch.setattr(train.Fit, "save", lambda self, step, carry: self.flush(carry))
    for step in range(1, 40):
        folder = tmp_path / str(step)
        (folder / "checkpoints" / "arrays").mkdir(parents=True)
        for name in ("config.json", "metrics.jsonl", f"checkpoints/{step}.json"):
            shutil.copy(straight / name, folder / name)
        shutil.copytree(straight / "checkpoints" / "arrays" / str(step),
                        folder / "checkpoints" / "arrays" / str(step))
        go(folder)
        shutil.rmtree(folder)
    assert len(ends) == 40
    assert [i for i, end in enumerate(ends) if end != ends[0]] == []


def calm(**changes: Any) -> Experiment:
    """Without batch norm, whose statistics amplify rounding, and at a low rate."""
    task: Any = shorter().task
    return shorter(task=dataclasses.replace(task, model=MLP(widths=(32,), dropout=0.2)),
                   optimizer=Adam(learning_rate=Constant(peak=1e-3)), steps=16, **changes)


class Watched:
    """Runs of it, with the example ids of each step."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.ids = folder, dict[str, list[bytes]]()
        enter = Clock.enter

        def seen(clock: Clock, section: str, step: int, batches: Any = ()) -> None:
            self.ids.setdefault(self.name, []).extend(b["index"].tobytes() for b in batches)
            enter(clock, section, step, batches)

        monkeypatch.setattr(Clock, "enter", seen)

    def fit(self, name: str, devices: int, steps: int = 16) -> Path:
        self.name = name
        fit(self.folder / name, dataclasses.replace(calm(mesh=Mesh(data=devices)), steps=steps),
            accept_changes=True)
        return self.folder / name


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One run on one device, and the first half of it on one and on eight."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = Watched(tmp_path_factory.mktemp("devices"), monkeypatch)
        found.fit("straight", 1)
        for devices in (1, 8):
            found.fit(f"half {devices}", devices, 8)
        yield found


@pytest.mark.parametrize(("before", "after"), [(8, 1), (8, 2), (8, 4), (1, 8)])
def test_another_number_of_devices(watched: Watched, before: int, after: int) -> None:
    """What is restored is what was saved to the bit, the order of the data does not change, and
    numbers agree to rounding (float32, 8 steps of Adam at 1e-3)."""
    half, name = f"half {before}", f"{before} to {after}"
    shutil.copytree(watched.folder / half, watched.folder / name)
    assert {x.sharding.num_devices for x in jax.tree.leaves(restored(
        watched.folder / name, calm(mesh=Mesh(data=after))).state)} == {after}
    folder = watched.fit(name, after)
    assert watched.ids[half] + watched.ids[name] == watched.ids["straight"]
    one, many = arrays(watched.folder / "straight"), arrays(folder)
    assert set(one) == set(many) and len(watched.ids["straight"]) == 16
    for path in (p for p in one if p.startswith(("state/params", "state/ema", "state/opt_state"))):
        np.testing.assert_allclose(many[path], one[path], rtol=1e-3, atol=1e-5, err_msg=path)


def restored(folder: Path, experiment: Experiment) -> Any:
    """The newest carry of a run, whose bits are those that were saved."""
    program = train.Program(experiment, experiment.data.open("train"),
                            parallel.arrange(experiment.mesh))
    checkpoints = Checkpoints(folder / "checkpoints")
    found = checkpoints.restore(program.target)
    checkpoints.close()
    assert found is not None
    stored, carry = arrays(folder), found[0]
    assert bits(carry) == {path: x.tobytes() for path, x in stored.items()}
    return carry


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"seed": 1}, "seed: 0 then, 1 now"),
    ({"steps": 50}, "steps: 40 then, 50 now"),
    ({"batch_size": 64}, "batch_size: 128 then, 64 now"),
    ({"save_every": 7}, "save_every: 5 then, 7 now"),
    ({"nonfinite": "skip"}, "nonfinite: 'stop' then, 'skip' now"),
    ({"best": Best()}, "best.metric: 'test/accuracy' then, None now"),
    ({"init_from": InitFrom(path="x")}, "init_from.path: None then, 'x' now"),
    ({"mesh": Mesh(data=2)}, "mesh.data: 1 then, 2 now"),
    ({"evals": {"test": Evaluate(every=9)}}, "evals.test.every: 8 then, 9 now"),
    ({"evals": {}}, "evals: dict(...) then, dict(...) now"),
    ({"optimizer": SGD(learning_rate=Constant(peak=0.1))},
     "optimizer: Adam(...) then, SGD(...) now"),
    ({"optimizer": AdamW(learning_rate=Cosine(peak=1e-2, warmup=0.1), weight_decay=1e-3,
                         clip=1.0)}, "optimizer: Adam(...) then, AdamW(...) now"),
    ({"data": Digits(size=8, channels=1, augment=(Flip(),))},
     "data: MortalDigits(...) then, Digits(...) now"),
    ({"task.ema": 0.5}, "task.ema: 0.95 then, 0.5 now"),
    ({"task.ema": None}, "task.ema: 0.95 then, None now"),
    ({"task.accumulate": 2}, "task.accumulate: 1 then, 2 now"),
    ({"task.model.widths": (33,)}, "task.model.widths: (32,) then, (33,) now"),
    ({"task.model.batch_norm": False}, "task.model.batch_norm: True then, False now"),
    ({"task.compute_dtype": "bfloat16"}, "task.compute_dtype: 'float32' then, 'bfloat16' now"),
    ({"data.augment.0.pad": 2}, "data.augment.0.pad: 1 then, 2 now"),
    ({"optimizer.learning_rate.peak": 0.02}, "optimizer.learning_rate.peak: 0.01 then, 0.02 now"),
    ({"optimizer.clip": None}, "optimizer.clip: 1.0 then, None now"),
]


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run directory of the tiny experiment, with a commit, of which only the name counts."""
    run = run_of(tmp_path, shorter())
    run.start(0, [])
    run.close()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "5.json").touch()
    return tmp_path


@pytest.mark.parametrize(("changes", "told"), CHANGES, ids=[told for _, told in CHANGES])
def test_a_changed_experiment_is_refused(begun: Path, changes: dict[str, Any], told: str) -> None:
    changed = config.replace(shorter(), changes)
    with pytest.raises(UserError) as error:
        run_of(begun, changed)
    assert str(error.value) == (
        f"--workdir={begun}: holds another experiment ({told}). Choose another, or continue it so "
        "with --accept_changes.")
    run_of(begun, changed, accept_changes=True).close()


@pytest.mark.parametrize(("changes", "told"), [
    ({"fingerprint": "b"}, "content of the data: None then, b now"),
    ({"stand_in": "X in place of Y"}, "stand-in: None then, X in place of Y now")])
def test_changed_data_is_refused(begun: Path, changes: dict[str, Any], told: str) -> None:
    recorded = record.Recorded("tiny", config.to_json(shorter()), None, None, "")
    with pytest.raises(UserError) as error:
        record.Run(begun, dataclasses.replace(recorded, **changes), overrides={})
    assert str(error.value) == (
        f"--workdir={begun}: holds another experiment ({told}). Choose another, or continue it so "
        "with --accept_changes.")


def test_after_a_fall_back_saves_happen_again(tmp_path: Path,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path / "straight", shorter(keep=9))
    fit(tmp_path / "run", shorter(keep=9, steps=20))
    folder = tmp_path / "run" / "checkpoints"
    newest = [step for step in committed(folder) if step > 10]
    assert newest[-1] == 20 and len(newest) > 2
    for step in newest:
        (folder / "arrays" / str(step) / "default" / "manifest.ocdbt").write_bytes(b"x")
    capsys.readouterr()
    fit(tmp_path / "run", shorter(keep=9), accept_changes=True)
    out = capsys.readouterr().out.replace("\n", "")
    for step in newest:
        assert (f"warning: checkpoint of step {step} passed over: {folder}/arrays/{step}/default/"
                "manifest.ocdbt is of 1 bytes, not ") in out
    assert "from step 10" in out
    assert committed(folder) == committed(tmp_path / "straight" / "checkpoints")
    assert arrays(tmp_path / "run").keys() == arrays(tmp_path / "straight").keys()


def test_no_clock_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day back, ten years ahead, frozen: the same checkpoints stay, the same one is chosen."""
    often = {"steps": 40, "save_every": 5}
    fit(tmp_path / "straight", plain(**often))
    clocks = iter([-86_400., 3e8, None])
    real = time.time
    for steps in (14, 27, 40):
        shift = next(clocks)
        monkeypatch.setattr(time, "time", lambda shift=shift: 1e9 if shift is None
                            else real() + shift)
        fit(tmp_path / "run", plain(**{**often, "steps": steps}), accept_changes=steps > 14)
        for path in (tmp_path / "run").rglob("*"):
            os.utime(path, (1e9, 1e9))
    assert committed(tmp_path / "run" / "checkpoints")[-2:] == committed(
        tmp_path / "straight" / "checkpoints")[-2:] == [35, 40]


@pytest.mark.parametrize(("kind", "reason"), [
    ("file", "Not a directory"), ("below a file", "Not a directory"),
    ("read-only", "Read-only file system"), ("fault", "Input/output error"),
    ("quota", "Disk quota exceeded"), ("full", "No space left on device"),
    ("relative", None), ("missing parents", None)])
def test_a_folder_that_cannot_be_written_is_told_before_anything_else(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
        kind: str, reason: str | None) -> None:
    """Before data is read, let alone anything compiled; nothing is left behind."""
    class Reached(Exception):
        pass

    def reached(self: Any) -> None:
        raise Reached

    def fails(file: int) -> None:
        import errno
        number = {"read-only": errno.EROFS, "fault": errno.EIO, "quota": errno.EDQUOT,
                  "full": errno.ENOSPC}[kind]
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Digits, "prepare", reached)
    workdir = {"file": tmp_path / "file", "below a file": tmp_path / "file" / "run",
               "relative": Path("run"), "missing parents": tmp_path / "a" / "b" / "run"
               }.get(kind, tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    if kind in ("read-only", "fault", "quota", "full"):
        monkeypatch.setattr(os, "fsync", fails)
    monkeypatch.chdir(tmp_path)
    command = ["--experiment=mlp_digits", f"--workdir={workdir}"]
    if reason is None:
        with pytest.raises(Reached):
            main(command)
    else:
        assert main(command) == 2
        assert capsys.readouterr().err == (
            f"error: --workdir={workdir}: cannot be written ({reason}).\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

"""The run directory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdl import config, record, sinks
from jaxdl.errors import UserError
from tests.test_train import fit, run_of
from tests.tiny import shorter


def test_a_run_explains_itself(tmp_path: Path) -> None:
    fit(tmp_path, shorter(steps=6))
    assert {p.name for p in tmp_path.iterdir()} >= {
        "config.json", "overrides.txt", "environment.json", "metrics.jsonl", "checkpoints",
        "tensorboard"}
    recorded = record.read(tmp_path)
    assert recorded is not None
    assert config.from_json(recorded.experiment, modules=["tests.tiny"]) == shorter(steps=6)
    launches = json.loads((tmp_path / "environment.json").read_text())
    assert launches[0]["versions"]["jax"] and launches[0]["git"]["commit"]
    assert launches[0]["devices"][0].startswith("cpu:0")
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        assert all(isinstance(v, (int, float)) for v in values.values())
    keys = set().union(*map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()))
    assert keys >= {"step", "train/loss", "train/accuracy", "train/examples_per_second",
                    "train/data_wait", "train/learning_rate", "test/accuracy", "test/loss"}


def test_tensorboard_has_the_numbers(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    fit(tmp_path, shorter(steps=6))
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, tags, at = path.read_bytes(), set(), 0
    while at < len(data):
        length = int.from_bytes(data[at:at + 8], "little")
        body = data[at + 12:at + 12 + length]
        assert int.from_bytes(data[at + 12 + length:at + 16 + length], "little") == masked_crc32c(
            body)
        tags |= {v.tag for v in Event.FromString(body).summary.value}
        at += 16 + length
    assert {"train/loss", "test/accuracy"} <= tags


def test_another_experiment_is_refused_with_what_differs(tmp_path: Path) -> None:
    fit(tmp_path, shorter(steps=6))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    other = config.replace(shorter(steps=6), {"seed": 3, "task.model.dropout": 0.5})
    with pytest.raises(UserError) as error:
        run_of(tmp_path, other)
    assert str(error.value) == (
        f"--workdir={tmp_path}: holds another experiment (task.model.dropout: 0.2 then, 0.5 now; "
        "seed: 0 then, 3 now). Choose another, or continue it so with --accept_changes.")
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    before.pop(tmp_path / "LOCK")
    after.pop(tmp_path / "LOCK")
    assert before == after


def test_a_directory_without_checkpoints_may_be_begun_anew(tmp_path: Path) -> None:
    for seed in (1, 2):
        run = run_of(tmp_path, shorter(seed=seed))
        run.start(0, [])
        run.close()
    recorded = record.read(tmp_path)
    assert recorded is not None and recorded.experiment["seed"] == 2


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"is not empty and not a run directory"):
        run_of(tmp_path, shorter())
    (tmp_path / "config.json").write_text("{'not': json")
    with pytest.raises(UserError, match=r"not the config\.json of a run"):
        run_of(tmp_path, shorter())
    assert (tmp_path / "thesis.tex").read_text() == "x"


@pytest.mark.skipif(os.geteuid() != 0, reason="as another user the kernel refuses by itself")
def test_a_path_that_cannot_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=rf"^--workdir={tmp_path}/file: cannot be written \(File "):
        run_of(tmp_path / "file", shorter())
    with pytest.raises(UserError, match=r"--workdir=/proc/nothing: cannot be written"):
        run_of(Path("/proc/nothing"), shorter())


def test_one_process_holds_a_run(tmp_path: Path) -> None:
    holder = run_of(tmp_path, shorter())
    code = ("import sys; from pathlib import Path; from jaxdl.process import Lock\n"
            "from jaxdl.errors import UserError\n"
            "try: Lock(Path(sys.argv[1]))\n"
            "except UserError as e: print(e)\n")
    command = [sys.executable, "-c", code, str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.startswith(f"{tmp_path} is in use by process {os.getpid()} on ")
    holder.close()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""
    run_of(tmp_path, shorter()).close()


def test_sinks_are_told_how_to_be_installed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--sinks=wadnb: expected .* Did you mean 'wandb'\?"):
        sinks.open_sinks(("wadnb",), tmp_path, 0)
    for name in ("wandb", "mlflow"):
        if __import__("importlib.util").util.find_spec(name) is None:
            with pytest.raises(UserError, match=f"needs: pip install {name}"):
                sinks.open_sinks((name,), tmp_path, 0)


def test_numbers_that_are_not_finite_are_valid_json(tmp_path: Path) -> None:
    run = run_of(tmp_path, shorter())
    run.start(0, [])
    run.log(3, {"train/loss": float("nan"), "train/x": float("inf"), "train/y": 1.5})
    run.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is not JSON")) == {
        "step": 3, "train/loss": None, "train/x": None, "train/y": 1.5}

"""`verify-resume` passes where nothing is lost, and fails where something is."""

import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdl import checkpoint, resume
from jaxdl.checkpoint import Checkpoints
from jaxdl.cli import main

TINY = str(Path(__file__).parent / "tiny.py")
SHORT = ("--steps=12", "--save_every=4", "--evals.test.every=6")


def verify(folder: Path, *arguments: str) -> int:
    return main(["verify-resume", f"--experiment={TINY}", f"--workdir={folder}", *SHORT,
                 *arguments])


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that `verify-resume` found equal, after a kill in a step and one in a save."""
    folder = tmp_path_factory.mktemp("verify") / "runs"
    assert verify(folder, "--kills=2") == 0
    return folder


def test_a_killed_run_is_the_run_that_was_not(verified: Path) -> None:
    log = (verified / "killed.log").read_text()
    assert len(re.findall(r"compiled in", log)) >= 2  # so often it was launched
    assert all(not differences for _, _, differences in resume.compared(verified))


@pytest.mark.parametrize(("path", "name"), [
    ("state/params/head/kernel", "parameters"), ("state/opt_state/1/mu/head/kernel", "optimizer"),
    ("state/ema/head/kernel", "average of parameters"), ("state/key", "random keys"),
    ("state/mutable/batch_stats/norm1/mean", "statistics"), ("state/seen", "position"),
    ("window/means/loss/total", "sums of the log")])
def test_one_bit_is_seen(verified: Path, monkeypatch: pytest.MonkeyPatch, path: str,
                         name: str) -> None:
    def flipped(folder: Path, step: int) -> dict[str, np.ndarray]:
        found = checkpoint.arrays(folder, step)
        if folder.parent.name == "killed":
            bits = bytearray(found[path].tobytes())
            bits[0] ^= 1
            found[path] = np.frombuffer(bits, found[path].dtype).reshape(found[path].shape)
        return found

    monkeypatch.setattr(resume, "arrays", flipped)
    assert {what: found for what, _, found in resume.compared(verified) if found} == {name: [path]}


def test_another_log_and_other_examples_are_seen(verified: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(verified, folder)
    log = folder / "killed" / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]))
    sections = folder / "killed.sections"
    sections.write_text(re.sub(r'(\["step", 7, [\d.]+, )\d+', r"\g<1>1", sections.read_text()))
    found = {what: found for what, _, found in resume.compared(folder) if found}
    assert found == {"examples of each step": ["step 7"],
                     "lines of the log": [f"line {len(lines)}"]}


def test_an_order_that_no_seed_fixes_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("JAXDL_TEST_UNSEEDED", "1")
    assert verify(tmp_path / "runs", "--kills=1") == 1
    out = capsys.readouterr().out
    assert re.search(r"^examples of each step +12 .*DIFFERENT", out, re.MULTILINE)
    assert re.search(r"^error: 0 committed steps lost; different: .*examples of each step", out,
                     re.MULTILINE)


def test_a_lost_step_is_told() -> None:
    assert resume.Kill("save", 9, 8, 4).lost
    assert not resume.Kill("save", 9, 8, 8).lost
    assert not resume.Kill("compile", None, None, 0).lost


def test_arrays_of_a_checkpoint(tmp_path: Path) -> None:
    state = {"key": jax.random.key(3), "x": jax.numpy.arange(5, dtype="bfloat16")}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    checkpoints.close()
    found = checkpoint.arrays(tmp_path, 1)
    np.testing.assert_array_equal(found["key"], jax.random.key_data(state["key"]))
    assert found["x"].dtype == "bfloat16"
    np.testing.assert_array_equal(found["x"], state["x"])


@pytest.mark.parametrize(("arguments", "message"), [
    (("--kills=0",), "error: --kills=0: expected at least 1."),
    (("--kills=many",), "error: --kills=many: expected int."),
    (("--optimizer.learning_rate.peak=1e30",), "the run ended by itself with status 1: error: ")])
def test_what_goes_wrong_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str],
                                     arguments: tuple[str, ...], message: str) -> None:
    assert verify(tmp_path / "runs", *arguments) in (1, 2)
    err = capfd.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_directory_in_use_is_left_alone(tmp_path: Path,
                                          capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("x")
    assert verify(tmp_path) == 2
    assert capfd.readouterr().err == f"error: --workdir={tmp_path}: is not empty.\n"

"""What every experiment promises, asked for by a user's commands."""

import json
from pathlib import Path

import pytest

from jaxdl import cli


def resumes(experiment: str, folder: Path, steps: int, *options: str) -> None:
    """A run of `--experiment=...` that is killed in its middle, and continued, ends as one that was
    not, to the bit: the exit says so, and the log that it was launched twice."""
    assert cli.main(["verify-resume", experiment, f"--steps={steps}", "--kills=1",
                     f"--workdir={folder / 'resumed'}", *options]) == 0
    assert (folder / "resumed" / "killed.log").read_text().count("compiled in") > 1


def one_program(experiment: str, folder: Path, programs: list[int], *options: str,
                metric: str = "test/return", curve: str = "train/loss",
                relative: float = 1e-4, absolute: float = 0.) -> None:
    """A sweep over two seeds by vmap is compiled as one program, and the second of them is what it
    is alone. `programs` is the fixture; the sweep is ranked by `metric`, and `curve` compared."""
    options = ("--log_every=1", *options)
    assert cli.main(["sweep", experiment, "--over", "seed=0,1", "--executor=vmap",
                     f"--metric={metric}", f"--workdir={folder / 'sweep'}",
                     *options]) == 0
    assert set(programs) == {2}
    assert cli.main([experiment, "--seed=1", f"--workdir={folder / 'alone'}", *options]) == 0

    def values(run: Path) -> list[float]:
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return [line[curve] for line in lines if curve in line]

    alone = values(folder / "alone")
    assert len(alone) > 1 and values(folder / "sweep" / "trials" / "0001") == pytest.approx(
        alone, rel=relative, abs=absolute)

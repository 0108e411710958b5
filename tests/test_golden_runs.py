"""Runs of every jaxdl that was given out are read, and continued, by this one.

`golden_runs/VERSION` is what that version wrote for `golden_runs/golden.py`, with digests of the
arrays as it read them itself. The next release adds its own; none is ever written anew.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from jaxdl import train
from jaxdl.checkpoint import arrays, committed
from jaxdl.cli import main, rebuilt
from jaxdl.init_from import parameters
from jaxdl.record import read

RUNS = sorted(p.parent for p in (Path(__file__).parent / "golden_runs").glob("*/config.json"))


@pytest.fixture(params=RUNS, ids=lambda path: path.name)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.param, tmp_path / "run"))


def test_there_is_one_of_each_version() -> None:
    assert [path.name for path in RUNS] == ["0.1.0"]


def test_every_array_is_read_to_the_bit(run: Path) -> None:
    folder = run / "checkpoints"
    found = arrays(folder, committed(folder)[-1])
    assert {path: hashlib.sha256(x.tobytes()).hexdigest()[:16] for path, x in found.items()
            } == json.loads((run / "arrays.json").read_text())
    path, shape = parameters(run, "last")[1]["params/head/kernel"]
    assert path == "state/ema/head/kernel" and shape == list(found[path].shape)


def test_it_is_evaluated_as_it_was(run: Path) -> None:
    recorded = read(run)
    assert recorded is not None
    step, found = train.evaluate(rebuilt(recorded, run, ()), run)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = next(x for x in logged if x["step"] == step and "test/loss" in x)
    assert found == pytest.approx({k: expected[k] for k in found}, rel=1e-5)


def test_it_is_continued(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--experiment={run}", f"--workdir={run}", "--steps=16"]) == 2
    assert "(steps: 12 then, 16 now)" in capsys.readouterr().err
    assert main([f"--experiment={run}", f"--workdir={run}", "--steps=16",
                 "--accept_changes"]) == 0
    out = capsys.readouterr().out
    assert "continuing" in out and "from step 12" in out
    assert committed(run / "checkpoints")[-1] == 16

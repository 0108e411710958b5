"""The table of what finished runs and sweeps came to."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from jaxdl import cli, config, record, results, train
from jaxdl.errors import UserError
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best
from tests.tiny import plain

EXPECTED = "A tiny MLP | digits: 50 % test accuracy.\n\n    python launch.py --experiment=tiny\n"


def trained(folder: Path, *, stand_in: str | None = None, **changes: Any) -> None:
    experiment: Any = config.replace(plain(
        steps=4, evals={"test": Evaluate()}, best=Best(metric="test/accuracy")), changes)
    run = record.Run(folder, record.Recorded("tiny", config.to_json(experiment), stand_in, None,
                                             EXPECTED), overrides=changes)
    train.fit(experiment, run)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        trained(folder / "tiny" / f"run{seed}", seed=seed)
    trained(folder / "tiny" / "other", seed=0, stand_in="Digits in place of Mnist",
            **{"optimizer.learning_rate.peak": 0.5})
    unfinished = folder / "tiny" / "unfinished"
    trained(unfinished, seed=5)
    text = json.loads((unfinished / "config.json").read_text())
    text["experiment"]["steps"] = 9
    (unfinished / "config.json").write_text(json.dumps(text))
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{")
    return folder


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").replace("\\|", "/").split("|")]
            for line in text.splitlines() if line.startswith("| ")]


def test_seeds_are_one_row(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["results", str(runs)]) == 0
    out = capfd.readouterr().out
    head, line, seeds, other = rows(out)
    assert head == list(results.COLUMNS) and set(line) == {"---"}
    values = []
    for seed in range(3):
        lines = (runs / "tiny" / f"run{seed}" / "metrics.jsonl").read_text().splitlines()
        values.append([v["test/accuracy"] for v in map(json.loads, lines)
                       if "test/accuracy" in v][-1])
    mean = sum(values) / 3
    deviation = (sum((v - mean) ** 2 for v in values) / 2) ** 0.5
    assert seeds[:3] == ["`tiny`", "Digits", "A tiny MLP / digits: 50 % test accuracy."]
    assert seeds[3] == f"test/accuracy {100 * mean:.2f} % ± {100 * deviation:.2f} (3 seeds)"
    assert seeds[4].endswith(" s") and seeds[5] == "`python launch.py --experiment=tiny`"
    assert other[1] == "**stand-in**: Digits in place of Mnist" and "seeds" not in other[3]
    assert other[5] == "`python launch.py --experiment=tiny --optimizer.learning_rate.peak=0.5`"
    assert "unfinished, at step 4 of 9" in out and "left out: " in out
    assert "broken" in out.split("| experiment")[0]


def test_of_a_seed_that_was_trained_twice_the_later_counts(
        runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        shutil.copytree(runs / "tiny" / "run0", tmp_path / name)
    log = tmp_path / "a" / "metrics.jsonl"  # the later one, whatever its name
    log.write_text(re.sub(r'("test/accuracy": )[\d.]+', r"\g<1>0.875", log.read_text()))
    assert cli.main(["results", str(tmp_path)]) == 0
    row, = rows(capfd.readouterr().out)[2:]
    assert row[3] == "test/accuracy 87.50 %"


def test_a_sweep_is_a_row_with_its_best_trial(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "ledger.sqlite").touch()
    (folder / "sweep.json").write_text(json.dumps({
        "name": "tiny", "expected": EXPECTED, "metric": "test/loss", "mode": "min",
        "data": "Digits", "stand_in": None}))
    (folder / "results.csv").write_text(
        "trial,state,optimizer,seed,value,step,seconds,test/loss,reason\n"
        "0,done,SGD,0,0.1,5,2.5,0.1,\n1,done,Adam,0,0.2,5,2.5,0.2,\n2,done,SGD,1,0.5,5,2.5,0.5,\n"
        "3,done,Adam,1,0.24,5,2.5,0.24,\n4,failed,Lion,0,,1,60,,not finite\n"
        "5,pending,Lion,1,,0,0,,\n")
    row = results.swept(folder)
    assert row == ("`tiny`, sweep", "Digits", "A tiny MLP \\| digits: 50 % test accuracy.",
                   "5 of 6 trials, 1 failed; best test/loss 0.22 ± 0.028 (2 seeds): "
                   "optimizer=Adam",
                   "1 min 10 s", "`python launch.py sweep --experiment=tiny`")
    flags = ["--over=a.b=1,2", "--seeds=3", "--steps=50"]
    facts = json.loads((folder / "sweep.json").read_text()) | {"flags": flags}
    (folder / "sweep.json").write_text(json.dumps(facts))
    assert results.swept(folder)[5] == ("`python launch.py sweep --experiment=tiny "
                                        f"{' '.join(flags)}`")
    unranked = json.loads((folder / "sweep.json").read_text()) | {"metric": None}
    (folder / "sweep.json").write_text(json.dumps(unranked))
    text = (folder / "results.csv").read_text()
    (folder / "results.csv").write_text(re.sub(r"(?m)^(\d,done,\w+,\d),[^,]*", r"\1,", text))
    assert results.swept(folder)[3] == "5 of 6 trials, 1 failed"
    (folder / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match="a sweep that cannot be read"):
        results.swept(folder)


def test_the_table_goes_between_the_marks(runs: Path, tmp_path: Path,
                                          capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "RESULTS.md"
    for _ in range(2):
        assert cli.main(["results", str(runs), f"--output={path}"]) == 0
        text = path.read_text()
        assert text.count("| `tiny` |") == 2 and text.startswith("# Results\n\n" + results.BEGIN)
        path.write_text(text.replace("0.5`", "CHANGED`") + "what follows stays\n")
    assert path.read_text().count("what follows stays") == 2
    path.write_text("no marks\n")
    capfd.readouterr()
    assert cli.main(["results", str(runs), f"--output={path}"]) == 2
    assert "which are not there" in capfd.readouterr().err
    assert path.read_text() == "no marks\n"


def test_nothing_to_tell(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for folder in (str(tmp_path / "no"), "~nobody-here/x"):
        assert cli.main(["results", folder]) == 2
        assert "there is no such folder" in capfd.readouterr().err
    assert cli.main(["results", str(tmp_path)]) == 2
    assert "no finished run is there" in capfd.readouterr().err

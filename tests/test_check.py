"""Each check finds the bug that it is meant for, and is silent where there is none. All checks of
all plants together take minutes: `benchmarks/check.py`."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from jaxdl import check, cli
from jaxdl.checks.subject import Finding, Subject
from tests import plants

QUICK = [n for n, p in plants.PLANTS.items()]


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_found_by_its_check(name: str) -> None:
    plant = plants.PLANTS[name]
    found = dict(verdicts(plant.experiment(), plant.checks))
    assert found == dict.fromkeys(plant.checks, "FAIL"), name


def verdicts(experiment: Any, only: Any = ()) -> Any:
    for name, finding, _ in check.examine(experiment, only=only):
        yield name, finding.verdict


def test_what_is_healthy_passes_all_checks() -> None:
    found = dict(verdicts(plants.digits()))
    assert set(found.values()) <= {"pass", "-"}, found
    assert [n for n, verdict in found.items() if verdict == "-"] == ["causal_leak"]


@pytest.mark.parametrize("name", ["convolutions", "text"])
def test_what_is_healthy_passes_the_exact_checks(name: str) -> None:
    found = dict(verdicts(plants.HEALTHY[name](), ("leakage", "masks", "example_leak",
                                                   "causal_leak", "modes")))
    assert set(found.values()) <= {"pass", "-"}, found
    assert found["causal_leak"] == ("pass" if name == "text" else "-")


def test_a_task_has_checks_of_its_own_and_names_those_that_do_not_apply(
        capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    class Own(plants.Wrong):
        not_applicable = {"labels": "they are drawn at random"}

        def checks(self) -> dict[str, Any]:
            def whole(subject: Subject) -> Finding:
                """Images have eight rows."""
                rows = subject.batch(subject.train)["image"].shape[1]
                return Finding("pass" if rows == 8 else "FAIL", f"{rows} rows", "8")

            def raises(subject: Subject) -> Finding:
                """Cannot be carried out."""
                return Finding("pass", str(jnp.zeros(3).reshape(2)))

            return {"whole": whole, "raises": raises}

    experiment = plants.digits(task=Own(model=plants.MLP(widths=())))
    found = {name: finding for name, finding, _ in check.examine(
        experiment, only=("labels", "whole", "raises"))}
    assert found["labels"] == Finding("-", look_at="they are drawn at random")
    assert found["whole"] == Finding("pass", "8 rows", "8")
    assert found["raises"].verdict == "FAIL"
    assert "TypeError: cannot reshape" in found["raises"].measured
    assert "test_check.py:" in found["raises"].look_at


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["check", "--experiment=mlp_digits", "--only=inputs,order,initial_loss",
                     f"--workdir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "3 passed, 0 to look at, 0 failed, 0 do not apply" in out
    page = (tmp_path / "check.html").read_text()
    assert page.count("data:image/png;base64,") >= 32 and "forgotten division by 255" in page

    file = tmp_path / "own.py"
    file.write_text("from tests.plants import PLANTS\n"
                    "def config(): return PLANTS['forgotten normalisation'].experiment()\n")
    assert cli.main(["check", f"--experiment={file}", "--only=inputs",
                     f"--workdir={tmp_path}"]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out and "0 passed, 0 to look at, 1 failed" in out


@pytest.mark.parametrize(("arguments", "message"), [
    (["--only=inptus"], "--only=inptus: no such check; there are inputs, labels, duplicates, "
     "leakage, order, "),
    (["--only=overfits", "--fast"], "--only=overfits: no such check (it trains, and --fast leaves "
     "it out); there are inputs, "),
])
def test_a_check_that_is_not_there(capsys: pytest.CaptureFixture[str], arguments: list[str],
                                   message: str) -> None:
    assert cli.main(["check", "--experiment=mlp_digits", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}") and told.count("\n") == 1

"""The report of a run and of several: its numbers, what it says is missing, how it is drawn."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxdl import cli, config, logged, page, pictures, record, report
from jaxdl.errors import DataMissing, UserError
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best
from jaxdl.models.cnn import CNN
from jaxdl.tasks import classification_pictures
from jaxdl.tasks.classification import Classification
from tests.browser import BROWSER, browse
from tests.test_train import fit
from tests.tiny import plain

ROOT = Path(__file__).parent.parent
EVIL = "</script><img src=x onerror='window.broken = 1'>"
Captured = pytest.CaptureFixture[str]


EXPECTED = "A net: 96 %.\n\n    run it\n    twice\n\nMore\nwords."


def written(folder: Path, lines: list[Any] | None = None, expected: str = EXPECTED,
            stand_in: str | None = None, code: dict[str, str] | None = None,
            **changes: Any) -> Path:
    """A run directory without a checkpoint; by itself of 100 steps that end at 2 % loss."""
    folder.mkdir(parents=True)
    changes = {"steps": 100, "batch_size": 10, "best": Best(metric="test/accuracy"),
               "evals": {"test": Evaluate()}, **changes}
    record.write(folder, record.Recorded("net", config.to_json(plain(**changes)), stand_in, "abc",
                                         expected, code or {}))
    if lines is None:
        lines = [{"step": s, "train/loss": 2 / s, "train/examples_per_second": 50.,
                  "train/memory_peak": 1e6 * s} for s in range(5, 101, 5)]
        lines += [{"step": s, "test/accuracy": a, "test/loss": 1 / s}
                  for s, a in ((40, 0.5), (80, 0.75), (100, 0.625))]
    (folder / "metrics.jsonl").write_text("".join(
        (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    launch = {"time": "2026-01-01T00:00:00", "from_step": 0, "python": "3.11.7",
              "command": ["/x/launch.py", "--experiment=net", "--steps=100"],
              "versions": {"jax": "0.10.2"}, "git": {"commit": "0123", "diff": "+ a < b"},
              "devices": ["cpu:0 cpu"], "flags": {"jax_enable_x64": False}}
    (folder / "environment.json").write_text(json.dumps([launch]))
    (folder / "overrides.txt").write_text("steps=100\n")
    return folder


def own(text: str) -> str:
    """The page without plotly.js."""
    return re.sub(r'(?s)<script type="text/plain" id="plotly">.*?</script>', "", text)


def whole(*folders: Path) -> str:
    runs = [logged.read(f, n) for f, n in zip(folders, report.names(folders), strict=True)]
    return own(report.document(runs))


def data(text: str) -> dict[str, Any]:
    found = re.search(r"const page = (\{.*\});$", text, flags=re.MULTILINE)
    assert found
    return json.loads(found[1])


def rows(text: str, title: str) -> list[list[str]]:
    """The cells of the first table of a section."""
    found = text.split(f"<h2>{title} ")[1].split("</table>")[0]
    return [[re.sub("<[^>]*>", "", c).strip() for c in re.findall(r"<t[dh].*?>(.*?)(?=<t[dh]|</t)",
                                                                  row)]
            for row in found.split("<tr")[2:]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a small CNN on the digits."""
    folder = tmp_path_factory.mktemp("trained")
    fit(folder, plain(task=Classification(model=CNN(channels=(4,), dense=(), classes=10)),
                      evals={"test": Evaluate(every=3)}, best=Best(metric="test/accuracy"),
                      log_every=2))
    return folder


# Reading.


def test_a_resumed_torn_and_odd_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([
        '{"step": 1, "train/loss": 3.0}', '{"step": 2, "train/loss": 9.0}',
        '{"step": 3, "train/loss": null}', '{"step": 2, "train/loss": 2.0, "stand_in": "x"}',
        '{"step": 4, "train/loss": NaN, "odd": "text", "also": [1], "true": true}', "[]", "null",
        '{"step": "5", "train/loss": 1}', '{"step": true, "train/loss": 1}', '{"step": -1, "a": 1}',
        '{"train/loss": 1}', "\x00\xff", '{"step": 6, "train/lo']))
    found = logged.numbers(path)
    assert list(found) == ["train/loss"]
    steps, values = found["train/loss"]
    assert steps.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(values, [3, 2, math.nan, math.nan])


def test_a_long_curve_keeps_its_extremes_its_gaps_and_its_ends() -> None:
    steps = np.arange(100_000)
    values = np.sin(steps / 7_000.)
    values[12_345], values[77_777], values[50_000] = 40., -30., math.nan
    x, y = logged.envelope(steps, values, 2_000)
    assert len(x) <= 2_003 and (np.diff(x) > 0).all() and (x[0], x[-1]) == (0, 99_999)
    assert set(zip(x.tolist(), y.tolist(), strict=True)) >= {(12_345, 40.), (77_777, -30.)}
    assert np.isnan(y[x == 50_000]).all() and np.isnan(y).sum() == 1
    np.testing.assert_array_equal(y, values[x])
    assert logged.envelope(steps[:10], values[:10], 20)[0].tolist() == list(range(10))
    nothing = np.full(100, math.nan)
    assert np.isnan(logged.envelope(np.arange(100), nothing, 10)[1]).all()


def test_what_was_measured_once_is_no_curve(tmp_path: Path) -> None:
    lines = [json.dumps({"step": s, "train/loss": 1 / s}) for s in (1, 2)]
    once = json.dumps({"step": 2, "test/distance": 7.})
    text = report.document([logged.read(written(tmp_path / "a", [*lines, once], steps=2))])
    assert len(data(text)["curves"]) == 1 and ["test/distance", "7"] in rows(text, "Result")
    # Unless there is nothing else, as after the first line of a log.
    text = report.document([logged.read(written(tmp_path / "b", [once], steps=2))])
    assert len(data(text)["curves"]) == 1


def test_a_huge_log_makes_a_small_page(tmp_path: Path) -> None:
    lines = [json.dumps({"step": s, **{f"train/m{i}": s * 1.000123 ** i for i in range(8)}})
             for s in range(1, 100_001)]
    run = written(tmp_path / "a", lines, steps=100_000)
    text = report.document([logged.read(run)])
    assert len(text) < 3.5e6
    assert all(len(s["x"]) < 2_100 and s["x"][-1] == 100_000
               for c in data(text)["curves"].values() for s in c["series"])


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda f: shutil.rmtree(f), "there is no such folder"),
    (lambda f: (f / "config.json").unlink(), "not a run directory, it has no config.json"),
    (lambda f: ((f / "config.json").unlink(), (f / "LOCK").touch()), "nothing is recorded yet"),
    (lambda f: (f / "config.json").write_text("{}"), "not the config.json of a run"),
    (lambda f: (f / "metrics.jsonl").unlink(), "nothing is logged yet"),
    (lambda f: (f / "metrics.jsonl").write_text("{}\n"), "nothing is logged yet"),
    (lambda f: (f / "ledger.sqlite").touch(), "a sweep; its page is"),
])
def test_what_is_no_run_is_told_in_one_line(tmp_path: Path, capfd: Captured, spoil: Any,
                                            message: str) -> None:
    spoil(written(tmp_path / "a"))
    assert cli.main(["report", str(tmp_path / "a")]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "report: name one run directory, or several."),
    (["x", "--outptu=y"], "--outptu: no such field. Did you mean --output?"),
    (["x", "--port=70000"], "--port=70000: expected int, between 0 and 65535."),
    (["x", "--experiment=nosuch"], "--experiment=nosuch: no such experiment."),
    (["--serve", "a\0b"], "'a\\x00b': expected str"),
])
def test_a_mistake_in_the_command(capfd: Captured, arguments: list[str], message: str) -> None:
    assert cli.main(["report", *arguments]) == 2
    err = capfd.readouterr().err
    assert err.removeprefix("error: ").startswith(message) and err.count("\n") == 1


# What the page says.


def test_the_last_and_the_best_stand_beside_what_is_expected(tmp_path: Path) -> None:
    text = whole(written(tmp_path / "a"))
    assert rows(text, "Result") == [
        ["test/accuracy", "0.625", "0.75"], ["test/loss", "0.01", "0.0125"],
        ["train/loss", "0.02", "0.025"]]
    assert "best ↑ (step 80)" in text and "finished at step 100" in text
    assert "<b>A net: 96 %.</b></p><pre>run it\ntwice</pre><p>More words.</p>" in text
    assert f"python launch.py --experiment={tmp_path / 'a'}" in text
    assert "python /x/launch.py --experiment=net --steps=100" in text and "+ a &lt; b" in text
    less = whole(written(tmp_path / "b", best=Best(metric="test/accuracy", mode="min")))
    assert "best ↓ (step 40)" in less
    none = whole(written(tmp_path / "c", best=Best(), steps=300))
    assert "(step 80)" not in none and "at step 100 of 300, log written last" in none


def test_time_and_memory_come_from_the_log(tmp_path: Path) -> None:
    text = whole(written(tmp_path / "a"))
    found = dict(rows("x" + text.replace("<thead><tr></tr></thead>", "<tr"), "Time and memory"))
    assert found["examples a second, median"] == "50"
    assert found["milliseconds a step"] == "200"
    assert found["training time, without compilation and evaluation"] == "20.0 s"
    assert found["most memory ever in use"] == "100.0 MB"
    assert data(text)["runs"][0]["clock"]["seconds"][-1] == 20


def test_only_what_differs_is_listed(tmp_path: Path) -> None:
    runs = [written(tmp_path / "a"), written(tmp_path / "b", seed=3, code={"net.py": "0123"}),
            written(tmp_path / "c", stand_in="Digits in place of X", task=Classification(
                model=CNN(channels=(4,))))]
    launch = json.loads((runs[1] / "environment.json").read_text())
    launch[0]["versions"]["jax"] = "0.12.0"
    (runs[1] / "environment.json").write_text(json.dumps(launch))
    text = whole(*runs)
    found = {row[0]: row[1:] for row in rows(text, "Differences")}
    assert found["seed"] == ["0", "3", "0"] and found["task.model"] == ["MLP", "MLP", "CNN"]
    assert found["task.model.widths"] == ["[]", "[]", "-"]
    assert found["jax"] == ["0.10.2", "0.12.0", "0.10.2"]
    assert found["digest of net.py"] == ["-", "0123", "-"]
    assert found["stand-in"] == ["None", "None", "Digits in place of X"]
    assert "steps" not in found and "jax_enable_x64" not in found
    assert "c: Digits in place of X" in text
    assert "differ in nothing" in whole(runs[0], shutil.copytree(runs[0], tmp_path / "d"))


def test_runs_have_the_shortest_names_that_differ(tmp_path: Path) -> None:
    folders = [tmp_path / "x" / "1", tmp_path / "y" / "1", tmp_path / "y" / "2"]
    assert report.names(folders) == ["x/1", "y/1", "2"]


def test_nothing_breaks_out_of_the_page(tmp_path: Path) -> None:
    lines = [{"step": 1, f"test/{EVIL}": 1., EVIL: 2., "%{x} $y$": 3.}]
    runs = [written(tmp_path / f"{i}<b>", lines, EVIL, EVIL, {EVIL: EVIL}) for i in range(2)]
    for run in runs:
        (run / "overrides.txt").write_text(EVIL)
        (run / "environment.json").write_text(json.dumps([{
            "command": [EVIL], "git": {"diff": EVIL}, "devices": EVIL, "versions": {EVIL: EVIL}}]))
    for text in (whole(runs[0]), whole(*runs)):
        assert "<img" not in text and "<b>0<b>" not in text
        assert text.count("<script>") == text.count("</script>") == 2


def test_odd_files_of_a_run_are_survived(tmp_path: Path) -> None:
    run = written(tmp_path / "a", code={"net.py": "01"})
    for content in ("[", "{}", "[1]", "",
                    '[{"git": 1, "versions": [], "devices": {}, "command": 1}]'):
        (run / "environment.json").write_text(content)
        assert "<h1>net" in whole(run)
    recorded = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**recorded, "experiment": {"steps": {}}}))
    assert "<h1>net" in whole(run)
    (run / "environment.json").unlink()
    assert "environment.json cannot be read" in whole(run)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "6.json").write_text("{}")
    assert "Parameters are not listed" in whole(run)


# What the task shows.


def sections(folder: Path, **options: Any) -> tuple[str, page.Charts]:
    charts = page.Charts()
    return report.pictures(logged.read(folder), (), options.get("tsne", False), charts), charts


def test_a_classifier_shows_what_it_does(trained: Path) -> None:
    text, charts = sections(trained)
    assert re.findall("<h2>(.*?) <small>", text) == [
        "Training inputs", "Confusion matrix", "Mistakes", "What the prediction depends on",
        "First-layer filters", "What a class wants to see", "Last layer, principal components"]
    assert "Grad-CAM is of the layer conv1" in text
    counts = np.array(charts.charts["chart0"]["data"][0]["customdata"])
    assert counts.shape == (10, 10) and counts.sum() == 359
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    best = max(json.loads(line).get("test/accuracy", 0)
               for line in (trained / "metrics.jsonl").read_text().splitlines())
    assert last["step"] == 6 and counts.trace() / 359 == pytest.approx(best)
    losses = [float(x) for x in re.findall(r"loss (\d+\.\d+)</figcaption>", text)]
    assert len(losses) == 24 and losses == sorted(losses, reverse=True)
    assert sum(len(t["x"]) for t in charts.charts["chart1"]["data"]) == 359


def test_what_is_missing_is_said_and_why(trained: Path, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")

    def gone(self: Any) -> None:
        raise DataMissing("the digits are gone")

    with monkeypatch.context() as patch:
        patch.setattr("jaxdl.data.digits.Digits.prepare", gone)
        assert "No pictures: the digits are gone" in sections(copy)[0]
    with monkeypatch.context() as patch:
        patch.setattr("jaxdl.data.digits.Digits.fingerprint", lambda self: "new")
        recorded = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**recorded, "fingerprint": "old"}))
        assert "the data has changed since (old then, new now)" in sections(copy)[0]

    def some(self: Any, state: Any, material: Any) -> Iterator[Any]:
        yield pictures.Images(title="First", images=np.zeros((1, 2, 2, 1)))
        yield 5
    with monkeypatch.context() as patch:
        patch.setattr(Classification, "pictures", some)
        (copy / "config.json").write_text(json.dumps({**recorded, "fingerprint": None}))
        text = sections(copy)[0]
        assert "<h2>First " in text and "No further pictures: the task shows a int" in text
        patch.delattr(Classification, "pictures")
        assert "the task shows none" in sections(copy)[0]
    shutil.rmtree(copy / "checkpoints")
    assert "holds no checkpoint" in sections(copy)[0]
    assert cli.main(["report", str(copy)]) == 0 and (copy / "report.html").stat().st_size > 1e6


class NoDense(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Conv(10, (3, 3), name="all")(x).mean((1, 2))


def test_a_model_without_a_dense_layer_and_large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no last layer to show, and are explained one by one."""
    monkeypatch.setattr(classification_pictures, "AT_ONCE", 10)
    monkeypatch.setattr(classification_pictures, "NUMBERS", 64 * 30)
    experiment = plain(task=Classification(model=NoDense()))
    source = experiment.data.open("test")
    batch = next(pictures.read(source, np.arange(2), 2))
    state = experiment.task.init(jax.random.key(0), batch, experiment.transformations())
    found = {p.title: p for p in experiment.task.pictures(  # type: ignore[attr-defined]
        state, pictures.Material(source=experiment.data.open, split="test", batch_size=16))}
    assert "Last layer, principal components" not in found
    assert found["Confusion matrix"].values.sum() == 30
    assert "A sample: the split has 359 examples." in found["Confusion matrix"].note
    maps = found["What the prediction depends on"]
    assert len(maps.images) % 5 == 0 and maps.heads[4] == "Grad-CAM"


def test_large_pictures_become_small() -> None:
    noise = np.random.default_rng(0).random((300, 200, 3))
    assert len(page.image(noise)) < 20_000
    assert page.image(noise).startswith("data:image/jpeg")
    assert page.image(np.full((8, 8, 1), math.nan)).startswith("data:image/png")


def test_a_picture_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="expected Images, Matrix, Points or Texts"):
        report.drawn("a string", page.Charts())


# The file, the server and the browser.


def test_the_file_is_where_it_is_asked_for(tmp_path: Path, capfd: Captured,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        written(tmp_path / name)
    for arguments, path in (["a"], "a/report.html"), (["a", "b"], "report.html"), (
            ["--output", "x.html", "a", "b"], "x.html"):
        assert cli.main(["report", *arguments]) == 0
        assert capfd.readouterr().out == f"{path}\n" and Path(path).is_file()
    assert cli.main(["report", "a", "--output=no/such/x.html"]) == 2
    assert "no/such/x.html: cannot be written" in capfd.readouterr().err


def test_a_run_that_trains_is_served_until_ctrl_c(tmp_path: Path) -> None:
    run = written(tmp_path / "a", [])
    process = subprocess.Popen([sys.executable, "launch.py", "report", "--serve", str(run)],
                               cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert process.stdout
        address = process.stdout.readline().split()[0]
        with pytest.raises(urllib.error.HTTPError, match="503"):  # Nothing is logged yet.
            urllib.request.urlopen(address, timeout=30)
        for steps in (3, 4):
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": steps, "train/loss": 1.}) + "\n")
            text = urllib.request.urlopen(address, timeout=30).read().decode()
            assert f"at step {steps} of 100" in text and "location.reload()" in text
    finally:
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


ACT = """
  const look = () => { const {data, layout} = document.getElementById("chart1");
    return [data.length, layout.yaxis.type, layout.xaxis.title.text]; };
  const set = (id, value) => { const e = document.getElementById(id); e.value = value;
    e.dispatchEvent(new Event("input")); };
  acted = [look()];
  set("smooth", 0.9); acted.push(look());
  set("scale", "linear"); acted.push(look());
  set("axis", "time"); acted.push(look());
  document.querySelector(".key").click(); acted.push(look());
"""


@pytest.mark.skipif(BROWSER is None, reason="apt-get install chromium")
@pytest.mark.parametrize("count", [1, 3])
def test_a_browser_draws_the_report(tmp_path: Path, trained: Path, count: int) -> None:
    if count == 1:
        path, number = tmp_path / "one.html", 10
        folders = [trained]
    else:
        path, number = tmp_path / "three.html", 4
        folders = [written(tmp_path / name, seed=i) for i, name in enumerate(["a", "b", "c d"])]
    assert cli.main(["report", *map(str, folders), f"--output={path}"]) == 0
    assert path.stat().st_size < 5e6
    seen, console, asked = browse(path, tmp_path, act=ACT)
    assert console == [] and asked == [] and seen["broken"] is None
    assert len(seen["found"]) == number
    before, smooth, linear, time, fewer = seen["acted"]
    assert linear[1] == "linear" and time[2] == "training time, seconds" and fewer[0] < time[0]
    if count == 3:  # Of six lines those of training are long enough to be smoothed.
        assert (before[:2], smooth[0]) == ([6, "log"], 9)
    for chart in seen["found"]:
        assert chart["drawn"] and chart["marks"] and chart["wide"]
        assert all(width > 100 and height > 50 for width, height in chart["drawn"])

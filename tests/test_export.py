"""The export: the file computes what the network does, alone, and nothing else is ever written."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import cli, conv, export, int8
from jaxdl.data.digits import Digits
from jaxdl.errors import UserError
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best
from jaxdl.models.cnn import CNN
from jaxdl.models.mlp import MLP
from jaxdl.models.resnet import ResNet
from jaxdl.task import Aux, LossTask, Mean
from jaxdl.tasks.classification import Classification
from tests.test_train import arrays, fit
from tests.tiny import plain

Captured = pytest.CaptureFixture[str]
DIGITS = Digits(size=8, channels=1)
needs_flatbuffers, needs_onnx = (pytest.mark.skipif(
    None in map(importlib.util.find_spec, export.FORMATS[name].needs),
    reason=export.FORMATS[name].install) for name in ("stablehlo", "onnx"))
MODEL = CNN(channels=(4, 6), dense=(), batch_norm=True, dropout=0.5)


@pytest.fixture(autouse=True)
def timed_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "ENOUGH", 0.)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a CNN whose best checkpoint is not the last."""
    folder = tmp_path_factory.mktemp("trained")
    fit(folder, plain(task=Classification(model=MODEL, ema=0.5), steps=6, save_every=2,
                      evals={"test": Evaluate(every=2)}, keep=9,
                      best=Best(metric="test/accuracy", mode="min")))
    return folder


def network(task: Any, data: Any = DIGITS, batch: int | None = None) -> export.Network:
    """Of a fresh state."""
    source = data.open("test")
    example = source.transform({**source.read(np.arange(2)), "index": np.arange(2),
                                "mask": np.ones(2, np.float32)}, jax.random.key(0))
    state = task.init(jax.random.key(1), example, plain().transformations())
    return export.Network(export.of_task(task), state, source, batch)


def alone(folder: Path, refused: str, script: str) -> str:
    """What a script prints in a Python that has neither our folders nor these packages."""
    folder.mkdir()
    hook = ("import sys\nclass Refuse:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            f"        if name.split('.')[0] in {refused.split()!r}: raise ImportError(name)\n"
            "sys.meta_path.insert(0, Refuse())\n")
    done = subprocess.run([sys.executable, "-I", "-c", hook + script], cwd=folder, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def evaluated(folder: Path, ids: np.ndarray, step: int) -> np.ndarray:
    """The probabilities of a run's checkpoint, by the task itself."""
    experiment, _ = cli.of_run(cli.parse("export", str(folder), []))
    source = experiment.data.open("test")
    made = export.of_checkpoint(experiment, folder, step, export.of_task(experiment.task), "test",
                                None)
    batch = {**source.read(ids), "index": ids, "mask": np.ones(len(ids), np.float32)}
    task: Any = experiment.task
    return np.asarray(task.probabilities(made.state, source.transform(batch, jax.random.key(0))))


# StableHLO.


@needs_flatbuffers
def test_the_file_runs_with_jax_alone(trained: Path, tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.stablehlo"
    assert cli.main(["export", f"--experiment={trained}", f"--output={path}"]) == 0
    out = capsys.readouterr().out
    for part in (f"{trained}, step 2 (best), as stablehlo", "image uint8 [batch, 8, 8, 1]",
                 "inside: Normalise", "probabilities float32 [batch, 10]", "jaxdl, jitted",
                 "ms, batch 1", "ms, batch 32", "359 of 359", f"written: {path};",
                 export.in_words(path.stat().st_size)):
        assert part in out, (part, out)
    assert "replaced" not in out
    ids = np.array([3, 5, 8, 13, 21])
    np.save(tmp_path / "raw.npy", DIGITS.open("test").read(ids)["image"])
    text = alone(tmp_path / "empty", "jaxdl flax", f"""
import jax, numpy
from jax import export
model = export.deserialize(bytearray(open({str(path)!r}, 'rb').read()))
raw = numpy.load({str(tmp_path / 'raw.npy')!r})
for images in (raw, raw[:2]):
    print(numpy.asarray(jax.jit(model.call)(images)['probabilities']).tolist())
print(model.platforms, 'jaxdl' in sys.modules)
""").splitlines()
    want = evaluated(trained, ids, 2)
    for line, n in zip(text, (5, 2), strict=False):
        np.testing.assert_allclose(json.loads(line), want[:n], atol=1e-5)
    assert text[2] == "('cpu', 'cuda', 'tpu') False"
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    split = DIGITS.open("test").read(np.arange(359))
    found = export.load_stablehlo(path)([split["image"]])["probabilities"]
    likely = found[np.arange(359), split["label"]]
    assert -np.log(likely).mean() == pytest.approx(logged[0]["test/loss"], rel=1e-5)


@needs_flatbuffers
def test_the_json_says_what_it_is(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.stablehlo"
    assert cli.main(["export", f"--experiment={trained}", f"--output={path}", "--batch=3",
                     "--step=last"]) == 0
    about = json.loads(path.with_name("m.stablehlo.json").read_text())
    assert about["inputs"] == [{"name": "image", "shape": [3, 8, 8, 1], "dtype": "uint8"}]
    assert about["outputs"] == [{"name": n, "shape": [3, 10], "dtype": "float32"}
                                for n in ("logits", "probabilities")]
    assert about["classes"] == list("0123456789") and about["step"] == 6
    assert about["inside"] == ["Normalise(mean=(0.305,), std=(0.376,))"]
    assert about["stand-in"] is None and about["run"] == str(trained)
    manifest = (trained / "checkpoints" / "6.json").read_bytes()
    assert about["SHA-256 of the manifest"] == hashlib.sha256(manifest).hexdigest()
    assert about["SHA-256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert about["versions"]["jax"] == jax.__version__
    compared = about["compared"]
    assert compared["same"] == compared["of"] == compared["examples"] == 359
    assert compared["difference"] < compared["tolerance"] == 1e-5
    call = export.load_stablehlo(path)
    assert call([np.zeros((3, 8, 8, 1), np.uint8)])["logits"].shape == (3, 10)
    with pytest.raises(ValueError, match="Shape mismatch"):
        call([np.zeros((4, 8, 8, 1), np.uint8)])
    assert sorted(p.name for p in path.parent.iterdir()) == ["m.stablehlo", "m.stablehlo.json"]


@needs_flatbuffers
def test_what_is_replaced_is_said(trained: Path, tmp_path: Path,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    path = run / "export" / "step_2.stablehlo"
    path.parent.mkdir()
    path.write_text("mine")
    recorded = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**recorded, "stand_in": "Digits in place of X"}))
    assert cli.main(["export", f"--experiment={run}"]) == 0
    out = capsys.readouterr().out
    assert f"replaced: {path} (20" in out and "step_2.stablehlo.json (" not in out
    assert "STAND-IN DATA" in out and "Digits in place of X" in out
    about = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert about["stand-in"] == "Digits in place of X" and path.read_bytes() != b"mine"


def test_the_forms_in_the_file_run_anywhere(monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    """No products of patches in place of 1 x 1 convolutions, which are fast on CPU; and where a
    platform is not possible, the one at hand."""
    task = Classification(model=ResNet(depth=8, shortcut="projection"))
    made = network(task)
    inputs = made.raw(made.read(np.arange(1)))
    assert names(lambda *x: export.replayed(made.traced, x), *inputs).count(
        "conv_general_dilated") == 9
    pytest.importorskip("flatbuffers", reason="pip install flatbuffers")
    from jax import export as library

    real = library.export

    def for_one(function: Any, platforms: Any) -> Any:
        if len(platforms) > 1:
            raise NotImplementedError("no lowering for tpu")
        return real(function, platforms=platforms)

    monkeypatch.setattr(library, "export", for_one)
    _, known = export.stablehlo(network(Classification(model=MLP(widths=()))))
    assert known["platforms"] == ["cpu"]
    assert capsys.readouterr().out.startswith("note: for cpu alone, since for cpu, cuda, tpu it "
                                              "is not possible: NotImplementedError: no lowering")


def test_lists_of_the_json_are_in_a_line() -> None:
    about = {"a": ["x [ y", "b  c"], "b": [{"c": [1, 2], "d": ["[ e\n  f ]"]}], "e": ["f  g"]}
    text = export.as_json(about).decode()
    assert json.loads(text) == about and '"c": [1, 2]' in text


# What differs is not written.


def off_by(much: float) -> Callable[[export.Network], Any]:
    def make(made: export.Network) -> Any:
        other = replace(made.exported, outputs=lambda state, batch: {
            name: x + much * (name == "probabilities")
            for name, x in made.exported.outputs(state, batch).items()})
        return export.stablehlo(export.Network(other, made.state, made.source, made.batch))

    return make


@needs_flatbuffers
@pytest.mark.parametrize(("make", "message"), [
    (off_by(2e-5), "is not written: its probabilities differ from jaxdl's by 2"),
    (off_by(np.nan), "differ from jaxdl's by nan;"),
    (lambda made: (b"nonsense", {}), "export: the file cannot be read: "),
    (lambda made: 1 // 0, "as stablehlo this network cannot be written: ZeroDivisionError: "),
])
def test_a_file_that_differs_is_not_written(trained: Path, tmp_path: Path, capfd: Captured,
                                            monkeypatch: pytest.MonkeyPatch, make: Any,
                                            message: str) -> None:
    monkeypatch.setitem(export.FORMATS, "stablehlo", export.Format(make, export.load_stablehlo))
    path = tmp_path / "m.stablehlo"
    path.write_text("before")
    assert cli.main(["export", f"--experiment={trained}", f"--output={path}", "--batch=32"]) == 1
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and message in err, err
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_rounding_of_the_fast_convolutions_is_not_the_files(
        trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = network(Classification(model=MLP(widths=())))
    by_form = {False: export.Agreement(9, 2e-5, 9, 9), True: export.Agreement(9, 1e-7, 9, 9)}
    monkeypatch.setattr(export, "differences", lambda made, call, plain=False: by_form[plain])
    assert export.agreement(made, lambda raw: {}) == by_form[True]
    assert "fast ones that jaxdl chose here differ by 2e-05" in capsys.readouterr().out
    with conv.plain():
        assert export.agreement(made, lambda raw: {}) == by_form[False]
    by_form[True] = replace(by_form[True], difference=1.5e-5)
    assert export.agreement(made, lambda raw: {}) == by_form[False]


def test_the_tolerance_follows_the_type() -> None:
    assert network(Classification(model=MLP(widths=()))).tolerance == 1e-5
    assert network(Classification(model=MLP(widths=()), compute_dtype="bfloat16")).tolerance == 1e-2


# What a task says.


class Pair(nn.Module):
    @nn.compact
    def __call__(self, image: Any, label: Any, train: bool) -> Any:
        return nn.Dense(3)(image.reshape(len(image), -1)) + label[:, None]


@dataclass(frozen=True, kw_only=True)
class Own(LossTask):
    """Two inputs of two types, and an output that is not of classes."""

    def loss(self, variables: Any, batch: Any, key: Any, *, train: bool) -> Any:
        scores, mutable = self.apply(Pair(), variables, batch["image"], batch["label"], key=key,
                                     train=train)
        return Mean.of(scores.sum(-1), batch["mask"]), Aux(mutable=mutable)

    def exported(self) -> export.Exported:
        return export.Exported(inputs=("image", "label"), compared="scores", outputs=self.scored)

    def scored(self, state: Any, batch: Any) -> Any:
        scores = self.apply(Pair(), self.variables(state), batch["image"], batch["label"],
                            key=state.key, train=False)[0]
        return {"scores": scores, "largest": scores.argmax(-1)}


@needs_flatbuffers
def test_a_task_says_what_it_exports() -> None:
    made = network(Own())
    assert made.shapes == {"image": ((8, 8, 1), np.uint8), "label": ((), np.int32)}
    assert made.results == {"largest": ((), np.int32), "scores": ((3,), np.float32)}
    batch = made.read(np.arange(4, dtype=np.int32))
    want = made.original(batch)
    for size in (None, 4):
        content, _ = export.stablehlo(network(Own(), batch=size))
        found: Any = jax.export.deserialize(bytearray(content)).call(*made.raw(batch))
        for name, x in found.items():
            np.testing.assert_allclose(x, want[name], atol=1e-5)


@dataclass(frozen=True, kw_only=True)
class Peeks:
    def __call__(self, batch: Any, keys: Any) -> Any:
        return {**batch, "image": batch["image"] + batch["label"][:, None, None, None]}


@pytest.mark.parametrize(("task", "data", "message"), [
    (object(), DIGITS, "task=object: it does not say what is exported; expected a method "
     "`exported()`, or `logits(state, batch)` and `probabilities(state, batch)`."),
    (Classification(model=MLP(widths=())), replace(DIGITS, evaluation=(Peeks(),)),
     "a transform of the evaluation, uses batch['label'], and a file is given image alone."),
    (("compared", "score"), DIGITS, "the task compares 'score', which is no output; there are "
     "largest, scores."),
    (("inputs", ("images",)), DIGITS, "data: an example has no 'images', which the task exports as "
     "an input; it has image, label. Did you mean 'image'?"),
])
def test_what_cannot_be_exported_is_told(task: Any, data: Any, message: str) -> None:
    if isinstance(task, tuple):
        exported = replace(Own().exported(), **dict([task]))
        task = type("Wrong", (Own,), {"exported": lambda self: exported})()
    with pytest.raises(UserError) as caught:
        network(task, data) if isinstance(task, LossTask) else export.of_task(task)
    assert message in str(caught.value)


# Operations.


def names(function: Callable[..., Any], *args: Any) -> list[str]:
    """The primitives of a function, in order."""
    return [e.primitive.name for e in jax.make_jaxpr(function)(*args).eqns]


def test_each_operation_is_there_once_if_it_is_needed() -> None:
    @jax.jit
    def twice(x: Any) -> Any:
        return jnp.sin(x) * 3.0, jnp.cos(x)

    def function(x: Any) -> Any:
        jax.random.normal(jax.random.key(0), (3,))
        return twice(x)[0] + jax.nn.relu(x), twice(x)[0] + 1.0, twice(x + 1)[0]

    x = jnp.arange(3.)
    traced = jax.make_jaxpr(function)(x)
    found = names(lambda x: export.replayed(traced, [x]), x)
    assert sorted(found) == sorted(["sin", "mul", "max", "add", "add", "add", "sin", "mul"])
    for a, b in zip(export.replayed(traced, [x]), function(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    loop = jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, y: (c + y, c * y), x[0], x))(x)
    for a, b in zip(export.replayed(loop, [x]), jax.lax.scan(
            lambda c, y: (c + y, c * y), x[0], x), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("size", "window", "strides", "padding"), [
    ((2, 8, 8, 3), (2, 2), (2, 2), "VALID"), ((3, 7, 9, 2), (3, 3), (2, 2), ((1, 1), (1, 1))),
    ((2, 9, 2), (3,), (3,), "SAME"), ((2, 5, 6, 4, 1), (2, 1, 2), (1, 3, 2), "SAME"),
])
def test_pooling_has_one_axis_beside_those_of_windows(
        size: Sequence[int], window: Any, strides: Any, padding: Any) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=size), jnp.float32)
    traced = jax.make_jaxpr(lambda x: nn.max_pool(x, window, strides, padding))(x)
    rules = {"reduce_window_max": export.pooled}
    np.testing.assert_array_equal(export.replayed(traced, [x], rules)[0],
                                  nn.max_pool(x, window, strides, padding))
    inside = jax.make_jaxpr(lambda x: export.replayed(traced, [x], rules))(x)
    ranks = [len(e.params["window_dimensions"]) for e in inside.eqns
             if e.primitive.name == "reduce_window_max"]
    assert ranks == [1 + sum(w > 1 or s > 1 for w, s in zip(window, strides, strict=True))]


# ONNX.


@needs_onnx
def test_onnx_runs_without_jax(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
                               capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    assert cli.main(["export", f"--experiment={trained}", f"--output={path}"]) == 0
    out, err = capsys.readouterr()
    assert f"{trained}, step 2 (best), as onnx" in out and "359 of 359" in out and err == ""
    assert caplog.records == []
    about = json.loads((tmp_path / "model.onnx.json").read_text())
    assert about["inputs"] == [{"name": "image", "shape": ["batch", 8, 8, 1], "dtype": "uint8"}]
    assert about["compared"]["difference"] < 1e-5
    ids = np.array([3, 5, 8, 13, 21])
    np.save(tmp_path / "raw.npy", DIGITS.open("test").read(ids)["image"])
    text = alone(tmp_path / "empty", "jaxdl jax flax onnx", f"""
import numpy, onnxruntime
model = onnxruntime.InferenceSession({str(path)!r})
raw = numpy.load({str(tmp_path / 'raw.npy')!r})
for images in (raw, raw[:1]):
    print(model.run(['probabilities'], {{'image': images}})[0].tolist())
print([x.shape for x in [*model.get_inputs(), *model.get_outputs()]], 'jax' in sys.modules)
""").splitlines()
    want = evaluated(trained, ids, 2)
    for line, n in zip(text, (5, 1), strict=False):
        np.testing.assert_allclose(json.loads(line), want[:n], atol=1e-5)
    assert text[2] == "[['batch', 8, 8, 1], ['batch', 10], ['batch', 10]] False"


@needs_onnx
@pytest.mark.parametrize("task", [
    Classification(model=MLP(widths=(8,), batch_norm=True, activation="gelu")),
    Classification(model=ResNet(depth=8)),
    Classification(model=CNN(channels=(4,), pool="average", average=True)), Own(),
])
def test_onnx_of_models_for_any_number_of_examples(task: Any, tmp_path: Path) -> None:
    made = network(task)
    path = tmp_path / "m.onnx"
    path.write_bytes(export.onnx(made)[0])
    call = export.load_onnx(path)
    for n in (1, 2, 7):
        batch = made.read(np.arange(n, dtype=np.int32))
        want = made.original(batch)
        for name, x in call(made.raw(batch)).items():
            np.testing.assert_allclose(x, want[name], atol=1e-5)


@needs_onnx
def test_a_constant_may_follow_the_number_of_examples_in_two_ways() -> None:
    from onnx import TensorProto, helper, numpy_helper

    def model(size: int, other: np.ndarray) -> Any:
        value = helper.make_tensor_value_info
        nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"]),
                 helper.make_node("Add", ["y", "row"], ["z"])]
        row = np.repeat(np.array([[1, 2, 3]], np.float32), size, 0)
        return helper.make_model(helper.make_graph(
            nodes, "g", [value("x", TensorProto.FLOAT, [size, 3])],
            [value("z", TensorProto.FLOAT, [size, 3])],
            [numpy_helper.from_array(x, name) for name, x in (
                ("shape", np.array([size, 3])), ("row", row), ("other", other))]),
            opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    import onnxruntime

    same = np.array(5.)
    merged = export.of_any_size(model(2, same), model(3, same), ["x"])
    session = onnxruntime.InferenceSession(merged.SerializeToString())
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x + np.array([1, 2, 3]))
    with pytest.raises(ValueError, match=r"a constant, float64\[\] for two examples, depends on"):
        export.of_any_size(model(2, np.array(2.)), model(3, np.array(3.)), ["x"])
    wrong = model(3, same)
    wrong.graph.node[1].op_type = "Sub"
    with pytest.raises(ValueError, match="the graph itself depends on the number of examples"):
        export.of_any_size(model(2, same), wrong, ["x"])


# ONNX in 8 bits.


@needs_onnx
def test_onnx_in_8_bits_is_smaller_and_its_weights_are_integers(
        trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capfd: Captured) -> None:
    """Each weight within half a step of jaxdl's; the table has both files and their accuracy; and
    what has another argmax too often is not written."""
    from onnx import load_model, numpy_helper

    run, path = f"--experiment={trained}", tmp_path / "small.onnx"
    monkeypatch.setattr(export, "LEAST", 0.5)  # of a network that has hardly been trained
    assert cli.main(["export", run, "--int8", f"--output={path}"]) == 0
    out, err = capfd.readouterr()
    assert err == "" and "step 2 (best), as onnx in 8 bits" in out
    table = {line[:13].strip(): line.split() for line in out.splitlines() if "of 359" in line}
    assert table["in float32"][-6:-3] == ["359", "of", "359"] and "in int8" in table
    about = json.loads((tmp_path / "small.onnx.json").read_text())
    assert about["bits"] == 8 and about["compared"]["least same argmax"] == 0.5
    assert about["SHA-256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    images = DIGITS.open("test").read(np.arange(359))
    found = export.load_onnx(path)([images["image"]])["probabilities"]
    right = int((found.argmax(-1) == images["label"]).sum())
    assert about["compared"]["correct"] == right
    assert table["in int8"][-3] == f"{right / 359:.2%}" and found.shape == (359, 10)

    tensors = {t.name: numpy_helper.to_array(t) for t in load_model(path).graph.initializer}
    whole = [x for x in tensors.values() if x.dtype == np.int8 and x.ndim > 1]
    kernels = [x for p, x in arrays(trained).items() if p.startswith("state/ema/")
               and p.endswith("kernel")]
    assert sorted(x.size for x in whole) == sorted(x.size for x in kernels)
    assert all(np.abs(x).max() == 127 for x in whole)
    assert not [x for x in tensors.values() if x.dtype == np.float32 and x.ndim > 1 and x.size > 40]

    before = path.read_bytes()
    monkeypatch.setattr(export, "LEAST", 1.01)
    assert cli.main(["export", run, "--int8", f"--output={path}"]) == 1
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "is not written: in 8 bits the argmax is that of jaxdl" in err
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    assert cli.main(["export", run, "--int8", "--format=stablehlo"]) == 2
    assert capfd.readouterr().err == "error: --int8: goes with --format=onnx, not stablehlo.\n"


def test_ranges_come_from_as_many_examples_as_the_file_takes() -> None:
    source = DIGITS.open("train")
    feeds = int8.calibration(source, ("image",), None)
    assert [x["image"].shape for x in feeds] == [(32, 8, 8, 1)] * 8
    again = int8.calibration(source, ("image",), 100)
    assert [x["image"].shape for x in again] == [(100, 8, 8, 1)] * 3
    np.testing.assert_array_equal(np.concatenate([x["image"] for x in feeds]),
                                  np.concatenate([x["image"] for x in again])[:256])


# Mistakes.


def error(capfd: Captured, *arguments: str, status: int = 2) -> str:
    """The one line of an error."""
    assert cli.main(["export", *arguments]) == status
    err = capfd.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err.removeprefix("error: ").strip()


def test_a_mistake_is_told_in_one_line(trained: Path, tmp_path: Path, capfd: Captured,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "flatbuffers", sys)
    (tmp_path / "file").touch()
    run = f"--experiment={trained}"
    told = error(capfd, run, "--format=onxn")
    assert told.startswith("--format=onxn: expected 'stablehlo' or 'onnx' or ")
    assert told.endswith(" Did you mean 'onnx'?")
    assert error(capfd, "--experiment=mlp_digits") == (
        "there is no run in runs/mlp_digits; --workdir=DIR names one.")
    assert error(capfd, f"--experiment={tmp_path}").endswith("so it is not a run.")
    assert error(capfd, run, "--step=5") == (
        f"{trained}: has no checkpoint '5'; it has 2, 4, 6, 'last' and 'best'.")
    assert error(capfd, run, "--batch=0") == "--batch=0: expected int, at least 1 or None."
    assert error(capfd, run, f"--output={tmp_path}") == (
        f"{tmp_path}: is a folder; --output=FILE names a file.")
    assert error(capfd, run, f"--output={tmp_path}/file/m.onnx", "--format=stablehlo") == (
        f"{tmp_path}/file/m.onnx: cannot be written (Not a directory); --output=FILE names another "
        "place.")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert error(capfd, run, "--output=m.onnx").startswith(
        "--format=onnx needs jax2onnx, onnx, onnxruntime (")
    assert error(capfd, run, "--format=onnx").endswith("pip install 'jaxdl[export]'.")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(trained / "config.json", bare)
    assert error(capfd, f"--experiment={bare}") == f"{bare}: holds no checkpoint."
    assert not (bare / "export").exists()
    (damaged := tmp_path / "damaged").mkdir()
    shutil.copytree(trained, damaged, dirs_exist_ok=True)
    next((damaged / "checkpoints/arrays/2/default/d").iterdir()).write_bytes(b"")
    assert "bytes, not" in error(capfd, f"--experiment={damaged}")

"""The `export` command: the trained network as one file that runs without jaxdl.

What is written is a pure function of raw examples, as the data gives them: the transforms of the
evaluation are inside, and so are the parameters. Knows no family of tasks: a task says what it
exports by a method

    def exported(self) -> Exported

and one that has `logits` and `probabilities` of (state, batch), as a classifier of images, needs
none. Before the file is there it is compared with the network on examples of the evaluation.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import importlib
import importlib.metadata
import json
import logging
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.extend.core as core
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jaxdl import (
    __version__,
    allocator,
    compilation,
    conv,
    display,
    distributed,
    int8,
    parallel,
    record,
    weights,
)
from jaxdl.atomic import write_through
from jaxdl.data.source import Source
from jaxdl.display import console
from jaxdl.errors import NoRoom, RunError, UserError, nearest, out_of_memory, shown, told
from jaxdl.experiment import Mesh
from jaxdl.page import clipped
from jaxdl.predict import chosen, evaluated, expanded
from jaxdl.preflight import shapes_of
from jaxdl.train import restored, splits

if TYPE_CHECKING:
    from jaxdl.cli import Command
    from jaxdl.experiment import Experiment

TOLERANCE = 1e-5    # of what is compared, in float32 or float64
LEAST = 0.98        # of the examples of which a file in 8 bits has to have the same argmax
COARSE = 1e-2       # where something is computed in 16 bits
EXAMPLES = 512      # that are compared, at most
SIZES = (1, 32)     # of batches that are timed, where the file takes any
ENOUGH = 0.3        # seconds of calls that are timed
PLATFORMS = ("cpu", "cuda", "tpu")
OPSET = 21          # of ONNX: read from ONNX Runtime 1.20 on

Array = jax.Array
Outputs = dict[str, np.ndarray]
Call = Callable[[Sequence[np.ndarray]], Outputs]


# What is exported.


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What a task exports.

    Attributes:
      inputs: names of the arrays [B, ...] that the file takes, of those that the data gives.
      outputs: (state, transformed batch) -> arrays [B, ...] by name. Pure; what one example gives
        does not depend on the others.
      compared: name of the output [B, ..., K] by which the file is judged, such as probabilities.
    """

    inputs: tuple[str, ...]
    outputs: Callable[[Any, Any], Mapping[str, Array]]
    compared: str


def of_task(task: Any) -> Exported:
    """What this task exports."""
    if hasattr(task, "exported"):
        return task.exported()
    if hasattr(task, "logits") and hasattr(task, "probabilities"):
        return Exported(inputs=("image",), compared="probabilities", outputs=lambda state, batch: {
            "logits": task.logits(state, batch),
            "probabilities": task.probabilities(state, batch)})
    raise UserError(f"task={type(task).__name__}: it does not say what is exported; expected a "
                    "method `exported()`, or `logits(state, batch)` and "
                    "`probabilities(state, batch)`.")


class Network:
    """The inference function of a checkpoint: raw arrays [B, ...] to arrays [B, ...] by name.

    Args:
      exported: of the task.
      state: of the checkpoint.
      source: of the split whose transforms are applied.
      batch: the number of examples that the function takes; None for any.
    """

    def __init__(self, exported: Exported, state: Any, source: Source, batch: int | None) -> None:
        self.exported, self.state, self.source, self.batch = exported, state, source, batch
        example = source.read(np.zeros(1, np.int32))
        for name in exported.inputs:
            if name not in example:
                raise UserError(f"data: an example has no {name!r}, which the task exports as an "
                                f"input; it has {', '.join(example)}.{nearest(name, example)}")
        self.shapes = {name: (tuple(np.shape(example[name])[1:]), np.dtype(example[name].dtype))
                       for name in exported.inputs}
        self.compiled, self.plain = jax.jit(self.outputs), jax.jit(self.plainly)
        self.names: list[str] = []  # of the results, in order
        self.traced = self.trace(1)
        self.results = {name: (x.shape[1:], x.dtype) for name, x in zip(
            self.names, self.traced.out_avals, strict=True)}
        if exported.compared not in self.results:
            raise UserError(f"export: the task compares {exported.compared!r}, which is no output; "
                            f"there are {', '.join(self.names)}.")

    def outputs(self, state: Any, batch: Any) -> dict[str, Array]:
        """What an evaluator would see of a raw batch."""
        batch = self.source.transform(dict(batch), jax.random.key(0))
        return dict(self.exported.outputs(state, batch))

    def plainly(self, state: Any, batch: Any) -> dict[str, Array]:
        """The same in the forms that run anywhere; those of `jaxdl.conv` were measured on CPU."""
        with conv.plain():
            return self.outputs(state, batch)

    def read(self, ids: np.ndarray) -> dict[str, Any]:
        """A batch of these examples, not yet transformed."""
        return {**self.source.read(ids), "index": ids, "mask": np.ones(len(ids), np.float32)}

    def original(self, batch: dict[str, Any], plain: bool = False) -> Outputs:
        """jaxdl's own results for a batch, by the function that evaluates."""
        return jax.device_get((self.plain if plain else self.compiled)(self.state, batch))

    def raw(self, batch: dict[str, Any]) -> list[np.ndarray]:
        """What of a batch the file is given."""
        return [np.asarray(batch[name]) for name in self.exported.inputs]

    def trace(self, size: Any) -> core.ClosedJaxpr:
        """The function of a batch of so many examples, traced; its results in order of `names`."""
        def function(*raw: Array) -> list[Array]:
            batch = dict(zip(self.exported.inputs, raw, strict=True))
            found = self.plainly(self.state, {**batch, "index": jnp.zeros(size, jnp.int32),
                                              "mask": jnp.ones(size, jnp.float32)})
            self.names = sorted(found)
            return [found[name] for name in self.names]

        try:
            return jax.make_jaxpr(function)(*self.structs(size))
        except KeyError as error:
            raise UserError(f"export: the task, or a transform of the evaluation, uses "
                            f"batch[{error}], and a file is given {', '.join(self.shapes)} alone."
                            ) from error

    def structs(self, size: Any) -> list[jax.ShapeDtypeStruct]:
        """Shapes and types of the inputs."""
        return [jax.ShapeDtypeStruct((size, *shape), dtype)
                for shape, dtype in self.shapes.values()]

    @property
    def tolerance(self) -> float:
        """How far the compared output may be off."""
        return COARSE if re.search(r"\b(bf16|f16)\[", str(self.traced.jaxpr)) else TOLERANCE

    def described(self, which: Mapping[str, tuple[Any, Any]]) -> list[dict[str, Any]]:
        """Names, shapes and types, as the .json has them."""
        size = "batch" if self.batch is None else self.batch
        return [{"name": name, "shape": [size, *shape], "dtype": str(dtype)}
                for name, (shape, dtype) in which.items()]


# A traced function, operation by operation.


Rules = Mapping[str, Callable[[Any, Any], Any]]
NO_RULES: Rules = {}
INLINED = ("jit", "pjit", "checkpoint", "remat2")  # and what has a call_jaxpr


def replayed(function: Any, inputs: Sequence[Any], rules: Rules = NO_RULES,
             known: dict[Any, Any] | None = None, places: Sequence[int] | None = None) -> list[Any]:
    """The results of a traced function, from the operations alone that they depend on, and each
    operation once: logits and probabilities need the network one time.

    Args:
      function: a jaxpr, with constants or without any.
      inputs: its arguments.
      rules: of some primitives with one operand, other ways to compute them: (equation, operand).
      known: operations that were computed, with their operands and results.
      places: of the results that are asked for; None for all.
    """
    jaxpr, known = getattr(function, "jaxpr", function), {} if known is None else known
    results = jaxpr.outvars if places is None else [jaxpr.outvars[i] for i in places]
    needed = {v for v in results if not isinstance(v, core.Literal)}
    steps = []
    for equation in reversed(jaxpr.eqns):
        if wanted := [v for v in equation.outvars if v in needed]:
            needed |= {v for v in equation.invars if not isinstance(v, core.Literal)}
            steps.append((equation, wanted))
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars),
                      (*getattr(function, "consts", ()), *inputs), strict=True))

    def value(v: Any) -> Any:
        return v.val if isinstance(v, core.Literal) else values[v]

    for equation, wanted in reversed(steps):
        operands, inner = list(map(value, equation.invars)), _inside(equation)
        if inner is not None:
            values |= zip(wanted, replayed(inner, operands, rules, known, list(map(
                equation.outvars.index, wanted))), strict=True)
            continue
        same = _identity(equation, operands, wanted)
        if same not in known:
            rule = rules.get(equation.primitive.name)
            known[same] = operands, ([rule(equation, *operands)] if rule
                                     else _alone(equation, wanted)(*(x for v, x in zip(
                                         equation.invars, operands, strict=True)
                                         if not isinstance(v, core.Literal))))
        values |= zip(wanted, known[same][1], strict=True)
    return list(map(value, results))


def _inside(equation: Any) -> Any:
    """The jaxpr that an equation calls once, and does nothing else; None if it does not."""
    inner = equation.params.get("call_jaxpr")
    return equation.params["jaxpr"] if inner is None and equation.primitive.name in INLINED \
        else inner


def _identity(equation: Any, operands: Sequence[Any], wanted: Sequence[Any]) -> Any:
    """Equal for equations that compute the same; operands have to be kept for as long."""
    key = (equation.primitive, tuple(equation.params.items()), tuple(
        id(x) if isinstance(x, jax.Array) or np.size(x) > 1 else (str(v.aval), repr(x))
        for v, x in zip(equation.invars, operands, strict=True)),
        tuple(map(equation.outvars.index, wanted)))
    try:
        hash(key)
    except TypeError:  # A parameter is an array.
        return object()
    return key


def _alone(equation: Any, wanted: Sequence[Any]) -> Callable[..., list[Any]]:
    """An equation as a function of its operands that are no literals."""
    operands = [v for v in equation.invars if not isinstance(v, core.Literal)]
    first = list(dict.fromkeys(operands))
    jaxpr = core.Jaxpr((), first, list(wanted), [equation], equation.effects)
    function = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))
    return lambda *values: function(*(values[operands.index(v)] for v in first))


# StableHLO.


def stablehlo(network: Network) -> tuple[bytes, dict[str, Any]]:
    """(the function as jax.export serialises it, what is to be known of it).

    Where the number of examples is open, it is the function of one example, mapped: a model may
    ask Python for `len(x)`, which has to be a number.
    """
    from jax import export

    size = network.batch or export.symbolic_shape("batch")[0]
    traced = network.traced if network.batch is None else network.trace(size)

    def one(*example: Array) -> list[Array]:
        return [jnp.squeeze(x, 0) for x in replayed(traced, [x[None] for x in example])]

    def inference(*raw: Array) -> dict[str, Array]:
        found = jax.vmap(one)(*raw) if network.batch is None else replayed(traced, raw)
        return dict(zip(network.names, found, strict=True))

    specs = network.structs(size)
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    try:
        made = export.export(jax.jit(inference), platforms=PLATFORMS)(*specs)
    except Exception as error:  # A primitive without a lowering for one of them raises anything.
        console.print(f"note: for {here} alone, since for {', '.join(PLATFORMS)} it is not "
                      f"possible: {clipped(told(error), 200)}")
        made = export.export(jax.jit(inference), platforms=(here,))(*specs)
    return bytes(made.serialize()), {
        "platforms": list(made.platforms), "calling convention": made.calling_convention_version}


def load_stablehlo(path: Path) -> Call:
    """The function in a file."""
    from jax import export

    function = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    return lambda raw: jax.device_get(function(*raw))


# ONNX.


def onnx(network: Network) -> tuple[bytes, dict[str, Any]]:
    """(the function as a serialised ONNX model, what is to be known of it).

    jax2onnx is given the plain operations: not the layers of Flax, which it would replace by others
    of its own, and no symbolic shapes, for which several of its operations fail. So an open number
    of examples is found by comparing the graphs for two and for three.
    """
    if network.batch is not None:
        model = converted(network, network.batch)
    else:
        model = of_any_size(converted(network, 2), converted(network, 3), network.exported.inputs)
    return model.SerializeToString(), {"opset": model.opset_import[0].version,
                                       "ir version": model.ir_version}


def converted(network: Network, size: int) -> Any:
    """The ONNX model for batches of one size."""
    import jax2onnx

    traced = network.trace(size)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of plugins for other libraries, and of shapes left open
    try:
        return jax2onnx.to_onnx(
            lambda *raw: tuple(replayed(traced, raw, {"reduce_window_max": pooled})),
            inputs=network.structs(size), model_name="jaxdl", opset=OPSET,
            input_names=list(network.exported.inputs), output_names=network.names)
    finally:
        logging.disable(before)


def pooled(equation: Any, x: Array) -> Array:
    """The greatest value in each window, by a pooling that has one axis beside those of windows:
    jax2onnx takes every axis for one of the image, and ONNX Runtime has at most three."""
    plain = {"padding": (0, 0)}  # of an axis without a window; 1 of all else
    params = equation.params
    axes = [i for i in range(x.ndim) if any(
        tuple(np.ravel(p[i])) != tuple(np.ravel(plain.get(name, 1))) for name, p in params.items())]
    order = [*(i for i in range(x.ndim) if i not in axes), *axes]
    moved = x.transpose(order)
    others = moved.shape[:x.ndim - len(axes)]
    y = equation.primitive.bind(moved.reshape(-1, *moved.shape[len(others):]), **{
        name: (plain.get(name, 1), *(p[i] for i in axes)) for name, p in params.items()})
    return y.reshape(*others, *y.shape[1:]).transpose(np.argsort(order))


def of_any_size(two: Any, three: Any, inputs: Sequence[str]) -> Any:
    """The ONNX model for any number of examples, from those for two and for three: a constant that
    differs grows by this difference with each example, or repeats a row for each."""
    import onnx as library
    from onnx import helper, numpy_helper

    graph = two.graph
    first, second = ({t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
                     for model in (two, three))
    nodes = [[n.SerializeToString() for n in model.graph.node] for model in (two, three)]
    if first.keys() != second.keys() or nodes[0] != nodes[1] or len(two.functions):
        raise ValueError("the graph itself depends on the number of examples; --batch=N fixes it")
    count = "jaxdl/examples"
    made: list[Any] = [helper.make_node("Shape", [inputs[0]], [count], start=0, end=1)]
    constants = [t for t in graph.initializer if _same(first[t.name], second[t.name])]

    def constant(name: str, x: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(x), name))
        return name

    def grows(name: str, base: np.ndarray, each: np.ndarray) -> None:
        factor = constant(f"{name}/each", each.astype(np.int64))
        made.append(helper.make_node("Mul", [count, factor], [f"{name}/all"]))
        made.append(helper.make_node("Add", [f"{name}/all", constant(
            f"{name}/base", base.astype(np.int64))], [name]))

    for name, low in first.items():
        high = second[name]
        row = [i for i in range(low.ndim) if low.shape != high.shape and low.shape[i] == 2]
        if _same(low, high):
            continue
        if low.shape == high.shape and low.dtype == np.int64 and low.ndim == 1:
            grows(name, low - 2 * (high - low), high - low)
        elif row and _same(high, np.repeat(low.take([0], row[0]), 3, row[0])):
            axis = np.arange(low.ndim) == row[0]
            grows(f"{name}/shape", np.where(axis, 0, low.shape), axis)
            made.append(helper.make_node("Expand", [constant(f"{name}/row", low.take([0], row[0])),
                                                    f"{name}/shape"], [name]))
        else:
            raise ValueError(f"a constant, {low.dtype}{list(low.shape)} for two examples, depends "
                             "on their number; --batch=N fixes it")
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    made += graph.node
    for old, new in ((graph.node, made), (graph.initializer, constants), (graph.value_info, ())):
        new = list(new)
        del old[:]
        old.extend(new)
    library.checker.check_model(two)
    return two


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def load_onnx(path: Path) -> Call:
    """The function in a file, by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ins, outs = ([x.name for x in xs] for xs in (session.get_inputs(), session.get_outputs()))
    return lambda raw: dict(zip(outs, session.run(None, dict(zip(ins, raw, strict=True))),
                                strict=True))


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
      make: the content, and what is to be known of it.
      load: the function in such a file.
      needs: packages beside jaxdl's.
      install: what brings them.
    """

    make: Callable[[Network], tuple[bytes, dict[str, Any]]]
    load: Callable[[Path], Call]
    needs: tuple[str, ...] = ()
    install: str = ""


FORMATS = {"stablehlo": Format(stablehlo, load_stablehlo, ("flatbuffers",),
                               "pip install flatbuffers"),
           "onnx": Format(onnx, load_onnx, ("jax2onnx", "onnx", "onnxruntime"),
                          "pip install 'jaxdl[export]'")}


# The check, and the time.


@dataclass(frozen=True)
class Agreement:
    """How a file compares with the network.

    Attributes:
      examples: that were compared.
      difference: the largest absolute one of the compared output.
      same: how often its argmax is the same.
      of: how often there is one.
      correct: how often that is the label; None where there are no such labels.
      ours: the same of the network.
    """

    examples: int
    difference: float
    same: int
    of: int
    correct: int | None = None
    ours: int | None = None


def agreement(network: Network, call: Call) -> Agreement:
    """Compares a file with the network as it is evaluated.

    Where it is off by more than the tolerance, the reason may be the forms of `jaxdl.conv`, whose
    rounding is larger: then the plain ones decide.
    """
    found = differences(network, call)
    if found.difference > network.tolerance and conv.enabled():
        plain = differences(network, call, plain=True)
        if plain.difference <= network.tolerance:
            console.print("note: compared with the plain forms of convolutions; the fast ones that "
                          f"jaxdl chose here differ by {found.difference:.2g}")
            return plain
    return found


def differences(network: Network, call: Call, *, plain: bool = False) -> Agreement:
    """Compares a file with the network on the first examples of the split, in batches of each size
    that is timed."""
    name, size = network.exported.compared, network.source.size
    difference, same, total = np.float64(0), 0, 0
    correct: int | None = 0
    ours: int | None = 0
    count = min(EXAMPLES, size)
    *others, last = sizes(network)
    for batch, upto in (*((other, other) for other in others), (last, count)):
        for start in range(0, upto, batch):
            ids = np.arange(start, start + batch, dtype=np.int32)
            kept = ids < upto
            read = network.read(np.minimum(ids, size - 1))
            want, have = network.original(read, plain)[name], call(network.raw(read))[name]
            if want.shape != have.shape:
                raise RunError(f"export: {name} is of the shape {list(have.shape)}, and "
                               f"{list(want.shape)} in jaxdl.")
            want, have = (np.asarray(x[kept], np.float64) for x in (want, have))
            difference = np.maximum(difference, np.abs(want - have).max())  # NaN, if there is one
            if batch != last:
                continue
            own, found = want.argmax(-1), have.argmax(-1)
            same, total = same + int((own == found).sum()), total + found.size
            label = np.asarray(read.get("label", 0.))
            if correct is None or ours is None or label.dtype.kind not in "iu" or (
                    label[kept].shape != found.shape):
                correct = ours = None
            else:
                correct += int((label[kept] == found).sum())
                ours += int((label[kept] == own).sum())
    return Agreement(count, float(difference), same, total, correct, ours)


def sizes(network: Network) -> tuple[int, ...]:
    """The batches that are timed."""
    return SIZES if network.batch is None else (network.batch,)


def milliseconds(call: Callable[[], Any]) -> float:
    """The median of some calls, after two that do not count."""
    call()
    call()
    seconds: list[float] = []
    while len(seconds) < 5 or (sum(seconds) < ENOUGH and len(seconds) < 100):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)


@dataclass(frozen=True)
class File:
    """A file, its size in bytes, how it compares, and the function in it."""

    name: str
    size: int
    found: Agreement
    call: Call


def table(network: Network, files: Sequence[File]) -> Table:
    """The network and the files, beside each other: of one how far it is off, of several how often
    each is right."""
    judged = ("max difference", "same argmax") if len(files) == 1 else ("same argmax", "accuracy")
    shown = Table("what", "size", *judged, *(f"ms, batch {n}" for n in sizes(network)), box=None,
                  pad_edge=False)
    for column in shown.columns[1:]:
        column.justify = "right"
    some = [network.read(np.arange(n, dtype=np.int32) % network.source.size)
            for n in sizes(network)]

    def row(call: Callable[[Any], Any], inputs: Sequence[Any], what: str, size: str,
            **words: str) -> None:
        shown.add_row(what, size, *(words.get(name.split()[-1], "-") for name in judged),
                      *(f"{milliseconds(lambda x=x: call(x)):.3g}" for x in inputs))

    def accuracy(correct: int | None, of: int) -> str:
        return "-" if correct is None else f"{correct / of:.2%}"

    first = files[0].found
    row(network.original, some, "jaxdl, jitted", "-", accuracy=accuracy(first.ours, first.of))
    for file in files:
        found = file.found
        row(file.call, list(map(network.raw, some)), file.name, in_words(file.size),
            difference=f"{found.difference:.2g}", argmax=f"{found.same:,} of {found.of:,}",
            accuracy=accuracy(found.correct, found.of))
    return shown


def in_words(count: int) -> str:
    """Bytes, also few of them."""
    return display.size(count) if count >= 1e6 else f"{count / 1e3:.1f} kB"


# The whole.


def of_checkpoint(experiment: "Experiment", folder: Path, step: int, exported: Exported,
                  split: str, batch: int | None) -> Network:
    """The network of a checkpoint, on one device, wherever it was trained.

    Args:
      experiment: as recorded in the run.
      folder: the run directory; only read.
      step: of a checkpoint.
      exported: of its task.
      split: whose transforms are applied.
      batch: the number of examples that the file takes; None for any.
    """
    experiment = dataclasses.replace(experiment, mesh=Mesh(data=1), parallel="jit")
    opened = splits(experiment)
    _, state = restored(experiment, folder, step, shapes_of(opened("train")), parallel.arrange(
        experiment.mesh, experiment.rules))
    return Network(exported, jax.device_put(state, jax.devices()[0]), opened(split), batch)


def require(name: str) -> Format:
    """The format of this name; a UserError unless what it needs is installed."""
    form = FORMATS[name]
    for package in form.needs:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"--format={name} needs {', '.join(form.needs)} ({error}): "
                            f"{form.install}.") from error
    return form


def check_writable(path: Path) -> None:
    """Raises a UserError unless a file can be written there. Nothing of the trial is left."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; --output=FILE names a file.")
    try:
        place = next(p for p in path.absolute().parents if p.exists())
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    return NoRoom(f"{path}: cannot be written ({error.strerror}); --output=FILE names another "
                  "place.")


def _write(path: Path, temporary: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_through(temporary, content)
    except OSError as error:
        raise _unwritable(path, error) from error


@contextlib.contextmanager
def replacing(path: Path, content: bytes) -> Iterator[Path]:
    """Inside, the content is in a file beside the path, which then takes its place; not if anything
    is raised."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        _write(path, temporary, content)
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def carried_out(what: str, step: Callable[..., Any], *args: Any) -> Any:
    """What a step gives; what a library raises in it is told in one line."""
    try:
        return step(*args)
    except (UserError, RunError):
        raise
    except Exception as error:
        raise out_of_memory(error) or RunError(
            f"export: {what}: {clipped(told(error), 400)}") from error


def origin(network: Network, experiment: "Experiment", folder: Path, step: int) -> dict[str, Any]:
    """What a user of the file has to know, and where it comes from."""
    names, old = getattr(experiment.data, "names", None), record.read(folder)
    manifest = folder / "checkpoints" / f"{step}.json"
    return {"inputs": network.described(network.shapes),
            "outputs": network.described(network.results),
            "inside": [repr(t) for t in getattr(network.source, "transforms", ())],
            "classes": None if names is None else [str(name) for name in names],
            "experiment": old.name if old else None, "run": str(folder.absolute()), "step": step,
            "stand-in": old.stand_in if old else None,
            "SHA-256 of the manifest": hashlib.sha256(manifest.read_bytes()).hexdigest()}


def versions(form: Format) -> dict[str, str]:
    """Of what made the file."""
    return {"jaxdl": __version__, **{name: importlib.metadata.version(name)
                                     for name in ("jax", "flax", *form.needs)}}


def deliver(path: Path, kind: str, network: Network, about: dict[str, Any], split: str,
            batches: Sequence[int8.Feed] | None = None) -> None:
    """Writes the file and the .json beside it, if the file computes what the network does.

    Args:
      path: of the file.
      kind: of FORMATS.
      network: what is written.
      about: what the .json has beside what is found here.
      split: on which they are compared.
      batches: training examples, where the file is to be in 8 bits; None for what the network has.
    """
    form, beside = FORMATS[kind], path.with_name(f"{path.name}.json")
    with console.status("exporting"):
        content, known = carried_out(f"as {kind} this network cannot be written", form.make,
                                     network)
    coarse = network.tolerance == COARSE and kind == "onnx"
    of = ", of 16 bits (--task.compute_dtype=float32 makes another)," if coarse else ""

    def read(name: str, temporary: Path) -> File:
        call = carried_out(f"the file{of} cannot be read", form.load, temporary)
        found = carried_out(f"the file{of} cannot be run", agreement, network, call)
        return File(name, temporary.stat().st_size, found, call)

    limits: dict[str, float] = {"tolerance": network.tolerance}
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(replacing(path, content))
        with console.status("comparing"):
            files = [read("the file" if batches is None else "in float32", temporary)]
            found = files[0].found
            if not found.difference <= network.tolerance:
                raise RunError(f"export: {path} is not written: its {network.exported.compared} "
                               f"differ from jaxdl's by {found.difference:.3g}; at most "
                               f"{network.tolerance:g} is rounding.")
        if batches is not None:
            with console.status("in 8 bits"):
                content = carried_out("in 8 bits this network cannot be written", int8.quantized,
                                      content, batches)
                _write(path, temporary, content)
                files.append(read("in int8", temporary))
            found, limits = files[1].found, {"least same argmax": LEAST}
            if found.same < LEAST * found.of or not np.isfinite(found.difference):
                raise RunError(f"export: {path} is not written: in 8 bits the argmax is that of "
                               f"jaxdl for {found.same:,} of {found.of:,} examples; at least "
                               f"{LEAST:.0%} is expected. Training with rounding "
                               "(tasks.quantized.QuantizationAware) may help.")
        rows = table(network, files)
        about = {"file": path.name, "format": kind, **known, **about,
                 "bits": 32 if batches is None else 8,
                 "SHA-256": hashlib.sha256(content).hexdigest(), "versions": versions(form),
                 "compared": {"output": network.exported.compared, "split": split, **limits,
                              **dataclasses.asdict(found)}}
        replaced = [f"{p} ({of_when(p)})" for p in (path, beside) if p.exists()]
        stack.enter_context(replacing(beside, as_json(about)))
    console.print(rows)
    said = (f"{found.examples:,} examples of the split '{split}'; {network.exported.compared} may "
            f"differ by {network.tolerance:g}")
    if batches is not None:
        said += (f" in float32; in int8 they differ by {found.difference:.2g} at most, and the "
                 f"argmax may for {1 - LEAST:.0%}")
    console.print(said)
    for line in replaced:
        console.print(f"replaced: {line}")
    console.print(f"written: {path}; names, shapes and origin in {beside.name}")


def as_json(about: Any) -> bytes:
    """JSON with a list of numbers or words on one line."""
    text = json.dumps(about, indent=2)
    return re.sub(r"\[\n *([^][{}]*?)\n *\]",
                  lambda found: "[" + re.sub(r"\n *", " ", found[1]) + "]", text).encode()


def of_when(path: Path) -> str:
    """When a file was written."""
    return datetime.datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M:%S")


def run(command: "Command") -> int:
    """Exports a checkpoint of a run."""
    from jaxdl.cli import of_run

    options: Any = command.options
    if distributed.several():
        raise UserError("export runs in one process.")
    named = None if options.output is None else expanded("output", options.output)
    by_end = {".onnx": "onnx", ".safetensors": "safetensors"}
    kind = options.format or by_end.get(named.suffix if named else "", "stablehlo")
    weights_alone = kind == "safetensors"
    for flag in ("names", "only"):
        if (value := getattr(options, flag)) is not None and not weights_alone:
            raise UserError(f"--{flag}={shown(value)}: goes with --format=safetensors.")
    if options.names is not None and options.only is not None:
        raise UserError(f"--only={shown(options.only)}: what it chooses keeps its paths here; "
                        "leave out --names.")
    if options.int8 and kind != "onnx":
        raise UserError(f"--int8: goes with --format=onnx, not {kind}.")
    if not weights_alone:
        require(kind)
    experiment, folder = of_run(command)
    step, called = chosen(experiment, folder, options.step)
    ending = "_int8.onnx" if options.int8 else f".{kind}"
    path = named or folder / "export" / f"step_{step}{ending}"
    check_writable(path)
    if weights_alone:
        path.parent.mkdir(parents=True, exist_ok=True)
        console.print(f"{folder}, {called}")
        replaced = f"replaced: {path} ({of_when(path)})" if path.exists() else ""
        console.print(weights.export(experiment, folder, step, path, options.names,
                                     options.only))
        if replaced:
            console.print(replaced)
        return 0
    exported = of_task(experiment.task)
    allocator.keep_memory()
    compilation.keep_programs()
    split = evaluated(experiment)
    with console.status("reading the checkpoint"):
        network = of_checkpoint(experiment, folder, step, exported, split, options.batch)
        batches = int8.calibration(splits(experiment)("train"), exported.inputs,
                                   options.batch) if options.int8 else None
    console.print(f"{folder}, {called}, as {kind}{' in 8 bits' if options.int8 else ''}")
    if split == "train":
        console.print("warning: the data has no split but 'train', whose transforms, "
                      "augmentation included, are in the file")
    console.print(f"takes {listed(network, network.shapes)} as the data gives it"
                  + (f"; inside: {', '.join(inside)}" if (inside := kinds(network.source)) else ""))
    console.print(f"gives {listed(network, network.results)}")
    deliver(path, kind, network, origin(network, experiment, folder, step), split, batches)
    return 0


def listed(network: Network, which: Mapping[str, tuple[Any, Any]]) -> str:
    """Names, types and shapes, in a line."""
    return ", ".join(f"{x['name']} {x['dtype']} [{', '.join(map(str, x['shape']))}]"
                     for x in network.described(which))


def kinds(source: Source) -> list[str]:
    """The names of a source's transforms."""
    return [type(t).__name__ for t in getattr(source, "transforms", ())]

"""Whether many devices compute what one does, and what they send each other for it.

    python benchmarks/scaling.py [--steps=5] [--models=mlp_digits,resnet_cifar,transformer]
                                 [--rows=FILE]

Virtual devices of one CPU, 1 to 8, in one process and in two: the speed of these says nothing about
real ones, and is not shown. The numbers are: the losses of the first steps against those of one
device, in float64 and in float32; the collectives of a step, counted in the compiled program; and
the bytes of parameters and optimizer statistics on each device. docs/scaling.md sets the bytes
beside the formulas. With --rows, each row is kept in that file as soon as it is measured, and is
not measured again: all of them take half an hour.

XLA for CPU never forms a reduce-scatter: where
GPUs and TPUs have one, an all-reduce stands here, with up to twice the bytes.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import PartitionSpec
from rich.console import Console
from rich.table import Table

from jaxdl import distributed, files, parallel, profile, train
from jaxdl.data.loader import ahead
from jaxdl.data.source import Arrays, assemble
from jaxdl.experiment import Experiment, Mesh, Rule
from jaxdl.layers import uniform
from jaxdl.models.transformer import Transformer
from jaxdl.optimizer import Adam, Constant
from jaxdl.task import Aux, Batch, Mean, named
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.language import LanguageModel
from jaxdl.tracing import tracing

DEVICES = 8
MODELS = ("mlp_digits", "resnet_cifar", "transformer")
MESHES = ({"data": 1}, {"data": 2}, {"data": 4}, {"data": 8}, {"data": 1, "fsdp": 8},
          {"data": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2})
ROWS: tuple[dict[str, Any], ...] = (
    *({"mesh": mesh} for mesh in MESHES), {"mesh": {"data": 8}, "mode": "pmap"},
    *({"mesh": mesh, "processes": 2} for mesh in (MESHES[3], MESHES[4], MESHES[6])),
    {"mesh": {"data": 1}, "mode": "shifted"})
PARTS = {"mesh": {"data": 1}, "mode": "parts"}  # what pmap is compared with where it normalises
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def measure(model: str, mesh: dict[str, int], steps: int, mode: str) -> dict[str, Any]:
    """One row: the losses, a digest of the data, the collectives and the bytes on a device.

    Args:
      mode: "jit" or "pmap"; "parts": one device does what pmap does on DEVICES (`InParts`);
        "shifted": it starts with every parameter off by one unit of rounding, to tell what the
        model makes of rounding.
    """
    train.FUSED = 1  # one step in a dispatch, so that a program is a step
    experiment = workload(model)
    task: Any = experiment.task
    if mode == "parts":
        task = InParts(**{f.name: getattr(task, f.name) for f in dataclasses.fields(task)})
    experiment = dataclasses.replace(
        experiment, task=task, mesh=Mesh(**mesh), parallel="pmap" if mode == "pmap" else "jit",
        rules=experiment.rules if "tensor" in mesh else ())
    devices = parallel.arrange(experiment.mesh, experiment.rules)
    source = experiment.data.open("train")
    program = train.Program(experiment, source, devices, fresh=True)
    text = program.lowered().compile().as_text() or ""
    carry = program.init(program.knobs)
    if mode == "shifted":
        params = jax.tree.map(lambda x: x * (1 + np.finfo(x.dtype).eps), carry.state.params)
        carry = train.Carry(dataclasses.replace(carry.state, params=params), carry.window)

    state = {p: x for p, x in named(carry.state).items() if p.startswith(("params", "opt_state"))}
    wide = 2 if jax.config.jax_enable_x64 else 1
    size = sum(x.nbytes for x in state.values()) / wide
    on_device = sum(x.addressable_shards[0].data.nbytes for x in state.values()) / wide
    ways = mesh.get("fsdp", 1)
    if ways > 1 and "tensor" not in mesh:  # all that is large and divides is split, nothing else
        assert on_device * wide == sum(x.nbytes // (ways if split(x.shape, ways) else 1)
                                       for x in state.values())
    if max(ways, mesh.get("tensor", 1)) == 1:
        assert on_device == size

    losses, digest, data = [], hashlib.sha256(), drawn(experiment, source, devices)
    batches = ahead(source, program.plan(0, steps), devices.rows(experiment.batch_size))
    for step, inputs in enumerate(batches):
        placed = devices.place(inputs, experiment.batch_size)
        for x in data(program.arrays, placed, np.int32(step)):
            digest.update(np.asarray(x).tobytes())
        carry = program.advance(carry, [inputs])
        mean = carry.window.means["loss"]
        losses.append(float(mean.total) / float(mean.count))
        carry = train.Carry(carry.state, program.reset(carry.window))
    return {"losses": losses, "data": digest.hexdigest(),
            "collectives": collectives(text, profile.instructions(text)),
            "size": size, "on_device": on_device}


def drawn(experiment: Experiment, source: Any, devices: parallel.Devices) -> Callable[..., Any]:
    """Compiles (arrays, inputs, step) -> what a step draws: the ids and augmented examples of its
    batch, and uniform numbers [B, 8] such as dropout compares with its rate."""
    def draw(arrays: Any, inputs: Any, step: Any) -> list[Any]:
        key = jax.random.fold_in(jax.random.key(experiment.seed), step)
        with tracing(device_axis="data" if experiment.parallel == "pmap" else None):
            numbers = uniform(key, (len(inputs["index"]), 8))
        return jax.tree.leaves((assemble(source, arrays, inputs, key), numbers))

    if experiment.parallel == "pmap":
        same, split = PartitionSpec(), devices.batch.spec
        draw = jax.shard_map(draw, mesh=devices.mesh, in_specs=(same, split, same),
                             out_specs=split, check_vma=False)
    return jax.jit(draw, in_shardings=(devices.replicated, devices.batch, devices.replicated),
                   out_shardings=devices.replicated)


def split(shape: tuple[int, ...], ways: int) -> bool:
    """Whether jaxdl splits an array over "fsdp": it is large, and some dimension divides."""
    return math.prod(shape) >= parallel.SMALL and any(n % ways == 0 for n in shape)


def collectives(text: str, instructions: dict[str, Any]) -> dict[str, tuple[int, float, float]]:
    """By kind: (how many, bytes of the whole arrays, bytes that a device sends in a ring).

    An all-reduce of B bytes over n devices is a ring reduce-scatter and a ring all-gather, in each
    of which a device sends (n - 1) / n B; an all-to-all sends as much as one of them, a
    collective-permute B.
    """
    found: dict[str, tuple[int, float, float]] = {}
    for x in instructions.values():
        kind = x.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        whole = float(sum(bytes_of(instructions[o].shape) for o in x.operands))
        n = group_size(x.rest, text)
        if kind == "all-gather":
            whole *= n
        sent = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.}.get(kind, (n - 1) / n)
        count, total, wire = found.get(kind, (0, 0., 0.))
        found[kind] = count + 1, total + whole, wire + sent * whole
    return found


def bytes_of(shape: str) -> int:
    """Of an HLO shape, "f32[16,10]{1,0}" or several in parentheses."""
    total = 0
    for kind, sizes in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shape):
        width = re.search(r"\d+", kind)  # pred has none
        elements = math.prod(int(n) for n in sizes.split(",") if n)
        total += elements * (int(width[0]) if width else 8) // 8
    return total


def group_size(rest: str, text: str) -> int:
    """Devices that take part together: "{{0,1},{2,3}}", "[2,2]<=[4]" for two groups of two, or axes
    of a mesh, "mesh['a'=2,'b'=2] {'b'}"; where nothing is named, all."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(match[1])
    if (match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest)):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])  # an axis, or a part of one
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    if "replica_groups=" in rest and "replica_groups={}" not in rest:
        raise ValueError(f"replica_groups in a form unknown here: {rest}")
    partitions = re.search(r"num_partitions=(\d+)", text[:text.index("\n")])
    return int(partitions[1]) if partitions else 1


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Random tokens [B, 65] of a vocabulary of 256."""

    stand_in: ClassVar[None] = None

    def prepare(self) -> None:
        """Nothing to fetch."""

    def open(self, split: str) -> Arrays:
        tokens = np.random.default_rng(0).integers(256, size=(256, 65), dtype=np.int32)
        return Arrays(arrays={"tokens": tokens[:, :-1], "next": tokens[:, 1:]})

    def fingerprint(self) -> str:
        return "random"


@dataclass(frozen=True, kw_only=True)
class InParts(Classification):
    """Batch norm sees each of DEVICES equal parts of a batch by itself; the running statistics are
    the means of those of the parts."""

    def loss(self, variables: dict[str, Any], batch: Batch, key: Any, *,
             train: bool) -> tuple[Mean, Aux]:
        if not train:
            return super().loss(variables, batch, key, train=train)
        whole = super().loss
        parts = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), batch)
        mean, aux = jax.vmap(lambda part: whole(variables, part, key, train=True))(parts)
        mean, metrics = jax.tree.map(lambda x: x.sum(0), (mean, aux.metrics))
        return mean, Aux(metrics=metrics, mutable=jax.tree.map(lambda x: x.mean(0), aux.mutable))


def workload(model: str) -> Any:
    """The experiment, with rules for the axis "tensor". The images of `resnet_cifar`, 8 x 8, are
    augmented, and the Transformer has dropout."""
    into = {"mlp_digits": ("dense1/kernel", "dense2/kernel"),
            "resnet_cifar": ("conv1/kernel", "conv2/kernel"),
            "transformer": ("(query_key_value|dense1)/kernel", "(project|dense2)/kernel")}[model]
    between = (None, None) if model == "resnet_cifar" else ()
    rules = (Rule(path=into[0], axes=(*between, None, "tensor")),
             Rule(path=into[1], axes=(*between, "tensor", None)))
    if model == "transformer":
        experiment = Experiment(
            task=LanguageModel(model=Transformer(vocabulary=256, layers=2, width=128, heads=4,
                                             block=64, dropout=0.1)),
            data=Tokens(), optimizer=Adam(learning_rate=Constant(peak=1e-3)),
            steps=100, batch_size=16)
    else:
        experiment = files.build(files.load(files.experiments()[model]))
        data: Any = experiment.data
        if data.stand_in is not None:
            # Larger images take longer, and rounding grows faster on them, on one device too.
            data = dataclasses.replace(data.stand_in.data, size=8, augment=data.augment)
        experiment = dataclasses.replace(experiment, batch_size=32, data=data)
    task: Any = dataclasses.replace(
        experiment.task, compute_dtype="float64" if jax.config.jax_enable_x64 else "float32")
    return dataclasses.replace(experiment, task=task, rules=rules)


def child(arguments: dict[str, Any], processes: int) -> None:
    """Prints one row as a line of JSON, in the precision of the environment."""
    if processes > 1 and distributed.LAUNCHER not in os.environ:
        sys.exit(distributed.launch(processes, sys.argv[1:]))
    with distributed.joined():
        print(json.dumps(measure(**arguments)), flush=True)


def run(arguments: dict[str, Any], processes: int, x64: str) -> dict[str, Any]:
    """One row, measured in one process of its own or in several."""
    done = subprocess.run(
        [sys.executable, __file__, f"--child={json.dumps(arguments)}", f"--processes={processes}"],
        stdout=subprocess.PIPE, text=True, check=True, env={
            **os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": x64,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // processes}"})
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rows", type=Path, default=Path(os.devnull))
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        return child(flags.child, flags.processes)

    kept = dict(map(json.loads, flags.rows.read_text().splitlines() if flags.rows.exists() else ()))
    console = Console(width=max(160, Console().width))

    def row(model: str, x64: str, mesh: dict[str, int], mode: str = "jit",
            processes: int = 1) -> dict[str, Any]:
        arguments = {"model": model, "mesh": mesh, "steps": flags.steps, "mode": mode}
        key = json.dumps([arguments, processes, x64])
        if key not in kept:
            kept[key] = run(arguments, processes, x64)
            with flags.rows.open("a") as file:
                print(json.dumps([key, kept[key]]), file=file)
            console.print(key, kept[key]["losses"][-1], markup=False, highlight=False)
        return kept[key]

    names = ("model", "mesh", "state on a device", "float64", "float32, 1 step",
             f"float32, {flags.steps}", "collectives in a step", "MB", "MB sent")
    table = Table(*names, box=None, pad_edge=False, title_justify="left", title=(
        f"jax {jax.__version__}; greatest relative difference of the loss from that of one device, "
        f"over {flags.steps} steps; MB of the arrays that collectives work on, and that each "
        "device sends in rings. *: from one device that normalises each eighth of a batch; "
        "shifted: every parameter starts off by one unit of rounding"))
    for column in table.columns[3:]:
        column.justify = "right"
    others = []  # rows whose data differ
    for model in flags.models.split(","):
        for spec in ROWS:
            apart = model == "resnet_cifar" and spec.get("mode") == "pmap"
            reference: Any = PARTS if apart else ROWS[0]
            one, exact = row(model, "0", **reference), row(model, "1", **reference)
            single, double = row(model, "0", **spec), row(model, "1", **spec)
            name = label(**spec) + "*" * apart
            others += [f"{model} {name}"] * (
                one["data"] != single["data"] or exact["data"] != double["data"])
            counted = {k: n for k, (n, *_) in single["collectives"].items()}
            table.add_row(
                model if spec == ROWS[0] else "", name,
                f"{single['on_device'] / 1e6:.3f} of {single['size'] / 1e6:.3f} MB",
                f"{difference(double['losses'], exact['losses']):.0e}",
                f"{difference(single['losses'][:1], one['losses'][:1]):.0e}",
                f"{difference(single['losses'], one['losses']):.0e}",
                ", ".join(f"{n} {kind}" for kind, n in sorted(counted.items())) or "-",
                *(f"{sum(c[i] for c in single['collectives'].values()) / 1e6:.3f}" for i in (1, 2)))
    console.print(table)
    console.print("Example ids, augmented examples and numbers for dropout: the same bits in "
                  + (f"all rows but {', '.join(others)}" if others else "all rows"))


def label(mesh: dict[str, int], mode: str = "jit", processes: int = 1) -> str:
    """Of a row, in the table."""
    return " ".join([*(f"{k}={n}" for k, n in mesh.items() if n > 1 or len(mesh) == 1),
                     *([mode] if mode != "jit" else []),
                     *([f"{processes} processes"] if processes > 1 else [])])


def difference(losses: list[float], reference: list[float]) -> float:
    """The greatest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True))


if __name__ == "__main__":
    main()

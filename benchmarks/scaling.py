"""Whether many devices compute what one does, and what they send each other for it.

    python benchmarks/scaling.py [--steps=5] [--models=mlp_digits,resnet_cifar,transformer]

Virtual devices of one CPU, 1 to 8: the speed of these says nothing about real ones, and is not
shown. The numbers are: the losses of the first steps against those of one device, in float64 and in
float32; the collectives of a step, counted in the compiled program; and the bytes of parameters and
optimizer statistics on each device. docs/scaling.md sets the bytes beside the formulas.

XLA for CPU never forms a reduce-scatter: where
GPUs and TPUs have one, an all-reduce stands here, with up to twice the bytes.
"""

import argparse
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from jaxdl import config, parallel, profile, train
from jaxdl.data.source import Arrays
from jaxdl.experiment import Experiment, Mesh, Rule
from jaxdl.models.transformer import Transformer
from jaxdl.optimizer import Adam, Constant
from jaxdl.task import Aux, LossTask, Mean, named

DEVICES = 8
MODELS = ("mlp_digits", "resnet_cifar", "transformer")
MESHES = ({"data": 1}, {"data": 2}, {"data": 4}, {"data": 8}, {"data": 1, "fsdp": 8},
          {"data": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2})
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def measure(model: str, mesh: dict[str, int], steps: int) -> dict[str, Any]:
    """One row: the losses, the collectives and the bytes on a device."""
    train.FUSED = 1  # one step in a dispatch, so that a program is a step
    experiment = workload(model)
    experiment = dataclasses.replace(experiment, mesh=Mesh(**mesh), rules=(
        experiment.rules if "tensor" in mesh else ()))
    devices = parallel.arrange(experiment.mesh, experiment.rules)
    source = experiment.data.open("train")
    program = train.Program(experiment, source, devices, fresh=True)
    text = program.lowered().compile().as_text() or ""
    carry = program.init(program.knobs)

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

    losses = []
    for step in range(steps):
        inputs = next(iter(program.plan(step * experiment.batch_size, 1)))
        carry = program.advance(carry, [inputs])
        mean = carry.window.means["loss"]
        losses.append(float(mean.total) / float(mean.count))
        carry = train.Carry(carry.state, program.reset(carry.window))
    parameters = sum(x.nbytes for p, x in state.items() if p.startswith("params")) / wide
    return {"losses": losses, "collectives": collectives(text, profile.instructions(text)),
            "size": size, "on_device": on_device, "parameters": parameters,
            "devices": math.prod(mesh.values()), "jax": jax.__version__}


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
        return Arrays(arrays={"tokens": tokens}, transforms=())

    def fingerprint(self) -> str:
        return "random"


@dataclass(frozen=True, kw_only=True)
class NextToken(LossTask):
    """Mean cross-entropy of the next token."""

    model: Transformer

    def loss(self, variables: dict[str, Any], batch: Any, key: Any, *,
             train: bool) -> tuple[Mean, Aux]:
        tokens = batch["tokens"]  # [B, T + 1]
        logits, mutable = self.apply(self.model, variables, tokens[:, :-1], key=key, train=train)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])  # [B, T]
        return Mean.of(losses.mean(-1), batch["mask"]), Aux(mutable=mutable)


def workload(model: str) -> Any:
    """The experiment, without dropout or augmentation, with rules for the axis "tensor"."""
    into = {"mlp_digits": ("dense1/kernel", "dense2/kernel"),
            "resnet_cifar": ("conv1/kernel", "conv2/kernel"),
            "transformer": ("(query_key_value|dense1)/kernel", "(project|dense2)/kernel")}[model]
    between = (None, None) if model == "resnet_cifar" else ()
    rules = (Rule(path=into[0], axes=(*between, None, "tensor")),
             Rule(path=into[1], axes=(*between, "tensor", None)))
    if model == "transformer":
        experiment = Experiment(
            task=NextToken(model=Transformer(vocabulary=256, layers=2, width=128, heads=4,
                                             block=64)),
            data=Tokens(), optimizer=Adam(learning_rate=Constant(peak=1e-3)),
            steps=100, batch_size=16)
    else:
        experiment = config.build(config.load(config.experiments()[model]))
        stand_in = getattr(experiment.data, "stand_in", None)
        experiment = dataclasses.replace(
            experiment, batch_size=32, **({"data": stand_in.data} if stand_in else {}))
    task: Any = dataclasses.replace(
        experiment.task, compute_dtype="float64" if jax.config.jax_enable_x64 else "float32")
    return dataclasses.replace(experiment, task=task, rules=rules)


def child(model: str, steps: int) -> None:
    """Prints the rows of one model as lines of JSON, in the precision of the environment."""
    for mesh in MESHES:
        print(json.dumps(measure(model, mesh, steps)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        return child(flags.child, flags.steps)

    rows: dict[str, dict[str, list[Any]]] = defaultdict(dict)
    for model in flags.models.split(","):
        for x64 in ("0", "1"):
            done = subprocess.run(
                [sys.executable, __file__, f"--child={model}", f"--steps={flags.steps}"],
                stdout=subprocess.PIPE, text=True, check=True, env={
                    **os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": x64,
                    "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}"})
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            rows[model][x64] = [json.loads(line) for line in lines]

    names = ("model", "mesh", "state on a device", "float64", "float32, 1 step",
             f"float32, {flags.steps}", "collectives in a step", "MB", "MB sent")
    table = Table(*names, box=None, pad_edge=False, title_justify="left", title=(
        f"jax {next(iter(rows.values()))['0'][0]['jax']}; greatest relative difference of the loss "
        f"from that of one device, over {flags.steps} steps; MB of the arrays that collectives "
        "work on, and that each device sends in rings"))
    for column in table.columns[3:]:
        column.justify = "right"
    for model, both in rows.items():
        for mesh, single, double in zip(MESHES, both["0"], both["1"], strict=True):
            one, exact = both["0"][0]["losses"], both["1"][0]["losses"]
            counted = {k: n for k, (n, *_) in single["collectives"].items()}
            table.add_row(
                model if mesh == MESHES[0] else "", " ".join(f"{k}={n}" for k, n in mesh.items()),
                f"{single['on_device'] / 1e6:.3f} of {single['size'] / 1e6:.3f} MB",
                f"{difference(double['losses'], exact):.0e}",
                f"{difference(single['losses'][:1], one[:1]):.0e}",
                f"{difference(single['losses'], one):.0e}",
                ", ".join(f"{n} {kind}" for kind, n in sorted(counted.items())) or "-",
                *(f"{sum(c[i] for c in single['collectives'].values()) / 1e6:.3f}" for i in (1, 2)))
    Console(width=max(150, Console().width)).print(table)


def difference(losses: list[float], reference: list[float]) -> float:
    """The greatest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True))


if __name__ == "__main__":
    main()

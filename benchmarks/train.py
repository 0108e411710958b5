"""Training steps of jaxdl against plain JAX, Flax Linen, Flax NNX, Keras 3 and PyTorch.

    python benchmarks/train.py [--workloads mlp lstm ...] [--rounds=15] [--out=times.jsonl]

The ratio to the fastest PyTorch (eager or compiled, as it comes or with the settings of
jaxdl/allocator.py, "tuned") is the median over rounds of the ratio within a round, with a 95 %
bootstrap interval. Batches are random and lie in memory; losses are fetched once a round. Without
--torch-python and --keras-python, environments for them are made in ~/.cache/jaxdl/bench.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contest import (
    Result,
    arguments,
    chosen,
    compete,
    console,
    groups,
    interpreters,
    interval,
    machine,
    memory,
)
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Workload:
    """What is compared, and how fast it should be.

    Attributes:
      title: for the table.
      unit: what is counted.
      units: of them in a step.
      goal: (ratio that must be reached, ratio aimed at) of jaxdl, against the fastest PyTorch.
      memory: gigabytes that a contender takes at most, to know how many fit at once.
      reference: contenders that the goal is against; the fastest of them counts.
    """

    title: str
    unit: str
    units: float
    goal: tuple[float, float] | None
    memory: float
    reference: tuple[str, ...] = ("torch", "torch tuned", "torch compiled", "torch compiled tuned")


SEQUENTIAL = ("torch",)  # sweeps are against PyTorch as it comes, one trial after another
WORKLOADS = {
    "resnet18": Workload("ResNet-18, 32 x 32, batch 128", "images/s", 128, (0.87, 0.95), 2.5),
    "resnet20": Workload("ResNet-20, batch 128", "images/s", 128, (0.49, 0.65), 1.2),
    "gpt": Workload("GPT 6 x 384, T 256, batch 12, AdamW", "tokens/s", 12 * 256, (1.49, 1.6), 2.),
    "gpt_bf16": Workload("the same GPT in bfloat16", "tokens/s", 12 * 256, (0.6, 1.0), 2.),
    "mlp": Workload("MLP 784-256-128-10, batch 128", "steps/s", 1, (2.1, 2.3), 0.8),
    "lstm": Workload("LSTM 256, T 128, batch 64, Adam", "steps/s", 1, (0.7, 1.0), 1.),
    "mlp_sweep": Workload("8 trials of the MLP", "trial-steps/s", 8, (2.8, 3.0), 0.8, SEQUENTIAL),
    "cnn_sweep": Workload("8 trials of a CNN, batch 128", "trial-steps/s", 8, (1.85, 2.5), 1.,
                          SEQUENTIAL),
    "products": Workload("a dense layer of that GPT and its gradients", "GFLOP/s",
                         6 * 3072 * 384 * 1536 / 1e9, None, 0.8)}
JAX_GOAL = (1.2, 1.5)  # of the ResNets, against each other JAX contender
STEPS = {"jaxdl": ("with_jaxdl.py",), "jax": ("with_jax.py",), "linen": ("with_linen.py",),
         "nnx": ("with_nnx.py",), "keras": ("with_keras.py",), "torch": ("with_torch.py",),
         "torch compiled": ("with_torch.py", "--compile")}
BARE = {name: STEPS[name] for name in ("jax", "torch")}
SWEEPS = {"jaxdl sequential": ("with_jaxdl.py", "--form=sequential"),
          "jaxdl vmap": ("with_jaxdl.py", "--form=vmap"),
          "jax": ("with_jax.py",),
          "jax vmap": ("with_jax.py", "--vmap"), "torch": ("with_torch.py",)}


def contenders(workload: str) -> dict[str, tuple[str, ...]]:
    """The arguments of each contender's process. "NAME tuned" has the allocator's settings; those
    of jaxdl always have them, as a user of jaxdl does."""
    programs = (BARE if workload == "products" else SWEEPS if workload.endswith("_sweep")
                else STEPS)
    return {name + suffix: arguments for name, arguments in programs.items()
            for suffix in ([""] if name.startswith("jaxdl") else ["", " tuned"])}


def measure(workload: str, pythons: dict[str, str], flags: argparse.Namespace,
            records: Any) -> list[Result]:
    """All contenders of a workload, with their ratios.

    As many at once as fit into memory. If not all do, the first group has jaxdl and PyTorch, and
    each further one jaxdl and the PyTorch that was fastest.
    """
    everyone = contenders(workload)
    names = chosen(flags, list(everyone))
    reference = [n for n in names if n in WORKLOADS[workload].reference]
    ours = [n for n in names if n.startswith("jaxdl")]
    together = int(memory() * 0.8 / WORKLOADS[workload].memory)
    if together >= len(names):
        return related(compete(workload, {n: everyone[n] for n in names}, pythons, flags, records),
                       reference)
    first = compete(workload, {n: everyone[n] for n in (*ours, *reference)}, pythons, flags,
                    records)
    results = related(first, reference)
    always = [*ours, *(r.name for r in first if r is fastest(first, reference))]
    rest = [n for n in names if n not in (*ours, *reference)]
    for group in groups(rest, together, always):
        found = compete(workload, {n: everyone[n] for n in group}, pythons, flags, records)
        results += [r for r in related(found, reference) if r.name not in always]
    return sorted(results, key=lambda r: names.index(r.name))


def fastest(results: Sequence[Result], names: Sequence[str]) -> Result | None:
    """Of those with these names, by their median."""
    return min((r for r in results if r.name in names), key=lambda r: np.median(r.seconds),
               default=None)


def related(results: list[Result], reference: Sequence[str]) -> list[Result]:
    """The results of one contest, with their ratios to the fastest reference and to jaxdl."""
    peer = fastest(results, reference)
    ours = fastest(results, [r.name for r in results if r.name.startswith("jaxdl")])
    for result in results:
        if peer is not None:
            result.ratios = [b / a for a, b in zip(result.seconds, peer.seconds, strict=True)]
        if ours is not None:
            result.behind = [a / b for a, b in zip(result.seconds, ours.seconds, strict=True)]
    return results


def rows(workload: str, results: list[Result]) -> Iterator[tuple[str, ...]]:
    """The lines of the table."""
    facts = WORKLOADS[workload]
    peer = fastest(results, facts.reference)
    for result in results:
        step = float(np.median(result.seconds))
        ratio = between = faster = goal = ""
        if result.ratios:
            median, low, high = interval(result.ratios)
            ratio, between = f"{median:.2f}", f"{low:.2f} - {high:.2f}"
        if result is peer:
            ratio, between = "1", ""
        if result.name.startswith("jaxdl") and facts.goal:
            goal = "{:.2f} ({:.2f})".format(*facts.goal)
        elif result.behind:
            faster = f"{np.median(result.behind):.2f}"
            if workload.startswith("resnet") and not result.name.startswith("torch"):
                goal = "{:.1f} ({:.1f}) for jaxdl".format(*JAX_GOAL)
        yield (facts.title if result is results[0] else "", result.name,
               f"{facts.units / step:,.4g} {facts.unit}", f"{step * 1e3:,.4g}",
               f"{result.ready['first']:.1f}", ratio, between, faster, goal)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    flags = parser.parse_args()
    pythons = interpreters(flags, [name for w in flags.workloads
                                   for name in chosen(flags, list(contenders(w)))])
    table = Table("workload", "contender", "speed", "ms/step", "first step, s",
                  "ratio to fastest PyTorch", "95 % interval", "jaxdl is faster by",
                  "goal (target)", box=MARKDOWN)
    everything: list[Result] = []
    began = time.time()
    with (flags.out or Path(os.devnull)).open("a") as records:
        print(json.dumps({"command": sys.argv, "time": began}), file=records)
        for workload in flags.workloads:
            results = measure(workload, pythons, flags, records)
            everything += results
            for row in rows(workload, results):
                table.add_row(*row)
        print(json.dumps({"machine": machine(everything)}), file=records)
    Console(width=220).print(table)  # not wrapped: it is to be copied
    console.print(f"{flags.rounds} rounds, {(time.time() - began) / 60:.0f} minutes; "
                  f"{machine(everything)}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()

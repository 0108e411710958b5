"""The `preflight` command: what a run will cost, before its first step."""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxdl import compilation, cost, parallel
from jaxdl.data.loader import POSITIONS, ahead
from jaxdl.display import size
from jaxdl.errors import out_of_memory
from jaxdl.experiment import Experiment
from jaxdl.task import named
from jaxdl.train import Program, splits, validate

MEASURED = 2.0  # seconds of steps that are timed, about
DIGITS = 2      # that an estimated batch size is given to


def run(command: Any) -> int:
    """Prints the table."""
    from jaxdl import allocator, cli

    allocator.keep_memory()
    compilation.keep_programs()
    experiment, _ = cli.with_data(command, None, command.options.strict_data)
    table = Table("what", "value", box=None, pad_edge=False, show_header=False)
    with Console(stderr=True, highlight=False).status("reading the data") as status:
        for name, value in facts(experiment, command.options.largest_batch, status.update):
            table.add_row(name, value)
    shown = Console(highlight=False, markup=False)
    if not shown.is_terminal:
        shown.width = max(shown.width, 120)  # A file has no edge.
    shown.print(table)
    return 0


def facts(experiment: Experiment, largest: bool, tell: Any = lambda text: None
          ) -> Iterator[tuple[str, str]]:
    """(what, how much) of a run."""
    devices = parallel.arrange(experiment.mesh, experiment.rules)
    validate(experiment, devices)
    source = splits(experiment)("train")
    compilation.lookups()

    tell("tracing")
    began = time.perf_counter()
    program = Program(experiment, source, devices)
    lowered = program.lowered()
    traced = time.perf_counter() - began
    compilation.lookups()
    tell("compiling")
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    found, _ = compilation.lookups()
    yield "trace and lower", f"{traced:.1f} s"
    yield "compile", f"{seconds:.1f} s" + (", found in the cache" if found else "")

    mesh = {k: n for k, n in devices.mesh.shape.items() if n > 1}
    kind = next(iter(devices.mesh.devices.flat)).device_kind
    yield "devices", f"{devices.mesh.size} ({kind})" + (f", mesh {mesh}" if mesh else "")
    state = program.target.state
    if hasattr(state, "params"):
        params = named(state.params)
        split = sum(not x.sharding.is_fully_replicated for x in params.values())
        yield "parameters", (f"{sum(math.prod(x.shape) for x in params.values()):,} in "
                             f"{len(params)} arrays" + (f", {split} of them split over devices"
                                                        if split else ""))
    parts = {f.name: parallel.bytes_of(getattr(state, f.name)) for f in dataclasses.fields(state)}
    yield "state", f"{size(sum(parts.values()))}: " + ", ".join(
        f"{name} {size(count)}" for name, count in parts.items() if count > 1_000)
    yield "data on the devices", size(parallel.bytes_of(program.arrays))
    memory = compiled.memory_analysis()
    if memory is not None:
        yield "a step's memory", (f"arguments {size(memory.argument_size_in_bytes)}, temporaries "
                                  f"{size(memory.temp_size_in_bytes)}, output "
                                  f"{size(memory.output_size_in_bytes)} (of which "
                                  f"{size(memory.alias_size_in_bytes)} in place)")
    flops = cost.flops(program.traced.jaxpr)
    yield "work", f"{flops / 1e9:.4g} GFLOP a step of {experiment.batch_size:,} examples"
    if program.notes:
        yield "forms", "; ".join(sorted(program.notes))

    tell("measuring some steps")
    took = seconds_of_a_step(program)
    yield "speed", (f"{took * 1e3:,.4g} ms a step, {experiment.batch_size / took:,.0f} examples/s, "
                    f"{flops / took / 1e9:,.4g} GFLOP/s"
                    + (f"; {program.fused} steps in a dispatch" if program.fused > 1 else ""))
    yield "the whole run", (f"{duration(took * experiment.steps)} for {experiment.steps:,} steps, "
                            "without evaluations and saves")
    if largest:
        yield "largest batch", largest_batch(program, tell)


def seconds_of_a_step(program: Program) -> float:
    """Measured, after a first dispatch: the least of some, since others may use the machine."""
    carry, best, spent = program.init(program.knobs), math.inf, 0.
    steps = min(10_000, POSITIONS // program.experiment.batch_size)
    stream = ahead(program.source, program.plan(0, steps))
    for i in itertools.count():
        batches = list(itertools.islice(stream, program.fused))
        if spent > MEASURED or not batches:
            return best
        began = time.perf_counter()
        carry = jax.block_until_ready(program.advance(carry, batches))
        if i:
            took = time.perf_counter() - began
            best, spent = min(best, took / len(batches)), spent + took
    raise AssertionError


def duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def largest_batch(program: Program, tell: Any) -> str:
    """The batch size whose step takes the memory that is free: extrapolated from two sizes, and
    compiled once more to be confirmed. An estimate: what else the process needs will change."""
    free = cost.free_memory(program.devices)
    if free is None:
        return "not known: the device does not say how much memory it has"
    experiment = program.experiment
    unit = program.devices.batch_ways * getattr(experiment.task, "accumulate", 1)
    most = min(POSITIONS // experiment.steps, program.source.size)  # a run counts no more

    def memory(batch: int) -> int:
        tell(f"compiling for {batch:,} examples")
        return cost.memory_of(Program(dataclasses.replace(experiment, batch_size=batch),
                                      program.source, program.devices))

    small = experiment.batch_size
    a, b = cost.memory_of(program), memory(2 * small)
    slope = (b - a) / small  # bytes an example
    if slope <= 0:
        return f"more than {2 * small:,}: a step of it takes {size(b)}, as one of {small:,} does"
    guess = small + (free - a) / slope
    for shrink in (1., 0.8, 0.5):
        batch = int(min(guess * shrink, most))
        digits = 10 ** max(0, len(str(batch)) - DIGITS)
        batch = batch // digits * digits // unit * unit
        if batch < unit:
            break
        try:
            needed = memory(batch)
        except Exception as error:
            if out_of_memory(error) is None:
                raise
            continue
        if needed <= free:
            why = ", as many as the data has" if guess > most else ""
            return (f"about {batch:,}{why}: {size(needed)} of the {size(free)} that are free, "
                    f"{slope / 1e3:,.3g} kB an example")
    return f"less than {small:,}: {size(free)} are free, and {small:,} take {size(a)}"

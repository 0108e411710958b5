"""What a run will cost, before its first step is trained: seconds, operations, bytes, devices.

The step is compiled as the run will compile it (and is then found in the cache), its memory is what
the compiler says that it needs, and a few steps are run and thrown away to time them.
"""

import collections
import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.table import Table

from jaxdl import allocator, compilation, cost, display, parallel
from jaxdl.data.loader import ahead
from jaxdl.data.source import Source
from jaxdl.display import console, speed
from jaxdl.errors import out_of_memory
from jaxdl.train import Program, splits, validate

if TYPE_CHECKING:
    from jaxdl.cli import Command
    from jaxdl.experiment import Experiment

ENOUGH = 3.0  # seconds of steps that are timed


@dataclass(frozen=True)
class Compiled:
    """A step, and how it came to be.

    Attributes:
      program: of which it is.
      trace: seconds until JAX had traced it, the first batch read and the data on the device.
      lower: seconds until XLA had it.
      compile: seconds until it was compiled, or found.
      found: whether it was in the cache; None where there is none.
      memory: bytes on one device, by what they are for; {} where the compiler does not tell.
      reused: bytes of the arguments in whose place the output comes.
    """

    program: Program
    trace: float
    lower: float
    compile: float
    found: bool | None
    memory: dict[str, int]
    reused: int

    @property
    def needed(self) -> int:
        """Bytes on one device while the step runs."""
        return sum(self.memory.values()) - self.reused


def run(command: "Command") -> int:
    """Compiles the step of an experiment, and prints the table."""
    from jaxdl.cli import with_data

    allocator.keep_memory()
    compilation.keep_programs()
    options: Any = command.options
    experiment, _ = with_data(command, None, options.strict_data)
    devices = parallel.arrange(experiment.mesh, experiment.rules)
    validate(experiment, devices)
    source = splits(experiment)("train")
    with console.status("compiling the step"):
        compiled = compiled_step(experiment, source, devices)
    rows = [*of_devices(compiled.program), *of_compilation(compiled), *of_state(compiled.program),
            *of_memory(compiled)]
    with console.status("running a few steps"):
        rows += of_time(compiled.program)
    table = Table(command.name, "", box=None, pad_edge=False)
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    if options.largest_batch:
        with console.status("compiling for larger batches"):
            found = largest_batch(compiled, source)
        console.print(f"largest batch: {found}")
    return 0


def compiled_step(experiment: "Experiment", source: Source,
                  devices: parallel.Devices) -> Compiled:
    """The step as a run compiles it, timed."""
    began = time.perf_counter()
    program = Program(experiment, source, devices)
    traced = time.perf_counter()
    lowered = program.lowered()
    lower = time.perf_counter()
    compilation.lookups()  # since the last call
    compiled = lowered.compile()
    end = time.perf_counter()
    hits, misses = compilation.lookups()
    found = bool(hits) if hits + misses else None
    memory, told = {}, compiled.memory_analysis()
    if told is not None:
        memory = {"arguments": told.argument_size_in_bytes, "output": told.output_size_in_bytes,
                  "temporaries": told.temp_size_in_bytes,
                  "program": told.generated_code_size_in_bytes}
    return Compiled(program, traced - began, lower - traced, end - lower, found, memory,
                    told.alias_size_in_bytes if told is not None else 0)


Rows = Iterator[tuple[str, str]]


def of_devices(program: Program) -> Rows:
    """The devices, the mesh, and how the parameters are split over it."""
    mesh = program.devices.mesh
    device = mesh.devices.flat[0]
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    yield "devices", f"{mesh.size} x {device.device_kind} ({device.platform}); mesh {axes}"
    specs = collections.Counter[str]()
    arrays = jax.tree.leaves(getattr(program.target.state, "params", program.target.state))
    for x in arrays:
        specs[_split(x.sharding.spec)] += 1
    yield "parameters are", "; ".join(f"{spec}: {count:,} of {len(arrays):,} arrays"
                                      for spec, count in specs.most_common())


def of_compilation(compiled: Compiled) -> Rows:
    """Seconds to the compiled step, and its operations."""
    program = compiled.program
    cache = {True: "found in the cache", False: "not in the cache, from now on it is",
             None: "there is no cache"}[compiled.found]
    yield "trace", f"{compiled.trace:.2f} s, with the first batch and the data"
    yield "lower", f"{compiled.lower:.2f} s"
    yield "compile", f"{compiled.compile:.2f} s ({cache})"
    yield "steps in a dispatch", f"{program.fused:,}"
    yield "operations of a step", f"{cost.flops(program.traced.jaxpr) / 1e9:.4g} GFLOP"
    if program.notes:
        yield "forms", "; ".join(sorted(program.notes))


def of_state(program: Program) -> Rows:
    """How large the parts of the state are, over all devices."""
    state = program.target.state
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    count = sum(math.prod(x.shape) for name in ("params", "frozen")
                for x in jax.tree.leaves(fields.get(name)))
    if count:
        yield "parameters", f"{count:,}"
    sizes = {name: parallel.bytes_of(part) for name, part in fields.items()}
    yield "state", f"{display.size(sum(sizes.values()))}: " + ", ".join(
        f"{name} {display.size(size)}" for name, size in sizes.items() if size >= 1000)
    yield "data on the device", display.size(parallel.bytes_of(program.arrays))


def of_memory(compiled: Compiled) -> Rows:
    """What a step needs on one device, as the compiler says."""
    if not compiled.memory:
        yield "memory of a step", "the compiler does not tell"
        return
    parts = ", ".join(f"{name} {display.size(size)}" for name, size in compiled.memory.items()
                      if size)
    yield "memory of a step", (f"{display.size(compiled.needed)} on a device: {parts}; "
                               f"{display.size(compiled.reused)} of the output in the arguments' "
                               "place")


def of_time(program: Program) -> Rows:
    """Seconds of a step, by a few of them, and of the run without evaluations and saves."""
    experiment = program.experiment
    carry = program.init(program.knobs)
    stream = ahead(program.source, program.plan(0, experiment.steps),
                   program.devices.rows(experiment.batch_size))
    seconds, steps = [], []
    # The first dispatch also loads what the others find, and does not count.
    while len(seconds) < 2 or (sum(seconds[1:]) < ENOUGH and len(seconds) < 12):
        began = time.perf_counter()
        if not (batches := list(itertools.islice(stream, program.fused))):
            break
        carry = jax.block_until_ready(program.advance(carry, batches))
        seconds.append(time.perf_counter() - began)
        steps.append(len(batches))
    if len(seconds) > 1:
        seconds, steps = seconds[1:], steps[1:]
    each = sum(seconds) / sum(steps)
    yield "seconds of a step", (f"{each:.3g}, by {sum(steps):,} of them; "
                                f"{speed(experiment.batch_size / each)} examples a second")
    yield f"{experiment.steps:,} steps", f"{duration(each * experiment.steps)}, without " \
                                         "evaluations and saves"


def largest_batch(compiled: Compiled, source: Source) -> str:
    """The largest batch whose step fits the memory of a device: an estimate.

    What a step needs grows linearly with the batch. The line is drawn through this batch and one of
    twice its size; where it meets the limit, one more compilation looks whether that holds.
    """
    program = compiled.program
    experiment, devices, size = (program.experiment, program.devices,
                                 program.experiment.batch_size)
    limit, of = memory_limit(devices)
    if limit is None or not compiled.memory:
        return "unknown: neither the device nor the compiler tells of memory"
    ways = devices.batch_ways * getattr(experiment.task, "accumulate", 1)

    def needed(batch_size: int) -> int:
        other = dataclasses.replace(experiment, batch_size=batch_size)
        return compiled_step(other, shapes_of(source), devices).needed

    double = needed(2 * size)
    slope = max((double - compiled.needed) / size, 0.)
    most = max(source.size // ways * ways, size)
    guess = most if slope == 0 else int((limit - compiled.needed) / slope + size)
    guess = min(max(guess // ways * ways, ways), most)
    there = f"{display.size(limit)} {of}"
    try:
        found = needed(guess)
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error) is None:
            raise
        return f"about {guess:,} by a straight line, which its compiler refused; of {there}"
    if found > limit:  # It is no straight line: the chord up to here is nearer.
        steeper = (found - compiled.needed) / (guess - size) if guess != size else slope
        guess = max(int((limit - compiled.needed) / steeper + size) // ways * ways, ways)
        return f"about {guess:,} (estimate); more than that does not fit in {there}"
    whole = ", all examples that there are" if guess == most and most > size else ""
    return f"about {guess:,}{whole} (estimate: {display.size(found)} of {there})"


def shapes_of(source: Source) -> Source:
    """A source whose batches repeat one example and take no memory: only to compile."""
    rows = {} if source.arrays is not None else source.read(np.zeros(1, np.int32))
    other = copy.copy(source)
    for name, method in (
            ("index", lambda seed, position, size: np.zeros(size, np.int32)),
            ("read", lambda index: {k: np.broadcast_to(x, (len(index), *x.shape[1:]))
                                    for k, x in rows.items()})):
        object.__setattr__(other, name, method)  # It may be frozen.
    return other


def memory_limit(devices: parallel.Devices) -> tuple[int | None, str]:
    """(bytes that one device may take, what they are); None where it does not tell."""
    device = devices.mesh.local_devices[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"], "of the device"
    if device.platform != "cpu" or (free := cost.free_memory()) is None:
        return None, ""
    # The devices of one process share it.
    return free // len(devices.mesh.local_devices), "that are free here"


def duration(seconds: float) -> str:
    """Seconds in words: "3.2 s", "5 min", "2.5 h"."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _split(spec: Any) -> str:
    axes = [axis for axis in spec if axis is not None]
    return f"split over {' and '.join(map(str, axes))}" if axes else "copied to every device"

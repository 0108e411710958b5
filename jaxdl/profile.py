"""A trace of some steps of a run, and a table of the operations that cost most in it.

The trace lies in RUN/profile in two forms: XPlane, for XProf and TensorBoard's profile plugin, and
perfetto_trace.json.gz, which https://ui.perfetto.dev opens. The table names operations as the model
does: XLA's instructions are traced back to the module and the primitive that they came from.

Only imported where a profile is asked for.
"""

import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.table import Table

from jaxdl.display import console
from jaxdl.errors import UserError


def parse(text: str, end: int) -> range:
    """The steps START:STOP: from step START of the run, counted from 0, until step STOP.

    Args:
      text: as typed.
      end: the run's last step.

    Raises:
      UserError: it is no such range, it is empty, or it goes beyond the run.
    """
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
    if match is None:
        raise UserError(f"--profile={text}: expected START:STOP, two steps of the run, as in "
                        "--profile=10:20.")
    start, stop = map(int, match.groups())
    if start >= stop:
        raise UserError(f"--profile={text}: expected START below STOP.")
    if stop > end:
        raise UserError(f"--profile={text}: the run ends at step {end:,}, so STOP may be at most "
                        f"{end}.")
    return range(start, stop)


class Profile:
    """Traces some steps of a run; of several processes the first does.

    Args:
      steps: which.
      folder: where the trace goes.

    Attributes:
      program: the text of the compiled step, to be set before the trace ends.
    """

    def __init__(self, steps: range, folder: Path) -> None:
        self.steps, self.folder, self.program = steps, folder, ""
        self._tracing, self._began, self._waited = False, 0., 0.

    def check(self, first: int) -> None:
        """Raises a UserError if a run that goes on at step `first` is past the first of them."""
        if self.steps.start < first:
            raise UserError(f"--profile={self.steps.start}:{self.steps.stop}: this run continues "
                            f"from step {first:,}, so START must be at least {first}.")

    def start(self) -> None:
        """Begins the trace. The device must be idle."""
        if jax.process_index() == 0:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # It slows the loop, and hides the operations.
            jax.profiler.start_trace(self.folder, create_perfetto_trace=True,
                                     profiler_options=options)
            self._tracing, self._waited, self._began = True, 0., time.perf_counter()

    def stop(self) -> None:
        """Ends the trace and prints the table. The device must be idle."""
        if self._tracing:
            seconds = time.perf_counter() - self._began
            self._write()
            newest = max(self.folder.glob("plugins/profile/*/*.xplane.pb"),
                         key=lambda path: path.stat().st_mtime)
            names = Names(self.program)
            costs = operations(jax.profiler.ProfileData.from_file(str(newest)), names)
            console.print(table(*costs, names, self.steps, seconds),
                          width=None if console.is_terminal else 140)
            console.print(f"waiting for data {self._waited / seconds:.1%}; trace in {newest.parent}"
                          " (perfetto_trace.json.gz opens at https://ui.perfetto.dev)",
                          markup=False)

    def close(self) -> None:
        """Ends the trace of a run that was left amid these steps; there is no table then."""
        if self._tracing:
            self._write()
            console.print(f"--profile={self.steps.start}:{self.steps.stop}: the run was left before"
                          f" the last of these steps; what there is of the trace is in "
                          f"{self.folder}")

    def _write(self) -> None:
        self._tracing = False
        jax.profiler.stop_trace()

    def annotated(self, stream: Iterable[Any], advance: Callable[..., Any]) -> tuple[
            Iterator[Any], Callable[..., Any]]:
        """(stream, advance) of the loop, both marked in the trace."""
        def batches() -> Iterator[Any]:
            source = iter(stream)
            while True:
                began = time.perf_counter()
                with jax.profiler.TraceAnnotation("wait for data"):
                    try:
                        batch = next(source)
                    except StopIteration:
                        return
                self._waited += time.perf_counter() - began
                yield batch

        def dispatch(carry: Any, batches: list[Any]) -> Any:
            with jax.profiler.TraceAnnotation("dispatch", steps=len(batches)):
                return advance(carry, batches)

        return batches(), dispatch


# The text of a compiled program: XLA's HLO.


@dataclass(frozen=True)
class Instruction:
    """One line of HLO.

    Attributes:
      name: "fusion.12".
      shape: of the result, as written: "f32[128,10]{1,0}", or several in parentheses.
      opcode: "fusion", "dot", "all-reduce", ...
      operands: names of the instructions that it takes.
      calls: the computation that it calls, "" if none.
      op_name: where it came from: "jit(step)/jvp(ResNet)/head/dot_general", "" if unknown.
      computation: that it stands in.
      rest: of the line, from the operands on.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    calls: str
    op_name: str
    computation: str
    rest: str


def instructions(program: str) -> dict[str, Instruction]:
    """The instructions of an HLO text by name, in its order: a computation's root comes last."""
    found = {}
    computation = ""
    for line in program.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            computation = head[1]
            continue
        match = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)", line)
        if match is None:
            continue
        name, text = match.groups()
        shape, _, text = text.partition(" ") if text[0] != "(" else _parenthesised(text)
        opcode, _, rest = text.lstrip().partition("(")
        operands = _parenthesised(f"({rest}")[0]
        calls = re.search(r"(?:calls|to_apply)=%?([\w.-]+)", rest)
        op_name = re.search(r'op_name="([^"]*)"', rest)
        found[name] = Instruction(name, shape, opcode,
                                  tuple(re.findall(r"%([\w.-]+)", operands)),
                                  calls[1] if calls else "",
                                  op_name[1].replace("\\'", "'") if op_name else "",
                                  computation, rest)
    return found


def _parenthesised(text: str) -> tuple[str, str, str]:
    """("(...)", "", what follows) of a text that begins with a parenthesis."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return text[:match.end()], "", text[match.end():]
    return text, "", ""


HEAVY = ("convolution", "dot", "custom-call", "sort", "scatter", "gather", "reduce-window",
         "reduce")


class Names:
    """What the instructions of a program compute, in the words of the model."""

    def __init__(self, program: str) -> None:
        header = re.match(r"HloModule ([\w.-]+)", program)
        self.module = header[1] if header else ""
        self.found = instructions(program)
        self._inside: dict[str, list[Instruction]] = defaultdict(list)
        self._users: dict[str, list[Instruction]] = defaultdict(list)
        for instruction in self.found.values():
            self._inside[instruction.computation].append(instruction)
            for operand in instruction.operands:
                self._users[operand].append(instruction)

    def kind(self, name: str) -> str:
        """The opcode; of a fusion the costliest kind of those that it fuses."""
        instruction = self.found[name]
        if instruction.opcode != "fusion":
            return instruction.opcode
        inside = [i.opcode for i in self._inside[instruction.calls]]
        return next((h for h in HEAVY if h in inside), "elementwise")

    def source(self, name: str) -> tuple[str, str]:
        """(pass, operation): ("backward", "ResNet/stage1_block1/conv1/conv_general_dilated").

        XLA loses the origin of what it rewrites, above all of the weights' gradients and of the
        transposes before them. Those are named by the array that they update; anything else by what
        it takes: "of ...".
        """
        instruction = self.found[name]
        if not instruction.op_name:
            if target := self._updates(name):
                return "backward", f"gradient of {target}"
            for user in self._users[name]:
                if not user.op_name and (target := self._updates(user.name)):
                    return "backward", f"for the gradient of {target}"
        prefix = ""
        for _ in range(8):
            inside = [i.op_name for i in self._inside[instruction.calls] if i.op_name]
            if op_name := instruction.op_name or (inside[-1] if inside else ""):
                which, operation = described(op_name)
                return which, prefix + operation
            prefix = "of "
            before = [self.found[o] for o in instruction.operands if o in self.found]
            if not before:
                break
            instruction = before[0]
        return "", ""

    def _updates(self, name: str) -> str:
        """The path of the parameter whose gradient a convolution or product is, "" if none: the one
        of as many elements that the next operation takes too, itself or its statistics."""
        if self.kind(name) not in ("convolution", "dot"):
            return ""
        for user in self._users[name]:
            for operand in user.operands:
                origin = self.found.get(operand)
                while origin and origin.opcode in ("copy", "bitcast") and origin.operands:
                    origin = self.found.get(origin.operands[0])
                if (origin and origin.opcode == "parameter"
                        and re.search(r"params|opt_state", origin.op_name)
                        and _elements(origin.shape) == _elements(self.found[name].shape)):
                    return "/".join(re.findall(r"\['([^']+)'\]", origin.op_name))
        return ""


def _elements(shape: str) -> int:
    """Of an array, from its shape as HLO writes it."""
    match = re.match(r"\w+\[([\d,]*)\]", shape)
    return math.prod(int(n) for n in match[1].split(",") if n) if match else 0


def described(op_name: str) -> tuple[str, str]:
    """(pass, operation) of an op_name: the wrappers of jit, vmap and differentiation are taken off.

    >>> described("jit(step)/transpose(jvp(Net))/head/dot_general")
    ('backward', 'Net/head/dot_general')
    """
    first, several, _ = op_name.partition(":")  # XLA joins the names of what it joins
    parts = [p for p in first.split("/")
             if not re.fullmatch(r"p?jit\(.*\)|closed_call|checkpoint|while|body", p)]
    which = ("recomputed" if "rematted_computation" in parts else
             "backward" if "transpose(" in first else "forward" if "jvp(" in first else "")
    names = [re.sub(r"^(?:\w*\()+|\)+$", "", p) for p in parts if p != "rematted_computation"]
    return which, "/".join(n for n in names if n) + (", ..." if several else "")


# The trace.


@dataclass
class Cost:
    """Of one instruction, on all devices together: how often, and for how long."""

    calls: int = 0
    seconds: float = 0.


def operations(trace: Any, program: Names) -> tuple[dict[str, Cost], int]:
    """(cost by instruction, devices) of the program in a `jax.profiler.ProfileData`.

    The time of an operation is without that of others inside it, such as the body of a loop.

    On CPU the operations are on the threads of the host, and those of several threads overlap; on
    GPU and TPU each device has a plane of its own. (Written after XLA's format; only the traces of
    CPUs were at hand.)
    """
    planes = list(trace.planes)
    on_devices = [p for p in planes if re.match(r"/device:(?!CUSTOM)", p.name)]
    found: dict[str, Cost] = defaultdict(Cost)
    devices: set[Any] = set()
    for plane in on_devices or planes:
        lines = list(plane.lines)
        # A TPU's plane has the operations on one line; others show the same by step and module.
        for line in [x for x in lines if x.name == "XLA Ops"] or lines:
            events = []
            for event in line.events:
                stats = dict(event.stats)
                name = str(stats.get("hlo_op", ""))
                if not name and line.name == "XLA Ops":
                    name = event.name.split(" = ")[0].lstrip("%")
                if (name in program.found
                        and stats.get("hlo_module", program.module) == program.module):
                    events.append((event.start_ns, event.start_ns + event.duration_ns, name))
                    devices.add((plane.name, stats.get("device_ordinal", 0)))
            for name, seconds in _exclusive(events):
                found[name].calls += 1
                found[name].seconds += seconds
    return found, max(len(devices), 1)


def _exclusive(events: list[tuple[float, float, str]]) -> Iterator[tuple[str, float]]:
    """(name, seconds without the events inside) of (start, end, name) in ns on one line."""
    own: list[float] = []
    stack: list[int] = []
    events = sorted(events, key=lambda e: (e[0], -e[1]))
    for i, (start, end, _) in enumerate(events):
        while stack and events[stack[-1]][1] <= start:
            stack.pop()
        if stack:
            own[stack[-1]] -= min(end, events[stack[-1]][1]) - start
        own.append(end - start)
        stack.append(i)
    for (_, _, name), nanoseconds in zip(events, own, strict=True):
        yield name, nanoseconds / 1e9


def table(costs: dict[str, Cost], devices: int, names: Names, steps: range,
          seconds: float) -> Table:
    """The ten costliest operations: per step and device, and their share of all operations' time.

    Args:
      costs: what `operations` returns.
      devices: likewise.
      names: of the compiled step.
      steps: that were traced.
      seconds: that they took.
    """
    each = devices * len(steps)
    total = sum(c.seconds for c in costs.values())
    per_device = f" and device ({devices})" if devices > 1 else ""
    result = Table("operation", "pass", "kind", "in the trace", "calls", "ms", "share", box=None,
                   pad_edge=False, title_justify="left", caption_justify="left",
                   title=f"steps {steps.start:,} to {steps.stop:,}: "
                         f"{1e3 * seconds / len(steps):.3g} ms a step, {1e3 * total / each:.3g} ms "
                         f"of operations a step{per_device}")
    for column in result.columns[-3:]:
        column.justify, column.no_wrap = "right", True
    result.columns[0].overflow = "fold"
    costliest = sorted(costs, key=lambda name: -costs[name].seconds)
    for name in costliest[:10]:
        which, operation = names.source(name)
        cost = costs[name]
        result.add_row(operation or "-", which or "-", names.kind(name), name,
                       f"{cost.calls / each:.3g}", f"{1e3 * cost.seconds / each:.3g}",
                       f"{cost.seconds / total:.1%}")
    passes: dict[str, float] = defaultdict(float)
    for name, cost in costs.items():
        passes[names.source(name)[0] or "other"] += cost.seconds
    parts = ", ".join(f"{which} {passes[which] / total:.0%}"
                      for which in sorted(passes, key=lambda w: -passes[w]))
    shown = sum(costs[name].seconds for name in costliest[10:])
    result.caption = f"{max(len(costs) - 10, 0):,} more: {shown / max(total, 1e-12):.1%}; {parts}"
    return result

"""What ends a run whose loss or gradient is not finite, and where that began.

The state before such a step is gone, but a batch is a pure function of (seed, position), and a step
one of its operands: so the steps since the newest checkpoint are run again, up to the one before.
Then the step, as JAX traced it, is taken apart (`apart.py`): transforms, forward and backward pass
and update, of any task.
"""

import itertools
import json
import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import apart, distributed
from jaxdl.data.loader import ahead
from jaxdl.display import console
from jaxdl.errors import NotFinite, told
from jaxdl.process import Preempted
from jaxdl.task import Mean, named
from jaxdl.tracing import tracing

if TYPE_CHECKING:
    from jaxdl.train import Carry, Fit, Program, Window

PATIENCE = 2.0  # seconds until the search says what it does, and from then on between two lines


class NonFinite(Exception):
    """A step whose loss or gradient was NaN or infinite, or whose state is."""

    def __init__(self, step: int, names: str) -> None:
        super().__init__(step, names)
        self.step, self.names = step, names


def finite_or_raise(window: "Window") -> "Window":
    """The window, unless a step in it ended the run."""
    if window.halted < 0:
        return window
    values = {k: m.total for k, m in window.means.items()} | window.last
    bad = [name for name, x in values.items() if not np.isfinite(x).all()]
    raise NonFinite(int(window.halted), f"{', '.join(bad)} {'is' if len(bad) == 1 else 'are'}")


def explained(fit: "Fit", error: NonFinite) -> NotFinite:
    """The line that ends the run. What it names is also in RUN/nonfinite, with the batch."""
    traceback.clear_frames(error.__traceback__)  # They hold a state, and the search needs room.
    fit.checkpoints.wait()
    before = fit.checkpoints.steps()
    kept = f" The newest checkpoint is of step {before[-1]:,}." if before else ""
    advice = "A lower learning rate, --optimizer.clip or --nonfinite=skip may help."
    try:
        found = Search(fit).of(error.step)
        where = found.text
        if found.data:
            advice = "Mend such examples or leave them out; --nonfinite=skip passes them over."
    except Preempted as signal:
        where = f". Where it began was not found: {signal} came."
    except Exception as mistake:  # The search is more than was asked for; the rest must be told.
        where = f". Where it began was not found: {told(mistake)}."
    return NotFinite(f"{fit.run.folder}: step {error.step:,}: {error.names} not finite{where}{kept}"
                     f" {advice}")


@dataclass(frozen=True)
class Found:
    """What came of a search.

    Attributes:
      text: continues the line that ends the run.
      operand: what was not finite before the step: "state/PATH", "arrays/NAME", "inputs/NAME".
    """

    text: str
    operand: str = ""

    @property
    def data(self) -> bool:
        return self.operand.startswith(("arrays/", "inputs/"))


class Search:
    """Runs steps of a run again, to take one of them apart."""

    def __init__(self, fit: "Fit") -> None:
        self.fit, self.program, self.told = fit, fit.program, time.perf_counter()

    def of(self, step: int) -> Found:
        """Where that began which was noticed at this step."""
        if distributed.several():
            return Found(". Where it began is not looked for in several processes.")
        found = self.at(step)
        if step and (found is None or found.operand.startswith("state/")):
            # No step looks through what it makes of the state: that shows at the next.
            found = self.at(step - 1, found.operand if found else "state/") or found
        return found or Found(". Run again, the same steps are finite: a fault of the machine, or "
                              "code that does not give the same twice.")

    def at(self, step: int, result: str = "") -> Found | None:
        """Where it began in one step; None if the step cannot be run again, or is finite.

        Args:
          step: which.
          result: the array, or arrays, of the state after it to begin with: "state/PATH"; "" for
            the metrics.
        """
        program, carry = self.program, self.before(step)
        if carry is None:
            return None
        poll = self.fit.signals.poll
        inputs = next(ahead(program.source, program.plan(int(carry.state.seen), 1), None, poll))
        placed = program.devices.place(inputs, program.experiment.batch_size)
        self.tell(f"taking step {step:,} apart")
        batch = jax.jit(program.assembled)(carry.state.seen, program.knobs, program.arrays, placed)
        traced, operands, ways = program.traced, (carry.state, program.knobs, program.arrays,
                                                  placed), 1
        if program.experiment.parallel == "pmap":
            traced, operands, ways = per_device(program, operands)
        results = _paths(traced.out_info, ("state", "metrics"))
        means = tuple(f"metrics/{name}/" for name, m in traced.out_info[1].items()
                      if isinstance(m, Mean))
        wanted = [i for i, path in enumerate(results) if path.startswith(result or "metrics/")]
        wanted.sort(key=lambda i: (not results[i].startswith("metrics/loss/"),
                                   not results[i].startswith(means)))
        origin = apart.origin(traced.jaxpr, jax.tree.leaves(operands), wanted,
                              [path.startswith("metrics/") and path != "metrics/grad_norm"
                               for path in results], self.alive)
        if origin is None:
            halted = int(program.advance(carry, [inputs]).window.halted)
            return None if result or halted < 0 else Found(
                ". Compiled another way it is finite: it is at the edge of what its type holds.")
        already = "" if not result else f" one step before, at step {step:,},"
        if origin.operand is None:
            found = Found(f"{already} in {described(origin, inputs['index'], ways)}")
        else:
            operand = _paths(operands, ("state", "knobs", "arrays", "inputs"))[origin.operand]
            found = Found(f"{already} in {_operand(operand, inputs, program.arrays)}", operand)
        file = self.write(step, batch, found, origin.rows)
        return Found(f". It began{found.text}; the batch is in {file}, a table of the layers beside"
                     " it.", found.operand)

    def before(self, step: int) -> "Carry | None":
        """The carry before a step, from the newest checkpoint or a fresh start; None if that is of
        a later step."""
        fit, program = self.fit, self.program
        restored = fit.checkpoints.restore(program.target)
        carry = fit.fresh() if restored is None else restored[0]
        at = int(carry.state.step)
        if at > step:
            return None
        stream = ahead(program.source, program.plan(int(carry.state.seen), step - at), None,
                       fit.signals.poll)
        while batches := list(itertools.islice(stream, program.fused)):
            carry = program.advance(carry, batches)
            at = int(carry.state.step)  # It waits: what is told is true.
            self.tell(f"step {at:,} of {step:,} run again")
        return carry

    def write(self, step: int, batch: Mapping[str, Any], found: Found,
              rows: list[apart.Row]) -> Path:
        """The batch as it met the model, and the table. Neither is a pickle."""
        folder = self.fit.run.folder / "nonfinite"
        folder.mkdir(exist_ok=True)
        path = folder / f"step_{step}.npz"
        # NumPy knows no bfloat16, and would write it as bytes without a type.
        arrays: dict[str, Any] = {name: np.asarray(x.astype(jnp.float32) if x.dtype == jnp.bfloat16
                                                   else x) for name, x in batch.items()}
        np.savez(path, **arrays)
        table = ",\n".join(json.dumps(row) for row in layers(rows))
        head = json.dumps({"step": step, "began": found.text.strip()})
        path.with_suffix(".json").write_text(f'{head[:-1]}, "layers": [\n{table}\n]}}\n')
        return path

    def alive(self) -> None:
        self.fit.clock.alive()
        self.fit.signals.poll()

    def tell(self, what: str) -> None:
        """A line of progress, now and then."""
        self.alive()
        if time.perf_counter() - self.told > PATIENCE:
            console.print(f"not finite; looking for where it began: {what}")
            self.told = time.perf_counter()


def per_device(program: "Program", operands: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...], int]:
    """(the step, its operands, how many devices) where each device runs a program of its own: as
    one program, in which an axis of the batch stands for them."""
    *others, inputs = operands
    ways = program.devices.batch_ways
    inputs = jax.tree.map(lambda x: x.reshape(ways, -1, *x.shape[1:]), inputs)

    def step(*operands: Any) -> Any:
        with tracing(device_axis="data"):
            return program._advance(*operands)

    traced = jax.jit(jax.vmap(step, (None, None, None, 0), axis_name="data")).trace(*others, inputs)
    return traced, (*others, inputs), ways


def described(origin: apart.Origin, index: np.ndarray, ways: int = 1) -> str:
    """An operation that made it: its layer, its operands, its line of code, the examples.

    Args:
      origin: the operation.
      index: ids of the examples of the batch.
      ways: where the arrays have an axis for devices before the one for examples, its size.
    """
    row, wrong = origin.row, origin.wrong
    layer = f'layer "{row.layer}"' if row.layer else "the loss"
    place = {"forward": layer, "backward": f"the gradient of {layer}",
             "before": "what comes before the loss", "after": "what comes after the gradient"
             }.get(row.part, layer)
    turns = "".join(f", turn {turn + 1:,}{f' of {count:,}' if count else ''} of a loop"
                    for turn, count in origin.turns)
    of = " and ".join("nothing finite" if math.isnan(low) else f"[{low:.4g}, {high:.4g}]"
                      for low, high in origin.ranges)
    line = f" ({origin.line})" if origin.line else ""
    if ways > 1 and wrong.shape[:2] == (ways, len(index) // ways):
        wrong = wrong.reshape(len(index), *wrong.shape[2:])
    examples = ""
    if wrong.ndim and len(wrong) == len(index):
        examples = f", for {_examples(index[wrong.reshape(len(index), -1).any(1)], len(index))}"
    return (f"{place}{turns}: {row.operation}{f' of {of}' if of else ''} gives "
            f"{'NaN' if row.kind == 'nan' else 'an infinity'}{line}{examples}")


def layers(rows: list[apart.Row]) -> list[dict[str, Any]]:
    """The operations, those of one layer that follow each other in one row."""
    def number(x: float) -> float | str:  # JSON has no NaN.
        return float(f"{x:.6g}") if math.isfinite(x) else str(x)

    table = []
    for (layer, part), group in itertools.groupby(rows, lambda row: (row.layer, row.part)):
        inside = list(group)
        table.append({"layer": layer, "part": part, "operations": len(inside),
                      "largest_in": number(inside[0].taken),
                      "largest_out": number(inside[-1].given),
                      "finite": not any(row.kind for row in inside)})
    return table


def _operand(path: str, inputs: Mapping[str, Any], arrays: Any) -> str:
    """What was not finite before the step, in words."""
    kind, _, name = path.partition("/")
    if kind == "state":
        return f"the state before it: {name}"
    if kind == "knobs":
        return "the floats of the experiment"
    index = inputs["index"]
    values = np.asarray(inputs[name] if kind == "inputs" else arrays[name][index], np.float32)
    wrong = ~np.isfinite(values).reshape(len(index), -1)
    return (f'the data: {wrong.sum():,} of the values of "{name}", in '
            f"{_examples(index[wrong.any(1)], len(index))}")


def _examples(ids: np.ndarray, count: int) -> str:
    shown = ", ".join(map(str, ids[:3])) + (", ..." if len(ids) > 3 else "")
    return f"{len(ids):,} of {count:,} examples (id {shown})"


def _paths(tree: tuple[Any, ...], names: tuple[str, ...]) -> list[str]:
    """The paths of the leaves, from these names of the parts on."""
    return [f"{name}/{path}" for name, part in zip(names, tree, strict=True)
            for path in named(part)]

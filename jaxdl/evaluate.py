"""Evaluators turn a state into named numbers, on their own schedule.

`Evaluate` sums a task's metrics over a split. Each batch gives (total, count) pairs that honour the
mask of the padded last one; they are added up on the host in float64 and divided once, so neither
the batch size nor the number of devices changes a count, or more than the rounding of a total.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from jaxdl.config import Size
from jaxdl.data.loader import Inputs, ahead, ordered
from jaxdl.data.source import Source, assemble
from jaxdl.parallel import Devices
from jaxdl.retrace import once
from jaxdl.task import Task


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an evaluator may use beside the task and the state.

    Attributes:
      name: of the evaluator, in `Experiment.evals`.
      step: of the state.
      source: opens a split of the experiment's data; a split is opened once.
      batch_size: of the experiment.
      devices: where to compute.
      folder: the run's directory, for files; None if nothing is recorded.
      poll: called between batches; raises when the run must leave.
      compiled: compiled functions, kept between calls.
      knobs: the scalar floats of the experiment, as arguments of compiled functions.
      bound: the task with other values of them; None for functions that are compiled for its own.
    """

    name: str
    step: int
    source: Callable[[str], Source]
    batch_size: int
    devices: Devices
    folder: Any = None
    poll: Callable[[], None] = lambda: None
    compiled: dict[Any, Any] = field(default_factory=dict)
    knobs: Any = None
    bound: Callable[[Any], Task] | None = None


class Evaluator(Protocol):
    """Named numbers of a state, every so many steps and after the last.

    It may have a method `check(experiment)`, which raises a UserError before there is a run where
    something is missing: a library, say.
    """

    @property
    def every(self) -> int: ...

    def __call__(self, task: Task, state: Any, context: Context) -> Mapping[str, float]: ...


AHEAD = 8  # batches of an evaluation on their way to the device


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """The task's metrics over one split of the experiment's own data.

    Attributes:
      split: of the data, not augmented.
      every: steps between two evaluations; the last step is always evaluated.
      batch_size: None for the experiment's.
    """

    split: str = "test"
    every: Size = 1_000
    batch_size: Size | None = None

    def __call__(self, task: Task, state: Any, context: Context) -> Mapping[str, float]:
        sums = total(self.measure, task, state, context, split=self.split,
                     batch_size=self.batch_size or context.batch_size)
        return self.finish(sums, context)

    def measure(self, task: Task, state: Any, batch: Any) -> Any:
        """Sums over one batch: any pytree of arrays. Compiled."""
        return task.evaluate(state, batch)

    def finish(self, sums: Any, context: Context) -> Mapping[str, float]:
        """Numbers from the sums over the whole split (float64). On the host."""
        return {name: float(mean.value()) for name, mean in sums.items()}


def total(measure: Callable[[Task, Any, Any], Any], task: Task, state: Any, context: Context, *,
          split: str, batch_size: int) -> Any:
    """The sum over a split of `measure(task, state, batch)`, as float64 NumPy arrays."""
    results = each(measure, task, state, context, context.source(split), split, batch_size)
    return jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64), 0), *results)


def each(measure: Callable[[Task, Any, Any], Any], task: Task, state: Any, context: Context,
         source: Source, split: str, batch_size: int) -> list[Any]:
    """`measure(task, state, batch)` of each batch of a split's source, as NumPy arrays."""
    devices = context.devices
    batch_size = devices.round_up(batch_size)
    key = (context.name, split, batch_size)
    if key not in context.compiled:
        def run(state: Any, knobs: Any, arrays: Any, inputs: Inputs) -> Any:
            bound = task if context.bound is None else context.bound(knobs)
            return measure(bound, state, assemble(source, arrays, inputs, jax.random.key(0)))

        context.compiled[key] = (
            jax.jit(once(run, f"evals.{context.name}", ("state", "knobs", "arrays", "inputs")),
                    in_shardings=(None, None, devices.replicated, devices.batch),
                    out_shardings=devices.replicated),
            devices.replicate(source.arrays))
    run, arrays = context.compiled[key]
    results = []
    for inputs in ahead(source, ordered(source.size, batch_size), devices.rows(batch_size),
                        context.poll):
        context.poll()
        results.append(run(state, context.knobs, arrays, devices.place(inputs, batch_size)))
        # Each batch on its way holds its inputs. And of many programs that sum over virtual CPU
        # devices at once, each may have the threads that another one waits for.
        jax.block_until_ready(results[:-AHEAD][-1:])
    return jax.device_get(results)

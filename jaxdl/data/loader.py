"""Plans of batches, and reading them on the host in threads, ahead of the step."""

import collections
import contextlib
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from jaxdl import distributed
from jaxdl.data.source import Source
from jaxdl.errors import RunError, UserError, told

POSITIONS = (1 << 32) - 1  # the last that a run can count
PATIENCE = 0.1  # seconds between two looks at whether to leave, while a batch is waited for
FAREWELL = 1.0  # seconds for reads under way to end, before their threads are left behind

T = TypeVar("T")
Inputs = Mapping[str, Any]  # "index" and "mask", both [B], and what the host read for them


@dataclass(frozen=True)
class Plan:
    """Which examples each batch holds: a sequence that is computed, not stored."""

    length: int
    at: Callable[[int], Inputs]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Inputs:
        return self.at(index)


def shuffled(source: Source, seed: int, start: int, batch_size: int, steps: int) -> Plan:
    """The `steps` training batches from position `start` on."""
    if not 0 <= start <= start + steps * batch_size <= POSITIONS:
        raise UserError(f"{steps:,} steps of {batch_size:,} examples from example {start:,} on: a "
                        f"run counts from 0 to {POSITIONS:,} examples.")
    mask = np.ones(batch_size, np.float32)

    def at(i: int) -> Inputs:
        position = start + i * batch_size
        index = source.index(seed, position, batch_size)
        if np.shape(index) != (batch_size,):
            raise UserError(f"data: index() gave {np.size(index):,} ids for the {batch_size:,} "
                            f"examples from position {position:,} on.")
        return {"index": index, "mask": mask}

    return Plan(steps, at)


def ordered(size: int, batch_size: int) -> Plan:
    """The ids 0 ... size - 1 in batches of one size; the last is padded where its mask is 0."""

    def at(i: int) -> Inputs:
        index = np.arange(i * batch_size, (i + 1) * batch_size, dtype=np.int32)
        return {"index": np.minimum(index, size - 1), "mask": (index < size).astype(np.float32)}

    return Plan(-(-size // batch_size), at)


def ahead(source: Source, plan: Plan, rows: np.ndarray | None = None,
          poll: Callable[[], None] = lambda: None) -> Iterator[Inputs]:
    """The planned batches in order, with what `source.read` gives for them unless it holds arrays.

    What a read raises is raised where its batch would come.

    Args:
      source: what to read from.
      plan: the batches.
      rows: of each batch, those that are read; None for all.
      poll: called while a batch is waited for; raises when the run must leave. Of several processes
        none calls it: they leave together, after the same number of calls.
    """
    if rows is not None:
        plan = Plan(len(plan), lambda i, at=plan.at: {k: x[rows] for k, x in at(i).items()})
    if source.arrays is not None:
        yield from map(plan.at, range(len(plan)))
        return
    wait_for = (lambda: None) if distributed.several() else poll
    shapes, expected = getattr(source, "shapes", 1), list[dict[str, Any]]()
    with contextlib.closing(in_order(lambda i: _read(source, plan.at(i)), len(plan),
                                     wait_for)) as batches:
        for batch in batches:
            kinds = {name: (x.dtype, x.shape[1:]) for name, x in batch.items()}
            if kinds not in expected:
                if len(expected) >= shapes:
                    old = expected[-1]
                    name = next(n for n in {**old, **kinds} if old.get(n) != kinds.get(n))
                    raise UserError(f"data: the examples {_ids(batch['index'])}: {name!r} is "
                                    f"{_kind(kinds.get(name))}, and {_kind(old.get(name))} in "
                                    "those before.")
                expected.append(kinds)
            yield batch


def _read(source: Source, inputs: Inputs) -> Inputs:
    """A planned batch, read; what goes wrong in foreign code is told with the examples' ids."""
    try:
        return {**inputs, **source.read(inputs["index"])}
    except (UserError, RunError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"data: the examples {_ids(inputs['index'])} cannot be read: "
                        f"{told(error)}.") from error


def _ids(index: np.ndarray) -> str:
    return ", ".join(map(str, index[:3])) + (f" and {len(index) - 3} more" if len(index) > 3
                                             else "")


def _kind(kind: tuple[np.dtype, tuple[int, ...]] | None) -> str:
    return "missing" if kind is None else f"{kind[0]} {kind[1]}"


def in_order(function: Callable[[int], T], count: int,
             poll: Callable[[], None] = lambda: None) -> Generator[T, None, None]:
    """function(0), function(1), ... function(count - 1), computed by threads ahead of their use.

    Threads only: a fork after jax has started can deadlock, and a thread dies with its process. One
    that hangs in a read does not keep the process from leaving: it is left behind.

    Args:
      function: may raise; that comes where its result would.
      count: how many calls.
      poll: called now and then while a result is waited for; may raise.
    """
    size = min(16, 2 * (os.cpu_count() or 1), count)
    todo: queue.SimpleQueue[tuple[int, Future[T]] | None] = queue.SimpleQueue()
    left = threading.Event()

    def work() -> None:
        while (task := todo.get()) is not None and not left.is_set():
            i, future = task
            try:
                future.set_result(function(i))
            except BaseException as error:
                future.set_exception(error)

    threads = [threading.Thread(target=work, name=f"read-{i}", daemon=True) for i in range(size)]
    numbers, coming = iter(range(count)), collections.deque[Future[T]]()

    def order(some: int) -> None:
        for i in itertools.islice(numbers, some):
            coming.append(Future())
            todo.put((i, coming[-1]))

    try:
        for thread in threads:
            thread.start()
        order(size + 2)
        while coming:
            future = coming.popleft()
            order(1)
            while not future.done():
                wait([future], PATIENCE)
                poll()
            yield future.result()
    finally:
        left.set()
        for _ in threads:
            todo.put(None)
        deadline = time.monotonic() + FAREWELL
        for thread in threads:
            thread.join(max(0., deadline - time.monotonic()))

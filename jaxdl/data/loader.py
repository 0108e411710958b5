"""Plans of batches, and reading them on the host in threads, ahead of the step."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdl.data.source import Source

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
    mask = np.ones(batch_size, np.float32)
    return Plan(steps, lambda i: {
        "index": source.index(seed, start + i * batch_size, batch_size), "mask": mask})


def ordered(size: int, batch_size: int) -> Plan:
    """The ids 0 ... size - 1 in batches of one size; the last is padded where its mask is 0."""

    def at(i: int) -> Inputs:
        index = np.arange(i * batch_size, (i + 1) * batch_size, dtype=np.int32)
        return {"index": np.minimum(index, size - 1), "mask": (index < size).astype(np.float32)}

    return Plan(-(-size // batch_size), at)


def ahead(source: Source, plan: Plan, rows: np.ndarray | None = None) -> Iterator[Inputs]:
    """The planned batches in order, with what `source.read` gives for them unless it holds arrays.

    Threads only: a fork after jax has started can deadlock.

    Args:
      source: what to read from.
      plan: the batches.
      rows: of each batch, those that are read; None for all.
    """
    if rows is not None:
        plan = Plan(len(plan), lambda i, at=plan.at: {k: x[rows] for k, x in at(i).items()})
    if source.arrays is not None:
        yield from map(plan.at, range(len(plan)))
        return
    import grain

    def read(inputs: Inputs) -> Inputs:
        return {**inputs, **source.read(inputs["index"])}

    threads = min(16, 2 * (os.cpu_count() or 1))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)
    yield from grain.MapDataset.source(plan).map(read).to_iter_dataset(options)

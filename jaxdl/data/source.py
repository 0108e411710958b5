"""Where batches come from: a source is a pure function of (seed, position).

A position counts examples from the start of training. The order within an epoch is a permutation
that depends on (seed, epoch) alone, so any position is found at once; resuming replays nothing.
"""

import collections
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.errors import UserError, told

Array = jax.Array
KEPT = 16 << 20  # bytes of orders that are kept: those of many seeds, where trials have their own
Batch = dict[str, Any]  # "image", "label", ...; always "index" (example ids) and "mask", both [B]
Transform = Callable[[Batch, Array], Batch]  # (batch, one key for each example) -> batch


class Source(Protocol):
    """One split of a data set.

    Attributes:
      size: how many examples it has.
      arrays: arrays that live on the device, from which `read` gathers inside the compiled step;
        None when `read` runs on the host.

    A source whose batches have several shapes says how many, as `shapes`: the step is compiled for
    each. An id must then tell the shape of its batch too. One that mixes the end of an epoch with
    the next has a method `overlap(batch_size)`: of how many examples at most.
    """

    @property
    def size(self) -> int: ...

    @property
    def arrays(self) -> Mapping[str, Any] | None: ...

    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        """Ids of the examples at position ... position + batch_size, int32 [B]. On the host."""
        ...

    def read(self, index: Any) -> Batch:
        """The examples with these ids, untransformed."""
        ...

    def transform(self, batch: Batch, key: Array) -> Batch:
        """Augmentation and normalisation; pure, compiled. Random numbers are a function of `key`
        and of each example's id, never of its place in the batch or on a device."""
        ...


class Data(Protocol):
    """A data set as an experiment declares it; a frozen dataclass.

    It may have two methods more: `check(experiment)` raises a UserError where the rest of the
    experiment does not suit it (a model that lacks classes or tokens), before there is a run; and
    `files()` gives what a run shall keep of it, {name: bytes} (a tokenizer).
    """

    @property
    def stand_in(self) -> "StandIn | None": ...

    def prepare(self) -> None:
        """Makes sure that the data is on this machine, fetching it if need be; `DataMissing`, with
        the ways to bring it, if that cannot be done."""
        ...

    def open(self, split: str) -> Source:
        """The source of one split; "train" is augmented, every other only normalised."""
        ...

    def fingerprint(self) -> str:
        """A short hash that changes when the data does."""
        ...


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """What to train on where the declared data is absent and cannot be fetched.

    Attributes:
      data: the other data set.
      steps: steps that suit it, used unless --steps is given.
    """

    data: Data
    steps: int


_orders: collections.OrderedDict[tuple[int, int, int], np.ndarray] = collections.OrderedDict()
_ordering = threading.Lock()


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """A random order of `size` examples: [size] int32. Two epochs of each seed are kept.

    It sorts the raw output of Philox, which NumPy promises not to change (unlike that of
    `Generator.permutation`), so a run continues in the same order under a later NumPy.
    """
    key = seed, epoch, size
    with _ordering:
        if (kept := _orders.get(key)) is not None:
            _orders.move_to_end(key)
            return kept
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    order = np.argsort(raw, kind="stable").astype(np.int32)
    order.flags.writeable = False
    with _ordering:
        _orders[key] = order
        _orders.pop((seed, epoch - 2, size), None)
        while len(_orders) > 4 and sum(x.nbytes for x in _orders.values()) > KEPT:
            _orders.popitem(last=False)
    return order


def epoch_index(seed: int, position: int, batch_size: int, size: int) -> np.ndarray:
    """Ids at position ... position + batch_size; each epoch visits each example exactly once."""
    parts, end = [], position + batch_size
    while position < end:
        epoch, offset = divmod(position, size)
        part = permutation(seed, epoch, size)[offset:offset + end - position]
        parts.append(part)
        position += len(part)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def transformed(transforms: Sequence[Transform], batch: Batch, key: Array) -> Batch:
    """The batch after each transform, which gets one key for each example [B]."""
    for i, transform in enumerate(transforms):
        folded = jax.random.fold_in(key, i)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(folded, batch["index"])
        batch = transform(batch, keys)
    return batch


def assemble(source: Source, arrays: Any, inputs: Mapping[str, Any], key: Array) -> Batch:
    """The transformed batch: gathered here from arrays in memory, else already read by the host.

    Traced inside the compiled step.
    """
    batch: Batch = dict(inputs)
    if arrays is not None:
        batch |= {name: jnp.take(x, inputs["index"], axis=0, mode="clip")
                  for name, x in arrays.items()}
    return source.transform(batch, key)


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """A source of arrays in memory: gathered and augmented inside the compiled step.

    Attributes:
      arrays: by name, the first axis counts examples; images as uint8 [N, H, W, C].
      transforms: applied in order, inside the step.
    """

    arrays: Mapping[str, Any]
    transforms: tuple[Transform, ...] = ()

    @property
    def size(self) -> int:
        return len(next(iter(self.arrays.values())))

    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        return epoch_index(seed, position, batch_size, self.size)

    def read(self, index: Any) -> Batch:
        # mode="clip": ids are in range, so no code is compiled to fill in for those that are not.
        return {name: jnp.take(x, index, axis=0, mode="clip") if isinstance(x, jax.Array)
                else x[index] for name, x in self.arrays.items()}

    def transform(self, batch: Batch, key: Array) -> Batch:
        return transformed(self.transforms, batch, key)


@dataclass(frozen=True, kw_only=True)
class OnHost:
    """What sources have in common that are read on the host, in threads, ahead of the step.

    Attributes:
      transforms: applied in order, inside the step.
    """

    transforms: tuple[Transform, ...] = ()

    @property
    def arrays(self) -> None:
        return None

    def transform(self, batch: Batch, key: Array) -> Batch:
        return transformed(self.transforms, batch, key)


@dataclass(frozen=True, kw_only=True)
class Records(OnHost):
    """A source read example by example.

    Attributes:
      examples: random access to examples as dicts of equally shaped NumPy arrays, and their number.
    """

    examples: Sequence[Mapping[str, np.ndarray]]

    @property
    def size(self) -> int:
        return len(self.examples)

    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        return epoch_index(seed, position, batch_size, self.size)

    def read(self, index: np.ndarray) -> Batch:
        ids = [int(i) for i in index]
        # Some collections read many at once faster than one by one (the convention of TFDS).
        many = getattr(self.examples, "__getitems__", None)
        try:
            rows = many(ids) if many else [self._example(i) for i in ids]
        except (UserError, MemoryError):
            raise
        except Exception:
            for i in ids:  # To name the one that cannot be read.
                self._example(i)
            raise
        return _stacked(ids, rows)

    def _example(self, i: int) -> Mapping[str, np.ndarray]:
        try:
            return self.examples[i]
        except (UserError, MemoryError):
            raise
        except Exception as error:
            raise UserError(f"data: example {i} cannot be read: {told(error)}.") from error


def _stacked(ids: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> Batch:
    """The examples as one array for each name. Of two types NumPy would make a third unasked."""
    batch: Batch = {}
    for i, row in zip(ids, rows, strict=True):
        if row.keys() != rows[0].keys():
            both = [", ".join(map(repr, sorted(x))) or "nothing" for x in (row, rows[0])]
            raise UserError(f"data: example {i} has {both[0]}, and example {ids[0]} has {both[1]}.")
    for name in rows[0]:
        column = [np.asarray(row[name]) for row in rows]
        if len({(x.dtype, x.shape) for x in column}) > 1:
            i, x = next((i, x) for i, x in zip(ids, column, strict=True)
                        if (x.dtype, x.shape) != (column[0].dtype, column[0].shape))
            raise UserError(f"data: example {i}: {name!r} is {x.dtype} {x.shape}, and "
                            f"{column[0].dtype} {column[0].shape} in example {ids[0]}.")
        batch[name] = np.stack(column)
    return batch

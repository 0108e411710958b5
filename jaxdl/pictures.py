"""What a task shows of itself in a report: plain values, which report.py draws.

A task that has something to show has a method

    def pictures(self, state, material: Material) -> Iterator[Picture]

that yields `Images`, `Matrix`, `Points` and `Texts` one after the other. Samples of a generative
task or attention maps are `Images` or `Matrix` too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxdl.data.loader import Plan, ahead
from jaxdl.data.source import Batch, Source, assemble, permutation


@dataclass(frozen=True, kw_only=True)
class Images:
    """Pictures side by side.

    Attributes:
      title: of the section.
      images: [N, H, W, 1] or [N, H, W, 3] (red, green, blue), in [0, 1].
      captions: a short one for each, or none at all.
      heads: of the columns, where the pictures are a table, row by row; else ().
      note: what a reader should know, a sentence or two.
    """

    title: str
    images: np.ndarray
    captions: Sequence[str] = ()
    heads: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Counts of pairs, coloured by their share of the row.

    Attributes:
      title: of the section.
      values: [rows, columns].
      rows: names of the rows.
      columns: names of the columns.
      axes: what the rows are, and what the columns are.
      note: what a reader should know.
    """

    title: str
    values: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]
    axes: tuple[str, str]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Points in the plane, coloured by what they are.

    Attributes:
      title: of the section.
      places: [N, 2].
      groups: the name of each point's group.
      axes: names of the two axes.
      hover: a text for each point, or none at all.
      note: what a reader should know.
    """

    title: str
    places: np.ndarray
    groups: Sequence[str]
    axes: tuple[str, str]
    hover: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts, parts of which may be shaded.

    Attributes:
      title: of the section.
      texts: of each the parts, one after another, with how dark the ground of each is, in [0, 1].
      captions: a short one for each, or none at all.
      note: what a reader should know.
    """

    title: str
    texts: Sequence[Sequence[tuple[str, float]]]
    captions: Sequence[str] = ()
    note: str = ""


Picture = Images | Matrix | Points | Texts


@dataclass(frozen=True, kw_only=True)
class Material:
    """What there is to show.

    Attributes:
      source: opens a split of the experiment's data.
      split: that the run was evaluated on.
      batch_size: that fits the device.
      seed: of the experiment.
      names: of the classes, where the data knows them.
      data: as the experiment declares it, for what else it knows.
      tsne: whether to embed by t-SNE too, which takes longer.
      advance: called with the number of examples that were looked at.
    """

    source: Callable[[str], Source]
    split: str
    batch_size: int
    seed: int = 0
    names: Sequence[str] | None = None
    data: Any = None
    tsne: bool = False
    advance: Callable[[int], None] = lambda count: None

    def name(self, label: int) -> str:
        """The name of a class, else its number."""
        known = self.names is not None and 0 <= label < len(self.names)
        return str(self.names[label]) if known and self.names is not None else str(label)


def some(source: Source, count: int) -> np.ndarray:
    """Ids of `count` examples, or of all, in order: the same for each call."""
    return np.sort(permutation(0, 0, source.size)[:count])


def read(source: Source, ids: np.ndarray, batch_size: int, seed: int = 0) -> Iterator[Batch]:
    """The examples with these ids as the network sees them, transformed, in batches of one size;
    the last is padded where its "mask" is 0.

    Args:
      source: a split.
      ids: int [N].
      batch_size: of the batches, at most.
      seed: of random transforms.
    """
    size = min(batch_size, len(ids))

    def at(i: int) -> dict[str, np.ndarray]:
        places = np.arange(i * size, (i + 1) * size)
        return {"index": ids[np.minimum(places, len(ids) - 1)].astype(np.int32),
                "mask": (places < len(ids)).astype(np.float32)}

    transform = jax.jit(lambda arrays, inputs: assemble(source, arrays, inputs,
                                                        jax.random.key(seed)))
    for inputs in ahead(source, Plan(-(-len(ids) // size), at)):
        yield transform(source.arrays, dict(inputs))

"""A data set of which a few training examples have labels, for semi-supervised learning."""

import hashlib
from dataclasses import dataclass

import numpy as np

from jaxdl.config import Count, Fraction, Size
from jaxdl.data.around import Around
from jaxdl.data.source import Arrays, Source, epoch_index, permutation
from jaxdl.errors import UserError

PARTS = 1 << 20  # that a share is rounded to: whole numbers, so that no position is off by one


@dataclass(frozen=True, kw_only=True)
class FewLabels(Around):
    """Another data set with `labels` labelled training examples, as many of each class.

    A training batch has "labelled" [B] too, 1 or 0, and the label -1 where it is 0: no task can
    learn from what it should not know. Every other split is that of the data set inside.

    Attributes:
      data: the data set inside, kept in memory, with "label" int [N].
      labels: how many training examples keep their label, a multiple of the number of classes.
      share: part of every batch that is drawn from the labelled examples; the rest is drawn from
        all. None leaves the other examples out: what a supervised network has.
      draw: another number, other labelled examples.
    """

    labels: Size = 100
    share: Fraction | None = 0.25
    draw: Count = 0

    def open(self, split: str) -> Source:
        source = self.data.open(split)
        if split != "train":
            return source
        if source.arrays is None:
            raise UserError(f"FewLabels: {type(self.data).__name__} is read from disk; expected a "
                            "data set that is kept in memory.")
        arrays = {name: np.asarray(x) for name, x in source.arrays.items()}
        chosen = balanced(arrays["label"], self.labels, self.draw)
        transforms = getattr(source, "transforms", ())
        if self.share is None:
            return Arrays(arrays={name: x[chosen] for name, x in arrays.items()},
                          transforms=transforms)
        labelled = np.zeros(len(arrays["label"]), np.float32)
        labelled[chosen] = 1
        arrays |= {"label": np.where(labelled > 0, arrays["label"], -1), "labelled": labelled}
        return Mixed(arrays=arrays, transforms=transforms, chosen=chosen,
                     parts=round(self.share * PARTS))

    def fingerprint(self) -> str:
        text = f"{self.data.fingerprint()} {self.labels} {self.share} {self.draw}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def balanced(label: np.ndarray, count: int, draw: int = 0) -> np.ndarray:
    """Ids of `count` examples, in order, as many of each class in label [N]; -1 is no class."""
    classes = np.unique(label[label >= 0])
    each, left = divmod(count, max(len(classes), 1))
    if left or not each:
        near = [str(n) for n in (count - left, count - left + len(classes)) if n]
        raise UserError(f"labels={count}: expected a multiple of the {len(classes)} classes; the "
                        f"nearest: {' or '.join(near)}.")
    order = permutation(draw, 0, len(label))
    found = [order[label[order] == k][:each] for k in classes]
    if (least := min(map(len, found))) < each:
        raise UserError(f"labels={count}: {each} of each class, but a class has {least} examples; "
                        f"at most {least * len(classes)}.")
    return np.sort(np.concatenate(found))


@dataclass(frozen=True, kw_only=True)
class Mixed(Arrays):
    """Batches of which a part comes from some examples, and the rest from all.

    Before position p, floor(p * share) examples were drawn from the chosen ones and the others from
    all, each in epochs of its own. Both counts are functions of p: a run continues anywhere at
    once, and after a change of the batch size no example comes twice or is left out. Within a batch
    the order is random, so that micro-batches and devices get their parts of both.

    Attributes:
      chosen: ids of the examples that come more often.
      parts: their share of a batch, in parts of `PARTS`.
    """

    chosen: np.ndarray
    parts: int

    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        end = position + batch_size
        first, last = position * self.parts // PARTS, end * self.parts // PARTS
        own = seed + (1 << 32)  # no seed of a run, so the two orders have nothing in common
        few = self.chosen[epoch_index(own, first, last - first, len(self.chosen))] \
            if last > first else self.chosen[:0]
        rest = epoch_index(seed, position - first, batch_size - len(few), self.size) \
            if batch_size > len(few) else self.chosen[:0]
        both = np.concatenate([few, rest]).astype(np.int32)
        key = np.array([own, position], np.uint64)
        return both[np.argsort(np.random.Philox(key=key).random_raw(batch_size), kind="stable")]

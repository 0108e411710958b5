"""Pairs of texts, such as a sentence and its translation: padded rows, and batches of like lengths.

Batches have "source" int32 [B, S], "tokens" [B, T], which begins with "<end>" and then has the
target, and "next" [B, T], the target and then "<end>"; -1 is none, at the end of a row. A target
that is cut has no "<end>".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from jaxdl.config import Fraction, Size
from jaxdl.data.corpora import KJV, REINA_VALERA, verses
from jaxdl.data.debian import package
from jaxdl.data.source import Batch, OnHost, Source, epoch_index, permutation
from jaxdl.data.text import END, Texts, read_text, text_files
from jaxdl.data.tokenizers import BPE, NONE, Kind, Tokenizer
from jaxdl.errors import UserError, shown

POOL = 32  # batches of examples that are sorted by length together


@dataclass(frozen=True, kw_only=True)
class PairRows(OnHost):
    """A source of pairs.

    Of 32 batches of examples in the random order of an epoch, those of like length come together
    (and the batches in a random order), each padded to the least of `buckets` that they fit into.
    Example i of the k-th bucket from the last has the id i + N k: an id says all that `read` needs
    to know, and the ids of evaluation, 0 to N - 1, are padded to the last bucket.

    Attributes:
      source: tokens of each source, N of them.
      target: tokens of each target.
      buckets: (tokens of a source, tokens of a target and its "<end>"), increasing.
      tokenizer: of both sides, for evaluators that compare texts.
      texts: the pairs themselves, for the same.
    """

    source: Sequence[np.ndarray]
    target: Sequence[np.ndarray]
    buckets: tuple[tuple[int, int], ...]
    tokenizer: Tokenizer
    texts: Sequence[tuple[str, str]] = ()
    lengths: np.ndarray = field(init=False, repr=False)  # the bucket of each pair

    def __post_init__(self) -> None:
        sizes = np.array([(len(s), len(t) + 1) for s, t in zip(self.source, self.target,
                                                               strict=True)]).reshape(-1, 2)
        sizes = np.minimum(sizes, self.buckets[-1])  # What is longer is cut.
        fits = (sizes[:, None] <= np.array(self.buckets)).all(-1)  # [N, buckets]
        object.__setattr__(self, "lengths", fits.argmax(1))

    @property
    def size(self) -> int:
        return len(self.source)

    @property
    def shapes(self) -> int:
        return len(self.buckets)

    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        """Each example comes once in an epoch, but that the last pool of one reaches into the
        next."""
        size, parts, end = POOL * batch_size, [], position + batch_size
        while position < end:
            pool, offset = divmod(position, size)
            ids = epoch_index(seed, pool * size, size, self.size)
            ids = ids[np.argsort(self.lengths[ids], kind="stable")]
            order = permutation(seed + (1 << 34), pool, POOL)
            ids = ids.reshape(POOL, batch_size)[order].reshape(-1)
            parts.append(ids[offset:offset + end - position])
            position += len(parts[-1])
        index = np.concatenate(parts)
        code = len(self.buckets) - 1 - int(self.lengths[index].max())
        return (index.astype(np.int64) + self.size * code).astype(np.int32)

    def overlap(self, batch_size: int) -> int:
        """Examples of the next epoch that may come before the end of one."""
        return POOL * batch_size

    def read(self, index: np.ndarray) -> Batch:
        index = np.asarray(index)
        code = int(index.reshape(-1)[0]) // self.size
        wide, long = self.buckets[len(self.buckets) - 1 - code]
        end = self.tokenizer.special.index(END)
        source = np.full((index.size, wide), NONE, np.int32)
        tokens, following = (np.full((index.size, long), NONE, np.int32) for _ in range(2))
        for row, i in enumerate(index.reshape(-1) % self.size):
            given, wanted = self.source[i][:wide], np.append(self.target[i], end)[:long]
            source[row, :len(given)] = given
            tokens[row, 0], tokens[row, 1:len(wanted)] = end, wanted[:-1]
            following[row, :len(wanted)] = wanted
        found = {"source": source, "tokens": tokens, "next": following}
        return {name: x.reshape(*index.shape, -1) for name, x in found.items()}


@dataclass(frozen=True, kw_only=True)
class Pairs(Texts):
    """Pairs of texts; a kind of it defines `prepare` and `pairs`. One tokenizer serves both sides.

    Training pairs that are longer than `longest` are left out, since half a translation has no half
    of a source; those of "test" are cut, so that what is measured does not depend on it.

    Attributes:
      longest: tokens of a source, and of a target with its end.
      longest_target: tokens of a target with its end, where targets are shorter than sources, as
        summaries are; None for `longest`.
      cut_longer: cut longer training pairs too, where the beginning of a target is one of its own.
      buckets: how many lengths batches are padded to, evenly up to the longest.
      test: share of the pairs that are the split "test": drawn at random, but always the same.
      test_pairs: how many of these the split has; None for all.
    """

    tokenizer: Kind = BPE(vocabulary=4_000)
    longest: Size = 64
    longest_target: Size | None = None
    cut_longer: bool = False
    buckets: Size = 4
    test: Fraction = 0.05
    test_pairs: Size | None = None

    special: ClassVar[tuple[str, ...]] = (END,)
    cut: ClassVar[tuple[str, ...]] = (
        "stand_in", "longest", "longest_target", "cut_longer", "buckets", "test_pairs")

    def pairs(self) -> Sequence[tuple[str, str]]:
        """(source, target) of all pairs, in an order that never changes."""
        raise TypeError(f"{type(self).__name__} must define pairs().")

    def read(self) -> dict[str, list[str]]:
        """Of each split the sources and then the targets."""
        pairs = list(self.pairs())
        count = math.ceil(self.test * len(pairs))
        if not 0 < count < len(pairs):
            raise UserError(f"{type(self).__name__}: {len(pairs):,} pairs, of which test="
                            f"{self.test:g} leaves a split empty.")
        order = permutation(0, 0, len(pairs))
        chosen = {"train": np.sort(order[count:]), "test": np.sort(order[:count])}
        return {split: [pairs[i][side] for side in (0, 1) for i in ids]
                for split, ids in chosen.items()}

    def open(self, split: str) -> Source:
        self.check_split(split)
        texts, tokens = self.content.texts[split], self.content.tokens(split)
        half = len(texts) // 2
        kept, longest = np.arange(half), (self.longest, self.longest_target or self.longest)
        if split != "train":
            kept = kept[:self.test_pairs]
        elif not self.cut_longer:
            kept = np.array([i for i in kept if len(tokens[i]) <= longest[0]
                             and len(tokens[half + i]) < longest[1]], int)
            if not len(kept):
                raise UserError(f"{type(self).__name__}: longest={self.longest}, longest_target="
                                f"{self.longest_target} leaves no pair to train on.")
        steps = range(1, self.buckets + 1) if split == "train" else [self.buckets]
        wide, long = ([-(-most * i // self.buckets) for i in steps] for most in longest)
        return PairRows(source=[tokens[i] for i in kept], target=[tokens[half + i] for i in kept],
                        buckets=tuple(sorted({*zip(wide, long, strict=True)})),
                        tokenizer=self.content.tokenizer,
                        texts=[(texts[i], texts[half + i]) for i in kept])


@dataclass(frozen=True, kw_only=True)
class PairFile(Pairs):
    """Your own pairs: a UTF-8 file with a source, a tab and its target in each line.

    Attributes:
      path: of the file.
    """

    path: str

    def prepare(self) -> None:
        text_files(self.path)

    def pairs(self) -> Sequence[tuple[str, str]]:
        found = []
        for file in text_files(self.path):
            for number, line in enumerate(read_text(file).split("\n"), 1):
                parts = line.split("\t")
                if not line.strip():
                    continue
                if len(parts) != 2 or not parts[0].strip() or not parts[1].strip():
                    raise UserError(f"{file}: line {number:,} is {shown(repr(line))}: expected a "
                                    "source, a tab, and a target.")
                found.append((parts[0].strip(), parts[1].strip()))
        return found


@dataclass(frozen=True, kw_only=True)
class BibleVerses(Pairs):
    """31,084 verses in English (King James, 1769) and Spanish (Reina-Valera, 1909).

    Both are out of Debian's packages sword-text-kjv 14.3-1 and sword-text-sparv 2.60-1 (5.5 MB),
    which number verses alike.
    """

    def prepare(self) -> None:
        for one in (KJV, REINA_VALERA):
            package(*one)

    def pairs(self) -> Sequence[tuple[str, str]]:
        both = zip(verses(package(*KJV)), verses(package(*REINA_VALERA)), strict=True)
        return [(tidy(a), tidy(b)) for a, b in both if a and b]


def tidy(text: str) -> str:
    """Without the blanks that removed markup leaves before marks of punctuation."""
    for mark in ",.;:?!)":
        text = text.replace(f" {mark}", mark)
    return text.replace("( ", "(").replace("¿ ", "¿").replace("¡ ", "¡")


@dataclass(frozen=True, kw_only=True)
class ReversedWords(Pairs):
    """Words of the King James Bible and the same backwards: a task that is learned exactly.

    Attributes:
      longest: letters of a word, and of its reverse with its end.
    """

    longest: Size = 16
    test: Fraction = 0.1

    def prepare(self) -> None:
        package(*KJV)

    def pairs(self) -> Sequence[tuple[str, str]]:
        text = " ".join(verses(package(*KJV)))
        words = sorted({w for w in "".join(c if c.isalpha() else " " for c in text).lower().split()
                        if 3 <= len(w) < self.longest})
        return [(w, w[::-1]) for w in words]

"""Sentences with a label for each word: parts of speech, or names of people and places.

Batches have "tokens" and "labels", int32 [B, T]; -1 is none in both. A word's label belongs to its
first token, and its further tokens have none.
"""

import functools
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxdl.config import Fraction, Size
from jaxdl.data.source import Arrays, Source, permutation
from jaxdl.data.text import Texts, read_text, text_files
from jaxdl.data.tokenizers import NONE, Kind, Words, places_all
from jaxdl.errors import UserError, nearest, shown


class Sentence(NamedTuple):
    """Words, and the label of each."""

    words: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TaggedTexts(Texts):
    """What data sets of such sentences share. A kind of it defines `prepare` and `sentences`.

    Attributes:
      labels: names of the classes 0, 1, ...
      block: tokens of a row, T. Longer sentences are cut to train on, and an error to test on.
      test: share of the sentences that is the split "test": drawn at random, but always the same.
    """

    labels: tuple[str, ...]
    tokenizer: Kind = Words(vocabulary=8_000)
    block: Size = 64
    test: Fraction = 0.1

    cut: ClassVar[tuple[str, ...]] = ("stand_in", "block")

    def sentences(self) -> Sequence[Sentence]:
        """All of them, in an order that never changes."""
        raise TypeError(f"{type(self).__name__} must define sentences().")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return self.labels

    @functools.cached_property
    def parts(self) -> Mapping[str, Sequence[Sentence]]:
        """The sentences of each split."""
        return divided(self)

    def check(self, experiment: Any) -> None:
        super().check(experiment)
        self.check_classes(experiment, self.labels)

    def read(self) -> dict[str, list[str]]:
        return {split: [" ".join(s.words) for s in part] for split, part in self.parts.items()}

    def open(self, split: str) -> Source:
        self.check_split(split)
        part, number = self.parts[split], {label: i for i, label in enumerate(self.labels)}
        texts = self.content.texts[split]
        tokens, labels = np.full((2, len(part), self.block), NONE, np.int32)
        for i, (sentence, row, place) in enumerate(zip(
                part, self.content.tokens(split), places_all(self.content.tokenizer, texts),
                strict=True)):
            if len(row) > self.block and split != "train":
                raise UserError(f"{type(self).__name__}: {shown(repr(texts[i]))} has {len(row)} "
                                f"tokens, more than block={self.block}, and is to be tested.")
            row = row[:self.block]
            tokens[i, :len(row)] = row
            for label, first in zip(sentence.labels, firsts(sentence.words, place[:self.block]),
                                    strict=True):
                if first is not None:
                    labels[i, first] = number[label]
        return Arrays(arrays={"tokens": tokens, "labels": labels})

    def fingerprint(self) -> str:
        digest = hashlib.sha256(super().fingerprint().encode())
        for part in self.parts.values():
            digest.update(repr([s.labels for s in part]).encode())
        return digest.hexdigest()[:16]


def firsts(words: Sequence[str], places: np.ndarray) -> list[int | None]:
    """The first token of each word of a text, in which a blank stands after each; None where it has
    none.

    Args:
      words: of the text.
      places: where its tokens begin and end, [N, 2].
    """
    found, begin = list[int | None](), 0
    for word in words:
        inside = np.flatnonzero((places[:, 1] > begin) & (places[:, 0] < begin + len(word)))
        found.append(int(inside[0]) if len(inside) else None)
        begin += len(word) + 1
    return found


def divided(data: TaggedTexts) -> dict[str, list[Sentence]]:
    """The sentences of a data set, a share of them, drawn at random, as the split "test"."""
    every = data.sentences()
    order, count = permutation(0, 0, len(every)), math.ceil(data.test * len(every))
    if not 0 < count < len(every):
        raise UserError(f"{type(data).__name__}: {len(every):,} sentences, of which test="
                        f"{data.test:g} leaves a split empty.")
    return {"train": [every[i] for i in np.sort(order[count:])],
            "test": [every[i] for i in np.sort(order[:count])]}


@dataclass(frozen=True, kw_only=True)
class TaggedFile(TaggedTexts):
    """Your own sentences, UTF-8, as the tasks of CoNLL have them: a word and its label in each
    line, the first and the last of its columns, and an empty line after each sentence.

    Attributes:
      path: of the file.
      test_path: of the one that is the split "test"; None: a share of the sentences of `path`.
    """

    path: str
    test_path: str | None = None

    def prepare(self) -> None:
        for path in filter(None, (self.path, self.test_path)):
            text_files(path)

    @functools.cached_property
    def parts(self) -> Mapping[str, Sequence[Sentence]]:
        if self.test_path is None:
            return divided(self)
        found = {"train": self.sentences(), "test": self._sentences(self.test_path)}
        for split, sentences in found.items():
            if not sentences:
                raise UserError(f"TaggedFile: no sentence in the file of the split {split!r}.")
        return found

    def sentences(self) -> Sequence[Sentence]:
        return self._sentences(self.path)

    def _sentences(self, path: str) -> Sequence[Sentence]:
        found: list[Sentence] = []
        for file in text_files(path):
            words: list[tuple[str, str]] = []
            for number, line in enumerate([*read_text(file).split("\n"), ""], 1):
                cells: Any = re.split(r"[ \t]+", line.strip(" \t")) if line.strip() else ()
                if cells and cells[0] == "-DOCSTART-":  # of CoNLL 2003, between documents
                    continue
                if len(cells) == 1:
                    raise UserError(f"{file}: line {number:,} is {shown(repr(line))}: expected a "
                                    "word and its label.")
                if cells:
                    if cells[-1] not in self.labels:
                        raise UserError(
                            f"{file}: line {number:,}: {shown(cells[-1])!r} is none of "
                            f"{', '.join(map(repr, self.labels)) or 'the labels: none is named'}."
                            f"{nearest(cells[-1], self.labels)}")
                    words.append((cells[0], cells[-1]))
                elif words:
                    found.append(Sentence(*zip(*words, strict=True)))
                    words = []
        return found

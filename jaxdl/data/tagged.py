"""Sentences with a label for each word: parts of speech, or names of people and places.

Batches have "tokens" and "labels", int32 [B, T]; -1 is none in both. A word's label belongs to its
first token, and its further tokens have none.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxdl.config import Fraction, Size
from jaxdl.data.source import Arrays, Source, permutation
from jaxdl.data.text import Texts, read_text, text_files
from jaxdl.data.tokenizers import NONE, Kind, Words, encode_all
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
      block: tokens of a row, T; what is longer is cut.
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
        every = self.sentences()
        order = permutation(0, 0, len(every))
        count = int(np.ceil(self.test * len(every)))
        if not 0 < count < len(every):
            raise UserError(f"{type(self).__name__}: {len(every):,} sentences, of which test="
                            f"{self.test:g} leaves a split empty.")
        return {"train": [every[i] for i in np.sort(order[count:])],
                "test": [every[i] for i in np.sort(order[:count])]}

    def read(self) -> dict[str, list[str]]:
        return {split: [" ".join(s.words) for s in part] for split, part in self.parts.items()}

    def open(self, split: str) -> Source:
        self.check_split(split)
        part, number = self.parts[split], {label: i for i, label in enumerate(self.labels)}
        words = [*dict.fromkeys(word for s in part for word in s.words)]
        pieces = dict(zip(words, encode_all(self.content.tokenizer, words), strict=True))
        tokens, labels = np.full((2, len(part), self.block), NONE, np.int32)
        for i, sentence in enumerate(part):
            at = 0
            for word, label in zip(sentence.words, sentence.labels, strict=True):
                piece = pieces[word][:self.block - at]
                if len(piece):
                    tokens[i, at:at + len(piece)], labels[i, at] = piece, number[label]
                    at += len(piece)
        return Arrays(arrays={"tokens": tokens, "labels": labels})

    def fingerprint(self) -> str:
        digest = hashlib.sha256(super().fingerprint().encode())
        for part in self.parts.values():
            digest.update(repr([s.labels for s in part]).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class TaggedFile(TaggedTexts):
    """Your own sentences, UTF-8, as the tasks of CoNLL have them: a word and its label in each
    line, the first and the last of its columns, and an empty line after each sentence.

    Attributes:
      path: of the file.
    """

    path: str

    def prepare(self) -> None:
        text_files(self.path)

    def sentences(self) -> Sequence[Sentence]:
        found: list[Sentence] = []
        for file in text_files(self.path):
            words: list[tuple[str, str]] = []
            for number, line in enumerate([*read_text(file).split("\n"), ""], 1):
                cells: Any = line.split()
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

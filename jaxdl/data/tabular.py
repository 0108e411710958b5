"""Tables: rows of numbers and categories out of a CSV file, with a label and a group for each."""

import csv
import functools
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from jaxdl.config import Count, Fraction
from jaxdl.data.source import Arrays, Batch, Source, StandIn, permutation
from jaxdl.errors import DataMissing, UserError, nearest, shown

Row = tuple[int, dict[str, str]]  # its line in the file, and its cells by column


@dataclass(frozen=True, kw_only=True)
class Table:
    """A CSV file whose first line names the columns.

    Batches have "features" float32 [B, F], "label" int32 [B] and, if there is a group, "group"
    int32 [B]. Numbers are standardised by mean and deviation of the training rows; a category
    becomes a one of as many zeros as the training rows have categories in that column, and zeros
    alone if they lack it. The split is random, but always the same.

    Attributes:
      path: of the file.
      numeric: columns of numbers.
      categorical: columns of categories; what is missing is a category, too.
      label: the column that is to be predicted.
      labels: its values, those of class 0, 1, ...
      group: the column of the group that each row belongs to, None for none. It is no feature
        unless it is named among them.
      groups: its values, those of group 0, 1, ...
      reweigh: trains as if label and group were independent: `reweighing`.
      test: the part of the rows that is the split "test".
      validation: how many training rows to hold out, as split "validation".
      stand_in: what to train on where this data is absent.
    """

    path: str
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    label: str
    labels: tuple[str, ...]
    group: str | None = None
    groups: tuple[str, ...] = ()
    reweigh: bool = False
    test: Fraction = 0.2
    validation: Count = 0
    stand_in: StandIn | None = None

    splits: ClassVar = ("train", "test")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return self.labels

    def prepare(self) -> None:
        if not self.file().is_file():
            raise DataMissing(f"{type(self).__name__}: path={self.path}: there is no such file.")

    def file(self) -> Path:
        """The CSV file."""
        return Path(os.path.expanduser(self.path))

    def open(self, split: str) -> Source:
        known = ("train", "test", *(("validation",) if self.validation else ()))
        if split not in known:
            raise UserError(f"{type(self).__name__}: no split {split!r}, only "
                            f"{', '.join(map(repr, known))}.{nearest(split, known)}")
        arrays = self._arrays[split]
        if self.reweigh and split == "train":
            weight = reweighing(arrays["label"], arrays["group"], len(self.labels),
                                len(self.groups))
            return Arrays(arrays={**arrays, "weight": weight}, transforms=(Weigh(),))
        return Arrays(arrays=arrays)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"reweigh={self.reweigh}".encode())
        for split, arrays in self._arrays.items():
            for name, array in arrays.items():
                digest.update(f"{split} {name} {array.dtype.str} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    @functools.cached_property
    def _arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """The arrays of each split."""
        rows = list(self._rows())
        order, test = permutation(0, 0, len(rows)), int(self.test * len(rows))
        held = test + self.validation
        if held >= len(rows):
            raise UserError(f"{self.file()}: test={self.test} and validation={self.validation} "
                            f"leave nothing of the {len(rows)} rows.")
        ids = {"train": np.sort(order[held:]), "test": np.sort(order[:test])}
        if self.validation:
            ids["validation"] = np.sort(order[test:held])
        columns = [*(self._numbers(rows, name, ids["train"]) for name in self.numeric),
                   *(_one_hot(rows, name, ids["train"]) for name in self.categorical)]
        whole = {"features": np.concatenate(columns, 1).astype(np.float32),
                 "label": self._codes(rows, self.label, self.labels)}
        if self.group is not None:
            whole["group"] = self._codes(rows, self.group, self.groups)
        return {split: {name: x[chosen] for name, x in whole.items()}
                for split, chosen in ids.items()}

    def _rows(self) -> Iterator[Row]:
        """The rows; each has as many cells as there are columns."""
        if not self.numeric + self.categorical:
            raise UserError(f"{type(self).__name__}: name features, in numeric or categorical.")
        if self.reweigh and self.group is None:
            raise UserError(f"{type(self).__name__}: reweigh=True needs a group.")
        wanted = [*self.numeric, *self.categorical, self.label, *filter(None, [self.group])]
        yield from csv_rows(self.file(), wanted)

    def _numbers(self, rows: list[Row], name: str, train: np.ndarray) -> np.ndarray:
        """A standardised column: [N, 1]."""
        values = np.empty(len(rows))
        for i, (line, cells) in enumerate(rows):
            values[i] = finite_number(self.file(), line, name, cells[name])
        deviation = values[train].std()
        return ((values - values[train].mean()) / (deviation or 1.))[:, None]

    def _codes(self, rows: list[Row], name: str, known: tuple[str, ...]) -> np.ndarray:
        """The number of each value among the known ones: int32 [N]."""
        number = {value: i for i, value in enumerate(known)}
        for line, cells in rows:
            if cells[name] not in number:
                raise UserError(f"{self.file()}: line {line}, column {name!r}: "
                                f"{shown(cells[name])!r} is none of "
                                f"{', '.join(map(repr, known)) or 'the values: none is named'}."
                                f"{nearest(cells[name], known)}")
        return np.array([number[cells[name]] for _, cells in rows], np.int32)


def csv_rows(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    """The rows of a CSV file whose first line names the columns, with as many cells each; the
    columns `wanted` are there, once."""
    lines = None
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, skipinitialspace=True, strict=True)
            header = [cell.strip() for cell in next(lines, [])]
            for name in wanted:
                if name not in header:
                    raise UserError(f"{path}: there is no column {name!r}.{nearest(name, header)}")
                if header.count(name) > 1:
                    raise UserError(f"{path}: there is more than one column {name!r}.")
            for cells in lines:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise UserError(f"{path}: line {lines.line_num} has {len(cells)} cells, "
                                    f"expected {len(header)}.")
                yield lines.line_num, dict(zip(header, map(str.strip, cells), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: after line {lines.line_num if lines else 0}: expected CSV in "
                        f"UTF-8, but {error}.") from error


def finite_number(path: Path, line: int, column: str, cell: str) -> float:
    """The finite number in a cell."""
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}: line {line}, column {column!r}: {shown(cell)!r} is no finite "
                        "number.")
    return value


def _one_hot(rows: list[Row], name: str, train: np.ndarray) -> np.ndarray:
    """A column as indicators of the categories that the training rows have: [N, categories]."""
    values = np.array([cells[name] for _, cells in rows])
    return values[:, None] == np.unique(values[train])


def reweighing(label: np.ndarray, group: np.ndarray, labels: int, groups: int) -> np.ndarray:
    """P(label) P(group) / P(label, group) of each example, float32 [N]: so weighted, label and
    group are independent.

    Kamiran & Calders (2012), "Data preprocessing techniques for classification without
    discrimination", section 5.3 and algorithm 3.
    """
    both = np.zeros((labels, groups))
    np.add.at(both, (label, group), 1 / len(label))
    expected = both.sum(1)[label] * both.sum(0)[group]
    return (expected / both[label, group]).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Weigh:
    """Multiplies the mask by "weight": every mean over the batch, the loss among them, is then a
    weighted one."""

    def __call__(self, batch: Batch, keys: object) -> Batch:
        mask = batch["mask"] * batch["weight"]
        return {**{k: x for k, x in batch.items() if k != "weight"}, "mask": mask}

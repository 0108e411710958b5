"""Labels out of the votes of several annotators or rules that are often wrong or silent."""

import csv
import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jaxdl.config import Size
from jaxdl.data.around import Around
from jaxdl.data.source import Arrays, Source
from jaxdl.errors import DataMissing, UserError, shown

SILENT = -1


def majority(votes: np.ndarray, classes: int) -> np.ndarray:
    """The part of the votes [N, voters] that each class got: [N, classes].

    A vote of -1 is silence; an example without votes is of each class equally.
    """
    counts = _cast(votes, classes).sum(1)
    total = counts.sum(1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), 1 / classes)


@dataclass(frozen=True)
class Voters:
    """What `dawid_skene` found.

    Attributes:
      probabilities: of the true classes of the examples, [N, classes].
      prior: how frequent each class is, [classes].
      confusion: [voters, true class, vote]: how each votes where it does.
      likelihood: log-likelihood of the votes before each iteration.
    """

    probabilities: np.ndarray
    prior: np.ndarray
    confusion: np.ndarray
    likelihood: list[float]


def dawid_skene(votes: np.ndarray, classes: int, *, iterations: int = 100,
                tolerance: float = 1e-7, smoothing: float = 0.01) -> Voters:
    """True classes and each voter's confusion matrix by expectation-maximisation.

        prior_k = mean_i P_ik                        (equation 2.4)
        confusion_jkl = sum_i P_ik [vote_ij = l] / sum_i P_ik [vote_ij >= 0]      (2.3)
        P_ik = prior_k prod_j confusion_j,k,vote_ij / the same summed over k      (2.5)

    from P of the majority. Dawid & Skene (1979), "Maximum likelihood estimation of observer
    error-rates using the EM algorithm", section 3. Voters must err independently of each other,
    given the true class, and be right more often than not.

    Args:
      votes: [N, voters], classes 0 ... classes - 1, or -1 for silence.
      classes: how many there are.
      iterations: at most.
      tolerance: change of the mean log-likelihood at which to stop.
      smoothing: votes that each entry of a confusion matrix starts with.
    """
    cast = _cast(votes, classes)  # [N, voters, classes]
    p, likelihood = majority(votes, classes), []
    for _ in range(iterations):
        prior = p.mean(0)
        counts = np.einsum("ik,ijl->jkl", p, cast) + smoothing
        confusion = counts / counts.sum(2, keepdims=True)
        logs = np.log(np.maximum(prior, 1e-300)) + np.einsum("ijl,jkl->ik", cast,
                                                             np.log(confusion))
        whole = np.logaddexp.reduce(logs, axis=1, keepdims=True)
        p = np.exp(logs - whole)
        likelihood.append(float(whole.sum()))
        if len(likelihood) > 1 and likelihood[-1] - likelihood[-2] < tolerance * len(votes):
            break
    return Voters(p, prior, confusion, likelihood)


def _cast(votes: np.ndarray, classes: int) -> np.ndarray:
    """One-hot votes, zeros for silence: [N, voters, classes]."""
    return (votes[:, :, None] == np.arange(classes)).astype(np.float64)


def read_votes(path: Path, classes: int) -> np.ndarray:
    """A CSV without header: a line for each example, a column for each voter, whose cells are
    classes, or empty: int [N, voters]."""
    rows: list[list[int]] = []
    with path.open(newline="") as file:
        for number, cells in enumerate(csv.reader(file), 1):
            if rows and len(cells) != len(rows[0]):
                raise UserError(f"{path}: line {number} has {len(cells)} cells, line 1 has "
                                f"{len(rows[0])}.")
            rows.append([])
            for column, cell in enumerate(cells, 1):
                text = cell.strip()
                if text and not (text.isdecimal() and int(text) < classes):
                    raise UserError(f"{path}: line {number}, column {column}: {shown(text)!r} is "
                                    f"no class; expected 0 to {classes - 1}, or nothing.")
                rows[-1].append(int(text) if text else SILENT)
    if not rows:
        raise UserError(f"{path}: there are no votes.")
    return np.array(rows)


@dataclass(frozen=True, kw_only=True)
class Voted(Around):
    """Other data whose training labels are what its voters say: probabilities [B, classes].

    Attributes:
      data: the data set; its own training labels are not looked at.
      votes: a CSV without header, a line for each training example in their order, a column for
        each voter, whose cells are classes 0 ... classes - 1, or empty.
      classes: how many there are.
      model: "majority", or "dawid_skene", which finds out how far each voter is to be believed.
    """

    votes: str
    classes: Size
    model: Literal["majority", "dawid_skene"] = "dawid_skene"

    def prepare(self) -> None:
        super().prepare()
        if not self._path.is_file():
            raise DataMissing(f"Voted: votes={self.votes}: there is no such file.")

    def open(self, split: str) -> Source:
        source = self.data.open(split)
        if split != "train":
            return source
        if not isinstance(source, Arrays):
            raise UserError("Voted: the training examples must be in memory.")
        votes = read_votes(self._path, self.classes)
        if len(votes) != source.size:
            raise UserError(f"{self._path}: {len(votes)} lines for {source.size} training "
                            "examples.")
        labels = (majority(votes, self.classes) if self.model == "majority"
                  else dawid_skene(votes, self.classes).probabilities)
        return dataclasses.replace(source, arrays={**source.arrays,
                                                   "label": labels.astype(np.float32)})

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.data.fingerprint()} {self.classes} {self.model}".encode())
        digest.update(self._path.read_bytes())
        return digest.hexdigest()[:16]

    @property
    def _path(self) -> Path:
        return Path(os.path.expanduser(self.votes))

"""What others did: observations and actions of whole episodes, to be learned from."""

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from jaxdl import trajectories
from jaxdl.config import Fraction, Size
from jaxdl.data.source import Arrays, Source, StandIn, permutation
from jaxdl.errors import DataMissing, UserError, nearest


@dataclass(frozen=True, kw_only=True)
class Demonstrated(Arrays):
    """The steps of some episodes, in memory.

    Attributes:
      returns: the sum of the rewards of each episode, [episodes].
    """

    returns: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """What data sets of demonstrations share. A kind of it defines `prepare` and `read`.

    Batches have "observation" float32 [B, ...] and "action", int32 [B] or float32 [B, size], as the
    environment was given it. The split is random, but always the same, and of whole episodes: no
    two steps of one are in different splits.

    Attributes:
      episodes: of the split "train", at most; None for all that are not tested on.
      test: share of the episodes that is the split "test".
      stand_in: what to train on where this data is absent.
    """

    episodes: Size | None = None
    test: Fraction = 0.2
    stand_in: StandIn | None = None

    splits: ClassVar = ("train", "test")

    def prepare(self) -> None:
        """Makes sure that the data is on this machine; `DataMissing` where it is not."""
        raise TypeError(f"{type(self).__name__} must define prepare().")

    def read(self) -> trajectories.Trajectories:
        """All episodes, as `trajectories` has them."""
        raise TypeError(f"{type(self).__name__} must define read().")

    @functools.cached_property
    def all(self) -> trajectories.Trajectories:
        """All episodes."""
        return self.read()

    def open(self, split: str) -> Source:
        if split not in self.splits:
            raise UserError(f"{type(self).__name__}: no split {split!r}, only 'train', 'test'."
                            f"{nearest(split, self.splits)}")
        names = np.unique(self.all["episode"])
        order, test = permutation(0, 0, len(names)), int(self.test * len(names))
        end = None if self.episodes is None else test + self.episodes
        chosen = names[order[test:end] if split == "train" else order[:test]]
        if not len(chosen) or (end is not None and end > len(names)):
            raise UserError(f"{type(self).__name__}: episodes={self.episodes}, test={self.test}: "
                            f"there are {len(names)} episodes, {test} of them to test on.")
        kept = np.isin(self.all["episode"], chosen)
        action = self.all["action"][kept]
        whole = np.issubdtype(action.dtype, np.integer)
        number, reward = self.all["episode"][kept], self.all["reward"][kept]
        return Demonstrated(
            arrays={"observation": self.all["observation"][kept].astype(np.float32),
                    "action": action.astype(np.int32 if whole else np.float32)},
            returns=np.array([reward[number == n].sum(dtype=np.float64) for n in chosen]))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.episodes} {self.test}".encode())
        for name in trajectories.NEEDED:
            x = self.all[name]
            digest.update(f"{name} {x.dtype.str} {x.shape}".encode())
            digest.update(np.ascontiguousarray(x).data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class DemonstrationFile(Demonstrations):
    """Episodes in an npz file with the arrays that `jaxdl.trajectories` names.

    Attributes:
      path: of the file.
    """

    path: str

    def prepare(self) -> None:
        if not self._file().is_file():
            raise DataMissing(f"{type(self).__name__}: path={self.path}: there is no such file.")

    def read(self) -> trajectories.Trajectories:
        return trajectories.load(self._file())

    def _file(self) -> Path:
        return Path(os.path.expanduser(self.path))


@dataclass(frozen=True, kw_only=True)
class DemonstrationsOfRun(Demonstrations):
    """Episodes that the policy of a run plays, always the same.

    Attributes:
      run: its directory.
      step: of its checkpoint: "best", "last" or a number.
      count: episodes that it plays.
      drawn: whether its actions are drawn; else the likeliest is taken.
      limit: steps after which an episode is left, rounded up to hundreds.
    """

    run: str
    step: str = "best"
    count: Size = 25
    drawn: bool = False
    limit: Size = 10_000

    def prepare(self) -> None:
        folder = Path(os.path.expanduser(self.run))
        if not (folder / "config.json").is_file():
            raise DataMissing(f"{type(self).__name__}: run={self.run}: no run directory; train it: "
                              f"python launch.py --experiment={folder.name} --workdir={self.run}")

    def read(self) -> trajectories.Trajectories:
        from jaxdl import api

        experiment, state = api.state(self.run, self.step)
        if not hasattr(experiment.task, "env") or not hasattr(experiment.task, "act"):
            raise UserError(f"{type(self).__name__}: run={self.run}: "
                            f"{type(experiment.task).__name__} plays no environment.")
        return trajectories.played(experiment.task, state, count=self.count, drawn=self.drawn,
                                   limit=self.limit)

"""A series of numbers as windows: some values of the past, and those that come after them."""

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from jaxdl.config import Between, Count, Fraction, Size, leaves
from jaxdl.data import rdata
from jaxdl.data.debian import package
from jaxdl.data.source import Arrays, Source, StandIn
from jaxdl.data.tabular import csv_rows, finite_number
from jaxdl.data.text import no_file
from jaxdl.errors import UserError, nearest

Period = Annotated[float, Between(2)]  # counted in values; of less, nothing can be seen


@dataclass(frozen=True, kw_only=True)
class Windows(Arrays):
    """The windows of one part of a series, in memory, and what an evaluator needs beside them.

    Attributes:
      values: the whole series in its own units, float64 [N].
      trained: how many of them, from the first on, are the training part.
      first: where in `values` the target of each window begins.
      horizon: values of a target.
      season: values after which the series repeats itself, roughly.
      mean: of the training part; a normalised value is (value - mean) / deviation.
      deviation: of the training part.
    """

    values: np.ndarray
    trained: int
    first: np.ndarray
    horizon: int
    season: int
    mean: float
    deviation: float

    def targets(self) -> np.ndarray:
        """Of all windows, in the series' own units: [windows, horizon]."""
        return self.values[self.first[:, None] + np.arange(self.horizon)]


@dataclass(frozen=True, kw_only=True)
class Series:
    """What data sets of one series share. A kind of it defines `prepare` and `read`.

    Batches have "past" float32 [B, T, C] and "target" float32 [B, H], the H values after it.
    Channel 0 is the series itself; it and the target are normalised by mean and deviation of the
    training part alone. Two channels for each of `cycles` tell where in it a value stands.

    The series is split by time: its first values are trained on, those after them are the split
    "validation" if there is one, and the last ones are "test". All windows are made whose target
    lies wholly in its part; the past of a window may reach into the part before, which is known by
    then. They are in memory: 4 (T C + H) bytes for each value of the series.

    Attributes:
      past: values that a forecast is made from, T.
      horizon: values that are forecast, H.
      season: values after which the series repeats itself, roughly: 7 if they are of days.
      cycles: periods, counted in values, such as (7, 365.25); sine and cosine of each are channels.
      test: share of the values that is tested on.
      validation: how many values before those to hold out.
      stand_in: what to train on where this data is absent.
    """

    past: Size = 56
    horizon: Size = 14
    season: Size = 7
    cycles: tuple[Period, ...] = ()
    test: Fraction = 0.2
    validation: Count = 0
    stand_in: StandIn | None = None

    splits: ClassVar = ("train", "test")

    def prepare(self) -> None:
        """Makes sure that the data is on this machine; `DataMissing` if it cannot be fetched."""
        raise TypeError(f"{type(self).__name__} must define prepare().")

    def read(self) -> np.ndarray:
        """The series in its own units: float64 [N], finite."""
        raise TypeError(f"{type(self).__name__} must define read().")

    @functools.cached_property
    def values(self) -> np.ndarray:
        """The series in its own units: float64 [N]."""
        return self.read()

    def open(self, split: str) -> Source:
        known = ("train", "test", *(("validation",) if self.validation else ()))
        if split not in known:
            raise UserError(f"{type(self).__name__}: no split {split!r}, only "
                            f"{', '.join(map(repr, known))}.{nearest(split, known)}")
        whole = len(self.values)
        middle = whole - int(self.test * whole)
        trained = max(middle - self.validation, 0)
        begin, end = {"train": (0, trained), "validation": (trained, middle),
                      "test": (middle, whole)}[split]
        first = np.arange(max(begin, self.past), end - self.horizon + 1)
        if not len(first):
            raise UserError(f"{type(self).__name__}: of {whole:,} values the split {split!r} has "
                            f"{end - begin:,}, too few for a window of past={self.past} and "
                            f"horizon={self.horizon}.")
        own = self.values[:trained]
        mean, deviation = float(own.mean()), float(own.std()) or 1.
        normal = (self.values - mean) / deviation
        angles = [2 * np.pi * np.arange(whole) / period for period in self.cycles]
        channels = np.stack([normal, *(f(a) for a in angles for f in (np.sin, np.cos))], 1)
        past = first[:, None] - self.past + np.arange(self.past)
        return Windows(
            arrays={"past": channels.astype(np.float32)[past],
                    "target": normal.astype(np.float32)[first[:, None] + np.arange(self.horizon)]},
            values=self.values, trained=trained, first=first, horizon=self.horizon,
            season=self.season, mean=mean, deviation=deviation)

    def check(self, experiment: Any) -> None:
        """Raises a UserError for a model that forecasts another number of values."""
        for path, leaf in leaves(experiment.task, "task"):
            if path.endswith(".horizon") and leaf.value != self.horizon:
                raise UserError(f"{path}={leaf.value}: the windows of {type(self).__name__} have "
                                f"horizon={self.horizon}; expected the same.")

    def fingerprint(self) -> str:
        cut = (self.past, self.horizon, self.season, self.cycles, self.test, self.validation)
        return hashlib.sha256(repr(cut).encode() + self.values.tobytes()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class SeriesFile(Series):
    """A column of your own CSV file, whose first line names the columns; a value in each line, in
    the order of time and without gaps.

    Attributes:
      path: of the file.
      column: its name.
    """

    path: str
    column: str

    def prepare(self) -> None:
        file = self._file()
        if not file.is_file():
            raise no_file(type(self).__name__, file)

    def read(self) -> np.ndarray:
        self.prepare()
        file = self._file()
        return np.array([finite_number(file, line, self.column, cells[self.column])
                         for line, cells in csv_rows(file, [self.column])])

    def _file(self) -> Path:
        return Path(os.path.expanduser(self.path))


@dataclass(frozen=True, kw_only=True)
class Chicago(Series):
    """How many people entered the station Clark/Lake of Chicago's elevated railway on each day from
    2001-01-22 to 2016-08-28, in thousands: 5,698 values, from 0.6 to 26.1.

    Weekdays have some 17, Saturdays 5, Sundays 4; holidays look like Sundays. It is `ridership` of
    the data set Chicago in Debian's package r-cran-modeldata 1.1.0-1 (Kuhn & Johnson 2019, "Feature
    Engineering and Selection", section 4.1).
    """

    def prepare(self) -> None:
        self._folder()

    def read(self) -> np.ndarray:
        base = self._folder() / "usr/lib/R/site-library/modeldata/data/Rdata"
        return np.asarray(rdata.load(base, "Chicago")["ridership"], np.float64)

    @staticmethod
    def _folder() -> Path:
        return package("r-cran-modeldata_1.1.0-1_all", "r/r-cran-modeldata",
                       "66c2e08bb4bf695d972b1e72ea44d5af9ada3c42841793d3871017f7b896bf95")

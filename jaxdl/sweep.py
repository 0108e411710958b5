"""Sweeps as values: which experiments to compare, declared beside the one that they vary.

    def sweep():
        return grid(**{"optimizer.learning_rate.peak": log_space(0.01, 1.0, 8), "seed": range(3)})

A trial is a mapping from dotted paths to values: leaves, or whole dataclasses. `grid`, `zip_`,
`random` and `chain` return lists of trials, which are plain Python and may be edited as such.
`optuna_` returns a search, whose trials depend on the results of earlier ones. `Sweep` says more
about how either is run. Imports no jax.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

import numpy as np

from jaxdl.config import Between, Size
from jaxdl.errors import UserError, nearest

Trial = Mapping[str, Any]
SAMPLERS = ("tpe", "random", "gp")


class Distribution(Protocol):
    """Of one leaf, in a random or an Optuna sweep."""

    def draw(self, chance: np.random.Generator) -> Any: ...


@dataclass(frozen=True)
class Uniform:
    """A float between two bounds, or the logarithm of one."""

    low: float
    high: float
    log: bool = False

    def draw(self, chance: np.random.Generator) -> float:
        if self.log:
            return math.exp(chance.uniform(math.log(self.low), math.log(self.high)))
        return float(chance.uniform(self.low, self.high))


@dataclass(frozen=True)
class Integers:
    """A whole number from low to high, both included."""

    low: int
    high: int
    log: bool = False

    def draw(self, chance: np.random.Generator) -> int:
        if self.log:
            value = math.exp(chance.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5)))
            return min(max(round(value), self.low), self.high)
        return int(chance.integers(self.low, self.high + 1))


@dataclass(frozen=True)
class Choice:
    """One of these values."""

    values: tuple[Any, ...]

    def draw(self, chance: np.random.Generator) -> Any:
        return self.values[int(chance.integers(len(self.values)))]


def uniform(low: float, high: float) -> Uniform:
    """A float from low to high, each equally likely."""
    _ordered("uniform", low, high)
    return Uniform(float(low), float(high))


def log_uniform(low: float, high: float) -> Uniform:
    """A float from low to high, each order of magnitude equally likely; low is positive."""
    _ordered("log_uniform", low, high, positive=True)
    return Uniform(float(low), float(high), log=True)


def integers(low: int, high: int, *, log: bool = False) -> Integers:
    """A whole number from low to high, both included."""
    _ordered("integers", low, high, positive=log)
    return Integers(low, high, log)


def choice(*values: Any) -> Choice:
    """One of these values, each equally likely."""
    if not values:
        raise UserError("choice(): expected at least one value.")
    return Choice(values)


def _ordered(name: str, low: float, high: float, positive: bool = False) -> None:
    if not low <= high or (positive and low <= 0) or not math.isfinite(high - low):
        raise UserError(f"{name}({low}, {high}): expected "
                        f"{'positive ' if positive else ''}numbers, the lower one first.")


def log_space(low: float, high: float, count: int) -> list[float]:
    """`count` floats from low to high, both included, with equal ratios."""
    _ordered("log_space", low, high, positive=True)
    if count < 1:
        raise UserError(f"log_space({low}, {high}, {count}): expected at least one number.")
    return [float(f"{x:.6g}") for x in np.geomspace(low, high, count)] if count > 1 else [low]


# Lists of trials.


def grid(**axes: Iterable[Any]) -> list[Trial]:
    """Every combination of the values: grid(**{"seed": range(3), "batch_size": (64, 128)}) is six
    trials. The last axis varies fastest."""
    lists = {path: _listed("grid", path, values) for path, values in axes.items()}
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def zip_(**axes: Iterable[Any]) -> list[Trial]:
    """The first values of all axes together, the second ones, and so on."""
    lists = {path: _listed("zip_", path, values) for path, values in axes.items()}
    if len(sizes := {path: len(values) for path, values in lists.items()}) and len(
            set(sizes.values())) > 1:
        raise UserError("zip_: expected as many values for each path, got " + ", ".join(
            f"{n} for {path}" for path, n in sizes.items()) + ".")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def random(n: int, *, draws: int = 0, **axes: Distribution) -> list[Trial]:
    """`n` trials drawn independently: random(30, **{"optimizer.clip": log_uniform(0.1, 10)}).

    Args:
      n: how many.
      draws: another number, other trials. (`seed` is a path of the experiment.)
      axes: the distribution of each path.
    """
    _check_space("random", n, axes)
    chance = np.random.Generator(np.random.Philox(draws))
    return [{path: axis.draw(chance) for path, axis in axes.items()} for _ in range(n)]


def chain(*parts: Iterable[Trial]) -> list[Trial]:
    """The trials of several lists, one after another."""
    return [trial for part in parts for trial in part]


def repeat(trials: Iterable[Trial], seeds: int) -> list[Trial]:
    """Each trial with the seeds 0 ... seeds - 1; the results then show mean and deviation."""
    trials = list(trials)
    if any("seed" in trial for trial in trials):
        raise UserError("repeat: the trials vary the seed already.")
    if seeds < 1:
        raise UserError(f"repeat(..., {seeds}): expected at least one seed.")
    return [{**trial, "seed": seed} for trial in trials for seed in range(seeds)]


def _listed(name: str, path: str, values: Iterable[Any]) -> list[Any]:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise UserError(f"{name}({path}={values!r}): expected a list of values.")
    return list(values)


def _check_space(name: str, n: int, axes: Mapping[str, Any]) -> None:
    if type(n) is not int or n < 1:
        raise UserError(f"{name}({n!r}, ...): expected the number of trials first.")
    for path, axis in axes.items():
        if not isinstance(axis, (Uniform, Integers, Choice)):
            raise UserError(f"{name}: {path}={axis!r}: expected uniform(), log_uniform(), "
                            "integers() or choice().")


# What is more than a list.


@dataclass(frozen=True, kw_only=True)
class Search:
    """Trials that a sampler of Optuna chooses, each from the results of those before.

    Attributes:
      n: how many.
      space: the distribution of each path.
      sampler: "tpe", "random" or "gp".
      draws: another number, other trials.
      together: how many are chosen before the results of the first are known: the trials that are
        trained at once.
    """

    n: int
    space: Mapping[str, Distribution]
    sampler: str = "tpe"
    draws: int = 0
    together: int = 1


def optuna_(n: int, *, sampler: str = "tpe", draws: int = 0, together: int = 1,
            **space: Distribution) -> Search:
    """`n` trials that Optuna chooses: optuna_(30, sampler="tpe", **{"seed": ..., ...}).

    Args: those of `Search`.
    """
    _check_space("optuna_", n, space)
    if sampler not in SAMPLERS:
        raise UserError(f"optuna_(sampler={sampler!r}): expected one of {', '.join(SAMPLERS)}."
                        f"{nearest(sampler, SAMPLERS)}")
    if not space:
        raise UserError("optuna_: expected the distribution of at least one path.")
    if type(together) is not int or together < 1:
        raise UserError(f"optuna_(together={together!r}): expected at least 1.")
    return Search(n=n, space=space, sampler=sampler, draws=draws, together=together)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Trials, and how they are compared.

    Attributes:
      trials: a list of trials, or a search.
      metric: "EVALUATOR/NAME" that ranks the trials; None for the experiment's `best.metric`.
      mode: whether more or less of it is better; None for the experiment's `best.mode`.
      prune: ends trials early: "asha" (Li et al. 2020, https://arxiv.org/abs/1810.05934) keeps the
        best 1/`factor` at each rung, "median" those that are no worse than half of the others at
        the same step; None ends none.
      rung: steps until the first rung of "asha", and until "median" begins; None for the first
        evaluation.
      factor: of "asha": the next rung is so many times as far.
    """

    trials: Sequence[Trial] | Search = field(default_factory=list)
    metric: str | None = None
    mode: Literal["max", "min"] | None = None
    prune: Literal["asha", "median"] | None = None
    rung: Size | None = None
    factor: Annotated[int, Between(2)] = 4

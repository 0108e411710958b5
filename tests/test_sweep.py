"""Declaring a sweep."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdl import sweep
from jaxdl.errors import UserError
from jaxdl.sweep import (
    chain,
    choice,
    grid,
    integers,
    log_space,
    log_uniform,
    optuna_,
    random,
    repeat,
    uniform,
    zip_,
)


def test_lists_of_trials() -> None:
    assert grid(a=(1, 2), b=range(2)) == [
        {"a": 1, "b": 0}, {"a": 1, "b": 1}, {"a": 2, "b": 0}, {"a": 2, "b": 1}]
    assert zip_(a=(1, 2), b=["x", "y"]) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert chain(grid(a=[1]), [{"b": 2}]) == [{"a": 1}, {"b": 2}]
    assert repeat(grid(a=[1, 2]), 2) == [
        {"a": 1, "seed": 0}, {"a": 1, "seed": 1}, {"a": 2, "seed": 0}, {"a": 2, "seed": 1}]
    assert log_space(0.01, 1, 3) == [0.01, 0.1, 1.0] and log_space(0.5, 0.5, 1) == [0.5]


def test_random_trials_are_those_of_their_number() -> None:
    space = {"a": log_uniform(1e-4, 1), "b": integers(1, 3), "c": choice("x", None),
             "d": uniform(-1, 1), "e": integers(1, 1000, log=True)}
    trials = random(400, **space)
    assert trials == random(400, **space) != random(400, draws=1, **space)
    assert trials[:3] == random(3, **space)
    a, b, c, d, e = (np.array([t[k] for t in trials]) for k in space)
    assert a.min() >= 1e-4 and a.max() <= 1 and np.median(a) == pytest.approx(1e-2, rel=0.8)
    assert set(b) == {1, 2, 3} and set(c) == {"x", None}
    assert d.min() >= -1 and abs(d.mean()) < 0.15
    assert e.min() >= 1 and e.max() <= 1000 and np.median(e) == pytest.approx(math.sqrt(1000),
                                                                               rel=0.5)
    assert all(type(t["b"]) is int and type(t["a"]) is float for t in trials)


@given(st.integers(1, 100), st.integers(1, 10**6), st.integers(0, 2**32))
def test_integers_stay_within_their_bounds(low: int, more: int, seed: int) -> None:
    axis = integers(low, low + more, log=True)
    assert low <= axis.draw(np.random.Generator(np.random.Philox(seed))) <= low + more


@pytest.mark.parametrize(("call", "message"), [
    (lambda: grid(a=1), "grid(a=1): expected a list of values."),
    (lambda: grid(a="abc"), "grid(a='abc'): expected a list of values."),
    (lambda: zip_(a=[1], b=[1, 2]),
     "zip_: expected as many values for each path, got 1 for a, 2 for b."),
    (lambda: log_uniform(0, 1),
     "log_uniform(0, 1): expected positive numbers, the lower one first."),
    (lambda: uniform(2, 1), "uniform(2, 1): expected numbers, the lower one first."),
    (lambda: uniform(0, math.inf), "uniform(0, inf): expected numbers, the lower one first."),
    (lambda: log_space(1, 2, 0), "log_space(1, 2, 0): expected at least one number."),
    (lambda: choice(), "choice(): expected at least one value."),
    (lambda: random(0, a=uniform(0, 1)), "random(0, ...): expected the number of trials first."),
    (lambda: random(3, a=[1, 2]), "random: a=[1, 2]: expected uniform(), log_uniform(), "
                                  "integers() or choice()."),
    (lambda: repeat([{"seed": 1}], 2), "repeat: the trials vary the seed already."),
    (lambda: repeat([{}], 0), "repeat(..., 0): expected at least one seed."),
    (lambda: optuna_(3, sampler="tpo", a=uniform(0, 1)), "optuna_(sampler='tpo'): expected one of "
     "tpe, random, gp. Did you mean 'tpe'?"),
    (lambda: optuna_(3), "optuna_: expected the distribution of at least one path."),
    (lambda: optuna_(3, together=0, a=uniform(0, 1)), "optuna_(together=0): expected at least 1."),
])
def test_what_is_no_sweep_is_told(call: object, message: str) -> None:
    with pytest.raises(UserError) as told:
        call()  # type: ignore[operator]
    assert str(told.value) == message
    assert sweep.Sweep().trials == []

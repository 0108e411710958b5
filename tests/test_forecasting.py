"""Windows of a series, forecasting models, MASE, and what a forecast costs without a network."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import config
from jaxdl.data import series as of_series
from jaxdl.data.digits import Digits
from jaxdl.data.series import Chicago, SeriesFile, Windows
from jaxdl.errors import DataMissing, UserError
from jaxdl.evaluate import Context
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.forecaster import DLinear, Forecaster, seasonal
from jaxdl.optimizer import Adam
from jaxdl.parallel import arrange
from jaxdl.tasks.forecasting import (
    ForecastErrors,
    Forecasting,
    SeasonalAR,
    difference,
    seasonal_error,
    seasonal_naive,
)

T, H, SEASON, DAYS = 6, 3, 4, 100
RANDOM = np.random.default_rng(0)
VALUES = 50 + 10 * np.resize([0., 1., 2., 5.], DAYS) + RANDOM.normal(size=DAYS)


def series(tmp_path: Path, values: Any = VALUES, **changes: Any) -> SeriesFile:
    path = tmp_path / "sales.csv"
    path.write_text("day, sold\n" + "\n".join(f"{i},{v}" for i, v in enumerate(values)))
    return dataclasses.replace(
        SeriesFile(path=str(path), column="sold", past=T, horizon=H, season=SEASON), **changes)


def opened(data: SeriesFile, split: str) -> Windows:
    source = data.open(split)
    assert isinstance(source, Windows)
    return source


# Windows.


def test_windows_are_those_of_a_loop(tmp_path: Path) -> None:
    data = series(tmp_path, cycles=(4., 30.), validation=10)
    data.prepare()
    own = VALUES[:70]
    parts = {"train": (0, 70), "validation": (70, 80), "test": (80, 100)}
    for split, (begin, end) in parts.items():
        source, past, target = opened(data, split), [], []
        for t in range(DAYS):  # where the target begins
            if t - T < 0 or t < begin or t + H > end:
                continue
            rows = []
            for i in range(t - T, t):
                row = [(VALUES[i] - own.mean()) / own.std()]
                for period in (4., 30.):
                    row += [np.sin(2 * np.pi * i / period), np.cos(2 * np.pi * i / period)]
                rows.append(row)
            past.append(rows)
            target.append([(VALUES[i] - own.mean()) / own.std() for i in range(t, t + H)])
        arrays = source.arrays
        assert arrays["past"].dtype == arrays["target"].dtype == np.float32
        np.testing.assert_allclose(arrays["past"], np.array(past), atol=1e-5)
        np.testing.assert_allclose(arrays["target"], np.array(target), atol=1e-5)
        np.testing.assert_allclose(arrays["target"] * source.deviation + source.mean,
                                   source.targets(), rtol=1e-5)
        assert source.trained == 70 and source.size == len(target)
        order = [source.index(3, i, 7) for i in (0, 7)]
        np.testing.assert_array_equal(np.concatenate(order), source.index(3, 0, 14))
    assert config.from_json(config.to_json(data)) == data
    changed = ({}, {"past": 7}, {"cycles": ()}, {"validation": 9}, {"test": 0.3})
    assert len({dataclasses.replace(data, **c).fingerprint() for c in changed}) == 5


def test_nothing_of_the_test_part_is_trained_on(tmp_path: Path) -> None:
    """Its values change no window, mean or deviation of the training part; and a test window has
    only values of its past from there."""
    later = VALUES.copy()
    later[80:] = 1e6
    before, after = (opened(series(tmp_path, v), "train") for v in (VALUES, later))
    assert (before.mean, before.deviation) == (after.mean, after.deviation)
    for name in ("past", "target"):
        np.testing.assert_array_equal(before.arrays[name], after.arrays[name])
    assert before.first.max() + H == 80
    test = opened(series(tmp_path, later), "test")
    assert test.first.min() == 80 and (test.targets() == 1e6).all()
    assert (test.arrays["past"][0] < 10).all()  # all of it from before


@pytest.mark.parametrize(("change", "options", "message"), [
    (("\n17,", "\n17,x"), {}, r"sales.csv: line 19, column 'sold': 'x\d.*' is no finite number"),
    (("\n17,", "\n17,,"), {}, r"sales.csv: line 19 has 3 cells, expected 2"),
    (("\n17,", "\n17,nan\n,"), {}, r"line 19, column 'sold': 'nan' is no finite number"),
    (("sold", "sale"), {}, r"sales.csv: there is no column 'sold'. Did you mean 'sale'\?"),
    (None, {"past": 90}, r"of 100 values the split 'train' has 80, too few .* past=90"),
    (None, {"test": 0.02}, r"the split 'test' has 2, too few .* horizon=3"),
    (None, {"path": "/none/sales.csv"}, r"path=/none/sales.csv: there is no such file"),
])
def test_bad_input_is_told_in_a_line(tmp_path: Path, change: Any, options: Any,
                                     message: str) -> None:
    data = series(tmp_path, **options)
    if change:
        path = Path(data.path)
        path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(UserError, match=message) as caught:
        for split in ("train", "test"):
            data.open(split)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    data = series(tmp_path)
    wrong = dataclasses.replace(data, path=data.path.replace("sales", "sale"))
    with pytest.raises(DataMissing, match=r"Did you mean '.*sales.csv'\?"):
        wrong.prepare()
    with pytest.raises(UserError, match="no split 'trian', only"):
        data.open("trian")


def test_chicago_is_the_ridership_of_its_package(tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    def load(base: Path, name: str) -> dict[str, Any]:
        assert base == tmp_path / "usr/lib/R/site-library/modeldata/data/Rdata"
        return {"Chicago": {"ridership": VALUES.astype(">f8"), "Austin": -VALUES}}[name]

    monkeypatch.setattr(of_series, "package", lambda name, place, sha256: tmp_path)
    monkeypatch.setattr(of_series.rdata, "load", load)
    data = Chicago(past=T, horizon=H)
    data.prepare()
    np.testing.assert_array_equal(data.values, VALUES)
    assert data.open("train").size == 80 - T - H + 1


# Models and the task.


def batch(size: int = 5, channels: int = 3) -> dict[str, jax.Array]:
    random = np.random.default_rng(1)
    return {"past": jnp.asarray(random.normal(size=(size, T, channels)), jnp.float32),
            "target": jnp.asarray(random.normal(size=(size, H)), jnp.float32),
            "mask": jnp.ones(size), "index": jnp.arange(size)}


LSTM = Forecaster(horizon=H, width=4)
TASK = Forecasting(model=LSTM)


def begun(task: Forecasting, of: Any) -> Any:
    return jax.jit(lambda: task.init(jax.random.key(0), of, optax.sgd(0.1)))()


@pytest.mark.parametrize("model", [
    LSTM, Forecaster(horizon=H, width=4, layers=2, cell="gru", dropout=0.5, season=SEASON),
    DLinear(horizon=H, kernel=3)])
def test_a_forecast_has_the_horizon(model: Any) -> None:
    task, data = Forecasting(model=model), batch()
    state = begun(task, data)
    assert task.predict(state, data).shape == (5, H)
    assert config.from_json(config.to_json(task)) == task


def test_one_season_before_is_what_a_silent_network_says() -> None:
    data = batch()
    past = np.asarray(data["past"][..., 0])
    # Six values and a season of four: after them come those at 2, 3, 4, 5, 2, ...
    np.testing.assert_array_equal(seasonal(data["past"][..., 0], 4, 6), past[:, [2, 3, 4, 5, 2, 3]])
    task = Forecasting(model=Forecaster(horizon=H, width=4, season=4))
    state = begun(task, data)
    silent = dataclasses.replace(state, params=jax.tree.map(jnp.zeros_like, state.params))
    np.testing.assert_array_equal(task.predict(silent, data), past[:, [2, 3, 4]])
    with pytest.raises(UserError, match=r"model.season=7: the past has 6 values"):
        seasonal(data["past"][..., 0], 7, 3)


def test_the_linear_model_is_that_of_the_paper() -> None:
    data = batch(2, 1)
    x, task = np.asarray(data["past"][..., 0]), Forecasting(model=DLinear(horizon=H, kernel=3))
    state = begun(task, data)
    padded = np.concatenate([x[:, :1], x, x[:, -1:]], 1)
    trend = np.stack([padded[:, i:i + 3].mean(1) for i in range(T)], 1)
    params = jax.tree.map(np.asarray, state.params)
    expected = (trend @ params["trend"]["kernel"] + params["trend"]["bias"]
                + (x - trend) @ params["remainder"]["kernel"])
    np.testing.assert_allclose(task.predict(state, data), expected, rtol=1e-4, atol=1e-5)


def test_masked_examples_change_nothing() -> None:
    plain = {**batch(), "mask": jnp.ones(5).at[3:].set(0)}
    other = {**plain, "target": plain["target"].at[3:].set(jnp.nan),
             "past": plain["past"].at[3:].mul(100)}
    for error in ("squared", "absolute"):
        task = Forecasting(model=LSTM, error=error)
        state = begun(task, plain)
        step = jax.jit(functools.partial(task.step, tx=optax.sgd(0.1)))
        (a, of_a), (b, of_b) = (step(state, x) for x in (plain, other))
        for left, right in zip(*map(jax.tree.leaves, (a.params, b.params)), strict=True):
            np.testing.assert_array_equal(left, right)
        e = np.asarray(task.predict(state, plain) - plain["target"])[:3]
        mean = (e ** 2).mean() if error == "squared" else np.abs(e).mean()
        for found in (of_a["loss"], of_b["loss"]):
            assert found.count == 3 * H
            np.testing.assert_allclose(found.value(), mean, rtol=1e-5)


# Errors.


def test_mase_is_what_a_hand_computes(tmp_path: Path) -> None:
    """Hyndman & Koehler (2006), section 3, on a series of ten days and a forecast of zeros."""
    train = np.array([1., 5., 2., 7., 3., 4.])  # |2-1|, |7-5|, |3-2|, |4-7|: 7 / 4
    assert seasonal_error(train, 2) == 1.75
    values = np.concatenate([train, [2., 6., 4., 8.]])
    first = np.array([6, 7])  # the season before: 3, 4 and 4, 2
    naive = seasonal_naive(values, first, 2, 3)
    np.testing.assert_array_equal(naive, [[3, 4, 3], [4, 2, 4]])

    source = Windows(
        arrays={"past": np.zeros((2, 4, 1), np.float32),
                "target": ((values[first[:, None] + np.arange(3)] - 3) / 2).astype(np.float32)},
        values=values, trained=6, first=first, horizon=3, season=2, mean=3., deviation=2.)
    task: Any = ConstantTask(model=LSTM)
    evaluator = ForecastErrors(order=1, batch_size=2)
    state = begun(TASK, batch(2, 1))
    context = Context(name="test", step=0, source=lambda split: source, batch_size=4,
                      devices=arrange(Mesh(data=1)))
    found = evaluator(task, state, context)
    # Forecasts are 3, the mean: |2-3|, |6-3|, |4-3| and |6-3|, |4-3|, |8-3|: 14 / 6.
    assert found["mae"] == pytest.approx(14 / 6) and found["mase"] == pytest.approx(14 / 6 / 1.75)
    # |2-3|, |6-4|, |4-3| and |6-4|, |4-2|, |8-4|: 12 / 6.
    assert found["mae_seasonal_naive"] == 2 and found["mase_seasonal_naive"] == 2 / 1.75
    arima = SeasonalAR.fit(train, 1, 2).forecast(values, first, 3)
    assert found["mae_arima"] == pytest.approx(np.abs(arima - source.targets()).mean())
    assert found["mase_arima"] == pytest.approx(found["mae_arima"] / 1.75)
    assert next(iter(found)) == "loss"


class ConstantTask(Forecasting):
    """Forecasts the mean of the training part."""

    def predict(self, state: Any, batch: Any) -> jax.Array:
        return jnp.zeros_like(batch["target"])


def test_arima_finds_the_coefficients_of_its_own_process() -> None:
    random, coefficients, constant = np.random.default_rng(0), np.array([0.6, -0.3]), 0.5
    noise = random.normal(size=20_000)
    d, y = np.zeros(20_000), np.zeros(20_000)
    for t in range(SEASON, len(y)):
        d[t] = constant + coefficients @ d[[t - 1, t - 2]] + noise[t]
        y[t] = y[t - SEASON] + d[t]
    model = SeasonalAR.fit(y[:19_000], 2, SEASON)
    np.testing.assert_allclose(model.coefficients, coefficients, atol=0.02)
    assert model.constant == pytest.approx(constant, abs=0.03)
    # One step ahead only the noise is wrong; further ahead the forecast is that of a loop.
    first = np.arange(19_000, 19_990)
    forecast = model.forecast(y, first, 6)
    np.testing.assert_allclose(forecast[:, 0], y[first] - noise[first], atol=0.3)
    known = list(y[:19_500])
    for _ in range(6):
        diffs = [known[-k] - known[-k - SEASON] for k in (1, 2)]
        known.append(known[-SEASON] + model.constant + float(model.coefficients @ diffs))
    np.testing.assert_allclose(forecast[500], known[-6:])


def test_mistakes_of_an_experiment_are_told(tmp_path: Path) -> None:
    data = series(tmp_path)
    experiment = Experiment(task=Forecasting(model=Forecaster(horizon=5)), data=data, steps=1,
                            optimizer=Adam(), batch_size=4)
    with pytest.raises(UserError, match=r"task.model.horizon=5: the windows of SeriesFile have "
                                        r"horizon=3"):
        data.check(experiment)
    with pytest.raises(UserError, match="repeats itself exactly, so MASE is not defined"):
        seasonal_error(np.resize([1., 2.], 20), 2)
    with pytest.raises(UserError, match=r"season=9: the training part has 5 values"):
        seasonal_error(np.arange(5.), 9)
    with pytest.raises(UserError, match=r"order=42: the training part has 80 values; expected at "
                                        r"least 89, or a smaller order"):
        SeasonalAR.fit(VALUES[:80], 42, SEASON)
    with pytest.raises(UserError, match="order=42: the training part has"):
        ForecastErrors(order=42).check(dataclasses.replace(
            experiment, data=dataclasses.replace(data, horizon=3)))
    model = SeasonalAR.fit(VALUES[:80], 8, SEASON)
    with pytest.raises(UserError, match="a window has 6 values before its target, of which a "
                                        "baseline needs 12"):
        model.forecast(VALUES, opened(data, "train").first, H)
    context: Any = Context(name="test", step=0, source=lambda split: Digits().open(split),
                           batch_size=4, devices=arrange(Mesh(data=1)))
    with pytest.raises(UserError, match=r"evals.test: ForecastErrors needs a series"):
        ForecastErrors().finish({}, context)
    mean, _ = difference(jnp.ones((2, H)), {k: x[:2] for k, x in batch().items()})
    assert mean.shape == (2, H)

"""Forecasting of a series, and how much better than without a network it is.

Errors are measured in units of the series, and as MASE (Hyndman & Koehler 2006, "Another look at
measures of forecast accuracy", section 3): the mean absolute error over that which the training
part has when each of its values is forecast by the one a season before. (Theirs is by the last one:
a season of 1.) On later values, further ahead, the seasonal naive forecast itself may well have a
MASE above one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.config import Size
from jaxdl.data.series import Windows
from jaxdl.errors import UserError
from jaxdl.evaluate import Context, Evaluate
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Forecasting(LossTask):
    """The values of a series that come next.

    A batch has "past" [B, T, C] and "target" [B, H], such as those of `data.series`, and "mask"
    [B]. The loss is a mean over examples and the H values of each.

    Attributes:
      model: called as model(past, train), returns the forecast [B, H].
      error: "squared", whose least is at the mean of what may come, or "absolute": at the median.
    """

    model: nn.Module
    error: Literal["squared", "absolute"] = "squared"

    target_fields: ClassVar[tuple[str, ...]] = ("target",)

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        forecast, mutable = self.apply(self.model, variables, batch["past"], key=key, train=train)
        error, weights = difference(forecast, batch)
        losses = error ** 2 if self.error == "squared" else jnp.abs(error)
        return Mean.of(losses, weights), Aux(mutable=mutable)

    def predict(self, state: TrainState, batch: Batch) -> Array:
        """The forecast of the evaluated parameters, normalised as the target is: [B, H]."""
        return self.apply(self.model, self.variables(state), batch["past"], key=state.key,
                          train=False)[0]


def difference(forecast: Array, batch: Batch) -> tuple[Array, Array]:
    """(forecast - target, the mask of each value): both [B, H]."""
    weights = jnp.broadcast_to(batch["mask"][:, None], batch["target"].shape)
    # NaN of a masked example reaches no gradient.
    return jnp.where(weights > 0, forecast - batch["target"], 0), weights


@dataclass(frozen=True, kw_only=True)
class ForecastErrors(Evaluate):
    """The task's metrics over a split of a `data.series`, the mean absolute error "mae" of its
    forecasts in units of the series, and "mase".

    Beside them what the same windows cost without a network: "mae_seasonal_naive", "mae_arima",
    "mase_seasonal_naive" and "mase_arima". Both baselines know what the network knows: parameters
    come from the training part, a forecast from the values before the window's target.

    Attributes:
      order: p of the baseline ARIMA(p, 0, 0)(0, 1, 0)_season, see `SeasonalAR`.
    """

    order: Size = 42

    def check(self, experiment: Any) -> None:
        """Raises a UserError for a series that is too short for the baselines."""
        windows = experiment.data.open(self.split)
        if isinstance(windows, Windows):
            self.baselines(windows)

    def measure(self, task: Any, state: TrainState, batch: Batch) -> Any:
        error, weights = difference(task.predict(state, batch), batch)
        return {"task": task.evaluate(state, batch), "error": Mean.of(jnp.abs(error), weights)}

    def finish(self, sums: Any, context: Context) -> Mapping[str, float]:
        windows: Any = context.source(self.split)
        if not isinstance(windows, Windows):
            raise UserError(f"evals.{context.name}: ForecastErrors needs a series, such as those "
                            "of jaxdl.data.series, as the experiment's data.")
        key = (context.name, self.split, "baselines")
        if key not in context.compiled:  # They do not change with the state.
            context.compiled[key] = self.baselines(windows)
        scale, baselines = context.compiled[key]
        found = {**super().finish(sums["task"], context),
                 "mae": float(sums["error"].value()) * windows.deviation, **baselines}
        return found | {name.replace("mae", "mase"): value / scale
                        for name, value in found.items() if name.startswith("mae")}

    def baselines(self, windows: Windows) -> tuple[float, dict[str, float]]:
        """(what MASE is measured in, the mean absolute error of each baseline)."""
        values, first, season = windows.values, windows.first, windows.season
        train, target = values[:windows.trained], windows.targets()
        scale = seasonal_error(train, season)
        model = SeasonalAR.fit(train, self.order, season)
        forecasts = {"seasonal_naive": seasonal_naive(values, first, season, windows.horizon),
                     "arima": model.forecast(values, first, windows.horizon)}
        return scale, {f"mae_{name}": float(np.abs(forecast - target).mean())
                       for name, forecast in forecasts.items()}


# Without a network; all of it in NumPy.


def seasonal_error(train: np.ndarray, season: int) -> float:
    """The mean of |y_t - y_(t - season)| over a series [N]: what MASE is measured in."""
    if len(train) <= season:
        raise UserError(f"data.season={season}: the training part has {len(train)} values; "
                        "expected more than a season.")
    scale = float(np.abs(train[season:] - train[:-season]).mean())
    if scale == 0:
        raise UserError(f"data.season={season}: the training part repeats itself exactly, so MASE "
                        "is not defined.")
    return scale


def seasonal_naive(values: np.ndarray, first: np.ndarray, season: int,
                   horizon: int) -> np.ndarray:
    """Forecasts [W, horizon] of the values from first [W] on: those of the season before, over and
    over."""
    return values[before(first, season)[:, np.arange(horizon) % season]]


def before(first: np.ndarray, count: int) -> np.ndarray:
    """The places of the last values before first [W]: [W, count]."""
    if first.min() < count:
        raise UserError(f"evals: a window has {first.min()} values before its target, of which a "
                        f"baseline needs {count}; a larger data.past or a smaller order helps.")
    return first[:, None] - count + np.arange(count)


@dataclass(frozen=True)
class SeasonalAR:
    """ARIMA(p, 0, 0)(0, 1, 0)_s with a constant: an autoregression of seasonal differences,

        d_t = y_t - y_(t - s)
        d_t = constant + sum_(k = 1..p) coefficients[k - 1] d_(t - k) + noise

    It has no moving averages, so least squares is the most likely fit, given the first p
    differences (Box & Jenkins 1970, chapter 7). A p of several seasons takes the place of a
    seasonal moving average, which would have to be fitted iteratively.

    Attributes:
      season: s.
      coefficients: [p].
      constant: of the differences.
    """

    season: int
    coefficients: np.ndarray
    constant: float

    @classmethod
    def fit(cls, train: np.ndarray, order: int, season: int) -> "SeasonalAR":
        """Of a series [N] that is trained on."""
        d = train[season:] - train[:-season]
        if len(d) < 2 * order + 1:
            raise UserError(f"evals: order={order}: the training part has {len(train)} values; "
                            f"expected at least {2 * order + season + 1}, or a smaller order.")
        lagged = np.stack([d[order - k:len(d) - k] for k in range(1, order + 1)]
                          + [np.ones(len(d) - order)], 1)
        found = np.linalg.lstsq(lagged, d[order:], rcond=None)[0]
        return cls(season, found[:-1], float(found[-1]))

    def forecast(self, values: np.ndarray, first: np.ndarray, horizon: int) -> np.ndarray:
        """Forecasts [W, horizon] of the values from first [W] on, one after the other, each as if
        the ones before had come true."""
        order = len(self.coefficients)
        y = values[before(first, order + self.season)]  # [W, p + s]
        for _ in range(horizon):
            d = y[:, self.season:] - y[:, :-self.season]
            step = self.constant + d[:, :-order - 1:-1] @ self.coefficients
            y = np.concatenate([y, (y[:, -self.season] + step)[:, None]], 1)
        return y[:, -horizon:]

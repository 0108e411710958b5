"""Convolutional halves: images to numbers, and numbers to images."""

from typing import Literal

import flax.linen as nn
import jax

from jaxdl.config import Size
from jaxdl.errors import UserError
from jaxdl.layers import Activation, Conv, ConvTranspose, activate, batch_norm

Array = jax.Array


class Encoder(nn.Module):
    """Convolutions with kernel 3 and stride 2, then a dense layer: [B, H, W, C] to [B, features].

    Attributes:
      features: numbers for each image; None leaves the last map of channels as it is, [B, h, w, c].
      channels: of each convolution, which halves height and width.
      dense: units of a hidden dense layer before the last; None for none.
      activation: after each but the last.
      batch_norm: normalise the output of each convolution.
    """

    features: Size | None = 64
    channels: tuple[Size, ...] = (32, 64)
    dense: Size | None = None
    activation: Activation = "silu"
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for i, channels in enumerate(self.channels):
            x = Conv(channels, (3, 3), (2, 2), use_bias=not self.batch_norm,
                     name=f"conv{i + 1}")(x)
            if self.batch_norm:
                x = batch_norm(train, name=f"norm{i + 1}")(x)
            x = activate(x, self.activation)
        if self.features is None:
            return x
        x = x.reshape(len(x), -1)
        if self.dense is not None:
            x = activate(nn.Dense(self.dense, name="dense")(x), self.activation)
        return nn.Dense(self.features, name="head")(x)


class Decoder(nn.Module):
    """A dense layer, then transposed convolutions that double height and width, and one of kernel 3
    that draws: [B, features], or what an `Encoder` of no features leaves, to [B, H, W, C].

    Attributes:
      size: height and width of the image; the stages must halve it to whole numbers.
      image_channels: of the image.
      channels: of the first map, and of what each transposed convolution makes; there is one for
        each, so that (64, 32) doubles twice.
      dense: units of a hidden dense layer before the first map; None for none.
      activation: after each but the last.
      batch_norm: normalise the first map and the output of each transposed convolution.
      output: "linear", or "tanh" for images in [-1, 1].
    """

    size: Size = 28
    image_channels: Size = 1
    channels: tuple[Size, ...] = (64, 32)
    dense: Size | None = None
    activation: Activation = "silu"
    batch_norm: bool = False
    output: Literal["linear", "tanh"] = "linear"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        first = self.size >> len(self.channels)
        if first << len(self.channels) != self.size:
            raise UserError(f"Decoder: size={self.size} cannot be halved {len(self.channels)} "
                            "times, once for each of channels.")
        if x.ndim == 2:
            if self.dense is not None:
                x = activate(nn.Dense(self.dense, name="dense")(x), self.activation)
            x = nn.Dense(first * first * self.channels[0], use_bias=not self.batch_norm,
                         name="start")(x).reshape(len(x), first, first, self.channels[0])
            x = self.after(x, "start", train)
        for i, channels in enumerate(self.channels):
            x = ConvTranspose(channels, use_bias=not self.batch_norm, name=f"conv{i + 1}")(x)
            x = self.after(x, f"{i + 1}", train)
        x = Conv(self.image_channels, (3, 3), name="draw")(x)
        return nn.tanh(x) if self.output == "tanh" else x

    def after(self, x: Array, name: str, train: bool) -> Array:
        """Normalisation and activation."""
        if self.batch_norm:
            x = batch_norm(train, name=f"norm_{name}")(x)
        return activate(x, self.activation)

"""RealNVP of Dinh et al. (2017), https://arxiv.org/abs/1605.08803: an invertible network."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Size
from jaxdl.errors import UserError
from jaxdl.layers import Conv
from jaxdl.models.unet import to_channels, to_pixels

Array = jax.Array


class RealNVP(nn.Module):
    """Images [B, H, W, C] to as many numbers [B, H * W * C], and back (section 3.6).

    Each scale is three affine couplings with checkerboard masks, a squeeze of 2 x 2 pixels to
    channels, three couplings with channel masks, and a half of the channels that is done; the last
    scale is four couplings with checkerboard masks. A fresh network is the identity.

    Attributes:
      shape: of an image, height, width and channels; the scales but one halve it.
      scales: as above.
      width: channels of the networks within couplings, doubled at each squeeze.
      blocks: residual blocks of each of them.
    """

    shape: tuple[Size, Size, Size] = (28, 28, 1)
    scales: Size = 2
    width: Size = 32
    blocks: Size = 2

    def setup(self) -> None:
        parts = 1 << self.scales - 1
        if self.shape[0] % parts or self.shape[1] % parts:
            raise UserError(f"RealNVP: shape={self.shape} cannot be halved {self.scales - 1} times,"
                            f" once less than scales={self.scales}.")
        last = self.scales - 1
        self.boards = [[Coupling("checkerboard", i % 2 == 1, self.width << s, self.blocks,
                                 name=f"board{s + 1}_{i + 1}") for i in range(3 + (s == last))]
                       for s in range(self.scales)]
        self.channels = [[Coupling("channels", i % 2 == 1, self.width << s + 1, self.blocks,
                                   name=f"channels{s + 1}_{i + 1}") for i in range(3)]
                         for s in range(last)]

    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        """(numbers [B, D], logarithm of the absolute determinant of the Jacobian [B])."""
        done, total = [], jnp.zeros(len(x), x.dtype)
        for s in range(self.scales):
            layers = self.boards[s]
            for layer in layers:
                x, part = layer(x)
                total += part
            if s < self.scales - 1:
                x = to_channels(x, 2)
                for layer in self.channels[s]:
                    x, part = layer(x)
                    total += part
                out, x = jnp.split(x, 2, -1)
                done.append(out)
        return jnp.concatenate([y.reshape(len(x), -1) for y in (*done, x)], -1), total

    def inverse(self, z: Array) -> Array:
        """The images of numbers [B, D]: [B, H, W, C]."""
        height, width, channels = self.shape
        rest, done = z, []
        for _ in range(self.scales - 1):  # The shape of what is done after each scale.
            height, width, channels = height // 2, width // 2, 2 * channels
            size = height * width * channels
            done.append(rest[:, :size].reshape(-1, height, width, channels))
            rest = rest[:, size:]
        x = rest.reshape(-1, height, width, channels)
        for s in reversed(range(self.scales)):
            if s < self.scales - 1:
                x = jnp.concatenate([done[s], x], -1)
                for layer in reversed(self.channels[s]):
                    x = layer.inverse(x)
                x = to_pixels(x, 2)
            for layer in reversed(self.boards[s]):
                x = layer.inverse(x)
        return x


class Coupling(nn.Module):
    """y = m x + (1 - m) (x exp(s(m x)) + t(m x)): equation 9.

    Attributes:
      mask: whether m is a checkerboard of pixels or a half of the channels.
      turned: whether it is 1 - m.
      width, blocks: of the network that gives s and t.
    """

    mask: Literal["checkerboard", "channels"]
    turned: bool
    width: int
    blocks: int

    @nn.compact
    def moved(self, x: Array) -> tuple[Array, Array]:
        """((1 - m) s, (1 - m) t) for x [B, H, W, C], of which only m x is seen."""
        _, height, width, channels = x.shape
        if self.mask == "checkerboard":
            m = (jnp.arange(height)[:, None, None] + jnp.arange(width)[:, None]) % 2
        else:
            m = jnp.arange(channels) >= channels // 2
        m = jnp.broadcast_to(m == self.turned, x.shape[1:]).astype(x.dtype)
        y = Conv(self.width, (3, 3), name="start")(m * x)
        for i in range(self.blocks):
            inner = Conv(self.width, (3, 3), name=f"conv{i + 1}_1")(nn.relu(y))
            y = y + Conv(self.width, (3, 3), name=f"conv{i + 1}_2")(nn.relu(inner))
        y = Conv(2 * channels, (3, 3), kernel_init=nn.initializers.zeros, name="head")(nn.relu(y))
        s, t = jnp.split(y, 2, -1)
        size = self.param("size", nn.initializers.ones, (channels,)).astype(x.dtype)
        return (1 - m) * size * jnp.tanh(s), (1 - m) * t

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """(y, logarithm of the absolute determinant of the Jacobian [B])."""
        s, t = self.moved(x)
        return x * jnp.exp(s) + t, s.reshape(len(x), -1).sum(-1)

    def inverse(self, y: Array) -> Array:
        """x of y. What the network sees, m x, is also m y."""
        s, t = self.moved(y)
        return (y - t) * jnp.exp(-s)

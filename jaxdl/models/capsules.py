"""Capsule network with dynamic routing of Sabour et al. (2017), https://arxiv.org/abs/1710.09829."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Size
from jaxdl.errors import UserError
from jaxdl.layers import Conv

Array = jax.Array


def squash(s: Array) -> Array:
    """|s|^2 / (1 + |s|^2) * s / |s| over the last axis: the length becomes less than 1 (eq. 1)."""
    square = jnp.sum(s * s, -1, keepdims=True)
    # The gradient of a root is infinite at zero, where s is: the least length counts instead.
    return s * jnp.sqrt(jnp.maximum(square, 1e-12)) / (1 + square)


def length(v: Array) -> Array:
    """The Euclidean length of vectors v [..., D]: [...]."""
    return jnp.sqrt(jnp.maximum(jnp.sum(v * v, -1), 1e-12))


def route(predicted: Array, iterations: int) -> Array:
    """Routing by agreement (procedure 1).

    Args:
      predicted: what each lower capsule says of each upper one, u_hat [B, lower, upper, D].
      iterations: of the routing, 3 in the paper.

    Returns:
      The upper capsules v [B, upper, D].
    """
    agreement = jnp.zeros(predicted.shape[:3], predicted.dtype)  # b  # [B, lower, upper]
    for _ in range(iterations - 1):
        weights = jax.nn.softmax(agreement, -1)
        v = squash(jnp.einsum("blu,blud->bud", weights, predicted))
        agreement = agreement + jnp.einsum("blud,bud->blu", predicted, v)
    return squash(jnp.einsum("blu,blud->bud", jax.nn.softmax(agreement, -1), predicted))


class CapsNet(nn.Module):
    """Two convolutions, capsules of classes, and a decoder of the chosen one (figures 1 and 2).

    The default has on 28 x 28 grey images the paper's 8.2 M parameters: 8,215,568, of which
    6,804,224 without the decoder. Called as model(image, label, train=...); returns the
    capsules [B, classes, dimensions], whose lengths say which class there is, and the image as the
    decoder draws it from the capsule of the label, [B, H, W, C] in [0, 1]. Without a label it is
    the longest one. `train` changes nothing.

    Attributes:
      channels: of the first convolution.
      maps: of primary capsules; each has a capsule at each place of the second convolution.
      primary: numbers in a primary capsule.
      dimensions: numbers in the capsule of a class.
      classes: number of them.
      kernel: side of the kernels of both convolutions, in pixels.
      iterations: of the routing.
      decoder: units of the decoder's hidden layers; () draws nothing.
    """

    channels: Size = 256
    maps: Size = 32
    primary: Size = 8
    dimensions: Size = 16
    classes: Size = 10
    kernel: Size = 9
    iterations: Size = 3
    decoder: tuple[Size, ...] = (512, 1024)

    @nn.compact
    def __call__(self, x: Array, label: Array | None = None, *,
                 train: bool) -> tuple[Array, Array]:
        shape, least = x.shape[1:], 2 * self.kernel - 1  # x  # [B, H, W, C]
        if min(shape[:2]) < least:
            raise UserError(f"CapsNet: images of {shape[0]} x {shape[1]}; two convolutions with "
                            f"kernel={self.kernel} need {least} x {least} at least.")
        size = (self.kernel, self.kernel)
        x = nn.relu(Conv(self.channels, size, padding="VALID", name="conv")(x))
        x = Conv(self.maps * self.primary, size, 2, padding="VALID", name="primary")(x)
        u = squash(x.reshape(len(x), -1, self.primary))  # [B, lower, primary]

        w = self.param("weights", nn.initializers.normal(0.1),
                       (u.shape[1], self.primary, self.classes, self.dimensions))
        predicted = jnp.einsum("blp,lpud->blud", u, w)  # [B, lower, classes, dimensions]
        v = route(predicted, self.iterations)  # [B, classes, dimensions]

        if label is None:
            label = length(v).argmax(-1)
        if not self.decoder:
            return v, jnp.zeros((len(x), 0))
        chosen = jax.nn.one_hot(label, self.classes, dtype=v.dtype)
        y = (v * chosen[..., None]).reshape(len(v), -1)
        for i, width in enumerate(self.decoder):
            y = nn.relu(nn.Dense(width, name=f"decoder{i + 1}")(y))
        y = nn.Dense(shape[0] * shape[1] * shape[2], name="decoder")(y)
        return v, nn.sigmoid(y).reshape(len(y), *shape)

"""Spatial transformer network of Jaderberg et al. (2015), https://arxiv.org/abs/1506.02025."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.data.transforms import sample
from jaxdl.models.cnn import CNN

Array = jax.Array

IDENTITY = (1., 0., 0., 0., 1., 0.)


def transform(image: Array, theta: Array) -> Array:
    """The image seen through an affine map: (x', y') = theta (x, y, 1) says for each place of the
    output where in the input its value comes from, bilinearly; outside are zeros (sections 3.2 and
    3.3).

    Args:
      image: [H, W, C].
      theta: [6], row by row; places run from -1 to 1 over the pixels' centres.
    """
    height, width, _ = image.shape
    y, x = jnp.linspace(-1, 1, height)[:, None], jnp.linspace(-1, 1, width)[None, :]
    a, b, c, d, e, f = theta.astype(jnp.float32)
    from_x, from_y = a * x + b * y + c, d * x + e * y + f  # [H, W]
    return sample(image, (from_y + 1) * (height - 1) / 2, (from_x + 1) * (width - 1) / 2)


class SpatialTransformer(nn.Module):
    """Finds an affine map for each image, turns the image by it, and classifies what it then sees.

    The map starts as the identity (section 4.1).

    Attributes:
      localisation: network of the image that the map is computed from; its "classes" are features.
      classifier: network of the turned image.
      slow: factor of the gradient that reaches the localisation; its best rate is often a tenth of
        the classifier's (section 4.2). None leaves it as it is.
    """

    localisation: Any = CNN(channels=(16, 32), dense=(), classes=32)
    classifier: Any = CNN(channels=(32, 64), dense=(128,))
    slow: float | None = None

    not_applicable: ClassVar[dict[str, str]] = {
        "finite_differences": "it starts with the identity, on the kinks of the interpolation"}

    def __call__(self, x: Array, train: bool) -> Array:
        return self.classifier(self.turned(x, train), train)  # [B, classes]

    @nn.compact
    def turned(self, x: Array, train: bool = False) -> Array:
        """The images as the classifier sees them: [B, H, W, C]."""
        features = nn.relu(self.localisation(x, train))
        theta = nn.Dense(6, kernel_init=nn.initializers.zeros,
                         bias_init=lambda *_: jnp.array(IDENTITY), name="theta")(features)
        if self.slow is not None:
            theta = self.slow * theta + jax.lax.stop_gradient((1 - self.slow) * theta)
        return jax.vmap(transform)(x, theta).astype(x.dtype)

"""Normalising flows: images by an invertible network, with their exact likelihood."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import noise
from jaxdl.config import Between
from jaxdl.data.transforms import clean
from jaxdl.errors import UserError
from jaxdl.generative import between, check_pixels, drawn, path_between
from jaxdl.pictures import Material, Picture
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Flow(LossTask):
    """-log p(x) of images whose values are one of 256 levels: each is spread over its level,
    v = (255 x + u) / 256 with u uniform in [0, 1), and mapped to the real line by y =
    logit(margin + (1 - 2 margin) v) before the network f (Dinh et al. 2017, section 4.1):

        log p(v) = log N(f(y)) + log |det df/dy| + log |dy/dv|.

    The loss is in nats for each image; "bits_per_dim" is -log2 p(v) / D + 8, D the number of values
    of an image: an upper bound of the bits that each value takes (Theis et al. 2016, section 3.1).

    A batch has "image" [B, H, W, C] in [0, 1] (data.mean=0, data.std=1) and "mask" [B].

    Attributes:
      model: called as model(y, train), returns (z [B, D], log |det| [B]); its method inverse(z)
        returns y; see `models.real_nvp`.
      margin: alpha of the paper.
      temperature: deviation of the numbers that samples are made of; 1 is the model's own.
    """

    model: nn.Module
    margin: Annotated[float, Between(1e-6, 0.49)] = 0.05
    temperature: Annotated[float, Between(1e-3)] = 1.

    target_fields: ClassVar[tuple[str, ...]] = ()
    not_applicable: ClassVar[Mapping[str, str]] = {
        "modes": "in training each pixel is spread over its level at random",
        "overfits": "the spread of the pixels is drawn anew in each step"}

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        batch = clean(batch)
        image = batch["image"]
        shape = getattr(self.model, "shape", image.shape[1:])
        if image.shape[1:] != tuple(shape):
            raise UserError(f"task.model.shape={shape}: the data has images of {image.shape[1:]}.")
        size = int(np.prod(image.shape[1:]))
        uniform = noise.uniform(key if train else jax.random.key(0), batch, image.shape[1:])
        v = (255 * image + uniform) / 256
        y, slope = self.spread(v)
        (z, determinant), mutable = self.apply(self.model, variables, y, key=key, train=train)
        normal = -0.5 * (z ** 2 + jnp.log(2 * jnp.pi)).sum(-1)
        nats = -(normal + determinant + slope)
        bits = nats / (size * jnp.log(2.)) + 8
        return Mean.of(nats, batch["mask"]), Aux(
            metrics={"bits_per_dim": Mean.of(bits, batch["mask"])}, mutable=mutable)

    def check(self, experiment: Any) -> None:
        """Raises a UserError where the data is normalised."""
        check_pixels(experiment.data)

    def spread(self, v: Array) -> tuple[Array, Array]:
        """(logit(margin + (1 - 2 margin) v), log |its derivative| of each image [B])."""
        p = self.margin + (1 - 2 * self.margin) * v
        slope = jnp.log((1 - 2 * self.margin) / (p * (1 - p)))
        return jnp.log(p) - jnp.log1p(-p), slope.reshape(len(v), -1).sum(-1)

    def of(self, state: TrainState, z: Array) -> Array:
        """The images of numbers [N, D]: [N, H, W, C], in [0, 1]."""
        y: Any = self.model.apply(self.variables(state), z, method="inverse")
        v = (jax.nn.sigmoid(y) - self.margin) / (1 - 2 * self.margin)
        return jnp.clip(jnp.floor(256 * v) / 255, 0, 1)

    @property
    def _size(self) -> int:
        shape = getattr(self.model, "shape", None)
        if shape is None:
            raise UserError("task.model: has no `shape` of an image, which samples need.")
        return int(np.prod(shape))

    def sample(self, state: TrainState, key: Array, count: int) -> Array:
        """`count` images: [count, H, W, C]."""
        return self.of(state, self.temperature * jax.random.normal(key, (count, self._size)))

    def interpolate(self, state: TrainState, key: Array, rows: int, columns: int) -> Array:
        """Images of numbers between two draws, row by row."""
        ends = self.temperature * jax.random.normal(key, (2, rows, self._size))
        return self.of(state, path_between(ends[0], ends[1], columns))

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """Samples, and what lies between them."""
        yield drawn(self, state, material)
        yield between(self, state, material)

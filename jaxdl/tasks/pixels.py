"""Autoregressive models of images: each pixel given those before it, row by row."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.config import Size
from jaxdl.data.transforms import clean
from jaxdl.errors import UserError
from jaxdl.generative import check_labels, check_pixels, drawn, pixels, turns
from jaxdl.pictures import Images, Material, Picture, read, some
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array

SHOWN = 8  # images that are gone on with on the report


@dataclass(frozen=True, kw_only=True)
class Pixels(LossTask):
    """-log p(x) = -sum over pixels of log p(x_i | x_1 ... x_{i-1}), in nats for each image: van den
    Oord et al. (2016), https://arxiv.org/abs/1601.06759, section 2. "bits_per_dim" is it over the
    number of pixels and log 2.

    A batch has "image" [B, H, W, 1] in [0, 1] (data.mean=0, data.std=1), "mask" [B] and for a
    conditional network "label" [B]. A pixel x is the level round(x * (levels - 1)).

    Attributes:
      model: called as model(image, label, train), returns logits [B, H, W, levels]; see
        `models.pixel_cnn`.
      shape: of an image: height, width, 1.
      levels: that a pixel may have: 2 for binary images (`Binarise`), 256 for grey ones.
      conditional: whether the network is given the label.
    """

    model: nn.Module
    shape: tuple[Size, Size, Size] = (28, 28, 1)
    levels: Size = 2
    conditional: bool = False

    target_fields: ClassVar[tuple[str, ...]] = ()

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        batch = clean(batch)
        image = batch["image"]
        if image.shape[1:] != self.shape or self.shape[-1] != 1:
            raise UserError(f"task.shape={self.shape}: the data has images of {image.shape[1:]}, "
                            "and one channel is what this task draws.")
        logits, mutable = self.apply(self.model, variables, image, self.label(batch), key=key,
                                     train=train)
        if logits.shape[-1] != self.levels:
            raise UserError(f"task.levels={self.levels}: the model has {logits.shape[-1]}.")
        level = jnp.round(image[..., 0] * (self.levels - 1)).astype(jnp.int32)  # [B, H, W]
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), level[..., None], -1)
        nats = -own.reshape(len(image), -1).sum(-1)
        bits = nats / (level[0].size * jnp.log(2.))
        return Mean.of(nats, batch["mask"]), Aux(
            metrics={"bits_per_dim": Mean.of(bits, batch["mask"])}, mutable=mutable)

    def initial_loss(self, batch: Batch) -> Array:
        """Of a network for which all levels are equally likely."""
        return np.prod(self.shape) * jnp.log(float(self.levels))

    def label(self, batch: Batch) -> Array | None:
        """What a conditional network is given."""
        return batch["label"] if self.conditional else None

    def sample(self, state: TrainState, key: Array, count: int) -> Array:
        """`count` images, of each class in turn: [count, H, W, 1]."""
        return self.continued(state, key, jnp.zeros((count, *self.shape)),
                              turns(self.model, count), 0)

    def check(self, experiment: Any) -> None:
        """Raises a UserError where labels are asked for that the network is not given, or the data
        is normalised."""
        check_labels(self.conditional, {"task.model": self.model})
        check_pixels(experiment.data)

    def continued(self, state: TrainState, key: Array, image: Array, label: Array | None,
                  rows: int) -> Array:
        """Images [N, H, W, 1] with all but their first rows drawn anew, pixel by pixel; the whole
        network is computed for each."""
        height, width, _ = self.shape

        def pixel(i: Array, image: Array) -> Array:
            row, column = i // width, i % width
            logits, _ = self.apply(self.model, self.variables(state), image, label, key=state.key,
                                   train=False)
            level = jax.random.categorical(jax.random.fold_in(key, i), logits[:, row, column])
            return image.at[:, row, column, 0].set(level / (self.levels - 1))

        return jax.lax.fori_loop(rows * width, height * width, pixel, image)

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """Samples, and images of which the upper half is given."""
        yield drawn(self, state, material)
        source = material.source(material.split)
        batch = next(read(source, some(source, SHOWN), SHOWN))
        image, half = batch["image"], self.shape[0] // 2
        columns = [image, image.at[:, half:].set(0.)]
        again = jax.jit(lambda state, key: self.continued(state, key, image, self.label(batch),
                                                          half))
        columns += [again(state, jax.random.key(i)) for i in range(4)]
        grid = jnp.stack(columns, 1).reshape(-1, *image.shape[1:])
        yield Images(title="The lower half drawn anew",
                     heads=("image", "given", *["drawn"] * 4),
                     images=np.asarray(pixels(grid, source)))

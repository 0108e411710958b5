"""Masked autoencoder of He et al. (2022), https://arxiv.org/abs/2111.06377."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import noise
from jaxdl.config import Size
from jaxdl.data.transforms import clean
from jaxdl.errors import UserError
from jaxdl.models.vit import EncoderBlock, VisionTransformer, xavier
from jaxdl.pictures import Images, Material, Picture, read, some
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array

SHOWN = 8  # images that are drawn on the report


@dataclass(frozen=True, kw_only=True)
class MAE(LossTask):
    """A Vision Transformer sees a few patches of an image, and a small one draws the others
    (section 3, figure 1).

    The loss of an image is the mean squared error over the pixels of the patches that were not
    seen. A Classification with the same model starts from what was learned, with a new head:

        init_from=InitFrom(path=RUN, fresh=("params/head/.*",))

    Attributes:
      model: the encoder. Of `pool` "mean" what goes on learns the mean of the patches alone.
      visible: patches that the encoder sees; 49 of 196 in the paper.
      width: of the decoder.
      layers: of the decoder, its blocks.
      heads: of the decoder's attention.
      normalise: the patches to be drawn have mean 0 and deviation 1 each ("w/ norm", table 1d).
    """

    model: VisionTransformer
    visible: Size = 49
    width: Size = 512
    layers: Size = 8
    heads: Size = 16
    normalise: bool = True

    target_fields: ClassVar[tuple[str, ...]] = ()
    not_applicable: ClassVar[Mapping[str, str]] = {
        "modes": "in training the patches that are seen are drawn at random",
        "overfits": "which patches are seen is drawn anew in each step"}

    def initial_loss(self, batch: Batch) -> Array:
        """Of a decoder that draws nothing."""
        return jnp.square(self.wanted(batch["image"])[0]).mean()

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        batch = clean(batch)
        seen = self.seen(batch, key if train else jax.random.key(0))
        drawn, mutable = self.apply(self.whole(), variables, batch["image"], seen, key=key,
                                    train=train)
        errors = jnp.square(drawn - self.wanted(batch["image"])[0]).mean(-1)  # [B, T]
        hidden = 1 - jax.nn.one_hot(seen, errors.shape[1]).sum(1)  # [B, T]
        return (Mean.of((hidden * errors).sum(-1) / hidden.sum(-1), batch["mask"]),
                Aux(mutable=mutable))

    def whole(self) -> "MaskedAutoencoder":
        return MaskedAutoencoder(self.model, self.width, self.layers, self.heads)

    def seen(self, batch: Batch, key: Array) -> Array:
        """Which patches of each image are seen, drawn by the example's own key: [B, visible]."""
        size, (height, width) = self.model.patch, batch["image"].shape[1:3]
        number = (height // size) * (width // size)
        if self.visible >= number:
            raise UserError(f"MAE: visible={self.visible} of {number} patches leaves none to be "
                            f"drawn; a quarter is {max(number // 4, 1)}.")
        keys = noise.keys(key, batch)
        order = jax.vmap(lambda key: jax.random.permutation(key, number))(keys)
        return order[:, :self.visible]

    def wanted(self, image: Array) -> tuple[Array, Array, Array]:
        """The patches that are to be drawn [B, T, pixels], and their means and deviations."""
        x = patched(image, self.model.patch)
        mean, deviation = x.mean(-1, keepdims=True), jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return (x - mean) / deviation if self.normalise else x, mean, deviation

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """Some images, what the encoder sees of them, and what the decoder draws."""
        source = material.source(material.split)
        batch = next(read(source, some(source, SHOWN), SHOWN))
        image, size = batch["image"], self.model.patch
        seen = self.seen(batch, jax.random.key(0))
        drawn, _ = self.apply(self.whole(), self.variables(state), image, seen, key=state.key,
                              train=False)
        x, mean, deviation = self.wanted(image)
        if self.normalise:
            drawn, x = drawn * deviation + mean, x * deviation + mean
        shown = jax.nn.one_hot(seen, x.shape[1]).sum(1)[..., None] > 0  # [B, T, 1]
        low, high = float(image.min()), float(image.max())
        columns = [image, *(unpatched(y, size, image.shape) for y in (
            jnp.where(shown, x, (low + high) / 2), jnp.where(shown, x, drawn)))]
        pixels = np.asarray(jnp.stack(columns, 1).reshape(-1, *image.shape[1:]))
        given = " Each patch has its own mean and deviation back, which the network did not know."
        yield Images(title="Reconstructions", heads=("image", "seen", "drawn"),
                     images=np.clip((pixels - low) / max(high - low, 1e-6), 0, 1),
                     note=f"Of {x.shape[1]} patches {self.visible} are seen; the decoder draws "
                          "the others." + given * self.normalise)


class MaskedAutoencoder(nn.Module):
    """The encoder on the patches that are seen, and the decoder on all: [B, T, pixels].

    Attributes:
      model: its parameters lie beside "decoder", where they would be without it.
      width, layers, heads: of the decoder.
    """

    model: VisionTransformer
    width: int
    layers: int
    heads: int

    def setup(self) -> None:
        nn.share_scope(self, self.model)
        self.decoder = Decoder(self.width, self.layers, self.heads)

    def __call__(self, image: Array, seen: Array, train: bool) -> Array:
        first = int(self.model.pool == "token")  # The class token stays.
        tokens = [jnp.zeros((len(seen), first), seen.dtype), seen + first]
        kept = jnp.concatenate(tokens, 1)[..., None]  # [B, first + visible, 1]
        outputs = {}

        def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            path = "/".join(context.module.path)
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            if path == "block1":  # Patches have their positions by now.
                args = (jnp.take_along_axis(args[0], kept, 1), *args[1:])
            if path == "head":  # Nobody asks for classes.
                return args[0]
            outputs[path] = call(*args, **kwargs)
            return outputs[path]

        with nn.intercept_methods(watch):
            self.model(image, train)
        pixels = self.model.patch ** 2 * image.shape[-1]
        number = outputs["patches"].shape[1] * outputs["patches"].shape[2]
        return self.decoder(outputs["norm"][:, first:], seen, number, pixels, train)


class Decoder(nn.Module):
    """Puts encoded patches in their places and a learned token in all others, adds positions, and
    draws every patch by Transformer blocks."""

    width: int
    layers: int
    heads: int

    @nn.compact
    def __call__(self, x: Array, seen: Array, number: int, pixels: int, train: bool) -> Array:
        x = nn.Dense(self.width, kernel_init=xavier, name="embed")(x)  # [B, V, D]
        start = nn.initializers.normal(0.02)
        token = self.param("mask_token", start, (1, 1, self.width)).astype(x.dtype)
        positions = self.param("positions", start, (1, number, self.width)).astype(x.dtype)
        places = jax.nn.one_hot(seen, number, dtype=x.dtype)  # [B, V, T]
        hidden = 1 - places.sum(1)[..., None]  # [B, T, 1]
        x = jnp.einsum("bvt,bvd->btd", places, x) + hidden * token + positions
        for i in range(self.layers):
            x = EncoderBlock(self.heads, None, None, name=f"block{i + 1}")(x, train)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
        return nn.Dense(pixels, kernel_init=start, name="pixels")(x)


def patched(image: Array, size: int) -> Array:
    """The patches of images [B, H, W, C], row by row: [B, T, size * size * C]."""
    batch, height, width, channels = image.shape
    x = image.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)


def unpatched(x: Array, size: int, shape: tuple[int, ...]) -> Array:
    """Images of that shape [B, H, W, C] out of their patches."""
    batch, height, width, channels = shape
    x = x.reshape(batch, height // size, width // size, size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(shape)

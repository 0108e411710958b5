"""Autoencoders: an image through few numbers and back, also out of a spoiled copy of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import noise
from jaxdl.config import Fraction, NonNegative
from jaxdl.data.transforms import clean
from jaxdl.generative import pixels, same_shape
from jaxdl.pictures import Images, Material, Picture, read, some
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array

SHOWN = 8  # images that are drawn again on the report


class Whole(nn.Module):
    """Encoder, then decoder."""

    encoder: nn.Module
    decoder: nn.Module | None

    def __call__(self, image: Array, train: bool) -> Array:
        found = self.encoder(image, train=train)  # type: ignore[operator]
        return found if self.decoder is None else self.decoder(found, train)


@dataclass(frozen=True, kw_only=True)
class Autoencoder(LossTask):
    """The mean squared error over the values of an image x, between it and decoder(encoder(x'))
    (Hinton & Salakhutdinov 2006), where x' is x, or what noise left of it: a denoising autoencoder
    (Vincent et al. 2008, https://doi.org/10.1145/1390156.1390294, section 2.3). The copy of an
    example is spoiled anew in each step, and always alike in evaluation.

    A batch has "image" [B, H, W, C] and "mask" [B].

    Attributes:
      encoder: Linen module called as encoder(image, train=train).
      decoder: called as decoder(what the encoder returns, train), returns images; for
        `models.autoencoder.Decoder` that is features [B, F] or a map [B, h, w, c]. None where the
        encoder returns images itself, as `models.unet.UNet` does.
      deviation: of normal noise that is added to each value; None for none.
      hidden: probability that a pixel is set to zero in all channels; None for none.
    """

    encoder: nn.Module
    decoder: nn.Module | None = None
    deviation: NonNegative | None = None
    hidden: Fraction | None = None

    target_fields: ClassVar[tuple[str, ...]] = ()

    @property
    def not_applicable(self) -> Mapping[str, str]:
        """Checks that noise makes meaningless."""
        if self.deviation is None and self.hidden is None:
            return {}
        return {"modes": "in training noise is added at random",
                "overfits": "the noise is drawn anew in each step"}

    def whole(self) -> Whole:
        """Encoder and decoder as one model."""
        return Whole(self.encoder, self.decoder)

    def spoiled(self, batch: Batch, key: Array) -> Array:
        """x' of the images of a batch: [B, H, W, C]."""
        image = batch["image"]
        if self.deviation is not None:
            image = image + self.deviation * noise.normal(key, batch, image.shape[1:])
        if self.hidden is not None:
            shape = (*image.shape[1:3], 1)
            gone = noise.uniform(jax.random.fold_in(key, 1), batch, shape) < self.hidden
            image = jnp.where(gone, 0, image)
        return image

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        batch = clean(batch)
        given = self.spoiled(batch, key if train else jax.random.key(0))
        found, mutable = self.apply(self.whole(), variables, given, key=key, train=train)
        same_shape(found, batch["image"],
                   "task.encoder" if self.decoder is None else "task.decoder")
        errors = jnp.square(found - batch["image"])
        return (Mean.of(errors.reshape(len(found), -1).mean(-1), batch["mask"]),
                Aux(mutable=mutable))

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """Some images, what the encoder sees of them, and what comes out."""
        source = material.source(material.split)
        batch = next(read(source, some(source, SHOWN), SHOWN))
        given = self.spoiled(batch, jax.random.key(0))
        found, _ = self.apply(self.whole(), self.variables(state), given, key=state.key,
                              train=False)
        columns = jnp.stack([batch["image"], given, found], 1).reshape(-1, *found.shape[1:])
        yield Images(title="Reconstructions", heads=("image", "seen", "drawn"),
                     images=np.asarray(pixels(columns, source)))

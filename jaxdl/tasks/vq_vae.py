"""VQ-VAE of van den Oord et al. (2017), https://arxiv.org/abs/1711.00937: images as codes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.config import NonNegative, Size
from jaxdl.data.transforms import clean
from jaxdl.errors import UserError
from jaxdl.generative import drawn, pixels, same_shape
from jaxdl.models.pixel_cnn import PixelCNN
from jaxdl.pictures import Images, Material, Picture, read, some
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array

SHOWN = 8  # images that are drawn again on the report


class Quantised(nn.Module):
    """Images by a map of codes.

    Attributes:
      encoder: [B, H, W, C] to a map [B, h, w, c].
      decoder: a map [B, h, w, width] to [B, H, W, C].
      codes: K.
      width: of a code's vector.
    """

    encoder: nn.Module
    decoder: nn.Module
    codes: int
    width: int

    def setup(self) -> None:
        self.project = nn.Dense(self.width)
        self.norm = nn.LayerNorm(use_bias=False, use_scale=False)
        self.codebook = self.param("codebook", nn.initializers.normal(1.), (self.codes, self.width))

    def __call__(self, image: Array, train: bool) -> tuple[Array, Array, Array, Array]:
        """(what the decoder draws, z [B, h, w, D], its vectors e, codes [B, h, w])."""
        z = self.encoded(image, train)
        code = self.nearest(z)
        e = self.book().astype(z.dtype)[code]
        straight = z + jax.lax.stop_gradient(e - z)  # e, with the gradient of z
        return self.decoder(straight, train), z, e, code  # type: ignore[operator]

    def encoded(self, image: Array, train: bool) -> Array:
        """z of images, each vector with mean 0 and deviation 1: [B, h, w, D]."""
        return self.norm(self.project(self.encoder(image, train)))  # type: ignore[operator]

    def book(self) -> Array:
        """The codes' vectors [K, D], with mean 0 and deviation 1 as z, so that all are as likely
        to be somebody's nearest (Yu et al. 2022, https://arxiv.org/abs/2110.04627)."""
        return self.norm(self.codebook)

    def nearest(self, z: Array) -> Array:
        """The codes whose vectors are nearest: int32 [B, h, w]."""
        # All vectors are of one length: the nearest has the largest product.
        return (z @ self.book().astype(z.dtype).T).argmax(-1).astype(jnp.int32)

    def code(self, image: Array) -> Array:
        """The codes of images: int32 [B, h, w]."""
        return self.nearest(self.encoded(image, False))

    def decode(self, code: Array) -> Array:
        """The images of codes [B, h, w]: [B, H, W, C]."""
        return self.decoder(self.book()[code], False)  # type: ignore[operator]


@dataclass(frozen=True, kw_only=True)
class VQVAE(LossTask):
    """An encoder makes a map of vectors z of an image, each is replaced by the nearest of K learned
    vectors e, and a decoder draws the image of those (equation 3): the loss is

        mean of (x - decoded)^2 + mean of (sg(z) - e)^2 + commitment * mean of (z - sg(e))^2,

    where sg stops the gradient, and the decoder's goes to z as if it were e. The vectors of both
    have mean 0 and deviation 1 (Yu et al. 2022, https://arxiv.org/abs/2110.04627, have
    them of length 1), and few numbers each: else a handful of codes is all that is used. "codes" is
    the perplexity of the codes of a batch (of each micro-batch): how many it uses, as it were.

    A batch has "image" [B, H, W, C] and "mask" [B]. `CodePrior` learns to draw codes.

    Attributes:
      encoder: Linen module called as encoder(image, train), returns a map [B, h, w, c].
      decoder: called as decoder(map [B, h, w, width], train), returns images.
      codes: K.
      width: of a code's vector, D.
      commitment: beta of the paper.
    """

    encoder: nn.Module
    decoder: nn.Module
    codes: Size = 128
    width: Size = 4
    commitment: NonNegative = 0.25

    target_fields: ClassVar[tuple[str, ...]] = ()

    def whole(self) -> Quantised:
        """All of it as one model."""
        return Quantised(self.encoder, self.decoder, self.codes, self.width)

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        batch = clean(batch)
        (found, z, e, code), mutable = self.apply(self.whole(), variables, batch["image"], key=key,
                                                  train=train)
        if z.ndim != 4:
            raise UserError(f"task.encoder: returns {z.ndim - 1} dimensions for each image; a map "
                            "of codes needs 3 (Encoder: features=None).")

        def mean(x: Array) -> Array:
            return x.reshape(len(x), -1).mean(-1)

        stop = jax.lax.stop_gradient
        same_shape(found, batch["image"], "task.decoder")
        error = mean((found - batch["image"]) ** 2)
        total = error + mean((stop(z) - e) ** 2) + self.commitment * mean((z - stop(e)) ** 2)
        mask = batch["mask"]
        weight = jnp.broadcast_to(mask[:, None, None], code.shape)
        share = jnp.zeros(self.codes).at[code].add(weight) / jnp.maximum(weight.sum(), 1)
        metrics: dict[str, Any] = {"error": Mean.of(error, mask)}
        if train:
            used = jnp.exp(-(share * jnp.log(jnp.maximum(share, 1e-12))).sum())
            metrics["codes"] = Mean(used, jnp.ones(()))
        return Mean.of(total, mask), Aux(metrics=metrics, mutable=mutable)

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """Some images, and what their codes give."""
        source = material.source(material.split)
        batch = next(read(source, some(source, SHOWN), SHOWN))
        found = self.whole().apply(self.variables(state), batch["image"], False)[0]
        columns = jnp.stack([batch["image"], found], 1).reshape(-1, *batch["image"].shape[1:])
        yield Images(title="Reconstructions", heads=("image", "of its codes"),
                     images=np.asarray(pixels(columns, source)))


class Both(nn.Module):
    """Logits of the codes of images, and the codes."""

    vq: Quantised
    prior: nn.Module

    def __call__(self, image: Array, train: bool) -> tuple[Array, Array]:
        code = jax.lax.stop_gradient(self.vq.code(image))
        if self.is_initializing():
            self.vq.decode(code)  # Its parameters belong to this model too.
        return self.prior(code, None, train), code  # type: ignore[operator]

    def logits(self, code: Array) -> Array:
        return self.prior(code, None, False)  # type: ignore[operator]

    def decode(self, code: Array) -> Array:
        return self.vq.decode(code)


@dataclass(frozen=True, kw_only=True)
class CodePrior(LossTask):
    """-log p(codes of an image) by an autoregressive model, in nats for each image (section 3.2):
    what it draws, the decoder of a trained VQ-VAE turns into images. That one lies among the
    parameters as "vq" and is not trained; it comes from its run:

        init_from=InitFrom(path=RUN, rename=(("^params/", "params/vq/"),),
                           fresh=("params/prior/.*",))

    Attributes:
      vq: the task of that run.
      model: of the codes, called as model(codes [B, h, w], None, train), returns logits
        [B, h, w, K]; a PixelCNN with embedded=True.
      shape: of a map of codes: height and width.
    """

    vq: VQVAE
    model: PixelCNN
    shape: tuple[Size, Size] = (7, 7)

    target_fields: ClassVar[tuple[str, ...]] = ()

    def freezes(self) -> tuple[str, ...]:
        return (*self.freeze, "vq/.*")

    def whole(self) -> Both:
        """Both models as one."""
        return Both(self.vq.whole(), self.model)

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        batch = clean(batch)
        (logits, code), mutable = self.apply(self.whole(), variables, batch["image"], key=key,
                                             train=train)
        if code.shape[1:] != self.shape:
            raise UserError(f"task.shape={self.shape}: the maps of codes are {code.shape[1:]}.")
        if logits.shape[-1] != self.vq.codes:
            raise UserError(f"task.model.levels={logits.shape[-1]}: there are {self.vq.codes} "
                            "codes.")
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), code[..., None], -1)
        return Mean.of(-own.reshape(len(code), -1).sum(-1), batch["mask"]), Aux(mutable=mutable)

    def initial_loss(self, batch: Batch) -> Array:
        """Of a model for which all codes are equally likely."""
        return np.prod(self.shape) * jnp.log(float(self.vq.codes))

    def sample(self, state: TrainState, key: Array, count: int) -> Array:
        """`count` images: [count, H, W, C]."""
        whole, variables = self.whole(), self.variables(state)
        height, width = self.shape

        def place(i: Array, code: Array) -> Array:
            logits: Any = whole.apply(variables, code, method="logits")
            row, column = i // width, i % width
            drawn = jax.random.categorical(jax.random.fold_in(key, i), logits[:, row, column])
            return code.at[:, row, column].set(drawn.astype(code.dtype))

        code = jax.lax.fori_loop(0, height * width, place,
                                 jnp.zeros((count, height, width), jnp.int32))
        found: Any = whole.apply(variables, code, method="decode")
        return found

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """Samples."""
        yield drawn(self, state, material)

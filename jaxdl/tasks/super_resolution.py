"""Super-resolution: from a small image to the large one that it was made from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.config import Size
from jaxdl.data.transforms import clean
from jaxdl.errors import UserError
from jaxdl.fidelity import psnr, ssim
from jaxdl.generative import check_pixels, pixels
from jaxdl.models.super_resolution import enlarged
from jaxdl.pictures import Images, Material, Picture, read, some
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array

SHOWN = 6  # images on the report
WINDOW = 11  # pixels of a side that SSIM sees at once


@dataclass(frozen=True, kw_only=True)
class SuperResolution(LossTask):
    """The mean over pixels of |x - model(x')|^2, or of |x - model(x')|, where x' is the image x
    made `scale` times smaller by bicubic interpolation with antialiasing, as in most papers since
    Dong et al. (2014), https://arxiv.org/abs/1501.00092.

    In evaluation "psnr" (decibels) and "ssim" are means over images, in [0, 1] and without a border
    of `scale` pixels; "bicubic_psnr" and "bicubic_ssim" are those of x' enlarged again by bicubic
    interpolation.

    A batch has "image" [B, H, W, C] in [0, 1] (data.mean=0, data.std=1), its sides multiples of
    `scale`, and "mask" [B].

    Attributes:
      model: called as model(small image [B, h, w, C], train), returns [B, H, W, C].
      scale: how many times smaller.
      norm: "l2" or "l1".
    """

    model: nn.Module
    scale: Size = 3
    norm: Literal["l2", "l1"] = "l2"

    target_fields: ClassVar[tuple[str, ...]] = ()

    def check(self, experiment: Any) -> None:
        """Raises a UserError where the data is normalised."""
        check_pixels(experiment.data)

    def lower(self, image: Array) -> Array:
        """Images [B, H, W, C] `scale` times smaller."""
        batch, height, width, channels = image.shape
        if height % self.scale or width % self.scale:
            raise UserError(f"task.scale={self.scale}: images of {height} x {width} cannot be "
                            "divided by it.")
        if min(height, width) < 2 * self.scale + WINDOW:
            raise UserError(f"SuperResolution: images of {height} x {width} are too small; SSIM "
                            f"sees squares of {WINDOW}, within a border of task.scale pixels.")
        shape = batch, height // self.scale, width // self.scale, channels
        return jax.image.resize(image, shape, "bicubic")

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        batch = clean(batch)
        image, mask = batch["image"], batch["mask"]
        low = self.lower(image)
        found, mutable = self.apply(self.model, variables, low, key=key, train=train)
        if found.shape != image.shape:
            raise UserError(f"task.model: makes images {found.shape[1:]} of {low.shape[1:]}, "
                            f"expected {image.shape[1:]}: its scale is another one.")
        errors = found - image
        errors = jnp.square(errors) if self.norm == "l2" else jnp.abs(errors)
        metrics = {} if train else {
            f"{name}{kind}": Mean.of(measure(self.inner(x), self.inner(image)), mask)
            for name, x in (("", found), ("bicubic_", enlarged(low, self.scale)))
            for kind, measure in (("psnr", psnr), ("ssim", ssim))}
        return (Mean.of(errors.reshape(len(image), -1).mean(-1), mask),
                Aux(metrics=metrics, mutable=mutable))

    def inner(self, image: Array) -> Array:
        """What is measured of an image."""
        edge = slice(self.scale, -self.scale)
        return jnp.clip(image[:, edge, edge], 0, 1)

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """Some images, enlarged by interpolation and by the network."""
        source = material.source(material.split)
        image = next(read(source, some(source, SHOWN), SHOWN))["image"]
        low = self.lower(image)
        found, _ = self.apply(self.model, self.variables(state), low, key=state.key, train=False)
        columns = jnp.stack([enlarged(low, self.scale), found, image], 1)
        yield Images(title="Enlarged", heads=("bicubic", "network", "image"),
                     images=np.asarray(pixels(columns.reshape(-1, *image.shape[1:]), source)))

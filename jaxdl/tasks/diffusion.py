"""Diffusion models: Ho et al. (2020), https://arxiv.org/abs/2006.11239, and Karras et al. (2022),
https://arxiv.org/abs/2206.00364, as two ways to train the same denoiser."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import diffusion, noise
from jaxdl.config import Between, Fraction, NonNegative, Size
from jaxdl.data.transforms import clean
from jaxdl.errors import UserError
from jaxdl.generative import check_labels, drawn, path_between, pixels, turns
from jaxdl.pictures import Images, Material, Picture, read, some
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array

# The highest level that samples of "ddpm" begin at: above it nothing is seen of an image, and
# D = x - s F multiplies what F has wrong.
HIGHEST = 20.
SHOWN = 8  # images that are noised and denoised on the report


@dataclass(frozen=True, kw_only=True)
class Diffusion(LossTask):
    """A network F learns to take noise out of images. With the noise level s,

        D(x, s) = c_skip x + c_out F(c_in x, ln(s) / 4)

    and the loss of an image y is the mean over its pixels of (F - (y - c_skip x) / c_out)^2, where
    x = y + s n (Karras et al., equations 7 and 8).

    "ddpm": c_skip = 1, c_out = -s, c_in = 1 / sqrt(1 + s^2), so that F is to be the noise, and the
    levels are those of a uniform timestep (Ho et al., algorithm 1; the network is told the level
    and not the timestep). "edm": the constants of Karras et al., table 1, and ln(s) is normal.

    A batch has "image" [B, H, W, C], best in [-1, 1], "mask" [B] and for a conditional network
    "label" [B].

    Attributes:
      model: called as model(image, level, label, train), returns images; see `models.unet`.
      shape: of an image: height, width, channels.
      objective: which of the two.
      schedule: of the levels of "ddpm".
      log_mean: mean of ln(s) for "edm".
      log_deviation: its deviation.
      data_deviation: of the pixels, for "edm".
      conditional: whether the network is given the label.
      label_dropout: probability that in training it is not, so that it can also do without; None
        where it shall not be guided.
      guidance: how strongly labels guide the samples (`diffusion.guided`); None for not at all.
      sampler: of `jaxdl.diffusion`: "ddim", "heun", which has two calls of the network for each
        step, or "ddpm".
      sample_steps: of the sampler.
    """

    model: nn.Module
    shape: tuple[Size, Size, Size] = (28, 28, 1)
    objective: Literal["ddpm", "edm"] = "edm"
    schedule: Literal["linear", "cosine"] = "cosine"
    log_mean: float = -1.2
    log_deviation: NonNegative = 1.2
    data_deviation: Annotated[float, Between(1e-6)] = 0.5
    conditional: bool = False
    label_dropout: Fraction | None = None
    guidance: NonNegative | None = None
    sampler: Literal["ddim", "heun", "ddpm"] = "heun"
    sample_steps: Size = 18

    target_fields: ClassVar[tuple[str, ...]] = ()
    not_applicable: ClassVar[Mapping[str, str]] = {
        "modes": "in training noise is added at random",
        "overfits": "the noise is drawn anew in each step"}

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        batch = clean(batch)
        image = batch["image"]
        if image.shape[1:] != self.shape:
            raise UserError(f"task.shape={self.shape}: the data has images of {image.shape[1:]}.")
        of = [jax.random.fold_in(key if train else jax.random.key(0), i) for i in range(3)]
        level = self.levels(noise.uniform(of[0], batch, ()))
        label = self.label(batch)
        if label is not None and train and self.label_dropout is not None:
            unknown = noise.uniform(of[2], batch, ()) < self.label_dropout
            label = jnp.where(unknown, -1, label)
        s = level[:, None, None, None]
        x = image + s * noise.normal(of[1], batch, image.shape[1:])
        skip, out, scale = self.constants(s)
        found, mutable = self.apply(self.model, variables, scale * x, jnp.log(level) / 4, label,
                                    key=key, train=train)
        errors = jnp.square(found - (image - skip * x) / out)
        return (Mean.of(errors.reshape(len(image), -1).mean(-1), batch["mask"]),
                Aux(mutable=mutable))

    def initial_loss(self, batch: Batch) -> Array:
        """Of a network that draws nothing, as `UNet` begins: for "ddpm" the noise is left."""
        if self.objective == "ddpm":
            return jnp.ones(())
        variance = jnp.square(batch["image"]).mean() / self.data_deviation ** 2
        s = self.levels(jnp.linspace(0.005, 0.995, 100))
        share = s ** 2 / (s ** 2 + self.data_deviation ** 2)
        return (share * variance + 1 - share).mean()

    def levels(self, uniform: Array) -> Array:
        """The noise levels of uniform numbers in [0, 1) [B]: [B]."""
        if self.objective == "edm":
            normal = jax.scipy.special.ndtri(jnp.clip(uniform, 1e-6, 1 - 1e-6))
            return jnp.exp(self.log_mean + self.log_deviation * normal)
        table = diffusion.ddpm_levels(self.schedule)
        return table[(uniform * len(table)).astype(int)]

    def constants(self, s: Array) -> tuple[Any, Array, Array]:
        """c_skip, c_out and c_in at a level."""
        if self.objective == "ddpm":
            return 1., -s, 1 / jnp.sqrt(1 + s ** 2)
        both = s ** 2 + self.data_deviation ** 2
        return (self.data_deviation ** 2 / both, s * self.data_deviation / jnp.sqrt(both),
                1 / jnp.sqrt(both))

    def denoised(self, state: TrainState, x: Array, level: Array, label: Array | None) -> Array:
        """D(x, s) of images [B, H, W, C] at one level, with labels [B] or none."""
        skip, out, scale = self.constants(level)
        if self.conditional and label is None:
            label = jnp.full(len(x), -1)
        found, _ = self.apply(self.model, self.variables(state), scale * x,
                              jnp.full(len(x), jnp.log(level) / 4), label, key=state.key,
                              train=False)
        return skip * x + out * found

    def label(self, batch: Batch) -> Array | None:
        """What a conditional network is given."""
        return batch["label"] if self.conditional else None

    def sample(self, state: TrainState, key: Array, count: int) -> Array:
        """`count` images, of each class in turn: [count, H, W, C]."""
        start, more = jax.random.split(key)
        return self.from_noise(state, jax.random.normal(start, (count, *self.shape)), more,
                               self.turns(count))

    def from_noise(self, state: TrainState, epsilon: Array, key: Array,
                   label: Array | None) -> Array:
        """The images that a sampler makes of standard normal noise [B, H, W, C]."""
        if self.objective == "edm":
            levels = diffusion.karras_levels(self.sample_steps)
        else:
            table = jnp.minimum(diffusion.ddpm_levels(self.schedule), HIGHEST)
            levels = diffusion.spaced(table, self.sample_steps)

        def denoise(x: Array, level: Array, told: bool = True) -> Array:
            return self.denoised(state, x, level, label if told else None)

        denoiser: Any = denoise
        if self.guidance is not None and label is not None:
            denoiser = diffusion.guided(denoise, self.guidance)
        x = levels[0] * epsilon
        if self.sampler == "ddpm":
            return diffusion.ddpm(denoiser, x, levels, key)
        return (diffusion.heun if self.sampler == "heun" else diffusion.ddim)(denoiser, x, levels)

    def interpolate(self, state: TrainState, key: Array, rows: int, columns: int) -> Array:
        """Images of noise between two draws, row by row; the path goes through the same noise."""
        size = int(np.prod(self.shape))
        ends = jax.random.normal(key, (2, rows, size))
        between = path_between(ends[0], ends[1], columns).reshape(-1, *self.shape)
        label = self.turns(rows)
        return self.from_noise(state, between, key,
                               None if label is None else jnp.repeat(label, columns))

    def turns(self, count: int) -> Array | None:
        """Labels of `count` samples: each class in turn."""
        return turns(self.model, count)

    def check(self, experiment: Any) -> None:
        """Raises a UserError where labels are asked for that the network is not given."""
        check_labels(self.conditional, {"task.model": self.model})
        if self.guidance is not None and (not self.conditional or self.label_dropout is None):
            raise UserError("task.guidance: needs task.conditional=True and a task.label_dropout, "
                            "0.1 for one, so that the network learns to do without the label too.")

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """Samples, and what the network sees in images under more and more noise."""
        yield drawn(self, state, material)
        source = material.source(material.split)
        batch = next(read(source, some(source, SHOWN), SHOWN))
        image = batch["image"]
        epsilon = jax.random.normal(jax.random.key(material.seed), image.shape)
        columns, heads = [image], ["image"]
        for s in (0.3, 1., 3.):
            x = image + s * epsilon
            found = jax.jit(self.denoised)(state, x, jnp.float32(s), self.label(batch))
            columns += [x, found]
            heads += [f"noise {s:g}", "denoised"]
        grid = jnp.stack(columns, 1).reshape(-1, *image.shape[1:])
        yield Images(title="Denoising", heads=heads, images=np.asarray(pixels(grid, source)))

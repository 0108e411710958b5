"""Augmentation and normalisation of images, on the device, inside the compiled step.

A transform is a frozen dataclass called as `batch = transform(batch, keys)`, with one random key
for each example. Float images lie in [0, 1] until they are normalised. Cropping, flipping and
cutting keep the type of the image, so on uint8 they are cheapest first in a chain; whatever
interpolates or mixes turns uint8 into float32 in [0, 1]. One that draws at random in evaluations
too, on purpose, names the fields in `draws`; the keys of an example are always the same there.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxdl.config import Count, Fraction, NonNegative, Size
from jaxdl.data.source import Batch
from jaxdl.errors import UserError

Array = jax.Array


def to_float(image: Array) -> Array:
    """uint8 0 ... 255 as float32 in [0, 1]; anything else as it is."""
    return image.astype(jnp.float32) / 255 if image.dtype == jnp.uint8 else image


def clean(batch: Mapping[str, Array], *names: str) -> Batch:
    """The batch with zeros in the images that are masked, which may hold anything, NaN included:
    in "image", or in the fields of these names."""
    found = dict(batch)
    for name in names or ("image",):
        x = batch[name]
        kept = (batch["mask"] > 0).reshape(-1, *[1] * (x.ndim - 1))
        found[name] = jnp.where(kept, x, jnp.zeros((), x.dtype))
    return found


@dataclass(frozen=True, kw_only=True)
class ToFloat:
    """uint8 images as float32 in [0, 1]; float images stay as they are."""

    def __call__(self, batch: Batch, keys: Array) -> Batch:
        return {**batch, "image": to_float(batch["image"])}


@dataclass(frozen=True, kw_only=True)
class Normalise:
    """(image - mean) / std, for each channel; a uint8 image is first scaled to [0, 1].

    Attributes:
      mean: of each channel of images in [0, 1]; a single number serves all channels.
      std: standard deviation of each channel of images in [0, 1].
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, batch: Batch, keys: Array) -> Batch:
        image = to_float(batch["image"])  # [B, H, W, C]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, image.shape[-1]):
                raise UserError(f"Normalise: {name} has {len(values)} numbers, but the images have "
                                f"{image.shape[-1]} channels.")
        mean, std = jnp.asarray(self.mean, image.dtype), jnp.asarray(self.std, image.dtype)
        return {**batch, "image": (image - mean) / std}


@dataclass(frozen=True, kw_only=True)
class Binarise:
    """Draws each pixel as 0 or 1, with its intensity as the probability of 1 (Salakhutdinov &
    Murray 2008, section 6.1): anew for each step of the training, the same for each evaluation.

    The data must not be normalised besides: mean=(0.,), std=(1.,).
    """

    draws: ClassVar[tuple[str, ...]] = ("image",)

    def __call__(self, batch: Batch, keys: Array) -> Batch:
        image = to_float(batch["image"])  # [B, H, W, C]
        drawn = jax.vmap(lambda key: jax.random.uniform(key, image.shape[1:]))(keys)
        return {**batch, "image": (drawn < image).astype(jnp.float32)}


@dataclass(frozen=True, kw_only=True)
class Edges:
    """Adds "source": the length of the gradient of the image, by Sobel's kernels over a fourth and
    the mean of the channels, from -1 where there is none to 1: [B, H, W, 1]."""

    def __call__(self, batch: Batch, keys: Array) -> Batch:
        image = to_float(batch["image"]).mean(-1)  # [B, H, W]
        x = jnp.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
        smooth = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]  # over rows
        across = (smooth[:, :, 2:] - smooth[:, :, :-2]) / 4
        smooth = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]  # over columns
        down = (smooth[:, 2:] - smooth[:, :-2]) / 4
        length = jnp.sqrt(across ** 2 + down ** 2)
        return {**batch, "source": 2 * jnp.clip(length, 0, 1)[..., None] - 1}


class PerImage:
    """What treats each image alone: draws from the image's own key, then a pure function of the
    image and what was drawn. Its place in the batch cannot matter."""

    def draw(self, key: Array, shape: tuple[int, ...]) -> Any:
        """The random numbers for one image of shape [H, W, C]."""
        raise TypeError(f"{type(self).__name__} must define draw().")

    def apply(self, image: Array, drawn: Any) -> Array:
        """One transformed image [H, W, C]."""
        raise TypeError(f"{type(self).__name__} must define apply().")

    def __call__(self, batch: Batch, keys: Array) -> Batch:
        image = batch["image"]  # [B, H, W, C]
        drawn = jax.vmap(lambda key: self.draw(key, image.shape[1:]))(keys)
        return {**batch, "image": jax.vmap(self.apply)(image, drawn)}


@dataclass(frozen=True, kw_only=True)
class PadCrop(PerImage):
    """Pads with zeros on each side and crops the old size at a random place (He et al. 2015, 4.2).

    Attributes:
      pad: pixels on each side.
    """

    pad: Count = 4

    def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.randint(key, (2,), 0, 2 * self.pad + 1)  # (top, left) in the padded image

    def apply(self, image: Array, drawn: Array) -> Array:
        around = (self.pad, self.pad)
        padded = jnp.pad(image, (around, around, (0, 0)))
        return jax.lax.dynamic_slice(padded, (drawn[0], drawn[1], 0), image.shape)


@dataclass(frozen=True, kw_only=True)
class Flip(PerImage):
    """Mirrors at random; each direction that is on is drawn on its own.

    Attributes:
      probability: of mirroring in a direction.
      horizontal: mirror left and right.
      vertical: mirror top and bottom.
    """

    probability: Fraction = 0.5
    horizontal: bool = True
    vertical: bool = False

    def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.uniform(key, (2,)) < self.probability  # (left-right, top-bottom)

    def apply(self, image: Array, drawn: Array) -> Array:
        if self.horizontal:
            image = jnp.where(drawn[0], image[:, ::-1], image)
        if self.vertical:
            image = jnp.where(drawn[1], image[::-1], image)
        return image


@dataclass(frozen=True, kw_only=True)
class CenterCrop:
    """The square in the middle; half a pixel towards the top left where the margin is odd.

    Attributes:
      size: height and width of the result, in pixels.
    """

    size: Size = 224

    def __call__(self, batch: Batch, keys: Array) -> Batch:
        image = batch["image"]  # [B, H, W, C]
        height, width = image.shape[1:3]
        if self.size > min(height, width):
            raise UserError(f"CenterCrop: size={self.size} exceeds the image, {height} x {width}; "
                            f"at most {min(height, width)}.")
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return {**batch, "image": image[:, top:top + self.size, left:left + self.size]}


@dataclass(frozen=True, kw_only=True)
class Resize:
    """The image in another size, antialiased linearly; the sides are stretched each on its own.

    Attributes:
      size: height and width of the result, in pixels.
    """

    size: Size = 224

    def __call__(self, batch: Batch, keys: Array) -> Batch:
        image = to_float(batch["image"])  # [B, H, W, C]
        rows, columns = (resize_weights(self.size, length, jnp.float32(0), jnp.float32(length))
                         for length in image.shape[1:3])
        return {**batch, "image": jnp.einsum("ih,bhwc,jw->bijc", rows, image, columns)}


@dataclass(frozen=True, kw_only=True)
class Cutout(PerImage):
    """Zeroes a square around a random pixel (DeVries & Taylor 2017, https://arxiv.org/abs/1708.04552).

    The square may stick out of the image. Put it after `Normalise` to fill with the mean colour.

    Attributes:
      size: side of the square, in pixels.
    """

    size: Count = 16

    def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
        return jax.random.randint(key, (2,), 0, jnp.array(shape[:2]))  # the square's centre (y, x)

    def apply(self, image: Array, drawn: Array) -> Array:
        start = drawn - self.size // 2
        inside = _box(image.shape, start, start + self.size)
        return jnp.where(inside, jnp.zeros((), image.dtype), image)


def _box(shape: tuple[int, ...], start: Array, stop: Array) -> Array:
    """Whether a pixel lies in the rectangle start <= (y, x) < stop: [H, W, 1]."""
    y, x = jnp.arange(shape[0])[:, None, None], jnp.arange(shape[1])[None, :, None]
    return (y >= start[0]) & (y < stop[0]) & (x >= start[1]) & (x < stop[1])


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Transforms that draw the same numbers for an example whenever it is seen: a data set of
    distorted images, to be evaluated on, rather than an augmentation.

    Attributes:
      transforms: applied in order.
      seed: other numbers.
    """

    transforms: tuple[Callable[[Batch, Array], Batch], ...]
    seed: int = 0

    def __call__(self, batch: Batch, keys: Array) -> Batch:
        for i, transform in enumerate(self.transforms):
            own = jax.random.fold_in(jax.random.key(self.seed), i)
            batch = transform(batch, jax.vmap(jax.random.fold_in, (None, 0))(own, batch["index"]))
        return batch


# Geometry. All of these sample the image bilinearly, and see zeros outside it.


def sample(image: Array, y: Array, x: Array) -> Array:
    """Bilinear values of an image [H, W, C] at pixel coordinates y, x [...]: [..., C].

    Pixel centres lie at whole numbers; the image is surrounded by zeros.
    """
    height, width, _ = image.shape
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))  # [H + 2, W + 2, C]
    y, x = jnp.clip(y + 1, 0, height + 1), jnp.clip(x + 1, 0, width + 1)
    top = jnp.minimum(jnp.floor(y).astype(jnp.int32), height)
    left = jnp.minimum(jnp.floor(x).astype(jnp.int32), width)
    down, right = (y - top)[..., None], (x - left)[..., None]
    upper = padded[top, left] * (1 - right) + padded[top, left + 1] * right
    lower = padded[top + 1, left] * (1 - right) + padded[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def shear(image: Array, down: Any, right: Any) -> Array:
    """The image [H, W, C] with each row moved right by `right` times its distance from the centre,
    and each column down by `down` times its own; uint8 becomes float32 in [0, 1]."""
    image = to_float(image)
    height, width, _ = image.shape
    y = jnp.arange(height)[:, None] - (height - 1) / 2
    x = jnp.arange(width)[None, :] - (width - 1) / 2
    return sample(image, y - down * x + (height - 1) / 2, x - right * y + (width - 1) / 2)


def affine(image: Array, *, angle: Any = 0., shift: Any = (0., 0.), scale: Any = 1.) -> Array:
    """The image [H, W, C] scaled and turned about its centre, then shifted.

    Args:
      image: what is transformed; uint8 becomes float32 in [0, 1].
      angle: in radians, counter-clockwise as seen.
      shift: (down, right) in pixels.
      scale: more than one enlarges.
    """
    image = to_float(image)
    height, width, _ = image.shape
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y = jnp.arange(height)[:, None] - middle_y - shift[0]
    x = jnp.arange(width)[None, :] - middle_x - shift[1]
    cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    return sample(image, cos * y + sin * x + middle_y, cos * x - sin * y + middle_x)


@dataclass(frozen=True, kw_only=True)
class Affine(PerImage):
    """A random rotation, scaling and translation at once, sampled once and so blurred once.

    Attributes:
      degrees: the angle is uniform in [-degrees, degrees]; None does not turn.
      fraction: the shift is uniform in [-fraction, fraction] of each side; None does not shift.
      scale: (low, high) of the uniform factor of size; None does not scale.
    """

    degrees: NonNegative | None = None
    fraction: NonNegative | None = None
    scale: tuple[float, float] | None = None

    def draw(self, key: Array, shape: tuple[int, ...]) -> dict[str, Array]:
        u = jax.random.uniform(key, (4,))
        drawn = {}
        if self.degrees is not None:
            drawn["angle"] = (2 * u[0] - 1) * self.degrees * (math.pi / 180)
        if self.fraction is not None:
            drawn["shift"] = (2 * u[1:3] - 1) * self.fraction * jnp.array(shape[:2])
        if self.scale is not None:
            low, high = self.scale
            drawn["scale"] = low + (high - low) * u[3]
        return drawn

    def apply(self, image: Array, drawn: dict[str, Array]) -> Array:
        return affine(image, **drawn) if drawn else image


@dataclass(frozen=True, kw_only=True)
class Rotate(PerImage):
    """Turns about the centre by a random angle.

    Attributes:
      degrees: the angle is uniform in [-degrees, degrees].
    """

    degrees: NonNegative = 15.

    def draw(self, key: Array, shape: tuple[int, ...]) -> dict[str, Array]:
        return Affine(degrees=self.degrees).draw(key, shape)

    def apply(self, image: Array, drawn: dict[str, Array]) -> Array:
        return affine(image, **drawn)


@dataclass(frozen=True, kw_only=True)
class Translate(PerImage):
    """Shifts by a random part of the image's sides, not only by whole pixels.

    Attributes:
      fraction: the shift is uniform in [-fraction, fraction] of the height, and of the width.
    """

    fraction: NonNegative = 0.1

    def draw(self, key: Array, shape: tuple[int, ...]) -> dict[str, Array]:
        return Affine(fraction=self.fraction).draw(key, shape)

    def apply(self, image: Array, drawn: dict[str, Array]) -> Array:
        return affine(image, **drawn)


@dataclass(frozen=True, kw_only=True)
class Scale(PerImage):
    """Enlarges or shrinks about the centre by a random factor; the image keeps its shape.

    Attributes:
      low: the least factor; below one shrinks.
      high: the greatest factor; above one enlarges.
    """

    low: NonNegative = 0.9
    high: NonNegative = 1.1

    def draw(self, key: Array, shape: tuple[int, ...]) -> dict[str, Array]:
        return Affine(scale=(self.low, self.high)).draw(key, shape)

    def apply(self, image: Array, drawn: dict[str, Array]) -> Array:
        return affine(image, **drawn)


def resize_weights(size: int, length: int, start: Array, span: Array) -> Array:
    """Antialiased linear resizing of the pixels start ... start + span as a matrix [size, length].

    Each row is a triangle around the centre of an output pixel, as wide as one pixel of the coarser
    grid, over the input pixels within the span only, and sums to one.
    """
    step = span / size  # input pixels for each output pixel
    centre = start + (jnp.arange(size) + 0.5) * step - 0.5  # [size]
    pixel = jnp.arange(length)
    weights = 1 - jnp.abs(pixel - centre[:, None]) / jnp.maximum(step, 1)
    inside = (pixel >= start) & (pixel < start + span)
    weights = jnp.where(inside, jnp.maximum(weights, 0), 0)
    return weights / weights.sum(1, keepdims=True)


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop(PerImage):
    """A random rectangle, resized to a square: the crop of Szegedy et al. (2014), section 6.

    Ten rectangles are drawn and the first that fits into the image is taken; where none does, the
    greatest one in the middle whose ratio is allowed. Resizing is linear and antialiased.

    Attributes:
      size: height and width of the result, in pixels.
      area: (least, greatest) part of the image's area, uniform.
      ratio: (least, greatest) width / height; its logarithm is uniform.
    """

    size: Size = 224
    area: tuple[float, float] = (0.08, 1.)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def draw(self, key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """(top, left), (height, width): whole pixels, as float32."""
        sides = jnp.array(shape[:2], jnp.float32)
        u = jax.random.uniform(key, (11, 2))
        area = (self.area[0] + (self.area[1] - self.area[0]) * u[:10, 0]) * sides[0] * sides[1]
        low, high = jnp.log(self.ratio[0]), jnp.log(self.ratio[1])
        ratio = jnp.exp(low + (high - low) * u[:10, 1])
        tries = jnp.round(jnp.sqrt(jnp.stack([area / ratio, area * ratio], 1)))  # [10, 2]
        fits = ((tries >= 1) & (tries <= sides)).all(1)
        closest = jnp.clip(sides[1] / sides[0], self.ratio[0], self.ratio[1])
        widest = jnp.round(jnp.minimum(sides, jnp.stack([sides[1] / closest, sides[0] * closest])))
        span = jnp.where(fits.any(), tries[jnp.argmax(fits)], widest)
        random = jnp.minimum(jnp.floor(u[10] * (sides - span + 1)), sides - span)
        start = jnp.where(fits.any(), random, jnp.floor((sides - span) / 2))
        return start, span

    def apply(self, image: Array, drawn: tuple[Array, Array]) -> Array:
        image = to_float(image)
        start, span = drawn
        rows = resize_weights(self.size, image.shape[0], start[0], span[0])
        columns = resize_weights(self.size, image.shape[1], start[1], span[1])
        return jnp.einsum("ih,hwc,jw->ijc", rows, image, columns)


# Colour.

GREY = (0.2989, 0.587, 0.114)  # ITU-R BT.601 luma of red, green and blue


@dataclass(frozen=True, kw_only=True)
class Colour(PerImage):
    """Changes brightness, then contrast, then saturation, then hue, of an image in [0, 1].

    The factors are uniform in [max(0, 1 - s), 1 + s] for a strength s, and after each change the
    image is clipped to [0, 1], as in torchvision's ColorJitter; the order is always the one above.
    Grey images (one channel) have no saturation or hue, and skip these two.

    Attributes:
      brightness: strength s; f * image. None leaves it alone, here and below.
      contrast: strength s; f * image + (1 - f) * the mean grey of the whole image.
      saturation: strength s; f * image + (1 - f) * the grey of each pixel.
      hue: the shift is uniform in [-hue, hue], as a part of the colour circle; at most 0.5.
    """

    brightness: NonNegative | None = None
    contrast: NonNegative | None = None
    saturation: NonNegative | None = None
    hue: Fraction | None = None

    def draw(self, key: Array, shape: tuple[int, ...]) -> dict[str, Array]:
        u = jax.random.uniform(key, (4,))
        drawn = {}
        for i, name in enumerate(("brightness", "contrast", "saturation")):
            strength = getattr(self, name)
            if strength is not None:
                low = jnp.maximum(0., 1. - strength)
                drawn[name] = low + (1. + strength - low) * u[i]
        if self.hue is not None:
            drawn["hue"] = (2 * u[3] - 1) * self.hue
        return drawn

    def apply(self, image: Array, drawn: dict[str, Array]) -> Array:
        channels = image.shape[-1]
        if channels not in (1, 3):
            raise UserError(f"Colour: expected images of 1 or 3 channels, not {channels}.")
        image = to_float(image)
        if "brightness" in drawn:
            image = _blend(image, jnp.zeros(()), drawn["brightness"])
        if "contrast" in drawn:
            image = _blend(image, _grey(image).mean(), drawn["contrast"])
        if "saturation" in drawn and channels == 3:
            image = _blend(image, _grey(image), drawn["saturation"])
        if "hue" in drawn and channels == 3:
            image = shift_hue(image, drawn["hue"])
        return image


def _grey(image: Array) -> Array:
    """[H, W, 1]"""
    return image if image.shape[-1] == 1 else (image * jnp.array(GREY, image.dtype)).sum(
        -1, keepdims=True)


def _blend(image: Array, other: Array, factor: Array) -> Array:
    return jnp.clip(factor * image + (1 - factor) * other, 0, 1)


def shift_hue(image: Array, shift: Array) -> Array:
    """Turns the hue of an image [..., 3] by a part of the circle; value and saturation stay."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = image.max(-1)
    chroma = value - image.min(-1)
    divisor = jnp.where(chroma > 0, chroma, 1)
    # In sixths of the circle. Which is the largest is not asked by value == red: where the compiler
    # computes red twice, it may be rounded in two ways.
    hue = jnp.where(
        (red >= green) & (red >= blue), (green - blue) / divisor,
        jnp.where(green >= blue, 2 + (blue - red) / divisor, 4 + (red - green) / divisor))
    k = (jnp.array([5., 3., 1.], image.dtype) + hue[..., None] + 6 * shift) % 6
    ramp = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
    return value[..., None] - chroma[..., None] * ramp


@dataclass(frozen=True, kw_only=True)
class RandAugment(PerImage):
    """`operations` changes in a row, each one of fourteen that are equally likely.

    Cubuk et al. (2020), https://arxiv.org/abs/1909.13719, section 3 and figure 2: identity, auto
    contrast, equalise, rotate, solarise, colour, posterise, contrast, brightness, sharpness, shear
    and translate in both directions. Signs are drawn. The greatest strengths are those of
    AutoAugment's table 6: 30 degrees, shears of 0.3, shifts of 0.45 of a side, factors 0.1 to 1.9.

    Attributes:
      operations: N, how many changes an image gets.
      magnitude: M of the paper as a part of the greatest, in [0, 1].
    """

    operations: Size = 2
    magnitude: Fraction = 0.3

    def draw(self, key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        for_kind, for_sign = jax.random.split(key)
        kinds = jax.random.randint(for_kind, (self.operations,), 0, len(_changes(1.)))
        return kinds, jnp.where(jax.random.bernoulli(for_sign, shape=(self.operations,)), 1., -1.)

    def apply(self, image: Array, drawn: tuple[Array, Array]) -> Array:
        if image.shape[-1] not in (1, 3):
            raise UserError(f"RandAugment: expected images of 1 or 3 channels, not "
                            f"{image.shape[-1]}.")
        image = to_float(image)
        for i in range(self.operations):
            image = jax.lax.switch(drawn[0][i], _changes(self.magnitude), image, drawn[1][i])
        return image


def _changes(m: Any) -> list[Callable[[Array, Array], Array]]:
    """The changes of strength m in [0, 1]: functions of an image in [0, 1] and a sign."""
    def blend(other: Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
        return lambda image, sign: _blend(image, other(image), 1 + sign * 0.9 * m)

    def solarise(image: Array, sign: Array) -> Array:
        return jnp.where(image >= 1 - m, 1 - image, image)

    def posterise(image: Array, sign: Array) -> Array:
        levels = 2. ** jnp.round(8 - 4 * m)  # 8 ... 4 bits
        return jnp.floor(image * 255 / (256 / levels)) * (256 / levels) / 255

    return [lambda image, sign: image,
            lambda image, sign: auto_contrast(image),
            lambda image, sign: equalise(image),
            lambda image, sign: affine(image, angle=sign * m * (math.pi / 6)),
            solarise,
            blend(_grey),
            posterise,
            blend(lambda image: _grey(image).mean()),
            blend(jnp.zeros_like),
            blend(_smooth),
            lambda image, sign: shear(image, 0., sign * 0.3 * m),
            lambda image, sign: shear(image, sign * 0.3 * m, 0.),
            lambda image, sign: affine(image, shift=(0., sign * 0.45 * m * image.shape[1])),
            lambda image, sign: affine(image, shift=(sign * 0.45 * m * image.shape[0], 0.))]


def auto_contrast(image: Array) -> Array:
    """Each channel of an image [H, W, C] stretched to [0, 1]; a constant one stays."""
    low, high = image.min((0, 1)), image.max((0, 1))
    span = high - low
    return jnp.where(span > 0, (image - low) / jnp.where(span > 0, span, 1), image)


def equalise(image: Array) -> Array:
    """Each channel of an image [H, W, C] in [0, 1], as 8 bits, mapped so that all values are about
    equally frequent: Pillow's ImageOps.equalize."""
    def channel(x: Array) -> Array:
        value = jnp.clip(jnp.round(x * 255), 0, 255).astype(jnp.int32)
        count = (value.reshape(-1, 1) == jnp.arange(256)).sum(0)  # [256]
        last = count[255 - jnp.argmax(count[::-1] > 0)]  # of the greatest value that there is
        step = (count.sum() - last) // 255
        before = step // 2 + jnp.cumsum(count) - count
        table = jnp.clip(before // jnp.maximum(step, 1), 0, 255)
        return jnp.where(step > 0, table[value].astype(x.dtype) / 255, x)

    return jax.vmap(channel, -1, -1)(image)


def _smooth(image: Array) -> Array:
    """A mean over 3 x 3 pixels in which the middle counts 5 of 13; the border stays."""
    height, width, _ = image.shape
    total = sum(image[i:height - 2 + i, j:width - 2 + j] for i in range(3) for j in range(3))
    inner = (total + 4 * image[1:-1, 1:-1]) / 13
    return image.at[1:-1, 1:-1].set(inner)


# Mixing. Each example takes in the next one of the batch, the last one the first. (With
# parallel=pmap that is a device's part of it.)


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """Mixes images and labels: m * own + (1 - m) * next, m ~ Beta(alpha, alpha).

    Zhang et al. (2018), https://arxiv.org/abs/1710.09412, with its own m for each example. Labels
    become soft, [B, classes]. An example whose next one is masked stays unmixed. The partner,
    unlike m, depends on the place in the batch.

    Attributes:
      alpha: more mixes more evenly; zero does not mix.
      classes: how many there are.
    """

    alpha: NonNegative = 0.2
    classes: Size = 10

    def draw(self, keys: Array) -> Array:
        """The part [B] that each example keeps of itself."""
        return jax.vmap(lambda key: _beta(key, self.alpha))(keys)

    def __call__(self, batch: Batch, keys: Array) -> Batch:
        image = to_float(batch["image"])
        own = jnp.where(_next(batch["mask"]) > 0, self.draw(keys), 1.)  # [B]
        weight = own[:, None, None, None].astype(image.dtype)
        mixed = weight * image + (1 - weight) * _next(image)
        return {**batch, "image": jnp.where(weight < 1, mixed, image),
                "label": _mixed_labels(batch, own, self.classes)}


@dataclass(frozen=True, kw_only=True)
class CutMix:
    """Pastes a rectangle of the next image, and mixes the labels by the area it covers.

    Yun et al. (2019), https://arxiv.org/abs/1905.04899, section 3.1 and algorithm A1: the rectangle
    has sqrt(1 - m) of each side, m ~ Beta(alpha, alpha), and a uniform centre; what sticks out is
    cut off. Each example has its own. Labels become soft, [B, classes]. An example whose next one
    is masked stays unmixed. The partner, unlike m, depends on the place in the batch.

    Attributes:
      alpha: 1 makes m uniform; zero does not mix.
      classes: how many there are.
      probability: of pasting into an example.
    """

    alpha: NonNegative = 1.
    classes: Size = 10
    probability: Fraction = 1.

    def draw(self, keys: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """The corners (top, left) and (bottom, right) [B, 2] of each example's rectangle."""
        sides = jnp.array(shape[:2])

        def one(key: Array) -> tuple[Array, Array]:
            for_part, for_rest = jax.random.split(key)
            u = jax.random.uniform(for_rest, (3,))
            part = jnp.where(u[0] < self.probability, 1 - _beta(for_part, self.alpha), 0.)
            half = (jnp.sqrt(part) * sides).astype(jnp.int32) // 2
            centre = (u[1:] * sides).astype(jnp.int32)
            return jnp.maximum(centre - half, 0), jnp.minimum(centre + half, sides)

        return jax.vmap(one)(keys)

    def __call__(self, batch: Batch, keys: Array) -> Batch:
        image = to_float(batch["image"])
        height, width = image.shape[1:3]
        start, stop = self.draw(keys, image.shape[1:])
        stop = jnp.where(_next(batch["mask"])[:, None] > 0, stop, start)
        inside = jax.vmap(lambda a, b: _box(image.shape[1:], a, b))(start, stop)  # [B, H, W, 1]
        own = 1 - (stop - start).prod(1) / (height * width)
        return {**batch, "image": jnp.where(inside, _next(image), image),
                "label": _mixed_labels(batch, own, self.classes)}


def _beta(key: Array, alpha: Any) -> Array:
    """Beta(alpha, alpha) as a / (a + b), a and b ~ Gamma(alpha); 1 where alpha is zero."""
    logs = jax.random.loggamma(key, jnp.where(alpha > 0, alpha, 1.), (2,))
    return jnp.where(alpha > 0, jax.nn.sigmoid(logs[0] - logs[1]), 1.)


def _next(x: Array) -> Array:
    return jnp.roll(x, -1, axis=0)


def _mixed_labels(batch: Batch, own: Array, classes: int) -> Array:
    """own * label + (1 - own) * next label: [B, classes]."""
    label = batch["label"]
    if jnp.issubdtype(label.dtype, jnp.integer):
        label = jax.nn.one_hot(label, classes)
    own = own[:, None]
    return jnp.where(own < 1, own * label + (1 - own) * _next(label), label)

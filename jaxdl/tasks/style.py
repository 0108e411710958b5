"""Neural style transfer: an image with the content of one picture and the style of another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import noise
from jaxdl.config import NonNegative
from jaxdl.data.transforms import clean
from jaxdl.errors import UserError, nearest
from jaxdl.generative import pixels
from jaxdl.pictures import Images, Material, Picture, read, some
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array

FEATURES = "features"
SHOWN = 6  # pictures on the report


def activations(model: nn.Module, variables: Mapping[str, Any], image: Array,
                layers: Sequence[str]) -> dict[str, Array]:
    """What the modules at these paths return for images [B, H, W, 3], in evaluation, in float32."""
    outputs: dict[str, Array] = {}
    known: list[str] = []

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == "__call__" and hasattr(output, "shape"):
            known.append(path := "/".join(context.module.path))
            if path in layers:
                outputs[path] = output.astype(jnp.promote_types(output.dtype, jnp.float32))
        return output

    with nn.intercept_methods(watch):
        model.apply(variables, image, train=False)
    for layer in layers:
        if layer not in outputs:
            raise UserError(f"layers: the model has no {layer!r}.{nearest(layer, known)}")
    return outputs


def gram(x: Array) -> Array:
    """The products of the channels of maps [B, H, W, C], the mean over places: [B, C, C] (Gatys et
    al. 2016, equation 3)."""
    x = x.reshape(len(x), -1, x.shape[-1])
    return jnp.einsum("bnc,bnd->bcd", x, x) / x.shape[1]


def apart(a: Array, b: Array) -> Array:
    """|a - b|^2 / |b|^2 of each example: [B]. So a layer counts alike, whatever its scale."""
    difference = jnp.square(a - b).reshape(len(a), -1).sum(-1)
    return difference / jnp.square(b).reshape(len(b), -1).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Style(LossTask):
    """What both kinds of style transfer minimise, in the features of a trained network:

        mean over content layers of |F(x) - F(p)|^2 / |F(p)|^2
        + style_weight * mean over style layers of |G(x) - G(a)|^2 / |G(a)|^2
        + smoothness * mean of the squared differences between neighbouring pixels

    where p is the content, a the style, x the result, F a layer's map and G its Gram matrix: Gatys
    et al. (2016), https://doi.org/10.1109/CVPR.2016.265, section 2, except that each layer is
    measured against its own size. "unpainted" is what "style", the second mean, is for the content.

    A batch has "image" (p) and "style" (a), [B, H, W, 3], normalised as the features' network
    expects, one style for all, and "mask" [B]. The network lies among the parameters as "features"
    and is not trained; its weights come from a file or a run:

        init_from=InitFrom(path=FILE, rename=((r"^(params|mutable/batch_stats)/",
                           r"\\1/features/"),), fresh=("params/(?!features/).*",))

    Attributes:
      features: Linen module, called as features(image, train=False); images of any size where it
        ends in a mean over places, else of one size.
      content_layers: module paths in it.
      style_layers: the same.
      style_weight: of the style against the content.
      smoothness: weight of the differences between pixels.
    """

    features: nn.Module
    content_layers: tuple[str, ...] = ("stage3_block2",)
    style_layers: tuple[str, ...] = ("stem_conv", "stage1_block1", "stage2_block2",
                                     "stage3_block2", "stage5_block3")
    style_weight: NonNegative = 10.
    smoothness: NonNegative = 0.

    target_fields: ClassVar[tuple[str, ...]] = ()

    def freezes(self) -> tuple[str, ...]:
        return (*self.freeze, f"{FEATURES}/.*")

    @property
    def pretrained(self) -> tuple[str, nn.Module]:
        """(where its parameters lie, the network that published weights are of)."""
        return f"{FEATURES}/", self.features

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        if not variables:
            own = dict(self.features.init(key, batch["image"], train=False))
            variables.update({name: {FEATURES: tree} for name, tree in own.items()})
            variables["params"] |= self.fresh(batch, key)
        image = clean(batch)["image"]
        x, mutable = self.painted(variables, image, key, train)
        network = {name: tree[FEATURES] for name, tree in variables.items() if FEATURES in tree}
        layers = sorted({*self.content_layers, *self.style_layers})
        of_x, of_p, of_a = (activations(self.features, network, y, layers)
                            for y in (x, image, batch["style"][:1]))
        content = sum(apart(of_x[n], of_p[n]) for n in self.content_layers)
        style, unpainted = (
            jnp.asarray(sum(apart(gram(y[n]), gram(of_a[n])) for n in self.style_layers))
            / len(self.style_layers) for y in (of_x, of_p))
        content = content / len(self.content_layers)
        rough = sum(jnp.square(jnp.diff(x, axis=axis)).mean((1, 2, 3)) for axis in (1, 2))
        total = content + self.style_weight * style + self.smoothness * rough
        mask = batch["mask"]
        return Mean.of(jnp.asarray(total), mask), Aux(mutable=mutable, metrics={
            "content": Mean.of(jnp.asarray(content), mask),
            "style": Mean.of(style, mask), "unpainted": Mean.of(unpainted, mask)})

    def fresh(self, batch: Batch, key: Array) -> dict[str, Any]:
        """Parameters beside those of the network."""
        raise TypeError(f"{type(self).__name__} must define fresh().")

    def painted(self, variables: dict[str, Any], image: Array, key: Array,
                train: bool) -> tuple[Array, dict[str, Any]]:
        """(results [B, H, W, 3] of contents, updated collections)."""
        raise TypeError(f"{type(self).__name__} must define painted().")

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """Contents, the style, and the results."""
        source = material.source(material.split)
        batch = next(read(source, some(source, SHOWN), SHOWN))
        x, _ = self.painted(self.variables(state), batch["image"], state.key, False)
        columns = [pixels(y, source) for y in (batch["image"], batch["style"], x)]
        columns = [jax.image.resize(y, x.shape, "linear") for y in columns]
        grid = np.clip(np.asarray(jnp.stack(columns, 1)), 0, 1)
        yield Images(title="Paintings", heads=("content", "style", "painted"),
                     images=grid.reshape(-1, *x.shape[1:]))


@dataclass(frozen=True, kw_only=True)
class PaintedImage(Style):
    """The image itself is what is trained (Gatys et al. 2016). The data has one example, and the
    batch size is 1.

    Attributes:
      start: the image that it begins with: the content, of which the parameters "image" are the
        change, or noise.
    """

    start: Literal["content", "noise"] = "content"

    def fresh(self, batch: Batch, key: Array) -> dict[str, Any]:
        image = batch["image"]
        if len(image) != 1:
            raise UserError(f"batch_size={len(image)}: one image is trained, so it must be 1.")
        # Only the shape of this batch counts, so the content is added where it is painted.
        return {"image": noise.normal(key, batch, image.shape[1:]) if self.start == "noise"
                else jnp.zeros_like(image)}

    def painted(self, variables: dict[str, Any], image: Array, key: Array,
                train: bool) -> tuple[Array, dict[str, Any]]:
        own = variables["params"]["image"]
        return (own if self.start == "noise" else image + own), {}


@dataclass(frozen=True, kw_only=True)
class StyleNetwork(Style):
    """A network paints any image in one style, in one pass: Johnson et al. (2016),
    https://arxiv.org/abs/1603.08155.

    Attributes:
      model: called as model(image, train), returns images in (-1, 1); see `models.translator`.
      mean: of each channel, with which the data is normalised.
      std: standard deviation of each channel, the same.
    """

    model: nn.Module
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def fresh(self, batch: Batch, key: Array) -> dict[str, Any]:
        own = dict(self.model.init(key, batch["image"], False))
        if set(own) != {"params"}:
            raise UserError("task.model: keeps statistics of batches, which a style network has no "
                            "use for; Translator has instance normalisation.")
        return {"model": own["params"]}

    def painted(self, variables: dict[str, Any], image: Array, key: Array,
                train: bool) -> tuple[Array, dict[str, Any]]:
        y, mutable = self.apply(self.model, {"params": variables["params"]["model"]}, image,
                                key=key, train=train)
        return ((y + 1) / 2 - jnp.asarray(self.mean)) / jnp.asarray(self.std), mutable

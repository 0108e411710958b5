"""From images of one kind to images of another: with pairs of them, and without."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.config import NonNegative
from jaxdl.data.transforms import clean, to_float
from jaxdl.evaluate import Context, Evaluate, total
from jaxdl.generative import check_classifier, classified, pixels, same_shape
from jaxdl.pictures import Images, Material, Picture, read, some
from jaxdl.task import Batch, Mean, Metrics
from jaxdl.tasks.gan import (
    DISCRIMINATOR,
    GENERATOR,
    Adversarial,
    GANState,
    Objective,
    discriminator_losses,
    generator_losses,
)

Array = jax.Array

SHOWN = 8  # images on the report


def per_example(x: Array) -> Array:
    """The mean of all but the first axis: [B]."""
    return x.reshape(len(x), -1).mean(-1)


@dataclass(frozen=True, kw_only=True)
class Pix2Pix(Adversarial):
    """A generator makes an image y of a source x, a discriminator is given x and y; the generator's
    loss is the adversarial one and l1 * |y - G(x)|, mean over values: Isola et al. (2017),
    https://arxiv.org/abs/1611.07004, equation 4, without the noise, which it found to be ignored.

    A batch has "source" and "image" [B, H, W, C], and "mask" [B].

    Attributes:
      generator: Linen module called as generator(source, train), returns images.
      discriminator: called as discriminator(source and image, channels of one after those of the
        other, None, train), returns scores [B] or maps of them.
      l1: weight, lambda of the paper.
    """

    generator: nn.Module
    discriminator: nn.Module
    l1: NonNegative = 100.

    inputs: ClassVar[tuple[str, ...]] = ("image", "source")

    def fresh(self, key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        source = batch["source"]
        both = jnp.concatenate([source, batch["image"]], -1)
        made = dict(self.generator.init(key, source, False))
        judge = dict(self.discriminator.init(jax.random.fold_in(key, 1), both, None, False))
        params = {GENERATOR: made.pop("params"), DISCRIMINATOR: judge.pop("params")}
        return params, {GENERATOR: made, DISCRIMINATOR: judge}

    def discriminator_loss(self, params: Any, mutable: Any, batch: Batch,
                           key: Array) -> tuple[Mean, Any, Metrics]:
        source, image = batch["source"], batch["image"]
        made, _ = self.made(params, mutable, source, key)
        real, after = self.scored(params, mutable, source, image, key)
        again = {**mutable, DISCRIMINATOR: {**mutable[DISCRIMINATOR], **after}}
        other, after = self.scored(params, again, source, jax.lax.stop_gradient(made), key)
        losses = per_example(discriminator_losses(self.objective, real, other))
        return Mean.of(losses, batch["mask"]), after, {}

    def generator_loss(self, params: Any, mutable: Any, batch: Batch,
                       key: Array) -> tuple[Mean, Any, Metrics]:
        source, image = batch["source"], batch["image"]
        made, after = self.made(params, mutable, source, key)
        same_shape(made, image, "task.generator")
        score, _ = self.scored(params, mutable, source, made, key)
        error = per_example(jnp.abs(made - image))
        losses = per_example(generator_losses(self.objective, score)) + self.l1 * error
        return Mean.of(losses, batch["mask"]), after, {"l1": Mean.of(error, batch["mask"])}

    def made(self, params: Any, mutable: Any, source: Array, key: Array) -> tuple[Array, Any]:
        """(images of sources, updated collections), in training."""
        found: Any = self.generator.apply(
            {"params": params[GENERATOR], **mutable[GENERATOR]}, source, True,
            rngs={"dropout": key}, mutable=list(mutable[GENERATOR]))
        return found

    def scored(self, params: Any, mutable: Any, source: Array, image: Array,
               key: Array) -> tuple[Array, Any]:
        """(scores, updated collections), in training."""
        found: Any = self.discriminator.apply(
            {"params": params[DISCRIMINATOR], **mutable[DISCRIMINATOR]},
            jnp.concatenate([source, image], -1), None, True, rngs={"dropout": key},
            mutable=list(mutable[DISCRIMINATOR]))
        return found

    def translated(self, state: GANState, source: Array) -> Array:
        """The images of sources [B, H, W, C], by the average where one is kept."""
        params = state.params[GENERATOR] if state.ema is None else state.ema
        found: Any = self.generator.apply({"params": params, **state.mutable[GENERATOR]}, source,
                                          False)
        return found

    def evaluate(self, state: GANState, batch: Batch) -> Mapping[str, Mean]:
        """The mean absolute and squared errors of the values."""
        batch = clean(batch, *self.inputs)
        difference = self.translated(state, batch["source"]) - batch["image"]
        return {"l1": Mean.of(per_example(jnp.abs(difference)), batch["mask"]),
                "error": Mean.of(per_example(difference ** 2), batch["mask"])}

    def pictures(self, state: GANState, material: Material) -> Iterator[Picture]:
        """Sources, what is made of them, and what it should be."""
        source = material.source(material.split)
        batch = next(read(source, some(source, SHOWN), SHOWN))
        made = self.translated(state, batch["source"])
        given = batch["source"]
        if given.shape[-1] == 1:
            given = jnp.broadcast_to(given, made.shape)
        columns = jnp.stack([given, made, batch["image"]], 1)
        yield Images(title="Translations", heads=("source", "made", "image"), images=np.asarray(
            pixels(columns.reshape(-1, *made.shape[1:]), source)))


@dataclass(frozen=True, kw_only=True)
class CycleGAN(Adversarial):
    """G makes images of one kind of those of the other, F the way back, and a discriminator for
    each kind cannot tell them from real ones: the generator's loss is both adversarial ones and

        cycle * (|F(G(x)) - x| + |G(F(y)) - y|) + identity * (|F(x) - x| + |G(y) - y|),

    means over values: Zhu et al. (2017), https://arxiv.org/abs/1703.10593, equation 3 and section
    5.2, with objective="least_squares", in full squares; but the discriminators see what is made
    now, and not also what was made before (section 4). DiscoGAN of Kim et al. (2017),
    https://arxiv.org/abs/1703.05192, is objective="non_saturating" with distance="l2", cycle=1 and
    no identity.

    A batch has "image" (x) and "other" (y), [B, H, W, C], and "mask" [B].

    Attributes:
      generator: Linen module, of which there are two, called as generator(image, train).
      discriminator: of which there are two, called as discriminator(image, None, train), returns
        scores [B] or maps of them.
      cycle: weight.
      identity: weight; None for none.
      distance: "l1", or "l2" for squares.
    """

    generator: nn.Module
    discriminator: nn.Module
    objective: Objective = "least_squares"
    cycle: NonNegative = 10.
    identity: NonNegative | None = None
    distance: Literal["l1", "l2"] = "l1"

    inputs: ClassVar[tuple[str, ...]] = ("image", "other")

    def fresh(self, key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        params: dict[str, Any] = {}
        mutable: dict[str, Any] = {}
        for i, (player, names) in enumerate(((GENERATOR, ("forth", "back")),
                                             (DISCRIMINATOR, ("image", "other")))):
            params[player], mutable[player] = {}, {}
            for j, name in enumerate(names):
                rest = (False,) if player == GENERATOR else (None, False)
                own = dict(getattr(self, player).init(jax.random.fold_in(key, 2 * i + j),
                                                      batch["image"], *rest))
                params[player][name] = own.pop("params")
                for collection, tree in own.items():
                    mutable[player].setdefault(collection, {})[name] = tree
        return params, mutable

    def run(self, player: str, name: str, params: Any, mutable: Any, x: Array, key: Array,
            after: dict[str, Any] | None = None) -> Array:
        """What one of the four networks makes of images in training; its collections as they are
        then are put into `after`."""
        own = {"params": params[player][name],
               **{c: tree[name] for c, tree in mutable[player].items()}}
        rest = (True,) if player == GENERATOR else (None, True)
        found: Any = getattr(self, player).apply(own, x, *rest, rngs={"dropout": key},
                                                 mutable=list(mutable[player]))
        if after is not None:
            for collection, tree in found[1].items():
                before = after.get(collection, mutable[player][collection])
                after[collection] = {**before, name: tree}
        return found[0]

    def discriminator_loss(self, params: Any, mutable: Any, batch: Batch,
                           key: Array) -> tuple[Mean, Any, Metrics]:
        after: dict[str, Any] = {}
        total = jnp.zeros(len(batch["mask"]))
        for kind, source, way in (("image", "other", "back"), ("other", "image", "forth")):
            made = jax.lax.stop_gradient(self.run(GENERATOR, way, params, mutable,
                                                  batch[source], key))
            real = self.run(DISCRIMINATOR, kind, params, mutable, batch[kind], key, after)
            score = self.run(DISCRIMINATOR, kind, params, mutable, made, key)
            total += per_example(discriminator_losses(self.objective, real, score))
        return Mean.of(total, batch["mask"]), after, {}

    def generator_loss(self, params: Any, mutable: Any, batch: Batch,
                       key: Array) -> tuple[Mean, Any, Metrics]:
        after: dict[str, Any] = {}

        def run(way: str, x: Array, note: bool = False) -> Array:
            return self.run(GENERATOR, way, params, mutable, x, key, after if note else None)

        def apart(a: Array, b: Array) -> Array:
            return per_example(jnp.abs(a - b) if self.distance == "l1" else jnp.square(a - b))

        # Zhu et al. have the square, `generator_losses` as Mao et al. half of it.
        whole = 2 if self.objective == "least_squares" else 1
        total = cycles = jnp.zeros(len(batch["mask"]))
        for kind, way, target, home in (("image", "forth", "other", "back"),
                                        ("other", "back", "image", "forth")):
            x = batch[kind]
            made = run(way, x, note=True)
            same_shape(made, batch[target], "task.generator")
            score = self.run(DISCRIMINATOR, target, params, mutable, made, key)
            total += whole * per_example(generator_losses(self.objective, score))
            cycles += apart(run(home, made), x)
            if self.identity is not None:
                total += self.identity * apart(run(home, x), x)
        return Mean.of(total + self.cycle * cycles, batch["mask"]), after, {
            "cycle": Mean.of(cycles / 2, batch["mask"])}

    def translated(self, state: GANState, x: Array, way: str = "forth") -> Array:
        """Images [B, H, W, C] as the other kind, or "back", by the average where one is kept."""
        params = state.params[GENERATOR] if state.ema is None else state.ema
        own = {c: tree[way] for c, tree in state.mutable[GENERATOR].items()}
        found: Any = self.generator.apply({"params": params[way], **own}, x, False)
        return found

    def evaluate(self, state: GANState, batch: Batch) -> Mapping[str, Mean]:
        """The mean absolute error of each kind after both ways."""
        batch, found = clean(batch, *self.inputs), {}
        for kind, way, home in (("image", "forth", "back"), ("other", "back", "forth")):
            x = batch[kind]
            again = self.translated(state, self.translated(state, x, way), home)
            found[f"{kind}_cycle"] = Mean.of(per_example(jnp.abs(again - x)), batch["mask"])
        return found

    def pictures(self, state: GANState, material: Material) -> Iterator[Picture]:
        """Images of each kind as the other one, and back again."""
        source = material.source(material.split)
        batch = next(read(source, some(source, SHOWN), SHOWN))
        columns = []
        for kind, way, home in (("image", "forth", "back"), ("other", "back", "forth")):
            made = self.translated(state, batch[kind], way)
            columns += [batch[kind], made, self.translated(state, made, home)]
        grid = jnp.stack(columns, 1).reshape(-1, *columns[0].shape[1:])
        yield Images(title="Translations",
                     heads=("one kind", "translated", "and back", "the other", "translated",
                            "and back"), images=np.asarray(pixels(grid, source)))


@dataclass(frozen=True, kw_only=True)
class Translated(Evaluate):
    """The share of translated images that a classifier of jaxdl takes for the other kind, each way,
    "forth" and "back"; and beside it, as "real_image" and "real_other", the share of real images
    that it takes for their own.

    Attributes:
      classifier: its run directory.
      step: of its checkpoint: "best", "last" or a number.
      image: numbers of the classes of "image".
      other: of "other".
    """

    classifier: str
    step: str = "last"
    image: tuple[int, ...]
    other: tuple[int, ...]

    def check(self, experiment: Any) -> None:
        """Raises a UserError where the classifier is missing."""
        check_classifier("Translated", self.classifier)

    def __call__(self, task: Any, state: Any, context: Context) -> Mapping[str, float]:
        key = context.name, "classifier"
        if key not in context.compiled:
            context.compiled[key] = classified(self.classifier, self.step)
        source = context.source(self.split)
        see = context.compiled[key]

        def measure(task: Any, state: Any, batch: Batch) -> Any:
            kinds = {"forth": (task.translated(state, batch["image"]), self.other),
                     "back": (task.translated(state, batch["other"], "back"), self.image),
                     "real_image": (batch["image"], self.image),
                     "real_other": (batch["other"], self.other)}
            found = {}
            for name, (images, classes) in kinds.items():
                said = see(pixels(to_float(images), source))[1].argmax(-1)
                right = (said[:, None] == jnp.asarray(classes)).any(-1)
                found[name] = Mean.of(right.astype(jnp.float32), batch["mask"])
            return found

        sums = total(measure, task, state, context, split=self.split,
                     batch_size=self.batch_size or context.batch_size)
        return self.finish(sums, context)

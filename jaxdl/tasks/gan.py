"""Generative adversarial networks: Goodfellow et al. (2014), https://arxiv.org/abs/1406.2661."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdl import noise
from jaxdl.config import Fraction, NonNegative, Size
from jaxdl.data.transforms import clean
from jaxdl.errors import UserError
from jaxdl.generative import between, check_labels, drawn, path_between, turns
from jaxdl.pictures import Material, Picture
from jaxdl.task import Batch, Mean, Metrics, norm, over_devices

Array = jax.Array
Objective = Literal["non_saturating", "least_squares", "hinge", "wasserstein"]

GENERATOR, DISCRIMINATOR = "generator", "discriminator"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GANState:
    """All that changes in training: arrays only. What is by name is of "generator" and of
    "discriminator".

    Attributes:
      step: int32, updates of the generator done.
      seen: uint32, examples trained on.
      key: the run's random key.
      params: by name.
      mutable: other Linen collections, by name.
      opt_state: by name.
      ema: exponential moving average of the generator's parameters, or None.
    """

    step: Array
    seen: Array
    key: Array
    params: Mapping[str, Any]
    mutable: Mapping[str, Any]
    opt_state: Mapping[str, Any]
    ema: Any


def discriminator_losses(objective: Objective, real: Array, made: Array) -> Array:
    """Of scores of real and of made images [B]: [B].

    - non_saturating: -log D(x) - log(1 - D(G(z))), D = sigmoid(score) (section 3);
    - least_squares: half of (score(x) - 1)^2 + score(G(z))^2 (Mao et al. 2017,
      https://arxiv.org/abs/1611.04076, equation 9);
    - hinge: max(0, 1 - score(x)) + max(0, 1 + score(G(z))) (Lim & Ye 2017,
      https://arxiv.org/abs/1705.02894, section 3);
    - wasserstein: score(G(z)) - score(x) (Arjovsky et al. 2017, https://arxiv.org/abs/1701.07875,
      algorithm 1).
    """
    if objective == "non_saturating":
        return nn.softplus(-real) + nn.softplus(made)
    if objective == "least_squares":
        return ((real - 1) ** 2 + made ** 2) / 2
    if objective == "hinge":
        return nn.relu(1 - real) + nn.relu(1 + made)
    return made - real


def generator_losses(objective: Objective, made: Array) -> Array:
    """Of scores of made images [B]: [B]. "non_saturating" is -log D(G(z)), "least_squares" half of
    (score(G(z)) - 1)^2, the others -score(G(z))."""
    if objective == "non_saturating":
        return nn.softplus(-made)
    if objective == "least_squares":
        return (made - 1) ** 2 / 2
    return -made


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """Two players, each with an optimizer of its own: in each step first the discriminator is
    trained, then the generator on what the discriminator is now.

    The experiment has `optimizer={"generator": ..., "discriminator": ...}`. A kind of task defines
    `fresh`, `discriminator_loss` and `generator_loss`; each player may be several networks.

    Attributes:
      objective: see `discriminator_losses`.
      critic_steps: updates of the discriminator in each step, each on a part of the batch of its
        own.
      ema: decay of an exponential moving average of the generator's parameters, which evaluation
        then uses; None for none. Early on it is (1 + step) / (10 + step) if that is less.
    """

    objective: Objective = "non_saturating"
    critic_steps: Size = 1
    ema: Fraction | None = None

    target_fields: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[tuple[str, ...]] = ("image",)  # of a batch, zero where it is masked

    def fresh(self, key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        """(parameters, other collections) of both players, by name."""
        raise TypeError(f"{type(self).__name__} must define fresh().")

    def discriminator_loss(self, params: Any, mutable: Any, batch: Batch,
                           key: Array) -> tuple[Mean, Any, Metrics]:
        """(mean, updated collections of the discriminator, metrics) in training."""
        raise TypeError(f"{type(self).__name__} must define discriminator_loss().")

    def generator_loss(self, params: Any, mutable: Any, batch: Batch,
                       key: Array) -> tuple[Mean, Any, Metrics]:
        """(mean, updated collections of the generator, metrics) in training."""
        raise TypeError(f"{type(self).__name__} must define generator_loss().")

    def updates_per_step(self, name: str) -> int:
        """Of the optimizer of a player."""
        return self.critic_steps if name == DISCRIMINATOR else 1

    def init(self, key: Array, batch: Batch, tx: Mapping[str, Any]) -> GANState:
        names = GENERATOR, DISCRIMINATOR
        if not isinstance(tx, Mapping) or tx.keys() != set(names):
            found = ", ".join(map(repr, tx)) if isinstance(tx, Mapping) else "one"
            raise UserError(f"optimizer: {type(self).__name__} needs two by name, 'generator' and "
                            f"'discriminator'; found {found}.")
        params, mutable = self.fresh(key, batch)
        return GANState(
            step=jnp.int32(0), seen=jnp.uint32(0), key=jax.random.fold_in(key, 2), params=params,
            mutable=mutable, opt_state={n: tx[n].init(params[n]) for n in names},
            ema=None if self.ema is None else jax.tree.map(jnp.copy, params[GENERATOR]))

    def step(self, state: GANState, batch: Batch,
             tx: Mapping[str, Any]) -> tuple[GANState, Metrics]:
        size = len(batch["mask"])
        if size % self.critic_steps:
            raise UserError(f"task.critic_steps={self.critic_steps} does not divide the batch of "
                            f"{size}.")
        key = jax.random.fold_in(state.key, state.step)
        # Part i takes every n-th example, so that no device has to send its own away.
        parts = [jax.tree.map(lambda x, i=i: x[i::self.critic_steps], clean(batch, *self.inputs))
                 for i in range(self.critic_steps)]
        metrics: dict[str, Mean | Array] = {}  # of the last update of each
        for i, part in enumerate(parts):
            state, found = self.update(DISCRIMINATOR, state, part, jax.random.fold_in(key, i), tx)
            metrics |= found
        state, found = self.update(GENERATOR, state, parts[-1],
                                   jax.random.fold_in(key, self.critic_steps), tx)
        ema = state.ema
        if self.ema is not None:
            decay = jnp.minimum(self.ema, (1. + state.step) / (10. + state.step))
            ema = jax.tree.map(lambda a, p: (decay * a + (1 - decay) * p).astype(a.dtype),
                               ema, state.params[GENERATOR])
        return replace(state, step=state.step + 1, seen=state.seen + jnp.uint32(size),
                       ema=ema), {**metrics, **found}

    def update(self, name: str, state: GANState, batch: Batch, key: Array,
               tx: Mapping[str, Any]) -> tuple[GANState, Metrics]:
        """One of the two networks after one step of its optimizer."""
        def objective(own: Any) -> tuple[Array, Any]:
            params = {**state.params, name: own}
            loss = getattr(self, f"{name}_loss")
            mean, mutable, metrics = loss(params, state.mutable, batch, key)
            count = over_devices(jax.lax.stop_gradient(mean.count))
            total = mean.total / jnp.where(count > 0, count, 1)
            return total, (mutable, {f"{name}_loss": mean, **metrics})

        gradient, (mutable, metrics) = jax.grad(objective, has_aux=True)(state.params[name])
        updates, opt_state = tx[name].update(gradient, state.opt_state[name], state.params[name])
        return replace(
            state, params={**state.params, name: optax.apply_updates(state.params[name], updates)},
            mutable={**state.mutable, name: {**state.mutable[name], **mutable}},
            opt_state={**state.opt_state, name: opt_state}), {
                **metrics, f"{name}_grad_norm": norm(over_devices(gradient))}


@dataclass(frozen=True, kw_only=True)
class GAN(Adversarial):
    """A generator makes images of noise, a discriminator scores images, and they are trained
    against each other.

    A batch has "image" [B, H, W, C], "mask" [B] and for conditional networks "label" [B].

    Attributes:
      generator: Linen module called as generator(noise [B, N], label, train), returns images.
      discriminator: called as discriminator(image, label, train), returns scores [B].
      noise: N, numbers that an image is made of, standard normal.
      gradient_penalty: weight of (|d score(x) / dx| - 1)^2 at a random point x between a real and a
        made image, in the discriminator's loss (Gulrajani et al. 2017,
        https://arxiv.org/abs/1704.00028, equation 3, where it is 10, with five critic_steps); None
        for none.
      conditional: whether both networks are given the label.
    """

    generator: nn.Module
    discriminator: nn.Module
    noise: Size = 64
    gradient_penalty: NonNegative | None = None
    conditional: bool = False

    def fresh(self, key: Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        label = self.label(batch)
        epsilon = jnp.zeros((len(batch["image"]), self.noise))
        params, mutable = {}, {}
        for i, (name, x) in enumerate(((GENERATOR, epsilon), (DISCRIMINATOR, batch["image"]))):
            variables = dict(getattr(self, name).init(jax.random.fold_in(key, i), x, label, False))
            params[name] = variables.pop("params")
            mutable[name] = variables
        made: Any = jax.eval_shape(lambda: self.generator.apply(
            {"params": params[GENERATOR], **mutable[GENERATOR]}, epsilon, label, False))
        if made.shape != batch["image"].shape:
            raise UserError(f"task.generator: makes images {made.shape[1:]}, and the data has "
                            f"{batch['image'].shape[1:]}; set its size and image_channels.")
        score: Any = jax.eval_shape(lambda: self.discriminator.apply(
            {"params": params[DISCRIMINATOR], **mutable[DISCRIMINATOR]}, batch["image"], label,
            False))
        if score.ndim != 1:
            raise UserError("task.discriminator: gives an image a map of scores, where this task "
                            "needs one score (patches=False).")
        return params, mutable

    def check(self, experiment: Any) -> None:
        """Raises a UserError where labels are asked for that the networks are not given."""
        check_labels(self.conditional, {"task.generator": self.generator,
                                        "task.discriminator": self.discriminator})

    def discriminator_loss(self, params: Any, mutable: Any, batch: Batch,
                           key: Array) -> tuple[Mean, Any, Metrics]:
        """(mean, updated collections, metrics) of real images and of as many made ones."""
        image, label = batch["image"], self.label(batch)
        made, _ = self.make(params, mutable, noise.normal(key, batch, (self.noise,)), label, key)
        made = jax.lax.stop_gradient(made)
        real_score, after = self.score(params, mutable, image, label, jax.random.fold_in(key, 0))
        between = {**mutable, DISCRIMINATOR: {**mutable[DISCRIMINATOR], **after}}
        made_score, after = self.score(params, between, made, label, jax.random.fold_in(key, 1))
        each = discriminator_losses(self.objective, real_score, made_score)
        metrics: dict[str, Mean | Array] = {"real_score": Mean.of(real_score, batch["mask"]),
                                            "made_score": Mean.of(made_score, batch["mask"])}
        if self.gradient_penalty is not None:
            share = noise.uniform(jax.random.fold_in(key, 2), batch, (1,) * (image.ndim - 1))
            slope = self.slope(params, mutable, share * image + (1 - share) * made, label)
            squares = (slope - 1) ** 2
            each = each + self.gradient_penalty * squares
            metrics["gradient_penalty"] = Mean.of(squares, batch["mask"])
        return Mean.of(each, batch["mask"]), after, metrics

    def generator_loss(self, params: Any, mutable: Any, batch: Batch,
                       key: Array) -> tuple[Mean, Any, Metrics]:
        """(mean, updated collections, no metrics) of as many made images as the batch has."""
        label = self.label(batch)
        epsilon = noise.normal(key, batch, (self.noise,))
        made, after = self.make(params, mutable, epsilon, label, key)
        score, _ = self.score(params, mutable, made, label, jax.random.fold_in(key, 0))
        return Mean.of(generator_losses(self.objective, score), batch["mask"]), after, {}

    def slope(self, params: Any, mutable: Any, image: Array, label: Array | None) -> Array:
        """|d score(x) / dx| at images [B, H, W, C], each by itself: [B]."""
        def total(image: Array) -> Array:
            judge = {"params": params[DISCRIMINATOR], **mutable[DISCRIMINATOR]}
            return jnp.sum(self.discriminator.apply(judge, image, label, False))  # type: ignore

        # The gradient of the square root is infinite at zero.
        return jnp.sqrt((jax.grad(total)(image) ** 2).reshape(len(image), -1).sum(-1) + 1e-12)

    def make(self, params: Any, mutable: Any, epsilon: Array, label: Array | None,
             key: Array) -> tuple[Array, Any]:
        """(images, updated collections) of noise, in training."""
        return self._apply(GENERATOR, params, mutable, epsilon, label, key)

    def score(self, params: Any, mutable: Any, image: Array, label: Array | None,
              key: Array) -> tuple[Array, Any]:
        """(scores [B], updated collections) of images, in training."""
        return self._apply(DISCRIMINATOR, params, mutable, image, label, key)

    def _apply(self, name: str, params: Any, mutable: Any, x: Array, label: Array | None,
               key: Array) -> tuple[Array, Any]:
        found: Any = getattr(self, name).apply(
            {"params": params[name], **mutable[name]}, x, label, True, rngs={"dropout": key},
            mutable=list(mutable[name]))
        return found

    def label(self, batch: Batch) -> Array | None:
        """What a conditional network is given."""
        return batch["label"] if self.conditional else None

    def evaluate(self, state: GANState, batch: Batch) -> Mapping[str, Mean]:
        """Both losses without a penalty, and the mean scores of real and of as many made images."""
        batch = clean(batch, *self.inputs)
        label = self.label(batch)
        made = self.images(state, noise.normal(jax.random.key(0), batch, (self.noise,)), label)
        judge = {"params": state.params[DISCRIMINATOR], **state.mutable[DISCRIMINATOR]}
        real, other = (jnp.asarray(self.discriminator.apply(judge, x, label, False))
                       for x in (batch["image"], made))
        found = {"discriminator_loss": discriminator_losses(self.objective, real, other),
                 "generator_loss": generator_losses(self.objective, other),
                 "real_score": real, "made_score": other}
        return {name: Mean.of(x, batch["mask"]) for name, x in found.items()}

    def images(self, state: GANState, epsilon: Array, label: Array | None) -> Array:
        """Images of noise [N, noise] and labels, by the average where one is kept."""
        params = state.params[GENERATOR] if state.ema is None else state.ema
        found: Any = self.generator.apply({"params": params, **state.mutable[GENERATOR]}, epsilon,
                                          label, False)
        return found

    def sample(self, state: GANState, key: Array, count: int) -> Array:
        """Images of `count` draws of noise, of each class in turn: [count, H, W, C]."""
        return self.images(state, jax.random.normal(key, (count, self.noise)), self.turns(count))

    def interpolate(self, state: GANState, key: Array, rows: int, columns: int) -> Array:
        """Images of noise between two draws, row by row."""
        ends = jax.random.normal(key, (2, rows, self.noise))
        label = self.turns(rows)
        return self.images(state, path_between(ends[0], ends[1], columns),
                           None if label is None else jnp.repeat(label, columns))

    def turns(self, count: int) -> Array | None:
        """Labels of `count` samples: each class in turn."""
        return turns(self.generator, count)

    def pictures(self, state: GANState, material: Material) -> Iterator[Picture]:
        """Samples, and what lies between them."""
        yield drawn(self, state, material)
        yield between(self, state, material)

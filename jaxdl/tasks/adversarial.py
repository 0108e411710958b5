"""Attacks on images, training against them, and accuracy under them.

Goodfellow et al. (2015), https://arxiv.org/abs/1412.6572 (FGSM); Madry et al. (2018),
https://arxiv.org/abs/1706.06083 (PGD); Zhang et al. (2019), https://arxiv.org/abs/1901.08573
(TRADES). An attack works on images as the network sees them; with data of mean 0 and std 1 these
are pixels in [0, 1].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxdl import noise
from jaxdl.config import NonNegative, Size
from jaxdl.data.transforms import Normalise, clean
from jaxdl.errors import UserError
from jaxdl.evaluate import Context, Evaluate
from jaxdl.task import Aux, Batch, Mean, TrainState
from jaxdl.tasks.wrapped import Wrapped, observed

Array = jax.Array

ATTACKED = "images are attacked in training alone"


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Projected gradient ascent: x <- the nearest point to x + step * g in the ball of `radius`
    around the image and within [low, high] (Madry et al. 2018, section 2.1).

    g is the sign of the gradient under "linf", the gradient over its norm under "l2". One step of
    the size of the radius, not begun at random, is FGSM.

    Attributes:
      norm: of the ball.
      radius: of the ball: 8 / 255 and 0.3 are usual under "linf" for CIFAR and MNIST.
      step: size of a step.
      steps: how many.
      random: whether to begin at a random point of the ball instead of at the image.
      low: the least value of a pixel.
      high: the largest one.
    """

    norm: Literal["linf", "l2"] = "linf"
    radius: NonNegative = 8 / 255
    step: NonNegative = 2 / 255
    steps: Size = 10
    random: bool = True
    low: float = 0.0
    high: float = 1.0

    def __call__(self, loss: Callable[[Array], Array], x: Array, keys: Array,
                 start: Array | None = None) -> Array:
        """Images near x [B, ...] for which `loss`, a sum over the examples, is high.

        Args:
          loss: of images [B, ...].
          x: the images.
          keys: one for each image [B].
          start: where to begin, unless at random; None for the images themselves.
        """
        if self.random:
            start = x + jax.vmap(self._drawn)(x, keys)
        start = x if start is None else jnp.clip(start, self.low, self.high)

        def ascend(_: Any, x_adv: Array) -> Array:
            g = jax.grad(loss)(x_adv)
            direction = jnp.sign(g) if self.norm == "linf" else g / _norms(g)
            moved = x + self._projected(x_adv + self.step * direction - x)
            return jnp.clip(moved, self.low, self.high)

        # On CPU, gradients of convolutions in a loop are many times slower: a few are unrolled.
        found = start
        if jax.default_backend() == "cpu" and self.steps <= 10:
            for i in range(self.steps):
                found = ascend(i, found)
        else:
            found = jax.lax.fori_loop(0, self.steps, ascend, start)
        return jax.lax.stop_gradient(found)

    def _drawn(self, x: Array, key: Array) -> Array:
        """A point of the ball around zero, of one image."""
        if self.norm == "linf":
            return jax.random.uniform(key, x.shape, x.dtype, -1, 1) * self.radius
        toward, far = jax.random.split(key)
        direction = jax.random.normal(toward, x.shape, x.dtype)
        length = self.radius * jax.random.uniform(far, (), x.dtype) ** (1 / x.size)
        return direction / jnp.linalg.norm(direction.ravel()) * length

    def _projected(self, d: Array) -> Array:
        if self.norm == "linf":
            return jnp.clip(d, -self.radius, self.radius)
        return d * jnp.minimum(1, self.radius / _norms(d))


def _norms(x: Array) -> Array:
    """Euclidean norms of the examples: [B, 1, ...]."""
    squares = (x ** 2).sum(tuple(range(1, x.ndim)), keepdims=True)
    return jnp.sqrt(jnp.maximum(squares, 1e-24))


def kl(p: Array, q: Array) -> Array:
    """KL(softmax(p) || softmax(q)) of logits [B, K]: [B]."""
    return (jax.nn.softmax(p) * (jax.nn.log_softmax(p) - jax.nn.log_softmax(q))).sum(-1)


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(Wrapped):
    """The loss inside, of attacked images instead of the images (Madry et al. 2018, equation 2.1).

    The attack sees the network as in evaluation (dropout off, norms with running statistics).

    Attributes:
      attack: on the loss inside.
    """

    not_applicable: ClassVar[Mapping[str, str]] = {"modes": ATTACKED}

    attack: Attack = Attack()

    def checks(self) -> dict[str, Any]:
        return _checks(self)

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        inner = self.inside()
        if train:
            batch = {**batch, "image": attacked(inner, self.attack, variables, batch, key)}
        return inner.loss(variables, batch, key, train=train)


@dataclass(frozen=True, kw_only=True)
class TRADES(Wrapped):
    """The loss inside + beta * KL(f(x) || f(x')), x' near x with the largest such KL (equation 5).

    Attributes:
      attack: on the divergence.
      beta: 1 / lambda of the paper, which uses 1 and 6.
    """

    not_applicable: ClassVar[Mapping[str, str]] = {
        "initial_loss": "a divergence is added to the task's loss", "modes": ATTACKED}

    attack: Attack = Attack()
    beta: NonNegative = 6.0

    def checks(self) -> dict[str, Any]:
        return _checks(self)

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        inner = self.inside()
        if not train or not variables:
            return inner.loss(variables, batch, key, train=train)
        kept = batch["mask"] > 0

        def logits(image: Array, train: bool) -> Array:
            return observed(inner, variables, {**batch, "image": image}, key, train=train)[2][""]

        image = clean(batch)["image"]
        still = jax.lax.stop_gradient(logits(image, False))
        # At the image itself the divergence is least, and its gradient zero: the attack must not
        # begin there (the paper's algorithm 1 adds noise of 0.001).
        start = jax.vmap(lambda x, k: 1e-3 * jax.random.normal(k, x.shape, x.dtype))(
            image, noise.keys(jax.random.fold_in(key, 1), batch))
        found = self.attack(lambda x: jnp.where(kept, kl(still, logits(x, False)), 0).sum(),
                            image, noise.keys(jax.random.fold_in(key, 2), batch),
                            start=image + start)
        mean, aux, outputs = observed(inner, variables, batch, key, train=True)
        apart = Mean.of(kl(outputs[""], logits(found, True)), batch["mask"])
        # The task inside may count fewer examples: those with labels.
        scale = mean.count / jnp.where(apart.count > 0, apart.count, 1)
        return (Mean(mean.total + self.beta * scale * apart.total, mean.count),
                replace(aux, metrics={**aux.metrics, "divergence": apart}))


def attacked(task: Any, attack: Attack, variables: dict[str, Any], batch: Batch,
             key: Array) -> Array:
    """Images near those of the batch for which the task's loss is high."""
    if not variables:  # The shapes are what matters.
        return batch["image"]
    fixed = jax.lax.stop_gradient(variables)

    def total(image: Array) -> Array:
        return task.loss(fixed, {**batch, "image": image}, key, train=False)[0].total

    return attack(total, clean(batch)["image"], noise.keys(jax.random.fold_in(key, 1), batch))


def _checks(task: Any) -> dict[str, Any]:
    """`check`s of a task with an attack, beside those of the task inside."""
    def attack_range(subject: Any) -> Any:
        """An attack keeps pixels within [low, high]: of images that are normalised it would cut off
        what lies outside, and its radius would be another one."""
        from jaxdl.checks.subject import judged

        image = subject.batch(subject.train)["image"]
        low, high = float(image.min()), float(image.max())
        attack = task.attack
        outside = low < attack.low - 1e-6 or high > attack.high + 1e-6
        return judged(f"from {low:.3g} to {high:.3g}" if outside else "",
                      measured=f"from {low:.3g} to {high:.3g}",
                      expected=f"images from {attack.low:g} to {attack.high:g}",
                      look_at="data.mean=0 and data.std=1, or the attack's low and high")

    inner = getattr(task.task, "checks", None)
    return {**(inner() if inner else {}), "attack_range": attack_range}


@dataclass(frozen=True, kw_only=True)
class RobustAccuracy(Evaluate):
    """The task's metrics on attacked images: of "accuracy" that under the attack.

    Attributes:
      attack: on the task's loss; the same for each evaluation.
    """

    attack: Attack = Attack(steps=20)

    def measure(self, task: Any, state: TrainState, batch: Batch) -> Any:
        image = attacked(task, self.attack, task.variables(state), batch, jax.random.key(0))
        return task.evaluate(state, {**batch, "image": image})

    def finish(self, sums: Any, context: Context) -> Mapping[str, float]:
        pixels = (self.attack.low, self.attack.high) == (0., 1.)
        for transform in getattr(context.source(self.split), "transforms", ()) if pixels else ():
            if isinstance(transform, Normalise) and {*transform.mean, *transform.std} != {0., 1.}:
                raise UserError(
                    f"evals.{context.name}.attack: works on pixels from low=0.0 to high=1.0, and "
                    "the data normalises them; set data.mean=0 and data.std=1, or low and high to "
                    "those of normalised ones.")
        return super().finish(sums, context)

"""Learning from few labels and many examples without: tasks around a task, on batches with
"labelled" [B], as `FewLabels` gives them. Without "labelled", every example has a label.

The loss is that of the task inside, over the labelled examples, plus `weight` times a mean over
unlabelled or all ones, which is logged as "penalty". (Where a batch is split into micro-batches, or
devices run programs of their own, the latter mean is the mean of theirs.) The model sees the whole
batch at once, so batch norm does too; further passes leave its running statistics alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Count, Fraction, NonNegative
from jaxdl.data.source import Transform, transformed
from jaxdl.data.transforms import Affine, RandAugment, clean
from jaxdl.errors import UserError
from jaxdl.task import Aux, Batch, Mean, TrainState
from jaxdl.tasks.wrapped import Wrapped, aside, observed

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class SemiSupervised(Wrapped):
    """What the methods share: the part that has labels.

    The task inside has a `model` that is called as model(image, train) and gives a logit for each
    class, as Classification has.
    """

    target_fields: ClassVar[tuple[str, ...]] = ("label", "labelled")
    not_applicable: ClassVar[Mapping[str, str]] = {
        "labels": "unlabelled examples have the label -1",
        "order": "labelled examples come more often than others",
        "modes": "what is without labels is in the loss of training alone",
        "accumulation": "the means over examples without labels are those of the micro-batches"}

    def supervised(self, variables: dict[str, Any], batch: Batch, key: Array
                   ) -> tuple[Mean, Aux, Array]:
        """(mean, aux) of the task inside over the labelled examples, and the logits [B, classes] of
        all: the model is given all images where the task inside would give it those it counts."""
        inner, image = self.inside(), batch["image"]
        counted = labelled(batch)["mask"].reshape(-1, *[1] * (image.ndim - 1)) > 0

        def whole(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            own = type(context.module) is type(inner.model) and context.module.path == ()
            if own and context.method_name == "__call__":
                # Those it counts are as the task inside gives them: attacked, for one.
                args = (jnp.where(counted, args[0], image.astype(args[0].dtype)), *args[1:])
            return call(*args, **kwargs)

        with nn.intercept_methods(whole):
            mean, aux, outputs = observed(inner, variables, labelled(batch), key, train=True)
        if outputs[""].shape[-1] == 1:
            raise UserError(f"{type(self).__name__}: the model has one logit; expected one for "
                            "each class.")
        return mean, aux, outputs[""]

    def logits_of(self, variables: dict[str, Any], image: Array, key: Array) -> Array:
        """The model's logits [B, classes] of other images, in training."""
        inner = self.inside()
        with aside():
            return inner.apply(inner.model, variables, image, key=key, train=True)[0]

    def evaluate(self, state: TrainState, batch: Batch) -> Mapping[str, Mean]:
        return self.inside().evaluate(state, labelled(batch))


def labelled(batch: Batch) -> Batch:
    """The batch with all but the labelled examples masked."""
    return {**batch, "mask": batch["mask"] * batch.get("labelled", 1.)}


def unlabelled(batch: Batch) -> Array:
    """The mask [B] of the examples without a label."""
    return batch["mask"] * (1 - batch.get("labelled", jnp.ones_like(batch["mask"])))


def plus(aux: Aux, weight: Any, **means: Mean) -> Aux:
    """`weight` times the value of the first mean is added to the loss; all are logged."""
    mean = next(iter(means.values()))
    term = weight * mean.total / jnp.where(mean.count > 0, mean.count, 1)
    return replace(aux, metrics={**aux.metrics, **means},
                   penalty=term if aux.penalty is None else aux.penalty + term)


def cross_entropy(logits: Array, label: Array) -> Array:
    """-log softmax(logits [B, classes]) at the label [B]: [B]."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], 1)[:, 0]


@dataclass(frozen=True, kw_only=True)
class PseudoLabels(SemiSupervised):
    """Takes the likeliest class of an unlabelled example for its label (Lee 2013, "Pseudo-label:
    the simple and efficient semi-supervised learning method", section 2).

    The weight alpha(t) is zero before step `start`, rises in a line, and is `weight` from step
    `full` on (equations 15 and 16; there these are epochs 100 and 600).

    Attributes:
      weight: alpha_f; 3 in the paper.
      start: the last step without pseudo-labels, T1.
      full: the step from which on they have their whole weight, T2.
    """

    weight: NonNegative = 3.
    start: Count = 0
    full: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.full <= self.start:
            raise UserError(f"PseudoLabels: full={self.full} must come after start={self.start}.")

    def inward(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {name: x for name, x in variables.items() if name != "pseudo_labels"}

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        calls = variables.get("pseudo_labels", {"calls": jnp.int32(0)})["calls"]
        given = self.inward(variables)
        if not variables or not train:
            mean, aux = self.inside().loss(given, labelled(batch), key, train=train)
            if not variables:
                variables.update(given, pseudo_labels={"calls": calls})
            return mean, aux
        batch = clean(batch)
        mean, aux, logits = self.supervised(given, batch, key)
        losses = cross_entropy(logits, logits.argmax(-1))
        step = calls // self.accumulate
        ramp = jnp.clip((step - self.start) / (self.full - self.start), 0, 1)
        aux = plus(aux, self.weight * ramp, unlabelled_loss=Mean.of(losses, unlabelled(batch)))
        return mean, replace(aux, mutable={**aux.mutable, "pseudo_labels": {"calls": calls + 1}})


@dataclass(frozen=True, kw_only=True)
class FixMatch(SemiSupervised):
    """What the network says of a weakly augmented image, if it is sure, is the label of the same
    image strongly augmented (Sohn et al. 2020, https://arxiv.org/abs/2001.07685, section 2.1).

    With q = p(y | weak(u)): the mean over unlabelled u of
    1[max q >= threshold] H(argmax q, p(y | strong(u)))  (equation 4).

    The loss augments, so the data does not: RandAugment and Colour expect images in [0, 1], which
    data with mean 0 and std 1 gives.

    Attributes:
      weak: transforms of all examples, labelled (equation 3) and not.
      strong: further transforms of the unlabelled ones, after those of `weak`.
      threshold: tau, the least probability that makes a label.
      weight: lambda_u, of the unlabelled part.
    """

    weak: tuple[Transform, ...] = (Affine(degrees=10., fraction=0.1),)
    strong: tuple[Transform, ...] = (RandAugment(operations=2, magnitude=0.5),)
    threshold: Fraction = 0.95
    weight: NonNegative = 1.

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        if not train or not variables:
            return self.inside().loss(variables, labelled(batch), key, train=train)
        weak = transformed(self.weak, clean(batch), jax.random.fold_in(key, 1))
        strong = transformed(self.strong, weak, jax.random.fold_in(key, 2))
        mean, aux, logits = self.supervised(variables, weak, key)
        q = jax.lax.stop_gradient(jax.nn.softmax(logits))
        sure = (q.max(-1) >= self.threshold).astype(q.dtype)
        said = self.logits_of(variables, strong["image"], jax.random.fold_in(key, 3))
        losses = sure * cross_entropy(said, q.argmax(-1))
        mask = unlabelled(batch)
        return mean, plus(aux, self.weight, unlabelled_loss=Mean.of(losses, mask),
                          sure=Mean.of(sure, mask))


@dataclass(frozen=True, kw_only=True)
class VirtualAdversarial(SemiSupervised):
    """Keeps what the network says of an image the same in the direction in which it changes most
    (Miyato et al. 2018, https://arxiv.org/abs/1704.03976, algorithm 1; all labelled or not).

    r = radius * g / |g| with g the gradient of KL(p(y | x), p(y | x + r)) at r = xi d, where d is a
    random direction: one power iteration. Added is the mean over all examples of
    KL(p(y | x), p(y | x + r)), with the first of the two held fixed  (equations 5 and 8).

    Attributes:
      radius: epsilon, the Euclidean norm of r, in units of the whole image as the network gets it.
      xi: step of the power iteration, likewise; small, but not so small that it is rounded away.
      weight: alpha; 1 in the paper.
    """

    radius: NonNegative = 2.
    xi: NonNegative = 0.1
    weight: NonNegative = 1.

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        if not train or not variables:
            return self.inside().loss(variables, labelled(batch), key, train=train)
        batch = clean(batch)
        image = batch["image"]
        mean, aux, logits = self.supervised(variables, batch, key)
        logp = jax.lax.stop_gradient(jax.nn.log_softmax(logits))

        def divergence(variables: Any, r: Array) -> Array:
            """KL(p(y | x), p(y | x + r)) [B], under the dropout that gave p(y | x)."""
            logq = jax.nn.log_softmax(self.logits_of(variables, image + r, key))
            return (jnp.exp(logp) * (logp - logq)).sum(-1)

        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 1), batch["index"])
        d = direction(jax.vmap(lambda key: jax.random.normal(key, image.shape[1:]))(keys))
        still = jax.lax.stop_gradient(variables)
        g = jax.grad(lambda r: (batch["mask"] * divergence(still, r)).sum())(self.xi * d)
        losses = divergence(variables, self.radius * direction(jax.lax.stop_gradient(g)))
        return mean, plus(aux, self.weight, smoothness=Mean.of(losses, batch["mask"]))


def direction(x: Array) -> Array:
    """x [B, ...] with each example divided by its Euclidean norm; zero stays zero."""
    largest = jnp.abs(x).max(tuple(range(1, x.ndim)), keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)  # A small gradient's square may be too small.
    norms = jnp.sqrt(jnp.square(x).sum(tuple(range(1, x.ndim)), keepdims=True))
    return x / jnp.where(norms > 0, norms, 1)

"""Learning without labels: SimCLR, BYOL, and the four rotations.

Each trains a `model` of images up to its last layer, "head", and evaluates what it learned by
`KNN` or `LinearProbe`. A Classification with the same model goes on from there, with a new head:

    init_from=InitFrom(path=RUN, fresh=("params/head/.*",))

Nothing needs a new name: the parameters of the model lie where Classification has them. The views
are made inside the loss, of images in [0, 1] if their transforms ask for that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl import metrics
from jaxdl.config import Fraction, NonNegative, Size
from jaxdl.data.source import Transform, transformed
from jaxdl.data.transforms import clean
from jaxdl.errors import UserError
from jaxdl.layers import batch_norm
from jaxdl.task import Aux, Batch, LossTask, Mean
from jaxdl.tasks.representations import headless

Array = jax.Array

COMPARED = "the loss compares the examples of a batch"
AUGMENTED = "the loss augments at random in training"


@dataclass(frozen=True, kw_only=True)
class SelfSupervised(LossTask):
    """What the methods share.

    Attributes:
      model: called as model(image, train); its last layer is called "head".
    """

    model: nn.Module

    target_fields: ClassVar[tuple[str, ...]] = ()
    not_applicable: ClassVar[Mapping[str, str]] = {"modes": AUGMENTED}

    def drawn(self, key: Array, train: bool) -> Array:
        """The key of what is random in the loss: always the same in evaluation."""
        return key if train else jax.random.key(0)


def views(transforms: tuple[Transform, ...], batch: dict[str, Any], key: Array) -> Array:
    """Two random views of each image, the first ones and then the second ones: [2B, H, W, C]."""
    return jnp.concatenate([transformed(transforms, batch, jax.random.fold_in(key, i))["image"]
                            for i in (1, 2)])


class Projected(nn.Module):
    """A model without its head, a projector behind it, and perhaps a predictor: [B, out].

    Attributes:
      model: its parameters lie beside "projector", where they would be without it.
      hidden: units between the two layers of projector and predictor.
      out: units of their last ones.
      batch_norm: normalise between them.
      predicts: whether there is a predictor.
    """

    model: nn.Module
    hidden: int
    out: int
    batch_norm: bool
    predicts: bool = False

    def setup(self) -> None:
        nn.share_scope(self, self.model)
        self.projector = TwoLayers(self.hidden, self.out, self.batch_norm)
        if self.predicts:
            self.predictor = TwoLayers(self.hidden, self.out, self.batch_norm)

    def __call__(self, x: Array, train: bool) -> Array:
        with headless():
            x = self.model(x, train)
        x = self.projector(x.reshape(len(x), -1), train)
        return self.predictor(x, train) if self.predicts else x


class TwoLayers(nn.Module):
    """Dense, batch norm if wanted, ReLU, Dense."""

    hidden: int
    out: int
    batch_norm: bool

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.Dense(self.hidden, use_bias=not self.batch_norm, name="dense1")(x)
        if self.batch_norm:
            x = batch_norm(train, name="norm")(x)
        return nn.Dense(self.out, name="dense2")(nn.relu(x))


def unit(x: Array) -> Array:
    """x [B, D] with each row divided by its Euclidean norm."""
    return x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))


@dataclass(frozen=True, kw_only=True)
class SimCLR(SelfSupervised):
    """Two views of an image are closer to each other than to those of all other images
    (Chen et al. 2020, https://arxiv.org/abs/2002.05709, section 2.1 and algorithm 1).

    l(i, j) = -log exp(s_ij / tau) / sum_{k != i} exp(s_ik / tau)  (equation 1), where s is the
    cosine of two projections, and k runs over both views of the batch; the loss of an image is
    the mean of l over its two views. Under parallel=jit the whole batch is compared, whatever
    the devices; micro-batches, and devices under pmap, compare their own parts. `accuracy` is how
    often the other view is the nearest.

    Attributes:
      augment: transforms of a view.
      temperature: tau.
      hidden: units of the projector.
      out: of its output, of which the cosines are.
      batch_norm: in the projector.
    """

    augment: tuple[Transform, ...]
    temperature: NonNegative = 0.5
    hidden: Size = 128
    out: Size = 64
    batch_norm: bool = False

    not_applicable: ClassVar[Mapping[str, str]] = {"modes": AUGMENTED, **dict.fromkeys(
        ("masks", "example_leak", "accumulation"), COMPARED),
        "overfits": "the least loss is not zero: other images have some cosine too"}

    def initial_loss(self, batch: Batch) -> Array:
        """Of views that are all alike."""
        return jnp.log(2. * len(batch["mask"]) - 1)

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        both = views(self.augment, clean(batch), self.drawn(key, train))
        model = Projected(self.model, self.hidden, self.out, self.batch_norm)
        z, mutable = self.apply(model, variables, both, key=key, train=train)
        losses, accuracy = contrast(unit(z), batch["mask"], self.temperature)
        return (Mean.of(losses, batch["mask"]),
                Aux(metrics={"accuracy": Mean.of(accuracy, batch["mask"])}, mutable=mutable))


def contrast(z: Array, mask: Array, temperature: Any) -> tuple[Array, Array]:
    """NT-Xent of the projections z [2B, D], of length one, and whether the other view is the
    nearest: the means of both views, [B]. Masked images take no part."""
    size = len(mask)
    there = jnp.tile(mask, 2) > 0
    allowed = there[None, :] & ~jnp.eye(2 * size, dtype=bool)  # [2B, 2B]
    scores = jnp.where(allowed, z @ z.T / temperature, -1e9)  # infinite ones have no gradient
    other = jnp.roll(jnp.arange(2 * size), size)
    own = jnp.take_along_axis(scores, other[:, None], 1)[:, 0]
    losses = jax.nn.logsumexp(scores, -1) - own
    nearest = scores.argmax(-1) == other
    return losses.reshape(2, size).mean(0), nearest.reshape(2, size).mean(0)


@dataclass(frozen=True, kw_only=True)
class BYOL(SelfSupervised):
    """Predicts, from one view, what a slow average of the network says of the other view
    (Grill et al. 2020, https://arxiv.org/abs/2006.07733, section 3.1).

    L = |q / |q| - z' / |z'||^2 = 2 - 2 cos(q, z')  (equation 2), q being the prediction from one
    view and z' the target's projection of the other, without gradient; the two views are then
    exchanged and both losses added. The target's parameters follow xi = m xi + (1 - m) theta with
    m = 1 - (1 - momentum) (cos(pi step / steps) + 1) / 2.

    The target lies in the state's `mutable`, under "target". It takes in the parameters of a step
    when the next one begins: the same sequence, which micro-batches and tasks around this one keep.
    (In SAM it takes in the place of the second gradient, a `radius` away.)

    Attributes:
      augment: transforms of a view.
      momentum: m at the start; 0.996 in the paper, which trains many times as long.
      steps: after which m is 1; None keeps it as it is.
      hidden: units of projector and predictor.
      out: of the projections.
      batch_norm: in projector and predictor, as in the paper.
    """

    augment: tuple[Transform, ...]
    momentum: Fraction = 0.99
    steps: Size | None = None
    hidden: Size = 128
    out: Size = 64
    batch_norm: bool = True

    not_applicable: ClassVar[Mapping[str, str]] = {"modes": AUGMENTED}

    def initial_loss(self, batch: Batch) -> Array:
        """Of predictions that have nothing to do with the targets."""
        return jnp.asarray(4.)

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        both = views(self.augment, clean(batch), self.drawn(key, train))
        size, mask = len(batch["mask"]), batch["mask"]
        target = Projected(self.model, self.hidden, self.out, self.batch_norm)
        online = target.clone(predicts=True)
        fresh = not variables
        kept = variables.get("target", {})
        own = {name: x for name, x in variables.items() if name != "target"}
        q, mutable = self.apply(online, own, both, key=key, train=train)
        followed = {name: x for name, x in own["params"].items() if name != "predictor"}
        if fresh:
            kept = {"params": jax.tree.map(jnp.copy, followed), "calls": jnp.int32(0)}
            variables.update(own, target=kept)
        elif train:
            m = self.at(kept["calls"] // self.accumulate) ** (1 / self.accumulate)
            kept = {"params": jax.tree.map(lambda xi, theta: m * xi + (1 - m) * theta,
                                           kept["params"], followed),
                    "calls": kept["calls"] + 1}
            mutable = {**mutable, "target": kept}
        z, _ = self.apply(target, {**own, "params": kept["params"]}, both, key=key, train=train)
        q, z = unit(q), jax.lax.stop_gradient(unit(z))
        losses = 2 - 2 * (q * jnp.roll(z, size, 0)).sum(-1)  # [2B]
        return (Mean.of(losses.reshape(2, size).sum(0), mask), Aux(mutable=mutable))

    def at(self, step: Array) -> Array:
        """The target's momentum at a step."""
        if self.steps is None:
            return jnp.asarray(self.momentum)
        t = jnp.minimum(step / self.steps, 1)
        return 1 - (1 - self.momentum) * (jnp.cos(jnp.pi * t) + 1) / 2


@dataclass(frozen=True, kw_only=True)
class Rotation(SelfSupervised):
    """By how many quarter turns was an image turned? (Gidaris et al. 2018,
    https://arxiv.org/abs/1803.07728, section 3: each image in all four positions.)

    The loss of an image is the mean cross-entropy of its four positions; `accuracy` is the part of
    them that is told. Images are square, and the model has four classes.

    Attributes:
      augment: transforms of the image before it is turned, in training.
    """

    augment: tuple[Transform, ...] = ()

    not_applicable: ClassVar[Mapping[str, str]] = {}

    def initial_loss(self, batch: Batch) -> Array:
        """Of four classes that are equally likely."""
        return jnp.log(4.)

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        batch, mask = clean(batch), batch["mask"]
        image = transformed(self.augment, batch, key)["image"] if train else batch["image"]
        if image.shape[1] != image.shape[2]:
            raise UserError(f"Rotation: images of {image.shape[1]} x {image.shape[2]}; expected "
                            "square ones.")
        turned = jnp.concatenate([jnp.rot90(image, k, (1, 2)) for k in range(4)])  # [4B, H, W, C]
        logits, mutable = self.apply(self.model, variables, turned, key=key, train=train)
        if logits.shape[-1] != 4:
            raise UserError(f"Rotation: the model has {logits.shape[-1]} classes; set "
                            "task.model.classes to 4.")
        label = jnp.repeat(jnp.arange(4), len(mask))
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], 1)
        losses, right = (x.reshape(4, -1).mean(0) for x in (  # [B]
            losses, metrics.correct_at(logits, label, 1)))
        return (Mean.of(losses, mask),
                Aux(metrics={"accuracy": Mean.of(right, mask)}, mutable=mutable))

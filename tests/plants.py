"""Healthy experiments, and the same with one bug each: what `check` is measured by.

Each plant is a mistake that people make, of a kind of its own, in the data, the model, the loss or
the recipe. It names the check that is meant to find it, or those of which each is. The healthy
experiments beside them must pass all checks. `HELD_BACK` are plants that no check was written or
tuned with; they were run once when the checks were done.
"""

import pydoc_data.topics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.config import Fraction, Size
from jaxdl.data.digits import Digits
from jaxdl.data.source import Arrays, Batch, Source
from jaxdl.data.transforms import Normalise, PadCrop
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment, Mesh
from jaxdl.layers import Dropout, batch_norm
from jaxdl.models.cnn import CNN
from jaxdl.models.mlp import MLP
from jaxdl.models.transformer import Transformer
from jaxdl.optimizer import SGD, Adam, Constant, Cosine
from jaxdl.task import Aux, LossTask, Mean
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.language import LanguageModel

Array = jax.Array


# Healthy experiments.


def digits(model: nn.Module | None = None, *, task: LossTask | None = None,
           data: Any = None, **changes: Any) -> Experiment:
    """An MLP on 8 x 8 digits."""
    return replace(Experiment(
        task=task or Classification(model=model or MLP(widths=(64,), dropout=0.1)),
        data=data or Digits(size=8, channels=1),
        optimizer=Adam(learning_rate=Cosine(peak=3e-3, warmup=0.05)),
        evals={"test": Evaluate()}, best=Best(metric="test/accuracy"),
        steps=1_000, batch_size=64, mesh=Mesh(data=1)), **changes)


def convolutions() -> Experiment:
    """A small CNN with batch norm, and augmentation."""
    return digits(CNN(channels=(8, 16), dense=(32,), batch_norm=True),
                  data=Digits(size=8, channels=1, augment=(PadCrop(pad=1),)))


@dataclass(frozen=True, kw_only=True)
class Characters:
    """Windows of the text of Python's own help topics: "tokens" and "next", int32 [T].

    Attributes:
      length: of a window, T.
    """

    length: Size = 16

    stand_in: ClassVar[None] = None

    def prepare(self) -> None:
        """It comes with Python."""

    def open(self, split: str) -> Source:
        train = self.windows(0, 10)
        return Arrays(arrays=train if split != "test" else self.windows(10, 12, {
            row.tobytes() for row in train["tokens"]}))

    def windows(self, first: int, last: int, seen: Iterable[bytes] = ()) -> dict[str, Any]:
        """Of some topics, in order: windows that have not been seen, since rulers of dashes
        repeat."""
        topics = pydoc_data.topics.topics
        text = "".join(topics[name] for name in sorted(topics)[first:last])
        codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32)
        count, kept, seen = (len(codes) - 1) // self.length, [], set(seen)
        for start in range(0, count * self.length, self.length):
            window = codes[start:start + self.length].tobytes()
            if window not in seen:
                kept.append(start)
                seen.add(window)
        rows = np.array(kept)[:, None] + np.arange(self.length)
        return {"tokens": codes[rows], "next": codes[rows + 1]}

    def fingerprint(self) -> str:
        return f"topics-{self.length}"


def text(model: nn.Module | None = None, *, task: LossTask | None = None,
         data: Any = None) -> Experiment:
    """A small Transformer on characters."""
    model = model or Transformer(vocabulary=128, layers=1, width=32, heads=2, block=16)
    return Experiment(
        task=task or LanguageModel(model=model), data=data or Characters(),
        optimizer=Adam(learning_rate=Cosine(peak=3e-3, warmup=0.05)), evals={"test": Evaluate()},
        steps=1_000, batch_size=64, mesh=Mesh(data=1))


HEALTHY: dict[str, Callable[[], Experiment]] = {
    "digits": digits, "convolutions": convolutions, "text": text}


# Bugs in the data.


@dataclass(frozen=True, kw_only=True)
class Spoilt(Digits):
    """Digits with something wrong.

    Attributes:
      how: the name of one of the functions of `SPOIL`.
    """

    how: str = ""

    def open(self, split: str) -> Source:
        source: Any = super().open(split)
        train: Any = super().open("train")
        return SPOIL[self.how](split, source, train)


def arrays(source: Any, **changes: Any) -> Any:
    return replace(source, arrays={**source.arrays, **changes})


def shifted_labels(split: str, source: Any, train: Any) -> Any:
    return arrays(source, label=np.roll(source.arrays["label"], 1)) if split == "train" else source


def test_in_train(split: str, source: Any, train: Any) -> Any:
    if split == "train":
        return source
    return replace(source, arrays={k: np.concatenate([x, train.arrays[k][:100]])
                                   for k, x in source.arrays.items()})


def contradictions(split: str, source: Any, train: Any) -> Any:
    if split != "train":
        return source
    image, label = (source.arrays[k][:150] for k in ("image", "label"))
    return replace(source, arrays={
        "image": np.concatenate([source.arrays["image"], image]),
        "label": np.concatenate([source.arrays["label"], (label + 3) % 10])})


def black(split: str, source: Any, train: Any) -> Any:
    return arrays(source, image=np.zeros_like(source.arrays["image"]))


def not_a_number(split: str, source: Any, train: Any) -> Any:
    image = source.arrays["image"] / np.float32(255)
    image[7, 3, 3] = np.nan
    return arrays(source, image=image) if split == "train" else source


def unscaled(split: str, source: Any, train: Any) -> Any:
    return replace(arrays(source, image=source.arrays["image"].astype(np.float32)), transforms=())


def scaled_in_training_alone(split: str, source: Any, train: Any) -> Any:
    return source if split == "train" else replace(source, transforms=(
        Normalise(mean=(0.,), std=(1 / 255,)),))


def class_missing(split: str, source: Any, train: Any) -> Any:
    if split != "train":
        return source
    keep = source.arrays["label"] != 3
    return replace(source, arrays={k: x[keep] for k, x in source.arrays.items()})


def label_too_high(split: str, source: Any, train: Any) -> Any:
    return arrays(source, label=source.arrays["label"] + 1)


@dataclass(frozen=True)
class Noise:
    def __call__(self, batch: Batch, keys: Array) -> Batch:
        noise = jax.vmap(lambda key: jax.random.normal(key, batch["image"].shape[1:]))(keys)
        return {**batch, "image": batch["image"] + 0.3 * noise}


def augmented_test(split: str, source: Any, train: Any) -> Any:
    return replace(source, transforms=(*source.transforms, Noise()))


@dataclass(frozen=True, kw_only=True)
class WithReplacement(Arrays):
    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        draw = np.random.default_rng((seed, position))
        return draw.integers(0, self.size, batch_size).astype(np.int32)


def with_replacement(split: str, source: Any, train: Any) -> Any:
    return WithReplacement(arrays=source.arrays, transforms=source.transforms)


@dataclass(frozen=True, kw_only=True)
class Sorted(Arrays):
    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        return ((position + np.arange(batch_size)) % self.size).astype(np.int32)


def sorted_by_class(split: str, source: Any, train: Any) -> Any:
    order = np.argsort(source.arrays["label"], kind="stable")
    return Sorted(arrays={k: x[order] for k, x in source.arrays.items()},
                  transforms=source.transforms)


@dataclass(frozen=True, kw_only=True)
class Unrepeatable(Arrays):
    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        object.__setattr__(self, "calls", getattr(self, "calls", 0) + 1)
        return super().index(seed + self.calls, position, batch_size)  # type: ignore[attr-defined]


def unrepeatable(split: str, source: Any, train: Any) -> Any:
    return Unrepeatable(arrays=source.arrays, transforms=source.transforms)


@dataclass(frozen=True, kw_only=True)
class ShortLast(Arrays):
    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        ids = super().index(seed, position, batch_size)
        return ids[:self.size - position % self.size]  # The epoch's last batch is shorter.


def short_last(split: str, source: Any, train: Any) -> Any:
    return ShortLast(arrays=source.arrays, transforms=source.transforms)


SPOIL: dict[str, Callable[[str, Any, Any], Any]] = {f.__name__: f for f in (
    shifted_labels, test_in_train, contradictions, black, not_a_number, unscaled,
    scaled_in_training_alone, class_missing, label_too_high, augmented_test, with_replacement,
    sorted_by_class, unrepeatable, short_last)}


def spoilt(function: Callable[..., Any]) -> Callable[[], Experiment]:
    return lambda: digits(data=Spoilt(size=8, channels=1, how=function.__name__))


# Bugs in models. Each is the healthy MLP with one line changed.


class Net(nn.Module):
    """Two dense layers, with a place for a bug.

    Attributes:
      bug: which.
      width: of the hidden layer.
    """

    bug: str = ""
    width: Size = 64
    dropout: Fraction | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        bug, size = self.bug, len(x)
        x = x.reshape(size, -1)
        if bug == "reshape":
            x = x.reshape(-1, size).T  # Every row is made of pixels of all examples.
        if bug == "normalised over the batch":
            x = (x - x.mean(0)) / (x.std(0) + 1e-5)
        if bug == "unused":
            self.param("extra", nn.initializers.normal(0.1), (8, 8))
        bias = nn.initializers.constant(-30.) if bug == "dead" else nn.initializers.zeros
        width = 1 if bug == "deaf to its width" else self.width
        x = nn.Dense(width, bias_init=bias, name="dense1")(x)
        if bug == "detached":
            x = jax.lax.stop_gradient(x)
        if bug == "wrong gradient":
            x = halved(x)
        if bug == "cancellation":
            x = (x + 3e3) - 3e3
        x = nn.relu(x)
        if bug == "root":
            x = x + 1e-3 * jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) * 0)
        x = Dropout(self.dropout)(x, train and bug != "no dropout")
        if bug == "vanishing":
            for i in range(8):
                x = nn.sigmoid(nn.Dense(64, kernel_init=nn.initializers.normal(0.01),
                                        name=f"more{i}")(x))
        if bug == "statistics":
            x = batch_norm(False, name="norm")(x)
        scale = 30. if bug == "large head" else 1.
        return nn.Dense(10, kernel_init=nn.initializers.variance_scaling(
            scale, "fan_in", "normal"), name="head")(x)


@jax.custom_vjp
def halved(x: Array) -> Array:
    return x


halved.defvjp(lambda x: (x, None), lambda _, g: (0.5 * g,))


class Batchnormed(nn.Module):
    """Batch norm that normalises by the batch in evaluation, too."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.relu(nn.Dense(64, name="dense1")(x.reshape(len(x), -1)))
        x = (x - x.mean(0)) * jax.lax.rsqrt(x.var(0) + 1e-5)
        return nn.Dense(10, name="head")(x)


class SeesTheFuture(nn.Module):
    """Attention without its causal mask."""

    @nn.compact
    def __call__(self, tokens: Array, train: bool) -> Array:
        x = nn.Embed(128, 32)(tokens) + self.param(
            "positions", nn.initializers.normal(0.1), (tokens.shape[1], 32))
        q, k, v = (nn.Dense(32, name=n)(x) for n in ("query", "key", "value"))
        weights = jax.nn.softmax(jnp.einsum("btd,bsd->bts", q, k) / 32 ** 0.5)
        return nn.Dense(128, name="head")(x + jnp.einsum("bts,bsd->btd", weights, v))


# Bugs in losses.


@dataclass(frozen=True, kw_only=True)
class Wrong(Classification):
    """Classification with a bug in its loss.

    Attributes:
      bug: which.
    """

    bug: str = ""

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        mask, labels, bug = batch["mask"], batch["label"], self.bug
        image = batch["image"]
        if bug == "sees the label":
            image = image.at[:, 0, 0, 0].set(labels.astype(image.dtype))
            image = image.at[:, 1].set(3. * jax.nn.one_hot(labels, 8)[:, :, None])
        if bug == "dropout in evaluation":
            train = True
        logits, mutable = self.apply(self.model, variables, image, key=key, train=train)
        if bug == "softmax twice":
            logits = jax.nn.softmax(logits)
        target = jax.nn.one_hot(labels, logits.shape[-1])
        losses = -(target * jax.nn.log_softmax(logits)).sum(-1)
        correct = (logits.argmax(-1) == labels).astype(jnp.float32)
        if bug == "scale":
            losses = 64 * losses
        if bug == "sign":
            losses = -losses
        if bug == "metric":
            correct = jnp.ones_like(correct)
        if bug == "mask upside down":
            mask = jnp.where(mask.sum() < len(mask), 1 - mask, mask)
        if bug == "mask ignored":
            mask = jnp.ones_like(mask)
        mean = Mean.of(losses, mask)
        if bug == "mean of means":
            mean = Mean(mean.total / mean.count, jnp.ones(()))
        return mean, Aux(metrics={"accuracy": Mean.of(correct, mask)}, mutable=mutable)


def wrong(bug: str, **changes: Any) -> Callable[[], Experiment]:
    return lambda: digits(task=Wrong(model=MLP(widths=(64,), dropout=0.1), bug=bug), **changes)


def net(bug: str, **options: Any) -> Callable[[], Experiment]:
    return lambda: digits(Net(bug=bug, **options))


def recipe(**changes: Any) -> Callable[[], Experiment]:
    return lambda: digits(**changes)


@dataclass(frozen=True, kw_only=True)
class SameToken(Characters):
    """The target is the token itself."""

    def open(self, split: str) -> Source:
        source: Any = super().open(split)
        return arrays(source, next=source.arrays["tokens"])


@dataclass(frozen=True)
class Plant:
    """A bug.

    Attributes:
      checks: each of these is meant to find it.
      experiment: with the bug.
    """

    checks: tuple[str, ...]
    experiment: Callable[[], Experiment]


def plant(experiment: Callable[[], Experiment], *checks: str) -> Plant:
    return Plant(checks, experiment)


PLANTS: Mapping[str, Plant] = {
    "labels shifted by one": plant(spoilt(shifted_labels), "uses_inputs"),
    "test examples among the training ones": plant(spoilt(test_in_train), "leakage"),
    "the same image with two labels": plant(spoilt(contradictions), "duplicates"),
    "black images": plant(spoilt(black), "inputs"),
    "a pixel is NaN": plant(spoilt(not_a_number), "inputs"),
    "forgotten normalisation": plant(spoilt(unscaled), "inputs"),
    "test scaled otherwise": plant(spoilt(scaled_in_training_alone), "inputs"),
    "no training example of a class": plant(spoilt(class_missing), "labels"),
    "labels from one": plant(spoilt(label_too_high), "labels"),
    "augmentation on the test set": plant(spoilt(augmented_test), "evaluation"),
    "drawn with replacement": plant(spoilt(with_replacement), "order"),
    "in the order of the classes": plant(spoilt(sorted_by_class), "order"),
    "loss times 64": plant(wrong("scale"), "initial_loss"),
    "head starts too large": plant(net("large head"), "initial_loss"),
    "softmax twice": plant(wrong("softmax twice"), "overfits"),
    "loss with the wrong sign": plant(wrong("sign"), "initial_loss"),
    "mask upside down": plant(wrong("mask upside down"), "masks"),
    "mask ignored": plant(wrong("mask ignored"), "masks"),
    "batch mixed by a reshape": plant(net("reshape"), "example_leak"),
    "batch statistics in evaluation": plant(recipe(model=Batchnormed()), "example_leak"),
    "attention sees the future": plant(lambda: text(SeesTheFuture()), "causal_leak"),
    "a detached layer": plant(net("detached"), "gradients"),
    "an unused parameter": plant(net("unused"), "gradients"),
    "gradient not finite": plant(net("root"), "gradients"),
    "dead units": plant(net("dead"), "dead_units"),
    "a wrong gradient": plant(net("wrong gradient"), "finite_differences"),
    "dropout in evaluation": plant(wrong("dropout in evaluation"), "evaluation"),
    "dropout never applied": plant(net("no dropout", dropout=0.5), "modes"),
    "mean of means": plant(wrong("mean of means"), "accumulation"),
    "cancellation": plant(net("cancellation"), "bfloat16"),
    "learning rate far too low": plant(recipe(optimizer=Adam(
        learning_rate=Constant(peak=1e-9))), "updates"),
    "the model sees the label": plant(wrong("sees the label"), "shuffled_labels"),
    "a metric that is always right": plant(wrong("metric"), "shuffled_labels"),
    "width without effect": plant(net("deaf to its width"), "capacity"),
    "shorter last batch": plant(spoilt(short_last), "compiles_once"),
}

HELD_BACK: Mapping[str, Plant] = {
    "an order that cannot be repeated": plant(spoilt(unrepeatable), "order"),
    "vanishing gradients": plant(net("vanishing"), "updates", "gradients", "overfits"),
    "normalised over the batch": plant(net("normalised over the batch"), "example_leak"),
    "statistics never updated": plant(net("statistics"), "modes"),
    "learning rate far too high": plant(recipe(optimizer=SGD(
        learning_rate=Constant(peak=300.))), "updates", "overfits"),
    "the target is the input": plant(lambda: text(data=SameToken()), "targets", "causal_leak"),
}

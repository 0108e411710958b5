"""What a classifier of images shows of itself: inputs, mistakes, and what it looks at."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import interpret, pictures
from jaxdl.data.source import Source
from jaxdl.errors import UserError
from jaxdl.pictures import Images, Material, Matrix, Picture, Points

Array = jax.Array

LOOKED_AT = 10_000  # examples, at most
NUMBERS = 10 ** 8   # in all of them: of larger images fewer are looked at
AT_ONCE = 5_000     # numbers of an image up to which several are explained at once
SHOWN = 24          # inputs, and mistakes
EXPLAINED = 6       # examples whose prediction is explained
POINTS = 2_000      # of the last layer
CLASSES = 30        # of the confusion matrix
DREAMS = 10         # classes whose preferred input is drawn
FILTERS = 64


def show(task: Any, state: Any, material: Material) -> Iterator[Picture]:
    """The pictures of a task that has `logits(state, batch)`, on batches of "image" and "label"."""
    train = material.source("train")
    first = train.index(material.seed, 0, min(SHOWN, train.size))
    batch = next(pictures.read(train, first, len(first), material.seed))
    if batch["image"].ndim == 4:
        yield Images(title="Training inputs", images=visible(batch["image"], train),
                     captions=[material.name(int(x)) for x in classes(batch["label"])],
                     note="The first of the run with their labels, as the network sees them after "
                          "every transform; the normalisation is undone for the eye.")

    found = Predictions.of(task, state, material)
    yield found.confusion(material)
    if batch["image"].ndim == 4:
        yield from found.mistakes(material)
        yield from explained(task, state, material, found)
    if min(found.features.shape) > 1:
        yield from found.plane(material)


def classes(labels: Any) -> np.ndarray:
    """int [B], of labels that may be probabilities [B, classes]."""
    labels = np.asarray(labels)
    return labels if labels.ndim == 1 else labels.argmax(-1)


def visible(images: Any, source: Source) -> np.ndarray:
    """Inputs of the network as pictures in [0, 1], one or three channels: what the data's own
    normalisation did is undone; where there was none, the range of all is stretched."""
    x = np.asarray(images, np.float32)
    if (bounds := _bounds(source, x)) is not None:
        low, high = bounds
    else:
        low, high = x.min(), max(x.max(), x.min() + 1e-6)
    x = np.clip((x - low) / (high - low), 0, 1)
    return x if x.shape[-1] in (1, 3) else x.mean(-1, keepdims=True)


def _bounds(source: Source, x: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """What black and white have become, for each channel; None if that is not known."""
    for transform in reversed(getattr(source, "transforms", ())):
        if hasattr(transform, "mean") and hasattr(transform, "std"):
            mean, std = (np.asarray(x, np.float32) for x in (transform.mean, transform.std))
            return -mean / std, (1 - mean) / std
    return None


@dataclass(frozen=True)
class Predictions:
    """What the network says of the examples of a split.

    Attributes:
      ids: of the examples [N].
      labels: [N].
      probabilities: [N, classes].
      features: what the last layer gets [N, D].
      size: of the split.
    """

    ids: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    features: np.ndarray
    size: int

    @classmethod
    def of(cls, task: Any, state: Any, material: Material) -> "Predictions":
        source = material.source(material.split)
        image = next(pictures.read(source, pictures.some(source, 1), 1))["image"]
        ids = pictures.some(source, min(LOOKED_AT, max(SHOWN, NUMBERS // image.size)))

        @jax.jit
        def predict(state: Any, batch: Any) -> tuple[Array, Array]:
            def logits(image: Array) -> Array:
                return task.logits(state, {**batch, "image": image})

            output = logits(batch["image"])
            try:
                features = interpret.last_layer(logits, batch["image"])
            except UserError:  # There is no dense layer.
                features = jnp.zeros((len(output), 0))
            return jax.nn.softmax(output), features

        rows: list[tuple[np.ndarray, ...]] = []
        for batch in pictures.read(source, ids, material.batch_size):
            kept = np.asarray(batch["mask"]) > 0
            probabilities, features = map(np.asarray, predict(state, batch))
            if sum(map(len, (r[0] for r in rows))) > POINTS:
                features = features[:0]
            rows.append((classes(batch["label"])[kept], probabilities[kept],
                         features[kept[:len(features)]]))
            material.advance(int(kept.sum()))
        labels, probabilities, features = (np.concatenate(x) for x in zip(*rows, strict=True))
        return cls(ids, labels, probabilities, features, source.size)

    @property
    def said(self) -> np.ndarray:
        """The likeliest class [N]."""
        return self.probabilities.argmax(-1)

    @property
    def losses(self) -> np.ndarray:
        """-log of the label's probability [N]; infinite where the model has no such class."""
        known = (self.labels >= 0) & (self.labels < self.probabilities.shape[1])
        own = self.probabilities[np.arange(len(self.labels)), np.where(known, self.labels, 0)]
        with np.errstate(divide="ignore"):
            return np.where(known, -np.log(own), np.inf)

    def confusion(self, material: Material) -> Matrix:
        count = int(max(self.labels.max(initial=0) + 1, self.probabilities.shape[1]))
        matrix = np.zeros((count, count), np.int64)
        np.add.at(matrix, (np.maximum(self.labels, 0), self.said), 1)
        right = matrix.trace()
        note = (f"{right:,} of {len(self.labels):,} are right ({right / len(self.labels):.2%}), on "
                f"the split {material.split!r}.")
        if len(self.ids) < self.size:
            note += f" A sample: the split has {self.size:,} examples."
        shown = np.arange(count)
        if count > CLASSES:
            wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
            shown = np.sort(np.argsort(-wrong, kind="stable")[:CLASSES])
            note += f" Of {count:,} classes those {CLASSES} with the most mistakes are shown."
        names = [material.name(int(i)) for i in shown]
        return Matrix(title="Confusion matrix", values=matrix[np.ix_(shown, shown)], rows=names,
                      columns=names, axes=("label", "prediction"), note=note)

    def mistakes(self, material: Material) -> Iterator[Images]:
        wrong = np.flatnonzero(self.said != self.labels)
        if not len(wrong):
            return
        worst = wrong[np.argsort(-self.losses[wrong], kind="stable")][:SHOWN]
        source = material.source(material.split)
        image = self.read(material, worst)
        yield Images(
            title="Mistakes", images=visible(image, source),
            captions=[f"{self.told(i, material)} ({self.probabilities[i].max():.0%}); loss "
                      f"{self.losses[i]:.2f}" for i in worst],
            note=f"The worst of {len(wrong):,}, by loss: the label, what the network said, how "
                 "sure it was. Wrong labels of the data often stand first.")

    def told(self, row: int, material: Material) -> str:
        """The label, and what the network said if that is something else."""
        name, said = (material.name(int(x[row])) for x in (self.labels, self.said))
        return name if name == said else f"{name}, said {said}"

    def read(self, material: Material, rows: np.ndarray) -> np.ndarray:
        """The inputs of the network in some rows: [n, H, W, C]."""
        batch = next(pictures.read(material.source(material.split), self.ids[rows], len(rows)))
        return np.asarray(batch["image"])

    def examples(self) -> np.ndarray:
        """Rows to explain: the surest right one of some classes, and the two worst mistakes."""
        wrong = np.flatnonzero(self.said != self.labels)
        worst = wrong[np.argsort(-self.losses[wrong], kind="stable")][:2]
        right = np.flatnonzero(self.said == self.labels)
        order = right[np.argsort(self.losses[right], kind="stable")]
        _, firsts = np.unique(self.labels[order], return_index=True)
        places = np.linspace(0, len(firsts) - 1, min(len(firsts), EXPLAINED - len(worst)))
        return np.concatenate([order[firsts[np.unique(places.round().astype(int))]], worst])

    def plane(self, material: Material) -> Iterator[Points]:
        features = self.features[:POINTS]
        labels, said = self.labels[:len(features)], self.said[:len(features)]
        groups = [material.name(int(x)) for x in labels]
        hover = [f"example {i}: {name}, said {material.name(int(s))}"
                 for i, name, s in zip(self.ids, groups, said, strict=False)]
        places, parts = map(np.asarray, interpret.pca(features))
        yield Points(title="Last layer, principal components", places=places, groups=groups,
                     axes=(f"first ({parts[0]:.0%} of the variance)", f"second ({parts[1]:.0%})"),
                     hover=hover, note=f"What the last layer gets, {features.shape[1]:,} numbers "
                     f"an example, of {len(features):,} examples, coloured by their label.")
        if material.tsne and len(features) > 3:
            yield Points(title="Last layer, t-SNE", places=interpret.tsne(features),
                         groups=groups, axes=("", ""), hover=hover,
                         note="Neighbours are alike; distances and sizes of clusters mean nothing.")


def explained(task: Any, state: Any, material: Material, found: Predictions) -> Iterator[Images]:
    """What the network looks at, what it looks for first, and what it wants to see."""
    source = material.source(material.split)
    rows = found.examples()
    x, said = jnp.asarray(found.read(material, rows)), jnp.asarray(found.said[rows])

    def logits(state: Any, x: Array) -> Array:
        return task.logits(state, {"image": x})

    layer = interpret.last_spatial(lambda x: logits(state, x), x)

    @jax.jit
    def maps(state: Any, x: Array, said: Array, key: Array) -> tuple[list[Array], Array | None]:
        def score(x: Array) -> Array:
            return jnp.take_along_axis(logits(state, x), said[:, None], 1)[:, 0]

        found = [interpret.gradient(score, x), interpret.integrated_gradients(score, x),
                 interpret.smooth_grad(score, x, key)]
        return ([jnp.abs(x).max(-1) for x in found],
                None if layer is None else interpret.grad_cam(score, x, layer))

    size = len(x) if x[0].size <= AT_ONCE else 1  # Each takes the memory of a batch of 32.
    parts = [maps(state, x[i:i + size], said[i:i + size], jax.random.key(i))
             for i in range(0, len(x), size)]
    saliency, cam = jax.tree.map(lambda *part: jnp.concatenate(part), *parts)
    image = visible(x, source)
    plain = np.broadcast_to(image, (*image.shape[:3], 3))
    columns = [plain, *(np.broadcast_to(_scaled(np.asarray(s))[..., None], plain.shape)
                        for s in saliency)]
    heads = ["input", "gradient", "integrated gradients", "SmoothGrad"]
    if cam is not None:
        heat = jax.image.resize(cam, plain.shape[:3], "linear")
        columns.append(0.45 * plain.mean(-1, keepdims=True) + 0.55 * _heat(_scaled(heat, 1.)))
        heads.append("Grad-CAM")
    captions = []
    for row in rows:
        captions += [found.told(row, material)] + [""] * (len(heads) - 1)
    at = "" if layer is None else f" Grad-CAM is of the layer {layer}."
    yield Images(title="What the prediction depends on",
                 images=np.stack(columns, 1).reshape(-1, *plain.shape[1:]), captions=captions,
                 heads=2 * heads if len(rows) > 1 else heads,
                 note="Of the logit of the predicted class: bright pixels change it most (the "
                      f"largest absolute value over channels, each map to its own scale).{at}")

    filters = interpret.first_layer_filters(lambda x: logits(state, x), x)
    if filters is not None:
        yield first_filters(np.asarray(filters))
    yield dreams(lambda x: logits(state, x), x, found.probabilities.shape[1], material, source)


def first_filters(kernels: np.ndarray) -> Images:
    """Kernels [filters, h, w, C] around a middle grey."""
    norms = np.sqrt((kernels ** 2).sum((1, 2, 3)))
    shown = kernels[np.sort(np.argsort(-norms, kind="stable")[:FILTERS])]
    if shown.shape[-1] not in (1, 3):
        shown = shown.mean(-1, keepdims=True)
    largest = np.abs(shown).max((1, 2, 3), keepdims=True)
    left = f" Of {len(kernels):,} the {FILTERS} largest." if len(kernels) > FILTERS else ""
    return Images(title="First-layer filters", images=0.5 + 0.5 * shown / (largest + 1e-12),
                  note="Grey is zero, each to its own scale. Smooth shapes were learned; noise was "
                       f"not.{left}")


def dreams(logits: Any, x: Array, count: int, material: Material, source: Source) -> Images:
    """The inputs that some classes like best, found by ascent from grey noise."""
    units = np.unique(np.linspace(0, count - 1, min(count, DREAMS)).round().astype(int))
    shape = (len(units), *x.shape[1:])
    bounds = _bounds(source, x)
    low, high = map(jnp.asarray, bounds if bounds else (x.min(), x.max()))
    start = (low + high) / 2 + 0.05 * (high - low) * jax.random.normal(jax.random.key(0), shape)

    def score(x: Array) -> Array:
        return logits(x)[jnp.arange(len(units)), jnp.asarray(units)]

    best = interpret.activation_maximization(score, start, jax.random.key(1), steps=64, low=low,
                                             high=high, variation=0.5)
    return Images(title="What a class wants to see", images=visible(best, source),
                  captions=[material.name(int(u)) for u in units],
                  note="Inputs that raise the logit of a class, by gradient ascent from noise.")


def _scaled(x: Any, most: float = 0.99) -> np.ndarray:
    """Maps [B, H, W] in [0, 1], each by its own quantile."""
    x = np.asarray(x)
    return np.clip(x / (np.quantile(x, most, axis=(1, 2), keepdims=True) + 1e-12), 0, 1)


def _heat(x: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as colours from dark blue over red to yellow: [..., 3]."""
    stops: Sequence[tuple[float, float, float]] = ((0.05, 0.05, 0.35), (0.55, 0.1, 0.5),
                                                   (0.9, 0.25, 0.15), (1., 0.85, 0.2))
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(x, places, channel) for channel in zip(*stops, strict=True)], -1)

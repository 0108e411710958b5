"""Images that a task draws: grids of them, and how near they come to the data.

A task that draws has a method

    sample(state, key, count) -> images [count, H, W, C], normalised as its data are

and where its samples have latent numbers also

    interpolate(state, key, rows, columns) -> images [rows * columns, H, W, C], each row of which
    leads from one sample to another.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.compiled import compiled
from jaxdl.config import Between, Size
from jaxdl.data.source import Source, transformed
from jaxdl.data.transforms import Normalise, to_float
from jaxdl.errors import UserError
from jaxdl.evaluate import Context
from jaxdl.pictures import Images, Material, some

Array = jax.Array

SHOWN = 64  # samples on the report
ROWS, COLUMNS = 6, 8  # of interpolations
VISIBLE = 64  # pixels of a side, which smaller images are enlarged to about


def pixels(image: Any, source: Source) -> Any:
    """Images as a source gives them, without its normalisation: in [0, 1]."""
    for transform in reversed(getattr(source, "transforms", ())):
        if isinstance(transform, Normalise):
            image = image * jnp.asarray(transform.std) + jnp.asarray(transform.mean)
            break
    return jnp.clip(image, 0, 1)


def same_shape(found: Array, image: Array, what: str) -> None:
    """Raises a UserError where images [B, H, W, C] that `what` makes are not as the data's."""
    if found.shape != image.shape:
        raise UserError(f"{what}: makes images {found.shape[1:]}, and the data has "
                        f"{image.shape[1:]}; set its size and image_channels.")


def turns(model: Any, count: int) -> Array | None:
    """Labels of `count` samples, each class in turn; None of a network without classes."""
    classes = getattr(model, "classes", None)
    return None if classes is None else jnp.arange(count) % classes


def check_labels(conditional: bool, models: Mapping[str, Any]) -> None:
    """Raises a UserError unless all networks have classes, or none where none is told the label."""
    for name, model in models.items():
        classes = getattr(model, "classes", None)
        if conditional != (classes is not None):
            raise UserError(f"task.conditional={conditional}: {name}.classes={classes}; expected "
                            f"{'a number' if conditional else 'None'}.")


def check_pixels(data: Any) -> None:
    """Raises a UserError where the data is normalised, of a task that needs values in [0, 1]."""
    for name, plain in (("mean", 0.), ("std", 1.)):
        if any(value != plain for value in getattr(data, name, ())):
            raise UserError(f"data.{name}={getattr(data, name)}: this task needs pixels in [0, 1]: "
                            f"({plain},).")


def check_draws(evaluator: str, task: Any) -> None:
    """Raises a UserError where a task has no samples."""
    if not hasattr(task, "sample"):
        raise UserError(f"{evaluator}: {type(task).__name__} does not draw samples.")


def check_classifier(evaluator: str, folder: str) -> None:
    """Raises a UserError where there is no run directory."""
    if not (Path(folder).expanduser() / "config.json").is_file():
        raise UserError(f"{evaluator}: classifier={folder}: no run directory; train it: python "
                        f"launch.py --experiment={Path(folder).name} --workdir={folder}")


def drawn(task: Any, state: Any, material: Material) -> Images:
    """Samples, for the report."""
    images = jax.jit(lambda state: task.sample(state, jax.random.key(material.seed), SHOWN))(state)
    material.advance(SHOWN)
    return Images(title="Samples", images=np.asarray(pixels(images,
                                                            material.source(material.split))))


def between(task: Any, state: Any, material: Material) -> Images:
    """Interpolations, for the report."""
    images = jax.jit(lambda state: task.interpolate(
        state, jax.random.key(material.seed), ROWS, COLUMNS))(state)
    material.advance(ROWS * COLUMNS)
    return Images(title="From one to another", heads=("",) * COLUMNS,
                  images=np.asarray(pixels(images, material.source(material.split))))


def path_between(a: Array, b: Array, columns: int) -> Array:
    """Points from each a to each b [N, D], both included, on the arc of a great circle where their
    lengths are equal (White 2016, https://arxiv.org/abs/1609.04468, section 2.1):
    [N * columns, D]. Of normal numbers in many dimensions all such points are as likely."""
    t = jnp.linspace(0, 1, columns)[:, None]

    def unit(x: Array) -> Array:
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    angle = jnp.arccos(jnp.clip((unit(a) * unit(b)).sum(-1), -1 + 1e-6, 1 - 1e-6))[:, None, None]
    at = (jnp.sin((1 - t) * angle) * a[:, None] + jnp.sin(t * angle) * b[:, None]) / jnp.sin(angle)
    return at.reshape(-1, a.shape[-1])


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images [N, H, W, C] in [0, 1] in rows, a white line of one pixel between them: uint8
    [height, width, C]."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, channels))
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top:top + height, left:left + width] = image
    return np.round(255 * np.clip(sheet, 0, 1)).astype(np.uint8)


def save(path: Path, images: np.ndarray, columns: int) -> None:
    """Writes a grid as a PNG. Images of few pixels are enlarged, each pixel to a square."""
    from PIL import Image

    times = max(1, VISIBLE // min(images.shape[1:3]))
    sheet = grid(images.repeat(times, 1).repeat(times, 2), columns)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet).save(path)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Writes samples into the run, as samples/NAME_STEP.png, and interpolations between samples
    where the task makes them, as interpolations/NAME_STEP.png. The random numbers are always the
    same, so one sees what training changes. The numbers are the mean and the deviation of all
    pixels, in [0, 1].

    Attributes:
      every: steps between two evaluations; the last step is always evaluated.
      count: samples, in rows of eight.
      split: of the data, for its normalisation.
    """

    every: Size = 1_000
    count: Size = 64
    split: str = "test"

    def check(self, experiment: Any) -> None:
        """Raises a UserError where the task does not draw."""
        check_draws("Samples", experiment.task)

    def __call__(self, task: Any, state: Any, context: Context) -> Mapping[str, float]:
        source, key = context.source(self.split), jax.random.key(0)
        sample = compiled(context, "sample", task, lambda task, state, key: task.sample(
            state, key, self.count))
        images = np.asarray(pixels(sample(state, key), source))
        if context.folder is not None:
            name = f"{context.name}_{context.step:07d}.png"
            save(context.folder / "samples" / name, images, COLUMNS)
            if hasattr(task, "interpolate"):
                between = compiled(context, "between", task, lambda task, state, key:
                                   task.interpolate(state, key, ROWS, COLUMNS))
                save(context.folder / "interpolations" / name,
                     np.asarray(pixels(between(state, key), source)), COLUMNS)
        return {"pixel_mean": float(images.mean()), "pixel_deviation": float(images.std())}


@dataclass(frozen=True, kw_only=True)
class SampleQuality:
    """Samples against a test set, in the feature space of a classifier that was trained by jaxdl,
    so none of the numbers is an FID: they compare what was measured by one classifier.

    "frechet_distance" is that of normal distributions fitted to the features (Heusel et al. 2017,
    section 3); "precision" the share of samples within the manifold of the test images, "recall"
    that of test images within the manifold of the samples, by the third nearest neighbour
    (Kynkaanniemi et al. 2019, https://arxiv.org/abs/1904.06991, section 2); "classes" how many
    classes have a tenth at least of an equal share of the samples, as the classifier sees them; and
    "balance" the entropy of their shares, 1 where they are equal.

    Attributes:
      classifier: its run directory.
      step: of its checkpoint: "best", "last" or a number.
      every: steps between two evaluations; the last step is always evaluated.
      split: the images to compare with, which are taken as they are stored.
      samples: drawn, and test images compared with, at most, at random but always the same;
        distances depend on it.
      neighbours: samples and images of which the manifolds are made, at most, spread evenly over
        them, whatever order they are in.
      batch_size: samples drawn at once.
    """

    classifier: str
    step: str = "last"
    every: Size = 1_000
    split: str = "test"
    samples: Annotated[int, Between(4)] = 5_000
    neighbours: Annotated[int, Between(4)] = 2_000
    batch_size: Size = 250

    def check(self, experiment: Any) -> None:
        """Raises a UserError where the task does not draw or the classifier is missing."""
        check_draws(type(self).__name__, experiment.task)
        check_classifier(type(self).__name__, self.classifier)

    def __call__(self, task: Any, state: Any, context: Context) -> Mapping[str, float]:
        source = context.source(self.split)
        key = context.name, "classifier"
        if key not in context.compiled:
            see = classified(self.classifier, self.step)
            ids = some(source, self.samples)
            context.compiled[key] = see, batched(
                lambda i: see(to_float(jnp.asarray(source.read(ids[i])["image"]))),
                len(ids), self.batch_size)
        see, (real, _) = context.compiled[key]
        sample = compiled(context, "sample", task, lambda task, state, key: task.sample(
            state, key, self.batch_size))

        def made(i: np.ndarray) -> tuple[Array, Array]:
            context.poll()
            return see(pixels(sample(state, jax.random.fold_in(jax.random.key(0), i[0])),
                              source)[:len(i)])

        features, logits = batched(made, self.samples, self.batch_size)
        shares = np.bincount(logits.argmax(-1), minlength=logits.shape[-1]) / len(logits)
        a, b = (x[np.linspace(0, len(x) - 1, min(self.neighbours, len(x))).astype(int)]
                for x in (real, features))
        precision, recall = precision_recall(a, b)
        return {"frechet_distance": frechet_distance(real, features),
                "precision": precision, "recall": recall,
                "classes": float((shares > 0.1 / len(shares)).sum()), "balance": balance(shares)}


def classified(folder: str, step: str) -> Callable[[Array], tuple[Array, Array]]:
    """What a run's classifier says of images [B, H, W, C] in [0, 1]: (features [B, D], logits)."""
    from jaxdl import api
    from jaxdl.tasks.representations import features

    experiment, state = api.state(folder, step)
    task: Any = experiment.task
    data: Any = experiment.data
    transforms = data.transforms("test")

    @jax.jit
    def see(images: Array) -> tuple[Array, Array]:
        batch = {"image": images, "index": jnp.arange(len(images)), "mask": jnp.ones(len(images))}
        batch = transformed(transforms, batch, jax.random.key(0))
        return features(task, state, batch), task.logits(state, batch)

    return see


def batched(call: Callable[[np.ndarray], tuple[Array, Array]], count: int,
            batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """What call(numbers) gives for 0 ... count - 1, in batches, put together as float64. The last
    batch is shorter."""
    parts = [jax.device_get(call(np.arange(i, min(i + batch_size, count))))
             for i in range(0, count, batch_size)]
    features, logits = (np.concatenate(x).astype(np.float64) for x in zip(*parts, strict=True))
    return features, logits


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of the means and covariances of features
    [N, D] and [M, D], in float64 (Dowson & Landau 1982, equation 4)."""
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    # The eigenvalues of S_a S_b are those of the symmetric S_a^(1/2) S_b S_a^(1/2).
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    both = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * both)


def precision_recall(real: np.ndarray, made: np.ndarray, k: int = 3) -> tuple[float, float]:
    """(precision, recall): the share of made features [M, D] that lie nearer to some real one
    [N, D] than its k-th nearest neighbour among the real ones, and the other way round."""
    def within(points: np.ndarray, manifold: np.ndarray) -> float:
        radius = np.partition(squares(manifold, manifold), k, axis=1)[:, k]  # Itself is the 0-th.
        return float((squares(points, manifold) <= radius).any(1).mean())

    return within(made, real), within(real, made)


def squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances of a [N, D] and b [M, D]: [N, M]."""
    return np.maximum((a ** 2).sum(1)[:, None] + (b ** 2).sum(1) - 2 * a @ b.T, 0)


def balance(shares: np.ndarray) -> float:
    """The entropy of shares [K] that add up to one, as a part of the greatest possible."""
    kept = shares[shares > 0]
    return float(-(kept * np.log(kept)).sum() / np.log(len(shares)))

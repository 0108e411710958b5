"""Each transform against plain NumPy fed with the same numbers, and the rules they share."""

import colorsys
import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxdl import config
from jaxdl.data import transforms as T
from jaxdl.data.source import Arrays
from jaxdl.errors import UserError

CLASSES = 5

PER_EXAMPLE = {
    "to_float": T.ToFloat(),
    "normalise": T.Normalise(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)),
    "pad_crop": T.PadCrop(pad=2),
    "flip": T.Flip(),
    "flip_both": T.Flip(probability=0.7, vertical=True),
    "center_crop": T.CenterCrop(size=5),
    "cutout": T.Cutout(size=5),
    "rotate": T.Rotate(degrees=40.),
    "translate": T.Translate(fraction=0.2),
    "scale": T.Scale(low=0.7, high=1.4),
    "affine": T.Affine(degrees=20., fraction=0.1, scale=(0.8, 1.2)),
    "resized_crop": T.RandomResizedCrop(size=6),
    "colour": T.Colour(brightness=0.4, contrast=0.5, saturation=0.6, hue=0.2),
    "rand_augment": T.RandAugment(operations=3, magnitude=0.6),
}
MIXING = {
    "mixup": T.Mixup(alpha=0.8, classes=CLASSES),
    "cutmix": T.CutMix(alpha=1.5, classes=CLASSES, probability=0.8),
}
ALL = PER_EXAMPLE | MIXING


def example_batch(size=12, height=8, width=10, channels=3, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, height, width, channels)).astype(np.uint8)
    return {"image": image if dtype == np.uint8 else (image / 255).astype(np.float32),
            "label": rng.integers(0, CLASSES, size).astype(np.int32),
            "index": rng.permutation(1000)[:size].astype(np.int32),
            "mask": np.ones(size, np.float32)}


def keys_for(batch, seed=1):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), batch["index"])


def draws(transform, batch, keys):
    shape = batch["image"].shape[1:]
    return jax.vmap(lambda key: transform.draw(key, shape))(keys)


@functools.cache
def compiled(names=tuple(ALL)):
    """One program that runs many transforms: name -> (result, what was drawn). Saves compiling."""

    def run(batch, keys):
        return {name: (ALL[name](batch, keys), draws(ALL[name], batch, keys)
                       if isinstance(ALL[name], T.PerImage) else ()) for name in names}

    return jax.jit(run)


@functools.cache
def results():
    """All transforms of the plain batch."""
    return compiled()(example_batch(), keys_for(example_batch()))


def part(drawn, i):
    return jax.tree.map(lambda x: np.asarray(x)[i], drawn)


# The NumPy side: one image [H, W, C] and its numbers.


def numpy_pad_crop(image, drawn, transform):
    height, width, channels = image.shape
    p = transform.pad
    padded = np.zeros((height + 2 * p, width + 2 * p, channels), image.dtype)
    padded[p:p + height, p:p + width] = image
    return padded[drawn[0]:drawn[0] + height, drawn[1]:drawn[1] + width]


def numpy_flip(image, drawn, transform):
    if transform.horizontal and drawn[0]:
        image = np.fliplr(image)
    if transform.vertical and drawn[1]:
        image = np.flipud(image)
    return image


def numpy_cutout(image, drawn, transform):
    image, size = image.copy(), transform.size
    for y in range(drawn[0] - size // 2, drawn[0] - size // 2 + size):
        for x in range(drawn[1] - size // 2, drawn[1] - size // 2 + size):
            if 0 <= y < image.shape[0] and 0 <= x < image.shape[1]:
                image[y, x] = 0
    return image


def numpy_affine(image, drawn, transform):
    """Each output pixel: where it comes from, by the inverse of the 2 x 2 matrix."""
    height, width, channels = image.shape
    angle, scale = drawn.get("angle", 0.), drawn.get("scale", 1.)
    shift = np.asarray(drawn.get("shift", (0., 0.)), np.float64)
    forward = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse, middle = np.linalg.inv(forward), np.array([(height - 1) / 2, (width - 1) / 2])
    out = np.zeros((height, width, channels))
    for i in range(height):
        for j in range(width):
            y, x = inverse @ (np.array([i, j]) - shift - middle) + middle
            for a in (int(np.floor(y)), int(np.floor(y)) + 1):
                for b in (int(np.floor(x)), int(np.floor(x)) + 1):
                    if 0 <= a < height and 0 <= b < width:
                        out[i, j] += (1 - abs(y - a)) * (1 - abs(x - b)) * image[a, b]
    return out


def numpy_resized_crop(image, drawn, transform):
    (top, left), (height, width) = (np.asarray(d).astype(int) for d in drawn)
    crop = image[top:top + height, left:left + width]
    assert crop.shape[:2] == (height, width)
    for axis in (0, 1):  # a triangle around each output pixel's centre, then the other axis
        step = crop.shape[axis] / transform.size
        rows = []
        for i in range(transform.size):
            away = np.abs(np.arange(crop.shape[axis]) - ((i + 0.5) * step - 0.5)) / max(step, 1)
            weights = np.maximum(1 - away, 0)
            rows.append(np.tensordot(weights / weights.sum(), crop, (0, axis)))
        crop = np.stack(rows, axis)
    return crop


def numpy_colour(image, drawn, transform):
    luma = np.array([0.2989, 0.587, 0.114])
    image = np.clip(image * drawn["brightness"], 0, 1)
    f = drawn["contrast"]
    image = np.clip(f * image + (1 - f) * (image @ luma).mean(), 0, 1)
    f = drawn["saturation"]
    image = np.clip(f * image + (1 - f) * (image @ luma)[..., None], 0, 1)
    out = np.empty_like(image)
    for i, j in np.ndindex(*image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[i, j])
        out[i, j] = colorsys.hsv_to_rgb((hue + drawn["hue"]) % 1, saturation, value)
    return out


@pytest.mark.parametrize("name,reference,tolerance", [
    ("pad_crop", numpy_pad_crop, 0), ("flip", numpy_flip, 0), ("flip_both", numpy_flip, 0),
    ("cutout", numpy_cutout, 0), ("rotate", numpy_affine, 2e-5), ("translate", numpy_affine, 2e-5),
    ("scale", numpy_affine, 2e-5), ("affine", numpy_affine, 2e-5),
    ("resized_crop", numpy_resized_crop, 2e-6), ("colour", numpy_colour, 2e-6)])
def test_against_numpy(name, reference, tolerance):
    batch, (out, drawn) = example_batch(), results()[name]
    want = np.stack([reference(image, part(drawn, i), ALL[name])
                     for i, image in enumerate(batch["image"])]).astype(np.float32)
    chex.assert_trees_all_close(out["image"], want, atol=tolerance, rtol=0)
    assert np.abs(want[:, :5, :5] - batch["image"][:, :5, :5]).max() > 0.01  # it did something
    for field in ("label", "index", "mask"):
        np.testing.assert_array_equal(out[field], batch[field])


class Batches(chex.TestCase):

    @chex.variants(with_jit=True, without_jit=True)
    def test_normalise(self):
        batch = example_batch(dtype=np.uint8)
        transform = PER_EXAMPLE["normalise"]
        out = self.variant(transform)(batch, keys_for(batch))["image"]
        want = (batch["image"] / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.25, 0.3]
        chex.assert_trees_all_close(out, want.astype(np.float32), atol=1e-5)
        unit = {**batch, "image": (batch["image"] / 255).astype(np.float32)}
        again = self.variant(transform)(unit, keys_for(batch))
        chex.assert_trees_all_close(out, again["image"], atol=1e-5)

    @chex.variants(with_jit=True)
    def test_mixup(self):
        transform, batch = MIXING["mixup"], example_batch()
        batch["mask"][2] = 0
        own, out = self.variant(lambda batch, keys: (
            transform.draw(keys), transform(batch, keys)))(batch, keys_for(batch))
        own = np.array(own)
        own[1] = 1  # its partner is masked
        hot = np.eye(CLASSES, dtype=np.float32)[batch["label"]]
        for i in range(12):
            j, m = (i + 1) % 12, own[i]
            image = m * batch["image"][i] + (1 - m) * batch["image"][j]
            label = m * hot[i] + (1 - m) * hot[j]
            chex.assert_trees_all_close((out["image"][i], out["label"][i]), (image, label),
                                        atol=1e-6)

    @chex.variants(with_jit=True)
    def test_cutmix(self):
        transform, batch = MIXING["cutmix"], example_batch()
        batch["mask"][2] = 0
        (start, stop), out = self.variant(lambda batch, keys: (
            transform.draw(keys, batch["image"].shape[1:]), transform(batch, keys)))(
                batch, keys_for(batch))
        start, stop = np.asarray(start), np.asarray(stop)
        hot = np.eye(CLASSES, dtype=np.float32)[batch["label"]]
        for i in range(12):
            j = (i + 1) % 12
            want, (top, left), (bottom, right) = batch["image"][i].copy(), start[i], stop[i]
            pasted = 0.
            if i != 1:
                want[top:bottom, left:right] = batch["image"][j][top:bottom, left:right]
                pasted = (bottom - top) * (right - left) / 80
            chex.assert_trees_all_close(
                (out["image"][i], out["label"][i]), (want, (1 - pasted) * hot[i] + pasted * hot[j]),
                atol=1e-6)


# Rules that all of them keep.


@functools.cache
def moved():
    order = np.random.default_rng(0).permutation(12)
    batch = jax.tree.map(lambda x: x[order], example_batch())
    return order, compiled()(batch, keys_for(batch))


@pytest.mark.parametrize("name", PER_EXAMPLE)
def test_place_in_the_batch_does_not_matter(name):
    order, out = moved()
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[order], results()[name]), out[name])


def float_places(transform):
    """(field, place in a tuple or None, value) of each float."""
    for path, leaf in config.leaves(transform):
        if isinstance(leaf.value, float):
            yield path, None, leaf.value
        elif isinstance(leaf.value, tuple):
            yield from ((path, i, x) for i, x in enumerate(leaf.value) if isinstance(x, float))


def with_floats(transform, changes):
    for (path, place), x in changes.items():
        old = getattr(transform, path)
        new = x if place is None else (*old[:place], x, *old[place + 1:])
        transform = dataclasses.replace(transform, **{path: new})
    return transform


@pytest.mark.parametrize("name,path,place,value", [
    (name, *rest) for name, transform in ALL.items() for rest in float_places(transform)])
def test_each_float_may_be_traced(name, path, place, value):
    batch = example_batch()
    out = jax.eval_shape(jax.jit(lambda x: with_floats(ALL[name], {(path, place): x})(
        batch, keys_for(batch))), value)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        out, jax.eval_shape(ALL[name], batch, keys_for(batch)))


WITH_FLOATS = [name for name, transform in ALL.items() if any(float_places(transform))]


@functools.cache
def two_trials():
    """In one program: each transform as it is, and with every float a tenth less."""
    batch = example_batch()
    trials = {name: {(path, place): jnp.array([value, 0.9 * value])
                     for path, place, value in float_places(ALL[name])} for name in WITH_FLOATS}
    return jax.jit(jax.vmap(lambda trial: {
        name: with_floats(ALL[name], trial[name])(batch, keys_for(batch)) for name in WITH_FLOATS},
    ))(trials)


@pytest.mark.parametrize("name", WITH_FLOATS)
def test_trials_that_differ_in_floats_share_one_program(name):
    out, (want, _) = two_trials()[name], results()[name]
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], out), want, atol=1e-5)
    assert name == "flip" or not np.allclose(out["image"][1], want["image"], atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ALL)
def test_shapes_and_types(name, dtype, channels):
    batch = example_batch(dtype=dtype, channels=channels)
    transform = T.Normalise(mean=(0.5,), std=(0.2,)) if name == "normalise" else ALL[name]
    out = jax.eval_shape(transform, batch, keys_for(batch))
    side = {"center_crop": (5, 5), "resized_crop": (6, 6)}.get(name, (8, 10))
    chex.assert_shape(out["image"], (12, *side, channels))
    keeps = name in ("pad_crop", "flip", "flip_both", "center_crop", "cutout")
    assert out["image"].dtype == (dtype if keeps else np.float32)
    if name in MIXING:
        chex.assert_shape(out["label"], (12, CLASSES))
        assert out["label"].dtype == np.float32
    else:
        assert out["label"].dtype == np.int32


NO_STRENGTH = (
    T.PadCrop(pad=0), T.Flip(probability=0.), T.Cutout(size=0), T.Rotate(degrees=0.),
    T.Translate(fraction=0.), T.Scale(low=1., high=1.), T.Affine(),
    T.Affine(degrees=0., fraction=0., scale=(1., 1.)), T.Colour(),
    T.Colour(brightness=0., contrast=0., saturation=0., hue=0.), T.Mixup(alpha=0.),
    T.CutMix(alpha=0.), T.CutMix(probability=0.),
    T.RandomResizedCrop(size=8, area=(1., 1.), ratio=(1., 1.)))


@functools.cache
def unchanged():
    return jax.jit(lambda batch, keys: [transform(batch, keys) for transform in NO_STRENGTH])(
        example_batch(width=8), keys_for(example_batch()))


@pytest.mark.parametrize("i", range(len(NO_STRENGTH)), ids=lambda i: repr(NO_STRENGTH[i]))
def test_no_strength_is_the_identity(i):
    batch, out = example_batch(width=8), unchanged()[i]
    chex.assert_trees_all_close(out["image"], batch["image"], atol=1e-6)
    if isinstance(NO_STRENGTH[i], (T.Mixup, T.CutMix)):
        np.testing.assert_array_equal(out["label"], np.eye(10)[batch["label"]])


def test_uint8_equals_float():
    batch = example_batch(dtype=np.uint8)
    names = ("rotate", "resized_crop", "colour")
    out = compiled(names)(batch, keys_for(batch))
    chex.assert_trees_all_close(out, {name: results()[name] for name in names}, atol=1e-6)


def test_colour_leaves_the_saturation_of_grey_images():
    batch = example_batch(channels=1)
    keys = keys_for(batch)
    transform = T.Colour(contrast=0.9, saturation=0.9, hue=0.5)
    out, drawn = jax.jit(lambda batch, keys: (
        transform(batch, keys)["image"], draws(transform, batch, keys)))(batch, keys)
    factor = np.asarray(drawn["contrast"])[:, None, None, None]
    mean = batch["image"].mean((1, 2, 3), keepdims=True)
    want = np.clip(factor * batch["image"] + (1 - factor) * mean, 0, 1)
    chex.assert_trees_all_close(out, want.astype(np.float32), atol=1e-6)


def test_pixels_are_drawn_with_their_intensity():
    image = jnp.broadcast_to(jnp.array([0., 0.3, 1.])[:, None], (500, 3, 4))[..., None]
    batch = {"image": image, "index": jnp.arange(500)}
    keys = jax.random.split(jax.random.key(0), 500)
    found = np.asarray(T.Binarise()(batch, keys)["image"])
    assert set(found.ravel()) == {0., 1.}
    np.testing.assert_allclose(found.mean((0, 2, 3)), [0, 0.3, 1], atol=0.03)
    order = np.random.default_rng(0).permutation(500)
    again = T.Binarise()({**batch, "image": image[order]}, keys[order])["image"]
    np.testing.assert_array_equal(again, found[order])


def test_rotation_is_counter_clockwise():
    image = example_batch(width=8)["image"][0]
    turned = jax.jit(T.affine)(image, angle=np.pi / 2)
    chex.assert_trees_all_close(turned, np.rot90(image), atol=1e-5)


def test_masked_partners_do_not_leak():
    batch = example_batch()
    batch["image"][2], batch["mask"][2] = np.nan, 0
    for name in MIXING:
        out, _ = compiled()(batch, keys_for(batch))[name]
        np.testing.assert_array_equal(out["image"][1], batch["image"][1])
        np.testing.assert_array_equal(out["label"][1], np.eye(CLASSES)[batch["label"][1]])
        assert np.isfinite(np.delete(out["image"], 2, 0)).all()


def test_soft_labels_are_mixed_again():
    soft = np.random.default_rng(0).dirichlet(np.ones(CLASSES), 3).astype(np.float32)
    own = np.array([0.25, 1., 0.5], np.float32)
    want = np.stack([0.25 * soft[0] + 0.75 * soft[1], soft[1], 0.5 * soft[2] + 0.5 * soft[0]])
    chex.assert_trees_all_close(T._mixed_labels({"label": soft}, own, CLASSES), want, atol=1e-6)
    hot = T._mixed_labels({"label": np.array([2, 0, 1])}, own, CLASSES)
    np.testing.assert_array_equal(hot[0], [0.75, 0, 0.25, 0, 0])


def test_jit_changes_nothing():
    batch = example_batch()
    for name in ("pad_crop", "flip"):
        chex.assert_trees_all_equal(dict(ALL[name](batch, keys_for(batch))), results()[name][0])


def test_statistics():
    """Means over many keys, within five standard errors or so."""
    n = 4000
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(n))
    shape = (32, 48, 3)

    @jax.jit
    def draw(keys):
        each = (T.PadCrop(pad=4), T.Flip(probability=0.3), T.Cutout(), T.Rotate(degrees=90.),
                T.Colour(brightness=2.), T.RandomResizedCrop())
        return (*jax.vmap(lambda key: [t.draw(key, shape) for t in each])(keys),
                T.Mixup(alpha=0.2).draw(keys), T.CutMix(alpha=1.).draw(keys, shape))

    crop, flip, centre, turn, colour, (start, span), own, (corner, end) = jax.tree.map(
        np.asarray, draw(keys))
    assert set(crop[:, 0]) == set(range(9)) and abs(crop.mean() - 4) < 0.15
    assert abs(flip.mean() - 0.3) < 0.03
    assert (centre.min(0) == 0).all() and (centre.max(0) == [31, 47]).all()
    angle, factor = turn["angle"], colour["brightness"]
    assert abs(angle.mean()) < 0.07 and 1.5 < angle.max() < np.pi / 2
    assert factor.min() >= 0 and factor.max() <= 3 and abs(factor.mean() - 1.5) < 0.07

    assert (start >= 0).all() and (span >= 1).all() and (start + span <= shape[:2]).all()
    rng, want = np.random.default_rng(0), []
    while len(want) < n:  # torchvision's way: draw until a rectangle fits
        area, ratio = rng.uniform(0.08, 1) * 32 * 48, np.exp(rng.uniform(*np.log([3 / 4, 4 / 3])))
        sides = np.round(np.sqrt([area / ratio, area * ratio]))
        if (sides <= shape[:2]).all():
            want.append(sides)
    np.testing.assert_allclose(span.mean(0), np.mean(want, 0), rtol=0.03)
    np.testing.assert_allclose(span.std(0), np.std(want, 0), rtol=0.06)
    np.testing.assert_allclose(start.mean(0), ((shape[:2] - span) / 2).mean(0), rtol=0.05)

    # The variance of Beta(a, a) is 1 / (8 a + 4).
    assert abs(own.mean() - 0.5) < 0.03 and abs(own.var() - 1 / 5.6) < 0.01
    assert (corner >= 0).all() and (end <= [32, 48]).all() and (end >= corner).all()


def test_resized_crop_falls_back_to_the_middle():
    """No rectangle of the full area has an allowed ratio."""
    transform = T.RandomResizedCrop(size=4, area=(1., 1.), ratio=(3 / 4, 4 / 3))
    start, span = jax.jit(lambda key: transform.draw(key, (8, 40, 3)))(jax.random.key(0))
    np.testing.assert_array_equal(span, [8, 11])  # 8 * 4 / 3
    np.testing.assert_array_equal(start, [0, 14])


def test_a_chain_in_a_source():
    data = example_batch(size=12, dtype=np.uint8)
    source = Arrays(arrays={"image": jnp.asarray(data["image"])},
                    transforms=(T.PadCrop(pad=2), T.Flip(), T.Normalise(mean=(0.5,), std=(0.2,))))

    @jax.jit
    def read(index):
        batch = {**source.read(index), "index": index, "mask": jnp.ones(len(index))}
        return source.transform(batch, jax.random.key(3))["image"]

    whole = read(jnp.arange(12))
    halves = [read(jnp.arange(6, 12)), read(jnp.arange(6))]
    chex.assert_trees_all_equal(whole, jnp.concatenate(halves[::-1]))


def test_errors_are_one_line():
    batch = example_batch()
    for transform, match in [(T.CenterCrop(size=9), "at most 8"),
                             (T.Normalise(mean=(0., 0.), std=(1.,)), "mean has 2 numbers")]:
        with pytest.raises(UserError, match=match):
            transform(batch, keys_for(batch))
    with pytest.raises(UserError, match="1 or 3 channels"):
        batch = example_batch(channels=4)
        T.Colour(hue=0.1)(batch, keys_for(batch))


def pillow(image):
    return Image.fromarray(np.asarray(image))


@pytest.fixture(scope="module")
def photograph():
    """uint8 [60, 80, 3]: smooth, with all values in it."""
    y, x = np.mgrid[:60, :80]
    waves = [np.sin(x / 9 + i) * np.cos(y / (7 + i)) + x / 90 for i in range(3)]
    noise = np.random.default_rng(0).normal(size=(60, 80, 3))
    return np.clip(110 + 60 * np.stack(waves, -1) + 5 * noise, 3, 250).astype(np.uint8)


def difference(ours, theirs):
    return np.abs(np.asarray(ours) * 255 - np.asarray(theirs, np.float32)).max()


def test_changes_of_rand_augment_against_pillow(photograph):
    x, theirs = T.to_float(jnp.asarray(photograph)), pillow(photograph)
    assert difference(T.equalise(x), ImageOps.equalize(theirs)) < 0.01
    assert difference(T.auto_contrast(x), ImageOps.autocontrast(theirs)) < 1.01  # it rounds down
    changes = T._changes(0.5)
    assert len(changes) == 14
    assert difference(changes[4](x, 1.), ImageOps.solarize(theirs, 128)) < 0.01
    assert difference(changes[6](x, 1.), ImageOps.posterize(theirs, 6)) < 0.01
    for i, enhance in ((5, ImageEnhance.Color), (7, ImageEnhance.Contrast),
                       (8, ImageEnhance.Brightness), (9, ImageEnhance.Sharpness)):
        for sign in (1., -1.):
            expected = enhance(theirs).enhance(1 + sign * 0.45)
            assert difference(changes[i](x, sign), expected) < 1.6, enhance  # it rounds
    for i, matrix in ((10, (1, -0.15, 0.15 * 30, 0, 1, 0)),
                      (11, (1, 0, 0, -0.15, 1, 0.15 * 40))):
        expected = theirs.transform(theirs.size, Image.Transform.AFFINE, matrix,
                                    Image.Resampling.BILINEAR)
        inner = (slice(15, -15), slice(15, -15))
        assert difference(changes[i](x, 1.)[inner], np.asarray(expected)[inner]) < 1.01
    moved = changes[12](x, 1.)  # 0.225 of 80 pixels
    assert difference(moved[:, 18:], photograph[:, :-18]) < 0.01


def test_rand_augment_draws_each_change():
    keys = jax.random.split(jax.random.key(0), 2000)
    kinds, signs = jax.vmap(lambda key: T.RandAugment().draw(key, (4, 4, 1)))(keys)
    share = np.bincount(np.ravel(kinds), minlength=14) / kinds.size
    assert len(share) == 14 and np.all(np.abs(share - 1 / 14) < 0.02)
    assert abs(float(signs.mean())) < 0.05


def test_resize_against_jax():
    image = jax.random.uniform(jax.random.key(0), (2, 10, 13, 3))
    for size in (5, 10, 24):
        found = T.Resize(size=size)({"image": image}, None)["image"]
        expected = jax.image.resize(image, (2, size, size, 3), "linear")
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_fixed_draws_the_same_for_an_example_each_time():
    batch = example_batch()
    fixed = T.Fixed(transforms=(T.Affine(degrees=40.), T.Flip()))
    first = fixed(batch, keys_for(batch, 1))["image"]
    np.testing.assert_array_equal(first, fixed(batch, keys_for(batch, 2))["image"])
    turned = {name: x[::-1] for name, x in batch.items()}
    np.testing.assert_allclose(fixed(turned, None)["image"][::-1], first, atol=1e-6)
    other = T.Fixed(transforms=fixed.transforms, seed=1)(batch, None)["image"]
    assert np.abs(np.asarray(other - first)).max() > 0.1
    assert np.abs(np.asarray(first) - batch["image"]).max() > 0.1

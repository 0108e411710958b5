"""SimCLR, BYOL, rotations and the masked autoencoder, against the formulas written in NumPy."""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import config, pictures, train
from jaxdl.data.digits import Digits
from jaxdl.data.source import transformed
from jaxdl.data.transforms import Flip, PadCrop
from jaxdl.errors import UserError
from jaxdl.experiment import Experiment, InitFrom, Mesh
from jaxdl.init_from import overlay
from jaxdl.models.mlp import MLP
from jaxdl.models.vit import VisionTransformer
from jaxdl.optimizer import SGD
from jaxdl.record import Recorded, Run
from jaxdl.task import named
from jaxdl.tasks.averaging import SWA
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.masked_autoencoder import MAE, patched, unpatched
from jaxdl.tasks.representations import features
from jaxdl.tasks.self_supervised import BYOL, Rotation, SimCLR, contrast, views
from jaxdl.tasks.sharpness import SAM

MODEL = MLP(widths=(5,), classes=3)
VIT = VisionTransformer(patch=2, width=8, layers=1, heads=2, classes=3)
AUGMENT = (PadCrop(pad=1), Flip())
BATCH = {"image": jax.random.uniform(jax.random.key(0), (5, 8, 8, 1)),
         "label": jnp.array([0, 1, 2, 1, 9]), "mask": jnp.array([1., 1., 1., 1., 0.]),
         "index": jnp.arange(5) + 30}
SIZES: Any = {"hidden": 4, "out": 3}
TASKS: dict[str, Any] = {
    "simclr": SimCLR(model=MODEL, augment=AUGMENT, **SIZES),
    "byol": BYOL(model=MODEL, augment=AUGMENT, momentum=0.8, batch_norm=False, **SIZES),
    "rotation": Rotation(model=MODEL.clone(classes=4)),
    "mae": MAE(model=VIT, visible=5, width=4, layers=1, heads=2)}
TX = optax.sgd(0.1)


@functools.cache
def compiled(task: Any) -> Any:
    return (jax.jit(lambda batch: task.init(jax.random.key(1), batch, TX)),
            jax.jit(lambda state, batch: task.step(state, batch, TX)),
            jax.jit(task.evaluate))


def trained(task: Any, steps: int = 1, batch: Any = BATCH) -> list[Any]:
    """(state, metrics) before and after each step."""
    init, step, _ = compiled(task)
    states: list[Any] = [(init(batch), {})]
    for _ in range(steps):
        states.append(step(states[-1][0], batch))
    return states


@pytest.mark.parametrize("kind", TASKS)
def test_nothing_that_is_masked_or_a_label_matters(kind: str) -> None:
    task, hidden = TASKS[kind], BATCH["mask"] == 0
    image = jnp.where(hidden[:, None, None, None], jnp.nan, BATCH["image"])
    (a, one), (b, two) = (trained(task, 2, batch)[-1] for batch in (
        BATCH, {**BATCH, "image": image, "label": BATCH["label"] + 70}))
    chex.assert_tree_all_finite(b.params)
    chex.assert_trees_all_close(a.params, b.params, rtol=1e-6)
    assert one["loss"].count == 4 and one["loss"].value() == two["loss"].value()


@pytest.mark.parametrize("kind", TASKS)
def test_the_trunk_is_that_of_a_classification(kind: str) -> None:
    task = TASKS[kind]
    state, _ = trained(task)[0]
    plain = Classification(model=task.model)
    own, theirs = named(state.params), named(jax.eval_shape(
        lambda: plain.init(jax.random.key(1), BATCH, TX)).params)
    trunk = {path for path in theirs if not path.startswith("head/")}
    assert trunk <= own.keys() and {p: own[p].shape for p in trunk} == {
        p: theirs[p].shape for p in trunk}
    found = jax.jit(lambda state: features(task, state, BATCH))(state)
    assert found.shape == (5, 8 if kind == "mae" else 5)
    if kind != "mae":
        w, b = (np.asarray(state.params["dense1"][k]) for k in ("kernel", "bias"))
        x = np.asarray(BATCH["image"]).reshape(5, -1)
        np.testing.assert_allclose(found, np.maximum(x @ w + b, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", TASKS)
def test_evaluation_draws_the_same_for_an_example_whatever_the_run(kind: str) -> None:
    task = TASKS[kind]
    state, _ = trained(task)[0]
    evaluate = compiled(task)[2]
    one = evaluate(state, BATCH)["loss"].value()
    other = dataclasses.replace(state, key=jax.random.key(77))
    assert one == evaluate(other, BATCH)["loss"].value()
    order = jnp.array([3, 1, 0, 2, 4])
    moved = evaluate(state, {k: x[order] for k, x in BATCH.items()})["loss"].value()
    np.testing.assert_allclose(one, moved, rtol=1e-5)
    assert config.from_json(config.to_json(task)) == task


def test_contrast_is_nt_xent() -> None:
    z = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    mask = np.array([1., 1., 0., 1., 1.])
    losses, nearest = contrast(jnp.asarray(z), jnp.asarray(mask), 0.3)
    there = [k for k in range(10) if mask[k % 5]]
    for i in np.flatnonzero(mask):
        both, right = 0., 0.
        for a, b in ((i, i + 5), (i + 5, i)):
            scores = {k: float(z[a] @ z[k]) / 0.3 for k in there if k != a}
            both += np.log(sum(np.exp(list(scores.values())))) - scores[b]
            right += max(scores, key=scores.__getitem__) == b
        np.testing.assert_allclose(losses[i], both / 2, rtol=1e-5)
        assert nearest[i] == right / 2
    one = contrast(jnp.asarray(z), jnp.zeros(5).at[0].set(1), 0.3)[0]
    assert one[0] == 0 and np.isfinite(one).all()


def two(params: Any, x: np.ndarray) -> np.ndarray:
    """Dense, ReLU, Dense."""
    for name in ("dense1", "dense2"):
        x = np.maximum(x, 0) if name == "dense2" else x
        x = x @ np.asarray(params[name]["kernel"], np.float64) + np.asarray(params[name]["bias"])
    return x


def projected(params: Any, image: Any) -> np.ndarray:
    x = np.asarray(image, np.float64).reshape(len(image), -1)
    x = x @ np.asarray(params["dense1"]["kernel"]) + np.asarray(params["dense1"]["bias"])
    return two(params["projector"], np.maximum(x, 0))


def unit(x: Any) -> Any:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_simclr_contrasts_the_projections_of_two_views() -> None:
    task = TASKS["simclr"]
    (state, _), (after, metrics) = trained(task)
    both = views(AUGMENT, dict(BATCH), jax.random.fold_in(state.key, state.step))
    assert both.shape == (10, 8, 8, 1) and (both[:5] != both[5:]).any()
    z = unit(projected(state.params, both)).astype(np.float32)
    losses, _ = contrast(jnp.asarray(z), BATCH["mask"], 0.5)
    np.testing.assert_allclose(metrics["loss"].value(), losses[:4].mean(), rtol=1e-4)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, after.params)
    assert all(jax.tree.leaves(moved))


def test_byol_predicts_what_a_slow_average_says_of_the_other_view() -> None:
    task = TASKS["byol"]
    states = trained(task, 3)
    for (before, _), (after, metrics) in itertools.pairwise(states):
        slow = after.mutable["target"]["params"]
        followed = {k: x for k, x in before.params.items() if k != "predictor"}
        chex.assert_trees_all_close(slow, jax.tree.map(
            lambda a, b: 0.8 * a + 0.2 * b, before.mutable["target"]["params"], followed),
            rtol=1e-5, atol=1e-7)
        both = np.asarray(views(AUGMENT, dict(BATCH), jax.random.fold_in(before.key, before.step)))
        q = unit(two(before.params["predictor"], projected(before.params, both)))
        z = unit(projected(slow, both))
        losses = (2 - 2 * (q[:5] * z[5:]).sum(-1)) + (2 - 2 * (q[5:] * z[:5]).sum(-1))
        np.testing.assert_allclose(metrics["loss"].value(), losses[:4].mean(), rtol=1e-4)
    # Of the gradient with respect to q alone: that of the last bias of the predictor, by hand.
    (before, _), (after, _) = states[:2]
    both = np.asarray(views(AUGMENT, dict(BATCH), jax.random.fold_in(before.key, before.step)))
    raw, z = (two(before.params["predictor"], projected(before.params, both)),
              np.roll(unit(projected(before.params, both)), 5, 0))
    size = np.linalg.norm(raw, axis=1, keepdims=True)
    slopes = -2 * (z - unit(raw) * (unit(raw) * z).sum(-1, keepdims=True)) / size
    kept = np.tile(np.asarray(BATCH["mask"]), 2)[:, None]
    bias = before.params["predictor"]["dense2"]["bias"] - 0.1 * (slopes * kept).sum(0) / 4
    np.testing.assert_allclose(after.params["predictor"]["dense2"]["bias"], bias, rtol=1e-4,
                               atol=1e-6)


def test_no_gradient_passes_through_byols_target() -> None:
    """Were it not stopped, the projector would get more than what passes through the predictor."""
    task = TASKS["byol"]
    (before, _), (after, _) = trained(task)
    both = views(AUGMENT, dict(BATCH), jax.random.fold_in(before.key, before.step))
    z = jnp.roll(unit(projected(before.params, both)), 5, 0)

    def objective(params: Any) -> Any:
        def layers(p: Any, x: Any) -> Any:
            x = jax.nn.relu(x @ p["dense1"]["kernel"] + p["dense1"]["bias"])
            return x @ p["dense2"]["kernel"] + p["dense2"]["bias"]

        x = both.reshape(10, -1) @ params["dense1"]["kernel"] + params["dense1"]["bias"]
        q = layers(params["predictor"], layers(params["projector"], jax.nn.relu(x)))
        q = q / jnp.linalg.norm(q, axis=1, keepdims=True)
        return (jnp.tile(BATCH["mask"], 2) * (2 - 2 * (q * z).sum(-1))).sum() / 4

    gradient = jax.jit(jax.grad(objective))(before.params)
    moved = jax.tree.map(lambda w, g: w - 0.1 * g, before.params, gradient)
    chex.assert_trees_all_close(after.params, moved, rtol=1e-3, atol=1e-5)


def test_the_targets_momentum_rises_to_one() -> None:
    task = dataclasses.replace(TASKS["byol"], steps=10)
    for step in (0, 3, 10, 12):
        expected = 1 - 0.2 * (np.cos(np.pi * min(step, 10) / 10) + 1) / 2
        np.testing.assert_allclose(task.at(jnp.int32(step)), expected, rtol=1e-6)
    assert TASKS["byol"].at(jnp.int32(99)) == np.float32(0.8)


@pytest.mark.parametrize("wrap", [lambda task: SAM(task=task), lambda task: SWA(task=task, start=1),
                                  lambda task: dataclasses.replace(task, accumulate=2, ema=0.9)])
def test_byols_target_follows_in_other_tasks_too(wrap: Any) -> None:
    batch = {k: x[:4] for k, x in BATCH.items()}
    states = [state for state, _ in trained(wrap(TASKS["byol"]), 3, batch)]
    followed = [{k: x for k, x in s.params.items() if k != "predictor"} for s in states]
    expected = followed[0]
    for own in followed[:3]:  # after three steps it has taken in what was before each
        expected = jax.tree.map(lambda a, b: 0.8 * a + 0.2 * b, expected, own)
    loose = {"rtol": 1e-5, "atol": 1e-6} if "SAM" not in str(wrap(TASKS["byol"])) else {
        "rtol": 0.05, "atol": 0.02}  # SAM's second gradient is taken beside them
    chex.assert_trees_all_close(states[-1].mutable["target"]["params"], expected, **loose)
    assert features(wrap(TASKS["byol"]), states[-1], batch).shape == (4, 5)


def test_rotations_are_told_by_a_classification_of_turned_images() -> None:
    task = TASKS["rotation"]
    (state, _), (after, metrics) = trained(task)
    turned = jnp.concatenate([jnp.rot90(BATCH["image"][:4], k, (1, 2)) for k in range(4)])
    batch = {"image": turned, "label": jnp.repeat(jnp.arange(4), 4), "mask": jnp.ones(16),
             "index": jnp.arange(16)}
    plain = Classification(model=task.model)
    new, expected = jax.jit(lambda s: plain.step(s, batch, TX))(state)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(metrics[name].value(), expected[name].value(), rtol=1e-5)
    chex.assert_trees_all_close(after.params, new.params, rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match=r"the model has 3 classes; set task.model.classes to 4"):
        trained(Rotation(model=MODEL), 0)
    with pytest.raises(UserError, match="images of 8 x 6; expected square ones"):
        trained(task, 0, {**BATCH, "image": BATCH["image"][:, :, :6]})


def test_the_masked_autoencoder_sees_what_is_visible_and_draws_the_rest() -> None:
    task = TASKS["mae"]
    state, _ = trained(task)[-1]
    key, image = jax.random.key(5), BATCH["image"]
    seen = np.asarray(task.seen(BATCH, key))
    assert all(len(set(row)) == 5 and max(row) < 16 for row in seen)
    assert (seen == np.asarray(task.seen({**BATCH, "index": BATCH["index"] + 1}, key))).sum() < 15
    draw = jax.jit(lambda image: task.whole().apply({"params": state.params}, image, seen, False))
    drawn = np.asarray(draw(image))
    assert drawn.shape == (5, 16, 4)
    visible = np.zeros((5, 16, 1), bool)
    visible[np.arange(5)[:, None], seen] = True
    noise = np.random.default_rng(0).normal(size=(5, 16, 4))
    x = np.asarray(patched(image, 2))
    for where, same in ((~visible, True), (visible, False)):
        other = unpatched(jnp.asarray(np.where(where, noise, x)), 2, image.shape)
        assert (np.asarray(draw(other)) == drawn).all() == same
    for normalise in (True, False):
        target = (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + 1e-6) if normalise else x
        errors = ((drawn - target) ** 2).mean(-1)[:4][~visible[:4, :, 0]]
        found, _ = jax.jit(lambda task=dataclasses.replace(task, normalise=normalise): task.loss(
            {"params": state.params}, BATCH, key, train=True))()
        np.testing.assert_allclose(found.value(), errors.mean(), rtol=1e-4)


def test_patches_are_those_of_the_vision_transformer() -> None:
    image = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    x = patched(jnp.asarray(image), 2)
    assert x.shape == (2, 6, 12)
    np.testing.assert_array_equal(x[1, 4], image[1, 2:4, 2:4].ravel())
    np.testing.assert_array_equal(unpatched(x, 2, image.shape), image)
    with pytest.raises(UserError, match=r"visible=16 of 16 patches leaves none .* a quarter is 4"):
        trained(dataclasses.replace(TASKS["mae"], visible=16), 0)


def test_the_masked_autoencoder_shows_what_it_draws() -> None:
    task, data = TASKS["mae"], Digits(size=8, channels=1)
    state, _ = trained(task)[0]
    material = pictures.Material(source=data.open, split="test", batch_size=8)
    (found,) = task.pictures(state, material)
    rows = found.images.reshape(8, 3, 8, 8, 1)
    assert rows.min() >= 0 and rows.max() <= 1 and len(found.heads) == 3
    source: Any = data.open("test")
    batch = next(pictures.read(source, pictures.some(source, 8), 8))
    seen = np.asarray(task.seen(batch, jax.random.key(0)))
    patches = [np.asarray(patched(jnp.asarray(rows[:, i]), 2)) for i in range(3)]
    shown = (np.arange(8)[:, None], seen)
    np.testing.assert_allclose(patches[1][shown], patches[0][shown], atol=1e-5)
    np.testing.assert_allclose(patches[2][shown], patches[0][shown], atol=1e-5)
    assert np.ptp(np.delete(patches[1][0], seen[0], 0)) == 0


def test_a_classification_starts_from_what_was_learned(tmp_path: Path) -> None:
    task = BYOL(model=MLP(widths=(6,), batch_norm=True, classes=3), augment=AUGMENT, ema=0.5,
                **SIZES)
    experiment = Experiment(
        task=task, data=Digits(size=8, channels=1), optimizer=SGD(), steps=2, batch_size=16,
        log_every=2, mesh=Mesh(data=1))
    run = Run(tmp_path / "run", Recorded("run", config.to_json(experiment), None, None, ""),
              overrides={})
    train.fit(experiment, run)
    plain: Any = Classification(model=task.model)
    fresh = compiled(plain)[0](BATCH)
    state, line = overlay(fresh, InitFrom(path=str(tmp_path / "run"), fresh=("params/head/.*",)),
                          plain)
    assert ", 2 fresh" in line
    # What the run itself has.
    old, _ = overlay(compiled(task)[0](BATCH), InitFrom(path=str(tmp_path / "run")), task)
    found = features(task, old, BATCH)
    np.testing.assert_allclose(features(plain, state, BATCH), found, rtol=1e-5, atol=1e-6)
    assert not np.allclose(features(plain, fresh, BATCH), found)


def test_a_view_is_made_by_the_examples_own_key() -> None:
    both = views(AUGMENT, dict(BATCH), jax.random.key(4))
    for i in (1, 2):
        part = {k: x[1:3] for k, x in BATCH.items()}
        alone = transformed(AUGMENT, part, jax.random.fold_in(jax.random.key(4), i))["image"]
        np.testing.assert_array_equal(alone, both[5 * (i - 1) + 1:5 * (i - 1) + 3])

"""Pruning against a reference in NumPy: schedules, masks, rewinding; and how it composes."""

import json
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import cli, config
from jaxdl.errors import UserError
from jaxdl.evaluate import Context
from jaxdl.experiment import Mesh
from jaxdl.models.cnn import CNN
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import SGD, Adam, Constant, Cosine
from jaxdl.prune import LotteryTicket, Pruned, Pruning, Sparsity
from jaxdl.task import named
from jaxdl.tasks.averaging import SWA
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.deep_supervision import DeepSupervision
from jaxdl.tasks.sharpness import SAM
from tests.test_parallel import several_steps
from tests.test_train import arrays, fit
from tests.tiny import plain

PARAMS = {"conv": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 4, 5)),
                   "bias": jnp.ones(5)},
          "dense": {"kernel": 2 * jax.random.normal(jax.random.key(1), (8, 3))}}
SGD_ = SGD(learning_rate=Cosine(peak=0.1), momentum=0.9, l2=0.01, weight_decay=0.02, clip=3.0)


def gradients(step: int) -> Any:
    return jax.tree.map(lambda x: jnp.sin(x * (step + 3) + step), PARAMS)


def trained(optimizer: Any, steps: int) -> list[tuple[Any, Any]]:
    """(parameters, state) before and after each step."""
    tx = optimizer.build(steps)
    update, found = jax.jit(tx.update), [(PARAMS, tx.init(PARAMS))]
    for step in range(steps):
        params, state = found[-1]
        updates, state = update(gradients(step), state, params)
        found.append((optax.apply_updates(params, updates), state))
    return found


def least(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """Which scores [n] stay."""
    stay = np.ones(len(scores), bool)
    stay[np.argsort(scores, kind="stable")[:round(sparsity * len(scores))]] = False
    return stay


def reference(flat: dict[str, np.ndarray], kind: str, sparsity: float) -> dict[str, np.ndarray]:
    """The masks of some parameters, by loops."""
    kernels = {path: np.abs(x) for path, x in flat.items() if x.ndim > 1}
    if kind == "global":
        whole = least(np.concatenate([x.ravel() for x in kernels.values()]), sparsity)
        middle = kernels["conv/kernel"].size
        return {"conv/kernel": whole[:middle].reshape(3, 3, 4, 5),
                "dense/kernel": whole[middle:].reshape(8, 3)}
    masks = {path: np.ones(x.shape, bool) for path, x in kernels.items()}
    for path, x in kernels.items():
        if kind == "layer":
            masks[path] = least(x.ravel(), sparsity).reshape(x.shape)
        if kind == "channels":
            masks[path][..., :] = least((x ** 2).reshape(-1, x.shape[-1]).sum(0), sparsity)
        for at in np.ndindex(*x.shape[:-2]) if kind == "group" else ():
            for i in range(0, x.shape[-2], 4):
                for o in range(x.shape[-1]):
                    place = (*at, slice(i, i + 4), o)
                    masks[path][place] = least(x[place], sparsity)
    if kind == "channels":
        masks["conv/bias"] = masks["conv/kernel"].any((0, 1, 2))
    return masks


@pytest.mark.parametrize("kind", ["layer", "global", "group", "channels"])
def test_gradual_pruning_is_its_formula(kind: Any) -> None:
    """Equation 1 of Zhu & Gupta around SGD, with masks and updates by NumPy."""
    found = trained(Pruned(optimizer=SGD_, sparsity=0.5, kind=kind, start=0.2, end=0.7, every=2),
                    10)
    tx = SGD_.build(10)
    held, params = tx.init(PARAMS), PARAMS
    masks = {path: np.ones(x.shape, bool) for path, x in named(PARAMS).items()}
    for step in range(1, 11):
        grads = jax.tree.unflatten(jax.tree.structure(PARAMS), [
            g * masks[path] for path, g in named(gradients(step - 1)).items()])
        updates, held = tx.update(grads, held, params)
        params = optax.apply_updates(params, updates)
        if step in (2, 4, 6, 7):
            sparsity = 0.5 * (1 - (1 - (step / 10 - 0.2) / 0.5) ** 3)
            flat = {path: np.where(masks[path], x, 0) for path, x in named(params).items()}
            masks |= reference(flat, kind, sparsity)
        params = jax.tree.unflatten(jax.tree.structure(PARAMS), [
            x * masks[path] for path, x in named(params).items()])
        chex.assert_trees_all_close(found[step][0], params, rtol=1e-5, atol=1e-6)
        for path, x in named(found[step][0]).items():
            assert ((np.asarray(x) == 0) == ~masks[path]).all(), (step, path)
    kernels = [np.mean(x == 0) for x in named(found[-1][0]).values() if x.ndim > 1]
    assert np.mean(kernels) == pytest.approx(0.5, abs=0.1)


def test_what_is_pruned_stays_zero_whatever_the_optimizer_holds() -> None:
    """Adam's mean of gradients would carry on."""
    optimizer = Adam(learning_rate=Constant(peak=0.3), weight_decay=0.1)
    found = trained(Pruned(optimizer=optimizer, sparsity=0.7, start=0.5, end=0.8, every=1), 20)
    for step, (params, state) in enumerate(found):
        sparsity = 0.7 * (1 - np.clip((0.8 - step / 20) / 0.3, 0, 1) ** 3)
        for path, mask in named(state.masks).items():
            mask, weights = np.asarray(mask), np.asarray(named(params)[path])
            assert (weights[~mask] == 0).all()
            assert (~mask).sum() == round(sparsity * mask.size), step
    assert float(jnp.abs(found[-1][1].inner[0].mu["conv"]["kernel"]).min()) > 0
    chex.assert_trees_all_close(found[9][0], trained(optimizer, 20)[9][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["layer", "channels"])
def test_masks_only_lose_weights(kind: Any) -> None:
    """Also where the optimizer inside would make what is pruned the largest."""
    optimizer = Pruned(optimizer=SGD_, kind=kind)
    masks = optimizer.pruned(PARAMS, optimizer.dense(PARAMS), jnp.float32(0.4))
    revived = jax.tree.map(lambda p, m: p if m is None else jnp.where(m, p, 99.), PARAMS, masks)
    fewer = optimizer.pruned(revived, masks, jnp.float32(0.7))
    for path, mask in named(fewer).items():
        assert not (mask & ~named(masks)[path]).any()
    chex.assert_trees_all_equal(optimizer.pruned(revived, fewer, jnp.float32(0.1)), fewer)
    for found, sparsity in ((masks, 0.4), (fewer, 0.7)):
        parts = 3 if kind == "channels" else 24
        pruned = (~found["dense"]["kernel"]).mean()
        assert pruned == pytest.approx(round(sparsity * parts) / parts)


def test_once_at_the_end_is_the_plain_optimizer_until_then() -> None:
    found = trained(Pruned(optimizer=SGD_, sparsity=0.5, start=1., end=1.), 5)
    alike = trained(SGD_, 5)
    chex.assert_trees_all_close([p for p, _ in found[:5]], [p for p, _ in alike[:5]], rtol=1e-5,
                                atol=1e-6)
    stay = reference(named(jax.device_get(alike[5][0])), "layer", 0.5)["dense/kernel"]
    np.testing.assert_allclose(found[5][0]["dense"]["kernel"], np.where(
        stay, alike[5][0]["dense"]["kernel"], 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[5][0]["dense"]["kernel"] != 0, stay)


def test_it_may_begin_with_the_first_step() -> None:
    params = trained(Pruned(optimizer=SGD_, sparsity=0.5, start=0., end=0.), 2)[1][0]
    assert int((params["dense"]["kernel"] == 0).sum()) == 12


def test_a_ticket_is_trained_pruned_and_rewound() -> None:
    """Three trainings of 6, 4 and 4 steps, from step 2 of the first, by the optimizer alone."""
    ticket = LotteryTicket(optimizer=SGD_, sparsity=0.75, rounds=2, rewind=2)
    found = trained(ticket, 14)
    tx = SGD_.build(6)
    params, held = PARAMS, tx.init(PARAMS)
    masks: Any = jax.tree.map(lambda x: np.ones(x.shape, bool), PARAMS)
    step, kept, expected = 0, (params, held), [PARAMS]
    for number, (start, end) in enumerate(((0, 6), (2, 6), (2, 6))):
        for at in range(start, end):
            grads = jax.tree.map(lambda g, m: g * m, gradients(step), masks)
            updates, held = tx.update(grads, held, params)
            params = jax.tree.map(lambda p, u, m: (p + u) * m, params, updates, masks)
            step += 1
            if number == 0 and at == 1:
                kept = params, held
            if at < 5 or number == 2:
                expected.append(params)
        if number < 2:
            stay = reference(named(jax.device_get(params)), "layer", 1 - 0.25 ** (
                (number + 1) / 2))
            masks = {"conv": {"kernel": stay["conv/kernel"], "bias": np.ones(5, bool)},
                     "dense": {"kernel": stay["dense/kernel"]}}
            params, held = jax.tree.map(lambda p, m: p * m, kept[0], masks), kept[1]
            expected.append(params)
    chex.assert_trees_all_close([p for p, _ in found], expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(found[6][1].inner, found[2][1].inner)
    assert [int((p["dense"]["kernel"] == 0).sum()) for p, _ in found] == (
        [0] * 6 + [12] * 4 + [18] * 5)
    rates = [float(ticket.learning_rate(jnp.int32(i), 14)) for i in range(14)]
    alone = [float(SGD_.learning_rate(jnp.int32(i), 6)) for i in range(6)]
    assert rates == alone + alone[2:] + alone[2:]


def test_a_ticket_goes_back_to_what_it_was_given() -> None:
    """Weights that were put in after the state was made, as `init_from` does."""
    tx = LotteryTicket(optimizer=SGD_, sparsity=0.5, rounds=1).build(4)
    state, given = tx.init(PARAMS), jax.tree.map(lambda x: x + 1, PARAMS)
    params = given
    for i in range(2):
        updates, state = tx.update(gradients(i), state, params)
        params = optax.apply_updates(params, updates)
    left = jax.tree.map(lambda p, g: jnp.where(p == 0, 0, g), params, given)
    chex.assert_trees_all_close(params, left, rtol=1e-5, atol=1e-6)
    assert (params["dense"]["kernel"] == 0).sum() == 12


@pytest.mark.parametrize("optimizer", [
    Pruned(optimizer=SGD_, kind="global", start=0.4, end=0.4),
    LotteryTicket(optimizer=SGD_, kind="group", rounds=1)])
def test_sparsities_are_trained_in_one_program(optimizer: Pruning) -> None:
    """Every float is data; and where trials are mapped, there is no sort outside of a loop, which
    runs in the few steps alone that prune."""
    def step(knobs: Any) -> Any:
        changed = config.replace(optimizer, dict(zip(paths, knobs, strict=True)))
        tx, params = changed.build(5), PARAMS
        state = tx.init(params)
        for i in range(3):
            updates, state = tx.update(gradients(i), state, params)
            params = optax.apply_updates(params, updates)
        return params

    paths = [p for p, leaf in config.leaves(optimizer) if type(leaf.value) is float]
    assert "sparsity" in paths and "optimizer.learning_rate.peak" in paths
    knobs = jnp.array([[config.get(optimizer, p) for p in paths]] * 3)
    knobs = knobs.at[:, paths.index("sparsity")].set(jnp.array([0.25, 0.5, 0.75]))
    many = jax.jit(jax.vmap(step))
    traced = many.trace(knobs)
    assert "sort" in {e.primitive.name for e in every(traced.jaxpr.jaxpr, loops=True)}
    assert "sort" not in {e.primitive.name for e in every(traced.jaxpr.jaxpr, loops=False)}
    found = many(knobs)
    zeros = [int((x == 0).sum()) for x in found["dense"]["kernel"]]
    assert zeros == sorted(zeros) and len({*zeros}) == 3
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], found), jax.jit(step)(knobs[1]),
                                rtol=1e-5, atol=1e-6)


def every(jaxpr: Any, loops: bool) -> Any:
    """The operations of a traced function, of those that it calls, and of loops if wanted."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values() if loops or equation.primitive.name != "while" else (
                ):
            if hasattr(inner := getattr(value, "jaxpr", value), "eqns"):
                yield from every(inner, loops)


@pytest.mark.parametrize(("optimizer", "message"), [
    (Pruned(optimizer=SGD(), only=("desne/.*",)),
     "optimizer.only: 'desne/.*' matches no parameter. Did you mean 'dense/kernel'?"),
    (Pruned(optimizer=SGD(), only=("conv/bias",)),
     "optimizer.only: 'conv/bias' matches no parameter. Did you mean 'conv/kernel'?"),
    (Pruned(optimizer=SGD(), kind="group", group=3),
     "optimizer.group=3: does not divide the 4 inputs of conv/kernel; optimizer.only="
     "('.*kernel',) can leave it out."),
    (LotteryTicket(optimizer=SGD(), rounds=3, rewind=7),
     "optimizer.rewind=7: expected a step of the first of 4 trainings; with steps=10 at most 6."),
])
def test_a_mistake_is_told(optimizer: Pruning, message: str) -> None:
    with pytest.raises(UserError) as error:
        optimizer.build(10).init(PARAMS)
    assert str(error.value) == message
    LotteryTicket(optimizer=SGD(), rounds=3, rewind=6).build(10)


def test_rate_and_decay_are_those_of_the_optimizer_inside() -> None:
    pruned = Pruned(optimizer=SGD_)
    assert (pruned.learning_rate, pruned.l2, pruned.clip) == (SGD_.learning_rate, 0.01, 3.0)
    assert config.from_json(json.loads(json.dumps(config.to_json(pruned)))) == pruned
    outer = {p for p, _ in config.leaves(pruned) if not p.startswith("optimizer.")}
    assert outer == {"sparsity", "kind", "group", "only", "start", "end", "every"}
    with pytest.raises(TypeError, match="learning_rate"):
        Pruned(optimizer=SGD_, learning_rate=Constant())  # type: ignore[call-arg]
    command = cli.parse("show", "pruning", ["--optimizer.sparsity=0.8",
                                            "--optimizer.optimizer.learning_rate.peak=0.1"])
    assert command.experiment.optimizer.sparsity == 0.8
    with pytest.raises(UserError, match=r"Did you mean --optimizer.optimizer.learning_rate.peak"):
        cli.parse("show", "pruning", ["--optimizer.learning_rate.peak=0.1"])


MODEL = MLP(widths=(6,), classes=10)


def pruning(**options: Any) -> Any:
    return plain(optimizer=Pruned(optimizer=Adam(learning_rate=Constant(peak=1e-2)), sparsity=0.8,
                                  start=0.5, end=0.5), evals={"left": Sparsity()},
                 task=Classification(model=MODEL), **{"mesh": Mesh(data=1), **options})


def test_a_run_has_a_report(tmp_path: Path) -> None:
    results = fit(tmp_path, pruning()).results
    head, dense = 0.8, round(0.8 * 64 * 6) / (64 * 6)
    assert results["left/dense1/kernel"] == pytest.approx(dense)
    assert results["left/head/kernel"] == pytest.approx(head)
    assert results["left/zeros"] == pytest.approx((dense * 384 + head * 60) / 444)
    saved = arrays(tmp_path)
    assert "state/opt_state/masks/head/kernel" in saved
    assert results["left/parameters"] == sum(
        np.count_nonzero(x) for p, x in saved.items() if p.startswith("state/params"))


def test_each_device_for_itself_prunes_what_one_does() -> None:
    one, _ = several_steps(pruning(), 4)
    eight, _ = several_steps(pruning(mesh=Mesh(data=8), parallel="pmap"), 4)
    chex.assert_trees_all_equal(one.opt_state.masks, eight.opt_state.masks)
    assert int((one.params["head"]["kernel"] == 0).sum()) == 48
    chex.assert_trees_all_close(one.params, eight.params, rtol=1e-4, atol=1e-5)


BATCH = {"image": jax.random.normal(jax.random.key(0), (4, 4, 4, 1)),
         "label": jnp.array([0, 1, 2, 1]), "mask": jnp.array([1., 1., 1., 0.]),
         "index": jnp.arange(4)}
INNER = Classification(model=MLP(widths=(6,), classes=3))
CONV = Classification(model=CNN(channels=(4,), dense=(), classes=3))


@pytest.mark.parametrize(("task", "sparse"), [
    (SAM(task=INNER, accumulate=2), True),
    (SWA(task=INNER, start=3), True),
    (SWA(task=INNER, start=1), False),  # It averages what was not pruned yet.
    (Classification(model=INNER.model, ema=0.9), False),
    (Classification(model=INNER.model, freeze=("head/.*",)), True),
    (DeepSupervision(task=CONV, layers=("conv1",), classes=3), True),
])
def test_it_composes_with_ways_of_training(task: Any, sparse: bool) -> None:
    """What is evaluated is as sparse as it should be, and where it is not, the report says so."""
    optimizer = Pruned(optimizer=SGD(learning_rate=Constant(peak=0.1), momentum=0.9), sparsity=0.5,
                       start=0.4, end=0.4)
    tx = optimizer.build(5)
    state = jax.jit(lambda key: task.init(key, BATCH, tx))(jax.random.key(1))
    step = jax.jit(lambda state: task.step(state, BATCH, tx)[0])
    for _ in range(5):
        state = step(state)
    for path, mask in named(state.opt_state.masks).items():
        weights = np.asarray(named(state.params)[path])
        assert ((weights == 0) == ~np.asarray(mask)).all() and not mask.all()
    context = Context(name="left", step=5, source=None, batch_size=4, devices=None)  # type: ignore
    left = Sparsity()(task, state, context)
    first = next(p for p in named(state.params) if p.endswith("1/kernel"))
    assert left[first] == (0.5 if sparse else 0.)
    with pytest.raises(UserError, match=r"evals.left.only: 'x' matches no parameter"):
        Sparsity(only=("x",))(task, state, context)

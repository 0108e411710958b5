"""Tasks made from tasks: SAM, SWA, deep supervision, averaged predictions; and how they compose."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import config
from jaxdl.data.transforms import Flip
from jaxdl.errors import UserError
from jaxdl.models.cnn import CNN
from jaxdl.models.mlp import MLP
from jaxdl.task import Mean, named
from jaxdl.tasks.averaging import SWA
from jaxdl.tasks.classification import Classification, TestTimeAugmentation
from jaxdl.tasks.deep_supervision import DeepSupervision
from jaxdl.tasks.fixed_norms import FixedNorms
from jaxdl.tasks.lora import LoRA
from jaxdl.tasks.sharpness import SAM
from jaxdl.tasks.wrapped import observed, with_gradient

INNER = Classification(model=MLP(widths=(5,), classes=3))
BATCH = {"image": jax.random.normal(jax.random.key(0), (4, 6, 6, 1)),
         "label": jnp.array([0, 1, 2, 1]), "mask": jnp.array([1., 1., 1., 0.]),
         "index": jnp.arange(4)}
TX = optax.sgd(0.1)


def trained(task: Any, steps: int = 1, batch: Any = BATCH) -> list[Any]:
    """The states before and after each step."""
    states = [jax.jit(lambda: task.init(jax.random.key(1), batch, TX))()]
    step = jax.jit(lambda state: task.step(state, batch, TX)[0])
    for _ in range(steps):
        states.append(step(states[-1]))
    return states


def test_sam_steps_along_the_gradient_of_a_point_uphill() -> None:
    before, after = trained(SAM(task=INNER, radius=0.3))

    def loss(params: Any) -> Any:
        mean, _ = INNER.loss({"params": params}, BATCH, jax.random.key(0), train=True)
        return mean.total / mean.count

    g = jax.grad(loss)(before.params)
    size = np.sqrt(sum(float((x ** 2).sum()) for x in jax.tree.leaves(g)))
    uphill = jax.tree.map(lambda w, g: w + 0.3 / size * g, before.params, g)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, before.params, jax.grad(loss)(uphill))
    chex.assert_trees_all_close(after.params, expected, rtol=1e-4, atol=1e-6)
    plain = trained(INNER)[1]
    assert max(np.abs(a - b).max() for a, b in zip(
        jax.tree.leaves(plain.params), jax.tree.leaves(after.params), strict=True)) > 1e-4


def test_sam_moves_what_is_trained_only() -> None:
    task = SAM(task=INNER, radius=0.3, freeze=("dense1/.*",))
    before, after = trained(task)
    chex.assert_trees_all_equal(before.frozen, after.frozen)
    same = SAM(task=INNER, radius=jnp.float32(0.), freeze=("dense1/.*",))
    plain = dataclasses.replace(INNER, freeze=("dense1/.*",))
    chex.assert_trees_all_close(trained(same)[1].params, trained(plain)[1].params, rtol=1e-6)


def test_swa_is_the_mean_of_the_steps_it_names() -> None:
    states = trained(SWA(task=INNER, start=2, every=3), 9)
    for i in (0, 1, 2):
        chex.assert_trees_all_close(states[i].ema, states[i].params, rtol=1e-5, atol=1e-7)
    for i, taken in ((4, (2,)), (5, (2, 5)), (7, (2, 5)), (9, (2, 5, 8))):
        mean = jax.tree.map(lambda *x: sum(x) / len(x), *(states[j].params for j in taken))
        chex.assert_trees_all_close(states[i].ema, mean, rtol=1e-5, atol=1e-7)
    task = SWA(task=INNER, start=2, every=3)
    mean, plain = (INNER.loss({"params": p}, BATCH, jax.random.key(0), train=False)[0].value()
                   for p in (states[9].ema, states[9].params))
    assert jax.jit(task.evaluate)(states[9], BATCH)["loss"].value() == pytest.approx(float(mean))
    assert abs(mean - plain) > 1e-4


def test_deep_supervision_adds_the_loss_of_its_companions() -> None:
    inner = Classification(model=CNN(channels=(2, 3), dense=(), classes=3))
    task = DeepSupervision(task=inner, layers=("conv1", "conv2"), weight=0.5, classes=3)
    before, after = trained(task)
    shapes = {p: x.shape for p, x in named(before.params["companions"]).items()}
    assert shapes == {"conv1/bias": (3,), "conv1/kernel": (2, 3), "conv2/bias": (3,),
                      "conv2/kernel": (3, 3)}
    variables = {"params": before.params}
    mean, aux = task.loss(variables, BATCH, jax.random.key(0), train=True)
    own, _ = inner.loss(variables, BATCH, jax.random.key(0), train=True)
    conv1 = inner.model.apply(variables, BATCH["image"], train=True, capture_intermediates=True,
                              mutable=["intermediates"])[1]["intermediates"]["conv1"]["__call__"][0]
    head = before.params["companions"]["conv1"]
    logits = conv1.mean((1, 2)) @ head["kernel"] + head["bias"]
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, BATCH["label"])[:3].sum()
    np.testing.assert_allclose(aux.metrics["conv1_loss"].total, expected, rtol=1e-5)
    np.testing.assert_allclose(mean.total, own.total + 0.5 * (
        expected + aux.metrics["conv2_loss"].total), rtol=1e-5)
    evaluated, _ = task.loss(variables, BATCH, jax.random.key(0), train=False)
    np.testing.assert_allclose(evaluated.total, own.total, rtol=1e-5)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after.params)
    assert all(jax.tree.leaves(moved))
    wrong = dataclasses.replace(task, layers=("conv3",))
    with pytest.raises(UserError, match=r"the model has no 'conv3'. Did you mean 'conv"):
        trained(wrong, 0)


def test_the_output_of_the_model_inside_is_seen_and_of_no_other() -> None:
    companions = DeepSupervision(task=INNER, layers=("dense1",), classes=5)
    variables: dict[str, Any] = {}
    key = jax.random.key(3)
    for task in (INNER, SAM(task=INNER), companions):
        variables = {}
        task.loss(variables, BATCH, key, train=False)
        mean, _, outputs = observed(task, variables, BATCH, key, train=True, layers=("dense1",))
        params = {k: x for k, x in variables["params"].items() if k != "companions"}
        own = INNER.model.apply({"params": params}, BATCH["image"], train=True)
        assert outputs.keys() == {"", "dense1"} and outputs["dense1"].shape == (4, 5)
        if not isinstance(task, SAM):
            chex.assert_trees_all_close(outputs[""], own, rtol=1e-6)
        chex.assert_trees_all_equal(mean, task.loss(variables, BATCH, key, train=True)[0])
    with pytest.raises(UserError, match=r"layers: the model has no 'dens1'. Did you mean 'dense1'"):
        observed(INNER, variables, BATCH, key, train=True, layers=("dens1",))


def test_a_gradient_can_be_given() -> None:
    params = {"w": jnp.array([1., -2.]), "b": jnp.bfloat16(3.)}
    gradient = {"w": jnp.array([.5, .25]), "b": jnp.bfloat16(-1.)}

    def of(params: Any) -> Any:
        mean = with_gradient(Mean(7 * params["w"].sum(), jnp.float32(4.)), params, gradient)
        return mean.total / mean.count

    value, found = jax.value_and_grad(of)(params)
    assert value == -7 / 4
    chex.assert_trees_all_equal(found, gradient)


@pytest.mark.parametrize("wrap", [
    lambda task: SWA(task=SAM(task=task), start=1),
    lambda task: SAM(task=DeepSupervision(task=task, layers=("dense1",), classes=3)),
    lambda task: DeepSupervision(task=SAM(task=task), layers=("dense1",), classes=3),
])
def test_they_compose(wrap: Any) -> None:
    task = wrap(INNER)
    state = trained(task, 3)[-1]
    assert np.isfinite(task.evaluate(state, BATCH)["loss"].value())
    assert task.logits(state, BATCH).shape == (4, 3)
    assert ("companions" in state.params) == ("Deep" in str(task))
    assert config.from_json(config.to_json(task)) == task


def test_options_belong_to_the_outermost() -> None:
    with pytest.raises(UserError, match="SAM: set ema in it, not in the Classification inside"):
        SAM(task=dataclasses.replace(INNER, ema=0.9))
    with pytest.raises(UserError, match="leave ema at None"):
        SWA(task=INNER, start=1, ema=0.9)
    with pytest.raises(UserError, match="SAM: the SWA inside defines init, which only the outermost"
                                        " task is asked for; put SWA around"):
        SAM(task=SWA(task=INNER, start=1))
    task = SAM(task=INNER, compute_dtype="bfloat16")
    text = str(jax.make_jaxpr(lambda s: task.evaluate(s, BATCH))(
        task.init(jax.random.key(0), BATCH, TX)))
    assert "bf16" in text
    with pytest.raises(AttributeError):
        task.nothing  # noqa: B018


def test_predictions_are_averaged_over_copies() -> None:
    state = trained(INNER)[1]
    flip = TestTimeAugmentation(augment=(Flip(probability=1.),), copies=2)
    found = flip.measure(INNER, state, BATCH)
    mirrored = {**BATCH, "image": BATCH["image"][:, :, ::-1]}
    both = (INNER.probabilities(state, BATCH) + INNER.probabilities(state, mirrored)) / 2
    own = np.asarray(both)[np.arange(3), BATCH["label"][:3]]
    np.testing.assert_allclose(found["loss"].value(), -np.log(own).mean(), rtol=1e-5)
    assert found["accuracy"].count == 3
    alone = TestTimeAugmentation(copies=1).measure(INNER, state, BATCH)
    inner = jax.jit(INNER.evaluate)(state, BATCH)
    np.testing.assert_allclose(alone["loss"].value(), inner["loss"].value(),
                               rtol=1e-5)


def test_one_logit_is_the_log_odds_of_the_second_class() -> None:
    task = Classification(model=MLP(widths=(), classes=1))
    batch = {**BATCH, "label": jnp.array([0, 1, 1, 0])}
    state = trained(task, batch=batch)[0]
    z = task.model.apply({"params": state.params}, BATCH["image"], train=False)[:, 0]
    assert state.params["head"]["kernel"].shape == (36, 1)
    expected = optax.sigmoid_binary_cross_entropy(z, batch["label"].astype(jnp.float32))[:3].mean()
    np.testing.assert_allclose(task.evaluate(state, batch)["loss"].value(), expected, rtol=1e-5)
    np.testing.assert_allclose(task.probabilities(state, batch)[:, 1], jax.nn.sigmoid(z), rtol=1e-5)
    np.testing.assert_array_equal(task.predict(state, batch), z > 0)


def test_fixed_norms_neither_see_the_batch_nor_follow_it() -> None:
    inner = Classification(model=CNN(channels=(2, 3), dense=(), classes=3, batch_norm=True))
    first = inner.init(jax.random.key(1), BATCH, TX)
    drawn = jax.tree.map(lambda x: x + jax.random.uniform(jax.random.key(2), x.shape),
                         first.mutable)
    variables = {"params": first.params, **drawn}
    task = FixedNorms(task=inner)
    mean, aux = task.loss(variables, BATCH, jax.random.key(0), train=True)
    still, _ = inner.loss(variables, BATCH, jax.random.key(0), train=False)
    np.testing.assert_allclose(mean.total, still.total, rtol=1e-5)
    chex.assert_trees_all_equal(dict(aux.mutable), drawn)
    gradient = jax.grad(lambda p, t, train: t.loss({"params": p, **drawn}, BATCH,
                                                   jax.random.key(0), train=train)[0].total)
    chex.assert_trees_all_close(gradient(first.params, task, True),
                                gradient(first.params, inner, False), rtol=1e-4, atol=1e-6)
    # Of one layer alone, the other goes on.
    half = FixedNorms(task=inner, layers=("norm2",))
    _, aux = half.loss(variables, BATCH, jax.random.key(0), train=True)
    stats = aux.mutable["batch_stats"]
    chex.assert_trees_all_equal(stats["norm2"], drawn["batch_stats"]["norm2"])
    assert (stats["norm1"]["mean"] != drawn["batch_stats"]["norm1"]["mean"]).all()
    state = trained(SAM(task=task), 2)[-1]
    chex.assert_trees_all_equal(state.mutable, first.mutable)
    with pytest.raises(UserError, match="FixedNorms: layers: the model has no batch norm that 'bn"):
        trained(FixedNorms(task=inner, layers=("bn.*",)), 0)


def test_companions_of_a_network_with_adapters_are_trained() -> None:
    task = DeepSupervision(task=LoRA(task=INNER, targets=("dense1/kernel",), rank=2),
                           layers=("dense1",), classes=3)
    states = trained(task, 2)
    assert list(states[0].frozen) == ["dense1", "head"]
    for before, after in zip(*(jax.tree.leaves(s.params["companions"]) for s in states[::2]),
                             strict=True):
        assert (before != after).any()


def test_fixed_norms_in_bfloat16_are_those_of_evaluation() -> None:
    """Statistics stay float32: a mean of 10.03 is not 10."""
    model = CNN(channels=(4,), dense=(), classes=3, batch_norm=True)
    task = FixedNorms(task=Classification(model=model), compute_dtype="bfloat16")
    variables: dict[str, Any] = {}
    task.loss(variables, BATCH, jax.random.key(0), train=False)
    variables["batch_stats"] = {"norm1": {"mean": jnp.array([10.03, 0., 10.06, 0.]),
                                          "var": jnp.full(4, 0.01, jnp.float32)}}
    variables["params"]["norm1"]["bias"] = jnp.array([101., 0., 101., 0.])
    plain = dataclasses.replace(task.task, compute_dtype="bfloat16")
    found = [each.loss(variables, {**BATCH, "image": 0 * BATCH["image"]}, jax.random.key(0),
                       train=train)[0].total for each, train in ((task, True), (plain, False))]
    np.testing.assert_allclose(*found, rtol=1e-3)

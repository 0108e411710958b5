"""BERT: its published size, what its tokens see, and the tokens that are hidden from it."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl.models.bert import Bert
from jaxdl.task import named
from jaxdl.tasks.masked_language import MaskedLanguageModel

V = 11
SMALL = Bert(vocabulary=V, layers=2, width=16, heads=4, block=8)
ROWS = np.array([[1, 2, 3, 4, 5, 6], [7, 8, 9, -1, -1, -1]])


def variables(model, seed=0):
    return jax.jit(lambda: model.init(jax.random.key(seed), ROWS, train=False))()


def test_the_published_size():
    params = named(jax.eval_shape(
        lambda: Bert(output="class").init(jax.random.key(0), jnp.zeros((1, 4), int), train=False)
    )["params"])
    count = sum(math.prod(x.shape) for p, x in params.items() if not p.startswith("head/"))
    assert count == 109_482_240


@pytest.mark.parametrize("options", [{"output": "tokens"}, {"output": "labels", "classes": 3},
                                     {"output": "class"}, {"output": "class", "pool": "mean"},
                                     {"output": "class", "scan": True}])
def test_padding_and_the_batch_change_nothing(options):
    model = SMALL.clone(**options)
    held = variables(model)
    held = jax.tree.map(lambda x: 3 * x, held)
    both = model.apply(held, ROWS, False)
    alone = model.apply(held, ROWS[1:, :3], False)
    wide = model.apply(held, np.pad(ROWS, ((0, 0), (0, 2)), constant_values=-1), False)
    if options["output"] == "class":
        assert both.shape == (2, 2)
        chex.assert_trees_all_close(alone[0], both[1], atol=1e-5)
        chex.assert_trees_all_close(wide, both, atol=1e-5)
    else:
        assert both.shape == (2, 6, V if options["output"] == "tokens" else 3)
        chex.assert_trees_all_close(alone[0], both[1, :3], atol=1e-5)
        chex.assert_trees_all_close(wide[:, :6][ROWS >= 0], both[ROWS >= 0], atol=1e-5)
    other = ROWS.copy()
    other[0, 5] = 9
    assert np.abs(model.apply(held, other, False)[0] - both[0]).max() > 1e-4  # all see all


def test_a_block_is_its_formula():
    """Of one head, in NumPy: norm(x + attention(x)), then norm(x + MLP(x))."""
    model = Bert(vocabulary=V, layers=1, width=6, heads=1, block=8, output="labels", types=0)
    held = variables(model, 1)
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), held["params"])
    w = jax.tree.map(lambda x: x + np.random.default_rng(x.size).normal(size=x.shape) * 0.3, w)

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    erf = np.vectorize(math.erf)
    x = norm(w["embedding"][ROWS[0]] + w["positions"][:6], w["embedding_norm"])
    b = w["block1"]
    q, k, v = np.split(dense(x, b["query_key_value"]), 3, -1)
    scores = np.exp(q @ k.T / math.sqrt(6))
    x = norm(x + dense(scores / scores.sum(-1, keepdims=True) @ v, b["project"]), b["norm1"])
    y = dense(x, b["dense1"])
    x = norm(x + dense(0.5 * y * (1 + erf(y / math.sqrt(2))), b["dense2"]), b["norm2"])
    found = model.apply({"params": jax.tree.map(jnp.float32, w)}, ROWS[:1], False)
    np.testing.assert_allclose(found[0], dense(x, w["head"]), atol=1e-4)


def batch(rows, index):
    return {"tokens": jnp.asarray(rows), "index": jnp.asarray(index), "mask": jnp.ones(len(rows))}


def test_tokens_are_hidden_as_the_paper_says():
    task = MaskedLanguageModel(model=SMALL.clone(vocabulary=1_000))
    rows = np.full((400, 100), 500)
    rows[:, 90:] = -1
    given, target = task.hide(batch(rows, np.arange(400)), jax.random.key(1))
    asked = np.asarray(target) >= 0
    assert not asked[:, 90:].any() and (np.asarray(target)[asked] == 500).all()
    given = np.asarray(given)
    assert (given[~asked] == rows[~asked]).all()
    share = asked[:, :90].mean()
    masked, same = (given[asked] == 999).mean(), (given[asked] == 500).mean()
    np.testing.assert_allclose([share, masked, same], [0.15, 0.8, 0.1], atol=0.015)
    assert len(np.unique(given[asked])) > 200


def test_an_example_is_evaluated_alike_in_any_batch():
    task = MaskedLanguageModel(model=SMALL, hidden=0.5)
    state = task.init(jax.random.key(0), batch(ROWS, [4, 7]), optax.sgd(1.))
    both = task.evaluate(state, batch(ROWS, [4, 7]))
    each = [task.evaluate(state, batch(ROWS[i:i + 1], [n])) for i, n in enumerate((4, 7))]
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(both[name].total, sum(e[name].total for e in each), rtol=1e-5)
    assert float(both["loss"].count) > 1
    other = task.evaluate(state, batch(ROWS, [5, 8]))
    assert float(other["loss"].total) != float(both["loss"].total)

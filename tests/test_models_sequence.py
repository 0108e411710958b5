"""Sequence models: sizes, causality, equal forms, types, gradients, and an LSTM against NumPy."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl.attention import attend, weights
from jaxdl.errors import UserError
from jaxdl.matmul import _matmul, fast_dtype
from jaxdl.models.mlp import MLP
from jaxdl.models.rnn import RNN
from jaxdl.models.transformer import Transformer
from jaxdl.recurrence import gru, lstm, recur, simple
from jaxdl.task import REMAT, Aux, LossTask, Mean

V, B, T = 11, 3, 8
SMALL = Transformer(vocabulary=V, layers=2, width=16, heads=2, block=T)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V, (B, T)))
KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}


def initial(model, tokens=TOKENS):
    return jax.jit(lambda: model.init(KEYS, tokens, train=False))()["params"]


def loss(model, params, tokens=TOKENS):
    logits = model.apply({"params": params}, tokens, train=True, rngs=KEYS)
    return -jnp.mean(jax.nn.log_softmax(logits.astype(jnp.float32))[..., 0])


def normals(*shapes, dtype=jnp.float32):
    random = np.random.default_rng(1)
    return [jnp.asarray(random.standard_normal(shape), dtype) for shape in shapes]


@pytest.mark.parametrize("options,count", [
    # nanoGPT prints 10.65M for this one: it leaves out the positions.
    ({}, 10_745_088), ({"bias": True}, 10_770_816), ({"tied": False}, 10_745_088 + 65 * 384),
    ({"scan": True}, 10_745_088),
    ({"vocabulary": 50_257, "layers": 12, "width": 768, "heads": 12, "block": 1024, "bias": True},
     124_439_808),  # GPT-2 small
])
def test_published_sizes(options, count):
    model = Transformer(**{"vocabulary": 65, **options})
    params = jax.eval_shape(lambda: initial(model, jnp.zeros((1, 4), int)))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("model", [
    SMALL, SMALL.clone(layers=1, bias=True, tied=False), RNN(V, 8, 2)])
def test_a_token_changes_only_what_follows(model):
    params = initial(model)
    apply = jax.jit(lambda tokens: model.apply({"params": params}, tokens, train=False))
    before, after = apply(TOKENS), apply(TOKENS.at[:, 5].add(1) % V)
    chex.assert_shape(before, (B, T, V))
    chex.assert_trees_all_equal(before[:, :5], after[:, :5])
    assert (np.abs(before - after)[:, 5:].max((0, 2)) > 0).all()


def stacked(params):
    blocks = [params[f"block{i + 1}"] for i in range(SMALL.layers)]
    rest = {name: leaf for name, leaf in params.items() if not name.startswith("block")}
    return {**rest, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}


def gradients(model, params):
    return jax.jit(jax.value_and_grad(lambda p: loss(model, p)))(params)


def test_scanned_blocks_are_the_same_blocks():
    params, model = initial(SMALL), SMALL.clone(scan=True)
    params = jax.tree.map(lambda x: x * 5, params)  # so that attention is far from uniform
    chex.assert_trees_all_equal_shapes(jax.eval_shape(lambda: initial(model)), stacked(params))
    value, grads = gradients(SMALL, params)
    chex.assert_trees_all_close(gradients(model, stacked(params)), (value, stacked(grads)),
                                rtol=1e-4, atol=1e-6)


def test_recomputed_blocks_give_the_same_gradients():
    model = SMALL.clone(scan=True, dropout=0.2)
    params = initial(model)
    plain = gradients(model, params)
    again = gradients(model.clone(remat="dots_no_batch"), params)
    chex.assert_trees_all_close(plain, again, rtol=1e-5, atol=1e-7)
    once = SMALL.clone(layers=1, dropout=0.2)
    params = initial(once)
    chex.assert_trees_all_close(gradients(once, params),
                                gradients(once.clone(remat="full"), params), rtol=1e-5, atol=1e-7)


def test_recomputing_saves_memory():
    """Of six blocks with 128 tokens, most of what the backward pass needs can be recomputed."""
    def temporaries(remat):
        model = Transformer(V, layers=6, width=32, heads=2, block=128, scan=True, remat=remat)
        tokens = jnp.zeros((4, 128), int)
        params = jax.eval_shape(lambda: initial(model, tokens))
        step = jax.jit(jax.grad(lambda p: loss(model, p, tokens))).lower(params).compile()
        return step.memory_analysis().temp_size_in_bytes

    plain, some, full = map(temporaries, (None, "dots_no_batch", "full"))
    assert full < 0.5 * plain and full < some < plain


def test_bfloat16_is_close_and_its_gradients_finite():
    model = SMALL.clone(bias=True, dropout=0.1)
    params = initial(model)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    outputs = [jax.jit(lambda p: model.apply({"params": p}, TOKENS, train=False))(p)
               for p in (params, half)]
    assert outputs[1].dtype == jnp.bfloat16
    chex.assert_trees_all_close(outputs[0], outputs[1].astype(jnp.float32), atol=0.02)
    grads = [jax.jit(jax.grad(lambda p: loss(model, p)))(p) for p in (params, half)]
    chex.assert_tree_all_finite(grads)
    near = jax.tree.map(lambda a, b: np.abs(a - b.astype(jnp.float32)).max() / np.abs(a).max(),
                        *grads)
    assert max(jax.tree.leaves(near)) < 0.1, near


@pytest.mark.parametrize("transposed", [False, True])
def test_the_product_and_its_gradients(transposed):
    x, w, g = normals((2, 4, 6), (5, 6) if transposed else (6, 5), (2, 4, 5))
    plain = lambda x, w: x @ (w.T if transposed else w)  # noqa: E731
    expected, backward = jax.vjp(plain, x, w)
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)):
        x_, w_, g_ = (a.astype(dtype) for a in (x, w, g))
        y, pull = jax.vjp(lambda x, w: _matmul(x, w, transposed), x_, w_)
        assert y.dtype == dtype
        for a, b in zip((y, *pull(g_)), (expected, *backward(g)), strict=True):
            scale = float(jnp.abs(b).max())
            chex.assert_trees_all_close(a.astype(jnp.float32), b, atol=tolerance * scale)


def test_a_float32_sum_of_bfloat16_products_may_be_transposed():
    """XLA on CPU has no such product with a transposed result, and finds out when it runs."""
    x, w = normals((2, 4, 6), (6, 5), dtype=jnp.bfloat16)

    @jax.jit
    def used(x, w):
        y, pull = jax.vjp(lambda x, w: _matmul(x, w, False).astype(jnp.float32), x, w)
        dw = pull(y)[1].astype(jnp.float32)
        return y[0].T @ y[0], dw.T @ dw, dw.T

    chex.assert_tree_all_finite(used(x, w))
    chex.assert_tree_all_finite(jax.vmap(used)(jnp.stack([x, x]), jnp.stack([w, w])))


CAUSAL = np.tril(np.ones((1, 6, 6), bool))
SOME = np.random.default_rng(2).random((2, 6, 6)) < 0.5


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("allowed", [None, CAUSAL, SOME, SOME[:, :1] | (np.arange(6) == 0)])
def test_the_attention_and_its_gradients(dropout, allowed):
    q, k, v, g = normals(*[(2, 6, 3, 4)] * 4)
    factor = 2. * jax.random.bernoulli(KEYS["dropout"], shape=(6, 6, 6)) if dropout else None

    def plain(q, k, v):
        found = weights(jnp.einsum("bthd,bshd->bhts", q, k), 4,
                        None if allowed is None else allowed[:, None])
        found = found if factor is None else found * factor.reshape(found.shape)
        return jnp.einsum("bhts,bshd->bthd", found, v)

    expected, backward = jax.vjp(plain, q, k, v)
    y, pull = jax.vjp(lambda q, k, v: attend(q, k, v, allowed, factor), q, k, v)
    chex.assert_trees_all_close((y, pull(g)), (expected, backward(g)), atol=1e-5)
    if factor is None and allowed is not SOME:  # of which some rows see nothing
        chex.assert_trees_all_close(y, jax.nn.dot_product_attention(
            q, k, v, mask=None if allowed is None else jnp.asarray(allowed[:, None])), atol=1e-5)


def test_too_long_a_sequence_and_heads_that_do_not_divide():
    with pytest.raises(UserError, match="9 tokens in a sequence, but block=8"):
        initial(SMALL, jnp.zeros((1, T + 1), int))
    with pytest.raises(UserError, match="width=16 is not a multiple of heads=3"):
        SMALL.clone(heads=3)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def numpy_cell(kind, state, z):
    """Elman; Hochreiter & Schmidhuber with forget gates; Cho et al. as cuDNN has it."""
    if kind is simple:
        return (np.tanh(z),)
    a, b, c, d = np.split(z, 4)
    if kind is lstm:
        cell = sigmoid(b) * state[1] + sigmoid(a) * np.tanh(c)
        return sigmoid(d) * np.tanh(cell), cell
    new = np.tanh(c + sigmoid(a) * d)
    return ((1 - sigmoid(b)) * new + sigmoid(b) * state[0],)


CELLS = [(simple, 1, 1), (lstm, 4, 2), (gru, 4, 1)]
LENGTHS = np.array([7, 2, 0])


@pytest.mark.parametrize("kind,gates,count", CELLS)
@pytest.mark.parametrize("masked", [False, True])
def test_recurrence_is_the_plain_one(kind, gates, count, masked):
    kernel, bias, x, *state = normals((4 * gates, 9), (4 * gates,), (7, 5, 3), *[(4, 3)] * count)
    valid = np.arange(7)[:, None, None] < LENGTHS if masked else None
    h, last = recur(kind, kernel, bias, x, tuple(state), valid)
    now = tuple(np.asarray(s, np.float64) for s in state)
    for t, x_t in enumerate(np.asarray(x, np.float64)):
        z = np.asarray(kernel) @ np.concatenate([x_t, now[0]]) + np.asarray(bias)[:, None]
        new = numpy_cell(kind, now, z)
        now = new if valid is None else tuple(
            np.where(valid[t], a, b) for a, b in zip(new, now, strict=True))
        np.testing.assert_allclose(h[t], now[0], atol=1e-5)
    chex.assert_trees_all_close(last, tuple(s.astype(np.float32) for s in now), atol=1e-5)


@pytest.mark.parametrize("kind,gates,count", CELLS)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_the_recurrence(kind, gates, count, masked):
    valid = np.arange(7)[:, None, None] < LENGTHS if masked else None

    def plain(kernel, bias, x, *state):
        outputs = []
        for t, x_t in enumerate(x):
            new = kind(state, kernel @ jnp.concatenate([x_t, state[0]]) + bias[:, None])
            state = new if valid is None else tuple(
                jnp.where(valid[t], a, b) for a, b in zip(new, state, strict=True))
            outputs.append(state[0])
        return jnp.stack(outputs), state

    with jax.enable_x64():
        args = [np.asarray(a, np.float64) for a in normals(
            (4 * gates, 9), (4 * gates,), (7, 5, 3), *[(4, 3)] * count)]
        g = jax.tree.map(lambda x: np.random.default_rng(3).standard_normal(x.shape),
                         jax.eval_shape(plain, *args))
        expected = jax.vjp(plain, *args)[1](g)
        found = jax.vjp(lambda k, b, x, *state: recur(kind, k, b, x, state, valid), *args)[1](g)
        chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_gradient_of_the_lstm_is_the_derivative_of_its_formula():
    """Which is written out, and stands in both sides of the test above."""
    z, h, c, dh, dc = (np.asarray(a, np.float64) for a in normals((16, 3), *[(4, 3)] * 4))

    def value(z, h, c):
        new = numpy_cell(lstm, (h, c), z)
        return float((new[0] * dh + new[1] * dc).sum())

    with jax.enable_x64():
        (state, dz) = jax.vjp(lstm, (h, c), z)[1]((dh, dc))
    for place in [(0, 0), (5, 1), (9, 2), (15, 0)]:
        step = np.zeros_like(z)
        step[place] = 1e-6
        slope = (value(z + step, h, c) - value(z - step, h, c)) / 2e-6
        np.testing.assert_allclose(dz[place], slope, rtol=1e-6)
    step = np.zeros_like(c)
    step[1, 2] = 1e-6
    slope = (value(z, h, c + step) - value(z, h, c - step)) / 2e-6
    np.testing.assert_allclose(state[1][1, 2], slope, rtol=1e-6)
    assert not np.asarray(state[0]).any()


@dataclass(frozen=True, kw_only=True)
class Language(LossTask):
    model: Any = SMALL

    def loss(self, variables, batch, key, *, train):
        logits, mutable = self.apply(self.model, variables, batch["tokens"], key=key, train=train)
        assert logits.dtype == jnp.float32
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1],
                                                                 batch["tokens"][:, 1:])
        return Mean.of(losses.mean(1), batch["mask"]), Aux(mutable=mutable)


def stepped(task):
    """The parameters after one step of SGD, and the change of each."""
    batch, tx = {"tokens": TOKENS, "mask": jnp.ones(B, bool)}, optax.sgd(1.)
    before = jax.jit(lambda: task.init(jax.random.key(3), batch, tx))()
    after = jax.jit(lambda state: task.step(state, batch, tx))(before)[0]
    return after.params, jax.tree.map(jnp.subtract, after.params, before.params)


def test_a_task_may_recompute_its_loss():
    model = SMALL.clone(layers=1)
    plain = stepped(Language(model=model))
    for name in REMAT:
        again = stepped(replace(Language(model=model), remat=name))
        chex.assert_trees_all_close(plain, again, rtol=1e-5, atol=1e-6)


def test_gradients_in_bfloat16_are_near_and_kept_in_float32():
    model = SMALL.clone(layers=1)
    (params, exact), (_, half) = (stepped(Language(model=model, compute_dtype=dtype))
                                  for dtype in ("float32", "bfloat16"))
    assert {x.dtype for x in jax.tree.leaves((params, half))} == {jnp.dtype("float32")}
    assert jax.tree.reduce(max, jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max() / jnp.abs(a).max()), exact, half)) < 0.1


@pytest.mark.parametrize("platform,capability,flags,transformer,mlp", [
    ("tpu", None, "", "bfloat16", "bfloat16"),
    ("gpu", "8.0", "", "bfloat16", "bfloat16"),
    ("gpu", "7.5", "", "float32", "float32"),
    ("gpu", "gfx90a", "", "float32", "float32"),
    ("cpu", None, "flags : avx2 avx512_bf16 amx", "bfloat16", "float32"),
    ("cpu", None, "flags : avx2 avx512f", "float32", "float32"),
])
def test_the_type_that_is_fast(monkeypatch, platform, capability, flags, transformer, mlp):
    device = SimpleNamespace(platform=platform, compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(Path, "exists", lambda self: True)
    monkeypatch.setattr(Path, "read_text", lambda self: flags)
    assert (fast_dtype(SMALL), fast_dtype(MLP())) == (transformer, mlp)

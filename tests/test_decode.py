"""Generation: caches against none, sampling against its definitions, beams against exhaustion."""

import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl.decode import (
    NEVER,
    Continues,
    Sampling,
    beam_search,
    begin,
    generate,
    padded,
)
from jaxdl.models.ngram import NeuralNgram
from jaxdl.models.rnn import RNN
from jaxdl.models.transformer import Transformer

V = 7
GPT = Transformer(vocabulary=V, layers=2, width=16, heads=4, block=12)
MODELS = {
    "gpt": GPT, "gpt, scanned": GPT.clone(scan=True),
    "llama": GPT.clone(kv_heads=2, positions="rotary", norm="rms", unit="swiglu", tied=False),
    "one head of keys": GPT.clone(kv_heads=1, positions="sinusoidal", bias=True, unit="relu"),
    "lstm": RNN(vocabulary=V, width=8, layers=2, embedding=5),
    "gru": RNN(vocabulary=V, width=8, layers=1, embedding=5, cell="gru"),
    "simple": RNN(vocabulary=V, width=8, layers=2, embedding=5, cell="simple"),
    "n-gram": NeuralNgram(vocabulary=V, context=3, embedding=5, hidden=8),
}
GREEDY = Sampling(temperature=None)


def variables(model, seed=0):
    found = jax.jit(lambda: model.init(jax.random.key(seed), jnp.zeros((1, 4), int), train=False))()
    return jax.tree.map(lambda x: 3 * x, found)  # so that the next token is not always the same


def sampled(model, held, prompt, keys, *, length, tokens, sampling, stop):
    """Tokens [B, N] after prompts [B, P]."""
    @jax.jit
    def run(prompt, keys):
        lm = Continues(model, held)
        logits, cache = lm.prompted(prompt, length)
        return generate(lm.step, begin(logits, cache, prompt), keys, tokens=tokens,
                        sampling=sampling, stop=stop)[1]

    return run(jnp.asarray(prompt), keys)


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_changes_nothing(name):
    """Of prompts of several lengths, all at once: each token's logits and choice are those of the
    whole row without a cache."""
    model = MODELS[name]
    held = variables(model)
    prompts = [np.array([1, 2, 3, 4]), np.array([5]), np.array([6, 0])]
    lm, steps = Continues(model, held), 6
    plain = jax.jit(lambda tokens: model.apply(held, tokens, False))
    step = jax.jit(lm.step)
    logits, cache = jax.jit(lm.prompted, static_argnums=1)(padded(prompts), 10)
    rows = [list(p) for p in prompts]
    for _ in range(steps):
        for row, found in zip(rows, logits, strict=True):
            whole = np.asarray(plain(np.array([row + [-1] * (10 - len(row))])))[0, len(row) - 1]
            np.testing.assert_allclose(found, whole, atol=1e-5)
            assert found.argmax() == whole.argmax()
            row.append(int(whole.argmax()))
        logits, cache = step(cache, jnp.array([row[-1] for row in rows]))
    keys = jax.random.split(jax.random.key(0), 3)
    out = sampled(model, held, padded(prompts), keys, length=10, tokens=steps, sampling=GREEDY,
                  stop=())
    chex.assert_trees_all_equal(np.asarray(out), np.array([row[-steps:] for row in rows], np.int32))


@pytest.mark.parametrize("name", ["llama", "gru"])
def test_rows_do_not_know_of_each_other(name):
    """A row alone, and the same among others with a longer prompt, with the same key."""
    model = MODELS[name]
    held, keys = variables(model), jax.random.split(jax.random.key(3), 3)
    prompts = [np.array([3]), np.array([1, 2, 3, 4]), np.array([5, 6])]
    options = dict(length=10, tokens=6, sampling=Sampling(top_p=0.9), stop=(0,))
    together = sampled(model, held, padded(prompts), keys, **options)
    for i, prompt in enumerate(prompts):
        alone = sampled(model, held, padded([prompt]), keys[i:i + 1], **options)
        chex.assert_trees_all_equal(alone[0], together[i])


def test_tokens_that_the_tokenizer_does_not_have_are_not_drawn():
    model = MODELS["gru"]
    lm = Continues(model, variables(model), 3)
    logits, cache = lm.prompted(jnp.array([[1, 2]]), 4)
    assert logits.shape == (1, 3) == lm.step(cache, jnp.array([2]))[0].shape


# Sampling.

LOGITS = jnp.log(jnp.array([[0.5, 0.2, 0.2, 0.07, 0.03]]))
NONE = jnp.zeros((1, 5), bool)


@pytest.mark.parametrize("sampling,kept", [
    (Sampling(), [0, 1, 2, 3, 4]), (Sampling(top_k=1), [0]), (Sampling(top_k=9), [0, 1, 2, 3, 4]),
    (Sampling(top_p=0.4), [0]), (Sampling(top_p=0.), [0]), (Sampling(top_p=0.6), [0, 1]),
    (Sampling(top_p=0.95), [0, 1, 2, 3]), (Sampling(min_p=0.39), [0, 1, 2]),
    (Sampling(min_p=1.), [0]), (Sampling(top_k=4, top_p=0.98, min_p=0.1), [0, 1, 2, 3]),
    (Sampling(temperature=0.25, min_p=0.1), [0]),  # 0.4 ^ 4 is less than a tenth
])
def test_what_is_drawn(sampling, kept):
    filtered = np.asarray(sampling.filtered(LOGITS, NONE))[0]
    assert [i for i in range(5) if filtered[i] > NEVER / 2] == kept
    if sampling.temperature == 1.:
        np.testing.assert_allclose(filtered[kept], LOGITS[0, np.array(kept)])


def test_of_equal_tokens_only_so_many_are_kept_as_reach_p():
    """Quarters, which floats have exactly: two of them are a half."""
    filtered = Sampling(top_p=0.5).filtered(jnp.zeros((1, 4)), jnp.zeros((1, 4), bool))
    assert (np.asarray(filtered)[0] > NEVER / 2).tolist() == [True, True, False, False]


def test_draws_follow_the_probabilities():
    keys = jax.random.split(jax.random.key(0), 20_000)
    logits = jnp.repeat(LOGITS, len(keys), 0)
    seen = jnp.zeros(logits.shape, bool)
    counts = np.bincount(Sampling(temperature=0.5, top_k=3).draw(logits, seen, keys), minlength=5)
    expected = np.array([0.25, 0.04, 0.04, 0, 0]) / 0.33
    np.testing.assert_allclose(counts / len(keys), expected, atol=0.012)
    assert (Sampling(temperature=None).draw(logits, seen, keys) == 0).all()


def test_the_penalty_of_repetition():
    logits, seen = jnp.array([[2., -1., 0.5]]), jnp.array([[True, True, False]])
    found = Sampling(repetition_penalty=2.).filtered(logits, seen)
    np.testing.assert_allclose(found, [[1., -2., 0.5]])


def test_a_penalty_counts_the_prompt_and_what_was_drawn():
    """Where all logits are alike in a step, only a strong penalty keeps tokens apart."""
    step = lambda cache, token: (jnp.ones((1, 5)), cache)  # noqa: E731
    going = begin(jnp.ones((1, 5)), 0, jnp.array([[3, -1]]))
    assert np.asarray(going.seen).tolist() == [[False, False, False, True, False]]
    _, out = generate(step, going, jax.random.split(jax.random.key(0), 1), tokens=4,
                      sampling=Sampling(temperature=None, repetition_penalty=100.))
    assert out.tolist() == [[0, 1, 2, 4]]


def test_generation_stops_and_goes_on():
    """A counter: after token t comes t + 1. Rows stop at 4; what is drawn in two parts is what is
    drawn at once."""
    def step(cache, token):
        return jax.nn.one_hot(token + 1, 8) * 9, cache + 1

    going = begin(jax.nn.one_hot(jnp.array([1, 3, 0]), 8) * 9, 0, jnp.zeros((3, 1), int))
    keys = jax.random.split(jax.random.key(0), 3)
    options = dict(sampling=GREEDY, stop=(4,))
    after, out = generate(step, going, keys, tokens=9, **options)
    assert out.tolist() == [[1, 2, 3, 4, *[-1] * 5], [3, 4, *[-1] * 7], [0, 1, 2, 3, 4, *[-1] * 4]]
    assert int(after.cache) == 5  # and not nine steps
    middle, first = generate(step, going, keys, tokens=2, **options)
    _, second = generate(step, middle, keys, tokens=7, **options)
    assert np.concatenate([first, second], 1).tolist() == out.tolist()


# Beams.


def table_step(table):
    """A model whose next logits are those of the last token and of how many there are."""
    def step(cache, token):
        logits = table[jnp.minimum(cache["n"], len(table) - 1), token]
        return logits, {"n": cache["n"] + 1}
    return step


def exhaustive(first, table, tokens, stop, alpha):
    """All sequences of a row with their scores, the best first."""
    log = lambda x: np.asarray(jax.nn.log_softmax(jnp.asarray(x, jnp.float32)))  # noqa: E731
    found, size = [], len(first)
    for n in range(1, tokens + 1):
        for row in itertools.product(range(size), repeat=n):
            if any(t in stop for t in row[:-1]) or (n < tokens and row[-1] not in stop):
                continue
            p = log(first)[row[0]]
            for i in range(1, n):
                p += log(table[min(i - 1, len(table) - 1), row[i - 1]])[row[i]]
            found.append((p / ((5 + n) / 6) ** alpha, row))
    return sorted(found, key=lambda x: -x[0])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.sampled_from([0., 0.6, 1.]))
def test_a_wide_beam_is_exhaustive(seed, alpha):
    draw, size, tokens, stop = np.random.default_rng(seed), 3, 3, (0,)
    table = jnp.asarray(3 * draw.standard_normal((2, size, size)), jnp.float32)
    first = jnp.asarray(3 * draw.standard_normal((2, size)), jnp.float32)
    out, score = WIDE(first, table, alpha)
    for row in range(2):
        expected = exhaustive(first[row], table, tokens, stop, alpha)[:4]
        np.testing.assert_allclose(score[row], [s for s, _ in expected], rtol=1e-5, atol=1e-5)
        for found, (s, sequence) in zip(out[row].tolist(), expected, strict=True):
            if not any(math.isclose(s, other, abs_tol=1e-4) for other, x in expected
                       if x != sequence):
                assert found == [*sequence, *[-1] * (tokens - len(sequence))]


@jax.jit
def WIDE(first, table, alpha):
    return beam_search(table_step(table), {"n": jnp.zeros(2, jnp.int32)}, first, beams=27, tokens=3,
                       stop=(0,), alpha=alpha, best=4)


def narrowing(first, table, beams, tokens, stop, alpha):
    """Sutskever et al. (2014), section 3.2, one hypothesis at a time, to the end: what has ended
    leaves the beam, which so becomes narrower."""
    log = lambda x: np.asarray(jax.nn.log_softmax(jnp.asarray(x, jnp.float32)))  # noqa: E731
    live, ended = [(0., ())], []
    for n in range(tokens):
        grown = []
        for score, row in live:
            log_p = log(first if n == 0 else table[min(n - 1, len(table) - 1), row[-1]])
            grown += [(score + p, (*row, t)) for t, p in enumerate(log_p)]
        live, width = [], beams - len(ended)
        for score, row in sorted(grown, key=lambda x: -x[0])[:width]:
            if row[-1] in stop or len(row) == tokens:
                ended.append((score / ((5 + len(row)) / 6) ** alpha, row))
            else:
                live.append((score, row))
    return sorted(ended, key=lambda x: -x[0])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.sampled_from([0., 0.6, 2.]))
def test_a_narrow_beam_is_that_of_the_paper(seed, alpha):
    draw = np.random.default_rng(seed)
    table = jnp.asarray(2 * draw.standard_normal((2, 4, 4)), jnp.float32)
    first = jnp.asarray(2 * draw.standard_normal((1, 4)), jnp.float32)
    out, score = NARROW(first, table, alpha)
    expected = narrowing(first[0], table, 3, 5, (0,), alpha)
    np.testing.assert_allclose(score[0], [s for s, _ in expected], rtol=1e-5, atol=1e-5)
    assert out[0].tolist() == [[*row, *[-1] * (5 - len(row))] for _, row in expected]


@jax.jit
def NARROW(first, table, alpha):
    return beam_search(table_step(table), {"n": jnp.zeros(1, jnp.int32)}, first, beams=3, tokens=5,
                       stop=(0,), alpha=alpha, best=3)


@pytest.mark.parametrize("alpha", [0., 1.])
def test_one_beam_is_greedy(alpha):
    model = MODELS["llama"]
    held, keys = variables(model, 1), jax.random.split(jax.random.key(0), 4)
    lm, prompt = Continues(model, held), jnp.arange(4)[:, None] + 1
    greedy = sampled(model, held, prompt, keys, length=9, tokens=8, sampling=GREEDY, stop=(0,))
    logits, cache = lm.prompted(prompt, 9)
    one, _ = beam_search(lm.step, cache, logits, beams=1, tokens=8, stop=(0,), alpha=alpha,
                         axes=lm.axes(cache))
    chex.assert_trees_all_equal(one[:, 0], greedy)
    assert len({tuple(row) for row in greedy.tolist()}) > 1


@pytest.mark.parametrize("name", ["gpt, scanned", "lstm"])
def test_beams_carry_the_caches_of_their_hypotheses(name):
    """The score of what is found is the probability that the model gives it without a cache."""
    model = MODELS[name]
    held = variables(model, 2)
    lm, prompt = Continues(model, held), jnp.array([[1, 2, -1], [3, 4, 5]])
    logits, cache = lm.prompted(prompt, 9)
    out, score = beam_search(lm.step, cache, logits, beams=4, tokens=6, stop=(), best=4,
                             axes=lm.axes(cache))
    for row in range(2):
        asked = prompt[row][prompt[row] >= 0]
        assert len({tuple(x) for x in out[row].tolist()}) == 4
        for tokens, s in zip(out[row], score[row], strict=True):
            whole = jnp.concatenate([asked, tokens])[None]
            log_p = jax.nn.log_softmax(model.apply(held, whole, False)[0])
            own = jnp.take_along_axis(log_p[len(asked) - 1:-1], tokens[:, None], 1).sum()
            np.testing.assert_allclose(s, own, atol=1e-4)
        assert (np.diff(score[row]) <= 0).all()


def test_the_search_ends_early_only_when_nothing_better_can_come():
    """Token 0 ends with probability 0.6 at once. Without a penalty nothing can beat that: one step.
    With one, a long sequence that is nearly certain does, though it looks worse at first."""
    first = jnp.log(jnp.array([[0.6, 0.4]]))
    table = jnp.log(jnp.array([[[0.5, 0.5], [1e-6, 1 - 1e-6]]]))
    steps = []

    def step(cache, token):
        jax.debug.callback(lambda: steps.append(1))
        return table[0, token], cache

    search = lambda alpha: beam_search(  # noqa: E731
        step, {"n": jnp.zeros(1)}, first, beams=2, tokens=12, stop=(0,), alpha=alpha)
    out, score = search(0.)
    jax.effects_barrier()
    assert out[0, 0].tolist() == [0, *[-1] * 11] and len(steps) == 1
    np.testing.assert_allclose(score, math.log(0.6), rtol=1e-5)
    out, score = search(2.)
    assert out[0, 0].tolist() == [1] * 12
    np.testing.assert_allclose(score, math.log(0.4) / (17 / 6) ** 2, rtol=1e-3)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_token_is_written_into_the_cache_where_it_is(rows):
    """Generation needs no memory for a second cache, which it would copy for each token."""
    model = GPT.clone(block=2_048)
    held = variables(model)
    cache = model.start(rows, model.block)

    def run(cache, keys):
        lm = Continues(model, held)
        logits = jnp.zeros((rows, V))
        return generate(lm.step, begin(logits, cache, jnp.full((rows, 1), -1)), keys, tokens=3)[0]

    compiled = jax.jit(run, donate_argnums=0).lower(
        cache, jax.random.split(jax.random.key(0), rows)).compile()
    size = sum(x.nbytes for x in jax.tree.leaves(cache))
    assert compiled.memory_analysis().temp_size_in_bytes < size / 4

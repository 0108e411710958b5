"""BERT: its published size, what its tokens see, and the tokens that are hidden from it."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.data.text import TextFile
from jaxdl.data.tokenizers import BPE, OfCharacters
from jaxdl.errors import UserError
from jaxdl.models.bert import Bert
from jaxdl.pictures import Material, Texts
from jaxdl.task import named
from jaxdl.tasks import masked_language
from jaxdl.tasks.masked_language import MaskedLanguageModel
from tests.tiny import state_of

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
                                     {"output": "class", "scan": True},
                                     {"positions": "rotary", "norm_after": False}])
def test_padding_and_the_batch_change_nothing(options):
    model = SMALL.clone(**options)
    held = variables(model)
    held = jax.tree.map(lambda x: 3 * x, held)
    apply = jax.jit(lambda rows: model.apply(held, rows, False))
    both = apply(ROWS)
    alone = apply(ROWS[1:, :3])
    wide = apply(np.pad(ROWS, ((0, 0), (0, 2)), constant_values=-1))
    if model.output == "class":
        assert both.shape == (2, 2)
        chex.assert_trees_all_close(alone[0], both[1], atol=1e-5)
        chex.assert_trees_all_close(wide, both, atol=1e-5)
    else:
        assert both.shape == (2, 6, V if model.output == "tokens" else 3)
        chex.assert_trees_all_close(alone[0], both[1, :3], atol=1e-5)
        chex.assert_trees_all_close(wide[:, :6][ROWS >= 0], both[ROWS >= 0], atol=1e-5)
    other = ROWS.copy()
    other[0, 5] = 9
    assert np.abs(apply(other)[0] - both[0]).max() > 1e-4  # all see all


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
    rows = np.random.default_rng(0).integers(0, 999, (400, 100))
    rows[:200, 40:] = -1
    rows[0, 1:] = -1
    given, places, target = map(np.asarray, task.hide(batch(rows, np.arange(400)),
                                                      jax.random.key(1)))
    assert places.shape == target.shape == (400, 15)
    assert list((target >= 0).sum(1)[[0, 1, 200]]) == [1, 6, 15]
    asked = np.zeros(rows.shape, bool)
    for i, (row, wanted) in enumerate(zip(places, target, strict=True)):
        assert len(set(row)) == 15
        asked[i, row[wanted >= 0]] = True
    own = np.take_along_axis(rows, places, 1)[target >= 0]
    assert (own == target[target >= 0]).all()
    assert (given[~asked] == rows[~asked]).all()
    masked, same = (given[asked] == 999).mean(), (given[asked] == rows[asked]).mean()
    np.testing.assert_allclose([masked, same], [0.8, 0.1], atol=0.015)
    assert len(np.unique(given[asked])) > 200
    assert np.ptp(asked[200:].sum(0)) < 50  # each place as often as another: 30 times


def test_more_than_all_tokens_cannot_be_hidden():
    with pytest.raises(UserError, match=r"hidden=101 percent of the tokens; expected 1 to 100\.$"):
        MaskedLanguageModel(model=SMALL, hidden=101)


def test_a_row_without_tokens_is_asked_of_nothing():
    task = MaskedLanguageModel(model=SMALL)
    given, _, target = task.hide(batch(np.full((1, 6), -1), [0]), jax.random.key(1))
    assert (np.asarray(given) == -1).all() and (np.asarray(target) == -1).all()


@pytest.mark.parametrize("output", ["tokens", "labels"])
def test_some_places_have_the_logits_that_all_have(output):
    model, places = SMALL.clone(output=output), np.array([[4, 0], [2, 1]])
    held = variables(model)
    every, some = jax.jit(lambda: (model.apply(held, ROWS, False),
                                   model.apply(held, ROWS, False, places=places)))()
    chex.assert_trees_all_close(some, np.take_along_axis(every, places[..., None], 1), atol=1e-6)


def test_an_example_is_evaluated_alike_in_any_batch():
    task = MaskedLanguageModel(model=SMALL, hidden=50)
    state = state_of(task, batch(ROWS, [4, 7]))
    evaluate = jax.jit(task.evaluate)
    both = evaluate(state, batch(ROWS, [4, 7]))
    each = [evaluate(state, batch(ROWS[i:i + 1], [n])) for i, n in enumerate((4, 7))]
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(both[name].total, sum(e[name].total for e in each), rtol=1e-5)
    assert float(both["loss"].count) > 1
    other = evaluate(state, batch(ROWS, [5, 8]))
    assert float(other["loss"].total) != float(both["loss"].total)


def test_a_report_shows_what_it_fills_in(tmp_path):
    (tmp_path / "text.txt").write_text("abcdefghij" * 40)
    data = TextFile(path=str(tmp_path / "text.txt"), block=10)
    task = MaskedLanguageModel(model=SMALL.clone(block=10), hidden=30)
    state = state_of(task, batch(data.open("test").read(np.arange(2))["tokens"], [0, 1]))
    picture, = task.pictures(state, Material(source=data.open, split="test", batch_size=3,
                                             data=data))
    assert isinstance(picture, Texts)
    assert len(picture.texts) == 4
    for number, parts in enumerate(picture.texts[:3]):  # the last row may be shorter
        assert [text[0] for text, _ in parts] == list("abcdefghij"), number
        hidden = [text for text, shade in parts if shade]
        assert len(hidden) == 3
        # It has eleven tokens, the last of which is the mask.
        assert all(text[1:] == "" or re.fullmatch(r" \[([a-j]|the mask)\]", text[1:])
                   for text in hidden)
        assert all(len(text) == 1 for text, shade in parts if not shade)


def test_the_blank_before_a_hidden_piece_is_hidden_with_it(monkeypatch):
    pytest.importorskip("tokenizers", reason="pip install 'jaxdl[text]'")
    tokenizer = BPE(vocabulary=270).fit(["in the beginning God"])
    asked = []
    monkeypatch.setattr(masked_language, "encoded", lambda tokenizer, text, least: (
        asked.append(text), tokenizer.encode(text))[1])
    model = SMALL.clone(vocabulary=tokenizer.size + 1)
    held = jax.jit(lambda: model.init(jax.random.key(0), ROWS % 4, train=False))()
    MaskedLanguageModel(model=model).teller(held, tokenizer, None)(["in [MASK] God"], 1)
    assert asked == ["in", " God"]


def test_a_text_is_filled_in():
    model = SMALL.clone(vocabulary=4)
    held = jax.jit(lambda: model.init(jax.random.key(0), ROWS % 4, train=False))()
    held = jax.tree.map(lambda x: 9 * x, held)  # so that no two tokens are as likely
    tell = MaskedLanguageModel(model=model).teller(held, OfCharacters((), "abc"), None)
    softmax = jax.jit(lambda rows: jax.nn.softmax(model.apply(held, rows, False)))
    texts = ["ab[MASK]a", "[MASK]b[MASK]"]
    for text, told, row in zip(texts, tell(texts, 2), [[0, 1, 3, 0], [3, 1, 3, -1]], strict=True):
        found = np.asarray(softmax(np.array([row])))[0]
        places = [i for i, token in enumerate(row) if token == 3]
        assert [line.of for line in told] == [text, "[MASK] 2"][:len(places)]
        for place, line in zip(places, told, strict=True):
            best = np.argsort(-found[place, :3])[:2]  # not the mask itself
            assert [label for label, _ in line.labels] == ["abc"[i] for i in best]
            np.testing.assert_allclose([p for _, p in line.labels], found[place, best], rtol=1e-4)


@pytest.mark.parametrize(("text", "said"), [
    ("abc", r"--prompt='abc': expected \[MASK\] where a word is to be filled in\."),
    ("d[MASK]", r"--prompt='d': 'd', character 1.*"),
    ("aaaabbbb[MASK]", r".*\[MASK\]': 9 tokens; the network sees 8 at once\.")])
def test_a_text_that_cannot_be_filled_in(text, said):
    tell = MaskedLanguageModel(model=SMALL).teller({}, OfCharacters((), "abc"), None)
    with pytest.raises(UserError) as raised:
        tell([text], 1)
    assert re.fullmatch(said, str(raised.value))

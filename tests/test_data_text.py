"""Tokenizers, and texts as rows: nothing lost, nothing twice, and what is wrong in one line."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl.data import text
from jaxdl.data.source import assemble
from jaxdl.data.text import END, Lines, Stream, TextFile, check_whole, place, read_text
from jaxdl.data.tokenizers import (
    BPE,
    FILE,
    Bytes,
    Characters,
    Saved,
    Words,
    encode_all,
    load,
    pieces,
    saved,
)
from jaxdl.errors import UserError

PROSE = ("It is a truth universally acknowledged, that a single man in possession of a good "
         "fortune, must be in want of a wife.\nHowever little known the feelings…\n") * 20
KINDS = [Characters(), Bytes(), BPE(vocabulary=300), Words(vocabulary=30, lower=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("special", [(), ("<end>", "<start>")])
def test_tokenizers_come_back_from_a_file(kind, special, tmp_path):
    pytest.importorskip("tokenizers", reason="pip install 'jaxdl[text]'")
    fitted = kind.fit([PROSE, "wife"], special)
    tokens = fitted.encode(PROSE)
    assert tokens.dtype == np.int32 and fitted.special[:len(special)] == special
    assert len(fitted.special) <= tokens.max() + 1 <= fitted.size
    text = fitted.decode([*range(len(special)), *tokens, -1])  # special and absent ones are nothing
    if isinstance(kind, Words):
        assert text.startswith("it is a truth universally acknowledged , that a single man")
        assert fitted.encode("zebra").tolist() == [fitted.special.index("<unknown>")]
    else:
        assert text == PROSE
    path = tmp_path / FILE
    path.write_bytes(saved(fitted))
    again = load(path)
    assert again == fitted and again.encode(PROSE).tolist() == tokens.tolist()
    assert saved(kind.fit([PROSE, "wife"], special)) == saved(fitted)  # always the same one
    assert again.exact == fitted.exact == (not isinstance(kind, Words))


@pytest.mark.parametrize("kind", [Bytes(), BPE(vocabulary=300), Words(vocabulary=30)])
def test_no_text_has_a_special_token(kind):
    pytest.importorskip("tokenizers", reason="pip install 'jaxdl[text]'")
    text = "a <end> of it"
    fitted = kind.fit([f"{text} {PROSE}"], ("<end>",))
    tokens = fitted.encode(text)
    assert 0 not in tokens and tokens.tolist() == encode_all(fitted, [text])[0].tolist()
    assert not fitted.exact or fitted.decode(tokens) == text


@settings(max_examples=30, deadline=None)
@given(st.text())
def test_any_text_comes_back(some):
    for kind in (Bytes(), Characters()):
        fitted = kind.fit([some], ("<end>",))
        assert fitted.decode(fitted.encode(some)) == some


def test_half_of_a_character_is_a_character():
    fitted = Characters().fit(["a\ud83d"])
    assert fitted.decode(fitted.encode("\ud83da")) == "\ud83da"
    with pytest.raises(UserError, match=r"x, line 3: character 2 is '\\ud83d', half of one"):
        check_whole("a\ud83d", "x, line 3")


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_make_the_text_that_all_tokens_have(kind):
    pytest.importorskip("tokenizers", reason="pip install 'jaxdl[text]'")
    fitted = kind.fit([PROSE], ("<end>",))
    tokens = [0, *fitted.encode("a man… of wife")]
    found = pieces(fitted, tokens)
    assert len(found) == len(tokens) and found[0] == ""
    assert "".join(found) == fitted.decode(tokens)
    if isinstance(kind, Words):
        assert found[:3] == ["", "a", " man"]
    assert pieces(fitted, []) == []


def test_characters_that_are_none_of_the_vocabulary():
    fitted = Characters().fit(["abc"])
    with pytest.raises(UserError, match=r"^'x', character 3 of 'abxc': none of the 3 of the token"):
        fitted.encode("abxc")


@pytest.mark.parametrize("content,said", [
    ("{", "not a tokenizer"), ("[]", "not a tokenizer"), ('{"special": []}', "not a tokenizer"),
    ('{"special": [], "kind": "magic"}', "kind='magic'"),
    ('{"special": [], "kind": "characters", "characters": "ba"}', "not in order"),
    ('{"special": [], "kind": "pieces", "tokenizers": {"model": {"type": "BPE"}}}', "not a tok"),
])
def test_files_that_are_no_tokenizer(content, said, tmp_path):
    pytest.importorskip("tokenizers", reason="pip install 'jaxdl[text]'")
    path = tmp_path / FILE
    path.write_text(content)
    with pytest.raises(UserError, match=said) as raised:
        load(path)
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "absent.json")


def test_a_tokenizer_of_another_run(tmp_path):
    fitted = Bytes().fit([""], ("<end>",))
    (tmp_path / FILE).write_bytes(saved(fitted))
    assert Saved(path=str(tmp_path)).fit(["other"], ("<end>",)) == fitted
    assert Saved(path=str(tmp_path / FILE)).fit(["other"]) == fitted
    with pytest.raises(UserError, match="are <end>; expected <start> first"):
        Saved(path=str(tmp_path)).fit(["other"], ("<start>",))
    with pytest.raises(UserError, match="absent: there is no such run"):
        Saved(path=str(tmp_path / "absent")).fit([])


def test_a_tokenizer_that_is_published(tmp_path):
    library = pytest.importorskip("tokenizers", reason="pip install 'jaxdl[text]'")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    made.train_from_iterator([PROSE], library.trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet()))
    path = tmp_path / "published.json"
    made.enable_truncation(4)
    made.enable_padding(length=9)
    made.save(str(path))
    made.no_truncation()
    made.no_padding()
    found = Saved(path=str(path)).fit([])
    assert found.special == () and found.size == 280
    assert found.encode(PROSE).tolist() == made.encode(PROSE).ids
    assert found.decode(found.encode(PROSE)) == PROSE
    (tmp_path / FILE).write_bytes(saved(found))
    assert load(tmp_path / FILE) == found
    with pytest.raises(UserError, match="tokens of this tokenizer are none; expected <end>"):
        Saved(path=str(path)).fit([], ("<end>",))


def test_vocabularies_that_are_too_small():
    pytest.importorskip("tokenizers", reason="pip install 'jaxdl[text]'")
    with pytest.raises(UserError, match="vocabulary=100: expected at least 257"):
        BPE(vocabulary=100).fit(["a"], ("<end>",))
    with pytest.raises(UserError, match="vocabulary=2: expected more than the 2 special"):
        Words(vocabulary=2).fit(["a"], ("<end>",))


# Streams.


def rows(source, index):
    batch = source.read(np.asarray(index))
    return batch["tokens"], batch["next"]


@pytest.mark.parametrize("size,block", [(21, 5), (20, 5), (23, 5), (6, 5), (2, 5)])
def test_evaluation_predicts_every_token_once(size, block):
    source = Stream(stored=np.arange(100, 100 + size), block=block)
    tokens, following = rows(source, range(source.size))
    assert tokens.shape == following.shape == (source.size, block)
    kept = following >= 0
    assert following[kept].tolist() == list(range(101, 100 + size))
    assert (following[kept] == tokens[kept] + 1).all() and (tokens[~kept] == -1).all()


def test_an_epoch_sees_each_token_once_and_the_next_one_cuts_elsewhere():
    source = Stream(stored=np.arange(1_000), block=16)
    index = source.index(7, 0, 3 * source.size)
    assert index.dtype == np.int32
    begins = []
    for epoch in np.split(index, 3):
        _, following = rows(source, epoch)
        found = np.sort(following[following >= 0])
        begins.append(int(found[0]))
        assert found.tolist() == list(range(found[0], 1_000))
        assert found[0] == 1 + place(7, len(begins) - 1, 16)
    assert len(set(begins)) == 3
    assert (source.index(7, 40, 30) == index[40:70]).all()  # any position at once
    assert (source.index(8, 0, 60) != index[:60]).any()


def test_documents_of_a_stream():
    source = Stream(stored=np.arange(12), block=6, starts=np.array([0, 4, 5, 9]))
    found = source.read(np.arange(2))["segment"]
    assert found.tolist() == [[0, 0, 0, 0, 1, 2], [0, 0, 0, 1, 1, 1]]


def test_a_text_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeffab\r\nba ".encode() * 100)
    data = TextFile(path=str(path), block=8, train=0.75)
    data.prepare()
    assert data.vocabulary == 5  # \ufeff within the text is a character, at its beginning none
    train, test = data.open("train"), data.open("test")
    assert train.size == 66 and test.characters == 175 - 1
    batch = assemble(test, None, {**test.read(np.arange(2)), "index": np.arange(2),
                                  "mask": np.ones(2)}, jax.random.key(0))
    assert len(data.decode(batch["tokens"][0])) == 8
    assert data.fingerprint() != replace(data, block=4).fingerprint()
    assert replace(data, block=4).content is data.content  # what only cuts shares what was read
    short = replace(data, test_characters=20)
    assert short.open("test").characters == 19 and short.vocabulary == 5
    assert short.fingerprint() != data.fingerprint()
    assert list(json.loads(data.files()[FILE])) == ["kind", "special", "characters"]


@pytest.mark.parametrize("content,said", [
    (b"", "there is no text in it"), (b" \n ", "there is no text in it"),
    ("fünf\nGr\xfc\xdfe".encode("latin-1"), r"not UTF-8: byte 1, in line 1, is 0xfc"),
    (b"12345", r"the split 'train' has 4 tokens, fewer than a row of block=8"),
])
def test_texts_that_are_of_no_use(content, said, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as raised:
        TextFile(path=str(path), block=8, train=0.8).open("train")
    assert "\n" not in str(raised.value)


def test_a_text_with_more_places_than_ids(tmp_path, monkeypatch):
    path = tmp_path / "mine.txt"
    path.write_text("ab" * 100)
    monkeypatch.setattr(text, "IDS", 187)
    assert TextFile(path=str(path), block=7).open("train").size == 26  # of 180 tokens
    with pytest.raises(UserError, match="the split 'train' has 180 tokens; 179 can be told apart"):
        TextFile(path=str(path), block=8).open("train")


def test_the_line_of_a_wrong_byte(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(b"one\ntwo\n\x80")
    with pytest.raises(UserError, match="byte 8, in line 3, is 0x80"):
        read_text(path)


def test_a_folder_of_texts_and_paths_that_are_wrong(tmp_path):
    for name, content in (("b.txt", "second"), ("a.txt", "first"), ("c.md", "no")):
        (tmp_path / name).write_text(content)
    assert TextFile(path=str(tmp_path)).whole() == "first\nsecond"
    with pytest.raises(UserError, match=r"no such file or folder. Did you mean '.*a.txt'"):
        TextFile(path=str(tmp_path / "a.tx")).prepare()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.txt file"):
        TextFile(path=str(tmp_path / "empty")).prepare()
    with pytest.raises(UserError, match=r"no split 'tset', only 'train', 'test'. Did you mean"):
        TextFile(path=str(tmp_path), block=2).open("tset")


# Lines.


def test_lines_are_rows(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("Ada\nBo\n\nAda\n Cecilia \n" + "\n".join(f"x{i}" for i in range(7)))
    data = Lines(path=str(path), test=0.2)
    train, test = (data.open(s).arrays for s in ("train", "test"))
    texts = [data.decode(t) for part in (train, test) for t in part["tokens"]]
    assert sorted(texts) == sorted(["Ada", "Bo", "Cecilia", *[f"x{i}" for i in range(7)]])
    assert len(test["tokens"]) == 2 and data.longest == 8
    end = data.content.tokenizer.special.index(END)
    row = next(i for i, t in enumerate(train["tokens"]) if data.decode(t) == "Bo")
    assert train["tokens"][row].tolist() == [end, *data.content.tokenizer.encode("Bo"), *[-1] * 5]
    assert train["next"][row].tolist() == [*data.content.tokenizer.encode("Bo"), end, *[-1] * 5]
    with pytest.raises(UserError, match="'Cecilia' makes a row of 8 tokens, more than block=7"):
        for split in ("train", "test"):
            replace(data, block=7).open(split)
    with pytest.raises(UserError, match=r"2 different texts, of which test=0.9 leaves a split emp"):
        path.write_text("a\nb")
        Lines(path=str(path), test=0.9).open("train")

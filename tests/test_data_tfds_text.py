"""Texts of TFDS without TensorFlow: data sets made here, in the form of those of the catalogue."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdl.data.tfds_text import TfdsLabelledTexts, TfdsPairs, TfdsQuestions, TfdsText
from jaxdl.data.tokenizers import Bytes, Characters
from jaxdl.errors import DataMissing, UserError

CONTEXT = "The Nile is long, says Ötzi."


def fabricate(directory: Path, name: str, features: Any, splits: dict[str, list[Any]]) -> None:
    """Prepares a data set of these examples, without TensorFlow."""
    import tensorflow_datasets as package

    class Fabricated(package.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = package.core.Version("1.0.0")

        def _info(self) -> Any:
            return package.core.DatasetInfo(
                builder=self, features=features(package.features), disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: self._generate_examples(found) for split, found in splits.items()}

        def _generate_examples(self, found: Any) -> Any:
            yield from enumerate(found)

    Fabricated.name = name
    Fabricated(data_dir=directory, file_format="array_record").download_and_prepare()


def test_one_long_text(tmp_path: Path) -> None:
    fabricate(tmp_path, "plays", lambda f: f.FeaturesDict({"text": f.Text()}),
              {"train": [{"text": "Ah, é!"}, {"text": "two"}], "test": [{"text": "three"}]})
    data = TfdsText(name="plays", directory=str(tmp_path), tokenizer=Characters(), block=4)
    data.prepare()
    assert data.content.texts == {"train": ["Ah, é!\n\ntwo"], "test": ["three"]}
    assert data.decode(data.open("train").read(np.array([1]))["tokens"][0]) == "é!\n\n"
    cut = TfdsText(name="plays", directory=str(tmp_path), test_split=None, train=0.5, block=4)
    assert cut.content.texts == {"train": ["Ah, é"], "test": ["!\n\ntwo"]}
    with pytest.raises(UserError, match=r"text='words': plays/1.0.0 has no such feature, only t"):
        TfdsText(name="plays", directory=str(tmp_path), text="words").open("train")
    with pytest.raises(UserError, match=r"no split 'rest' in plays/1.0.0, only 'train', 'test'"):
        TfdsText(name="plays", directory=str(tmp_path), test_split="rest").open("train")
    with pytest.raises(DataMissing, match=r"'other' is not in .*prepare it once: pip install"):
        TfdsText(name="other", directory=str(tmp_path)).prepare()


def test_texts_with_labels(tmp_path: Path) -> None:
    fabricate(tmp_path, "films", lambda f: f.FeaturesDict({
        "text": f.Text(), "label": f.ClassLabel(names=["neg", "pos"])}),
        {"train": [{"text": "bad", "label": 0}, {"text": "good", "label": 1}],
         "test": [{"text": "fine", "label": 1}]})
    data = TfdsLabelledTexts(name="films", directory=str(tmp_path), tokenizer=Bytes(), block=8)
    data.prepare()
    assert data.names == ("neg", "pos")
    source = data.open("test")
    assert source.read(np.array([0]))["label"] == 1
    assert data.decode(source.read(np.array([0]))["tokens"][0]) == "fine"
    with pytest.raises(UserError, match=r"label='text' of films/1.0.0 is not a class"):
        TfdsLabelledTexts(name="films", directory=str(tmp_path), label="text").open("train")
    with pytest.raises(UserError, match=r"text='label' of films/1.0.0 is not a text"):
        TfdsLabelledTexts(name="films", directory=str(tmp_path), text="label").open("train")
    with pytest.raises(UserError, match=r"the split 'train\[:0\]' of films/1.0.0 is empty"):
        TfdsLabelledTexts(name="films", directory=str(tmp_path), train_split="train[:0]").read()
    one = TfdsLabelledTexts(name="films", directory=str(tmp_path), labels=("only",))
    with pytest.raises(UserError, match="1 of the split 'train' has the label 1, and 1 are named"):
        one.open("train")


def test_pairs(tmp_path: Path) -> None:
    fabricate(tmp_path, "talks", lambda f: f.Translation(languages=["de", "en"]),
              {"train": [{"de": "Ja", "en": "Yes"}, {"de": "Nein", "en": "No"}],
               "test": [{"de": "Öl", "en": "Oil"}]})
    data = TfdsPairs(name="talks", directory=str(tmp_path), source="en", target="de",
                     tokenizer=Bytes(), longest=8)
    data.prepare()
    assert data.open("train").texts == [("Yes", "Ja"), ("No", "Nein")]  # type: ignore
    assert data.open("test").texts == [("Oil", "Öl")]  # type: ignore


def test_questions(tmp_path: Path) -> None:
    def features(f: Any) -> Any:
        return f.FeaturesDict({
            "id": f.Text(), "title": f.Text(), "context": f.Text(), "question": f.Text(),
            "answers": f.Sequence({"text": f.Text(), "answer_start": np.int32})})

    def asked(answers: list[tuple[str, int]]) -> dict[str, Any]:
        return {"id": "1", "title": "Nile", "context": CONTEXT, "question": "Which?",
                "answers": [{"text": text, "answer_start": start} for text, start in answers]}

    fabricate(tmp_path, "squat", features, {
        "train": [asked([("The Nile", 0), ("Nile", 4)]), asked([])],
        "validation": [asked([("Ötzi", 23)])]})
    data = TfdsQuestions(name="squat", directory=str(tmp_path), tokenizer=Characters(), block=64,
                         longest=10)
    data.prepare()
    question, = data.questions["train"]
    assert question.answers == ("The Nile", "Nile") and question.starts == ((0, 8), (4, 4))
    source: Any = data.open("test")
    start = int(source.arrays["start"][0].argmax())
    assert source.begins[0, start] == 23
    fabricate(tmp_path, "wrong", features, {
        "train": [asked([("Nile", 0)])], "validation": [asked([("Ötzi", 23)])]})
    with pytest.raises(UserError, match="example 0 of the split 'train': 'Nile' does not stand at"):
        TfdsQuestions(name="wrong", directory=str(tmp_path)).open("train")

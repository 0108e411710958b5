"""Every experiment builds, is recorded and rebuilt equal, matches its golden file, and trains.

After a wanted change of a default: JAXDL_UPDATE_GOLDEN=1 pytest tests/test_experiments.py
"""

import ast
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdl import cli, config, files, record, study, train, trajectories
from jaxdl.arena import Arena, OnePly
from jaxdl.data.demonstrations import DemonstrationFile, DemonstrationsOfRun
from jaxdl.data.digits import Digits
from jaxdl.data.few_labels import FewLabels
from jaxdl.data.folder import ImageFolder
from jaxdl.data.idx import FashionMnist
from jaxdl.data.labelled_text import LabelledFile, LabelledTexts
from jaxdl.data.mnist_sample import MnistSample
from jaxdl.data.moving_digits import MovingDigits
from jaxdl.data.pairs import PairFile, Pairs
from jaxdl.data.photographs import PhotographFolder, Photographs
from jaxdl.data.poisson import Poisson
from jaxdl.data.series import Series, SeriesFile
from jaxdl.data.spans import SpanTexts, SquadFile
from jaxdl.data.style import OnePicture, WithStyle
from jaxdl.data.tabular import Table
from jaxdl.data.text import Lines, LongText, TextFile
from jaxdl.data.tokenizers import Characters, Words
from jaxdl.data.two_digits import TwoDigits
from jaxdl.data.two_domains import TwoDomains
from jaxdl.envs.grid_world import GridWorld
from jaxdl.experiment import Best, Experiment, InitFrom, Mesh
from jaxdl.generative import SampleQuality, Samples
from jaxdl.models.cnn import CNN
from jaxdl.models.efficientnet import EfficientNet
from jaxdl.models.resnet import ResNet
from jaxdl.optimizer import Muon
from jaxdl.task import named
from jaxdl.tasks.adversarial import TRADES
from jaxdl.tasks.alphazero import AlphaZero
from jaxdl.tasks.autoencoder import Autoencoder
from jaxdl.tasks.behaviour_cloning import BehaviourCloning
from jaxdl.tasks.diffusion import Diffusion
from jaxdl.tasks.dqn import DQN
from jaxdl.tasks.flow import Flow
from jaxdl.tasks.gan import GAN
from jaxdl.tasks.image_translation import CycleGAN, Pix2Pix, Translated
from jaxdl.tasks.lora import LoRA
from jaxdl.tasks.pets import PETS
from jaxdl.tasks.pixels import Pixels
from jaxdl.tasks.plan import Plan
from jaxdl.tasks.ppo import PPO
from jaxdl.tasks.sac import SAC
from jaxdl.tasks.style import PaintedImage, StyleNetwork
from jaxdl.tasks.vae import VAE
from jaxdl.tasks.vq_vae import VQVAE, CodePrior
from tests.test_sac import Mirror

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "experiments").glob("*.py"))
NAMES = [p.stem for p in FILES]


def build(name: str) -> Experiment:
    return files.build(files.load(ROOT / "experiments" / f"{name}.py"))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_recorded_and_rebuilt_equal(name: str) -> None:
    experiment = build(name)
    assert isinstance(experiment, Experiment)
    rebuilt = config.from_json(json.loads(json.dumps(config.to_json(experiment))))
    assert rebuilt == experiment
    assert config.differences(rebuilt, experiment) == []


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_its_golden_file_says(name: str) -> None:
    path = ROOT / "tests" / "golden" / f"{name}.json"
    text = json.dumps(config.to_json(build(name)), indent=1) + "\n"
    if os.environ.get("JAXDL_UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text


@pytest.mark.parametrize("name", NAMES)
def test_the_trials_of_its_sweep_fit(name: str) -> None:
    module = files.load(ROOT / "experiments" / f"{name}.py")
    for trial in getattr(module, "sweep", list)():
        assert study.checked(files.build(module), trial, name) == trial


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_its_docstring_says_command_and_expectation(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"python launch.py --experiment={path.stem}" in text
    first = text.splitlines()[0]
    assert re.search(r"\d (%|nats|BLEU|ROUGE|bits|dB|bricks|of \d)|(MASE|BLEU|error) (of )?\d|"
                     r"Frechet distance|in %|return above -?\d|\d of \d+ games", first)
    assert re.search("accuracy|nats|MASE|BLEU|exact answers|ROUGE|frechet|PSNR|error|bits|style|"
                     "return|losses|wins|collision_free", text)
    assert len(path.read_text().splitlines()) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_every_leaf_is_a_flag(name: str) -> None:
    """Each leaf, given its own value on the command line, comes back as it was."""
    for path, leaf in config.leaves(build(name)):
        if leaf.value is None or leaf.value == ():
            continue
        value = leaf.value
        words = isinstance(value, tuple) and isinstance(value[0], str)
        text = (",".join(map(str, value)) if isinstance(value, tuple) and not words
                else str(value))
        command = cli.parse("show", name, [f"--{path}={text}"])
        assert command.typed == {path: value}, path
        assert command.experiment == command.original


def small(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The experiment with little to compute: the same structure, shallower and on few examples."""
    experiment = build(name)
    changes: dict[str, Any] = {"steps": 3, "batch_size": 16, "log_every": 1, "mesh": Mesh(data=1),
                               "best": Best()}
    changes |= {f"evals.{e}.every": 1_000 for e in experiment.evals}
    if experiment.init_from.path is not None:
        changes["init_from"] = InitFrom()
    model: Any = getattr(experiment.task, "model", None)
    if isinstance(model, ResNet) and model.depth == 20:
        changes["task.model.depth"] = 8
    if isinstance(model, EfficientNet):
        path = "task.task.task.model" if isinstance(experiment.task, LoRA) else "task.task.model"
        changes[path] = CNN(channels=(2, 3), dense=(4,), classes=model.classes, batch_norm=True)
    if isinstance(experiment.optimizer, Muon):
        changes["optimizer.iterations"] = 1
    if isinstance(experiment.task, TRADES):
        changes |= {"task.attack.steps": 2, "evals.attacked.attack.steps": 2,
                    "task.task.model.channels": (2, 2), "task.task.model.dense": (4,)}
    if isinstance(experiment.task, LoRA):
        changes |= {"task.targets": ("conv2/kernel",), "task.rank": 2}
    halves = {"encoder.channels": (2, 2), "decoder.channels": (2, 2)}
    players = {"generator.channels": (4, 4), "discriminator.channels": (4, 4)}
    seen = {"features": CNN(channels=(2, 3)), "content_layers": ("conv2",),
            "style_layers": ("conv1",)}
    sizes: dict[str, Any] = {
        Autoencoder: {"encoder.channels": (8, 8)}, VAE: {**halves, "latents": 2},
        VQVAE: {**halves, "codes": 4},
        CodePrior: {**{f"vq.{name}": value for name, value in halves.items()}, "vq.codes": 4,
                    "model.levels": 4, "model.width": 2, "model.layers": 1},
        Flow: {"model.scales": 1, "model.width": 2}, Pixels: {"model.width": 2, "model.layers": 1},
        Diffusion: {"model.channels": (8, 8), "model.attention": 2, "sample_steps": 2},
        GAN: players, Pix2Pix: players, CycleGAN: players, PaintedImage: seen,
        StyleNetwork: {**seen, "model.channels": (2, 2), "model.blocks": 1},
        PPO: {"env": GridWorld(limit=4), "model.outputs": 4, "horizon": 4},
        DQN: {"env": GridWorld(limit=4), "model.actions": 4, "horizon": 4, "warmup": 1},
        AlphaZero: {"model.widths": (4,), "simulations": 2, "horizon": 2, "updates": 1,
                    "sample": 8},
        PETS: {"env": Mirror(), "model.outputs": 2, "model.widths": (4,), "model.members": 2,
               "horizon": 4, "updates": 1, "warmup": 1, "ahead": 2, "candidates": 4, "elites": 2,
               "rounds": 1},
        SAC: {"env": Mirror(), "model.widths": (4,), "horizon": 4, "updates": 1, "warmup": 1},
        BehaviourCloning: {"env": GridWorld(limit=4), "model.classes": 4},
        Plan: {"scenes.discs": 3, "guesses": 3, "steps": 16},
    }.get(type(experiment.task), {})
    changes |= {f"task.{name}": value for name, value in sizes.items()}
    kept = {name: e for name, e in experiment.evals.items()
            if not isinstance(e, SampleQuality | Translated)}  # they need a classifier's run
    measured = {name: e for name, e in kept.items() if not isinstance(e, Samples)}
    changes["evals"] = {name: dataclasses.replace(e, games=2, opponents={"one_ply": OnePly()})
                        if isinstance(e, Arena) else e for name, e in (measured or kept).items()}
    if isinstance(experiment.data, FashionMnist):
        changes["data.directory"] = str(fabricated_idx(tmp_path / "idx"))
    elif isinstance(experiment.data, TwoDomains):
        changes["data.data.directory"] = str(fabricated_idx(tmp_path / "idx"))
    elif isinstance(experiment.data, WithStyle):
        picture = str(next(fabricated_pictures(tmp_path / "style", ("a",)).rglob("*.png")))
        changes |= {"data.data": OnePicture(picture=picture, size=16, mean=(0.5,) * 3,
                                            std=(0.5,) * 3), "data.style": picture,
                    "data.size": 16}
        if isinstance(experiment.task, PaintedImage):
            changes["batch_size"] = 1
    elif isinstance(experiment.data, MovingDigits):
        changes |= {"data.data": Digits(size=8, channels=1), "data.videos": 20, "data.size": 8,
                    "data.frames": 5, "task.model.channels": (2,)}
    elif isinstance(experiment.data, Photographs):
        folder = fabricated_pictures(tmp_path / "photographs", ("a",))
        changes["data"] = PhotographFolder(path=str(folder), size=18, test_percent=50)
        changes |= {"task.model.channels": (2, 2), "task.model.kernels": (3, 3, 3)}
    elif isinstance(experiment.data, ImageFolder):
        changes["data.path"] = str(fabricated_pictures(tmp_path / "pictures", experiment.data.only))
        changes["data.size"] = 32
    elif isinstance(experiment.data, Table):
        changes["data.path"] = str(fabricated_table(tmp_path / "table.csv", experiment.data))
    elif isinstance(experiment.data, LongText | Lines | Pairs):
        changes["data"] = fabricated_text(tmp_path / "text.txt", experiment.data)
        sizes = {"vocabulary": 64, "width": 8, "embedding": 4, "hidden": 8, "layers": 1, "heads": 2}
        changes |= {f"task.model.{name}": size for name, size in sizes.items()
                    if getattr(model, name, None) is not None}
        changes |= {f"evals.{name}.tokens": 4 for name, e in experiment.evals.items()
                    if hasattr(e, "tokens")}
    elif isinstance(experiment.data, Series):
        changes["data"] = SeriesFile(path=str(fabricated_series(tmp_path / "series.csv")),
                                     column="y", past=14, horizon=experiment.data.horizon)
        changes |= {"task.model.width": 4, "evals.test.order": 7}
    elif isinstance(experiment.data, LabelledTexts):
        changes["data"] = LabelledFile(
            path=str(fabricated_texts(tmp_path / "texts.csv", experiment.data.labels)), block=8,
            labels=experiment.data.labels, tokenizer=Words(vocabulary=20))
        changes |= {f"task.model.{name}": value for name, value in (
            ("vocabulary", 20), ("embedding", 4), ("filters", 4), ("buckets", 8), ("width", 8),
            ("layers", 1), ("heads", 2), ("hidden", 8))
            if getattr(model, name, None) is not None}
    elif isinstance(experiment.data, SpanTexts):
        path = tmp_path / "questions.json"
        path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "one two three", "qas": [
            {"question": "which one", "answers": [{"text": "two", "answer_start": 4}]}]}]}] * 20}))
        changes["data"] = SquadFile(path=str(path), block=16, longest=4,
                                    tokenizer=Words(vocabulary=20))
        changes |= {f"task.model.{name}": size for name, size in (
            ("vocabulary", 20), ("embedding", 4), ("width", 8))}
    elif isinstance(experiment.data, DemonstrationsOfRun):
        changes["data"] = DemonstrationFile(path=str(fabricated_episodes(tmp_path / "played.npz")))
    elif isinstance(experiment.data, Poisson):
        changes |= {"data.data": Digits(size=28, channels=1), "data.expected": 4}
    elif isinstance(experiment.data, FewLabels | TwoDigits):
        changes["data.data"] = Digits(size=28, channels=1)
    elif isinstance(experiment.data, MnistSample) or experiment.data.stand_in is not None:  # type: ignore[attr-defined]
        held_out = 64 * bool(experiment.data.validation)  # type: ignore[attr-defined]
        attacked = isinstance(experiment.task, TRADES)  # An attack works on pixels.
        pixels: dict[str, Any] = {"mean": (0.,), "std": (1.,)} if attacked else {}
        changes["data"] = Digits(size=28, validation=held_out, **pixels)
    return config.replace(experiment, changes)


def fabricated_idx(folder: Path) -> Path:
    """Four IDX files of the right form with 64 and 32 random images; not the real data."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for split, size in (("train", 64), ("t10k", 32)):
        for kind, shape in (("images-idx3", (size, 28, 28)), ("labels-idx1", (size,))):
            data = random.integers(0, 255 if kind[0] == "i" else 10, shape, dtype=np.uint8)
            header = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
            (folder / f"{split}-{kind}-ubyte").write_bytes(header + data.tobytes())
    return folder


def fabricated_pictures(folder: Path, classes: tuple[str, ...]) -> Path:
    """Ten random images of each class."""
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(10):
            image = Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8))
            image.save(folder / name / f"{i}.png")
    return folder


def fabricated_table(path: Path, data: Table) -> Path:
    """A hundred random rows with the columns of a table."""
    random = np.random.default_rng(0)
    known = {data.label: data.labels, data.group: data.groups}
    columns = {name: random.integers(0, 50, 100).astype(str) for name in data.numeric}
    columns |= {name: random.choice(known.get(name, ("a", "b")), 100)
                for name in (*data.categorical, *filter(None, known))}
    rows = [tuple(columns), *zip(*columns.values(), strict=True)]
    path.write_text("\n".join(map(",".join, rows)))
    return path


def fabricated_text(path: Path, data: LongText | Lines | Pairs) -> LongText | Lines | Pairs:
    """Letters at random, in the form of a kind of text."""
    letters = np.random.default_rng(0).choice(list("abcdef"), (80, 6))
    words = ["".join(word) for word in letters]
    if isinstance(data, LongText):
        path.write_text(" ".join(words))
        return TextFile(path=str(path), block=8)
    if isinstance(data, Lines):
        path.write_text("\n".join(words))
        return Lines(path=str(path))
    path.write_text("\n".join(f"{word}\t{word[::-1]}" for word in words))
    return PairFile(path=str(path), tokenizer=Characters(), longest=8, buckets=1)


def fabricated_episodes(path: Path) -> Path:
    """Ten episodes of eight random steps in a grid world."""
    random = np.random.default_rng(0)
    trajectories.save(path, {
        "observation": np.eye(16, dtype=np.float32)[random.integers(0, 16, 80)],
        "action": random.integers(0, 4, 80), "reward": np.zeros(80, np.float32),
        "episode": np.repeat(np.arange(10), 8)})
    return path


def fabricated_series(path: Path) -> Path:
    """Two hundred random numbers."""
    values = np.random.default_rng(0).normal(size=200)
    path.write_text("\n".join(["y", *map(str, values)]))
    return path


def fabricated_texts(path: Path, labels: tuple[str, ...]) -> Path:
    """A hundred texts of three to twelve words of ten."""
    random = np.random.default_rng(0)
    words = [" ".join(random.choice(list("abcdefghij"), random.integers(3, 13)))
             for _ in range(100)]
    rows = zip(words, random.choice(labels, 100), strict=True)
    path.write_text("\n".join(map(",".join, [("text", "label"), *rows])))
    return path


@pytest.mark.parametrize("name", [n for n in NAMES if n != "resnet50_imagenet"])
def test_it_trains_three_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = small(name, tmp_path, monkeypatch)
    run = record.Run(tmp_path / "run", record.Recorded(name, config.to_json(experiment), None, None,
                                                       ""), overrides={})
    progress = train.fit(experiment, run)
    assert progress.results and all(np.isfinite(v) for v in progress.results.values())
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = {"train/loss", "train/generator_loss", "train/value_loss"}
    assert [x["step"] for x in lines if losses & x.keys()] == [1, 2, 3]


def test_imagenet_has_the_published_shapes() -> None:
    """It runs where the data is; here its parameters and batches are checked by shape."""
    experiment = build("resnet50_imagenet")
    batch = {"image": jax.ShapeDtypeStruct((8, 224, 224, 3), np.float32),
             "label": jax.ShapeDtypeStruct((8,), np.int32),
             "mask": jax.ShapeDtypeStruct((8,), np.float32)}
    tx = experiment.transformations()
    state: Any = jax.eval_shape(lambda k, b: experiment.task.init(k, b, tx), jax.random.key(0),
                                batch)
    assert sum(x.size for x in named(state.params).values()) == 25_557_032
    new, metrics = jax.eval_shape(lambda s, b: experiment.task.step(s, b, tx), state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state)
    assert {"loss", "accuracy", "top5_accuracy", "grad_norm"} <= set(metrics)


def test_the_stand_in_is_decided_once_and_told_everywhere(
        tmp_path: Path, capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxdl.checkpoint import read_manifest
    from jaxdl.data import cifar
    from jaxdl.errors import DataMissing

    monkeypatch.chdir(ROOT)
    asked: list[str] = []

    def missing(self: Any) -> None:
        asked.append(type(self).__name__)
        raise DataMissing("CIFAR-10 is not here, for the test.")

    monkeypatch.setattr(cifar.Cifar10, "prepare", missing)
    folder = tmp_path / "run"
    base = ["--experiment=resnet_cifar", f"--workdir={folder}", "--task.model.depth=8",
            "--mesh.data=1", "--batch_size=16", "--log_every=1"]
    assert cli.main([*base, "--steps=2", "--strict_data"]) == 2
    assert capfd.readouterr().err == "error: CIFAR-10 is not here, for the test.\n"
    assert not folder.exists()

    assert cli.main([*base, "--steps=2"]) == 0
    out = capfd.readouterr().out
    assert "STAND-IN DATA" in out and "Digits in place of Cifar10" in out
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {x["stand_in"] for x in lines} == {"Digits in place of Cifar10"}
    recorded = record.read(folder)
    assert recorded is not None and recorded.stand_in == "Digits in place of Cifar10"
    assert recorded.experiment["data"]["_"] == "jaxdl.data.digits:Digits"
    assert recorded.experiment["steps"] == 2
    manifest = read_manifest(folder / "checkpoints", 2)
    assert manifest["meta"]["config"]["stand_in"] == "Digits in place of Cifar10"
    assert asked == ["Cifar10", "Cifar10"]

    # On resume it is not asked again, even if the data has come meanwhile.
    monkeypatch.setattr(cifar.Cifar10, "prepare", lambda self: asked.append("came"))
    assert cli.main([*base, "--steps=2"]) == 0
    assert "is finished (step 2)" in capfd.readouterr().out
    assert cli.main([*base, "--steps=2", "--strict_data"]) == 2
    assert "this run began with a stand-in" in capfd.readouterr().err
    assert "came" not in asked

    # To repeat or continue it by its directory is to train on the stand-in, and to say so.
    assert cli.main([f"--experiment={folder}", f"--workdir={folder}"]) == 0
    assert "STAND-IN DATA" in capfd.readouterr().out
    repeated = cli.parse("train", str(folder), [])
    assert cli.with_data(repeated, None, False)[1] == "Digits in place of Cifar10"
    capfd.readouterr()
    assert cli.main([f"--experiment={folder}", f"--workdir={folder}2", "--strict_data"]) == 2
    assert "has a stand-in" in capfd.readouterr().err

    # Without --steps the stand-in's own number counts.
    command = cli.parse("train", "resnet_cifar", [])
    monkeypatch.setattr(cifar.Cifar10, "prepare", missing)
    experiment, text = cli.with_data(command, None, False)
    assert (experiment.steps, text) == (250, "Digits in place of Cifar10")

    # And a run that began on the declared data never changes to the stand-in.
    own = dataclasses.replace(recorded, stand_in=None)
    with pytest.raises(DataMissing):
        cli.with_data(command, own, False)
    shutil.rmtree(folder)

"""Prediction of files: what the network is given is what evaluation gives it, whatever is wrong
with a file is told in its row, and nothing is half written."""

import csv
import io
import itertools
import json
import os
import re
import shutil
import struct
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image, ImageFont

from jaxdl import checkpoint, cli, config, predict, record
from jaxdl.data.digits import Digits
from jaxdl.data.folder import ImageFolder
from jaxdl.data.idx import Idx
from jaxdl.data.source import Arrays
from jaxdl.data.transforms import CenterCrop, Cutout, PadCrop, RandomResizedCrop
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best
from jaxdl.models.mlp import MLP
from jaxdl.task import TrainState
from jaxdl.tasks.classification import Classification
from tests.test_train import fit
from tests.tiny import plain

Captured = pytest.CaptureFixture[str]
CHANNELS = {"mean": (0.2, 0.4, 0.6), "std": (0.3, 0.2, 0.1)}


def saved(image: np.ndarray, path: Path) -> Path:
    """A file of uint8 [H, W, 1 or 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)
    return path


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def said(folder: Path) -> list[tuple[str, str]]:
    return [(Path(row["file"]).name, row["label"] or row["error"]) for row in table(folder)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the grey digits, whose best checkpoint is not its last."""
    folder = tmp_path_factory.mktemp("trained")
    fit(folder, plain(evals={"test": Evaluate(every=3)}, batch_size=128, save_every=3,
                      best=Best(metric="test/loss", mode="max"),
                      data=Digits(size=8, channels=1, augment=(Cutout(size=6),))))
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve of the test images as files."""
    folder = tmp_path_factory.mktemp("digits")
    for i, image in enumerate(Digits(size=8, channels=1).read("test")["image"][:12]):
        saved(image, folder / f"{i:02}.png")
    return folder


def predicted(run: Path, output: Path, *arguments: Any, status: int = 0) -> list[dict[str, str]]:
    assert cli.main(["predict", f"--experiment={run}", f"--output={output}",
                     *map(str, arguments)]) == status
    return table(output)


# The network is given what evaluation gives it.


def idx_files(folder: Path) -> Idx:
    """Colour images that are not square."""
    for part in ("train", "t10k"):
        image, label = random(20, 6, 9, 3), np.arange(20, dtype=np.uint8) % 3
        for kind, x in (("images-idx3", image), ("labels-idx1", label)):
            head = bytes([0, 0, 8, x.ndim]) + struct.pack(f">{x.ndim}I", *x.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + x.tobytes())
    return Idx(directory=str(folder), classes=3, augment=(PadCrop(pad=2),), **CHANNELS)


def image_folder(folder: Path) -> ImageFolder:
    """Colour photographs of many sizes, some transparent, in two classes."""
    for split, name, i in itertools.product(("train", "test"), ("cat", "dog, wet"), range(6)):
        shape = ((16, 40, 3), (60, 31, 3), (14, 14, 3), (20, 20, 4), (9, 11, 3), (200, 90, 3))[i]
        smooth = Image.fromarray(random(*shape, seed=i + 6 * (name == "cat"))).resize(
            (shape[1] * 2, shape[0] * 2), Image.Resampling.BICUBIC)
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        smooth.save(folder / split / name / f"{i}.{'png' if shape[-1] == 4 else 'jpg'}")
    return ImageFolder(path=str(folder), size=14, augment=(RandomResizedCrop(size=12),),
                       evaluation=(CenterCrop(size=12),), **CHANNELS)


@pytest.mark.parametrize("kind", ["grey", "colour, not square", "photographs"])
def test_files_are_predicted_as_evaluation_predicts_them(tmp_path: Path, kind: str,
                                                         trained: Path) -> None:
    """The labels and the probabilities of the test images, saved as files, are those of the task on
    the source itself."""
    run = trained
    if kind != "grey":
        (tmp_path / "data").mkdir()
        data = (image_folder if kind == "photographs" else idx_files)(tmp_path / "data")
        run = tmp_path / "run"
        fit(run, plain(data=data, steps=2, batch_size=8,
                       task=Classification(model=MLP(widths=(), classes=3)),
                       evals={"test": Evaluate()}))
    old = record.read(run)
    assert old is not None
    experiment: Any = config.from_json(old.experiment)
    source, state = experiment.data.open("test"), newest_state(run)
    ids = np.arange(min(source.size, 40), dtype=np.int32)
    batch = {k: np.asarray(x) for k, x in source.read(ids).items()}
    want = np.asarray(experiment.task.probabilities(state, source.transform(
        {**batch, "index": ids, "mask": np.ones(len(ids), np.float32)}, jax.random.key(0))))
    if kind == "photographs":
        files = [path for path, _ in experiment.data._files("test")]
    else:
        files = [saved(image, tmp_path / "files" / f"{i:03}.png")
                 for i, image in enumerate(batch["image"])]
    rows = predicted(run, tmp_path / "out", "--step=last", "--top=3", "--input", *files)
    names = getattr(experiment.data, "names", None) or tuple(map(str, range(10)))
    assert [row["file"] for row in rows] == list(map(str, files))
    assert len({row["label"] for row in rows}) > 1 and not any(row["error"] for row in rows)
    for row, one in zip(rows, want, strict=True):
        order = np.argsort(-one, kind="stable")[:3]
        assert [row["label"], row["label_2"], row["label_3"]] == [
            names[i] if i < len(names) else str(i) for i in order]
        np.testing.assert_allclose([float(row[f"probability{n}"]) for n in ("", "_2", "_3")],
                                   one[order], rtol=0, atol=1e-6)


def newest_state(run: Path) -> TrainState:
    """As much of it as evaluation needs."""
    stored = checkpoint.arrays(run / "checkpoints", checkpoint.select(run, "last"))
    params = {tuple(path.split("/")[2:]): x for path, x in stored.items() if "/params/" in path
              and "opt_state" not in path}
    return TrainState(step=jnp.int32(0), seen=jnp.uint32(0), key=jax.random.key(0),
                      params=traverse_util.unflatten_dict(params), frozen={}, mutable={},
                      opt_state=None, ema=None)


def test_batch_size_and_devices_change_nothing(tmp_path: Path, trained: Path, digits: Path) -> None:
    whole = predicted(trained, tmp_path / "a", f"--input={digits}", "--top=1")
    parts = predicted(trained, tmp_path / "b", f"--input={digits}", "--top=1", "--batch_size=5",
                      "--mesh.data=2")
    assert list(whole[0]) == ["file", "label", "probability", "error"] and len(whole) == 12
    for a, b in zip(whole, parts, strict=True):
        assert (a["file"], a["label"]) == (b["file"], b["label"])
        assert float(a["probability"]) == pytest.approx(float(b["probability"]), abs=1e-6)


def reader(height: int, width: int, channels: int) -> predict.Pictures:
    return predict.Pictures(Arrays(arrays={"image": random(2, height, width, channels),
                                           "label": np.zeros(2, np.int32)}), ("label",))


@pytest.mark.parametrize(("made", "want"), [
    (lambda: Image.new("RGBA", (4, 4), (255, 0, 0, 0)), (255, 255, 255)),  # transparent
    (lambda: Image.new("LA", (4, 4), (0, 128)), (127, 127, 127)),
    (lambda: Image.new("L", (9, 5), 77), (77, 77, 77)),
    (lambda: Image.new("1", (9, 5), 1), (255, 255, 255)),
    (lambda: Image.new("CMYK", (5, 9), (0, 255, 255, 0)), (255, 0, 0)),
    (lambda: Image.fromarray(np.full((4, 4), 0x4020, np.uint16)), (64, 64, 64)),
])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_picture_becomes_what_the_data_has(tmp_path: Path, made: Any, want: Any,
                                                         channels: int) -> None:
    picture, path = made(), tmp_path / "x.tiff"
    picture.save(path)
    read = reader(6, 6, channels).read(path, thumbnail=True)
    assert read.reason == "" and read.image is not None
    assert (read.image.dtype, read.image.shape) == (np.uint8, (6, 6, channels))
    grey = round(np.dot(want, (0.299, 0.587, 0.114)))
    np.testing.assert_allclose(read.image.reshape(36, channels), np.broadcast_to(
        want if channels == 3 else grey, (36, channels)), atol=1)
    assert read.thumbnail is not None and max(read.thumbnail.size) == predict.THUMBNAIL


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 4), (4, 8)])
def test_the_centre_is_kept_and_the_picture_upright(tmp_path: Path, height: int,
                                                    width: int) -> None:
    """Of a picture with a white quarter, lying on its side; and the whole of it is resized."""
    pixels = np.zeros((80, 160), np.uint8)
    pixels[:40, :80] = 255
    lying = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    exif = lying.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    lying.save(tmp_path / "x.png", exif=exif)
    image = reader(height, width, 1).read(tmp_path / "x.png").image
    assert image is not None
    want = np.zeros((height, width))
    want[:height // 2, :width // 2] = 255
    np.testing.assert_array_equal(image[..., 0] > 127, want > 127)


def test_of_several_pictures_in_a_file_the_first_counts(tmp_path: Path) -> None:
    first, second = (Image.new("L", (5, 5), value) for value in (10, 200))
    first.save(tmp_path / "x.gif", save_all=True, append_images=[second])
    image = reader(5, 5, 1).read(tmp_path / "x.gif").image
    assert image is not None and (image == 10).all()


# Files that are no pictures.


def bomb(width: int, height: int) -> bytes:
    """A PNG of this size without its pixels."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (struct.pack(">I", len(content)) + kind + content
                + struct.pack(">I", zlib.crc32(kind + content)))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0,
                                                          0)) + chunk(b"IDAT", b"")


def test_a_bad_file_is_a_row_and_spoils_no_other(tmp_path: Path, trained: Path, digits: Path,
                                                 capfd: Captured,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "ROWS", 8)  # Those that are bad are shown all the same.
    folder = tmp_path / "in"
    folder.mkdir()
    for path in digits.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    whole, program = io.BytesIO(), io.BytesIO()
    Image.fromarray(random(40, 40, 3)).save(whole, "PNG")
    Image.new("L", (8, 8)).save(program, "EPS")  # Pillow would have Ghostscript run it.
    for name, content in {"00a.png": whole.getvalue()[:2000], "03a.jpg": b"words", "04a.gif": b"",
                          "05a.png": bomb(20_000, 20_000), "05b.bmp": program.getvalue(),
                          "11\x1b[2J.webp": b"RIFF0000WEBPxxxx"}.items():
        (folder / name).write_bytes(content)
    (folder / "07a.png").symlink_to(tmp_path / "nowhere")
    clean = predicted(trained, tmp_path / "a", f"--input={digits}")
    capfd.readouterr()
    rows = predicted(trained, tmp_path / "b", f"--input={folder}", "--batch_size=4", status=1)
    out, err = capfd.readouterr()
    bad = {Path(row["file"]).name: row["error"] for row in rows if row["error"]}
    assert list(bad) == ["00a.png", "03a.jpg", "04a.gif", "05a.png", "05b.bmp", "07a.png",
                         "11\x1b[2J.webp"]
    for name, reason in {"00a.png": "truncated", "03a.jpg": "known format", "04a.gif": "known",
                         "05a.png": "decompression bomb", "05b.bmp": "known format",
                         "07a.png": "no such file"}.items():
        assert reason in bad[name] and reason in out
    good = [row for row in rows if not row["error"]]
    assert [(r["label"], Path(r["file"]).name) for r in good] == [
        (r["label"], Path(r["file"]).name) for r in clean]
    np.testing.assert_allclose([float(r["probability"]) for r in good],
                               [float(r["probability"]) for r in clean], atol=1e-6)
    assert "\x1b" not in out + err and err.count("\n") == 1
    assert err.startswith("error: 7 of 19 files could not be predicted: 00a.png (") and (
        "and 4 more" in err)


def test_a_small_file_does_not_become_a_huge_picture(tmp_path: Path) -> None:
    """A line of pixels, resized until its shorter side is 400, would have 4.8e9 of them."""
    path = saved(random(1, 30_000, 1), tmp_path / "x.png")
    assert reader(400, 400, 3).read(path).reason == "30,000 x 1 pixels are too narrow a picture"
    assert reader(400, 300, 3).read(path).image is None and reader(4, 4, 3).read(path).reason == ""


def test_large_pictures_are_decoded_one_at_a_time(tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "LARGE", 1_000)
    saved(random(40, 40, 1), tmp_path / "x.png")
    pictures, inside, most = reader(4, 4, 1), [], []

    def decode(*args: Any, **options: Any) -> np.ndarray:
        inside.append(1)
        threading.Event().wait(0.02)
        most.append(len(inside))
        inside.pop()
        return np.zeros((4, 4, 1), np.uint8)

    monkeypatch.setattr(predict, "decode", decode)
    threads = [threading.Thread(target=pictures.read, args=(tmp_path / "x.png",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "LARGEST", 100)
    path = saved(random(40, 40, 1), tmp_path / "x.png")
    assert "more than 0.0 MB" in reader(4, 4, 1).read(path).reason


# What is asked for.


def error(capfd: Captured, *arguments: Any) -> str:
    capfd.readouterr()
    assert cli.main(["predict", *map(str, arguments)]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err.removeprefix("error: ").strip()


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "--input=FILE_OR_FOLDER is missing"),
    (["--input"], "--input=FILE_OR_FOLDER is missing"),
    (["--input="], "--input=: expected the path"),
    (["--input=notes.txt"], "--input=notes.txt: not a picture (it begins like no known format)"),
    (["--input", "00.png", "film.mp4"], "--input=film.mp4: not a picture"),
    (["--input=01.pgn"], "--input=01.pgn: there is no such file or folder. Did you mean '01.png'?"),
    (["--input=empty"], "--input=empty: the folder holds no picture among its 1 files"),
    (["--input=/dev/null"], "--input=/dev/null: neither a file nor a folder."),
    (["--input=bad.png"], "--input=bad.png: cannot be predicted (it begins like no known "
     "format)."),
    (["--input", "bad.png", "worse.png"], "--input: none of the 2 files can be predicted, the "
     "first of them bad.png (it begins like no known format)."),
    (["--input=00.png", "--step=4"], "has no checkpoint '4'; it has 3, 6, 'last' and 'best'."),
    (["--input=00.png", "--top=0"], "--top=0: expected int, at least 1."),
    (["--input=00.png", "--output="], "--output=: expected the path"),
    (["--input=00.png", "--output=empty"], "--output=empty: holds 'x.txt' already"),
    (["--input=00.png", "--output=00.png"], "00.png: cannot be written (Not a directory)"),
    (["--input=00.png", "--inputs=01.png"], "--inputs: no such field. Did you mean --input?"),
])
def test_a_mistake_is_told_in_one_line_and_leaves_nothing(
        tmp_path: Path, trained: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch,
        arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("00.png", "01.png"):
        saved(random(8, 8, 1), Path(name))
    Path("empty").mkdir()
    for name in ("notes.txt", "bad.png", "worse.png", "empty/x.txt", "film.mp4"):
        Path(name).write_text("words")
    assert message in error(capfd, f"--experiment={trained}", *arguments)
    assert not (trained / "predictions").exists()


def test_files_folders_and_both_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         trained: Path, capfd: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/2.png", "a/10.png", "a/b/0.JPG", "a/.hidden/x.png", "a/.x.png", "a-b/1.png",
                 "plain.png", "-.png"):
        saved(random(8, 8, 1), Path(name))
    Path("plain.png").rename("plain")
    for name in ("a/n.txt", "a/b/m.csv", "a/.secret"):
        Path(name).touch()
    Path("a/b/up").symlink_to(tmp_path / "a")
    Path("a/b/away").symlink_to(tmp_path / "a-b")
    pictures, others = predict.found(["plain", "a", "a/2.png"])
    assert list(map(str, pictures)) == ["plain", "a/10.png", "a/2.png", "a/b/0.JPG",
                                        "a/b/away/1.png"]
    assert list(map(str, others)) == ["a/b/m.csv", "a/n.txt"]
    for i, words in enumerate((["--input", "a-b", "plain"], ["--input=a-b", "--input", "plain"],
                               ["--input=a-b", "--top=2", "--input=plain"])):
        rows = predicted(trained, tmp_path / f"out{i}", *words)
        assert [row["file"] for row in rows] == ["a-b/1.png", "plain"]
    capfd.readouterr()
    predicted(trained, tmp_path / "all", "--input=a")
    assert "2 other files left out: m.csv, n.txt" in capfd.readouterr().out


def test_the_best_checkpoint_and_a_folder_in_the_run_by_default(
        trained: Path, digits: Path, tmp_path: Path, capfd: Captured,
        monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # Removed with what is written into the run.
        patch.setattr(predict, "new_folder", lambda run: tmp_path / "run")
        assert cli.main(["predict", f"--experiment={trained}", f"--input={digits}"]) == 0
    out = capfd.readouterr().out
    assert f"{trained}, step 3 (best); 12 pictures, brought to 8 x 8, grey" in out
    best = predicted(trained, tmp_path / "a", f"--input={digits}", "--step=3")
    last = predicted(trained, tmp_path / "b", f"--input={digits}", "--step=last")
    assert table(tmp_path / "run") == best != last
    folder = predict.new_folder(tmp_path)
    assert re.fullmatch(r"predictions/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", str(
        folder.relative_to(tmp_path)))
    for path in [folder, *(folder.with_name(f"{folder.name[:-2]}{s:02}") for s in range(60))]:
        path.mkdir(parents=True, exist_ok=True)
    assert not predict.new_folder(tmp_path).exists()


def test_a_stand_in_is_announced(trained: Path, digits: Path, tmp_path: Path,
                                 capfd: Captured) -> None:
    run = shutil.copytree(trained, tmp_path / "copy")
    recorded = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**recorded, "stand_in": "Digits in place of X"}))
    predicted(run, tmp_path / "out", f"--input={digits}")
    assert "STAND-IN DATA" in (out := capfd.readouterr().out) and "Digits in place of X" in out


# What is written.


def test_nothing_is_overwritten_and_nothing_half_written(
        tmp_path: Path, trained: Path, digits: Path, capfd: Captured,
        monkeypatch: pytest.MonkeyPatch) -> None:
    out, aim = tmp_path / "new" / "out", [f"--experiment={trained}", f"--input={digits}"]
    before = predicted(trained, out, aim[1])
    assert sorted(os.listdir(out)) == ["contact_sheet.png", "predictions.csv"]
    assert f"--output={out}: holds " in error(capfd, *aim, f"--output={out}")
    assert table(out) == before
    add = predict.Results.add

    def leave(self: predict.Results, *arguments: Any) -> None:
        assert (tmp_path / "b" / "out" / ".predictions.csv.part").exists()
        add(self, *arguments)
        if self.count == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predict, "SHEET", 3)
        patch.setattr(predict.Results, "add", leave)
        assert cli.main(["predict", *aim, f"--output={tmp_path / 'b' / 'out'}"]) == 130
    assert not (tmp_path / "b").exists()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "c").mkdir()
    monkeypatch.setattr(os, "fsync", full)
    assert "cannot be written (No space left on device); --output=FOLDER names another" in error(
        capfd, *aim, f"--output={tmp_path / 'c'}")
    assert os.listdir(tmp_path / "c") == []


def test_contact_sheets_have_pages_up_to_a_number(tmp_path: Path, trained: Path, digits: Path,
                                                  capfd: Captured,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "SHEET", 4)
    monkeypatch.setattr(predict, "SHEETS", 2)
    predicted(trained, tmp_path / "out", f"--input={digits}")
    assert sorted(os.listdir(tmp_path / "out")) == [
        "contact_sheet_01.png", "contact_sheet_02.png", "predictions.csv"]
    out = capfd.readouterr().out
    assert "contact_sheet_01.png to contact_sheet_02.png (the first 8 pictures)" in out


def test_a_contact_sheet_shows_each_picture_and_what_the_network_sees_of_it() -> None:
    wide = io.BytesIO()
    Image.new("RGB", (300, 150), (200, 0, 0)).save(wide, "PNG")
    small = predict.shown_small(wide.getvalue(), 1.0)
    assert small.size == (predict.THUMBNAIL, predict.THUMBNAIL // 2)
    assert small.getpixel((predict.THUMBNAIL // 2, 30)) == (200, 0, 0)
    assert small.getpixel((5, 30)) == small.getpixel((predict.THUMBNAIL - 5, 30)) != (200, 0, 0)
    cells = [(small, predict.Answer(label="a label that is far too long to fit", probability=p),
              "and the name of a file as well.png") for p in np.linspace(0, 1, 13)]
    page = predict.sheet(cells, "title " * 99, "13 pictures")
    down = predict.MARGIN + 44 + predict.THUMBNAIL + 52
    assert page.width == 2 * predict.MARGIN + 10 * predict.THUMBNAIL + 9 * predict.GAP
    bars = [page.getpixel((predict.MARGIN + i % 10 * (predict.THUMBNAIL + predict.GAP) + 62,
                           down * (i >= 10) - (i >= 10) * predict.MARGIN - (i >= 10) * 44
                           + predict.MARGIN + 44 + predict.THUMBNAIL + 6 + 18)) for i in range(10)]
    assert [pixel == (28, 95, 168) for pixel in bars] == [False] * 7 + [True] * 3
    blank = page.crop((page.width - predict.MARGIN + 1, 0, page.width, page.height))
    assert blank.getextrema() == ((255, 255),) * 3, "nothing sticks out"
    font: Any = ImageFont.load_default(12)
    for text in ("short", "x" * 300, "words and\nlines\x1b of it"):
        fitted = predict.fitted(text, font, 80)
        assert font.getlength(fitted) <= 80 and "\n" not in fitted and "\x1b" not in fitted
    assert predict.fitted("short", font, 80) == "short"


def test_the_terminal_shows_the_first_and_counts_all(tmp_path: Path, trained: Path, digits: Path,
                                                     capfd: Captured,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "ROWS", 5)
    rows = predicted(trained, tmp_path / "out", f"--input={digits}", "--step=last")
    out = capfd.readouterr().out
    first, second = out.split("7 more in predictions.csv")
    shown = [line.split() for line in first.splitlines()[2:]]
    assert shown == [[Path(r["file"]).name, r["label"], f"{float(r['probability']):.1%}",
                      r["label_2"], f"{float(r['probability_2']):.1%}"] for r in rows[:5]]
    counts = {line.split()[0]: int(line.split()[1]) for line in second.splitlines()[3:]
              if re.match(r"\d +\d", line)}
    everything = [row["label"] for row in rows]
    assert counts == {x: everything.count(x) for x in counts} and len(counts) == min(
        5, len(set(everything)))
    assert f"written into {tmp_path / 'out'}: predictions.csv, contact_sheet.png" in out


# How it is done.


def test_files_are_read_ahead_but_never_all(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, pictures = [], reader(8, 8, 1)
    read = predict.Pictures.read

    def counted(self: predict.Pictures, path: Path, **options: Any) -> predict.Read:
        begun.append(path)
        return read(self, path, **options)

    monkeypatch.setattr(predict.Pictures, "read", counted)
    monkeypatch.setattr(predict.Network, "outputs", lambda self, inputs: np.zeros((4, 3)))
    net = predict.Network(predict.Classifier(None, None, 1), (), None, None, None,  # type: ignore
                          4)
    files = [next(digits.iterdir())] * 400
    for i, (_, answer) in enumerate(predict.answers(net, pictures, files, 0)):
        assert isinstance(answer, predict.Answer) and answer.label == "0"
        assert len(begun) <= i + 2 * 4 + 16 + 4
    assert i == 399


@dataclass(frozen=True)
class Bright:
    """Says how bright a picture is."""

    text: str

    def outputs(self, state: Any, batch: Any) -> Any:
        return {"mean": batch["image"].mean((1, 2, 3)), "size": batch["image"].max((1, 2))}

    def columns(self, outputs: Any) -> Sequence[str]:
        return ["mean", *(f"most_{i}" for i in range(outputs["size"].shape[-1]))]

    def answer(self, output: Any) -> predict.Answer:
        if output["mean"] < 0:
            raise ValueError("it is too dark")
        return predict.Answer(label="bright", columns=[float(output["mean"]), *output["size"]],
                              remark=self.text)


def test_another_family_says_what_its_answers_are(trained: Path, tmp_path: Path, capfd: Captured,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classification, "predictor", lambda self, names, top: Bright(
        f"{names[3]} {top}"), raising=False)
    files = [saved(np.full((8, 8, 1), v, np.uint8), tmp_path / f"{v}.png") for v in (255, 0)]
    rows = predicted(trained, tmp_path / "out", "--top=7", "--input", *files, status=1)
    assert [list(row.values())[1:] for row in rows[1:]] == [["", "", "", "", "it is too dark"]]
    assert rows[0]["label"] == "bright" and rows[0]["probability"] == "" == rows[0]["error"]
    assert float(rows[0]["mean"]) == pytest.approx((1 - 0.305) / 0.376)
    assert "3 7" in capfd.readouterr().out


def test_what_cannot_be_predicted_is_refused_in_one_line(
        trained: Path, digits: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    aim = f"--experiment={trained}", f"--input={digits}"
    with monkeypatch.context() as patch:
        patch.delattr(Classification, "probabilities")
        assert error(capfd, *aim) == (
            "task=Classification: it cannot predict; expected a method `probabilities(state, "
            "batch)` or `predictor(names, top)`.")
    for arrays, message in (
            ({"tokens": np.zeros((2, 5), np.int32)}, "an example has tokens int32[5]."),
            ({"image": np.zeros((2, 4, 4, 1), np.float32)}, "image float32[4, 4, 1]"),
            ({"image": np.zeros((2, 4, 4, 2), np.uint8)}, "image uint8[4, 4, 2]"),
            ({"image": random(2, 4, 4, 1), "text": np.zeros(2)}, "an example also has text")):
        monkeypatch.setattr(Digits, "open", lambda self, split, a=arrays: Arrays(arrays=a))
        assert message in error(capfd, *aim)
    assert not (trained / "predictions").exists()


def test_a_network_that_overflows_says_nothing() -> None:
    with pytest.raises(ValueError, match="not finite"):
        predict.Classifier(None, None, 3).answer(np.array([0.5, np.nan]))
    answer = predict.Classifier(None, ("zero", "one"), 9).answer(np.array([0.1, 0.2, 0.7]))
    assert (answer.label, list(answer.columns)) == ("2", ["one", 0.2, "zero", 0.1])


def test_augmentation_is_never_applied_where_there_is_another_split() -> None:
    assert predict.evaluated(plain(evals={"a": Evaluate(split="train"), "b": Evaluate(
        split="validation")})) == "validation"
    assert predict.evaluated(plain(evals={"a": Evaluate(split="train")})) == "test"

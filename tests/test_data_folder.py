"""Folders of images of every kind, and broken ones."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from jaxdl.data import images
from jaxdl.data.folder import ImageFolder
from jaxdl.data.images import decode
from jaxdl.data.source import Records
from jaxdl.errors import DataMissing, UserError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tree(root: Path, *, splits: tuple[str, ...] = ("train", "test"), n: int = 3) -> Path:
    """A folder of small random images of classes "cat" and "dog"."""
    rng = np.random.default_rng(1)
    for split in splits or ("",):
        for name in ("dog", "cat"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (20 + i, 30, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


# Kinds of images.


@pytest.mark.parametrize("kind", ["png", "bmp", "gif", "webp", "tiff", "ppm"])
def test_every_format(kind: str) -> None:
    lossless = {"webp": {"lossless": True}}.get(kind, {})
    pixels = decode(saved(halves(), kind, **lossless), size=None, channels=3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(halves()))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "RGB", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode(mode: str, channels: int) -> None:
    kind = {"CMYK": "tiff", "YCbCr": "tiff"}.get(mode, "png")
    image = Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode)
    pixels = decode(saved(image, kind), size=None, channels=channels)
    assert pixels.shape == (6, 8, channels) and pixels.dtype == np.uint8
    assert pixels.min() >= 254


def test_palette_and_grey() -> None:
    palette = halves().quantize(4)
    assert palette.mode == "P"
    np.testing.assert_array_equal(decode(saved(palette, "png"), size=None, channels=3),
                                  np.asarray(palette.convert("RGB")))
    grey = decode(saved(halves(), "png"), size=None, channels=1)
    assert grey[0, 0] == 76 and grey[0, -1] == 29  # 0.299 red and 0.114 blue


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits(kind: str) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    pixels = decode(saved(Image.fromarray(values), kind), size=None, channels=3)
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_transparent_is_white() -> None:
    image = Image.new("RGBA", (3, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    image.putpixel((2, 0), (255, 0, 0, 128))
    pixels = decode(saved(image, "png"), size=None, channels=3)
    assert pixels.tolist() == [[[255, 255, 255], [255, 0, 0], [255, 127, 127]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    pixels = decode(saved(palette, "png", transparency=0), size=None, channels=3)
    assert pixels.tolist() == [[[255, 255, 255], [*GREEN]]]


@pytest.mark.parametrize(("orientation", "corner"), [(1, RED), (3, BLUE), (6, RED), (8, BLUE)])
def test_exif_orientation(orientation: int, corner: tuple[int, ...]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = saved(halves(), "jpeg", exif=exif, quality=100, subsampling=0)
    turned = decode(encoded, size=None, channels=3, upright=True)
    assert turned.shape == ((20, 40, 3) if orientation < 5 else (40, 20, 3))
    assert np.abs(turned[2, 2].astype(int) - corner).max() < 10
    assert decode(encoded, size=None, channels=3).shape == (20, 40, 3)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (100, 33), (33, 100), (8, 8),
                                               (7, 9), (1, 50), (999, 1000)])
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_resized(width: int, height: int, kind: str) -> None:
    assert decode(saved(halves(width, height), kind), size=8, channels=3).shape == (8, 8, 3)


def test_resizing_leaves_no_margin() -> None:
    for side in range(1, 120):
        white = saved(Image.new("L", (side, 2 * side), 255), "bmp")
        assert decode(white, size=29, channels=1).min() == 255


def test_shorter_side_then_centre() -> None:
    """Red | blue of 80 x 20: at size 10 the centre is half red, half blue."""
    pixels = decode(saved(halves(80, 20), "png"), size=10, channels=3).astype(int)
    assert np.abs(pixels[:, :4] - RED).max() == 0 and np.abs(pixels[:, 6:] - BLUE).max() == 0


def test_drafted_jpeg_is_about_the_same() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (75, 100, 3), np.uint8)).resize(
        (800, 600), Image.Resampling.BICUBIC)
    drafted = decode(saved(smooth, "jpeg", quality=95), size=200, channels=3).astype(int)
    whole = decode(saved(smooth, "png"), size=200, channels=3).astype(int)
    assert np.abs(drafted - whole).mean() < 3


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^pixels are floating-point numbers$"):
        decode(saved(Image.new("F", (4, 4)), "tiff"), size=None, channels=3)


def test_colour_profile_is_ignored() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = decode(saved(halves(), "png", icc_profile=profile), size=None, channels=3)
    np.testing.assert_array_equal(pixels, np.asarray(halves()))


# Folders.


def test_folders_for_splits(tmp_path: Path) -> None:
    data = ImageFolder(path=str(tree(tmp_path)), size=16)
    data.prepare()
    source = data.open("train")
    assert data.names == ("cat", "dog") and data.classes == 2 and data.splits == ("train", "test")
    assert source.arrays is not None and source.arrays["image"].shape == (6, 16, 16, 3)
    assert source.arrays["label"].tolist() == [0, 0, 0, 1, 1, 1]
    expected = decode(tmp_path / "train" / "dog" / "1.png", size=16, channels=3)
    np.testing.assert_array_equal(source.arrays["image"][4], expected)
    assert ImageFolder(path=str(tmp_path), size=16, channels=1).open("test").read(
        np.arange(6))["image"].shape == (6, 16, 16, 1)


def test_only_some_classes(tmp_path: Path) -> None:
    root = tree(tmp_path)
    for split in ("train", "test"):
        shutil.copytree(root / split / "cat", root / split / "bird")
    some = ImageFolder(path=str(root), size=8, only=("dog", "bird"))
    assert ImageFolder(path=str(root), size=8).classes == 3 and some.names == ("bird", "dog")
    assert some.open("train").arrays["label"].tolist() == [0, 0, 0, 1, 1, 1]  # type: ignore[index]
    with pytest.raises(UserError, match=r"only: .*train has no folder 'dogs'\. Did you mean 'dog'"):
        _ = ImageFolder(path=str(root), size=8, only=("dogs",)).names


def test_large_sets_are_read_batch_by_batch(tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    data = ImageFolder(path=str(tree(tmp_path)), size=16, validation=2)
    whole = {s: data.open(s).read(np.arange(4 if s == "train" else 2))
             for s in ("train", "validation")}
    inside = data.fingerprint()
    monkeypatch.setattr(images, "IN_MEMORY", 6 * (16 * 16 * 3 + 4) - 1)
    again = ImageFolder(path=str(shutil.copytree(tmp_path, tmp_path / "copy")), size=16,
                        validation=2)
    for split, batch in whole.items():
        source = again.open(split)
        assert isinstance(source, Records) and source.size == len(batch["label"])
        read = source.read(np.arange(source.size))
        for name in batch:
            np.testing.assert_array_equal(read[name], batch[name])
    large = again.fingerprint()
    assert large != inside
    (tmp_path / "copy" / "test" / "cat" / "2.png").write_bytes(saved(halves(), "png"))
    del again, source  # While they live, equal data sets share what was read.
    assert ImageFolder(path=f"{tmp_path}/copy", size=16, validation=2).fingerprint() != large


def test_split_by_hash(tmp_path: Path) -> None:
    data = ImageFolder(path=str(tree(tmp_path, splits=(), n=50)), size=8, test_percent=30)
    parts = {split: [str(p.relative_to(tmp_path)) for p, _ in data._files(split)]
             for split in ("train", "test")}
    assert len(parts["train"]) + len(parts["test"]) == 100 and not set(parts["train"]) & set(
        parts["test"])
    assert len(parts["test"]) == 30
    assert parts["test"][:3] == ["cat/10.png", "cat/13.png", "cat/15.png"]
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "cat" / "new.png")
    more = [str(p.relative_to(tmp_path)) for p, _ in data._files("test")]
    assert set(parts["test"]) <= set(more) <= {*parts["test"], "cat/new.png"}


def test_content_counts(tmp_path: Path) -> None:
    before = ImageFolder(path=str(tree(tmp_path)), size=16).fingerprint()
    path = tmp_path / "train" / "cat" / "0.png"
    pixels = np.array(Image.open(path))
    pixels[10, 15] ^= 255
    Image.fromarray(pixels).save(path)
    assert ImageFolder(path=str(tmp_path), size=16).fingerprint() != before


# What can be wrong.


def message(error: type[Exception], path: Path, split: str = "train", **options: Any) -> str:
    with pytest.raises(error) as raised:
        data = ImageFolder(path=str(path), size=16, **options)
        data.prepare()
        data.open(split)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_wrong_folders(tmp_path: Path) -> None:
    assert message(DataMissing, tmp_path / "no") == (
        f"ImageFolder: path={tmp_path}/no: there is no such folder.")
    assert message(UserError, tmp_path) == (
        f"{tmp_path}: no class folders; expected {tmp_path}/CLASS/IMAGE.png.")
    tree(tmp_path)
    assert message(UserError, tmp_path, "val") == (
        "ImageFolder: no split 'val', only 'train', 'test'.")
    (tmp_path / "test" / "bird").mkdir()
    assert message(UserError, tmp_path) == (
        f"{tmp_path}/test: its classes differ from those of {tmp_path}/train: bird in one of them "
        "only.")
    (tmp_path / "train" / "bird").mkdir()
    assert message(UserError, tmp_path).startswith(
        f"{tmp_path}/train/bird: no images in the folder of this class; expected files that end in "
        ".png, ")
    few = tree(tmp_path / "few", splits=(), n=1)
    assert message(UserError, few, test_percent=1) == (
        f"{few}: no images are left for split 'test'; change test_percent=1.")


def broken(path: Path, kind: str) -> None:
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:len(whole) // 2], "empty": b"", "text": b"not an image",
                      "flipped": whole[:200] + bytes(50) + whole[250:]}[kind])


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "flipped"])
@pytest.mark.parametrize("large", [False, True])
def test_broken_image(tmp_path: Path, kind: str, large: bool, capsys: pytest.CaptureFixture[str],
                      monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr(images, "IN_MEMORY", 0)
    path = tree(tmp_path) / "train" / "cat" / "1.png"
    broken(path, kind)
    with pytest.raises(UserError) as error:
        source = ImageFolder(path=str(tmp_path), size=16).open("train")
        source.read(np.arange(6))
    text = str(error.value)
    assert text.startswith(f"{path}: not a readable image (") and "\n" not in text
    assert text.endswith("); remove it, or set skip_broken=True.")
    source = ImageFolder(path=str(tmp_path), size=16, skip_broken=True).open("train")
    assert source.size == 5 and source.read(np.arange(5))["label"].tolist() == [0, 0, 1, 1, 1]
    assert capsys.readouterr().err.startswith(
        f"ImageFolder: skipped 1 of 6 images, such as {path}: not a readable image (")

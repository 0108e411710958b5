"""CIFAR from its binary archive, from TFDS and from the network: the same arrays, bit by bit."""

import hashlib
import http.server
import io
import sys
import tarfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdl.data import cifar, tfds
from jaxdl.data.cifar import Cifar10, Cifar100
from jaxdl.errors import DataMissing, UserError

Kind = type[Cifar10] | type[Cifar100]
COUNT = 60  # records in each fabricated file


@pytest.fixture(autouse=True)
def nothing_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAXDL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    for kind in (Cifar10, Cifar100):
        monkeypatch.setattr(kind, "url", "http://127.0.0.1:1/" + kind.url.split("/")[-1])
        monkeypatch.setattr(kind, "files", {split: dict.fromkeys(files, COUNT)
                                            for split, files in kind.files.items()})


def records(kind: Kind) -> dict[str, bytes]:
    """What is in each file of a fabricated archive."""
    rng = np.random.default_rng(7)
    made = {}
    for file in (file for files in kind.files.values() for file in files):
        rows = rng.integers(0, 256, (COUNT, kind.labels + 3072), np.uint8)
        if kind.labels == 2:
            rows[:, 0] = rng.integers(0, 20, COUNT)
        rows[:, kind.labels - 1] = rng.integers(0, len(kind.names), COUNT)
        made[file] = rows.tobytes()
    return made


def archive(kind: Kind, folder: Path, monkeypatch: pytest.MonkeyPatch,
            made: dict[str, bytes]) -> Path:
    """Writes a fabricated archive, and has its checksum expected."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / kind.url.split("/")[-1]
    with tarfile.open(path, "w:gz") as tar:
        for file, content in {**made, "readme.html": b"..."}.items():
            info = tarfile.TarInfo(f"{kind.folder}/{file}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    monkeypatch.setattr(kind, "sha256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def prepare_by_tfds(kind: Kind, directory: Path, made: dict[str, bytes]) -> None:
    """TFDS's own builder writes the fabricated records, as PNG images, in its own order."""
    from PIL import Image
    from tensorflow_datasets.image_classification import cifar as original

    base: Any = getattr(original, kind.__name__)

    class Fabricated(base, skip_registration=True):  # pyright: ignore
        name = kind.name

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: self._generate_examples(split, files)
                    for split, files in kind.files.items()}

        def _generate_examples(self, split: str, files: Any) -> Any:
            rows = np.concatenate([np.frombuffer(made[file], np.uint8).reshape(COUNT, -1)
                                   for file in files])
            for i, row in enumerate(rows):
                buffer = io.BytesIO()
                pixels = row[kind.labels:].reshape(3, 32, 32).transpose(1, 2, 0)
                Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "png")
                example = {"id": f"{split}_{i:05d}", "image": buffer.getvalue(),
                           "label": int(row[kind.labels - 1])}
                yield i, example | ({"coarse_label": int(row[0])} if kind.labels == 2 else {})

    Fabricated(data_dir=directory, file_format="array_record").download_and_prepare()


def arrays(data: Cifar10 | Cifar100) -> dict[str, np.ndarray]:
    data.prepare()
    found = {}
    for split in ("train", "test"):
        source = data.open(split)
        assert source.arrays is not None
        found |= {f"{split} {name}": array for name, array in source.arrays.items()}
    return found


@pytest.mark.parametrize("kind", [Cifar10, Cifar100])
def test_three_ways_give_the_same(kind: Kind, tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    made = records(kind)
    path = archive(kind, tmp_path / "own", monkeypatch, made)
    by_archive = kind(directory=str(tmp_path / "own"))
    expected = arrays(by_archive)
    train = expected["train image"]
    assert train.shape == (COUNT * len(kind.files["train"]), 32, 32, 3) and train.dtype == np.uint8
    first = np.frombuffer(made[next(iter(kind.files["train"]))], np.uint8)
    assert train[0, 0, 1].tolist() == first[[kind.labels + 1 + 1024 * c for c in range(3)]].tolist()
    assert expected["train label"][0] == first[kind.labels - 1]
    assert (tmp_path / "data" / kind.folder / "readme.html").exists()

    prepare_by_tfds(kind, tmp_path / "tfds", made)
    by_tfds = kind(directory=str(tmp_path / "tfds"))
    unpacked = kind(directory=str(tmp_path / "data" / kind.folder))
    for data in (by_tfds, unpacked, kind()):
        found = arrays(data)
        assert found.keys() == expected.keys() and data.fingerprint() == by_archive.fingerprint()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])

    tfds_order = tfds.arrays(tmp_path / "tfds" / kind.name / "3.0.2", "train")["label"]
    assert (tfds_order != expected["train label"]).any()  # It did shuffle.
    path.unlink()


@pytest.mark.parametrize("kind", [Cifar10, Cifar100])
def test_tfds_prepares_an_own_archive(kind: Kind, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """TFDS's original builder, with no TensorFlow, from the archive in the data folder."""
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.core.units import Size
    from tensorflow_datasets.core.utils import lazy_imports_utils
    from tensorflow_datasets.image_classification import cifar as original

    made = records(kind)
    names = "\n".join(kind.names).encode()
    coarse = "\n".join(f"superclass {i}" for i in range(20)).encode()
    extra = ({"batches.meta.txt": names} if kind is Cifar10 else
             {"fine_label_names.txt": names, "coarse_label_names.txt": coarse})
    path = archive(kind, tmp_path / "data", monkeypatch, made | extra)
    url = f"https://www.cs.toronto.edu/~kriz/{path.name}"
    monkeypatch.setattr(getattr(original, kind.__name__), "url_infos", {
        url: UrlInfo(size=Size(path.stat().st_size), checksum=kind.sha256, filename=path.name)})

    tfds.Tfds(name=kind.name).prepare()
    assert "tensorflow" not in sys.modules
    assert "_module" not in vars(lazy_imports_utils.tensorflow)  # Nothing is left of the stand-in.
    expected, found = arrays(kind()), arrays(kind(directory=str(tmp_path / "tfds")))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    data = tfds.Tfds(name=kind.name)
    assert data.names == kind.names and data.classes == len(kind.names)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(UserError, match=f"^{path.parent}: a file is not the original one: "):
        tfds.prepare(kind.name, str(tmp_path / "again"))


def test_downloads_into_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = records(Cifar10)
    path = archive(Cifar10, tmp_path / "served", monkeypatch, made)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(Quiet, directory=str(path.parent))) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(Cifar10, "url",
                            f"http://127.0.0.1:{server.server_address[1]}/{path.name}")
        Cifar10().prepare()
        server.shutdown()
    found = arrays(Cifar10())
    assert found["test label"].tolist() == [made["test_batch.bin"][i * 3073] for i in range(COUNT)]


def test_missing_everywhere_names_the_three_ways(tmp_path: Path) -> None:
    with pytest.raises(DataMissing) as error:
        Cifar10().prepare()
    assert str(error.value) == (
        "Cifar10: not on this machine (http://127.0.0.1:1/cifar-10-binary.tar.gz: cannot be "
        "reached from this machine.) Bring it in one of three ways: put cifar-10-binary.tar.gz "
        f"into {tmp_path}/data or name its folder by directory=FOLDER; copy a TFDS folder "
        f"'cifar10' to {tmp_path}/tfds; or run once with a network.")
    with pytest.raises(UserError) as error:
        Cifar100(directory=str(tmp_path)).prepare()
    assert str(error.value) == (
        f"Cifar100: directory={tmp_path} holds neither cifar-100-binary.tar.gz, nor its folder "
        "cifar-100-binary, nor TFDS's folder 'cifar100' as array_record.")


def test_not_the_original_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(Cifar10, tmp_path / "data", monkeypatch, records(Cifar10))
    expected = Cifar10.sha256
    path.write_bytes(path.read_bytes()[:-1])
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError) as error:
        Cifar10().prepare()
    assert str(error.value) == (f"{path}: not the original archive, or damaged: SHA-256 is {got}, "
                                f"expected {expected}.")


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda c: c[:-1], "184,379 bytes, expected 184,380 (60 records of 3073); delete {folder} and "
                       "bring it again."),
    (lambda c: c[:3073 * 59], "181,307 bytes, expected 184,380 (60 records of 3073); delete "
                              "{folder} and bring it again."),
    (lambda c: c[:3073] + b"\x0a" + c[3074:],
     "record 1 has the label 10, expected 0 to 9."),
])
def test_damaged_files(tmp_path: Path, spoil: Any, message: str) -> None:
    made = records(Cifar10)
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for file, content in made.items():
        (folder / file).write_bytes(spoil(content) if file == "data_batch_3.bin" else content)
    with pytest.raises(UserError) as error:
        Cifar10().open("train")
    assert str(error.value) == f"{folder / 'data_batch_3.bin'}: " + message.format(folder=folder)


def test_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(Cifar10, tmp_path / "data", monkeypatch, records(Cifar10))
    Cifar10().prepare()
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(UserError) as error:
        Cifar10().open("train")
    assert str(error.value) == (f"{folder / 'data_batch_2.bin'}: missing; delete {folder} and "
                                "bring it again.")


def test_what_is_known_agrees_with_tfds() -> None:
    from importlib.resources import files

    checksums = files("tensorflow_datasets") / "url_checksums"
    for kind, name in ((Cifar10, "cifar10"), (Cifar100, "cifar100")):
        assert kind.sha256 in (checksums / f"{name}.txt").read_text()
    assert len(set(Cifar100.names)) == 100 and list(Cifar100.names) == sorted(Cifar100.names)
    assert Cifar10().classes == 10 and Cifar100().classes == 100
    assert cifar.PIXELS == 3072

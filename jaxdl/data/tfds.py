"""Data sets of TensorFlow Datasets (TFDS), without TensorFlow.

Reading needs no TensorFlow when a data set was prepared as ArrayRecord or Parquet. Preparing a few
well-known ones needs none either; for every other one it is installed once, and never imported to
train.
"""

import contextlib
import glob
import importlib.machinery
import io
import json
import os
import re
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl.config import Size
from jaxdl.data import images
from jaxdl.data.contents import contents
from jaxdl.data.fetch import data_folder, fetch, locked
from jaxdl.data.images import Content, Encoded, Example, Images, in_memory
from jaxdl.errors import DataMissing, UserError, nearest

# What is prepared without TensorFlow: the folder of its files in the data folder. (MNIST and
# Fashion-MNIST have files of the same names.)
PREPARED_HERE = {"mnist": "mnist", "fashion_mnist": "fashion_mnist", "cifar10": "", "cifar100": ""}
RANDOM_ACCESS = ("array_record", "parquet")
READ = 1_024  # texts at once


@dataclass(frozen=True, kw_only=True)
class Tfds(Images):
    """A data set of TFDS, https://www.tensorflow.org/datasets/catalog, with an image and a label.

    Its splits are those of TFDS, sub-splits such as "train[:80%]" or "train[80%:]" included.

    Attributes:
      name: as in the catalogue: "NAME", "NAME/CONFIG" or "NAME:VERSION".
      directory: where TFDS keeps its data; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
      image: name of the feature that holds the image.
      label: name of the feature that holds the class; None where there is none, and every label
        is -1.
      train: what of TFDS the split "train" is, such as "train[:80%]".
      size: height and width: the shorter side is resized to it and the centre cropped; None keeps
        the images as they are, which must then be of one size.
    """

    name: str
    directory: str | None = None
    image: str = "image"
    label: str | None = "label"
    train: str = "train"
    size: Size | None = None

    @property
    def splits(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(split["name"] for split in _json(self._path(), "dataset_info.json")["splits"])

    @property
    def names(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        file = self._path() / f"{self.label}.labels.txt"
        return tuple(file.read_text().splitlines()) if file.exists() else None

    @property
    def classes(self) -> int:
        if self.label is None:
            return 0
        features = _json(self._path(), "features.json")
        feature = features.get("featuresDict", {}).get("features", {}).get(self.label, {})
        if "classLabel" not in feature:
            raise UserError(f"Tfds: label={self.label!r} of '{self.name}' is not a class.")
        return int(feature["classLabel"]["numClasses"])

    def has(self, split: str) -> bool:
        return True  # TFDS parses it.

    def prepare(self) -> None:
        if prepared(self.name, self.directory) is None:
            prepare(self.name, self.directory)

    def read(self, split: str) -> Content:
        examples = encoded(self._path(), self.train if split == "train" else split,
                           image=self.image, label=self.label, size=self.size)
        return in_memory(examples, f"{self.name} {split}")

    def _path(self) -> Path:
        return there(self.name, self.directory)


def there(name: str, directory: str | None) -> Path:
    """The folder of a data set, which is prepared if need be and if that can be done."""
    if prepared(name, directory) is None:
        prepare(name, directory)
    path = prepared(name, directory)
    assert path is not None
    return path


def root(directory: str | None) -> Path:
    """Where TFDS keeps its data."""
    folder = directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(os.path.expanduser(folder))


def prepared(name: str, directory: str | None = None) -> Path | None:
    """The folder of a data set that is prepared for random access, newest version first, or None.

    Found without importing TFDS.
    """
    return next((path for path in _found(name, directory) if _format(path) in RANDOM_ACCESS), None)


def _found(name: str, directory: str | None) -> list[Path]:
    """The folders of a data set that is prepared in whatever format, newest version first."""
    base, _, version = name.partition(":")
    folder = root(directory) / base
    if "/" not in base and not _versions(folder):
        configs = sorted(path.parent.parent.name for path in folder.glob("*/*/dataset_info.json"))
        if len(set(configs)) > 1:
            raise UserError(f"Tfds: name={name!r}: {folder} has the configs "
                            f"{', '.join(sorted(set(configs)))}; name one, '{base}/{configs[0]}'.")
        folder = folder / configs[0] if configs else folder
    return [path for path in _versions(folder) if version in ("", path.name)]


def _versions(folder: Path) -> list[Path]:
    """The prepared versions in a folder, newest first."""
    found = [path.parent for path in folder.glob("*/dataset_info.json")
             if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)]
    return sorted(found, key=lambda path: [int(n) for n in path.name.split(".")], reverse=True)


def _json(path: Path, name: str) -> dict[str, Any]:
    """One of the descriptions in the folder of a data set."""
    try:
        found = json.loads((path / name).read_text())
        if isinstance(found, dict):
            return found
        error: Exception = ValueError("not a JSON object")
    except (OSError, ValueError) as raised:
        error = raised
    raise UserError(f"{path / name}: cannot be read ({error}); {_again(path)}") from error


def _format(path: Path) -> str:
    info = _json(path, "dataset_info.json")
    formats = [info.get("fileFormat") or "tfrecord", *info.get("alternativeFileFormats", [])]
    return next((f for f in formats if f in RANDOM_ACCESS), formats[0])


def _command(name: str) -> str:
    """The shell command that prepares a data set with TensorFlow."""
    return (f'pip install tensorflow-cpu && python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{name}', data_dir='DIRECTORY', file_format='array_record')"
            '.download_and_prepare()"')


# Reading.


def described(path: Path) -> Any:
    """TFDS' builder of a prepared data set."""
    try:
        return _quietly(_tfds().builder_from_directory, path)
    except DataMissing:
        raise
    except Exception as error:  # Whatever a damaged description makes it raise.
        raise UserError(f"{path}: its description, dataset_info.json and features.json, is damaged "
                        f"({_reason(error)}); {_again(path)}") from error


def check_features(builder: Any, wanted: Mapping[str, str]) -> None:
    """A UserError for a feature that a data set has not; wanted: {attribute: its value}."""
    features = builder.info.features
    for field, feature in wanted.items():
        if feature not in features:
            raise UserError(f"Tfds: {field}={feature!r}: {builder.info.full_name} has no such "
                            f"feature, only {', '.join(sorted(features))}."
                            f"{nearest(feature, features)}")


class Opened:
    """The records of a split of a prepared data set.

    Args:
      path: the folder that `prepared` found.
      builder: of `described`.
      split: as in TFDS.

    Attributes:
      count: how many there are.
      instructions: files that hold them, and which parts.
    """

    def __init__(self, path: Path, builder: Any, split: str) -> None:
        self.path = path
        try:
            self.count = int(builder.info.splits[split].num_examples)
            self.instructions = builder.info.splits[split].file_instructions
        except (KeyError, ValueError) as error:
            raise UserError(f"Tfds: no split {split!r} in {builder.info.full_name}, only "
                            f"{', '.join(map(repr, builder.info.splits))} and their parts, "
                            "'train[:80%]'.") from error
        if not self.count:
            raise UserError(f"Tfds: the split {split!r} of {builder.info.full_name} is empty.")
        for file in self.instructions:
            if not os.path.exists(file.filename):
                raise UserError(f"{file.filename}: missing; {_again(path)}")
        try:
            self._records = builder.as_data_source(
                split=split, deserialize_method=_tfds().decode.DeserializeMethod.RAW_BYTES)
        except Exception as error:  # Parquet is read as a whole, here.
            file = next((f.filename for f in self.instructions if not _readable(f.filename)), path)
            raise UserError(f"{file}: the file is damaged ({_reason(error)}); "
                            f"{_again(path)}") from error
        self._places: np.ndarray | None = None
        if len(self._records) != self.count:
            # TFDS 4.9 reads the whole shards of a part of a Parquet split.
            starts = np.cumsum([0, *(file.examples_in_shard for file in self.instructions)])
            self._places = np.concatenate([
                start + np.arange(file.examples_in_shard)[_slice(file)]
                for start, file in zip(starts, self.instructions, strict=False)])
            if len(self._records) != starts[-1]:
                raise UserError(f"{path}: split {split!r} has {len(self._records)} records, "
                                f"expected {starts[-1]}; {_again(path)}")

    def read(self, ids: Sequence[int]) -> Sequence[bytes]:
        """The records with these numbers."""
        at = [i if self._places is None else int(self._places[i]) for i in ids]
        try:
            return self._records.__getitems__(at) if len(at) > 1 else [self._records[at[0]]]
        except MemoryError:
            raise
        except Exception:  # One by one, to tell which.
            return [self.told(i, "is damaged", self._records.__getitem__, j)
                    for i, j in zip(ids, at, strict=True)]

    def told(self, i: int, what: str, function: Callable[..., Any], *args: Any,
             **kwargs: Any) -> Any:
        """function(...) for an example; whatever it raises is told of its record."""
        try:
            return function(*args, **kwargs)
        except MemoryError:
            raise
        except Exception as error:
            raise self.wrong(i, f"{what} ({_reason(error)})") from error

    def wrong(self, i: int, what: str) -> UserError:
        file, record = _place(self.instructions, i)
        return UserError(f"{file}: record {record} {what}; {_again(self.path)}")


def encoded(path: Path, split: str, *, image: str = "image", label: str | None = "label",
            size: int | None = None, also: tuple[str, ...] = ()) -> Encoded:
    """The examples of a prepared data set.

    Args:
      path: the folder that `prepared` found.
      split: as in TFDS.
      image, label: names of the features; without a label it is -1.
      size: as in `images.decode`.
      also: names of further features to read.
    """
    tfds, builder = _tfds(), described(path)
    features = builder.info.features
    wanted = {"image": image, **({} if label is None else {"label": label}),
              **{name: name for name in also}}
    check_features(builder, wanted)
    kind = features[image]
    if not isinstance(kind, tfds.features.Image) or kind.np_dtype not in (np.uint8, np.uint16):
        raise UserError(f"Tfds: image={image!r} of {builder.info.full_name} is not an image of "
                        "integers.")
    of_label = None if label is None else features[label]
    if of_label is not None and (of_label.shape != ()
                                 or not np.issubdtype(of_label.np_dtype, np.integer)):
        raise UserError(f"Tfds: label={label!r} of {builder.info.full_name} is not a class.")
    height, width, channels = kind.shape
    if size is None and None in (height, width):
        raise UserError(f"Tfds: the images of {builder.info.full_name} vary in size; set "
                        "size=PIXELS to resize and crop them.")
    opened = Opened(path, builder, split)
    told, wrong = opened.told, opened.wrong
    subset = tfds.features.FeaturesDict({name: features[name] for name in wanted.values()})
    raw = {image: tfds.decode.SkipDecoding()}
    most = getattr(of_label, "num_classes", None) or 1 << 31

    def decode(ids: Sequence[int]) -> list[Example]:
        return [decode_one(i, record) for i, record in zip(ids, opened.read(ids), strict=True)]

    def decode_one(i: int, record: bytes) -> Example:
        example = told(i, "is damaged", subset.deserialize_example_np, record, decoders=raw)
        if missing := [name for name in subset if example[name] is None]:
            raise wrong(i, f"is damaged (it has no {missing[0]!r})")  # Of a file that was cut off.
        pixels = told(i, "holds a broken image", images.decode, example[image], size=size,
                      channels=1 if channels == 1 else 3)
        if size is None and pixels.shape[:2] != (height, width):
            raise wrong(i, f"holds an image of {pixels.shape[0]} x {pixels.shape[1]} pixels, "
                           f"expected {height} x {width}")
        kind = -1 if label is None else example[label]
        if label is not None and not 0 <= kind < most:
            raise wrong(i, f"has the label {kind}, expected 0 to {most - 1}")
        return {"image": pixels, "label": np.asarray(kind, np.int32),
                **{name: np.asarray(example[name]) for name in also}}

    def identity() -> str:
        files = [Path(file.filename) for file in opened.instructions]
        return (f"{builder.info.full_name} {split} {image} {label} {size} "
                f"{[file.name for file in files]} {contents(files)}")

    return Encoded(decode, opened.count, identity)


def _place(instructions: Sequence[Any], i: int) -> tuple[str, int]:
    """(file, number of the record in it) of the example i of a split."""
    for file in instructions:
        records = range(file.examples_in_shard)[_slice(file)]
        if i < len(records):
            return file.filename, records[i]
        i -= len(records)
    raise IndexError(i)


def _readable(file: str) -> bool:
    """Whether a Parquet file can be read."""
    import pyarrow.parquet

    try:
        pyarrow.parquet.read_table(file)
    except Exception:  # Of what kind says nothing more.
        return False
    return True


def _reason(error: BaseException) -> str:
    """What TFDS, its readers or Pillow raised, in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else text[:197] + "..."


def _again(path: Path) -> str:
    return f"delete {path} and prepare it again."


def texts(path: Path, split: str, wanted: Mapping[str, str]) -> list[dict[str, Any]]:
    """The examples of a prepared data set of texts.

    Args:
      path: the folder that `prepared` found.
      split: as in TFDS.
      wanted: {attribute: name of the feature}; the examples have the names of the attributes.
    """
    builder = described(path)
    check_features(builder, wanted)
    kinds = _tfds().features
    for name, feature in wanted.items():
        kind = builder.info.features[feature]
        if name == "label":
            fits, what = kind.shape == () and np.issubdtype(kind.np_dtype, np.integer), "a class"
        elif name == "answers":
            fits = isinstance(kind, kinds.Sequence) and isinstance(kind.feature, kinds.FeaturesDict)
            what = "a sequence of answers"
        else:
            fits, what = isinstance(kind, kinds.Text), "a text"
        if not fits:
            raise UserError(f"Tfds: {name}={feature!r} of {builder.info.full_name} is not {what}.")
    opened = Opened(path, builder, split)
    subset = _tfds().features.FeaturesDict({f: builder.info.features[f] for f in wanted.values()})
    found = []
    for begin in range(0, opened.count, READ):
        ids = range(begin, min(begin + READ, opened.count))
        for i, record in zip(ids, opened.read(ids), strict=True):
            example = opened.told(i, "is damaged", subset.deserialize_example_np, record)
            if missing := [name for name in subset if example[name] is None]:
                raise opened.wrong(i, f"is damaged (it has no {missing[0]!r})")
            found.append({name: opened.told(i, "is not UTF-8", _decoded, example[feature])
                          for name, feature in wanted.items()})
    return found


def _decoded(value: Any) -> Any:
    """Text for bytes, also within lists and dicts."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, Mapping):
        return {name: _decoded(x) for name, x in value.items()}
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [_decoded(x) for x in value]
    return value


def arrays(path: Path, split: str, also: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """A small prepared data set, decoded."""
    content = in_memory(encoded(path, split, also=also), f"{path.parent.name} {split}")
    assert not isinstance(content, Encoded)
    return dict(content)


def _slice(file: Any) -> slice:
    """The part of a shard that a split takes."""
    return slice(file.skip, None if file.take == -1 else file.skip + file.take)


def original_order(split: str, size: int) -> np.ndarray:
    """Where TFDS put the examples 0, 1, 2, ... of a split whose builder keys them by number.

    TFDS sorts examples by a hash of their keys, salted with the name of the split.
    """
    from tensorflow_datasets.core import hashing

    hasher = hashing.Hasher(split)
    by_hash = sorted(range(size), key=hasher.hash_key)
    order = np.empty(size, np.int64)
    order[by_hash] = np.arange(size)
    return order


def _tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise DataMissing(f"Tfds: cannot be imported ({error}); pip install tensorflow-datasets "
                          "importlib_resources h5py.") from error
    return tensorflow_datasets


def _quietly(function: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


# Preparing.


def prepare(name: str, directory: str | None = None) -> None:
    """Downloads and prepares a data set of PREPARED_HERE; a DataMissing for any other."""
    for path in _found(name, directory):
        raise UserError(f"{path}: prepared as {_format(path)}, which only TensorFlow reads; "
                        f"prepare it as array_record in another folder: {_command(name)}")
    folder = PREPARED_HERE.get(name.partition(":")[0])
    if folder is None:
        raise DataMissing(f"Tfds: '{name}' is not in {root(directory)}; prepare it once: "
                          f"{_command(name).replace('DIRECTORY', str(root(directory)))}")
    tfds = _tfds()
    from tensorflow_datasets.core.download import download_manager, downloader

    downloads = data_folder() / folder
    builder = tfds.builder(name, data_dir=root(directory), file_format="array_record")
    for url, file in builder.url_infos.items():
        fetch(url, downloads / file.filename, file.checksum)
    # TFDS takes the files from `manual_dir`, checks them once more, and finds nothing to download.
    downloader.MAX_RETRIES = 0
    config = tfds.download.DownloadConfig(manual_dir=downloads)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with (locked(root(directory)), _without_tensorflow(),
              tempfile.TemporaryDirectory(dir=data_folder()) as unpacked):
            builder.download_and_prepare(download_config=config, download_dir=unpacked)
    except download_manager.NonMatchingChecksumError as error:
        raise UserError(f"{downloads}: a file is not the original one: "
                        f"{' '.join(str(error).split())}") from error


@contextlib.contextmanager
def _without_tensorflow() -> Iterator[None]:
    """Lets TFDS prepare images: a module stands in for the few parts of TensorFlow that it uses."""
    if "tensorflow" in sys.modules:  # The real one does it as well.
        yield
        return
    from tensorflow_datasets.core.features import image_feature
    from tensorflow_datasets.core.utils import lazy_imports_utils

    encoder: Any = image_feature._ImageEncoder
    lazy: Any = lazy_imports_utils.tensorflow
    encode = encoder._encode_image
    encoder._encode_image = _encode_image
    sys.modules["tensorflow"] = _stand_in()
    try:
        yield
    finally:
        encoder._encode_image = encode
        del sys.modules["tensorflow"]
        lazy.__dict__.pop("_module", None)  # TFDS must not remember the stand-in.


def _encode_image(self: Any, pixels: np.ndarray) -> bytes:
    """PNG or JPEG by Pillow, in place of TensorFlow's encoders."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.save(buffer, format=self.encoding_format)
    return buffer.getvalue()


def _stand_in() -> types.ModuleType:
    tensorflow = types.ModuleType("tensorflow")
    tensorflow.__spec__ = importlib.machinery.ModuleSpec("tensorflow", None)
    named: dict[str, Any] = {name: type(name, (), {}) for name in (
        "Tensor", "RaggedTensor", "SparseTensor", "TensorShape", "TensorSpec", "Variable")}
    named |= {name: getattr(np, name) for name in (
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
        "float32", "float64")}
    files = types.SimpleNamespace(
        GFile=lambda path, mode="r": open(path, mode),  # noqa: SIM115
        exists=os.path.exists, isdir=os.path.isdir, listdir=os.listdir, glob=glob.glob,
        makedirs=lambda path: os.makedirs(path, exist_ok=True))
    vars(tensorflow).update(
        named, __version__="2.99.0", bool=np.bool_, string=np.object_,
        io=types.SimpleNamespace(gfile=files),
        compat=types.SimpleNamespace(
            as_text=lambda text: text.decode() if isinstance(text, bytes) else str(text),
            as_bytes=lambda text: text.encode() if isinstance(text, str) else bytes(text)),
        dtypes=types.SimpleNamespace(DType=type("DType", (), {})),
        data=types.SimpleNamespace(Dataset=type("Dataset", (), {})))
    return tensorflow

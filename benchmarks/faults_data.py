"""What becomes of a flipped bit in each format that jaxdl reads, and of positions that are wrong.

    python benchmarks/faults_data.py [--flips=1000] [--states=10000] [--seed=0] [--formats NAME ...]

Flips: a bit of the files of a small data set is flipped, the time of the file set back, and the
data read as a run reads it. "error": it is refused. "named": in one line, with the file and, where
the format has records, the record. "fingerprint": it is read, but the fingerprint that a run
records is another one, so that to continue is refused. "harmless": every example is what it was
(padding, fields that are not used). "silent": none of these. "bare": the same flips, read by what
people use without jaxdl. "in files" is the path of data sets that are too large for the memory.

Positions: a run (seed, size, batch size, processes) stops anywhere and continues with another batch
size and number of processes, one in a hundred of them through a checkpoint on disk. "other data":
the examples are not those that an endless list of epochs has there. "more or less than once": an
epoch does not visit each example once. Or it continues at a position that cannot be: "accepted"
counts how many of those were taken. Grain beside it: a pipeline's state is restored into one with
another batch size.
"""

import argparse
import contextlib
import functools
import gzip
import hashlib
import io
import os
import random
import shutil
import struct
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))
import jax
import numpy as np
from PIL import Image
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from jaxdl.checkpoint import Checkpoints
from jaxdl.data import images
from jaxdl.data.cifar import Cifar10, Cifar100
from jaxdl.data.fetch import data_folder
from jaxdl.data.folder import ImageFolder
from jaxdl.data.idx import Idx
from jaxdl.data.loader import shuffled
from jaxdl.data.source import Arrays
from jaxdl.data.tfds import Tfds
from jaxdl.errors import UserError

Example = tuple[bytes, int]  # pixels and label
RECORDS = 12  # of each file
OUTCOMES = ("error", "fingerprint", "harmless", "silent")


@dataclass
class Format:
    """A small data set on disk.

    Attributes:
      files: whose bits are flipped.
      data: opens it with jaxdl.
      bare: reads it without: all examples.
      memory: bytes up to which jaxdl keeps it in memory.
      clean: called before each reading.
    """

    files: Sequence[Path]
    data: Callable[[], images.Images]
    bare: Callable[[], list[Example]]
    memory: int = images.IN_MEMORY
    clean: Callable[[], None] = lambda: None


# The data sets.


def pictures(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise over something smooth, so that they compress as pictures do: [RECORDS, ...]."""
    smooth = np.linspace(0, 200, shape[0])[:, None] + np.linspace(0, 40, shape[1])
    smooth = smooth[..., None] if len(shape) == 3 else smooth
    return (smooth + rng.integers(0, 16, (RECORDS, *shape))).astype(np.uint8)


def side(kind: str) -> int:
    """Pixels of a side: enough that most of a file is not its header."""
    return 64 if kind == "jpeg" else 24


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def idx_files(folder: Path, rng: np.random.Generator, *, packed: bool) -> Format:
    names = []
    for part in ("train", "t10k"):
        label = rng.integers(0, 10, RECORDS).astype(np.uint8)
        for kind, array in (("images", pictures(rng, (14, 14))), ("labels", label)):
            content = (bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
                       + array.tobytes())
            names.append(folder / f"{part}-{kind}-idx{array.ndim}-ubyte{'.gz' * packed}")
            names[-1].write_bytes(gzip.compress(content, mtime=0) if packed else content)

    def bare() -> list[Example]:
        found = []
        for image_file, label_file in (names[:2], names[2:]):
            opened = [(gzip.open if packed else open)(f, "rb") for f in (image_file, label_file)]
            image, label = (np.frombuffer(f.read(), np.uint8, offset=n)
                            for f, n in zip(opened, (16, 8), strict=True))
            for file in opened:
                file.close()
            found += [(x.tobytes(), int(y)) for x, y in zip(image.reshape(-1, 14, 14), label,
                                                            strict=True)]
        return found

    return Format(names, lambda: Idx(directory=str(folder)), bare)


class Small10(Cifar10):
    files: ClassVar = {split: dict.fromkeys(files, RECORDS)
                       for split, files in Cifar10.files.items()}


class Small100(Cifar100):
    files: ClassVar = {split: dict.fromkeys(files, RECORDS)
                       for split, files in Cifar100.files.items()}


def cifar_files(folder: Path, rng: np.random.Generator, *, kind: Any, packed: bool) -> Format:
    names = [name for files in kind.files.values() for name in files]
    (folder / kind.folder).mkdir()
    for name in names:
        rows = np.concatenate([rng.integers(0, 10, (RECORDS, kind.labels)), pictures(
            rng, (3, 32, 32)).reshape(RECORDS, -1)], axis=1).astype(np.uint8)
        (folder / kind.folder / name).write_bytes(rows.tobytes())
    paths, width = [folder / kind.folder / name for name in names], kind.labels + 3072

    def records(content: bytes) -> list[Example]:
        rows = np.frombuffer(content, np.uint8).reshape(-1, width)
        return [(row[kind.labels:].tobytes(), int(row[kind.labels - 1])) for row in rows]

    if not packed:
        return Format(paths, lambda: kind(directory=str(folder)),
                      lambda: [x for path in paths for x in records(path.read_bytes())])
    archive = folder / kind.url.split("/")[-1]
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / kind.folder, kind.folder)
    shutil.rmtree(folder / kind.folder)
    kind = type(kind.__name__, (kind,), {
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()})

    def bare() -> list[Example]:
        with tarfile.open(archive) as tar:
            members = {m.name: m for m in tar}  # to the end, where the checksum is
            return [x for name in names for x in records(
                tar.extractfile(members[f"{kind.folder}/{name}"]).read())]  # type: ignore

    return Format([archive], lambda: kind(directory=str(folder)), bare, clean=functools.partial(
        shutil.rmtree, data_folder() / kind.folder, ignore_errors=True))


def tfds_files(folder: Path, rng: np.random.Generator, *, file_format: str, kind: str,
               size: int | None = None, described: bool = False,
               memory: int = images.IN_MEMORY) -> Format:
    import tensorflow_datasets as tfds

    size = size or side(kind)
    made = {split: pictures(rng, (size, size, 3)) for split in ("train", "test")}

    class Flipped(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name, VERSION = "flipped", tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(size, size, 3), encoding_format=kind),
                "label": tfds.features.ClassLabel(num_classes=10)}), disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: self._generate_examples(x) for split, x in made.items()}

        def _generate_examples(self, pictures: Any) -> Any:  # type: ignore[override]
            for i, pixels in enumerate(pictures):
                yield i, {"image": encoded(pixels, kind), "label": i % 10}

    tfds.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        Flipped(data_dir=folder, file_format=file_format).download_and_prepare()
    path = folder / "flipped" / "1.0.0"

    def bare() -> list[Example]:
        builder = tfds.builder_from_directory(path)
        return [(x["image"].tobytes(), int(x["label"])) for split in made
                for x in builder.as_data_source(split=split)]

    files = [f for f in sorted(path.iterdir()) if (f.suffix == ".json") == described
             and not f.name.endswith(".txt")]
    return Format(files, lambda: Tfds(name="flipped", directory=str(folder)), bare, memory)


def image_files(folder: Path, rng: np.random.Generator, *, kind: str,
                memory: int = images.IN_MEMORY) -> Format:
    import grain

    made: list[tuple[Path, int]] = []
    for split in ("train", "test"):
        for i, pixels in enumerate(pictures(rng, (side(kind), side(kind), 3))):
            path = folder / split / f"class{i % 2}" / f"{i:02}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(pixels, kind))
            made.append((path, i % 2))

    def decode(file: tuple[Path, int]) -> Example:
        with Image.open(file[0]) as image:
            return np.asarray(image.convert("RGB")).tobytes(), file[1]

    pipeline = grain.MapDataset.source(made).map(decode)
    return Format([path for path, _ in made],
                  lambda: ImageFolder(path=str(folder), size=side(kind)),
                  lambda: [pipeline[i] for i in range(len(made))], memory)


FORMATS: dict[str, Callable[[Path, np.random.Generator], Format]] = {
    "IDX": functools.partial(idx_files, packed=False),
    "IDX, gzipped": functools.partial(idx_files, packed=True),
    "CIFAR-10 folder": functools.partial(cifar_files, kind=Small10, packed=False),
    "CIFAR-100 folder": functools.partial(cifar_files, kind=Small100, packed=False),
    "CIFAR-10 archive": functools.partial(cifar_files, kind=Small10, packed=True),
    # Its blocks have 64 kB: large pictures, so that not all is padding.
    "ArrayRecord of PNG": functools.partial(
        tfds_files, file_format="array_record", kind="png", size=96),
    "ArrayRecord of JPEG, in files": functools.partial(
        tfds_files, file_format="array_record", kind="jpeg", size=96, memory=0),
    "Parquet of PNG": functools.partial(tfds_files, file_format="parquet", kind="png"),
    "Parquet of JPEG, in files": functools.partial(
        tfds_files, file_format="parquet", kind="jpeg", memory=0),
    "descriptions of TFDS": functools.partial(tfds_files, file_format="array_record", kind="png",
                                              described=True),
    "folder of PNG": functools.partial(image_files, kind="png"),
    "folder of PNG, in files": functools.partial(image_files, kind="png", memory=0),
    "folder of JPEG": functools.partial(image_files, kind="jpeg"),
    "folder of JPEG, in files": functools.partial(image_files, kind="jpeg", memory=0),
}


# Flips.


def read(source: Format) -> tuple[str, list[Example]]:
    """(fingerprint, all examples), as a run reads them."""
    source.clean()
    data, found = source.data(), []
    data.prepare()
    for split in ("train", "test"):
        opened = data.open(split)
        batch = opened.read(np.arange(opened.size))
        found += [(image.tobytes(), int(label))
                  for image, label in zip(batch["image"], batch["label"], strict=True)]
    return data.fingerprint(), found


@contextlib.contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
    """Inside, one bit of the file is another, and its size and time are what they were."""
    was, content = path.stat(), path.read_bytes()
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    try:
        path.write_bytes(changed)
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        yield
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def outcome(source: Format, path: Path, good: tuple[str, list[Example]]) -> tuple[str, bool, str]:
    """(one of OUTCOMES, whether an error names the file in one line, the error)."""
    try:
        fingerprint, found = read(source)
    except UserError as error:
        text = str(error)
        named = "\n" not in text and any(
            name in text for name in (str(path), str(path.parent), "flipped/1.0.0"))
        return "error", named, text
    if found == good[1]:  # Though the fingerprint may see what is not used.
        return "harmless", False, ""
    return ("silent" if fingerprint == good[0] else "fingerprint"), False, ""


def bare_outcome(source: Format, good: list[Example]) -> str:
    try:
        return "harmless" if source.bare() == good else "silent"
    except Exception:  # Of whatever kind: it was noticed.
        return "error"


def flips(name: str, count: int, seed: int, bare: bool = True, told: Callable[
        [str], None] = lambda text: None) -> tuple[Counter[str], Counter[str], int]:
    """(what jaxdl made of the flips, what bare reading made, errors that name the file)."""
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        root, old, before = Path(folder), os.environ.get("JAXDL_DATA"), images.IN_MEMORY
        os.environ["JAXDL_DATA"] = str(root / "data")
        (root / "set").mkdir()
        try:
            source = FORMATS[name](root / "set", np.random.default_rng(seed))
            images.IN_MEMORY = source.memory
            good, good_bare = read(source), source.bare()
            chance, ours, theirs, named = random.Random(seed), Counter(), Counter(), 0
            sizes = [path.stat().st_size for path in source.files]
            for _ in range(count):
                path = chance.choices(source.files, sizes)[0]
                with flipped(path, chance.randrange(8 * path.stat().st_size)):
                    kind, good_line, text = outcome(source, path, good)
                    ours[kind] += 1
                    named += good_line
                    told(f"{kind} {good_line} {text}")
                    if bare:
                        theirs[bare_outcome(source, good_bare)] += 1
            assert read(source) == good  # Nothing of it is left.
            return ours, theirs, named
        finally:
            images.IN_MEMORY = before
            os.environ.pop("JAXDL_DATA")
            if old is not None:
                os.environ["JAXDL_DATA"] = old


# Positions.


@dataclass(frozen=True)
class Stop:
    """Where a run stops, and how it continues.

    Attributes:
      size: examples of the data.
      before, after: batch sizes.
      hosts: processes that it continues with; they divide the batch.
      position: examples seen.
    """

    seed: int
    size: int
    before: int
    after: int
    hosts: int
    position: int


def stops(count: int, seed: int) -> Iterator[Stop]:
    chance = random.Random(seed)
    for _ in range(count):
        hosts, before = chance.choice((1, 2, 4, 8)), chance.randint(1, 64)
        yield Stop(chance.getrandbits(32), chance.randint(1, 300), before,
                   8 * chance.randint(1, 8), hosts, before * chance.randint(0, 40))


def epochs(seed: int, size: int) -> Iterator[int]:
    """All examples of one epoch after another, without end: what the order is said to be."""
    epoch = 0
    while True:
        raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size).tolist()
        yield from sorted(range(size), key=lambda i, raw=raw: (raw[i], i))
        epoch += 1


@dataclass(frozen=True)
class Part:
    """The sharding of a batch over eight devices, as one of several processes sees it."""

    whole: Any
    host: int
    hosts: int

    def addressable_devices_indices_map(self, shape: tuple[int, ...]) -> dict[Any, Any]:
        every = list(self.whole.devices_indices_map(shape).items())
        each = len(every) // self.hosts
        return dict(every[self.host * each:(self.host + 1) * each])


def continued(stop: Stop, steps: int, sharding: Any) -> np.ndarray:
    """The examples of each step [steps, batch] that all processes together read, in their places.

    Each process asks for its own rows, as `train.fit` does."""
    from jaxdl import distributed

    source = Arrays(arrays={"x": np.arange(stop.size)})
    plan = shuffled(source, stop.seed, stop.position, stop.after, steps)
    found = np.full((steps, stop.after), -1)
    old, distributed.several = distributed.several, lambda: stop.hosts > 1
    try:
        for host in range(stop.hosts):
            rows = distributed.rows(Part(sharding, host, stop.hosts), stop.after)
            rows = np.arange(stop.after) if rows is None else rows
            for i in range(steps):
                assert (found[i, rows] == -1).all()  # No two read the same row.
                found[i, rows] = plan[i]["index"][rows]
    finally:
        distributed.several = old
    return found


def saved(stop: Stop, folder: Path) -> int:
    """The position, through a checkpoint on disk."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = {"seen": jax.device_put(np.uint32(stop.position), here)}
    for once in range(2):
        store = Checkpoints(folder)
        try:
            if once == 0:
                store.save(1, tree, {})
            else:
                restored = store.restore({"seen": jax.ShapeDtypeStruct((), np.uint32,
                                                                       sharding=here)})
                assert restored is not None
                return int(restored[0]["seen"])
        finally:
            store.close()
    raise AssertionError


def positions(count: int, seed: int) -> Counter[str]:
    """How many states continue as they should."""
    devices = np.asarray(jax.devices()[:8])
    mesh = jax.sharding.Mesh(devices, ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    found: Counter[str] = Counter(states=0, **{"through a checkpoint": 0, "other data": 0,
                                               "more or less than once": 0, "accepted": 0})
    for n, stop in enumerate(stops(count, seed)):
        found["states"] += 1
        if n % 100 == 0:
            with tempfile.TemporaryDirectory() as folder:
                assert saved(stop, Path(folder)) == stop.position
            found["through a checkpoint"] += 1
        steps = -(-2 * stop.size // stop.after) + 1
        ids = continued(stop, steps, sharding).reshape(-1)
        order = np.fromiter(epochs(stop.seed, stop.size), np.int64, stop.position + len(ids))
        found["other data"] += not np.array_equal(ids, order[stop.position:])
        seen = np.concatenate([order[:stop.position], ids])
        whole = seen[:len(seen) // stop.size * stop.size].reshape(-1, stop.size)
        found["more or less than once"] += not (
            np.sort(whole, axis=1) == np.arange(stop.size)).all()
        for wrong in (-1 - stop.position, (1 << 32) - stop.after * steps + n % 7,
                      (1 << 40) + stop.position):
            with contextlib.suppress(UserError):
                shuffled(Arrays(arrays={"x": np.arange(stop.size)}), stop.seed, wrong, stop.after,
                         steps)
                found["accepted"] += 1
    return found


def grain_positions(count: int, seed: int) -> Counter[str]:
    """The same states, of Grain's iterator, which counts batches."""
    import grain

    def order(stop: Stop) -> Any:
        return grain.MapDataset.source(range(stop.size)).seed(stop.seed).shuffle().repeat()

    def pipeline(stop: Stop, batch: int) -> Any:
        batches = order(stop).batch(batch, drop_remainder=True)
        return iter(batches.to_iter_dataset(grain.ReadOptions(0, 0)))

    found: Counter[str] = Counter(states=0, **{"other data": 0, "accepted": 0})
    for n, stop in enumerate(stops(count, seed)):
        found["states"] += 1
        before, after = pipeline(stop, stop.before), pipeline(stop, stop.after)
        there = range(stop.position, stop.position + stop.after)
        before.set_state({"next_index": stop.position // stop.before})
        after.set_state(before.get_state())
        straight = order(stop)
        found["other data"] += not np.array_equal(next(after), [straight[i] for i in there])
        for wrong in (-1 - stop.position, (1 << 32) + n, (1 << 40) + stop.position):
            with contextlib.suppress(IndexError):
                after.set_state({"next_index": wrong})
                found["accepted"] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1_000, help="of each format")
    parser.add_argument("--states", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--verbose", action="store_true", help="prints every outcome")
    flags = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    console = Console(width=160)
    table = Table("format", "flips", *OUTCOMES, "named", "bare: error", "harmless", "silent",
                  "s", box=MARKDOWN)
    bad = 0
    for name in flags.formats if flags.flips else ():
        began = time.perf_counter()
        ours, theirs, named = flips(name, flags.flips, flags.seed,
                                    told=print if flags.verbose else lambda text: None)
        table.add_row(name, f"{flags.flips:,}", *(f"{ours[kind]:,}" for kind in OUTCOMES),
                      f"{named:,} of {ours['error']:,}",
                      *(f"{theirs[kind]:,}" for kind in ("error", "harmless", "silent")),
                      f"{time.perf_counter() - began:.0f}")
        bad += ours["silent"] + ours["error"] - named
    if table.rows:
        console.print(table)
    if flags.states:
        for name, function, states in (("jaxdl", positions, flags.states),
                                       ("Grain", grain_positions, flags.states // 10)):
            began = time.perf_counter()
            found = function(states, flags.seed)
            console.print(f"positions, {name}: " + ", ".join(
                f"{count:,} {what}" for what, count in found.items())
                + f"; {time.perf_counter() - began:.0f} s")
            if name == "jaxdl":
                bad += found["other data"] + found["more or less than once"] + found["accepted"]
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()

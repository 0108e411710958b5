"""Data that is absent, damaged, or does not come; positions that are wrong. One line for each.

`benchmarks/faults_data.py` has the campaigns; here is a short version of them.
"""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl import cli, distributed, train
from jaxdl.checkpoint import committed
from jaxdl.data import cifar, contents, digits, fetch, folder, idx, images, tfds
from jaxdl.data.loader import POSITIONS, ahead, in_order, ordered, shuffled
from jaxdl.data.source import Arrays, Records, permutation
from jaxdl.errors import DataMissing, UserError
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best
from jaxdl.process import Preempted
from tests.test_benchmarks import module
from tests.test_data_fetch import CONTENT, SHA256, Server, server  # noqa: F401 (a fixture)
from tests.test_data_tfds import encoded, fabricate, shapes
from tests.test_train import fit
from tests.tiny import shorter

ROOT = Path(__file__).parent.parent


# What is not here (row 27; test_data_fetch.py and the tests of each data set have more).


def told(error: type[Exception], function: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(error) as raised:
        function(*args)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_server_that_falls_silent_is_given_up(server: Server, tmp_path: Path,  # noqa: F811
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    monkeypatch.setattr(fetch, "STALL", 0.05)
    server.plan = ["stalls", "ignores range, stalls"]
    part = tmp_path / "file.bin.part"
    text = told(DataMissing, fetch.fetch, server.url, tmp_path / "file.bin", SHA256)
    assert text == (f"{server.url}: no byte came for 0.05 s; 50,000 bytes are kept in {part} and "
                    "the next try continues there.")
    assert not (tmp_path / "file.bin").exists()
    server.plan = ["whole"]
    fetch.fetch(server.url, tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_the_time_until_a_download_is_given_up_is_the_sum_of_its_timeouts(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server that takes connections and never answers; nothing here waits."""
    waits: list[float] = [fetch.CONNECT]

    def silent(request: Any, timeout: float) -> Any:
        waits.append(timeout)
        raise TimeoutError

    monkeypatch.setattr(fetch, "reachable", lambda url: True)
    monkeypatch.setattr(urllib.request, "urlopen", silent)
    monkeypatch.setattr(fetch.time, "sleep", waits.append)
    assert told(DataMissing, fetch.fetch, "http://127.0.0.1:1/x", tmp_path / "x", SHA256) == (
        "http://127.0.0.1:1/x: no byte came for 20 s.")
    waits = [w for w in waits if w != 0.05]  # FileLock's, when it opens
    assert sum(waits) == 2.5 + 5 * 20 + (1 + 2 + 4 + 8) and waits.count(fetch.STALL) == 5


def test_a_page_instead_of_the_file_is_refused(server: Server, tmp_path: Path) -> None:  # noqa: F811
    """As of a hotel's network; nothing is left that a later call would continue."""
    server.plan = ["lies"]
    path = tmp_path / "file.bin"
    assert told(UserError, fetch.fetch, server.url, path, SHA256).endswith(
        f"; the download was deleted. Try again, or put the original file at {path}.")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock"]


def test_a_damaged_half_download_is_not_continued_for_ever(
        server: Server, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "file.bin"
    (tmp_path / "file.bin.part").write_bytes(b"x" * 70_000)
    assert "SHA-256 is " in told(UserError, fetch.fetch, server.url, path, SHA256)
    assert fetch.fetch(server.url, path, SHA256).read_bytes() == CONTENT


def test_a_half_download_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of four files and a half of the last; then an archive that was half unpacked."""
    monkeypatch.setattr(idx.Mnist, "url", "http://127.0.0.1:1/")
    place = tmp_path / "data" / "mnist"
    place.mkdir(parents=True)
    names = list(idx.Mnist.sha256)
    for name in names[:3]:
        (place / name).write_bytes(b"")
    (place / f"{names[3]}.part").write_bytes(b"half")
    text = told(DataMissing, idx.Mnist().prepare)
    assert text.startswith(f"Mnist: not on this machine (http://127.0.0.1:1/{names[3]}: cannot be "
                           "reached from this machine.) Bring it in one of these ways: put train-")
    assert f"into {place} or name their folder by directory=FOLDER" in text
    monkeypatch.setattr(cifar.Cifar10, "url", "http://127.0.0.1:1/cifar-10-binary.tar.gz")
    half = tmp_path / "data" / "cifar-10-batches-bin.part"
    half.mkdir()
    for files in cifar.Cifar10.files.values():
        for name in files:
            (half / name).write_bytes(b"")
    assert told(DataMissing, cifar.Cifar10().prepare).startswith("Cifar10: not on this machine (")


@pytest.mark.parametrize("strict", [True, False])
def test_the_command_says_in_one_line_what_is_missing(
        tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
        strict: bool) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cifar.Cifar10, "url", "http://127.0.0.1:1/cifar-10-binary.tar.gz")
    if not strict:
        monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    status = cli.main(["--experiment=resnet_cifar", f"--workdir={tmp_path / 'run'}",
                       *["--strict_data"] * strict])
    out, err = capfd.readouterr()
    assert (status, err.count("\n"), out) == (2, 1, "")
    assert err == (
        "error: Cifar10: not on this machine (http://127.0.0.1:1/cifar-10-binary.tar.gz: cannot be "
        "reached from this machine.) Bring it in one of three ways: put cifar-10-binary.tar.gz "
        f"into {tmp_path}/data or name its folder by directory=FOLDER; copy a TFDS folder "
        f"'cifar10' to {tmp_path}/tfds; or run once with a network.\n" if strict else
        "error: Digits: scikit-learn, which holds the images, is not installed; pip install "
        "scikit-learn.\n")
    assert not (tmp_path / "run").exists()


# Damaged records (row 28).


@pytest.fixture(scope="module")
def campaign() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield module("faults_data", patch)


FORMATS = ("IDX", "IDX, gzipped", "CIFAR-10 folder", "CIFAR-100 folder", "CIFAR-10 archive",
           "ArrayRecord of PNG", "ArrayRecord of JPEG, in files", "Parquet of PNG",
           "Parquet of JPEG, in files", "descriptions of TFDS", "folder of PNG",
           "folder of PNG, in files", "folder of JPEG", "folder of JPEG, in files")


@pytest.mark.parametrize("name", FORMATS)
def test_no_flipped_bit_is_silent(campaign: Any, name: str) -> None:
    """It is an error that names the file, or the fingerprint that a run records is another."""
    assert tuple(campaign.FORMATS) == FORMATS
    ours, _, named = campaign.flips(name, 12, 1, bare=False)
    assert ours["silent"] == 0 and named == ours["error"]
    assert ours["error"] + ours["fingerprint"] > 0 and ours.total() == 12


@pytest.mark.parametrize("name", ["folder of JPEG, in files", "Parquet of JPEG, in files"])
def test_sizes_and_names_would_not_tell(campaign: Any, name: str,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """The same flips under a fingerprint of what `ls` shows, and read without jaxdl."""
    for user in (folder, tfds):
        monkeypatch.setattr(user, "contents", lambda files: str([f.stat().st_size for f in files]))
    ours, bare, _ = campaign.flips(name, 12, 1)
    assert ours["silent"] == bare["silent"] > 0


def records(path: Path, damage: str) -> None:
    """Damages the file of a split."""
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:len(whole) // 2], "emptied": b"", "other": b"x" * len(whole),
                      "header": whole[:8] + bytes(64) + whole[72:]}[damage])


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "other", "header"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_damaged_files_of_tfds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str,
                               damage: str, in_memory: bool) -> None:
    fabricate(tmp_path / "tfds", file_format=file_format)
    path = next((tmp_path / "tfds" / "shapes" / "1.0.0").glob("shapes-test*"))
    records(path, damage)
    monkeypatch.setattr(images, "IN_MEMORY", images.IN_MEMORY if in_memory else 0)
    text = told(UserError, lambda: shapes().open("test").read(np.arange(5)))
    what = "the file" if file_format == "parquet" else r"record \d"
    assert re.fullmatch(rf"{path}: {what} is damaged \(.+\); delete {path.parent} and prepare it "
                        r"again\.", text), text


@pytest.mark.parametrize(("example", "text"), [
    ({"kind": 3}, "record 3 has the label 3, expected 0 to 2"),
    ({"kind": -1}, "record 3 has the label -1, expected 0 to 2"),
    ({"picture": np.zeros((12, 15, 3), np.uint8)},
     "record 3 holds an image of 12 x 15 pixels, expected 12 x 16"),
    ({"picture": np.zeros((1, 1, 3), np.uint8)},
     "record 3 holds an image of 1 x 1 pixels, expected 12 x 16"),
    ({"picture": b"no picture"}, "record 3 holds a broken image (it begins like no known format)"),
    ({"kind": None}, "record 3 is damaged (it has no 'kind')"),
    (b"", "record 3 is damaged (it has no 'picture')"),
    (b"no protocol buffer", "record 3 is damaged (Error parsing message with type "),
])
def test_wrong_records_of_tfds(tmp_path: Path, example: Any, text: str) -> None:
    """Of a size that would have been stretched to that of all, or a label of no class."""
    import tensorflow_datasets as package
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2  # type: ignore[import]

    fabricate(tmp_path / "tfds")
    path = next((tmp_path / "tfds" / "shapes" / "1.0.0").glob("shapes-test*"))
    features: Any = package.builder_from_directory(path.parent).info.features
    good = {"picture": encoded(np.zeros((12, 16, 3), np.uint8)), "kind": 0, "caption": "",
            "box": package.features.BBox(0., 0., 1., 1.)}
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for i in range(5):
        record = features.serialize_example(features.encode_example(good))
        if i == 3 and isinstance(example, bytes):
            record = example
        elif i == 3:
            whole = tf_example_pb2.Example.FromString(record)
            for name, value in example.items():
                if value is None:
                    del whole.features.feature[name]
                elif name == "kind":
                    whole.features.feature[name].int64_list.value[0] = value
                else:
                    whole.features.feature[name].bytes_list.value[0] = (
                        value if isinstance(value, bytes) else encoded(value))
            record = whole.SerializeToString()
        writer.write(record)
    writer.close()
    found = told(UserError, shapes().open, "test")
    assert found.startswith(f"{path}: {text}")
    assert found.endswith(f"; delete {path.parent} and prepare it again.")


def test_what_is_kept_of_contents_is_of_these_files_only(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read once; again when a file was written, though its size and time are set back."""
    reads: list[Path] = []
    read = contents._digests

    def counted(paths: list[Path]) -> list[bytes]:
        reads.extend(paths)
        return read(paths)

    monkeypatch.setattr(contents, "_digests", counted)
    files = [tmp_path / name for name in "ab"]
    for path in files:
        path.write_bytes(b"one")
    first = contents.contents(files)
    assert contents.contents(files) == first and len(reads) == 4, "too fresh to be kept"
    now = time.time()
    monkeypatch.setattr(contents.time, "time", lambda: now + 10)
    assert contents.contents(files) == first and len(reads) == 6
    assert contents.contents(files) == first and len(reads) == 6
    was = files[1].stat()
    files[1].write_bytes(b"two")
    os.utime(files[1], ns=(was.st_atime_ns, was.st_mtime_ns))
    other = contents.contents(files)
    assert other != first and len(reads) == 8
    assert contents.contents(files[::-1]) not in (first, other)
    files[1].unlink()
    assert told(UserError, contents.contents, files) == (
        f"{files[1]}: cannot be read (No such file or directory).")


def test_what_keeps_a_file_from_being_read_does_not_make_it_a_broken_image(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`skip_broken` would leave out whatever came while too many files were open."""
    from tests.test_data_folder import tree

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(folder, "decode", fail)
    data = folder.ImageFolder(path=str(tree(tmp_path)), size=16, skip_broken=True)
    error: Exception = OSError(24, "Too many open files")
    assert told(UserError, data.open, "train") == (
        f"{tmp_path}/train/cat/0.png: cannot be read (Too many open files).")
    error = MemoryError()
    with pytest.raises(MemoryError):
        data.open("train")


class Spoilt(list):  # type: ignore[type-arg]
    """Twenty examples of a user's own, one of which is wrong."""

    def __init__(self, wrong: Any) -> None:
        super().__init__({"image": np.zeros((4, 4), np.float32), "label": np.int32(0)}
                         for _ in range(20))
        self[13] = wrong

    def __getitem__(self, i: Any) -> Any:
        found = super().__getitem__(i)
        if isinstance(found, Exception):
            raise found
        return found


WRONG = {
    "shape": ({"image": np.zeros((1, 4), np.float32), "label": np.int32(0)},
              "data: example 13: 'image' is float32 (1, 4), and float32 (4, 4) in example 12."),
    "dtype": ({"image": np.zeros((4, 4), np.uint8), "label": np.int32(0)},
              "data: example 13: 'image' is uint8 (4, 4), and float32 (4, 4) in example 12."),
    "name": ({"image": np.zeros((4, 4), np.float32)},
             "data: example 13 has 'image', and example 12 has 'image', 'label'."),
    "raises": (ValueError("bad\nrecord"),
               f"data: example 13 cannot be read: ValueError: bad record ({__file__}:LINE)."),
}


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_example_comes_as_an_error_where_its_batch_would(kind: str, many: bool) -> None:
    """In one line with its number; the batches before come whole."""
    wrong, expected = WRONG[kind]
    examples = Spoilt(wrong)
    if many:
        examples.__class__ = type("Many", (Spoilt,), {
            "__getitems__": lambda self, ids: [self[i] for i in ids]})
    batches = ahead(Records(examples=examples), ordered(20, 4))
    assert [next(batches)["index"].tolist() for _ in range(3)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    line = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1)
                if text == "            raise found")
    assert told(UserError, next, batches) == expected.replace("LINE", str(line))
    assert not [t for t in threading.enumerate() if t.name.startswith("read-")]


def test_all_batches_are_of_one_kind() -> None:
    """Else the step would be compiled again, or end in a traceback."""
    class Growing(Records):
        def read(self, index: np.ndarray) -> Any:
            return {"image": np.zeros((len(index), 4 + int(index[0] >= 8)), np.float32)}

    batches = ahead(Growing(examples=range(12)), ordered(12, 4))  # type: ignore[arg-type]
    assert told(UserError, list, batches) == (
        "data: the examples 8, 9, 10 and 1 more: 'image' is float32 (5,), and float32 (4,) in "
        "those before.")


def test_another_source_that_raises_is_told_with_the_examples() -> None:
    class Failing(Records):
        def read(self, index: np.ndarray) -> Any:
            return {}["nothing"]

    text = told(UserError, list, ahead(Failing(examples=range(2)), ordered(2, 2)))  # type: ignore
    assert text.startswith("data: the examples 0, 1 cannot be read: KeyError: 'nothing' (")
    assert f"({__file__}:" in text


# Threads that read (row 29). There are no processes that could be left behind.


class Waiting(list):  # type: ignore[type-arg]
    """Examples of which one does not come; once it is waited for, the process is asked to leave."""

    def __init__(self, source: Any, stuck: int | None, due: threading.Event) -> None:
        super().__init__(range(source.size))
        self.source, self.stuck, self.due = source, stuck, due
        self.released = threading.Event()
        self.lock = threading.Lock()  # Which could not be sent to another process.

    def __getitem__(self, i: Any) -> Any:
        if i == self.stuck:
            self.stuck = None
            self.due.wait(60)
            os.kill(os.getpid(), signal.SIGTERM)
            self.released.wait(60)
        return {name: array[i] for name, array in self.source.arrays.items()}


def waiting(split: str, example: int, due: threading.Event) -> tuple[Any, list[Waiting]]:
    """The tiny experiment, where an example (of training, that at this position) does not come."""
    experiment: Any = shorter(evals={"test": Evaluate(every=6)}, best=Best(), steps=12)
    made: list[Waiting] = []

    class Files(type(experiment.data)):  # type: ignore[misc]
        def open(self, name: str) -> Any:
            source: Any = super().open(name)
            stuck = source.index(0, example, 1)[0] if name == "train" else example
            made.append(Waiting(source, stuck if name == split else None, due))
            return Records(examples=made[-1], transforms=source.transforms)

    data = Files(**{f.name: getattr(experiment.data, f.name)
                    for f in dataclasses.fields(experiment.data)})
    return dataclasses.replace(experiment, data=data), made


@pytest.mark.parametrize(("split", "example", "saved"), [
    ("train", 7 * 128 + 3, 7), ("test", 5, 6), ("train", 3, None)])
def test_a_read_that_hangs_does_not_keep_a_run_from_leaving(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, example: int,
        saved: int | None) -> None:
    """In training, in an evaluation, and before the first step."""
    due, steps, wait = threading.Event(), [0], train.Clock.waiting

    def begins_to_wait(clock: train.Clock, count: int) -> Any:
        steps[0] += count
        if steps[0] > 7:
            due.set()
        return wait(clock, count)

    monkeypatch.setattr(train.Clock, "waiting", begins_to_wait)
    if saved != 7:
        due.set()  # The first batch: there is nothing else to do but to wait for it.
    experiment, made = waiting(split, example, due)
    text = ("left before a step was trained; the same command starts again where this one did"
            if saved is None else rf"saved step {saved}; continue with --workdir={tmp_path}")
    with pytest.raises(Preempted, match=f"^SIGTERM: {text}$"):
        fit(tmp_path, experiment)
    stuck = [t for t in threading.enumerate() if t.name.startswith("read-")]
    assert len(stuck) == 1 and stuck[0].daemon, "left behind, and no other"
    for examples in made:
        examples.released.set()
    stuck[0].join(60)
    assert committed(tmp_path / "checkpoints")[-1:] == ([] if saved is None else [saved])


def test_a_process_ends_though_a_thread_of_it_hangs() -> None:
    """It has no children, and does not wait at its end for the thread."""
    code = ("import os, signal, sys, threading, time\n"
            "from jaxdl.data.loader import in_order\n"
            "from jaxdl.process import Preempted, Signals\n"
            "used = threading.Event()\n"
            "def read(i):\n"
            "    if i == 3:\n"
            "        used.wait()\n"
            "        children = open(f'/proc/self/task/{os.getpid()}/children').read()\n"
            "        sys.stdout.write((children or 'none') + '\\n')\n"
            "        os.kill(os.getpid(), signal.SIGTERM)\n"
            "        time.sleep(3600)\n"
            "    return i\n"
            "try:\n"
            "    with Signals() as signals:\n"
            "        signals.begun = True\n"
            "        for i in in_order(read, 9, signals.poll):\n"
            "            sys.stdout.write(f'{i}\\n')\n"
            "            if i == 2: used.set()\n"
            "except Preempted as error:\n"
            "    print(error); sys.exit(75)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"})
    assert (done.returncode, done.stderr) == (75, "")
    assert sorted(done.stdout.split()) == ["0", "1", "2", "SIGTERM", "none"]


def test_several_processes_do_not_leave_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """There each makes the same calls; `Signals.poll` counts them."""
    def poll() -> None:
        raise Preempted("SIGTERM")

    class Slow(Records):
        def read(self, index: np.ndarray) -> Any:
            time.sleep(0.25)
            return {"x": index}

    slow = Slow(examples=range(4))  # type: ignore[arg-type]
    with pytest.raises(Preempted):
        list(ahead(slow, ordered(4, 2), poll=poll))
    monkeypatch.setattr(distributed, "_peers", object())
    assert len(list(ahead(slow, ordered(4, 2), poll=poll))) == 2


def test_a_thread_computes_nothing_after_the_end() -> None:
    calls: list[int] = []
    before = set(threading.enumerate())  # another test may have left one that hangs
    stream = in_order(lambda i: calls.append(i) or i, 1_000)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    stream.close()
    assert len(calls) < 100 and set(threading.enumerate()) <= before
    assert list(in_order(lambda i: i, 0)) == [] and list(in_order(str, 2)) == ["0", "1"]


# Positions (rows 31 and 32).


def test_a_stopped_run_sees_what_an_endless_list_of_epochs_has_there(campaign: Any) -> None:
    """For any size, batch sizes and number of processes; each epoch has each example once; wrong
    positions are refused."""
    found = campaign.positions(300, 5)
    assert found == {"states": 300, "through a checkpoint": 3, "other data": 0,
                     "more or less than once": 0, "accepted": 0}


def test_grain_gives_other_data(campaign: Any) -> None:
    """The same stops, of a pipeline that counts batches."""
    found = campaign.grain_positions(4, 5)
    assert found["other data"] > 0 and found["accepted"] > 0


@pytest.mark.parametrize("planted", ["position", "seed", "batch", "process"])
def test_a_planted_mistake_is_found(campaign: Any, planted: str,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting batches, another order in the second epoch, a lost example, rows read twice."""
    index = Arrays.index

    def other(self: Arrays, seed: int, position: int, batch_size: int) -> np.ndarray:
        if planted == "position":
            position = position // 7 * 7
        found = index(self, seed + (planted == "seed" and position >= self.size), position,
                      batch_size)
        return np.roll(found, 1) if planted == "batch" else found

    monkeypatch.setattr(Arrays, "index", other)
    if planted == "process":
        monkeypatch.setattr(distributed, "rows", lambda sharding, size: np.arange(size))
        with pytest.raises(AssertionError):
            campaign.positions(20, 5)
        return
    found = campaign.positions(20, 5)
    assert found["other data"] + found["more or less than once"] > 0


@settings(deadline=None, derandomize=True)
@given(size=st.integers(1, 300), batch=st.integers(1, 64), parts=st.sampled_from([1, 2, 4, 8]))
def test_an_evaluation_counts_each_example_once(size: int, batch: int, parts: int) -> None:
    """Whatever the batch size and the number of processes: where the mask is set."""
    batch = -(-batch // parts) * parts
    source, counted = Arrays(arrays={"x": np.arange(size)}), np.zeros(size)
    plan = ordered(size, batch)
    for rows in np.arange(batch).reshape(parts, -1):
        for inputs in ahead(source, plan, rows):
            assert inputs["index"].shape == inputs["mask"].shape == (batch // parts,)
            np.add.at(counted, inputs["index"], inputs["mask"])
    assert (counted == 1).all()
    assert sum(plan[i]["mask"].sum() for i in range(len(plan))) == size


@pytest.mark.parametrize(("start", "steps"), [
    (-1, 1), (POSITIONS, 1), (POSITIONS - 127, 1), (1 << 40, 1), (0, 1 << 25), (-(1 << 63), 1)])
def test_a_position_that_cannot_be_is_refused(start: int, steps: int) -> None:
    """2^32 examples are where a run's counter begins again at 0."""
    assert np.iinfo(np.uint32).max == POSITIONS
    source = Arrays(arrays={"x": np.arange(10)})
    assert told(UserError, shuffled, source, 0, start, 128, steps) == (
        f"{steps:,} steps of 128 examples from example {start:,} on: a run counts from 0 to "
        "4,294,967,295 examples.")
    shuffled(source, 0, POSITIONS - 128, 128, 1)


def ids(folder: Path, experiment: Any, monkeypatch: pytest.MonkeyPatch,
        **options: Any) -> list[int]:
    """Trains; all example ids in order, as the steps of this launch asked for them."""
    found: list[int] = []
    index = Arrays.index

    def noted(self: Arrays, seed: int, position: int, batch_size: int) -> np.ndarray:
        result = index(self, seed, position, batch_size)
        found.extend(result.tolist())
        return result

    monkeypatch.setattr(Arrays, "index", noted)
    fit(folder, experiment, **options)
    monkeypatch.undo()
    return found[experiment.batch_size:]  # The first batch only gives the shapes.


def test_changed_settings_are_refused_or_continue_where_the_run_was(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another batch size or number of steps goes on at the same example; another seed at the same
    position of another order."""
    quick = shorter(steps=6, evals={}, best=Best(), log_every=6, save_every=6)
    first = ids(tmp_path, quick, monkeypatch)
    order = np.concatenate([permutation(0, epoch, 1438) for epoch in range(2)]).tolist()
    assert first == order[:6 * 128]
    changed = dataclasses.replace(quick, steps=16, batch_size=64)
    assert told(UserError, fit, tmp_path, changed) == (
        f"--workdir={tmp_path}: holds another experiment (steps: 6 then, 16 now; batch_size: 128 "
        "then, 64 now). Choose another, or continue it so with --accept_changes.")
    assert ids(tmp_path, changed, monkeypatch, accept_changes=True) == order[6 * 128:][:10 * 64]
    other = dataclasses.replace(changed, steps=18, seed=1)
    assert "seed: 0 then, 1 now" in told(UserError, fit, tmp_path, other)
    assert ids(tmp_path, other, monkeypatch, accept_changes=True) == permutation(1, 0, 1438)[
        6 * 128 + 10 * 64:][:2 * 64].tolist() + permutation(1, 1, 1438)[:98].tolist()

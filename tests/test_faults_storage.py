"""Damaged, strange, moved and contested run directories: nothing is lost, and each is told.

The larger campaigns are those of benchmarks/faults.py.
"""

import dataclasses
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxdl import checkpoint, process
from jaxdl.checkpoint import Checkpoints, committed
from jaxdl.errors import RunError, UserError
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best
from tests.test_benchmarks import module
from tests.test_checkpoint import restore, state, three  # noqa: F401 (a fixture)
from tests.test_train import fit, run_of
from tests.tiny import shorter


@pytest.fixture
def quick() -> Iterator[Path]:
    """A folder in memory, where fsync costs nothing."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def retention() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        yield module("retention", patch)


# Which checkpoints stay.

metrics = st.one_of(st.just(float("nan")), st.integers(0, 5).map(lambda n: n / 5))
kills = st.one_of(st.none(), st.none(), st.integers(0, 30))


@settings(deadline=None, derandomize=True, max_examples=200,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_stays_is_what_the_policy_says(retention: Any, quick: Path, data: Any) -> None:
    """Never without an intact step; the best is kept; after kills and damage too."""
    events = data.draw(st.lists(st.one_of(
        st.builds(retention.Save, metric=metrics, kill=kills),
        st.builds(retention.Save, metric=metrics, kill=kills),
        st.builds(retention.Restart, keep=st.integers(1, 3), kill=kills),
        st.builds(retention.Damage, back=st.integers(0, 1), manifest=st.booleans())),
        min_size=4, max_size=14))
    assert retention.violation(events, quick / "run") is None


@pytest.mark.parametrize("mutant", [
    "NaN counts as best", "files deleted before the manifest", "only the newest's best stays",
    "old ones deleted before the commit", "files not verified"])
def test_a_mistake_in_what_stays_is_found(retention: Any, quick: Path, mutant: str) -> None:
    with mock.patch.object(*retention.MUTANTS[mutant]):
        assert any(retention.violation(retention.schedule(random.Random(seed)), quick / "run")
                   for seed in range(100))


# What is not ours.

KINDS = {"folder": Path.mkdir, "file": Path.touch, "pipe": os.mkfifo,
         "link": lambda path: path.symlink_to("/nowhere")}
odd = st.sampled_from([
    "999", "0003", "٣", "٣.pending", "4_bak", "1e3", "-5", "+9", " 9", "9\n", "9.json", "5.json",
    "05.json", "x.json", "9.json.bak", "9.pending", "x.pending", "9.orbax-checkpoint-tmp-1",
    "3.orbax-checkpoint-tmp-1", ".hidden", "x" * 255, "é" * 127, "\udc80", "a b;$(c)", "[red]x"])
names = st.one_of(odd, st.text(st.characters(codec="utf-8", exclude_characters="/\0"),
                               min_size=1, max_size=20))


def ours(name: str, kind: str) -> bool:
    """Names that jaxdl uses itself."""
    return name in (".", "..", "quarantine") or (
        kind == "file" and re.fullmatch(r"(0|[1-9][0-9]*)\.pending|\.[0-9]+\.json\.tmp", name)
        is not None)


@settings(deadline=None, derandomize=True, max_examples=250,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(names, st.sampled_from(sorted(KINDS)), st.booleans()), max_size=10))
def test_strange_names_are_ignored_and_never_deleted(
        retention: Any, quick: Path, strays: list[tuple[str, str, bool]]) -> None:
    """The newest step is restored, a later one is saved, and all that was there is still there."""
    folder = quick / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    with retention.small_files():
        store = Checkpoints(folder, keep=2)
        for step in (3, 6):
            store.save(step, {"x": np.int32(step)}, {})
            store.wait()
        inodes, in_arrays = set(), set()
        for name, kind, inside in strays:
            path = (folder / "arrays" if inside else folder) / name
            if not ours(name, kind) and not os.path.lexists(path):
                KINDS[kind](path)
                inodes.add(path.lstat().st_ino)
                in_arrays |= {name} if inside else set()
        store = Checkpoints(folder, keep=2)
        restored = store.restore(retention.TARGET)
        assert restored is not None and int(restored[0]["x"]) == 6
        if "9.pending" not in {name for name, kind, _ in strays if kind != "file"}:
            store.save(9, {"x": np.int32(9)}, {})
            store.close()
            checkpoint.verify(folder, 9)
    assert store.set_aside == [
        f"{folder}/arrays: {name!r} belongs to no committed step: moved to quarantine"
        for name in sorted(in_arrays)]
    left = {Path(root, name).lstat().st_ino for root, folders, files in os.walk(folder)
            for name in folders + files}
    assert inodes <= left


def test_a_deleted_manifest_is_told(three: Path) -> None:  # noqa: F811
    (three / "3.json").unlink()
    store = Checkpoints(three, keep=3)
    assert store.set_aside == [
        f"{three}/arrays: '3' belongs to no committed step: moved to quarantine"]
    store.close()
    assert restore(three)[1] == {"note": 2}


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_manifest_is_a_regular_file(three: Path, kind: str) -> None:  # noqa: F811
    path = three / "3.json"
    path.rename(three / "elsewhere")
    {**KINDS, "link": lambda path: path.symlink_to(three / "elsewhere")}[kind](path)
    _, meta, skipped = restore(three)
    assert meta == {"note": 2}
    assert skipped == [f"checkpoint of step 3 passed over: {path} is not the manifest that was "
                       "written"]


def test_a_strange_manifest_in_the_way_of_a_save_is_set_aside(three: Path) -> None:  # noqa: F811
    store = Checkpoints(three, keep=3)
    (three / "4.json").write_text("{}")
    (three / "arrays" / "4").mkdir()
    store.save(4, state(4), {"note": 4})
    store.close()
    assert restore(three)[1] == {"note": 4}
    assert {p.name[5:] for p in (three / "quarantine").iterdir()} == {"4.json", "4"}


# One process, one directory.


def test_the_holder_is_named_even_while_it_signs(tmp_path: Path) -> None:
    """Another's signature, left by one that was killed, is not taken for it."""
    (tmp_path / "LOCK").write_text("process 1 on elsewhere since 1999-01-01 00:00:00")
    flock, held = process.fcntl.flock, threading.Event()

    def slow(file: Any, how: int) -> None:
        flock(file, how)
        held.set()
        time.sleep(0.05)

    def hold() -> None:
        with mock.patch.object(process.fcntl, "flock", slow):
            locks.append(process.Lock(tmp_path))

    locks: list[process.Lock] = []
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with (mock.patch.object(process.fcntl, "flock", flock),
          pytest.raises(UserError, match=rf"^{tmp_path} is in use by process {os.getpid()} on ")):
        process.Lock(tmp_path)
    thread.join()
    locks[0].release()
    process.Lock(tmp_path).release()


def test_two_that_start_at_once_do_not_meet_in_the_probe(tmp_path: Path) -> None:
    """The second is refused before it touches anything: no file of the first is in its way."""
    run_of(tmp_path, shorter()).close()
    holder = process.Lock(tmp_path)
    with (mock.patch.object(Path, "touch", side_effect=AssertionError("touched")),
          pytest.raises(UserError, match="is in use by process")):
        run_of(tmp_path, shorter())
    holder.release()


def test_a_lock_that_cannot_be_signed_is_one_line(tmp_path: Path) -> None:
    """As on a full disk: no file can grow here."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, old[1]))
    try:
        with pytest.raises(UserError) as error:
            run_of(tmp_path, shorter())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert str(error.value) == f"--workdir={tmp_path}: cannot be written (File too large)."


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_a_run_of_another_user_is_one_line(tmp_path: Path) -> None:
    run_of(tmp_path / "run", shorter()).close()
    for path in (tmp_path.parent, tmp_path, tmp_path / "run"):
        path.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(UserError) as error:
            run_of(tmp_path / "run", shorter())
    finally:
        os.seteuid(0)
    assert str(error.value) == (
        f"--workdir={tmp_path / 'run'}: cannot be written (Permission denied).")


# Moved, copied and deleted.


def test_a_moved_run_continues_and_a_copy_without_empty_folders_too(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path / "a", shorter(steps=6))
    (tmp_path / "a").rename(tmp_path / "moved")
    copy = shutil.copytree(tmp_path / "moved", tmp_path / "copied")
    for folder in ("moved", "copied"):
        if folder == "copied":  # As an object store or git would copy it.
            for root, _, _ in os.walk(copy, topdown=False):
                if not os.listdir(root):
                    os.rmdir(root)
        capsys.readouterr()
        fit(tmp_path / folder, shorter(steps=8), accept_changes=True)
        out = capsys.readouterr().out
        assert f"continuing {tmp_path / folder} from step 6" in out and "warning" not in out
        assert committed(tmp_path / folder / "checkpoints")[-1] == 8


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_run_that_is_taken_away_ends_in_one_line(tmp_path: Path, how: str) -> None:
    class Removing(Evaluate):
        def __call__(self, task: Any, state: Any, context: Any) -> dict[str, float]:
            while list(context.folder.glob("checkpoints/*.pending")):
                time.sleep(0.01)
            if how == "deleted":
                shutil.rmtree(context.folder)
            else:
                context.folder.rename(tmp_path / "moved")
            return {}

    run = tmp_path / "run"
    experiment = dataclasses.replace(shorter(steps=12), best=Best(),
                                     evals={"test": Removing(every=6)})
    with pytest.raises(RunError) as error:
        fit(run, experiment)
    folder = run / "checkpoints"
    assert str(error.value) == (f"{folder}: No such file or directory; {folder} was deleted or "
                                "moved while the run wrote into it.")
    if how == "moved":
        assert committed(tmp_path / "moved" / "checkpoints") == [5]
        checkpoint.verify(tmp_path / "moved" / "checkpoints", 5)


def test_a_save_that_fails_is_one_line(tmp_path: Path) -> None:
    """Orbax would print hundreds: of its threads, of event loops that were closed meanwhile."""
    tiny = Path(__file__).parent / "tiny.py"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 100; exec {sys.executable} launch.py --experiment={tiny} "
         f"--task.model.widths='(256,256)' --workdir={tmp_path / 'run'}"], cwd=tiny.parent.parent,
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": ""})
    assert done.returncode == 1
    assert re.fullmatch(rf"error: {tmp_path}/run/checkpoints: saving failed: .*File too large.*\n",
                        done.stderr), done.stderr

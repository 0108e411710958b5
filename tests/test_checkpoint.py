"""Checkpoints: what is committed can be restored to the bit, and nothing else is."""

import contextlib
import errno
import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import checkpoint
from jaxdl.checkpoint import Checkpoints, committed
from jaxdl.errors import RunError, UserError


def state(step: int) -> dict[str, Any]:
    return {"state": {
        "step": jnp.int32(step), "key": jax.random.key(step),
        "params": {"a": {"kernel": jnp.full((4, 3), step, jnp.float32)},
                   "b": jnp.arange(5, dtype=jnp.bfloat16) + step},
        "opt_state": (jnp.zeros(2) + step, {"count": jnp.uint32(step)})}}


def target(tree: Any = None) -> Any:
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
                        state(0) if tree is None else tree)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Path]:
    """A folder with the steps 1, 2 and 3."""
    store = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        store.save(step, state(step), {"note": step})
    store.close()
    yield tmp_path


def restore(folder: Path, tree: Any = None) -> Any:
    store = Checkpoints(folder, keep=3)
    try:
        return store.restore(target(tree))
    finally:
        store.close()


def test_what_is_saved_is_restored_to_the_bit(three: Path) -> None:
    restored, meta, skipped = restore(three)
    assert (meta, skipped) == ({"note": 3}, [])
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, state(3))
    assert jnp.array_equal(jax.random.key_data(restored["state"].pop("key")),
                           jax.random.key_data(jax.random.key(3)))
    expected = state(3)
    expected["state"].pop("key")
    chex.assert_trees_all_equal(restored, expected)


def test_nothing_is_restored_from_nothing(tmp_path: Path) -> None:
    assert restore(tmp_path) is None


def test_the_newest_stay_and_the_best(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=2)
    for step in range(1, 7):
        store.save(step, state(step), {}, best=2)
    store.close()
    assert committed(tmp_path) == [2, 5, 6]
    assert sorted(p.name for p in (tmp_path / "arrays").iterdir()) == ["2", "5", "6"]
    assert not list(tmp_path.glob("*.pending"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete", "link", "extra"])
def test_a_damaged_checkpoint_is_passed_over(three: Path, damage: str) -> None:
    files = sorted(p for p in (three / "arrays" / "3").rglob("*") if p.is_file())
    path = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "delete":
        path.unlink()
    elif damage == "link":
        path.rename(three / "elsewhere")
        path.symlink_to(three / "elsewhere")
    else:
        path.with_name("more").write_bytes(b"x")
    restored, meta, skipped = restore(three)
    assert meta == {"note": 2} and int(restored["state"]["step"]) == 2
    assert len(skipped) == 1 and skipped[0].startswith("checkpoint of step 3 passed over: ")
    assert committed(three) == [1, 2], "set aside, so that saves of step 3 happen again"
    assert any((three / "quarantine").iterdir())
    store = Checkpoints(three, keep=3)
    store.save(3, state(3), {"note": 33})
    store.close()
    assert restore(three)[1] == {"note": 33}


def test_every_file_is_watched(three: Path) -> None:
    """A flipped bit in any file of a step is found and the file is named."""
    files = sorted(p for p in (three / "arrays" / "3").rglob("*")
                   if p.is_file() and p.stat().st_size)
    assert len(files) >= 5
    for path in files:
        good = path.read_bytes()
        path.write_bytes(bytes([good[0] ^ 4]) + good[1:])
        with pytest.raises(ValueError, match=rf"{path.name} is changed"):
            checkpoint.verify(three, 3)
        path.write_bytes(good)
    checkpoint.verify(three, 3)


def test_no_intact_checkpoint_is_an_error_that_deletes_nothing(three: Path) -> None:
    for step in (1, 2, 3):
        (three / "arrays" / str(step) / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(UserError, match=r"no checkpoint is intact\. checkpoint of step 3 passed"):
        restore(three)
    assert committed(three) == [1, 2, 3]


def test_a_torn_manifest_is_no_commit(three: Path) -> None:
    text = (three / "3.json").read_text()
    (three / "3.json").write_text(text[:len(text) // 2])
    assert restore(three)[1] == {"note": 2}


def test_a_killed_save_leaves_nothing_that_counts(three: Path) -> None:
    """Arrays without a manifest are deleted if they are ours, and set aside if they are not."""
    (three / "4.pending").touch()
    (three / "arrays" / "4").mkdir()
    (three / "arrays" / "5.orbax-checkpoint-tmp-1").mkdir()
    (three / "5.pending").touch()
    (three / "arrays" / "999").mkdir()
    (three / "arrays" / "0003").mkdir()
    (three / "arrays" / "notes.txt").write_text("mine")
    assert restore(three)[1] == {"note": 3}
    assert sorted(p.name for p in (three / "arrays").iterdir()) == ["1", "2", "3"]
    aside = sorted(p.name[5:] for p in (three / "quarantine").iterdir())
    assert aside == ["0003", "999", "notes.txt"]


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: s["params"].update(b=jnp.zeros(6, jnp.bfloat16)),
     "state/params/b is stored as bfloat16[5], the experiment has bfloat16[6]"),
    (lambda s: s["params"].update(b=jnp.zeros(5, jnp.float32)),
     "state/params/b is stored as bfloat16[5], the experiment has float32[5]"),
    (lambda s: s["params"].update(c=jnp.zeros(1)),
     "state/params/c is not stored Did you mean 'state/params/b'?"),
    (lambda s: s["params"].pop("b"), "state/params/b is stored, but not in the experiment"),
    (lambda s: s.update(key=jax.random.key(0, impl="rbg")),
     "state/key is stored as key<fry>[], the experiment has key<rbg>[]"),
])
def test_another_state_is_refused(three: Path, change: Any, message: str) -> None:
    tree = state(0)
    change(tree["state"])
    with pytest.raises(UserError) as error:
        restore(three, tree)
    assert str(error.value) == (f"{three}/3.json: not a checkpoint of this experiment: {message}.")


def test_an_asynchronous_error_surfaces_at_the_next_step(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoint, "digest", lambda *a, **k: (_ for _ in ()).throw(
        OSError(28, "No space left on device")))
    store.save(1, state(1), {})
    assert store._commit is not None
    store._commit.join()
    with pytest.raises(RunError, match=r"saving failed: .*No space left on device"):
        store.poll()
    store.close()
    assert committed(tmp_path) == []


@pytest.mark.parametrize("folder", [
    "2", "2/default", "2/default/d", "2/default/ocdbt.process_0/d",
    "2.orbax-checkpoint-tmp/default.orbax-checkpoint-tmp"])  # where Orbax looks what to merge
def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    store, scandir, failed = Checkpoints(tmp_path, keep=1), os.scandir, []

    def listed(path: Any = ".") -> Any:
        if str(path) == str(tmp_path / "arrays" / folder):
            failed.append(path)
            raise OSError(errno.EIO, "Input/output error", str(path))
        return scandir(path)

    store.save(1, state(1), {})
    store.wait()
    monkeypatch.setattr(os, "scandir", listed)
    store.save(2, state(2), {})
    with pytest.raises(RunError, match=r"saving failed: .*(cannot be listed|did not find)"):
        store.wait()
    monkeypatch.undo()
    store.close()
    assert failed and committed(tmp_path) == [1]
    assert restore(tmp_path)[1] == {}


def test_a_run_is_not_taken_for_new_when_its_checkpoints_cannot_be_listed(
        three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Any = ".") -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr(os, "listdir", refused)
    for look in (committed, Checkpoints):
        with pytest.raises(UserError, match=rf"{three}: cannot be listed \(Permission denied\)\."):
            look(three)


def test_a_save_that_failed_is_told_once(three: Path) -> None:
    """Orbax's own error, which it raises again when it is closed, would hide ours."""
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    tree = {"x": jax.random.normal(jax.random.key(0), (1 << 15,))}
    with (pytest.raises(RunError, match=r"saving failed: .*File too large"),
          contextlib.closing(Checkpoints(three, keep=3)) as store):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
        try:
            store.save(4, tree, {})
            store.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    assert restore(three)[1] == {"note": 3}


def test_no_space_is_known_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Checkpoints(tmp_path)
    usage = checkpoint.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"4 checkpoints need 328 bytes, 100 are free"):
        store.check_space(state(0), 4)
    with pytest.raises(RunError, match="the earlier steps are intact"):
        store.save(1, state(1), {})
    store.close()


def test_a_newer_format_says_so(three: Path) -> None:
    manifest = json.loads((three / "3.json").read_text())
    (three / "3.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(UserError, match=r"written by a newer jaxdl \(format 99; this one reads"):
        restore(three)


def test_saving_does_not_wait_for_the_disk_and_survives_donation(tmp_path: Path) -> None:
    """The state may be overwritten by the next step as soon as save() returns."""
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    tree = {"x": jnp.zeros(1 << 20)}
    store = Checkpoints(tmp_path)
    store.save(1, tree, {})
    for _ in range(5):
        tree = step(tree)
    store.close()
    restored, _ = checkpoint.load(tmp_path, 1, target(tree))
    np.testing.assert_array_equal(restored["x"], 0)


def test_a_committed_step_may_learn_more_of_itself(three: Path) -> None:
    """Saving it again, after an evaluation say, keeps the arrays and renews what is remembered."""
    store = Checkpoints(three, keep=3)
    store.save(3, state(9), {"note": "evaluated"})
    store.close()
    restored, meta, _ = restore(three)
    assert meta == {"note": "evaluated"} and int(restored["state"]["step"]) == 3


def test_the_best_of_every_kept_checkpoint_stays(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=2)
    for step, best in ((1, 1), (2, 1), (3, 3)):
        store.save(step, state(step), {"progress": {"best_step": best}}, best=best)
    store.close()
    assert committed(tmp_path) == [1, 2, 3], "if 3 is damaged, 2 is restored, whose best is 1"


def test_a_changed_manifest_is_no_manifest(three: Path) -> None:
    text = (three / "3.json").read_text()
    (three / "3.json").write_text(text.replace('"note": 3', '"note": 4'))
    assert restore(three)[1] == {"note": 2}


def test_a_save_leaves_nothing_in_memory(tmp_path: Path) -> None:
    """TensorStore never frees the lists of its counters, nor the dictionaries of its specs."""
    import gc

    import tensorstore
    from orbax.checkpoint._src.serialization import tensorstore_utils

    store = Checkpoints(tmp_path / "checkpoints")
    assert tensorstore_utils.get_tensorstore_raw_bytes() == 0
    local = {"driver": "file", "path": f"{tmp_path}/"}
    spec = tensorstore_utils.ts.KvStore.Spec(local)
    assert spec.path == local["path"]
    assert spec.to_json() == tensorstore.KvStore.Spec(local).to_json()
    assert tensorstore_utils.ts.KvStore.open(spec).result().path == local["path"]

    state = {f"x{i}": np.ones(3) for i in range(20)}

    def saved(steps: range) -> tuple[int, int]:
        for step in steps:
            store.save(step, state, {})
            store.wait()
        gc.collect()
        return (sum(type(x) is list for x in gc.get_objects()), sys.getallocatedblocks())

    saved(range(1, 11))
    before, after = saved(range(11, 21)), saved(range(21, 41))
    assert after[0] - before[0] < 200  # It was 440,
    assert after[1] - before[1] < 600  # and 1,760: four for each of 22 specs.
    store.close()

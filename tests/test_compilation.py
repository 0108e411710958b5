"""What is kept between steps and between runs: the memory, and compiled programs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxdl import compilation
from jaxdl.layers import Dropout
from jaxdl.tracing import current, tracing

RESIDENT = """
import sys
import numpy as np
from jaxdl import allocator
kept = allocator.keep_memory()
x = np.ones(270_000_000)  # 2.16 GB: more than an int of glibc's thresholds holds
before = allocator.kept()
del x
assert not kept or allocator.kept() - before > 2e9 or not hasattr(allocator.ctypes.CDLL(None),
                                                                  "mallinfo2")
size = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
print(kept, int(size.split()[1]) // 1024)
"""

PROGRAM = """
import jax, jax.numpy as jnp
from jaxdl import compilation
compilation.keep_programs()
compilation.keep_programs()
jax.jit(lambda x: jnp.sin(x) + {addend})(jnp.ones(3)).block_until_ready()
print(*compilation.lookups(), jax.config.jax_compilation_cache_dir)
"""


def run(code: str, **environment: str) -> list[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "JAXDL_"))}
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                          env={**kept, "JAX_PLATFORMS": "cpu", **environment}).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_stays_in_the_process() -> None:
    kept, megabytes = run(RESIDENT)
    assert kept == "True"
    assert int(megabytes) > 2_000
    kept, megabytes = run(RESIDENT, JAXDL_MALLOC="default")
    assert kept == "False"
    assert int(megabytes) < 150


def test_programs_are_kept_between_processes(tmp_path: Path) -> None:
    """In the user's cache folder, however small they are; another program is another."""
    code = PROGRAM.format(addend=1)
    found, missed, folder = run(code, XDG_CACHE_HOME=str(tmp_path))
    assert int(found) == 0 < int(missed)
    assert Path(folder).parent == tmp_path / "jaxdl" / "programs"
    assert Path(folder).stat().st_mode & 0o77 == 0  # What it holds is executed.
    again, none, _ = run(code, XDG_CACHE_HOME=str(tmp_path))
    assert (again, none) == (missed, "0")
    _, other, _ = run(PROGRAM.format(addend=2), XDG_CACHE_HOME=str(tmp_path))
    assert int(other) == 1


def test_a_folder_that_the_user_has_set_stays(tmp_path: Path) -> None:
    _, missed, folder = run(PROGRAM.format(addend=1), JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert folder == str(tmp_path)
    assert int(missed) > 0


def test_the_least_recently_used_programs_go(tmp_path: Path) -> None:
    for name, size, used, written in [("a", 10, 300, 100), ("b", 20, 200, 200), ("c", 30, 0, 400),
                                      ("d", 40, 0, 100)]:
        (tmp_path / name).write_bytes(bytes(size))
        os.utime(tmp_path / name, (used, written))
    for limit, left in [(100, "abcd"), (99, "abc"), (59, "ac"), (0, "")]:
        compilation.trim(tmp_path, limit)
        assert sorted(p.name for p in tmp_path.iterdir()) == list(left)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, capfd: Any,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    old = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation.keep_programs()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", old)
    assert capfd.readouterr().err == (
        f"note: compiled programs are not kept: {compilation.folder()}: Not a directory.\n")


def test_each_processor_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    here = compilation.folder()
    monkeypatch.setattr(Path, "read_text", lambda self: "flags\t: fpu avx9\n")
    assert compilation.folder().parent == here.parent
    assert compilation.folder() != here


def test_what_a_trace_knows_ends_with_it() -> None:
    with tracing(runs=7):
        with tracing(loop=True):
            assert (current().runs, current().loop) == (7, True)
        assert (current().runs, current().loop) == (7, False)
    assert current().runs == 1


def test_devices_draw_their_rows_of_one_dropout() -> None:
    """Under shard_map, as in the mode "pmap"."""
    x, key = jnp.ones((16, 5)), jax.random.key(3)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def drop(x: jax.Array) -> jax.Array:
        return Dropout(0.5).apply({}, x, True, rngs={"dropout": key})  # type: ignore[return-value]

    def local(x: jax.Array) -> jax.Array:
        with tracing(device_axis="data"):
            return drop(x)

    split = jax.sharding.PartitionSpec("data")
    mapped = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=split, out_specs=split))
    assert (mapped(x) == drop(x)).all()
    assert len(set(map(bytes, jax.device_get(mapped(x))))) > 8  # not the same on all devices

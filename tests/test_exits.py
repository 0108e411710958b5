"""Status 0 means that the last step is on disk, however a program that saves ends."""

import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxdl import cli, distributed
from jaxdl.checkpoint import committed

TOO_LATE = "can't create new thread at interpreter shutdown"
LESS = ("a smaller model or --batch_size, --task.accumulate or --task.remat takes less. What is "
        "committed is intact.")
LIMIT = 2_500_000_000  # bytes of address space, of which jax takes a third
ROOT = Path(__file__).parent.parent
SAVE = """
import sys
from pathlib import Path
import jax.numpy as jnp
from jaxdl import checkpoint

store = checkpoint.Checkpoints(Path(sys.argv[1]))
"""


@pytest.mark.parametrize(("end", "status", "error"), [
    ("", 0, ""),
    ("sys.exit(3)", 3, ""),
    ("raise KeyError('x')", 1, "KeyError: 'x'\n"),
    ("store = None", 0, "")], ids=["end", "exit", "exception", "forgotten"])
def test_a_save_in_flight_is_finished(tmp_path: Path, end: str, status: int, error: str) -> None:
    """From Python 3.12 on nothing can be finished any more, which is no success."""
    done = subprocess.run(
        [sys.executable, "-c", f"{SAVE}store.save(1, {{'x': jnp.zeros(1_000_000)}}, {{}})\n{end}",
         str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=100)
    if TOO_LATE in done.stderr and sys.version_info >= (3, 12):
        assert (done.returncode, committed(tmp_path)) == (1, [])
        assert done.stderr.endswith(f"error: {tmp_path}: saving failed: {TOO_LATE}\n")
        return
    assert (done.returncode, done.stderr[-len(error):] if error else done.stderr) == (status, error)
    assert committed(tmp_path) == [1]


def test_a_save_that_failed_is_no_success(tmp_path: Path) -> None:
    """Nobody asks for its error, and the program ends well otherwise."""
    done = subprocess.run(
        [sys.executable, "-c", f"{SAVE}def full(*args, **options):\n"
         "    raise OSError(28, 'No space left on device')\n"
         "checkpoint.digest = full\nstore.save(1, {'x': jnp.zeros(1)}, {})", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    late = TOO_LATE in done.stderr and sys.version_info >= (3, 12)
    assert done.stderr == (f"error: {tmp_path}: saving failed: "
                           f"{TOO_LATE if late else '[Errno 28] No space left on device'}\n")
    assert committed(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the limit and what is left are of Linux")
@pytest.mark.parametrize(("change", "what"), [
    ("--task.model.widths=30000,30000", "the state"),
    ("--task.model.widths=300000 --batch_size=1400", "a step")])
def test_too_little_memory_of_the_process_is_one_line(tmp_path: Path, change: str, what: str
                                                      ) -> None:
    """Told before it is asked for: JAX would wait for ever for what could not be allocated."""
    done = subprocess.run(
        ["bash", "-c", f'ulimit -v {LIMIT // 1024}; exec "$@"', "-", sys.executable, "launch.py",
         "--experiment=mlp_digits", *change.split(), "--steps=2", f"--workdir={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert re.fullmatch(rf"error: out of memory: {what} would take \d+\.\d GB, \d\.\d GB are left; "
                        rf"{LESS}\n", done.stderr), done.stderr


def test_too_little_memory_on_the_device_is_one_line(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With JAX's own error, of an array that no machine holds; another error stays what it is."""
    def allocate(*args: object) -> int:
        jnp.zeros((1 << 22, 1 << 24)).block_until_ready()
        return 0

    def broken(*args: object) -> int:
        raise RuntimeError("a mistake in jaxdl")

    monkeypatch.setattr(cli, "parse", allocate)
    assert cli.main(["show", "--experiment=mlp_digits"]) == 1
    assert re.fullmatch("error: out of memory: RESOURCE_EXHAUSTED: .*281474976710656 bytes.*; "
                        rf"{LESS}\n", capsys.readouterr().err)
    assert distributed.described(MemoryError()) == (f"error: out of memory: MemoryError; {LESS}", 1)
    monkeypatch.setattr(cli, "parse", broken)
    with pytest.raises(RuntimeError, match="a mistake in jaxdl"):
        cli.main(["show", "--experiment=mlp_digits"])

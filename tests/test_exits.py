"""Status 0 means that the last step is on disk, however a program that saves ends."""

import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxdl import cli, distributed
from jaxdl.checkpoint import committed

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
    done = subprocess.run(
        [sys.executable, "-c", f"{SAVE}store.save(1, {{'x': jnp.zeros(1_000_000)}}, {{}})\n{end}",
         str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=100)
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
    assert done.stderr == (f"error: {tmp_path}: saving failed: [Errno 28] No space left on "
                           "device\n")
    assert committed(tmp_path) == []


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
    assert re.fullmatch(r"error: out of memory: RESOURCE_EXHAUSTED: .*281474976710656 bytes.*; a "
                        r"smaller --batch_size, --task\.accumulate or --task\.remat takes less\. "
                        r"What is committed is intact\.\n", capsys.readouterr().err)
    assert distributed.described(MemoryError()) == (
        "error: out of memory: MemoryError; a smaller --batch_size, --task.accumulate or "
        "--task.remat takes less. What is committed is intact.", 1)
    monkeypatch.setattr(cli, "parse", broken)
    with pytest.raises(RuntimeError, match="a mistake in jaxdl"):
        cli.main(["show", "--experiment=mlp_digits"])

"""Reading data runs no code: there is no call that could, and what is planted does not run."""

import ast
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxdl import checkpoint
from jaxdl.checkpoint import Checkpoints

ROOT = Path(__file__).parent.parent
OURS = [*(ROOT / "jaxdl").rglob("*.py"), *(ROOT / "experiments").glob("*.py"), ROOT / "launch.py"]
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
CALLS = {"eval", "exec", "os.system", "os.popen", "extractall", "torch.load"}


def forbidden(source: str) -> Iterator[str]:
    """What no file of ours may contain."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS or name.split(".")[-1] in CALLS - {"eval", "exec"}:
                yield name
            for word in node.keywords:
                if word.arg in ("shell", "allow_pickle") and ast.unparse(word.value) != "False":
                    yield f"{name}({word.arg})"
        elif isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::"):
            yield str(node.value)


@pytest.mark.parametrize("path", OURS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_of_ours_can_run_data(path: Path) -> None:
    assert list(forbidden(path.read_text())) == []


@pytest.mark.parametrize("source", [
    "import pickle", "from dill import loads", "eval('1')", "import os; os.system('x')",
    "archive.extractall('x')", "np.load('x', allow_pickle=True)", "run('x', shell=True)",
    "server.bind(('0.0.0.0', 80))"])
def test_what_is_forbidden_is_found(source: str) -> None:
    assert list(forbidden(source))


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


def test_a_pickle_in_a_checkpoint_is_never_loaded(tmp_path: Path) -> None:
    """Not even where the manifest was written anew for it."""
    canary, folder = tmp_path / "canary", tmp_path / "checkpoints"
    pickle.loads(pickle.dumps(Payload(canary)))
    canary.unlink()  # So it would be made.
    state = {"x": jnp.arange(4.)}
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state, {})
    checkpoints.close()
    files = [p for p in (folder / "arrays" / "1").rglob("*") if p.is_file()]
    assert len(files) > 5
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(pickle.dumps(Payload(canary)))
        manifest = checkpoint.read_manifest(folder, 1)
        manifest["files"] = checkpoint.digest(folder / "arrays" / "1")
        manifest["sha256"] = checkpoint._seal(manifest)
        (folder / "1.json").write_text(json.dumps(manifest))
        checkpoint.verify(folder, 1)
        try:
            checkpoint.load(folder, 1, state)
        except Exception as error:  # Anything that Orbax may say of a file that is none of its.
            assert str(error)
        assert not canary.exists()
        path.write_bytes(whole)


def test_a_picture_starts_no_program(tmp_path: Path) -> None:
    """Pillow goes by content, and has Ghostscript read what begins like PostScript."""
    from jaxdl.data.images import decode

    file = tmp_path / "x.png"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n"
                     b"%%EndComments\nshowpage\n")
    for given in (file, file.read_bytes()):
        with pytest.raises(ValueError, match="it begins like no known format"):
            decode(given, size=8, channels=1)

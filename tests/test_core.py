"""The promises about the code itself."""

import ast
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ("experiment", "config", "task", "optimizer", "evaluate", "train", "parallel", "checkpoint",
        "record")


def code_lines(path: Path) -> int:
    """Lines that hold code: no blanks, comments or docstrings."""
    text = path.read_text()
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
            tokenize.ENCODING, tokenize.ENDMARKER}
    lines: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in skip:
                lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def test_the_core_is_small() -> None:
    counts = {name: code_lines(ROOT / "jaxdl" / f"{name}.py") for name in CORE}
    assert sum(counts.values()) < 2000, counts


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("name", [*CORE, "allocator", "apart", "check", "checks/data",
                                  "checks/model", "checks/subject", "checks/training", "clock",
                                  "compilation", "cost", "distributed", "files", "interpret",
                                  "logged", "nonfinite", "page", "pictures", "preflight",
                                  "process", "profile", "report", "resume", "retrace", "serve",
                                  "tracing"])
def test_the_core_knows_no_family(name: str) -> None:
    for module in imports(ROOT / "jaxdl" / f"{name}.py"):
        assert not module.startswith(("jaxdl.models", "jaxdl.tasks", "jaxdl.envs"))


def test_only_checkpoint_knows_orbax() -> None:
    users = [p.name for p in (ROOT / "jaxdl").rglob("*.py")
             if any(m.startswith("orbax") for m in imports(p))]
    assert users == ["checkpoint.py"]


def test_no_code_is_read_from_data() -> None:
    """No pickle, eval or exec, and no archive is unpacked by the library's own extractall."""
    for path in (ROOT / "jaxdl").rglob("*.py"):
        modules = imports(path)
        assert not modules & {"pickle", "dill", "cloudpickle", "marshal", "shelve", "yaml"}, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                assert name not in ("eval", "exec", "extractall"), f"{path}:{node.lineno}"
                assert not any(k.arg == "shell" for k in node.keywords), f"{path}:{node.lineno}"
                assert not (name == "load" and any(k.arg == "allow_pickle" for k in node.keywords))


@pytest.mark.parametrize(("arguments", "status", "absent"), [
    (["list"], 0, ("jax", "flax", "orbax", "tensorflow_datasets", "tyro")),
    (["--help"], 0, ("jax", "flax", "orbax", "tensorflow_datasets", "tyro")),
    (["trian"], 2, ("jax", "flax", "orbax", "tensorflow_datasets", "tyro")),
    (["--experiment=mpl_digits"], 2, ("jax", "flax", "orbax", "tensorflow_datasets", "tyro")),
    (["--experiment=resnet_cifar", "--task.modle.depth=3"], 2,
     ("orbax", "tensorflow_datasets", "grain", "sklearn", "tensorboardX")),
    (["--experiment=resnet_cifar", "--steps=x"], 2,
     ("orbax", "tensorflow_datasets", "grain", "sklearn", "tensorboardX")),
])
def test_quick_answers_import_little(arguments: list[str], status: int,
                                     absent: tuple[str, ...]) -> None:
    code = (f"import sys; from jaxdl.cli import main; status = main({arguments!r});"
            f"heavy = [m for m in {absent!r} if m in sys.modules];"
            "assert not heavy, heavy\n"
            "if 'jax' in sys.modules:\n"
            "    from jax._src import xla_bridge\n"
            "    assert not xla_bridge._backends, 'a backend was started'\n"
            "sys.exit(status)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == status, done.stderr
    if status:
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_the_readme_shows_a_whole_experiment_file() -> None:
    text = (ROOT / "README.md").read_text()
    shown = text.split("```python\n")[1].split("```")[0]
    assert shown == (ROOT / "experiments" / "mlp_digits.py").read_text()

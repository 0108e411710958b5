"""Experiment files: found by name or path, imported, and checked. Imports no jax."""

import ast
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

from jaxdl import config
from jaxdl.errors import UserError, nearest, shown


def folders() -> list[Path]:
    """Where experiments are looked up by name: the working folder's, then jaxdl's own."""
    package = Path(__file__).parent
    return [p.absolute() for p in (Path("experiments"), package.parent / "experiments",
                                   package / "experiments") if p.is_dir()]


def experiments() -> dict[str, Path]:
    """The experiment files that can be named, by name."""
    found = {p.stem: p for folder in reversed(folders()) for p in sorted(folder.glob("*.py"))
             if not p.name.startswith("_")}
    return dict(sorted(found.items()))


def find(name: str) -> Path:
    """The experiment file of a name in `experiments/`, or of a path to anyone's file."""
    if name.endswith(".py") or "/" in name:
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise UserError(f"--experiment={shown(name)}: there is no such file.")
        if path.suffix != ".py":
            raise UserError(f"--experiment={name}: not an experiment file, which ends in .py, nor "
                            "a run directory.")
        return path
    known = experiments()
    if name not in known:
        raise UserError(f"--experiment={shown(name)}: no such experiment.{nearest(name, known)} "
                        f"'list' shows all {len(known)}.")
    return known[name]


def summary(path: Path) -> str:
    """The first line of an experiment file's docstring, read without running it."""
    try:
        text = ast.get_docstring(ast.parse(path.read_text()))
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError) as error:
        return f"(cannot be read: {' '.join(str(error).split()) or type(error).__name__})"
    return text.splitlines()[0] if text else "(no docstring)"


def load(path: Path) -> types.ModuleType:
    """Imports an experiment file as the module `experiments.NAME`, and checks that it has config().

    The file is the user's own code and is trusted. Its folder is appended to `sys.path`, so that it
    can import its neighbours.
    """
    name = f"experiments.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}.") from error
    except Exception as error:  # Whatever it is, it is the file's: told by its line.
        raise UserError(f"{path}{_line(error, path)}: {_told(error)}") from error
    if not callable(getattr(module, "config", None)):
        raise UserError(f"{path} has no function config() that returns the Experiment.")
    return module


def build(module: types.ModuleType) -> Any:
    """The checked value of an experiment file's `config()`."""
    path, tree = module.__file__, call(module, "config")
    if type(tree).__name__ != "Experiment":
        raise UserError(f"{path}: config() returned a {type(tree).__name__}, not an Experiment.")
    try:
        config.check(tree)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return tree


def call(module: types.ModuleType, name: str) -> Any:
    """The value of a function of an experiment file; what it raises is told by its line."""
    path = Path(str(module.__file__))
    try:
        return getattr(module, name)()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        raise UserError(f"{path}{_line(error, path)}: {_told(error)}") from error


def _told(error: Exception) -> str:
    clear = isinstance(error, (ImportError, AttributeError, NameError, TypeError, UserError))
    return str(error) if clear else f"{type(error).__name__}: {error}"


def _line(error: BaseException, path: Path) -> str:
    """":LINE" of the deepest frame of the error in the user's file."""
    line, trace = "", error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = f":{trace.tb_lineno}"
        trace = trace.tb_next
    return line

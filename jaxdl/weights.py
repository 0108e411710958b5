"""Published weights: files with the names of torchvision and timm, in and out.

A model that has published weights says in `published` how each library names its variables: a
function of the dotted name that the variable has here ("stage1_block2.conv1.weight"). The rest is
the same for all: PyTorch keeps kernels as [out, in, height, width] and [out, in], Linen as [height,
width, in, out] and [in, out]. Files are safetensors; PyTorch's own (.pth, .pt, .bin) are read too.
Neither runs code.
"""

import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl.atomic import write_atomically
from jaxdl.errors import UserError, nearest

PICKLED = ".pth", ".pt", ".bin", ".ckpt"

Rename = Callable[[str], str]


@dataclass(frozen=True)
class Published:
    """How a library names variables, where the names alone do not say enough.

    Attributes:
      rename: the name of a variable there.
      as_here: kernels are kept as [in, out], as Linen has them.
      prefix: that all names of a file may begin with.
      ignored: regex of what a file may hold besides parameters, without that prefix.
    """

    rename: Rename
    as_here: bool = False
    prefix: str = ""
    ignored: str = "$^"

    def __call__(self, name: str) -> str:
        return self.rename(name)


LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
COUNTERS = "num_batches_tracked"  # of PyTorch's batch norms, which need none here


def dotted(path: str) -> str:
    """"params/a/kernel" as "a.weight", "batch_stats/a/mean" as "a.running_mean"."""
    *modules, leaf = re.sub(r"^(mutable/)?(params|batch_stats)/", "", path).split("/")
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def shape_here(path: str, shape: Sequence[int], wanted: Sequence[int],
               rename: Rename | None = None) -> list[int]:
    """The shape that an array of PyTorch's has here, where `wanted` is expected: dimensions of one
    may differ."""
    found = [shape[i] for i in _axes(path, len(shape), rename)]
    same = [n for n in found if n != 1] == [n for n in wanted if n != 1]
    return list(wanted) if same else found


def from_torch(path: str, x: np.ndarray, wanted: Sequence[int],
               rename: Rename | None = None) -> np.ndarray:
    """An array as PyTorch keeps it, as Linen does."""
    return x.transpose(_axes(path, x.ndim, rename)).reshape(wanted)


def to_torch(path: str, x: np.ndarray, rename: Rename | None = None) -> np.ndarray:
    """The reverse of `from_torch`."""
    axes = _axes(path, x.ndim, rename)
    return np.ascontiguousarray(x.transpose(np.argsort(axes)))


def _axes(path: str, dimensions: int, rename: Rename | None) -> list[int]:
    """Of an array of PyTorch's, in the order that they have here."""
    order = list(range(dimensions))
    if getattr(rename, "as_here", False):
        return order
    return [*order[2:], *order[1::-1]] if path.endswith("/kernel") and dimensions > 1 else order


def names(paths: Sequence[str], rename: Rename) -> dict[str, str]:
    """{path here: published name}; two paths with one name are a mistake of the model's file."""
    found = {path: rename(dotted(path)) for path in paths}
    if len(set(found.values())) < len(found):
        raise ValueError(f"{rename.__module__}.{rename.__name__} gives one name to several arrays.")
    return found


def of_model(model: Any, library: str | None = None) -> dict[str, Rename]:
    """How the libraries that publish weights of a model name its variables; of one, if given."""
    known: dict[str, Rename] = getattr(model, "published", {})
    if not known:
        raise UserError(f"{type(model).__name__} has no published names for its weights.")
    if library is None:
        return known
    if library not in known:
        raise UserError(f"names={library!r}: expected one of {', '.join(known)} for "
                        f"{type(model).__name__}.{nearest(library, known)}")
    return {library: known[library]}


def shapes(path: Path) -> dict[str, list[int]]:
    """{name: shape} of a file; of a safetensors file from its header alone."""
    if path.suffix in PICKLED:
        found = {name: list(x.shape) for name, x in _unpickled(path).items()}
    else:
        with _opened(path) as file:
            found = {name: list(file.get_slice(name).get_shape())
                     for name in file.keys()}  # noqa: SIM118
    return {name: shape for name, shape in found.items() if not name.endswith(COUNTERS)}


def read(path: Path, chosen: Sequence[str]) -> dict[str, np.ndarray]:
    """Some arrays of a file."""
    if path.suffix in PICKLED:
        found = _unpickled(path)
        return {name: found[name] for name in chosen}
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in chosen}


def _unpickled(path: Path) -> dict[str, np.ndarray]:
    from jaxdl import pth

    try:
        return pth.read(path)
    except pth.Refused as error:
        raise UserError(f"{path}: not the weights of a network ({error}).") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error


Stored = tuple[str, dict[str, tuple[str, list[int]]], str]


def stored(path: Path, model: Any, wanted: Mapping[str, Sequence[int]]) -> Stored:
    """(what the file is, {path here: (name in the file, shape here)}, the library), by the library
    that has most of the file's names and shapes. What a model does not have keeps its name there.

    Args:
      path: of the file.
      model: that has `published`.
      wanted: {path: shape} of its variables.
    """
    inside, best = shapes(path), (-1, -1)
    found: Stored | None = None
    for library, rename in of_model(model).items():
        for prefix in dict.fromkeys(("", getattr(rename, "prefix", ""))):
            here = {prefix + name: p for p, name in names(list(wanted), rename).items()}
            kept = {here.get(name, name): (name, shape_here(here[name], shape, wanted[here[name]],
                                                            rename) if name in here else shape)
                    for name, shape in inside.items() if not re.fullmatch(
                        getattr(rename, "ignored", "$^"), name.removeprefix(prefix))}
            fits = (len(inside.keys() & here.keys()),
                    sum(p in kept and kept[p][1] == list(wanted[p]) for p in wanted))
            if fits > best:
                best, found = fits, (f"{path} ({library}'s names)", kept, library)
    assert found is not None
    return found


def explain(path: Path, found: Mapping[str, tuple[str, list[int]]], places: Mapping[str, str],
            fresh: Container[str], wanted: Mapping[str, Sequence[int]]) -> None:
    """Prints a table of what does not fit: missing, unexpected and mis-shaped arrays."""
    from rich.table import Table

    from jaxdl import display

    table = Table("array", "here", "in the file", "verdict", box=None)
    for p in places:
        shape = "x".join(map(str, wanted[p]))
        if p in fresh:
            continue
        if p not in found:
            table.add_row(p, shape, "-", "missing")
        elif found[p][1] != list(wanted[p]):
            table.add_row(p, shape, "x".join(map(str, found[p][1])), "other shape")
    for p, (name, shapes) in found.items():
        if p not in places:
            table.add_row(name, "-", "x".join(map(str, shapes)), "unexpected")
    if table.row_count:
        display.console.print(f"{path}: {table.row_count} of the arrays do not fit")
        display.console.print(table)


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file ({error}).") from error


def export(experiment: Any, run: Path, step: int, path: Path, library: str | None,
           only: str | None) -> str:
    """Writes the network of a checkpoint: parameters, or their average where one is kept, and
    statistics, without what a method has added to them (a teacher), and with what it would add
    (adapters).

    Args:
      experiment: of the run.
      run: its directory.
      step: of the checkpoint.
      path: of the file.
      library: whose names to use; None: the first that the model knows, else the dotted names that
        the variables have here.
      only: regex of parameters that are written as they are, under their paths, instead.

    Returns:
      a line that says what was written.
    """
    from jaxdl.checkpoint import arrays
    from jaxdl.init_from import parameters
    from jaxdl.task import matching

    model = getattr(experiment.task, "model", None)
    known = of_model(model, library) if library or getattr(model, "published", {}) else {}
    called, rename = next(iter(known.items()), ("jaxdl", lambda name: name))
    _, inside = parameters(run, str(step))
    if only is not None:
        named = [p.removeprefix("params/") for p in inside if p.startswith("params/")]
        chosen = {f"params/{p}" for p in matching(named, (only,), "--only")}
        inside = {p: x for p, x in inside.items() if p in chosen}
    places = {place: p for p, (place, _) in inside.items()}
    try:
        found = arrays(run / "checkpoints", step, "|".join(map(re.escape, places)))
    except ValueError as error:
        raise UserError(f"{error}.") from error
    variables = {places[place]: x for place, x in found.items()}
    about = {"run": str(run), "step": str(step)}
    try:
        if only is not None:
            save(path, {p: np.asarray(x) for p, x in variables.items()}, about)
        else:
            variables = network(experiment.task, variables)
            write(path, variables, rename, {**about, "names": called})
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); --output=FILE names "
                        "another place.") from error
    under = "under their paths" if only is not None else f"with {called}'s names"
    return f"written: {path}, {len(variables)} arrays {under}"


def network(task: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of the model, of those of a task that may be made from another: by path."""
    if not hasattr(task, "innermost"):
        return dict(variables)
    from flax import traverse_util

    nested = traverse_util.unflatten_dict(
        {p.removeprefix("mutable/"): x for p, x in variables.items()}, sep="/")
    return traverse_util.flatten_dict(task.innermost(nested), sep="/")


def write(path: Path, variables: Mapping[str, np.ndarray], rename: Rename,
          about: Mapping[str, str]) -> None:
    """Writes variables {path: array} under their published names, all or nothing.

    Args:
      path: of the file.
      variables: by path ("params/head/kernel", "batch_stats/norm/mean").
      rename: as the library names them.
      about: text for the file's header.
    """
    called = names(list(variables), rename)
    save(path, {called[p]: to_torch(p, np.asarray(x), rename) for p, x in variables.items()},
         {**about, "format": "pt"})


def save(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Writes arrays under their names, all or nothing."""
    from safetensors.numpy import save

    write_atomically(path, save(dict(arrays), dict(about)))

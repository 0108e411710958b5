"""Trees of frozen dataclasses: walk, override, check, record and rebuild them. Imports no jax.

A node is a dataclass instance (Linen modules included), a mapping from names, or a tuple that holds
nodes; everything else (None, bool, int, float, str, tuples of those) is a leaf. A path is the names
from the root joined by dots: `task.model.depth`, `data.augment.0.pad`, `evals.test.every`.
"""

import dataclasses
import functools
import importlib.util
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from jaxdl.errors import UserError, nearest, shown


@dataclasses.dataclass(frozen=True)
class Between:
    """A bound on a number, for `Annotated`: low <= value <= high."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        return (f"at least {self.low:g}" if self.high == math.inf
                else f"between {self.low:g} and {self.high:g}")


@dataclasses.dataclass(frozen=True)
class IsRegex:
    """For `Annotated`: the string is a regular expression."""

    def __str__(self) -> str:
        return "a regular expression"


Regex = Annotated[str, IsRegex()]
Count = Annotated[int, Between(0)]  # how many, possibly none
Size = Annotated[int, Between(1)]  # how many, at least one
Fraction = Annotated[float, Between(0, 1)]
NonNegative = Annotated[float, Between(0)]


def is_node(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(map(is_node, value))
    return isinstance(value, Mapping) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type))


def children(node: Any) -> dict[str, Any]:
    """The children of a node by name; {} for a leaf."""
    if not is_node(node):
        return {}
    if isinstance(node, Mapping):
        return dict(node)
    if isinstance(node, tuple):
        return {str(i): child for i, child in enumerate(node)}
    return {name: getattr(node, name) for name in _fields(type(node))}


@functools.cache
def _fields(cls: type) -> tuple[str, ...]:
    linen = any(base.__module__.startswith("flax.linen") for base in cls.__mro__)
    own = ("parent", "name") if linen else ()  # Linen's bookkeeping, not configuration
    return tuple(f.name for f in dataclasses.fields(cls) if f.init and f.name not in own)


def rebuild(node: Any, named: Mapping[str, Any]) -> Any:
    """The node with some children replaced."""
    if isinstance(node, Mapping):
        return {**node, **named}
    if isinstance(node, tuple):
        return tuple(named.get(str(i), child) for i, child in enumerate(node))
    return dataclasses.replace(node, **named)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.split(".")[0] not in ("flax", "builtins", "typing", "abc"):
            hints |= inspect.get_annotations(base, eval_str=True)
    return hints


def annotation(node: Any, name: str, hint: Any = Any) -> Any:
    """The declared type of a child, `Annotated` bounds included; in a mapping that which the
    mapping's own type `hint` says; Any in tuples."""
    if dataclasses.is_dataclass(node):
        return _hints(type(node)).get(name, Any)
    return typing.get_args(hint)[1] if typing.get_origin(hint) is Mapping else Any


@dataclasses.dataclass(frozen=True)
class Leaf:
    value: Any
    hint: Any


def leaves(node: Any, path: str = "", hint: Any = Any) -> Iterator[tuple[str, Leaf]]:
    """Yields (path, Leaf) in the order of declaration."""
    if not is_node(node):
        yield path, Leaf(node, hint)
        return
    for name, child in children(node).items():
        yield from leaves(child, f"{path}.{name}" if path else name, annotation(node, name, hint))


def get(tree: Any, path: str) -> Any:
    """The node or leaf at `path`; a UserError names the nearest path."""
    node = tree
    for name in path.split("."):
        if name not in children(node):
            raise UserError(f"{path}: {type(tree).__name__} has no such field."
                            f"{nearest(path, (p for p, _ in leaves(tree)))}")
        node = children(node)[name]
    return node


def replace(tree: Any, changes: Mapping[str, Any]) -> Any:
    """The tree with the nodes or leaves at the given paths replaced."""
    for path in changes:
        get(tree, path)

    def walk(node: Any, path: str) -> Any:
        if path in changes:
            return changes[path]
        named = {}
        for name, child in children(node).items():
            at = f"{path}.{name}" if path else name
            if any(p == at or p.startswith(at + ".") for p in changes):
                named[name] = walk(child, at)
        return rebuild(node, named)

    return walk(tree, "")


def differences(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """(path, value in a, value in b) of every leaf or node that differs."""

    def kind(node: Any) -> Any:
        return (type(node), tuple(children(node))) if is_node(node) else None

    def walk(x: Any, y: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
        if kind(x) != kind(y) or not is_node(x):
            if kind(x) != kind(y) or type(x) is not type(y) or x != y:
                yield path, x, y
            return
        for name, child in children(x).items():
            yield from walk(child, children(y)[name], f"{path}.{name}" if path else name)

    return list(walk(a, b, ""))


# Types and bounds.


def _bounds(hint: Any) -> tuple[Any, list[Any]]:
    if typing.get_origin(hint) is Annotated:
        inner, *extra = typing.get_args(hint)
        return inner, [e for e in extra if isinstance(e, (Between, IsRegex))]
    return hint, []


def fits(value: Any, hint: Any) -> bool:
    """Whether a node or leaf has its declared type and bounds; a traced float fits a float.

    A node has the type of a protocol if it has the protocol's names.
    """
    hint, bounds = _bounds(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if origin is typing.Literal:
        return any(value == a and type(value) is type(a) for a in args)
    if origin is tuple:
        return isinstance(value, tuple) and (
            all(fits(v, args[0]) for v in value) if args[-1] is ...
            else len(value) == len(args) and all(map(fits, value, args)))
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        if isinstance(value, (bool, str, tuple)) or value is None:
            return False
        if isinstance(value, (int, float)):
            return not _unfit(value) and all(b.low <= value <= b.high for b in bounds)
        return hasattr(value, "dtype")  # an array or a tracer: floats are data
    if hint is int:
        return type(value) is int and not _unfit(value) and all(
            b.low <= value <= b.high for b in bounds)
    if hint in (bool, str):
        return type(value) is hint and not _unfit(value) and not (bounds and not _compiles(value))
    kind = origin or hint
    if origin is Mapping:
        return isinstance(value, Mapping) and all(fits(v, args[1]) for v in value.values())
    if getattr(kind, "_is_protocol", False):
        names = {n for base in kind.__mro__ if getattr(base, "_is_protocol", False)
                 for n in (*vars(base), *inspect.get_annotations(base))}
        return all(hasattr(value, n) for n in names if n == "__call__" or not n.startswith("_"))
    return kind is Any or not isinstance(kind, type) or isinstance(value, kind)


def _unfit(value: Any) -> str:
    """What no number or string may be, whatever its type; "" if it is not."""
    if isinstance(value, str):
        return ", in UTF-8 and without NUL" if "\0" in value or re.search(
            "[\ud800-\udfff]", value) else ""
    limit = 3.4028235e38 if isinstance(value, float) else 2 ** 32
    return "" if abs(value) <= limit else ", in 32 bits"


def _compiles(pattern: Any) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def expected(value: Any, hint: Any) -> str:
    """What a declared type asks of a value that does not fit it: "expected int, at least 1"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "expected a finite number"
    plain = isinstance(value, (int, float, str))
    return f"expected {describe(hint)}{_unfit(value) if plain else ''}"


def describe(hint: Any) -> str:
    """A declared type in words: "int, at least 1", "'max' or 'min'"."""
    hint, bounds = _bounds(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        text = " or ".join(map(describe, args))
    elif origin is typing.Literal:
        text = " or ".join(map(repr, args))
    elif origin is tuple:
        text = "tuple of " + (describe(args[0]) if args[-1] is ...
                              else "(" + ", ".join(map(describe, args)) + ")")
    elif hint in (None, type(None)):
        text = "None"
    else:
        text = getattr(hint, "__name__", str(hint))
    return ", ".join([text, *map(str, bounds)])


def check(tree: Any, path: str = "", hint: Any = Any) -> None:
    """Raises a UserError for the first node or leaf that lacks its declared type or bounds."""
    if not is_node(tree) and not isinstance(
            tree, (type(None), bool, int, float, str, tuple)) and not hasattr(tree, "dtype"):
        raise UserError(f"{path} is a {type(tree).__name__}: an experiment holds only "
                        "dataclasses, mappings, tuples, numbers, strings, booleans and None.")
    by_child = isinstance(tree, Mapping) and typing.get_origin(hint) is Mapping
    if not by_child and not fits(tree, hint):
        raise UserError(f"{path}={shown(repr(tree))}: {expected(tree, hint)}.")
    for name, child in children(tree).items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise UserError(f"{path}: {name!r} is no name: expected letters, digits, _ and -.")
        check(child, f"{path}.{name}" if path else name, annotation(tree, name, hint))


# Records.


def to_json(node: Any) -> Any:
    """Plain JSON of a tree; a dataclass carries its import path under "_"."""
    if isinstance(node, tuple):
        return [to_json(child) for child in node]
    if isinstance(node, Mapping):
        return {name: to_json(child) for name, child in node.items()}
    if is_node(node):
        cls = type(node)
        return {"_": f"{cls.__module__}:{cls.__qualname__}",
                **{name: to_json(child) for name, child in children(node).items()}}
    if node is None or type(node) in (bool, int, float, str):
        return node
    raise UserError(f"a value of type {type(node).__name__} cannot be recorded: {node!r}.")


def from_json(data: Any, *, modules: Iterable[str] = (), path: str = "") -> Any:
    """Rebuilds the tree that `to_json` recorded; runs no code but the constructors of dataclasses.

    Only dataclasses of jaxdl, and of the modules that the caller names, are built: a record cannot
    choose what to import.

    Args:
      data: what `json.load` returned.
      modules: modules, already imported, whose dataclasses may be built too.
      path: where `data` stands in the whole record, for errors.
    """
    if path.count(".") > 100:
        raise UserError(f"{path[:40]}...: the record is nested too deeply.")
    if isinstance(data, list):
        return tuple(from_json(x, modules=modules, path=f"{path}.{i}") for i, x in enumerate(data))
    if not isinstance(data, dict):
        return data
    named = {k: from_json(v, modules=modules, path=f"{path}.{k}".strip("."))
             for k, v in data.items() if k != "_"}
    if "_" not in data:
        return named
    cls = _recorded_class(str(data["_"]), set(modules), path)
    known = _fields(cls)
    for name in named:
        if name not in known:
            raise UserError(f"{path}.{name}: {cls.__name__} of this version of jaxdl has no such "
                            f"field.{nearest(name, known)}")
        # Now, since a constructor may compute with it.
        check(named[name], f"{path}.{name}".strip("."), _hints(cls).get(name, Any))
    try:
        return cls(**named)
    except TypeError as error:
        raise UserError(f"{path or 'the record'}: {' '.join(str(error).split())}.") from error


def _recorded_class(kind: str, modules: set[str], path: str) -> type:
    module, _, name = kind.partition(":")
    if module not in modules:
        if module.split(".")[0] != "jaxdl":
            raise UserError(f"{path}: the record names '{kind}', which is not part of jaxdl; name "
                            "its file with --experiment=FILE and the run with --workdir=RUN_DIR.")
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError, RecursionError):
            found = None
        if found is None:
            raise UserError(f"{path}: this version of jaxdl has no module '{module}'.")
        importlib.import_module(module)
    cls = getattr(sys.modules[module], name, None)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == module):
        raise UserError(f"{path}: '{kind}' is not a dataclass of this version of jaxdl.")
    return cls

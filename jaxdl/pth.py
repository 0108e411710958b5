"""Weights in PyTorch's .pth files, read without unpickling them.

Such a file is a pickle that says how to make tensors of the numbers stored beside it; to unpickle
it would run what it names. Here its opcodes are interpreted: containers, numbers, text, and the few
calls by which PyTorch makes a tensor. Anything else in it is an error, and runs nothing.
"""

import math
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

TYPES = {"torch FloatStorage": np.float32, "torch DoubleStorage": np.float64,
         "torch HalfStorage": np.float16, "torch BFloat16Storage": ml_dtypes.bfloat16,
         "torch LongStorage": np.int64, "torch IntStorage": np.int32,
         "torch ShortStorage": np.int16, "torch CharStorage": np.int8,
         "torch ByteStorage": np.uint8, "torch BoolStorage": np.bool_}
LEGACY = 0x1950A86A20F9469CFC6C  # the number that a file of before PyTorch 1.6 begins with
INSIDE = "state_dict", "model_state_dict", "model"  # where a training script may keep the weights


class Refused(ValueError):
    """What is not the weights of a network, or not only."""


class Global(NamedTuple):
    """A class or function that the pickle names, "module name"; it is not imported."""

    name: str


class Storage(NamedTuple):
    """The numbers that tensors are views of."""

    dtype: Any
    key: str


class View(NamedTuple):
    """A tensor: where its numbers lie in a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """A copy of the numbers that it shows."""
        whole = all(type(n) is int and n >= 0 for n in (self.offset, *self.shape, *self.strides))
        if not whole or len(self.shape) != len(self.strides):
            raise Refused("a tensor's shape is damaged")
        if math.prod(self.shape) > len(numbers):  # Nor may a small file fill the memory.
            raise Refused("a tensor is larger than its storage")
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if math.prod(self.shape) and last >= len(numbers):
            raise Refused("a tensor reaches beyond its storage")
        if not math.prod(self.shape):
            return np.zeros(self.shape, numbers.dtype)
        return np.lib.stride_tricks.as_strided(
            numbers[self.offset:], self.shape,
            [s * numbers.itemsize for s in self.strides]).copy()


def read(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of a network's state dict.

    Raises:
      Refused: it is another file, or damaged, or holds more than arrays, text and numbers.
    """
    try:
        with path.open("rb") as file:
            found = _zipped(file) if zipfile.is_zipfile(file) else _legacy(file)
    except Refused:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, OverflowError,
            RecursionError, NotImplementedError, zipfile.BadZipFile) as error:
        raise Refused(f"damaged ({type(error).__name__}: {error})") from error
    if not found:
        raise Refused("no arrays in it, nor in its " + ", ".join(map(repr, INSIDE)))
    return found


def _zipped(file: IO[bytes]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        inside = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in inside:
            raise Refused("a zip file without data.pkl: not PyTorch's")
        if "byteorder" in inside and archive.read(inside["byteorder"]) != b"little":
            raise Refused("its numbers are big-endian")
        with archive.open(inside["data.pkl"]) as stream:
            views = _views(_interpreted(stream))  # type: ignore[arg-type]
        kept: dict[Storage, np.ndarray] = {}
        for view in views.values():
            if (storage := view.storage) not in kept:
                entry = archive.getinfo(inside[f"data/{storage.key}"])
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise Refused("it is compressed, which PyTorch does not do")
                kept[storage] = np.frombuffer(archive.read(entry), storage.dtype)
        return {name: view.of(kept[view.storage]) for name, view in views.items()}


def _legacy(file: IO[bytes]) -> dict[str, np.ndarray]:
    file.seek(0)
    if file.read(2) != b"\x80\x02":
        raise Refused("neither of PyTorch's forms")
    file.seek(0)
    if _interpreted(file) != LEGACY:
        raise Refused("neither of PyTorch's forms")
    _interpreted(file)  # the version of the form
    _interpreted(file)  # what the machine was
    storages: dict[str, Storage] = {}
    views = _views(_interpreted(file, storages))
    kept: dict[str, np.ndarray] = {}
    for key in _interpreted(file):
        count = int.from_bytes(file.read(8), "little")
        dtype = np.dtype(storages[key].dtype)
        numbers = file.read(count * dtype.itemsize) if count < 1 << 40 else b""
        if len(numbers) < count * dtype.itemsize:
            raise Refused("it is cut short")
        kept[key] = np.frombuffer(numbers, dtype)
    return {name: view.of(kept[view.storage.key]) for name, view in views.items()}


def _views(tree: Any) -> dict[str, View]:
    """The tensors of a state dict, which may lie one level down."""
    for name in INSIDE:
        if isinstance(tree, dict) and isinstance(tree.get(name), dict):
            tree = tree[name]
    if not isinstance(tree, dict):
        raise Refused(f"a {type(tree).__name__}, where a state dict was expected")
    return {str(name): x for name, x in tree.items() if isinstance(x, View)}


def _call(function: Any, given: tuple[Any, ...]) -> Any:
    """What the calls in a state dict come to; no others are known."""
    name = function.name if isinstance(function, Global) else function
    if name == "collections OrderedDict":
        return dict(*given)
    if name == "torch._utils _rebuild_tensor_v2":
        storage, offset, shape, strides = given[:4]
        if not isinstance(storage, Storage):
            raise Refused("a tensor without a storage")
        return View(storage, offset, shape, strides)
    if name == "torch._utils _rebuild_parameter":
        return given[0]
    raise Refused(f"it calls {name}, which is not read: it may run code")


def _stored(given: Any, storages: dict[str, Storage]) -> Storage:
    """Of a persistent id ("storage", type, key, device, size)."""
    kind, key = given[1], given[2]
    name = kind.name if isinstance(kind, Global) else str(kind)
    if name not in TYPES:
        raise Refused(f"numbers of type {name}, where {', '.join(TYPES)} are known")
    return storages.setdefault(str(key), Storage(TYPES[name], str(key)))


PLAIN = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "NONE": lambda: None,
         "NEWTRUE": lambda: True, "NEWFALSE": lambda: False}
VALUES = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING",
          "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BININT", "BININT1", "BININT2", "INT",
          "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _interpreted(stream: IO[bytes], storages: dict[str, Storage] | None = None) -> Any:
    """The value of one pickle, up to its end."""
    storages = {} if storages is None else storages
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        taken = stack[start:]
        del stack[start:]
        return taken

    operations: Iterator[tuple[Any, Any, Any]] = pickletools.genops(stream)
    for operation, value, _ in operations:
        name = operation.name
        if name in VALUES:
            stack.append(value)
        elif name in PLAIN:
            make: Callable[[], Any] = PLAIN[name]
            stack.append(make())
        elif name in TUPLES:
            taken = stack[-TUPLES[name]:]
            del stack[-TUPLES[name]:]
            stack.append(tuple(taken))
        elif name == "GLOBAL":
            stack.append(Global(value))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(Global(f"{module} {attribute}"))
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[value] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name == "BINPERSID":
            stack.append(_stored(stack.pop(), storages))
        elif name == "REDUCE":
            given, function = stack.pop(), stack.pop()
            stack.append(_call(function, given))
        elif name == "SETITEM":
            x, key = stack.pop(), stack.pop()
            stack[-1][key] = x
        elif name == "SETITEMS":
            pairs = since_mark()
            stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))
        elif name == "APPEND":
            x = stack.pop()
            stack[-1].append(x)
        elif name == "APPENDS":
            more = since_mark()
            stack[-1].extend(more)
        elif name == "BUILD":
            stack.pop()  # Attributes of an OrderedDict (the versions of the layers).
            top: Any = stack[-1]
            if not isinstance(top, dict):
                raise Refused("it sets attributes of what is not a state dict")
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"it has the opcode {name}, which a state dict does not need")
    raise Refused("it is cut short")

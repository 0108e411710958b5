"""Weights in .pth files are read without running what the pickle says."""

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxdl import pth, weights
from jaxdl.errors import UserError


class Tensor:
    """Pickled as PyTorch pickles a tensor."""

    def __init__(self, storage: Any, offset: int, shape: tuple, strides: tuple) -> None:
        self.given = storage, offset, shape, strides, False, OrderedDict()

    def __reduce__(self) -> Any:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.given


class Stored:
    def __init__(self, kind: str, key: str, numbers: np.ndarray) -> None:
        self.kind, self.key, self.numbers = kind, key, numbers


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Modules with the names that PyTorch's pickles call."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for module, name in ((utils, "_rebuild_tensor_v2"), (utils, "_rebuild_parameter")):
        function = types.FunctionType((lambda *a: None).__code__, {"__name__": module.__name__},
                                      name)
        function.__module__, function.__qualname__ = module.__name__, name
        setattr(module, name, function)
    for name in pth.TYPES:
        kind = type(name.split()[1], (), {"__module__": "torch"})
        setattr(torch, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return torch


def pickled(tree: Any, torch: Any, storages: dict[str, np.ndarray], protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, protocol)

    def persistent(x: Any) -> Any:
        if not isinstance(x, Stored):
            return None
        storages[x.key] = x.numbers
        return "storage", getattr(torch, x.kind), x.key, "cpu", len(x.numbers)

    pickler.persistent_id = persistent  # type: ignore[assignment]
    pickler.dump(tree)
    return stream.getvalue()


def write(path: Path, tree: Any, torch: Any, *, legacy: bool = False, protocol: int = 2,
          compression: int = zipfile.ZIP_STORED) -> Path:
    storages: dict[str, np.ndarray] = {}
    data = pickled(tree, torch, storages, protocol)
    if legacy:
        parts = [pickle.dumps(x, 2) for x in (pth.LEGACY, 1001, {"little_endian": True})]
        parts += [data, pickle.dumps(list(storages), 2)]
        for numbers in storages.values():
            parts += [len(numbers).to_bytes(8, "little"), numbers.tobytes()]
        path.write_bytes(b"".join(parts))
        return path
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/byteorder", "little")
        for key, numbers in storages.items():
            archive.writestr(f"x/data/{key}", numbers.tobytes())
    return path


NUMBERS = np.arange(12, dtype=np.float32)


def state(kind: str = "FloatStorage", numbers: np.ndarray = NUMBERS) -> OrderedDict:
    both = Stored(kind, "0", numbers)
    tree = OrderedDict({"a.weight": Tensor(both, 0, (3, 4), (4, 1)),
                        "turned": Tensor(both, 1, (2, 3), (1, 4)),
                        "count": Tensor(Stored("LongStorage", "1", np.array([7])), 0, (), ()),
                        "empty": Tensor(both, 0, (0, 2), (2, 1))})
    tree._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    return tree


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_are_read(tmp_path: Path, torch: Any, legacy: bool, protocol: int) -> None:
    path = write(tmp_path / "a.pth", state(), torch, legacy=legacy, protocol=protocol)
    del sys.modules["torch"], sys.modules["torch._utils"]
    found = pth.read(path)
    assert list(found) == ["a.weight", "turned", "count", "empty"]
    np.testing.assert_array_equal(found["a.weight"], NUMBERS.reshape(3, 4))
    np.testing.assert_array_equal(found["turned"], NUMBERS.reshape(3, 4).T[1:3])
    assert found["count"] == 7 and found["count"].shape == () and found["empty"].shape == (0, 2)
    assert weights.shapes(path)["turned"] == [2, 3]
    np.testing.assert_array_equal(weights.read(path, ["turned"])["turned"], found["turned"])
    found["a.weight"][:] = 0  # a copy, and no view of another one
    assert found["turned"].all()


@pytest.mark.parametrize("kind,dtype", [
    ("HalfStorage", np.float16), ("BFloat16Storage", ml_dtypes.bfloat16), ("ByteStorage", np.uint8),
    ("DoubleStorage", np.float64)])
def test_types(tmp_path: Path, torch: Any, kind: str, dtype: Any) -> None:
    path = write(tmp_path / "a.pth", {"model": state(kind, NUMBERS.astype(dtype)), "epoch": 3,
                                      "rate": 0.5, "names": ["a", None, True]}, torch)
    assert pth.read(path)["turned"].dtype == dtype


class Evil:
    def __reduce__(self) -> Any:
        import os
        return os.system, ("touch owned",)


class Plain:
    pass


@pytest.mark.parametrize("tree,said", [
    (lambda: {"a": Evil()}, "it calls .* system, which is not read: it may run code"),
    (lambda: {"a": Plain()}, "opcode NEWOBJ|it calls copyreg"),
    (lambda: [1, 2], "a list, where a state dict was expected"),
    (lambda: {"epoch": 3}, "no arrays in it"),
    (lambda: {"a": Tensor(Stored("FloatStorage", "0", NUMBERS), 9, (4,), (1,))},
     "reaches beyond its storage"),
    (lambda: {"a": Tensor(Stored("FloatStorage", "0", NUMBERS), -1, (4,), (1,))},
     "shape is damaged"),
    (lambda: {"a": Tensor(Stored("FloatStorage", "0", NUMBERS), 0, (4,), (-1,))},
     "shape is damaged"),
    (lambda: {"a": Tensor(Stored("FloatStorage", "0", NUMBERS), 0, (1 << 40,), (0,))},
     "larger than its storage"),
    (lambda: {"a": Tensor("text", 0, (1,), (1,))}, "a tensor without a storage"),
], ids=range(9))
@pytest.mark.parametrize("legacy", [False, True])
def test_what_is_refused(tmp_path: Path, torch: Any, monkeypatch: pytest.MonkeyPatch, tree: Any,
                         said: str, legacy: bool) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.pth", tree(), torch, legacy=legacy)
    with pytest.raises(UserError, match=rf"a\.pth: not the weights of a network \(.*(?:{said})"):
        weights.shapes(path)
    assert not (tmp_path / "owned").exists()


def test_damaged_files(tmp_path: Path, torch: Any) -> None:
    whole = write(tmp_path / "a.pth", state(), torch, legacy=True).read_bytes()
    path = tmp_path / "b.pth"
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(pth.Refused):
            pth.read(path)
    for content in (b"PK\x03\x04 and no more", b"\x80\x02K\x01.", b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(pth.Refused, match=r"neither of PyTorch's forms|damaged"):
            pth.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/other", b"")
    with pytest.raises(pth.Refused, match=r"without data\.pkl"):
        pth.read(path)
    write(path, state(), torch, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(pth.Refused, match="compressed"):
        pth.read(path)
    with pytest.raises(UserError, match=r"c\.pth: cannot be read \(No such file"):
        weights.shapes(tmp_path / "c.pth")

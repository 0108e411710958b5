"""Data sets in R packages: their lazy-load data bases, read without R and without running code.

R's serialisation is described in "R Internals", section 1.8, and its constants in R's serialize.c.
What is read are vectors, strings, factors, lists and data frames; functions, environments and calls
are refused. A factor becomes its labels, a data frame a dict of its columns, a missing string None.
"""

import bz2
import lzma
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl.errors import UserError

LARGEST = 1 << 30  # bytes of one data set
INDEX = 1 << 24  # bytes of an index
DEPTH = 100  # of lists in lists


def names(base: Path) -> list[str]:
    """The data sets in the files BASE.rdx and BASE.rdb."""
    return sorted(_index(base))


def load(base: Path, name: str) -> Any:
    """One data set of the files BASE.rdx and BASE.rdb."""
    index = _index(base)
    if name not in index:
        raise UserError(f"{base}.rdb: no data set {name!r}, only {', '.join(sorted(index))}.")
    try:
        offset, length = (int(n) for n in index[name])
        with base.with_suffix(".rdb").open("rb") as file:
            file.seek(offset)
            packed = file.read(length)
        return _Reader(_unpacked(packed)).value()
    except (OSError, ValueError, IndexError, KeyError, struct.error, zlib.error,
            lzma.LZMAError) as error:
        raise UserError(f"{base}.rdb: {name!r} cannot be read ({error}).") from error


def _index(base: Path) -> dict[str, Any]:
    """Where each data set is: (offset, length)."""
    path = base.with_suffix(".rdx")
    try:
        packed = path.read_bytes()
        opened: Any = (bz2.BZ2Decompressor() if packed[:3] == b"BZh" else lzma.LZMADecompressor()
                       if packed[:6] == b"\xfd7zXZ\0" else zlib.decompressobj(47))
        return dict(_Reader(opened.decompress(packed, INDEX)).value()["variables"])
    except (OSError, EOFError, ValueError, IndexError, KeyError, TypeError, struct.error,
            zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: not the index of an R package's data ({error}).") from error


def _unpacked(packed: bytes) -> bytes:
    """The serialised value: its size comes first, then a letter unless it is zlib's."""
    size = int.from_bytes(packed[:4], "big")
    if size > LARGEST:
        raise ValueError(f"{size:,} bytes, more than {LARGEST:,}")
    kind, rest = packed[4:5], packed[5:]
    if kind == b"Z":
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
        found = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters).decompress(rest, size)
    elif kind == b"2":
        found = bz2.BZ2Decompressor().decompress(rest, size)
    elif kind == b"0":
        found = rest
    else:
        found = zlib.decompressobj().decompress(packed[4:], size)
    if len(found) != size:
        raise ValueError(f"{len(found):,} bytes, expected {size:,}")
    return found


class _Reader:
    """Reads a value that R has serialised in its binary form "X", big-endian."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at, self.references = content, 0, list[Any]()
        if self.take(2) != b"X\n":
            raise ValueError("not R's binary form")
        version = self.integer()
        self.take(8)
        if version == 3:
            self.take(self.integer())  # the encoding
        elif version != 2:
            raise ValueError(f"version {version} of R's serialisation")

    def take(self, count: int) -> bytes:
        part = self.content[self.at:self.at + count]
        if count < 0 or len(part) < count:
            raise ValueError("it ends too early")
        self.at += count
        return part

    def integer(self) -> int:
        return int.from_bytes(self.take(4), "big", signed=True)

    def numbers(self, dtype: str) -> np.ndarray:
        count = self.integer()
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype)

    def value(self, depth: int = 0) -> Any:
        """The next value, with what its attributes say of it."""
        if depth > DEPTH:
            raise ValueError("nested too deeply")
        flags = self.integer()
        kind, has_attributes = flags & 255, bool(flags & 512)
        if kind in (254, 242):  # NULL, the empty environment
            return None
        if kind == 255:
            return self.references[(flags >> 8 or self.integer()) - 1]
        if kind == 1:  # a name
            self.references.append(self.value(depth + 1))
            return self.references[-1]
        if kind == 2:  # a list of pairs, such as attributes are
            return self.pairs(flags, depth)
        if kind == 9:  # a string
            size = self.integer()
            return None if size == -1 else self.take(size).decode(
                "latin-1" if flags >> 12 & 4 else "utf-8", "replace")
        if kind == 238:  # a vector in another form: for strings and ranges
            return self.alternative(depth)
        if kind == 10:
            found: Any = self.numbers(">i4")
        elif kind == 13:
            found = self.numbers(">i4")
        elif kind == 14:
            found = self.numbers(">f8")
        elif kind in (16, 19, 20):
            found = [self.value(depth + 1) for _ in range(self.integer())]
        else:
            raise ValueError(f"a value of R's kind {kind}, which is no data")
        attributes = self.value(depth + 1) if has_attributes else {}
        return _told(found, attributes or {})

    def pairs(self, flags: int, depth: int) -> dict[str, Any]:
        """The values by name."""
        found = {}
        while flags & 255 == 2:
            if flags & 512:
                self.value(depth + 1)
            name = self.value(depth + 1) if flags & 1024 else str(len(found))
            found[name] = self.value(depth + 1)
            flags = self.integer()
        return found

    def alternative(self, depth: int) -> Any:
        """A vector that R kept in a form of its own."""
        about = self.value(depth + 1)
        state = self.value(depth + 1)
        self.value(depth + 1)
        name = next(iter(about.values())) if isinstance(about, dict) else ""
        if name == "compact_intseq":
            count, first, step = (int(x) for x in state)
            if not 0 <= count <= LARGEST // 8:
                raise ValueError(f"a range of {count:,} numbers")
            return first + step * np.arange(count)
        if name in ("wrap_string", "wrap_integer", "wrap_real"):
            return state[0] if isinstance(state, list) else next(iter(state.values()))
        raise ValueError(f"a vector in R's form {name!r}")


def _told(found: Any, attributes: dict[str, Any]) -> Any:
    """A vector as its attributes mean it."""
    kinds = attributes.get("class") or []
    if "factor" in kinds:
        labels = attributes["levels"]
        return [None if i < 1 else labels[i - 1] for i in found]
    if isinstance(found, list) and attributes.get("names") is not None:
        return dict(zip(attributes["names"], found, strict=True))
    return found

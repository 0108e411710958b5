"""Data out of packages: R's serialised values, Debian's archives, Bibles of SWORD; fabricated here,
byte by byte, and damaged."""

import bz2
import io
import lzma
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdl.data import debian, rdata
from jaxdl.data.corpora import plain, verses
from jaxdl.data.fetch import extract
from jaxdl.errors import DataMissing, UserError

# R's serialisation, as "R Internals", section 1.8, describes it.


def integers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}i", *values)


def string(text: str | None) -> bytes:
    if text is None:
        return integers(9, -1)
    return integers(9 | 8 << 12, len(text.encode())) + text.encode()


def pairs(**values: bytes) -> bytes:
    """A list of pairs, such as attributes are."""
    return b"".join(integers(2 | 1024, 1) + string(name) + value
                    for name, value in values.items()) + integers(254)


def strings(*texts: str | None) -> bytes:
    return integers(16, len(texts)) + b"".join(map(string, texts))


def doubles(*values: float) -> bytes:
    return integers(14, len(values)) + struct.pack(f">{len(values)}d", *values)


def listed(*values: bytes, **attributes: bytes) -> bytes:
    if not attributes:
        return integers(19, len(values)) + b"".join(values)
    return integers(19 | 512, len(values)) + b"".join(values) + pairs(**attributes)


HEAD = b"X\n" + integers(3, 0x040300, 0x030500, 5) + b"UTF-8"
FACTOR = (integers(13 | 512, 3, 2, -2 ** 31, 1)
          + pairs(levels=strings("no", "yes"), **{"class": strings("factor")}))
FRAME = listed(strings("a", None, "ü"), doubles(1.5, -2., 3.), FACTOR,
               names=strings("text", "number", "answer"), **{"class": strings("data.frame")})


def alternative(form: str, state: bytes) -> bytes:
    """A vector in a form of R's own: its class, package and type, a state, and attributes."""
    about = b"".join(integers(2) + x for x in (
        integers(1) + string(form), integers(1) + string("base"), integers(13, 1, 13)))
    return integers(238) + about + integers(254) + state + integers(254)


RANGE = alternative("compact_intseq", doubles(3, 5, 2))
WRAPPED = alternative("wrap_string", listed(strings("a", "b"), integers(13, 2, 0, 0)))


def database(folder: Path, *, packed: Any = zlib.compress, letter: bytes = b"",
             **values: bytes) -> Path:
    """BASE.rdx and BASE.rdb."""
    base, stored, places = folder / "Rdata", b"", []
    for value in values.values():
        whole = HEAD + value
        part = struct.pack(">I", len(whole)) + letter + packed(whole)
        places.append(integers(13, 2, len(stored), len(part)))
        stored += part
    index = listed(listed(*places, names=strings(*values)), names=strings("variables"))
    base.with_suffix(".rdx").write_bytes(zlib.compress(HEAD + index))
    base.with_suffix(".rdb").write_bytes(stored)
    return base


def raw_xz(content: bytes) -> bytes:
    compressor = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=[
        {"id": lzma.FILTER_LZMA2, "preset": 6}])
    return compressor.compress(content) + compressor.flush()


@pytest.mark.parametrize("packed,letter", [
    (zlib.compress, b""), (bz2.compress, b"2"), (raw_xz, b"Z"), (lambda x: x, b"0")])
def test_a_data_base_of_r_is_read(tmp_path: Path, packed: Any, letter: bytes) -> None:
    base = database(tmp_path, packed=packed, letter=letter, frame=FRAME, range=RANGE,
                    wrapped=WRAPPED, latin=integers(16, 1, 9 | 4 << 12, 1) + b"\xfc")
    assert rdata.names(base) == ["frame", "latin", "range", "wrapped"]
    frame = rdata.load(base, "frame")
    assert list(frame) == ["text", "number", "answer"]
    assert frame["text"] == ["a", None, "ü"] and frame["answer"] == ["yes", None, "no"]
    np.testing.assert_array_equal(frame["number"], [1.5, -2., 3.])
    np.testing.assert_array_equal(rdata.load(base, "range"), [5, 7, 9])
    assert rdata.load(base, "latin") == ["ü"] and rdata.load(base, "wrapped") == ["a", "b"]
    with pytest.raises(UserError, match="no data set 'other', only frame, latin, range, wrapped"):
        rdata.load(base, "other")


@pytest.mark.parametrize("value,said", [
    (integers(3), "kind 3, which is no data"),  # a closure
    (integers(4), "kind 4, which is no data"),  # an environment
    (integers(14, 5) + bytes(8), "it ends too early"),
    (integers(14, -1), "it ends too early"),
    (integers(255 | 9 << 8), "list index out of range"),
    (alternative("compact_intseq", doubles(1e12, 1, 1)), "a range of 1,000,000,000,000 numbers"),
    (alternative("mmap_real", doubles(1)), "form 'mmap_real'"),
    (integers(19, 1) * 200, "nested too deeply"),
])
def test_values_that_are_no_data_or_damaged(tmp_path: Path, value: bytes, said: str) -> None:
    base = database(tmp_path, value=value)
    with pytest.raises(UserError, match=f"'value' cannot be read .*{said}") as raised:
        rdata.load(base, "value")
    assert "\n" not in str(raised.value)


def test_data_bases_that_are_damaged(tmp_path: Path) -> None:
    base = database(tmp_path, value=FRAME)
    whole = base.with_suffix(".rdb").read_bytes()
    base.with_suffix(".rdb").write_bytes(struct.pack(">I", 1 << 31) + whole[4:])
    with pytest.raises(UserError, match="2,147,483,648 bytes, more than"):
        rdata.load(base, "value")
    base.with_suffix(".rdb").write_bytes(whole[:-20])
    with pytest.raises(UserError, match="'value' cannot be read"):
        rdata.load(base, "value")
    for content in (b"", b"nonsense", zlib.compress(b"X\n"), zlib.compress(HEAD + doubles(1))):
        base.with_suffix(".rdx").write_bytes(content)
        with pytest.raises(UserError, match="not the index of an R package's data"):
            rdata.names(base)


# Debian.


def package(path: Path, **files: bytes) -> Path:
    """A Debian package: ar(5) of a version, control data and the archive of files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": packed.getvalue()}
    whole = b"!<arch>\n"
    for name, x in parts.items():
        whole += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(x):<10}`\n".encode()
        whole += x + b"\n" * (len(x) % 2)
    path.write_bytes(whole)
    return path


def test_a_debian_package_is_unpacked(tmp_path: Path) -> None:
    made = package(tmp_path / "some.deb", **{"./usr/share/x": b"content", "./usr/y": b""})
    folder = extract(made, tmp_path / "out")
    assert (folder / "usr/share/x").read_bytes() == b"content" and (folder / "usr/y").exists()
    with pytest.raises(UserError, match="would leave the folder"):
        extract(package(tmp_path / "bad.deb", **{"../x": b""}), tmp_path / "bad")


@pytest.mark.parametrize("change", [
    lambda x: x[:8], lambda x: x[:300], lambda x: x[:3_000],
    lambda x: x.replace(b"data.tar", b"date.tar"), lambda x: x[:56] + b"-100      " + x[66:],
    lambda x: x[:56] + b"?         " + x[66:]])
def test_a_damaged_package_is_told(tmp_path: Path, change: Any) -> None:
    made = package(tmp_path / "some.deb", x=np.random.default_rng(0).bytes(5_000))
    made.write_bytes(change(made.read_bytes()))
    with pytest.raises(UserError, match=r"some\.deb: the archive is damaged"):
        extract(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_package_that_cannot_be_had_says_how_to_bring_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXDL_DATA", str(tmp_path))

    def missing(url: str, path: Path, sha256: str) -> Path:
        raise DataMissing(f"{url}: cannot be reached from this machine.")

    monkeypatch.setattr(debian, "fetch", missing)
    with pytest.raises(DataMissing, match=r"pool/main/k/kjv/kjv_1_all\.deb: cannot be reached .* "
                       r"apt-get download kjv=1, and put the file, as kjv_1_all\.deb, into"):
        debian.package("kjv_1_all", "k/kjv", "0")
    folder = tmp_path / "debian"
    folder.mkdir()
    monkeypatch.setattr(debian, "fetch", lambda url, path, sha256: package(path, x=b"1"))
    found = debian.package("kjv_1_all", "k/kjv", "0")
    assert found == folder / "kjv_1_all" and (found / "x").read_bytes() == b"1"


# SWORD.


def bible(folder: Path, old: list[str], new: list[str]) -> Path:
    """A module of one block for each testament."""
    place = folder / "usr/share/sword/modules/texts/ztext/some"
    place.mkdir(parents=True)
    for name, texts in (("ot", old), ("nt", new)):
        whole = "".join(texts).encode()
        packed, at, index = zlib.compress(whole), 0, b""
        for text in texts:
            index += struct.pack("<IIH", 0, at, len(text.encode()))
            at += len(text.encode())
        (place / f"{name}.bzs").write_bytes(struct.pack("<III", 0, len(packed), len(whole)))
        (place / f"{name}.bzv").write_bytes(index)
        (place / f"{name}.bzz").write_bytes(packed)
    return folder


def test_verses_of_a_bible(tmp_path: Path) -> None:
    folder = bible(tmp_path, ["", "<w>In</w> the <note>!</note>beginning", "", "Él<RF>x<Rf>"],
                   ["Amen"])
    assert verses(folder) == ["", "In the beginning", "", "Él", "Amen"]
    assert plain(b"<title>Psalm</title> a <b>b</b>\n c") == "a b c"
    file = next(folder.rglob("ot.bzz"))
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"ot: damaged .* delete .* to have it unpacked again"):
        verses(folder)

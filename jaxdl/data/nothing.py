"""No data: for what is learned from what it does itself, as in reinforcement learning."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import numpy as np

from jaxdl.data.source import Batch, Source, StandIn

LAST = 1 << 31  # ids begin anew after so many


@dataclass(frozen=True, kw_only=True)
class Empty:
    """A source of batches without anything in them but "index" and "mask". It holds no arrays: an
    empty mapping of them costs no reading, so that trials of several seeds are one program."""

    size: int = LAST - 1
    arrays: Mapping[str, Any] = field(default_factory=dict)

    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        """The positions themselves."""
        return ((position + np.arange(batch_size)) % LAST).astype(np.int32)

    def read(self, index: np.ndarray) -> Batch:
        return {}

    def transform(self, batch: Batch, key: jax.Array) -> Batch:
        return batch


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """The data of a task that makes its own. `batch_size` is then how many environments there are.
    """

    stand_in: StandIn | None = None

    not_applicable: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("inputs", "order"), "there are no examples")

    def prepare(self) -> None: ...

    def open(self, split: str) -> Source:
        return Empty()

    def fingerprint(self) -> str:
        return "nothing"

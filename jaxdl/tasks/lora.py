"""Low-rank adapters of Hu et al. (2022), https://arxiv.org/abs/2106.09685."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxdl.config import NonNegative, Regex, Size
from jaxdl.errors import UserError
from jaxdl.task import Aux, Batch, Mean, matching
from jaxdl.tasks.wrapped import Wrapped, without

Array = jax.Array

ADAPTERS = "lora"  # where they lie among the parameters


@dataclass(frozen=True, kw_only=True)
class LoRA(Wrapped):
    """W + alpha / rank * A B in place of each target W, where A and B alone are trained
    (section 4.1).

    A kernel [..., in, out] counts as a matrix [all but the last, out]; A is normal with variance
    1 / (its rows), B zero, so that the network begins as it was. The adapter of "dense1/kernel" is
    "lora/dense1/kernel/a" and ".../b". `init_from` takes the network's own parameters with
    fresh=("params/lora/.*",), and of a network with a new head that of the head, too.

    `merged` gives the network's parameters with the adapters added, `unmerged` takes them away.

    Attributes:
      targets: regexes of the parameters that get an adapter, each of two dimensions or more.
      rank: of A B.
      alpha: its scale is alpha / rank, so that another rank needs no other learning rate.
      train: regexes of parameters that are trained beside the adapters, such as "head/.*".
    """

    targets: tuple[Regex, ...]
    rank: Size = 4
    alpha: NonNegative = 8.0
    train: tuple[Regex, ...] = ()

    not_applicable: ClassVar[Mapping[str, str]] = {
        "overfits": "adapters alone may not learn a batch by heart",
        "capacity": "the network's size is that of the weights it started from"}

    def freezes(self) -> tuple[str, ...]:
        """All but the adapters and `train`."""
        free = "|".join((f"{ADAPTERS}/.*", *self.train))
        return (*super().freezes(), rf"(?!(?:{free})$).*")

    def inward(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The adapters added to their targets."""
        inner = without(variables, ADAPTERS)
        return {**inner, "params": merged(variables["params"], self.alpha, self.rank)}

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        if variables:
            return super().loss(variables, batch, key, train=train)
        found = self.inside().loss(variables, batch, key, train=train)
        variables["params"] = {**variables["params"], ADAPTERS: self.adapters(
            variables["params"], jax.random.fold_in(key, 1))}
        return found

    def adapters(self, params: Any, key: Array) -> Any:
        """Fresh ones."""
        flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
        matching(flat, self.train, "LoRA: train")  # None of them may be a mistake.
        found = {}
        for i, path in enumerate(sorted(matching(flat, self.targets, "LoRA: targets"))):
            shape = flat[path].shape
            if len(shape) < 2:
                raise UserError(f"LoRA: targets: {path} has the shape {shape}; an adapter needs "
                                "two dimensions or more.")
            rows, columns = flat[path].size // shape[-1], shape[-1]
            if self.rank > min(rows, columns):
                raise UserError(f"LoRA: rank={self.rank} is more than {path} has: "
                                f"{rows} x {columns}.")
            a = jax.random.normal(jax.random.fold_in(key, i), (rows, self.rank), jnp.float32)
            found[f"{path}/a"] = a / rows ** 0.5
            found[f"{path}/b"] = jnp.zeros((self.rank, columns))
        return traverse_util.unflatten_dict(found, sep="/")


def merged(params: Any, alpha: Any, rank: int) -> Any:
    """The parameters of the network with its adapters added: {**params} without "lora"."""
    return _moved(params, alpha / rank)


def unmerged(network: Any, adapters: Any, alpha: Any, rank: int) -> Any:
    """The reverse: parameters that a network had before `adapters` were added to it, with them."""
    return {**_moved({**network, ADAPTERS: adapters}, -alpha / rank), ADAPTERS: adapters}


def _moved(params: Any, scale: Any) -> Any:
    network = {k: x for k, x in params.items() if k != ADAPTERS}
    flat: dict[str, Any] = traverse_util.flatten_dict(network, sep="/")
    own: dict[str, Any] = traverse_util.flatten_dict(params[ADAPTERS], sep="/")
    for path in {name.rpartition("/")[0] for name in own}:
        w = flat[path]
        step = (own[f"{path}/a"] @ own[f"{path}/b"]).reshape(w.shape)
        flat[path] = w + (scale * step).astype(w.dtype)
    return traverse_util.unflatten_dict(flat, sep="/")

"""Where arrays live: a mesh of devices, and rules that place a state's arrays on it.

The batch is split over the axes "data" and "fsdp". An array that a rule matches is split as the
rule says; any other large one is split over "fsdp" along its largest dimension that divides; the
rest is copied. One program, compiled by `jax.jit` with these shardings, runs on all devices.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxdl import distributed
from jaxdl.errors import UserError, nearest
from jaxdl.task import Mean, named
from jaxdl.tracing import tracing

if TYPE_CHECKING:
    from jaxdl.experiment import Mesh, Rule

AXES = ("data", "fsdp", "tensor")
SMALL = 1 << 14  # elements; below that, splitting an array costs more than its copies


@dataclass(frozen=True)
class Devices:
    """A mesh and its rules."""

    mesh: jax.sharding.Mesh
    rules: "tuple[Rule, ...]" = ()

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """Of arrays whose first axis counts examples."""
        return self.split(0)

    def split(self, axis: int) -> NamedSharding:
        """Of arrays whose axis `axis` counts examples."""
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, ("data", "fsdp")))

    def stacked(self, sharding: Any) -> NamedSharding:
        """Of many such arrays in one, along a new first axis."""
        return NamedSharding(self.mesh, PartitionSpec(None, *sharding.spec))

    @property
    def batch_ways(self) -> int:
        """Into how many parts a batch is split."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def round_up(self, batch_size: int) -> int:
        """The next batch size that the mesh divides."""
        return -(-batch_size // self.batch_ways) * self.batch_ways

    def replicate(self, tree: Any) -> Any:
        """The arrays, copied to every device."""
        return jax.tree.map(lambda x: distributed.put(x, self.replicated), tree)

    def rows(self, batch_size: int) -> np.ndarray | None:
        """The rows of a batch that this process reads, in order: those that its devices hold. None
        for all, where there is one process."""
        return distributed.rows(self.batch, batch_size)

    def place(self, inputs: Any, batch_size: int, axis: int = 0) -> Any:
        """A batch, or a stack of them, of which this process has read its rows along an axis."""
        return distributed.assembled(inputs, self.split(axis), self.rows(batch_size), batch_size,
                                     axis)

    def shardings(self, state: Any) -> Any:
        """The sharding of every array of a state (arrays or their shapes).

        A rule that matches no array, or an axis that does not divide its dimension, is an error.
        """
        flat = named(state)
        used: set[str] = set()
        specs = [self._spec(path, x, used) for path, x in flat.items()]
        for rule in self.rules:
            if rule.path not in used:
                raise UserError(f"rules: {rule.path!r} matches no array of {len(rule.axes)} "
                                f"dimensions.{nearest(rule.path, flat)}")
        return jax.tree.unflatten(jax.tree.structure(state),
                                  [NamedSharding(self.mesh, spec) for spec in specs])

    def _spec(self, path: str, x: Any, used: set[str]) -> PartitionSpec:
        for rule in self.rules:
            if re.fullmatch(f"(?:.*/)?(?:{rule.path})", path) and len(rule.axes) == x.ndim:
                used.add(rule.path)
                for axis, size in zip(rule.axes, x.shape, strict=True):
                    if axis is not None and size % self.mesh.shape[axis]:
                        raise UserError(
                            f"mesh.{axis}={self.mesh.shape[axis]} does not divide {path} of shape "
                            f"{tuple(x.shape)} that rule {rule.path!r} splits; the nearest that "
                            f"does: {nearest_divisors(size, self.mesh.shape[axis])}.")
                return PartitionSpec(*rule.axes)
        ways = self.mesh.shape["fsdp"]
        if ways > 1 and x.size >= SMALL:
            whole = [d for d in range(x.ndim) if x.shape[d] % ways == 0]
            if whole:
                split = max(whole, key=lambda d: x.shape[d])
                return PartitionSpec(*("fsdp" if d == split else None for d in range(x.ndim)))
        return PartitionSpec()


def nearest_divisors(size: int, ways: int) -> str:
    """The divisors of `size` on both sides of `ways`, for an error text."""
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    below = [d for d in divisors if d < ways][-1:]
    above = [d for d in divisors if d > ways][:1]
    return " or ".join(map(str, below + above))


def arrange(mesh: "Mesh", rules: "tuple[Rule, ...]" = (), devices: Any = None) -> Devices:
    """The devices in the order that the experiment's mesh asks for."""
    try:
        devices = list(jax.devices() if devices is None else devices)
    except (RuntimeError, AssertionError) as error:  # JAX asserts that it found a device.
        platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
        raise UserError(f"JAX_PLATFORMS={platforms}: no such device here "
                        f"({str(error) or 'none found'}); unset it, or install what it needs, as "
                        "by pip install 'jax[cuda13]'.") from error
    if mesh.data != -1 and mesh.data < 1:
        raise UserError(f"mesh.data={mesh.data}: expected -1 (all that are left) or at least 1.")
    other = mesh.fsdp * mesh.tensor
    data = len(devices) // other if mesh.data == -1 else mesh.data
    if not 0 < data * other <= len(devices) or (mesh.data == -1 and data * other != len(devices)):
        wanted = f"mesh.data={mesh.data}, mesh.fsdp={mesh.fsdp}, mesh.tensor={mesh.tensor}"
        most = len(devices) // other
        legal = (f"mesh.data may be at most {most}" if mesh.data != -1 and most else
                 "mesh.fsdp times mesh.tensor may be "
                 f"{nearest_divisors(len(devices), other) or len(devices)}")
        raise UserError(f"{wanted} do not fit the {len(devices)} {devices[0].platform} device(s) "
                        f"here; {legal}.")
    if distributed.several() and data * other != len(devices):
        raise UserError(f"mesh.data={mesh.data}, mesh.fsdp={mesh.fsdp}, mesh.tensor={mesh.tensor}: "
                        f"uses {data * other} of the {len(devices)} devices of all processes; "
                        "several processes use all, as with mesh.data=-1.")
    shape = (data, mesh.fsdp, mesh.tensor)
    grid = np.asarray(devices[:math.prod(shape)]).reshape(shape)
    return Devices(jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES)), rules)


# The per-device mode. `jax.pmap` is `jit` of `shard_map` itself; written so, the state keeps its
# form, and a checkpoint of one mode continues in the other.


def check_mode(mode: str, devices: Devices) -> None:
    """Raises a UserError for a mesh or rules that a mode cannot serve."""
    split = [f"mesh.{a}={devices.mesh.shape[a]}" for a in AXES[1:] if devices.mesh.shape[a] > 1]
    split += [f"rules.{i}" for i, _ in enumerate(devices.rules)]
    if mode == "pmap" and split:
        raise UserError(f"parallel=pmap copies the parameters to every device, so {split[0]} needs "
                        "parallel=jit.")


def averaging(tx: Any) -> Any:
    """The transformation(s) of the gradient's mean over the devices, with the same state."""
    if isinstance(tx, Mapping):
        return {name: averaging(t) for name, t in tx.items()}
    tx = optax.with_extra_args_support(tx)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return tx.update(jax.lax.pmean(updates, "data"), state, params, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def per_device(update: Callable[..., Any], devices: Devices) -> Callable[..., Any]:
    """`update(state, knobs, arrays, inputs) -> (state, metrics)`, on each device for its inputs.

    Metrics that are means are summed over the devices before their one division, other metrics and
    the state's `mutable` are averaged, examples are counted together. Whatever else is in the state
    must depend on the batch through `tx` alone.
    """
    def local(state: Any, knobs: Any, arrays: Any, inputs: Any) -> tuple[Any, Any]:
        with tracing(device_axis="data"):
            new, metrics = update(state, knobs, arrays, inputs)
        metrics = {k: (jax.lax.psum if isinstance(m, Mean) else jax.lax.pmean)(m, "data")
                   for k, m in metrics.items()}
        changes = {"seen": state.seen + jax.lax.psum(new.seen - state.seen, "data")}
        if hasattr(new, "mutable"):
            changes["mutable"] = jax.tree.map(
                lambda x: jax.lax.pmean(x, "data") if jnp.issubdtype(x.dtype, jnp.floating) else x,
                new.mutable)
        return dataclasses.replace(new, **changes), metrics

    same, split = PartitionSpec(), devices.batch.spec
    return jax.shard_map(local, mesh=devices.mesh, in_specs=(same, same, same, split),
                         out_specs=same, check_vma=False)


def check_batch(batch_size: int, devices: Devices, accumulate: int = 1) -> None:
    """Raises a UserError with the nearest legal sizes unless mesh and micro-batches divide it."""
    ways = devices.batch_ways * accumulate
    if batch_size % ways:
        below = batch_size // ways * ways
        legal = " or ".join(str(n) for n in (below, below + ways) if n)
        axes = " x ".join(f"mesh.{a}={devices.mesh.shape[a]}" for a in ("data", "fsdp"))
        micro = f" x task.accumulate={accumulate}" if accumulate > 1 else ""
        raise UserError(f"batch_size={batch_size} is not divisible by {axes}{micro} = {ways}; "
                        f"the nearest that is: {legal}.")


def bytes_of(tree: Any) -> int:
    """The bytes of a tree of arrays or of their shapes."""
    def size(x: Any) -> int:
        if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
            return 8 * math.prod(x.shape)
        return math.prod(x.shape) * np.dtype(x.dtype).itemsize

    return sum(map(size, jax.tree.leaves(tree)))


"""What a step costs: its floating-point operations, the peak of the device, the memory in use."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import allocator
from jaxdl.matmul import fast_dtype


def flops(jaxpr: Any, used: Sequence[bool] | None = None) -> float:
    """The floating-point operations of the matrix products and convolutions of a traced function.

    A product of [m, k] and [k, n] is 2 m k n of them, a convolution is the matrix product that it
    stands for, padding included. Elementwise operations are not counted: this is the numerator of
    model FLOPs utilisation (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B),
    but for what rematerialisation computes again, which counts here.

    Over all devices. What is traced is counted: a convolution that a layer rewrites (Winograd) by
    what the rewritten form does. The body of a scan counts for each of its turns, where XLA's own
    cost analysis counts it once; that of a while loop, whose turns nobody knows, once; of the
    branches of a condition the costliest. A kernel written by hand counts only what its jaxpr
    shows.

    Args:
      jaxpr: of the function.
      used: which of its results are; None means all. What only others need is not computed.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    used = [True] * len(jaxpr.outvars) if used is None else used
    needed = {v for v, u in zip(jaxpr.outvars, used, strict=True) if u and not hasattr(v, "val")}
    total = 0.
    for equation in reversed(jaxpr.eqns):
        used = [v in needed for v in equation.outvars]
        if any(used) or equation.effects:
            needed |= {v for v in equation.invars if not hasattr(v, "val")}
            total += _flops(equation, used)
    return total


def rates(program: Any, measure: bool = False) -> tuple[float, float | None]:
    """(floating-point operations of a step, the most that its devices do in a second, or None).

    Args:
      program: a `train.Program`.
      measure: the peak, where it is not known.
    """
    task = program.experiment.task
    dtype = getattr(task, "compute_dtype", "float32")
    if dtype == "auto":
        dtype = fast_dtype(getattr(task, "model", None))
    return flops(program.traced.jaxpr), peak(program.devices.mesh.devices.flat, dtype,
                                             measure=measure)


def _flops(equation: Any, used: list[bool]) -> float:
    params, name = equation.params, equation.primitive.name
    if name == "dot_general":
        contracted, _ = params["dimension_numbers"]
        k = math.prod(equation.invars[0].aval.shape[d] for d in contracted[0])
        return 2. * k * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        # Each output sums over the window and the input channels of its group; of a dilated input,
        # as in the gradient of a convolution with strides, most are zeros that nobody multiplies.
        window = math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
        return (2. * math.prod(equation.outvars[0].aval.shape) * window
                / math.prod(params["lhs_dilation"]))
    loop = name in ("scan", "while")  # where a result also goes into the next turn
    inside = [flops(jaxpr, used if len(jaxpr.outvars) == len(used) and not loop else None)
              for jaxpr in _jaxprs(params.values())]
    if name == "cond":
        return max(inside, default=0.)
    if name == "scan":
        return params["length"] * sum(inside)
    if name == "shard_map":  # The jaxpr is that of one device of the axes that it maps over.
        shape = dict(params["mesh"].shape)
        return math.prod(shape[axis] for axis in params["newly_manual_axes"]) * sum(inside)
    return sum(inside)


def holds(jaxpr: Any, primitive: str) -> bool:
    """Whether a traced function calls the primitive of this name, at any depth."""
    return any(equation.primitive.name == primitive
               or any(holds(inner, primitive) for inner in _jaxprs(equation.params.values()))
               for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _jaxprs(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _jaxprs(value)
        elif hasattr(value, "eqns"):
            yield getattr(value, "jaxpr", value)


def peak(devices: Iterable[Any], dtype: str, *, measure: bool) -> float | None:
    """Floating-point operations a second of large matrix products, on these devices together.

    The greatest rate that was ever measured here for this kind of device, type and version of
    jaxlib; it is kept in ~/.cache/jaxdl/peak.json (XDG_CACHE_HOME is honoured). On CPU the virtual
    devices of a process share its cores, and so one peak.

    Args:
      devices: all of one kind.
      dtype: of the operands.
      measure: measure again, in less than a second; otherwise None if that was never done.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "jaxdl" / "peak.json"
    try:
        known = json.loads(path.read_text())
        known = {k: float(v) for k, v in known.items()}
    except (OSError, ValueError, AttributeError, TypeError):  # not there, or damaged
        known = {}
    devices, device = list(devices), jax.local_devices()[0]
    kind, several = device.device_kind, len(devices)
    if device.platform == "cpu":
        several = len({d.process_index for d in devices})
        kind = f"{platform.node()} with {len(os.sched_getaffinity(0))} cores" if hasattr(
            os, "sched_getaffinity") else platform.node()
    key = f"{kind}, {dtype}, jaxlib {importlib.metadata.version('jaxlib')}"
    if measure:
        known[key] = max(_measured(device, dtype), known.get(key, 0.))
        with contextlib.suppress(OSError):  # a folder that cannot be written: measured every time
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"peak.json.{os.getpid()}")
            temporary.write_text(json.dumps(known, indent=1))
            temporary.replace(path)
    return several * known[key] if key in known else None


def _measured(device: Any, dtype: str) -> float:
    """Of products of growing size, until one takes 0.1 s or half a second is over."""
    product = jax.jit(lambda a: a @ a)
    rate, size, end = 0., 512, time.perf_counter() + 0.5
    # Not of zeros: with them some chips draw less power, and run faster than they can in earnest.
    row = np.random.default_rng(0).standard_normal(4099).astype(jnp.dtype(dtype))
    while size <= 8192 and (rate == 0 or time.perf_counter() < end):
        a = jax.device_put(np.resize(row, (size, size)), device)
        product(a).block_until_ready()
        seconds = math.inf
        for _ in range(5):
            began = time.perf_counter()
            jax.block_until_ready([product(a) for _ in range(2)])
            seconds = min(seconds, (time.perf_counter() - began) / 2)
        rate = max(rate, 2. * size ** 3 / seconds)
        if seconds > 0.1:
            break
        size *= 2
    return rate


def memory_peak() -> int:
    """Bytes: the most that was ever in use on any one device of this process.

    Where the device does not tell, as on CPU, of the whole process, Python included.
    """
    peaks = [stats["peak_bytes_in_use"] for device in jax.local_devices()
             if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats]
    if peaks:
        return max(peaks)
    try:  # ru_maxrss would include the process that started this one.
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):  # not Linux
        import resource
        import sys
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024)


def room(what: str, needed: int) -> bool:
    """True, where the processor is the device, if memory for so many bytes is left.

    Of a program whose allocation fails, some results may never come, and who waits for them waits
    for ever (jax 0.10); and where more is promised than there is, the process is killed.

    Raises:
      MemoryError: it is not. Swapped out, memory counts as left.
    """
    free = free_memory(swap=True) if jax.default_backend() == "cpu" else None
    if free is not None and needed > (free := free + allocator.kept()):
        raise MemoryError(f"{what} would take {needed / 1e9:.1f} GB, {max(free, 0) / 1e9:.1f} GB "
                          "are left")
    return True


def with_room(memory: Any) -> Any:
    """What an executable says of its memory, if there is room for it: `room`."""
    room("a step", memory.temp_size_in_bytes if memory else 0)
    return memory


def free_memory(root: Path = Path("/"), *, swap: bool = False) -> int | None:
    """Bytes that this process may still take: of the machine, of its control group if less, or of
    its own limit (ulimit -v) if less; of the machine with what can be swapped out, if asked."""
    def number(path: str, before: str = "", unit: int = 1) -> int | None:
        try:
            text = (root / path).read_text()
            return unit * int((text.partition(before)[2] if before else text).split()[0])
        except (OSError, ValueError, IndexError):  # not there, or "max"
            return None

    available = number("proc/meminfo", "MemAvailable:", 1024)
    if swap and available is not None:
        available += number("proc/meminfo", "SwapFree:", 1024) or 0
    found = [available]
    if (most := number("proc/self/limits", "Max address space")) is not None:
        found.append(most - (number("proc/self/status", "VmSize:", 1024) or 0))
    for folder, limit, used, start in (
            ("sys/fs/cgroup", "memory.max", "memory.current", "\n"),
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "\ntotal_")):
        if (most := number(f"{folder}/{limit}")) is not None:
            cached = [number(f"{folder}/memory.stat", f"{start}{kind}_file ") or 0
                      for kind in ("active", "inactive")]  # of files, and given back when needed
            found.append(most - (number(f"{folder}/{used}") or 0) + sum(cached))
    return min((x for x in found if x is not None), default=None)

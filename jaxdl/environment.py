"""What a run depends on beside its experiment: code, versions, devices, how JAX draws numbers."""

import collections
import datetime
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import sysconfig
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxdl import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy",
            "tensorflow-datasets")
FLAGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl",
         "jax_threefry_partitionable", "jax_numpy_dtype_promotion")


def current(step: int, devices: Iterable[Any]) -> dict[str, Any]:
    """Versions, devices, command, and the git state of the working folder, as plain JSON.

    Args:
      step: from which the launch goes on.
      devices: that it uses.
    """
    import jax

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    git = {key: _git(*arguments) for key, arguments in {
        "commit": ("rev-parse", "HEAD"), "diff": ("diff", "HEAD")}.items()}
    return {"time": datetime.datetime.now().astimezone().isoformat("T", "seconds"),
            "from_step": step, "command": sys.argv, "jaxdl": __version__, "source": source(),
            "python": platform.python_version(), "platform": platform.platform(),
            "versions": versions, "git": git,
            "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in devices],
            "flags": {name: getattr(jax.config, name) for name in FLAGS},
            "random": [int(x) for x in jax.random.bits(jax.random.key(0), (2,))]}


def changes(then: Any, now: Mapping[str, Any]) -> list[str]:
    """What differs between two launches and may change a number in its last bits, or more.

    Args:
      then: a launch as it was recorded, possibly by an older jaxdl or edited.
      now: this launch.
    """
    def flat(launch: Any) -> dict[str, Any]:
        if not isinstance(launch, Mapping):
            return {}
        names = [re.sub(r":\d+ ", " ", str(d)) for d in launch.get("devices", ())]
        kinds = collections.Counter(names)
        found = {"Python": launch.get("python"), "jaxdl": launch.get("jaxdl"),
                 "the source of jaxdl": launch.get("source"),
                 "what JAX draws from key 0": launch.get("random"),
                 "the devices": ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or None}
        for part in ("versions", "flags"):
            if isinstance(launch.get(part), Mapping):
                found |= launch[part]
        return found

    old = flat(then)
    return [f"{name} ({old[name]} then, {value} now)" for name, value in flat(now).items()
            if old.get(name) is not None and old[name] != value]


@functools.cache
def source() -> str:
    """A digest of jaxdl's own files."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def users(module: types.ModuleType) -> dict[str, Path]:
    """The file of each module, this one included, that an experiment file takes something from. Not
    among them are those of jaxdl, of Python and of installed packages."""
    apart = [Path(__file__).parent, *(Path(sysconfig.get_path(name)) for name in (
        "stdlib", "platstdlib", "purelib", "platlib"))]
    found: dict[str, Path] = {}
    todo: list[Any] = [module]
    while todo:
        each = todo.pop()
        file = getattr(each, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py") or each.__name__ in found:
            continue
        path = Path(file).resolve()
        if any(path.is_relative_to(place) for place in apart):
            continue
        found[each.__name__] = path
        for value in list(vars(each).values()):
            name = getattr(value, "__module__", None)
            todo.append(value if isinstance(value, types.ModuleType)
                        else sys.modules.get(name) if isinstance(name, str) else None)
    return found


def code(module: types.ModuleType) -> dict[str, str]:
    """Digests of the files of `users`, by their path relative to the experiment file."""
    folder = Path(str(module.__file__)).resolve().parent
    return {os.path.relpath(path, folder): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            for path in sorted(users(module).values())}


@functools.cache  # The code that runs is that of the start.
def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10,
                              errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()[:1_000_000] if done.returncode == 0 else None

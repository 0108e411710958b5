"""Eight virtual devices, and a compilation cache that the tests' own processes share."""

import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CACHE = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR",
                              str(Path(tempfile.gettempdir()) / "jaxdl-test-compilations"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# The programs of tests are small: to optimise them takes longer than to run them as they are. And
# eight virtual devices may wait long for each other where few processors do other work besides: the
# process is aborted after 40 seconds of that, unless told otherwise.
FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true",
         "--xla_cpu_parallel_codegen_split_count=1",
         "--xla_cpu_collective_call_terminate_timeout_seconds=300"]
if version("jaxlib") < "0.11":  # A third less to compile; later versions end at the name.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
os.environ["JAXDL_MALLOC"] = "default"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["COLUMNS"] = "100"

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds data of the machine it runs on, or writes outside its own folder."""
    monkeypatch.setenv("JAXDL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def own_numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module's RANDOM begins anew for each of its tests: none depends on which ran before."""
    if hasattr(request.module, "RANDOM"):
        monkeypatch.setattr(request.module, "RANDOM", np.random.default_rng(0))


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many trials each program has that is compiled, one after the other; 0 is a single run."""
    from jaxdl.train import Program

    found: list[int] = []
    compiled = Program.compile

    def counted(self: Program) -> Any:
        found.append(len(self.trials))
        return compiled(self)

    monkeypatch.setattr(Program, "compile", counted)
    return found

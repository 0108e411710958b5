"""What a run will take, said before it: the table, the largest batch, the memory that is free."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdl import cli, parallel, preflight
from jaxdl.cost import free_memory
from jaxdl.data.source import Records
from jaxdl.display import size
from jaxdl.experiment import Mesh
from jaxdl.preflight import compiled_step, largest_batch, of_devices, shapes_of
from tests.tiny import plain


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says of the state is what the state is; and no run is made."""
    file = tmp_path / "mine.py"
    file.write_text("from tests.tiny import plain\n\ndef config():\n    return plain()\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["preflight", f"--experiment={file}", "--largest_batch=False"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("1 x cpu (cpu); mesh data=1, fsdp=1, tensor=1", "compile", "in the cache",
                 "parameters 650", "copied to every device: 2 of 2 arrays", "examples a second",
                 f"data on the device {size(1438 * (64 + 4))}", "6 steps"):
        assert part in text, part
    assert "largest batch" not in text
    assert not (tmp_path / "runs").exists()


def test_the_largest_batch_is_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """By three sizes that are compiled here: the one that it names fits, and half more does not."""
    experiment = plain(batch_size=64)
    source = experiment.data.open("train")
    devices = parallel.arrange(experiment.mesh)
    now = compiled_step(experiment, source, devices)
    needed = {n: compiled_step(plain(batch_size=n), source, devices).needed for n in (320, 480)}
    limit = (needed[320] + needed[480]) // 2
    monkeypatch.setattr(preflight, "memory_limit", lambda devices: (limit, "of the test"))
    text = largest_batch(now, source)
    found = int(text.split()[1].rstrip(","))
    assert 320 <= found < 480 and "of the test" in text, text
    monkeypatch.setattr(preflight, "memory_limit", lambda devices: (None, ""))
    assert largest_batch(now, source).startswith("unknown")


def test_how_parameters_are_split_is_said() -> None:
    experiment = plain(task=cli.config.replace(plain(), {"task.model.widths": (512,)}).task,
                       mesh=Mesh(data=4, fsdp=2))
    program: Any = preflight.Program(experiment, experiment.data.open("train"),
                                     parallel.arrange(experiment.mesh))
    rows = dict(of_devices(program))
    assert rows["devices"].startswith("8 x cpu") and "data=4, fsdp=2" in rows["devices"]
    assert rows["parameters are"] == ("copied to every device: 3 of 4 arrays; split over fsdp: 1 of"
                                      " 4 arrays")


def test_larger_batches_are_not_read() -> None:
    read: list[int] = []

    class Examples:
        def __len__(self) -> int:
            return 10 ** 6

        def __getitem__(self, i: int) -> dict[str, np.ndarray]:
            read.append(i)
            return {"image": np.zeros((64, 64), np.float32)}

    batch = shapes_of(Records(examples=Examples())).read(np.zeros(10 ** 5, np.int32))
    assert read == [0] and batch["image"].shape == (10 ** 5, 64, 64)  # which would be 1.6 GB


def test_free_memory_is_that_of_the_control_group_if_less(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 4000 kB\nX: 1 kB\n")
    assert free_memory(tmp_path) == 4_096_000
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) == 4_096_000
    (group / "memory.max").write_text("3000000\n")
    (group / "memory.current").write_text("1000000\n")
    assert free_memory(tmp_path) == 2_000_000
    # Of the million, files that were read take a third, which is given back when it is needed.
    (group / "memory.stat").write_text("anon 9\nfile 700000\ninactive_file 300000\n"
                                       "active_file 33333\nunevictable 0\n")
    assert free_memory(tmp_path) == 2_333_333
    (group / "memory.stat").unlink()
    older = tmp_path / "sys/fs/cgroup/memory"
    older.mkdir()
    (older / "memory.limit_in_bytes").write_text("1500000\n")
    (older / "memory.usage_in_bytes").write_text("900000\n")
    (older / "memory.stat").write_text("cache 9\ninactive_file 1\ntotal_cache 9\n"
                                       "total_inactive_file 100000\ntotal_active_file 200000\n")
    assert free_memory(tmp_path) == 900_000
    for path in older.iterdir():
        path.unlink()
    (tmp_path / "proc/self").mkdir()
    limits, size = tmp_path / "proc/self/limits", tmp_path / "proc/self/status"
    size.write_text("VmSize: 1000 kB\n")
    limits.write_text("Max address space         unlimited            unlimited            bytes\n")
    assert free_memory(tmp_path) == 2_000_000
    limits.write_text("Max address space         2024000              unlimited            bytes\n")
    assert free_memory(tmp_path) == 1_000_000


def test_what_can_be_swapped_out_counts_where_it_is_asked(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 4000 kB\nSwapFree: 500 kB\n")
    assert free_memory(tmp_path) == 4_096_000
    assert free_memory(tmp_path, swap=True) == 4_608_000

"""What a run will cost, told before it begins."""

import re
from typing import Any

import pytest

from jaxdl import cli, cost, preflight
from tests.tiny import plain


def test_the_table(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["preflight", "--experiment=mlp_digits", "--mesh.data=2", "--steps=20",
                     "--task.ema=0.9", "--largest_batch=False"]) == 0
    out = capfd.readouterr().out
    found = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in out.splitlines())
    assert found["parameters"] == "17,226 in 6 arrays"
    assert found["devices"] == "2 (cpu), mesh {'data': 2}"
    assert re.fullmatch(r"0\.3 MB: params 0\.1 MB, opt_state 0\.1 MB, ema 0\.1 MB", found["state"])
    assert found["work"] == "0.005489 GFLOP a step of 64 examples"  # 6 x 64 x 14,976 - 2 x 64 x 8,192
    assert re.search(r"[\d.,]+ ms a step, [\d,]+ examples/s", found["speed"])
    assert "for 20 steps, without evaluations and saves" in found["the whole run"]
    assert "largest batch" not in found


def test_the_largest_batch_takes_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(free: int | None, each: int = 1_000) -> str:
        monkeypatch.setattr(cost, "free_memory", lambda devices: free)
        monkeypatch.setattr(cost, "memory_of",
                            lambda program: 50_000 + each * program.experiment.batch_size)
        facts: Any = dict(preflight.facts(plain(batch_size=32), True))
        return facts["largest batch"]

    assert told(1_050_000) == "about 1,000: 1.1 MB of the 1.1 MB that are free, 1 kB an example"
    assert told(50_500) == "less than 32: 0.1 MB are free, and 32 take 0.1 MB"
    assert told(None).startswith("not known")
    assert told(10 ** 7, each=0).startswith("more than 64")
    assert told(10 ** 13).startswith("about 1,400, as many as the data has: 1.5 MB of ")

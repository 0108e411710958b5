"""The profile of a run: what is traced, what the table says, and what a step costs."""

import gzip
import json
import math
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxdl import cost, parallel, profile
from jaxdl.cli import main
from jaxdl.errors import UserError
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Mesh
from jaxdl.process import Preempted
from jaxdl.train import Program
from jaxdl.train import fit as train
from tests.test_train import TESTS, Signalled, run_of
from tests.tiny import shorter

measured = cost._measured


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cost, "_measured", lambda device, dtype: 1e12)
    return tmp_path / "cache" / "jaxdl" / "peak.json"


def fit(folder: Path, experiment: Any, profile: range | None = None, **options: Any) -> None:
    train(experiment, run_of(folder, experiment, **options), profile=profile)


def trace(folder: Path) -> Any:
    (path,) = (folder / "profile").glob("plugins/profile/*/*.xplane.pb")
    return jax.profiler.ProfileData.from_file(str(path))


def dispatched(folder: Path) -> list[int]:
    """Steps of each dispatch in the trace."""
    found = [(event.start_ns, dict(event.stats)["steps"]) for plane in trace(folder).planes
             for line in plane.lines for event in line.events if event.name == "dispatch"]
    return [int(str(steps)) for _, steps in sorted(found)]


def log(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "train/loss" in line]


@pytest.mark.parametrize(("text", "message"), [
    ("10", "--profile=10: expected START:STOP, two steps of the run, as in --profile=10:20."),
    ("a:b", "--profile=a:b: expected START:STOP"),
    ("-1:3", "--profile=-1:3: expected START:STOP"),
    ("5:5", "--profile=5:5: expected START below STOP."),
    ("30:41", "--profile=30:41: the run ends at step 40, so STOP may be at most 40."),
])
def test_a_range_that_cannot_be_traced_is_told_in_a_line(
        text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [f"--experiment={TESTS / 'tiny.py'}", f"--workdir={tmp_path / 'run'}"]
    assert main([*command, f"--profile={text}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()
    assert profile.parse("30:40", 40) == range(30, 40)


def test_a_profile_traces_its_steps_and_prints_the_costliest(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps 4 to 10, dispatched in groups that end where the log and the trace want it; then a
    run that is continued."""
    fit(tmp_path, shorter(steps=11, log_every=6), profile=range(4, 10))
    assert dispatched(tmp_path) == [1, 1, 2, 2]  # saved at 5, logged at 6, evaluated at 8
    out = capsys.readouterr().out
    rows = out[out.index("steps 4 to 10:"):out.index(" more: ")].splitlines()[2:-1]
    assert sum(row.endswith("%") for row in rows) == 10  # a long name takes two lines
    assert "waiting for data" in out
    (perfetto,) = tmp_path.rglob("perfetto_trace.json.gz")
    with gzip.open(perfetto) as file:
        assert len(json.load(file)["traceEvents"]) > 100

    with pytest.raises(UserError, match="continues from step 11, so START must be at least 11"):
        fit(tmp_path, shorter(steps=20), accept_changes=True, profile=range(10, 12))


def test_operations_are_counted_per_step_and_device(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    table = profile.table
    monkeypatch.setattr(profile, "table", lambda *a: seen.append(a) or table(*a))
    fit(tmp_path, shorter(steps=6, mesh=Mesh(data=2)), profile=range(2, 5))
    ((costs, devices, names, steps, seconds),) = seen
    products = [n for n in costs if names.kind(n) == "dot"]
    assert devices == 2 and len(steps) == 3 and seconds > 0
    assert sorted(names.source(n)[0] for n in products) == ["backward"] * 3 + ["forward"] * 2
    assert {costs[n].calls for n in products} == {6}
    assert all(0 < costs[n].seconds < seconds * devices for n in products)


def test_without_the_option_nothing_is_traced_or_imported(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.delitem(sys.modules, "jaxdl.profile")
    monkeypatch.setattr(jax.profiler, "start_trace", None)
    fit(tmp_path / "run", shorter(steps=3))
    assert "jaxdl.profile" not in sys.modules
    assert not (tmp_path / "run" / "profile").exists()
    assert not own_cache.exists()
    (line,) = log(tmp_path / "run")
    assert "train/mfu" not in line
    assert line["train/flops_per_second"] > 0
    assert 1e8 < line["train/memory_peak"] < 1e12


def test_a_run_that_is_left_ends_its_trace(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signalled = Signalled(every=4, number=int(signal.SIGTERM))
    experiment = shorter(evals={"test": signalled}, best=Best())
    with pytest.raises(Preempted):
        fit(tmp_path, experiment, profile=range(3, 8))
    assert "the run was left before the last of these steps" in capsys.readouterr().out
    assert dispatched(tmp_path) == [1]
    fit(tmp_path, shorter(evals={"test": Evaluate(every=8)}, steps=8), accept_changes=True)


def test_the_utilisation_is_of_the_peak_that_was_measured(
        tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = jax.devices()[:2]
    assert cost.peak(cpu, "float32", measure=False) is None
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text("torn")
    assert cost.peak(cpu, "float32", measure=True) == 1e12  # two virtual devices share the cores
    monkeypatch.setattr(cost, "_measured", lambda device, dtype: 3e11)
    assert cost.peak(cpu, "float32", measure=True) == 1e12  # the greatest counts
    assert cost.peak(cpu, "bfloat16", measure=False) is None
    fit(tmp_path / "run", shorter(steps=3))
    (line,) = log(tmp_path / "run")
    assert line["train/mfu"] == line["train/flops_per_second"] / 1e12


def test_the_peak_is_measured() -> None:
    assert 1e8 < measured(jax.local_devices()[0], "float32") < 1e15


def count(function: Any, *shapes: tuple[int, ...]) -> float:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return cost.flops(jax.jit(function).trace(*arguments).jaxpr)


def test_flops_are_those_of_the_formula() -> None:
    assert count(jnp.dot, (5, 7), (7, 3)) == 2 * 5 * 7 * 3
    assert count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (4, 5, 7), (4, 7, 3)) == 4 * 210

    def turns(x: Any, w: Any) -> Any:
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=6)[0]

    assert count(turns, (5, 7), (7, 7)) == 6 * 2 * 5 * 7 * 7
    forward_and_back = count(jax.grad(lambda w, x: turns(x, w).sum()), (7, 7), (5, 7))
    assert forward_and_back == 3 * 6 * 2 * 5 * 7 * 7
    unknown = count(lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ x, x), (7, 7))
    assert unknown == 2 * 7 ** 3
    either = count(lambda x: jax.lax.cond(x.sum() > 0, lambda: x @ x @ x, lambda: x), (7, 7))
    assert either == 4 * 7 ** 3

    def one_of_two(x: Any) -> Any:
        return jax.jit(lambda x: (x @ x, x @ x @ x))(x)[0]

    assert count(one_of_two, (7, 7)) == 2 * 7 ** 3  # what nobody uses is not computed


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 4)])
def test_a_convolution_and_both_its_gradients_cost_the_same(stride: int, groups: int) -> None:
    def convolve(x: Any, w: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups)

    x, w = (2, 8, 8, 4), (3, 3, 4 // groups, 12)
    formula = 2 * 2 * (8 // stride) ** 2 * 12 * math.prod(w[:3])
    assert count(convolve, x, w) == formula
    assert count(jax.grad(lambda x, w: convolve(x, w).sum()), x, w) == pytest.approx(formula)
    assert count(jax.grad(lambda w, x: convolve(x, w).sum()), w, x) == pytest.approx(formula)


def test_flops_of_a_step_are_of_one_step_over_all_devices() -> None:
    """However many steps are dispatched at once, and devices share them."""
    for mesh in (Mesh(data=1), Mesh(data=8)):
        experiment = shorter(mesh=mesh)
        program = Program(experiment, experiment.data.open("train"), parallel.arrange(mesh))
        assert program.fused > 1
        assert cost.flops(program.traced.jaxpr) == 2 * 128 * (2 * 64 * 32 + 3 * 32 * 10)


def test_a_kernel_over_a_mesh_counts_for_every_device() -> None:
    mesh = parallel.arrange(Mesh(data=4)).mesh
    spec = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(lambda a, b: a @ b, mesh=mesh, out_specs=spec,
                           in_specs=(spec, jax.sharding.PartitionSpec()))
    assert count(mapped, (8, 7), (7, 3)) == 2 * 8 * 7 * 3


def test_an_operation_s_time_is_without_what_runs_inside_it() -> None:
    events = [(0, 100, "while"), (10, 30, "dot"), (15, 20, "copy"), (40, 50, "dot"),
              (100, 110, "add")]
    own = [(name, round(1e9 * seconds)) for name, seconds in profile._exclusive(events)]
    assert own == [("while", 70), ("dot", 15), ("copy", 5), ("dot", 10), ("add", 10)]


HLO = r"""HloModule jit_step, is_scheduled=true

%inner (p: f32[8,4], q: f32[8,2]) -> f32[4,2] {
  %p = f32[8,4]{1,0} parameter(0)
  %q = f32[8,2]{1,0} parameter(1)
  ROOT %dot.1 = f32[4,2]{1,0} dot(%p, %q), lhs_contracting_dims={0}, rhs_contracting_dims={0}
}

ENTRY %main (w: f32[4,2], x: f32[8,4]) -> (f32[4,2], /*index=1*/s32[]) {
  %w = f32[4,2]{1,0} parameter(0), metadata={op_name="carry.state.params[\'head\'][\'kernel\']"}
  %x = f32[8,4]{1,0} parameter(1)
  %g = f32[8,2]{1,0} dot(%x, %w), metadata={op_name="jit(step)/jvp(Net)/head/dot_general"}
  %copy.3 = f32[4,8]{1,0} copy(%x)
  %fusion.2 = f32[4,2]{1,0} fusion(%copy.3, %g), kind=kCustom, calls=%inner
  %copy.4 = f32[4,2]{1,0} copy(%w)
  %copy.5 = f32[8,2]{1,0} copy(%g)
  %update = f32[4,2]{1,0} add(%copy.4, %fusion.2), metadata={op_name="jit(step)/add"}
  ROOT %tuple = (f32[4,2]{1,0}, /*index=1*/s32[]) tuple(%update, %x)
}
"""


def test_instructions_are_named_by_the_model_and_by_what_they_update() -> None:
    names = profile.Names(HLO)
    assert names.module == "jit_step"
    assert names.found["tuple"].shape == "(f32[4,2]{1,0}, /*index=1*/s32[])"
    assert names.found["tuple"].operands == ("update", "x")
    assert names.found["dot.1"].computation == "inner"
    assert names.kind("fusion.2") == "dot"
    assert names.source("g") == ("forward", "Net/head/dot_general")
    assert names.source("fusion.2") == ("backward", "gradient of head/kernel")
    assert names.source("copy.3") == ("backward", "for the gradient of head/kernel")
    assert names.source("copy.5") == ("forward", "of Net/head/dot_general")
    assert names.source("update") == ("", "add")


@pytest.mark.parametrize(("op_name", "expected"), [
    ("jit(step)/jit(_update)/jvp(Net)/block1/jit(relu)/max", ("forward", "Net/block1/max")),
    ("jit(step)/transpose(jvp(Net))/head/dot_general", ("backward", "Net/head/dot_general")),
    ("jit(f)/transpose(jvp(Net))/checkpoint/rematted_computation/head/dot",
     ("recomputed", "Net/head/dot")),
    ("jit(step)/while/body/closed_call/jvp(Net)/head/add", ("forward", "Net/head/add")),
    ("jit(step)/(transpose(jvp(Net/head/reduce_sum:jvp(Net)/b/add", ("backward",
                                                                  "Net/head/reduce_sum, ...")),
    ("jit(step)/add", ("", "add")),
])
def test_an_origin_is_read_from_its_name(op_name: str, expected: tuple[str, str]) -> None:
    assert profile.described(op_name) == expected

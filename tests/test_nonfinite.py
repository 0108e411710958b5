"""Where a number that is not finite began: the layer, the line, the examples; by running again."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import apart, parallel, train
from jaxdl.data.source import Arrays, permutation
from jaxdl.errors import NotFinite
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.mlp import MLP
from jaxdl.nonfinite import NonFinite, Search, explained, layers
from jaxdl.optimizer import SGD, Constant
from jaxdl.process import Preempted
from jaxdl.tasks.classification import Classification
from tests.test_train import fit
from tests.tiny import plain

SIZE, BATCH, STEP, ROW = 64, 16, 2, 5
BAD = int(permutation(0, 0, SIZE)[STEP * BATCH + ROW])  # the id of the example that has the fault


class Log(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return jnp.log(x)


class Standardize(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred ** 2).mean(-1, keepdims=True))


class Exp(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return jnp.exp(x)


class Root(nn.Module):
    """Finite at 0, but its slope is not."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return jnp.sqrt(x * self.param("scale", nn.initializers.ones, (1,)).astype(x.dtype))


class Net(nn.Module):
    """Each layer gets features of its own, so that the data says which one fails."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        # A mask of infinities and an overflow that both disappear are nobody's fault.
        masked = jnp.where(jnp.arange(3) < 2, x[:, 6:], -jnp.inf)
        x = jnp.concatenate([
            Log()(x[:, :1]), Standardize()(x[:, 1:4]), Exp()(x[:, 4:5]), Root()(x[:, 5:6]),
            nn.softmax(masked), 1 / (1 + jnp.exp(1e4 * x[:, 6:] ** 2))], -1)
        return nn.Dense(10)(x)


# What goes wrong: the features, where they are, and what is said of it.
CASES = {
    "log of zero": ([0.], 0, ' in layer "Net/Log_0": log of [0, 1] gives an infinity ({here}'),
    "no variance": ([7.] * 3, 1, ' in layer "Net/Standardize_0": div of [-2, 2] and [0, 1.633] '
                                 "gives NaN ({here}"),
    "overflow": ([100.], 4, ' in layer "Net/Exp_0": exp of [0, 100] gives an infinity ({here}'),
    "slope": ([0.], 5, ' in the gradient of layer "Net/Root_0": div of [0.5, 0.5] and [0, 1] gives '
                       "an infinity ({here}"),
    "pixel": ([math.nan], 7, ' in the data: 1 of the values of "image", in {bad}'),
    "label": ([], 0, " in the loss: select_n of [0, 1] and nothing finite gives NaN (jaxdl/tasks/"),
}
EXAMPLE = f"1 of 16 examples (id {BAD})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planted:
    case: str | None
    stand_in: None = None

    def open(self, split: str) -> Arrays:
        rng = np.random.default_rng(0)
        image = np.ones((SIZE, 9), np.float32)
        image[:, 1:4] = [-2, 0, 2]
        image[:, 4] = 0
        image[:, 6:] = rng.normal(size=(SIZE, 3))
        label = rng.integers(0, 10, SIZE).astype(np.int32)
        if self.case is not None:
            values, at, _ = CASES[self.case]
            image[BAD, at:at + len(values)] = values
            label[BAD] = 12 if self.case == "label" else label[BAD]
        return Arrays(arrays={"image": image, "label": label})

    def prepare(self) -> None:
        pass

    def fingerprint(self) -> str:
        return str(self.case)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steep(Constant):
    """Too much from step 3 on."""

    def __call__(self, step: Any, steps: int) -> Any:
        return jnp.where(step < 3, 1e-3, super().__call__(step, steps))


def planted(case: str | None, **changes: Any) -> Experiment:
    return plain(**{
        "task": Classification(model=Net(), compute_dtype="bfloat16"), "data": Planted(case=case),
        "optimizer": SGD(learning_rate=Constant(peak=1e-3)), "batch_size": BATCH, "steps": 4,
        **changes})


def searched(program: train.Program, case: str | None, folder: Path) -> Search:
    """The search of a run of which there is no more than it needs."""
    program.arrays = program.devices.replicate(Planted(case=case).open("train").arrays)
    nothing = SimpleNamespace(poll=lambda: None, alive=lambda: None, restore=lambda target: None)
    fit: Any = SimpleNamespace(
        run=SimpleNamespace(folder=folder), program=program, signals=nothing, clock=nothing,
        checkpoints=nothing, fresh=lambda: program.init(program.knobs))
    return Search(fit)


def compiled(**changes: Any) -> train.Program:
    experiment = planted(None, **changes)
    return train.Program(experiment, experiment.data.open("train"),
                         parallel.arrange(experiment.mesh))


def test_the_layer_is_named_in_each_planted_case(tmp_path: Path) -> None:
    """And the example; what is beside it can be read, and the step before is found fault-free."""
    program = compiled()
    assert searched(program, None, tmp_path).at(STEP) is None
    assert not (tmp_path / "nonfinite").exists()
    for case, (_, _, text) in CASES.items():
        search = searched(program, case, tmp_path)
        found = search.of(STEP)
        assert found.text.startswith(
            f". It began{text.format(here='tests/test_nonfinite.py:', bad=EXAMPLE)}"), found.text
        assert EXAMPLE in found.text and found.data == (case == "pixel")
        with np.load(tmp_path / "nonfinite" / f"step_{STEP}.npz", allow_pickle=False) as batch:
            assert batch["index"][ROW] == BAD and batch["image"].shape == (BATCH, 9)
            assert np.isnan(batch["image"]).sum() == (case == "pixel")
        table = json.loads((tmp_path / "nonfinite" / f"step_{STEP}.json").read_text())
        rows = {(row["layer"], row["part"]): row for row in table["layers"]}
        assert rows["Net/Exp_0", "forward"]["finite"] == (case != "overflow"), case
    assert searched(program, "slope", tmp_path).at(STEP - 1) is None


@pytest.mark.parametrize(("mode", "changes", "more"), [
    ("jit", {"accumulate": 2, "remat": "full", "ema": 0.9}, ", turn 2 of 2 of a loop"),
    ("pmap", {}, "")])
def test_it_is_found_on_eight_devices(tmp_path: Path, mode: Any, changes: dict[str, Any],
                                      more: str) -> None:
    """In micro-batches that are computed twice; and in eight programs, as one."""
    program = compiled(task=Classification(model=Net(), **changes), mesh=Mesh(data=8),
                       parallel=mode)
    found = searched(program, "overflow", tmp_path).at(STEP)
    assert found is not None and found.text.startswith(
        f'. It began in layer "Net/Exp_0"{more}: exp of [0, 100] gives an infinity ('), found.text
    assert (EXAMPLE in found.text) == (mode == "pmap")


def test_an_exploding_learning_rate_ends_with_one_line(tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """From the checkpoint before it, not from the start; both kernels are near 1e26 then, and their
    product too large for the logits, not for the hidden units."""
    begun, fresh = [], train.Fit.fresh
    monkeypatch.setattr(train.Fit, "fresh", lambda self: begun.append(1) or fresh(self))
    experiment = planted(None, task=Classification(model=MLP(widths=(8,))), save_every=3, steps=9,
                         optimizer=SGD(learning_rate=Steep(peak=1e26)))
    with pytest.raises(NotFinite) as error:
        fit(tmp_path, experiment)
    line = str(error.value)
    assert "\n" not in line and len(begun) == 1
    assert line.startswith(f'{tmp_path}: step 4: loss, grad_norm are not finite. It began in layer '
                           '"MLP/head": dot_general of [')
    assert line.endswith(f"the batch is in {tmp_path}/nonfinite/step_4.npz, a table of the layers "
                         "beside it. The newest checkpoint is of step 3. A lower learning rate, "
                         "--optimizer.clip or --nonfinite=skip may help.")


@pytest.mark.parametrize("mistake", [Preempted("SIGTERM"), ValueError("odd")])
def test_a_search_that_fails_leaves_the_rest_of_the_line(tmp_path: Path, mistake: BaseException,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Search, step: int) -> Any:
        raise mistake

    monkeypatch.setattr(Search, "of", fails)
    store = SimpleNamespace(wait=lambda: None, steps=lambda: [3])
    stub: Any = SimpleNamespace(checkpoints=store, run=SimpleNamespace(folder=tmp_path),
                                program=None)
    line = str(explained(stub, NonFinite(4, "loss is")))
    assert line.startswith(f"{tmp_path}: step 4: loss is not finite. Where it began was not found:")
    assert ("SIGTERM came." if isinstance(mistake, Preempted) else "ValueError: odd") in line
    assert "The newest checkpoint is of step 3. A lower" in line


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pair:
    step: Any
    seen: Any
    maker: Any
    judge: Any


class Rivals:
    """A task of another family: two models, and no loss that the core knows of."""

    def init(self, key: Any, batch: Any, tx: Any) -> Pair:
        weights = jnp.ones((9, 1))
        return Pair(jnp.int32(0), jnp.uint32(0), weights, weights)

    def step(self, state: Pair, batch: Any, tx: Any) -> tuple[Pair, Any]:
        def score(weights: Any) -> Any:
            with jax.named_scope("Judge/score"):
                return jnp.log(jnp.abs(batch["image"] @ weights)).mean()

        made, slope = jax.value_and_grad(score)(state.judge)
        return dataclasses.replace(state, step=state.step + 1, seen=state.seen + BATCH,
                                   judge=state.judge - 1e-3 * slope), {"judge": made}

    def evaluate(self, state: Pair, batch: Any) -> Any:
        return {}


def test_of_a_task_without_a_loss_too(tmp_path: Path) -> None:
    program = compiled(task=Rivals())
    found = searched(program, "pixel", tmp_path).at(STEP)
    assert found is not None and found.data
    search = searched(program, None, tmp_path)
    program.arrays = jax.tree.map(jnp.zeros_like, program.arrays)
    found = search.at(0)
    assert found is not None and found.text.startswith(
        '. It began in layer "Judge/score": log of [0, 0] gives an infinity (tests/'), found.text


# Taking apart.


def began(function: Any, *operands: Any) -> apart.Origin:
    traced = jax.jit(function).trace(*operands)
    found = apart.origin(traced.jaxpr, jax.tree.leaves(operands), [0], [True])
    assert found is not None
    return found


def test_inside_of_a_loop_the_turn_is_found() -> None:
    """In what an earlier turn has carried; a loop that overflows slowly, and one with a branch."""
    def scanned(x: Any) -> Any:
        def turn(carry: Any, i: Any) -> Any:
            a, b = carry
            with jax.named_scope("cell"):
                return (jnp.log(3. - i) + 0. * a, a + b), b  # log(0) in turn 3, in b one later

        return jax.lax.scan(turn, (x, x), jnp.arange(6.))[0][1]

    found = began(scanned, jnp.float32(1.))
    assert (found.row.operation, found.row.layer, found.turns) == ("log", "cell", [(3, 6)])
    assert found.ranges == [(0., 0.)] and "(turn)" in found.line

    def looped(x: Any) -> Any:
        def body(state: Any) -> Any:
            i, x = state
            return i + 1, jax.lax.cond(i == 4, lambda x: jnp.sqrt(x - 9.), lambda x: x + 1., x)

        return jax.lax.while_loop(lambda state: state[0] < 8, body, (0, x))[1]

    found = began(looped, jnp.float32(1.))
    assert (found.row.operation, found.row.kind, found.turns) == ("sqrt", "nan", [(4, None)])
    assert found.ranges == [(-4., -4.)]


def test_an_infinity_that_was_meant_is_not_where_it_began() -> None:
    """All keys of a row are masked: the softmax of nothing is 0 / 0, or here inf - inf."""
    def attention(x: Any, mask: Any) -> Any:
        scores = jnp.where(mask, x, -jnp.inf)
        scores = scores - scores.max(-1, keepdims=True)
        return (jnp.exp(scores) / jnp.exp(scores).sum(-1, keepdims=True)).sum()

    mask = np.array([[True, False], [False, False]])
    found = began(attention, np.ones((2, 2), np.float32), mask)
    assert (found.row.operation, found.row.kind) == ("sub", "nan")
    assert found.wrong.any(1).tolist() == [False, True]


def test_an_operand_that_is_not_finite_is_named() -> None:
    found = began(lambda x, y: (x[1:] * 2. + y[0]).sum(), np.array([np.inf, 1.], np.float32),
                  np.array([np.nan, 1.], np.float32))
    assert found.operand == 1  # the infinity is not in what is used


def test_of_an_infinity_and_a_nan_the_nan_is_followed() -> None:
    found = began(lambda x, y: jnp.exp(x) + jnp.log(y), jnp.float32(100.), jnp.float32(-1.))
    assert (found.row.operation, found.ranges) == ("log", [(-1., -1.)])


def test_the_table_has_a_row_for_each_layer() -> None:
    rows = [apart.Row("a", "forward", "mul", 1., 2.),
            apart.Row("a", "forward", "exp", 2., math.inf),
            apart.Row("a", "backward", "mul", math.nan, 3.)]
    assert layers(rows) == [
        {"layer": "a", "part": "forward", "operations": 2, "largest_in": 1., "largest_out": "inf",
         "finite": False},
        {"layer": "a", "part": "backward", "operations": 1, "largest_in": "nan", "largest_out": 3.,
         "finite": True}]

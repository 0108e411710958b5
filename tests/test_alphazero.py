"""AlphaZero: what comes of moves, its loss and its search; matches and ratings."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import arena
from jaxdl.envs.board import Pgx
from jaxdl.errors import UserError
from jaxdl.evaluate import Context
from jaxdl.models.actor_critic import ActorCritic
from jaxdl.models.mlp import MLP
from jaxdl.tasks.alphazero import AlphaZero, Example, outcomes
from tests.promises import one_program, resumes

pytest.importorskip("pgx", reason="pip install 'jaxdl[rl]'")
pytest.importorskip("mctx", reason="pip install 'jaxdl[rl]'")
KEY = jax.random.key(0)
BATCH = {"index": jnp.arange(4), "mask": jnp.ones(4)}
GAME = Pgx(name="tic_tac_toe")
TASK = AlphaZero(model=ActorCritic(outputs=9, widths=(16,)), game=GAME, simulations=24, horizon=12,
                 memory=200, sample=16, updates=2, value_weight=2.)
TX = optax.adam(1e-2)


def after(*moves: int) -> Any:
    """A batch of one position, after these moves."""
    position = GAME.begin(KEY)
    play = jax.jit(GAME.play)
    for move in moves:
        position = play(position, jnp.int32(move))
    return jax.tree.map(lambda x: x[None], position)


def test_what_came_of_each_move() -> None:
    # The first game: a win by the move 2. The second one begins with move 3 and is not over.
    reward = np.array([[0, 0], [0, 0], [1, 0], [0, 0], [0, -1]], np.float32)
    over = np.array([[0, 0], [0, 0], [1, 0], [0, 0], [0, 1]], bool)
    value = np.array([0.3, 0.9], np.float32)  # of who moves next; the second game is new
    np.testing.assert_allclose(outcomes(*map(jnp.asarray, (reward, over, value))), np.array([
        [1, -1], [-1, 1], [1, -1], [0.3, 1], [-0.3, -1]]), rtol=1e-6)


def test_the_loss_against_numpy() -> None:
    state = jax.jit(lambda: TASK.init(KEY, BATCH, TX))()
    random = np.random.default_rng(0)
    legal = random.random((5, 9)) < 0.6
    legal[:, 0] = True
    policy = random.random((5, 9)) * legal
    policy /= policy.sum(1, keepdims=True)
    rows = Example(*(jnp.asarray(x, kind) for x, kind in (
        (random.integers(0, 2, (5, 3, 3, 2)), jnp.float32), (legal, bool), (policy, jnp.float32),
        (random.integers(-1, 2, 5), jnp.float32))))
    logits, value = map(np.asarray, TASK.apply(state.params, rows.observation))
    assert (np.abs(value) <= 1).all()
    odds = np.where(legal, np.exp(logits), 0)
    logs = np.log(np.where(legal, odds / odds.sum(1, keepdims=True), 1))
    expected = -(policy * logs).sum(1).mean() + 2 * ((rows.value - value) ** 2).mean()
    assert float(jax.jit(TASK.loss)(state.params, rows)[0]) == pytest.approx(float(expected),
                                                                            rel=1e-5)


@pytest.mark.parametrize("search", ["gumbel", "puct"])
def test_the_search_finds_the_move_that_wins(search: Any) -> None:
    task = dataclasses.replace(TASK, search=search, simulations=200)
    state = jax.jit(lambda: task.init(KEY, BATCH, TX))()
    move = jax.jit(lambda position: task.move(state, position, KEY)[0])
    assert int(move(after(0, 3, 1, 4))) == 2  # three in a row
    assert int(move(after(0, 3, 1, 4, 8))) == 5  # so has the other player
    assert int(move(after(0, 4, 1))) == 2  # else the first has
    assert int(move(after(4, 1, 6, 2))) == 0  # two threats at once
    explored = jax.jit(lambda key: task.searched(state.params, after(0, 3), key, True))
    found = [explored(jax.random.key(i)) for i in range(20)]
    assert not {0, 3} & {int(action[0]) for action, _ in found}  # never where there is one
    assert len({int(action[0]) for action, _ in found}) > 1
    for _, policy in found:
        assert float(policy.sum()) == pytest.approx(1, abs=1e-5)
        assert float(policy[0, 0]) == pytest.approx(0, abs=1e-6)


def test_illegal_actions_take_nothing_from_legal_ones() -> None:
    """Whatever the network says of them: there is always a loss of none."""
    task = dataclasses.replace(TASK, search="puct", simulations=50)

    class Said(AlphaZero):
        def apply(self, params: Any, observation: Any) -> Any:
            size = observation.shape[0]
            # Eight is good, as it says, and the taken fields are better.
            said = jnp.zeros((size, 9)).at[:, 8].set(4.).at[:, jnp.array([0, 3])].set(10.)
            return said, jnp.zeros(size)

    task = Said(**{f.name: getattr(task, f.name) for f in dataclasses.fields(task)})
    policies = jax.jit(jax.vmap(lambda key: task.searched(None, after(0, 3), key, True)[1][0]))(
        jax.random.split(KEY, 20))
    assert float(policies[:, 8].mean()) > 0.5
    assert float(policies[:, jnp.array([0, 3])].max()) == 0


def test_games_go_on_from_iteration_to_iteration() -> None:
    state = jax.jit(lambda: TASK.init(KEY, BATCH, TX))()
    step = jax.jit(lambda s: TASK.step(s, BATCH, TX))
    new, metrics = step(state)
    assert int(new.replay.place) == 48 and int(new.opt_state[0].count) == 2
    rows = jax.tree.map(lambda x: np.asarray(x[:48].reshape(12, 4, *x.shape[1:])), new.replay.rows)
    placed = rows.observation.sum((-1, -2, -3))  # stones on the board
    assert (placed[0] == 0).all()
    fresh = placed[1:] == 0
    np.testing.assert_array_equal(placed[1:][~fresh], placed[:-1][~fresh] + 1)
    assert fresh.any() and float(metrics["length"].value()) >= 5
    np.testing.assert_array_equal(new.moves, np.asarray(new.positions.observation).sum((1, 2, 3)))
    np.testing.assert_array_equal(rows.legal.sum(-1), 9 - placed)
    # Within a game each move is worth to its player what it costs the other, to the last.
    same = ~fresh
    np.testing.assert_allclose(rows.value[:-1][same], -rows.value[1:][same], rtol=1e-6)


def test_games_begin_after_random_moves() -> None:
    task = dataclasses.replace(TASK, opening=6)
    positions = jax.jit(task.opened)(jax.random.split(KEY, 400))
    placed = np.asarray(positions.observation).sum((1, 2, 3))
    assert set(placed) == set(range(7)) and not positions.over.any()
    assert (np.bincount(placed.astype(int)) > 25).all()
    np.testing.assert_array_equal(positions.legal.sum(-1), 9 - placed)


def test_the_perfect_player() -> None:
    codes, best, _ = arena.solved(GAME, 10_000)
    assert best.shape == (len(codes), 9) == (4_520, 9)  # All that are not over, it is known.
    move = jax.jit(arena.Perfect().prepared(GAME))
    for moves, wanted in (((), set(range(9))), ((0,), {4}), ((4,), {0, 2, 6, 8}),
                          ((0, 3, 1, 4), {2}), ((0, 4, 8), {1, 3, 5, 7})):
        assert {int(move(after(*moves), jax.random.key(i))[0]) for i in range(60)} == wanted
    with pytest.raises(UserError, match="Perfect: limit=100: the game has more positions"):
        arena.solved(GAME, 100)


class Devices:
    replicated = None


def test_matches() -> None:
    state = jax.jit(lambda: TASK.init(KEY, BATCH, TX))()
    evaluator = arena.Arena(games=31, opponents={
        "random": arena.Random(), "one_ply": arena.OnePly(), "perfect": arena.Perfect()})
    context = Context(name="test", step=0, source=lambda split: None,  # type: ignore
                      batch_size=4, devices=Devices())  # type: ignore[arg-type]
    found = evaluator(TASK, state, context)
    for name in evaluator.opponents:
        counts = [found[f"{name}/{kind}"] for kind in ("wins", "draws", "losses")]
        assert sum(counts) == 31
        assert found[f"{name}/score"] == (counts[0] + counts[1] / 2) / 31
    assert found["perfect/wins"] == 0 and found["random/wins"] > 15
    assert found == evaluator(TASK, state, context)

    def score(one: str, other: str) -> float:
        return float(evaluator.match(TASK, state, context, one, other).mean())

    assert score("perfect", "perfect") == 0 and score("one_ply", "random") > 0.1
    assert score("perfect", "random") > 0.6
    assert score("random", "perfect") < -0.6


def test_one_ply_takes_what_wins_at_once() -> None:
    move = jax.jit(arena.OnePly().prepared(GAME))
    assert {int(move(after(0, 3, 1, 4), jax.random.key(i))[0]) for i in range(10)} == {2}
    assert {int(move(after(0, 4, 1), jax.random.key(i))[0]) for i in range(60)} == {
        2, 3, 5, 6, 7, 8}


def test_ratings() -> None:
    # Ten to one is 400 points. The draw that is added counts for little among so many.
    odds = np.array([[0, 1e5, 1e6], [1e4, 0, 1e5], [1e4, 1e4, 0]])
    ratings = arena.elo(odds)
    assert ratings[0] - ratings[1] == pytest.approx(400, abs=1)
    assert ratings[1] - ratings[2] == pytest.approx(400, abs=1)
    one_sided = arena.elo(np.array([[0., 10.], [0., 0.]]))
    assert one_sided[0] - one_sided[1] == pytest.approx(400 * np.log10(10.5 / 0.5), abs=1)


@pytest.mark.parametrize(("changes", "message"), [
    ({"memory": 20}, r"task.memory=20: an iteration plays batch_size \* horizon = 48 positions"),
    ({"model": ActorCritic(outputs=3)}, "says 3 numbers .* the moves of task.game are 9"),
    ({"model": MLP(classes=9)}, r"MLP: returns 1 of 2 expected parts \(policy, values\)"),
    ({"game": Pgx(name="conect_four")}, "Pgx: name=conect_four: .* 'connect_four'"),
    ({"game": Pgx(name="backgammon")}, "no game of two who move in turn and see all")])
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: dataclasses.replace(TASK, **changes).init(KEY, BATCH, TX))


FILE = '''
from jaxdl.arena import Arena, OnePly
from jaxdl.data.nothing import Nothing
from jaxdl.envs.board import Pgx
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.actor_critic import ActorCritic
from jaxdl.optimizer import Adam, Constant
from jaxdl.tasks.alphazero import AlphaZero

def config():
    return Experiment(
        task=AlphaZero(model=ActorCritic(outputs=9, widths=(16,)), game=Pgx(name="tic_tac_toe"),
                       simulations=8, horizon=5, memory=400, sample=32, updates=2, search="puct"),
        data=Nothing(), optimizer=Adam(learning_rate=Constant(peak=1e-2)),
        evals={"test": Arena(every=100, games=4, opponents={"one_ply": OnePly()})},
        steps=12, batch_size=8, log_every=5, save_every=3, mesh=Mesh(data=1))
'''


def test_it_resumes_bit_exactly_in_mid_game(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(FILE)
    resumes(f"--experiment={tmp_path / 'tiny.py'}", tmp_path, 12)


def test_seeds_are_one_program(tmp_path: Path, programs: list[int]) -> None:
    (tmp_path / "tiny.py").write_text(FILE)
    one_program(f"--experiment={tmp_path / 'tiny.py'}", tmp_path, programs, "--steps=2",
                metric="test/elo")


def test_nine_by_nine_go_is_played() -> None:
    task = AlphaZero(model=ActorCritic(outputs=82, widths=(4,), channels=(2,)),
                     game=Pgx(name="go_9x9"), simulations=2, horizon=2, memory=16, sample=4,
                     updates=1)
    state = jax.eval_shape(lambda: task.init(KEY, BATCH, TX))
    assert state.positions.legal.shape == (4, 82)
    new, _ = jax.eval_shape(lambda s: task.step(s, BATCH, TX), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state)

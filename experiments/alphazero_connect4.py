"""Connect four, learned by AlphaZero from itself: 95 % of 200 games won against one-ply search.

    pip install 'jaxdl[rl]'
    python launch.py --experiment=alphazero_connect4

Silver et al. (2018), https://doi.org/10.1126/science.aar6404, with the search of Danihelka et al.
(2022), https://openreview.net/forum?id=bERaNdoegnO, 32 positions for each move, in games and in
matches. The one-ply player wins at once where it can and else moves at random. `test/one_ply/wins`
is the number, of 200 games, half of them as the first to move; the untrained network with the same
search is evaluated with `--steps=1`.
"""

from jaxdl.arena import Arena, OnePly, Random
from jaxdl.data.nothing import Nothing
from jaxdl.envs.board import Pgx
from jaxdl.experiment import Best, Experiment
from jaxdl.models.actor_critic import ActorCritic
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.alphazero import AlphaZero


def config() -> Experiment:
    return Experiment(
        task=AlphaZero(model=ActorCritic(outputs=7, widths=(256, 256), activation="relu"),
                       game=Pgx(name="connect_four"), simulations=32, horizon=21, updates=8,
                       memory=50_000, opening=8),
        data=Nothing(),
        optimizer=Adam(learning_rate=Cosine(peak=2e-3)),
        evals={"test": Arena(every=100, games=200, opponents={
            "random": Random(), "one_ply": OnePly()})},
        best=Best(metric="test/one_ply/wins"),
        steps=200, batch_size=64, log_every=20,
    )

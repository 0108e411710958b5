"""Noughts and crosses, learned by AlphaZero from itself: 0 of 200 games lost to the perfect player.

    pip install 'jaxdl[rl]'
    python launch.py --experiment=alphazero_tictactoe

Silver et al. (2018), https://doi.org/10.1126/science.aar6404, with the search of Danihelka et al.
(2022), https://openreview.net/forum?id=bERaNdoegnO, 32 positions for each move. A game that both
play without a mistake is a draw, so against minimax over all 4,520 positions, which draws among
moves of equal worth, nothing can be won: `test/perfect/losses` is the number, of 200 games, half of
them as the first to move. The untrained network with the same search loses more than a hundred.
"""

from jaxdl.arena import Arena, OnePly, Perfect, Random
from jaxdl.data.nothing import Nothing
from jaxdl.envs.board import Pgx
from jaxdl.experiment import Best, Experiment
from jaxdl.models.actor_critic import ActorCritic
from jaxdl.optimizer import Adam, Cosine
from jaxdl.tasks.alphazero import AlphaZero


def config() -> Experiment:
    return Experiment(
        task=AlphaZero(model=ActorCritic(outputs=9, widths=(128, 128), activation="relu"),
                       game=Pgx(name="tic_tac_toe"), simulations=32, horizon=9, updates=8,
                       opening=4),
        data=Nothing(),
        optimizer=Adam(learning_rate=Cosine(peak=3e-3)),
        evals={"test": Arena(every=100, games=200, opponents={
            "random": Random(), "one_ply": OnePly(), "perfect": Perfect()})},
        best=Best(metric="test/perfect/losses", mode="min"),
        steps=300, batch_size=64, log_every=20,
    )

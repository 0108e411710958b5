"""An experiment without the command line: for notebooks and scripts.

    run = fit(experiment, "runs/first")
    steps, accuracy = run.curves["test/accuracy"]

What it writes is a run directory as the command's, for `report`, `evaluate` and the others.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdl import checkpoint, cli, config, environment, logged, parallel, record
from jaxdl.errors import UserError
from jaxdl.experiment import Experiment
from jaxdl.logged import Logged
from jaxdl.train import restored, splits


def fit(experiment: Experiment, workdir: str | os.PathLike[str], *, strict_data: bool = False,
        accept_changes: bool = False) -> Logged:
    """Trains as the command does, and returns the run as its directory has it.

    Called again with the same `workdir` it continues there, or finds that there is nothing left to
    do. An interrupt (of the kernel, too) saves the step that it is at and raises `Preempted`.

    Args:
      experiment: what to train.
      workdir: the run directory.
      strict_data: refuses the stand-in where the declared data is missing.
      accept_changes: continues a run directory although the experiment, or its data, differ.
    """
    config.check(experiment)
    folder = Path(workdir).expanduser()
    options = cli.TrainOptions(workdir=str(folder), strict_data=strict_data,
                               accept_changes=accept_changes)
    modules, code = _users(experiment)
    cli.train(cli.Command(
        target=str(folder), name=folder.absolute().name, experiment=experiment, typed={},
        options=options, modules=modules, expected="", run=None, stand_in=None,
        original=experiment, code=code))
    return logged.read(folder)


def state(workdir: str | os.PathLike[str], step: str = "last", *,
          experiment: Experiment | None = None) -> tuple[Experiment, Any]:
    """(experiment, state) of a checkpoint: what the methods of `experiment.task` take.

    Args:
      workdir: the run directory; only read.
      step: "best", "last" or the number of a checkpoint.
      experiment: as it was trained, where it holds classes of your own: a record alone names only
        those of jaxdl.
    """
    folder = Path(workdir).expanduser()
    old = record.read(folder)
    if old is None:
        raise UserError(f"{folder}: not a run directory.")
    # Rebuilt, since a stand-in may have taken the place of the data.
    found = cli.rebuilt(old, folder, () if experiment is None else _users(experiment)[0])
    found.data.prepare()
    return found, restored(found, folder, checkpoint.select(folder, step), splits(found)("train"),
                           parallel.arrange(found.mesh, found.rules))[1]


def _users(experiment: Experiment) -> tuple[tuple[str, ...], dict[str, str]]:
    """(modules whose dataclasses the experiment holds, digests of their files and of those that
    they use). Code that was typed into a notebook has no file, and no digest."""
    names, code = {type(node).__module__ for node in _nodes(experiment)}, {}
    for module in [sys.modules[name] for name in sorted(names)]:
        if users := environment.users(module):
            names |= users.keys()
            code |= environment.code(module)
    return tuple(sorted(names)), code


def _nodes(node: Any) -> Iterator[Any]:
    """Every node of a tree."""
    if config.is_node(node):
        yield node
        for child in config.children(node).values():
            yield from _nodes(child)

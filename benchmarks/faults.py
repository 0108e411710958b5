"""Faults: damaged storage, double launches, retention, several processes, long runs.

    python benchmarks/faults.py                            # all campaigns
    python benchmarks/faults.py --campaign mutations disk  # some
    python benchmarks/faults.py --short                    # all, each a tenth as long

Each campaign prints its figures, and beside each what plain Orbax, Grain or JAX, or a planted
mistake, came to under the same fault: that one must fail, or the campaign proves nothing. The table
of all is printed at the end; the exit status is 1 if any figure is not as it should be. `kills.py`
has the campaigns that kill and signal one process.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAXDL_MALLOC"] = os.environ.get("JAXDL_MALLOC", "default")
# The programs are small: to optimise them takes longer than to run them as they are.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1 "
                                   "--xla_llvm_disable_expensive_passes=true")

import faults_long as long
import faults_processes as processes
import faults_storage as storage
from campaign import Campaign, Figure, Skip, console, memory_folder

# Name: what it does, how often.
CAMPAIGNS: dict[str, tuple[Callable[[Campaign], Iterator[Figure]], int]] = {
    "mutations": (storage.mutations, 1_000),
    "launches": (storage.launches, 100),
    "retention": (storage.retained, 10_000),
    "disk": (storage.disk, 10),
    "cells": (processes.cells, 32),
    "signals": (processes.signals, 50),
    "handed_over": (processes.handed_over, 1),
    "sockets": (processes.sockets, 1),
    "orphans": (processes.orphans, 50),
    "growth": (long.growth, 100_000),
    "many": (long.many, 10_000),
}


def main() -> int:
    names = "\n".join(f"  {name:12}{call.__doc__}" for name, (call, _) in CAMPAIGNS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{names}", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaign", nargs="+", choices=CAMPAIGNS, default=list(CAMPAIGNS))
    parser.add_argument("--short", action="store_true", help="a tenth of everything")
    parser.add_argument("--count", type=int, help="how often, instead of what the campaign has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one if left out")
    flags = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)
    root = Path(tempfile.mkdtemp(prefix="faults-", dir=flags.folder)).absolute()
    memory = memory_folder("faults-")
    found: list[tuple[str, Figure, float]] = []
    notes: list[str] = []
    began = time.monotonic()
    try:
        for name in flags.campaign:
            call, count = CAMPAIGNS[name]
            count = flags.count or (max(1, count // 10) if flags.short else count)
            console.print(f"{name}: {call.__doc__}")
            (root / name).mkdir()
            (memory / name).mkdir()
            campaign = Campaign(root / name, memory / name, count, flags.short, flags.seed)
            before = time.monotonic()
            try:
                for figure in call(campaign):
                    console.print(f"  {figure.what}: {figure.ours or '-'} | {figure.beside or '-'}"
                                  + ("" if passed(figure) else "  <-- BAD"))
                    found.append((name, figure, time.monotonic() - before))
                    before = time.monotonic()
            except Skip as reason:
                found.append((name, Figure("", "skipped", str(reason), True), 0.))
            notes += [f"{name}: {note}" for note in campaign.notes]
            shutil.rmtree(memory / name, ignore_errors=True)
    finally:
        shutil.rmtree(memory, ignore_errors=True)
    bad = [figure for _, figure, _ in found if not passed(figure)]
    show(found, notes, time.monotonic() - began)
    if bad:
        console.print(f"{len(bad)} figures are not as they should be; see {root}")
    else:
        shutil.rmtree(root, ignore_errors=True)
    return 1 if bad else 0


def passed(figure: Figure) -> bool:
    """Whether ours is good, and what stands beside it has failed as it must."""
    return figure.good and figure.caught is not False


def show(found: list[tuple[str, Figure, float]], notes: list[str], seconds: float) -> None:
    rows = [("row", "campaign", "fault", "jaxdl", "beside", "", "s"), ("---",) * 7]
    rows += [(figure.row, name, figure.what, figure.ours, figure.beside,
              "ok" if passed(figure) else "BAD", f"{took:.0f}") for name, figure, took in found]
    for row in rows:
        console.print(f"| {' | '.join(row)} |")
    for note in notes:
        console.print(note)
    console.print(f"{len(found)} figures in {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    sys.exit(main())

"""Planted bugs that `check` catches, and false alarms on what is healthy.

    python benchmarks/check.py                 # all checks of all plants and experiments
    python benchmarks/check.py --held-back     # the plants that no check was written with
    python benchmarks/check.py --experiments   # the experiments of this repository

A plant is caught if each check that is meant for it fails; that others fail too is a consequence.
The exit status is 1 if a plant is missed, or if a check fails on an experiment that is healthy.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from jaxdl import allocator, check, compilation, files
from jaxdl.errors import DataMissing
from tests import plants

console = Console(highlight=False, soft_wrap=True, markup=False)


def examined(experiment: Any) -> tuple[dict[str, check.Finding], float]:
    began = time.perf_counter()
    found = {name: finding for name, finding, _ in check.examine(experiment)}
    return found, time.perf_counter() - began


def planted(chosen: Any) -> tuple[Table, int]:
    table = Table("bug", "meant to be found by", "caught", "measured", "further failures",
                  "seconds", box=MARKDOWN)
    missed = 0
    for name, plant in chosen.items():
        found, seconds = examined(plant.experiment())
        fails = [n for n, finding in found.items() if finding.verdict == "FAIL"]
        caught = all(c in fails for c in plant.checks)
        missed += not caught
        measured = "; ".join(found[c].measured for c in plant.checks if c in found)
        table.add_row(name, ", ".join(plant.checks), "yes" if caught else "NO", measured,
                      ", ".join(n for n in fails if n not in plant.checks), f"{seconds:.0f}")
        console.print(f"{name}: {'caught' if caught else 'MISSED'} ({seconds:.0f} s)")
    return table, missed


def repository() -> dict[str, Any]:
    """The experiments of this repository whose data, or its stand-in, is here."""
    found = {}
    for name, path in files.experiments().items():
        experiment: Any = files.call(files.load(path), "config")
        try:
            try:
                experiment.data.prepare()
            except DataMissing:
                if experiment.data.stand_in is None:
                    raise
                experiment = dataclasses.replace(experiment, data=experiment.data.stand_in.data)
                experiment.data.prepare()
        except DataMissing as error:
            console.print(f"{name}: not checked: {error}")
            continue
        found[name] = experiment
    return found


def healthy(chosen: Any) -> tuple[Table, int]:
    table = Table("experiment", "failed", "to look at", "passed", "do not apply", "seconds",
                  box=MARKDOWN)
    alarms = 0
    for name, experiment in chosen.items():
        found, seconds = examined(experiment)
        by = {v: [f"{n} ({f.measured})" if v == "warn" else n for n, f in found.items()
                  if f.verdict == v] for v in ("FAIL", "warn", "pass", "-")}
        alarms += bool(by["FAIL"])
        table.add_row(name, ", ".join(f"{n} ({found[n].measured})" for n in by["FAIL"]) or "none",
                      ", ".join(by["warn"]), str(len(by["pass"])), str(len(by["-"])),
                      f"{seconds:.0f}")
        console.print(f"{name}: {len(by['FAIL'])} failed ({seconds:.0f} s)")
    return table, alarms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-back", action="store_true")
    parser.add_argument("--experiments", action="store_true")
    flags = parser.parse_args()
    allocator.keep_memory()
    compilation.keep_programs()
    bad = 0
    everything = not (flags.held_back or flags.experiments)
    for wanted, make in ((flags.held_back, lambda: planted(plants.HELD_BACK)),
                         (everything, lambda: planted(plants.PLANTS)),
                         (everything, lambda: healthy({n: f() for n, f in plants.HEALTHY.items()})),
                         (everything or flags.experiments, lambda: healthy(repository()))):
        if wanted:
            table, wrong = make()
            bad += wrong
            Console(width=200).print(table)
            console.print(f"{table.row_count - wrong} of {table.row_count}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())

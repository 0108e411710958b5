"""Campaigns about runs that go on for long: what a process holds, and what its directory does."""

import json
import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from campaign import Campaign, Figure, forked, train, trained
from faults_storage import target

from jaxdl import checkpoint
from jaxdl.checkpoint import Checkpoints, committed

LEAK = 256 * 1024  # bytes that the planted mistake keeps at each evaluation


# Rows 56 and 57: what grows.


def growth(campaign: Campaign) -> Iterator[Figure]:
    """Rows 56, 57: many tiny steps with evaluations and saves: memory, files, threads, bytes."""
    steps, every = campaign.count, campaign.count // 100
    ours, vitals, sizes = long_run(campaign.folder / "run", steps, every, 0)
    slope, error = slope_of(vitals)
    grown, of_all = [], []
    for name in ("files", "threads"):
        more, within = slope_of(vitals, name)
        grown.append(more - 2 * within)
        of_all.append(f"{spread({line[f'vitals/{name}'] for line in vitals[10:]})} {name} after "
                      f"the first tenth, {more:+.3f} +- {within:.3f} per evaluation")
    leaky = min(steps, 20_000)
    _, leaked, _ = long_run(campaign.folder / "leak", leaky, leaky // 100, LEAK)
    planted, planted_error = slope_of(leaked)
    saves = steps / (every / 20)
    campaign.note(f"resident memory: {vitals[0]['vitals/rss']:.0f} MiB at step "
                  f"{vitals[0]['step']:,}, {vitals[-1]['vitals/rss']:.0f} at the end")
    yield Figure("56", f"{steps:,} steps with {saves:,.0f} saves and 100 evaluations, {ours:.0f} s",
                 f"memory grows by {slope:.3f} +- {error:.3f} MiB per evaluation and 20 saves; "
                 f"open {'; '.join(of_all)}",
                 slope - 2 * error < 0.02 and max(grown) < 0.02,
                 f"mutant that keeps 0.25 MiB at each: {planted:.3f} +- {planted_error:.3f}",
                 planted - 2 * planted_error > 0.02)
    line = sizes.pop("metrics.jsonl")
    events = sum(sizes.pop(name) for name in list(sizes) if "tfevents" in name)
    rest = sum(size for name, size in sizes.items() if not name.startswith("checkpoints"))
    yield Figure("57", "bytes in its directory at the end", f"metrics.jsonl {line / steps:.2f} and "
                 f"events {events / steps:.2f} per step; all else, without checkpoints, "
                 f"{rest:,} in {len(sizes)} files", rest < 1e6)
    yield launched_often(campaign)


def long_run(run: Path, steps: int, every: int, leak: int) -> tuple[
        float, list[dict[str, Any]], dict[str, int]]:
    """(seconds, what the process held at each evaluation, bytes of each file)."""
    began = time.monotonic()
    child = train(run, f"--steps={steps}", f"--log_every={every}", f"--evals.test.every={every}",
                  f"--save_every={every // 20}", environment={"VITALS": f"{every},{leak}"})
    if child.wait(3600):
        raise RuntimeError(f"{run}: {child.err.read_text()[-2000:]}")
    seconds = time.monotonic() - began
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    sizes = {str(p.relative_to(run)): p.stat().st_size for p in run.rglob("*") if p.is_file()}
    return seconds, [line for line in lines if "vitals/rss" in line], sizes


def slope_of(vitals: list[dict[str, Any]], name: str = "rss") -> tuple[float, float]:
    """MiB of resident memory (or files, threads) that come with each evaluation, and the standard
    error, after the first third."""
    y = np.array([line[f"vitals/{name}"] for line in vitals[len(vitals) // 3:]])
    x = np.arange(len(y)) - (len(y) - 1) / 2
    slope = (x @ y) / (x @ x)
    rest = y - y.mean() - slope * x
    return slope, float(np.sqrt(rest @ rest / (len(y) - 2) / (x @ x)))


def spread(values: set[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def launched_often(campaign: Campaign) -> Figure:
    """What each further launch leaves in the directory of a run that was there before."""
    run = campaign.folder / "launched"
    sizes: list[Mapping[str, int]] = []
    for i in range(12):
        trained(run, f"--steps={8 * (i + 1)}", "--accept_changes")
        sizes.append({p.name: p.stat().st_size for p in run.iterdir() if p.is_file()})
    growing = {name: (sizes[-1][name] - sizes[1].get(name, 0)) / 10 for name in sizes[-1]
               if sizes[-1][name] != sizes[1].get(name)}
    files = len(sizes[-1]) - len(sizes[1])
    text = ", ".join(f"{name.split('.')[0] if 'tfevents' not in name else 'events'} "
                     f"{size:,.0f}" for name, size in growing.items() if "tfevents" not in name)
    return Figure("57", "12 launches of one run, bytes that each adds", f"{text}; {files} more "
                  "files", files <= 10 and sum(growing.values()) < 50_000)


# Row 59: a directory with many checkpoints.


def many(campaign: Campaign) -> Iterator[Figure]:
    """Row 59: a directory with very many committed checkpoints: seconds until it is open."""
    run = campaign.folder / "run"
    trained(run, "--steps=5")
    folder = run / "checkpoints"
    manifest, tree = json.loads((folder / "5.json").read_text()), folder / "arrays" / "5"
    for step in range(6, campaign.count + 5):
        shutil.copytree(tree, folder / "arrays" / str(step), copy_function=os.link)
        own = {k: v for k, v in manifest.items() if k != "sha256"} | {"step": step}
        own["sha256"] = checkpoint._seal(own)
        (folder / f"{step}.json").write_text(json.dumps(own))
    last = committed(folder)[-1]
    opened, restored = forked(timed, folder)
    chance = random.Random(campaign.seed)
    checkpoint.verify(folder, chance.randrange(6, last))
    yield Figure("59", f"{len(committed(folder)):,} committed checkpoints in one directory",
                 f"open after {opened:.2f} s, the newest restored and verified after "
                 f"{restored:.2f} s more", opened + restored < 2)


def timed(folder: Path) -> tuple[float, float]:
    tree = target(checkpoint.read_manifest(folder, committed(folder)[-1])["arrays"])
    began = time.monotonic()
    store = Checkpoints(folder, keep=10 ** 6)
    opened = time.monotonic()
    if store.restore(tree) is None:
        raise RuntimeError("nothing was restored")
    restored = time.monotonic()
    store.close()
    return opened - began, restored - opened

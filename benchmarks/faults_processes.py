"""Campaigns about several processes: what happens to all when one of them fails."""

import contextlib
import glob
import itertools
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from campaign import (
    FAULTY,
    Campaign,
    Child,
    Figure,
    alive,
    emptied,
    fork,
    listening,
    tagged,
    ticked,
    train,
    trained,
)
from faults_storage import checkpoint_values, equal, fault_in

from jaxdl.checkpoint import committed, verify
from jaxdl.resume import metrics

LIMIT = 35.0  # seconds from a fault to the end of all
PATIENCE = 90.0  # after which a process is given up
STUCK = 15  # seconds without progress after which a process is called stuck, here
KINDS = ("SIGKILL", "SIGSTOP", "raise", "stuck")
SECTIONS = ("start", "step", "evaluation", "save")
OPTIONS = ("--mesh.data=-1", f"--stuck_after={STUCK}")


def several(count: int = 2) -> list[dict[str, str]]:
    """The environment of each of the processes that a cluster starts, without a launcher that
    could end the others."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return [{"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count),
             "JAX_PROCESS_ID": str(rank)} for rank in range(count)]


def pair(run: Path, *arguments: str, log: str = "",
         environment: Mapping[str, str] | None = None) -> list[Child]:
    """Two processes that train one run."""
    return [train(run, *OPTIONS, *arguments, log=run.with_name(f"{run.name}{log}-{rank}.log"),
                  environment={**one, **(environment or {})})
            for rank, one in enumerate(several())]


def said(children: list[Child]) -> str:
    return "\n".join(text for child in children if (text := child.err.read_text().strip()))


def both_trained(run: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Trains to the end with two processes; what process 0 printed."""
    children = pair(run, *arguments, environment=environment)
    try:
        statuses = [child.wait() for child in children]
    finally:
        for child in children:
            child.kill()
    if statuses != [0, 0]:
        raise RuntimeError(f"{run}: status {statuses}: {said(children)[-2000:]}")
    return children[0].out.read_text()


# Row 37: one of two fails.


def cells(campaign: Campaign) -> Iterator[Figure]:
    """Row 37: one of two is killed, stopped, raises or is stuck, anywhere; how long both take."""
    straight = campaign.folder / "straight"
    both_trained(straight)
    whole, log = checkpoint_values(straight), metrics(straight)
    places = list(itertools.product(SECTIONS, KINDS, (0, 1)))
    chance = random.Random(campaign.seed)
    if campaign.count < len(places):
        places = chance.sample(places, campaign.count)
    took: dict[str, list[float]] = {kind: [] for kind in KINDS}
    wrong = []
    for section, kind, rank in ticked(places, "one of two processes fails"):
        run = campaign.folder / f"{section}-{kind}-{rank}"
        step = 0 if section == "start" else chance.randrange(5, 35)
        seconds, problem = cell(run, {"kind": kind, "rank": rank, "section": section, "step": step})
        if not problem:
            before = [*committed(run / "checkpoints"), 0]
            for done in before[:-1]:
                verify(run / "checkpoints", done)
            out = both_trained(run)
            if before[0] and f"from step {max(before)}" not in out:
                problem = f"it did not go on from step {max(before)}: {out}"
            elif not equal(checkpoint_values(run), whole) or metrics(run) != log:
                problem = "another end"
        took[kind].append(seconds)
        if problem or seconds > LIMIT:
            wrong.append(f"{kind} of process {rank} in {section}, {seconds:.1f} s: {problem}")
            campaign.note(wrong[-1])
        shutil.rmtree(run, ignore_errors=True)  # Some have not come so far.
    plain = plain_cells(campaign)
    for kind in KINDS:
        if not took[kind]:
            continue
        n = len(took[kind])
        good = n - sum(text.startswith(kind) for text in wrong)
        yield Figure("37", f"{kind} in one of two processes, {n} times", f"{good} of {n} ended "
                     f"with a line of why, in {np.median(took[kind]):.1f} s at the median and "
                     f"{max(took[kind]):.1f} s at most, and went on to the same end, to the bit",
                     good == n, f"JAX alone: {plain[kind][0]}", plain[kind][1] > LIMIT or None)


def cell(run: Path, fault: dict[str, Any]) -> tuple[float, str]:
    """Seconds from the fault to the end of both, and what was wrong.

    One that was stopped cannot end: the other must, and the first when it is continued.
    """
    told = run.with_name("told")
    told.unlink(missing_ok=True)
    children = pair(run, environment=fault_in({**fault, "told": str(told)}))
    faulty, other = children[fault["rank"]], children[1 - fault["rank"]]
    try:
        deadline = time.monotonic() + PATIENCE
        while not (told.exists() and told.read_text()):
            if time.monotonic() > deadline or other.poll() is not None:
                return 0., f"the fault did not come: {said(children)}"
            time.sleep(0.01)
        began = float(told.read_text())
        other.wait(PATIENCE)
        if fault["kind"] == "SIGSTOP":
            seconds = time.time() - began
            os.kill(faulty.pid, signal.SIGCONT)
            woken = time.monotonic()
            faulty.wait(PATIENCE)
            seconds = max(seconds, time.monotonic() - woken)
        else:
            faulty.wait(PATIENCE)
            seconds = time.time() - began
    except TimeoutError as error:
        return PATIENCE, str(error)
    finally:
        for child in children:
            child.kill()
    text = said(children)
    lines = text.splitlines()
    if "Traceback" in text and fault["kind"] != "raise":
        return seconds, f"a traceback: {text[-2000:]}"
    if not any("error: " in line or "ValueError: planted" in line for line in lines):
        return seconds, f"no line of why: {text!r}"
    if 0 in (faulty.status, other.status):
        return seconds, f"statuses {faulty.status}, {other.status}: {text}"
    return seconds, ""


def plain_cells(campaign: Campaign) -> dict[str, tuple[str, float]]:
    """The same with nothing but JAX: two processes that add up a number at each step, each of the
    four faults in the second; all four pairs at once. What became of the first, after how long."""
    wait = 40 if campaign.short else 60
    pairs: dict[str, list[Child]] = {}
    began: dict[str, float] = {}
    try:
        for kind in KINDS:
            told = campaign.folder / f"told-{kind}"
            pairs[kind] = [fork(plain, kind, rank, str(told), log=campaign.folder /
                                f"plain-{kind}-{rank}.log", environment=one)
                           for rank, one in enumerate(several())]
            deadline = time.monotonic() + PATIENCE
            while not told.exists():
                if time.monotonic() > deadline:
                    raise RuntimeError(f"JAX alone did not start: {said(pairs[kind])[-2000:]}")
                time.sleep(0.01)
            began[kind] = time.monotonic()
        found = {}
        for kind in ticked(KINDS, "the same with JAX alone"):
            other = pairs[kind][0]
            while other.poll() is None and time.monotonic() < began[kind] + wait:
                time.sleep(0.1)
            seconds = time.monotonic() - began[kind]
            found[kind] = (f"{'still there' if other.poll() is None else 'ended'} after "
                           f"{seconds:.0f} s", seconds)
        return found
    finally:
        for child in itertools.chain(*pairs.values()):
            child.kill()


def plain(kind: str, rank: int, told: str) -> int:
    """A process of JAX alone, with JAX's own limits."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], 2, rank)
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    x = jax.make_array_from_callback(
        (2,), NamedSharding(mesh, PartitionSpec("data")), lambda _: np.ones(1, np.float32))
    add = jax.jit(lambda x: jnp.sum(x), out_shardings=NamedSharding(mesh, PartitionSpec()))
    for step in itertools.count():
        add(x).block_until_ready()
        if rank == 1 and step == 20:
            Path(told).touch()
            if kind == "raise":
                raise ValueError("planted")
            while kind == "stuck":
                time.sleep(1)
            os.kill(os.getpid(), signal.Signals[kind])
    return 0


# Row 38: a signal to one of two.


def signals(campaign: Campaign) -> Iterator[Figure]:
    """Row 38: SIGTERM to one of two processes, in a step, an evaluation or a save; one run."""
    total = 16 * campaign.count
    arguments = f"--steps={total}", "--save_every=16", "--evals.test.every=16"
    straight, run = campaign.folder / "straight", campaign.folder / "run"
    both_trained(straight, *arguments)
    chance, wrong, took, last, met = random.Random(campaign.seed), [], [], 0, 0
    for i in ticked(range(campaign.count), "SIGTERM to one of two"):
        section = chance.choice(("step", "evaluation", "save"))
        fault = {"kind": "SIGTERM", "rank": i % 2, "section": section,
                 "step": last + chance.randrange(1, 8), "told": str(campaign.folder / "told")}
        (campaign.folder / "told").unlink(missing_ok=True)
        children = pair(run, *arguments, environment=fault_in(fault))
        try:
            statuses = [child.wait() for child in children]
        except TimeoutError as error:
            wrong.append(f"{fault}: {error}")
            break
        finally:
            for child in children:
                child.kill()
        ended = time.time()
        saved = committed(run / "checkpoints")[-1:] or [0]
        text = f"SIGTERM: saved step {saved[0]}; continue with --workdir={run}"
        if statuses == [0, 0] and saved == [total]:
            break  # The last faults would have come after the end.
        if statuses != [75, 75] or said(children) != text or saved[0] < last:
            wrong.append(f"{fault}: {statuses}, {saved}: {said(children)!r}")
            campaign.note(wrong[-1])
        took.append(ended - float((campaign.folder / "told").read_text()))
        met, last = met + 1, saved[0]
    if committed(run / "checkpoints")[-1] < total:
        both_trained(run, *arguments)
    same = equal(checkpoint_values(run), checkpoint_values(straight))
    same = same and metrics(run) == metrics(straight)
    campaign.note(f"{met} signals came before the end of {total} steps")
    yield Figure("38", f"SIGTERM to one of two processes, {met} times in one run",
                 f"{met - len(wrong)} of {met}: both saved the same step and ended with status 75, "
                 f"in {np.median(took):.1f} s at the median and {max(took):.1f} s at most; the end "
                 f"is {'the same, to the bit' if same else 'ANOTHER'}", not wrong and same)


# Row 22: another number of processes.


def handed_over(campaign: Campaign) -> Iterator[Figure]:
    """Row 22: one process, two, one again: which examples, and how far the numbers differ."""
    logs: dict[str, list[dict[int, list[float]]]] = {}
    for task, names in (("counting", ("ids",)), ("training", ("loss", "grad_norm"))):
        one, run = campaign.folder / f"{task}-one", campaign.folder / f"{task}-several"
        trained(one, *OPTIONS, environment={"TASK": task})
        for count, step in ((1, 12), (2, 27), (1, 99)):
            environment = {"TASK": task, **fault_in(
                {"kind": "SIGTERM", "section": "step", "step": step})}
            children = (pair(run, environment=environment) if count == 2 else
                        [train(run, *OPTIONS, environment=environment)])
            statuses = {child.wait() for child in children}
            if statuses != {0 if step == 99 else 75}:
                raise RuntimeError(f"{run}: status {statuses}: {said(children)[-2000:]}")
        logs[task] = [{line["step"]: [line[f"train/{name}"] for name in names]
                       for line in metrics(folder) if f"train/{names[0]}" in line}
                      for folder in (one, run)]
    a, b = logs["counting"]
    differ = sum(a[step] != b.get(step) for step in a)
    c, d = logs["training"]
    furthest = max(abs(x / y - 1) for step in c for x, y in zip(c[step], d[step], strict=True))
    n = len(a)
    good = bool(a) and not differ and a.keys() == b.keys() == c.keys() == d.keys()
    yield Figure("22", "one process, two, one again", f"{differ} of {n} logged checksums of "
                 f"example ids differ; loss and gradient norm differ by {furthest:.1e} at most, "
                 "relative, in float32", good and furthest < 1e-3)


# Row 40: what listens.


def sockets(campaign: Campaign) -> Iterator[Figure]:
    """Row 40: on which addresses two processes listen while they train."""
    run = campaign.folder / "run"
    children = pair(run, "--steps=1000000", environment={"TAG": str(run)})
    try:
        seen: set[str] = set()
        deadline = time.monotonic() + PATIENCE
        while not committed(run / "checkpoints"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"it did not start: {said(children)[-2000:]}")
            seen |= listening([child.pid for child in children])
            time.sleep(0.05)
        seen |= listening([child.pid for child in children])
    finally:
        for child in children:
            child.kill()
    told = campaign.folder / "told"
    others = [fork(plain, "stuck", rank, str(told), log=campaign.folder / f"plain-{rank}.log",
                   environment=one) for rank, one in enumerate(several())]
    try:
        deadline = time.monotonic() + PATIENCE
        while not told.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        beside = listening([child.pid for child in others])
    finally:
        for child in others:
            child.kill()
    outside = {text for text in seen if text not in ("127.0.0.1", "::1")}
    yield Figure("40", "addresses that two processes listen on", ", ".join(sorted(seen)),
                 bool(seen) and not outside, f"JAX alone: {', '.join(sorted(beside))}",
                 bool(beside - {"127.0.0.1", "::1"}))


# Row 30: the parent is killed.


def orphans(campaign: Campaign) -> Iterator[Figure]:
    """Row 30: the launcher of two processes is killed; what is left after five seconds."""
    chance, left, shared = random.Random(campaign.seed), 0, set(glob.glob("/dev/shm/*"))
    for i in ticked(range(campaign.count), "launchers killed"):
        run = campaign.folder / f"run{i}"
        pids, tag = emptied(campaign.folder / "pids"), f"ORPHANS={run}"
        main = str(FAULTY.parents[1] / "launch.py")
        child = fork(os.execv, sys.executable, [
            sys.executable, main, "launch", "--processes=2", f"--experiment={FAULTY}",
            f"--workdir={run}", "--steps=1000000"],
            log=run.with_suffix(".log"), environment={"PIDS": str(pids), "ORPHANS": str(run)})
        try:
            deadline = time.monotonic() + PATIENCE
            while len(list(pids.iterdir())) < 2:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"it did not start: {child.err.read_text()[-2000:]}")
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 4))
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            deadline = time.monotonic() + 5
            while (there := tagged(tag)) and time.monotonic() < deadline:
                time.sleep(0.05)
            if there:
                campaign.note(f"{run}: {there} are left")
                left += 1
        finally:
            for pid in tagged(tag):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(run, ignore_errors=True)
    shared = set(glob.glob("/dev/shm/*")) - shared - {str(campaign.memory.parent)}
    beside = plain_orphans(campaign)
    yield Figure("30", f"{campaign.count} launchers killed, at random moments of starting and "
                 "training", f"{left} with a process left after 5 s; {len(shared)} files left in "
                 "shared memory", not left and not shared, f"Grain's workers: {beside}",
                 beside.startswith("alive"))


def plain_orphans(campaign: Campaign) -> str:
    """Whether the workers of Grain's own loader outlive a parent that is killed."""
    tag = f"ORPHANS={campaign.folder}/grain"
    child = fork(grain_parent, str(campaign.folder / "started"), log=campaign.folder / "grain.log",
                 environment={"ORPHANS": f"{campaign.folder}/grain"})
    try:
        deadline = time.monotonic() + PATIENCE
        while not (campaign.folder / "started").exists():
            if time.monotonic() > deadline or child.poll() is not None:
                raise RuntimeError(f"Grain: {child.err.read_text()[-2000:]}")
            time.sleep(0.05)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        time.sleep(5)
        there = [pid for pid in tagged(tag) if alive(pid)]
        return f"alive after 5 s: {len(there)}" if there else "gone after 5 s"
    finally:
        for pid in tagged(tag):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def grain_parent(started: str) -> int:
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    loader = grain.DataLoader(
        data_source=range(10 ** 6), worker_count=2,  # type: ignore[arg-type]
        sampler=grain.samplers.IndexSampler(10 ** 6, seed=0))
    for i, _ in enumerate(loader):
        if i == 100:
            Path(started).touch()
        time.sleep(0.001)
    return 0

"""Campaigns about what is on disk: damage, double launches, retention, full disks."""

import contextlib
import ctypes
import json
import logging
import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as orbax
import retention
from campaign import Campaign, Child, Figure, Skip, emptied, fork, forked, ticked, train, trained
from flax import traverse_util
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxdl import checkpoint, cli, record
from jaxdl.checkpoint import Checkpoints, committed
from jaxdl.parallel import bytes_of
from jaxdl.resume import metrics, same

# Row 9: damaged files.

DAMAGE = ("a flipped bit", "truncated", "emptied", "deleted", "an extra file", "a symbolic link",
          "64 zero bytes")


def damage(folder: Path, files: list[Path], kind: str, chance: random.Random) -> Path:
    """Damages one of the files, and returns which. A bit or 64 bytes are anywhere in all of them,
    the others in a file as likely as in another."""
    while True:
        weights = ([p.stat().st_size for p in files] if kind in ("a flipped bit", "64 zero bytes")
                   else None)
        path = chance.choices(files, weights)[0]
        data = bytearray(path.read_bytes())
        if kind == "a flipped bit":
            at = chance.randrange(len(data))
            data[at] ^= 1 << chance.randrange(8)
        elif kind == "64 zero bytes":
            at = chance.randrange(len(data))
            data[at:at + 64] = bytes(len(data[at:at + 64]))
        elif kind == "truncated" and data:
            del data[chance.randrange(len(data)):]
        elif kind == "emptied":
            data.clear()
        elif kind == "deleted":
            path.unlink()
            return path
        elif kind == "an extra file":
            path = path.parent / f"more{chance.randrange(10)}"
            if path.parent == folder:  # Beside the manifest: not a part of the checkpoint.
                continue
        elif kind == "a symbolic link":
            place = folder.parent / "elsewhere"
            place.unlink(missing_ok=True)
            path.rename(place)
            path.symlink_to(place)
            return path
        if not path.exists() or bytes(data) != path.read_bytes():
            path.write_bytes(data)
            return path


def target(arrays: Mapping[str, Any]) -> Any:
    """What a manifest says of its arrays, as the tree that restores them here."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return traverse_util.unflatten_dict({path: jax.ShapeDtypeStruct(
        shape, jax.random.key(0).dtype if dtype.startswith("key") else dtype, sharding=here)
        for path, (shape, dtype) in arrays.items()}, sep="/")


def values(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by path; of random keys, their data."""
    return {path: np.asarray(jax.random.key_data(x) if jax.numpy.issubdtype(
        x.dtype, jax.dtypes.prng_key) else x)
        for path, x in traverse_util.flatten_dict(tree, sep="/").items()}


def equal(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(same(a[p], b[p]) for p in a)


def files_of(folder: Path, step: int) -> list[Path]:
    return sorted(p for p in (folder / "arrays" / str(step)).rglob("*") if p.is_file())


def damaged(source: Path, work: Path, count: int, seed: int) -> dict[str, list[str]]:
    """By kind of damage, what became of each checkpoint: "" if all was as it should be."""
    before, newest = committed(source)[-2:]
    whole, tree = checkpoint.arrays(source, before), None
    tree = target(checkpoint.read_manifest(source, newest)["arrays"])
    found: dict[str, list[str]] = {kind: [] for kind in DAMAGE}
    for i in ticked(range(count), "damaged checkpoints"):
        kind, chance = DAMAGE[i % len(DAMAGE)], random.Random(f"{seed}/{i}")
        folder = work / "checkpoints"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        path = damage(folder, [*files_of(folder, newest), folder / f"{newest}.json"], kind, chance)
        name = str(path) if path.parent != folder or path.exists() else repr(str(newest))
        store = Checkpoints(folder, keep=3)
        restored = store.restore(tree)
        store.close()
        lines = [*store.set_aside, *(restored[2] if restored else [])]
        wrong = []
        if not any(name in line for line in lines):
            wrong.append(f"{path} is not named in {lines}")
        if restored is None or not equal(values(restored[0]), whole):
            wrong.append("not the step before, to the bit")
        if committed(folder) != committed(source)[:-1]:
            wrong.append(f"{committed(folder)} are committed")
        found[kind].append("; ".join(wrong))
    return found


def damaged_plain(source: Path, work: Path, count: int, seed: int) -> dict[str, list[str]]:
    """The same with Orbax alone: "wrong", "error" or "right" of each."""
    logging.disable()
    steps = committed(source)
    folder = emptied(work / "plain")
    with orbax.CheckpointManager(folder / "arrays") as manager:
        for step in steps:
            tree = target(checkpoint.read_manifest(source, step)["arrays"])
            state, _ = checkpoint.load(source, step, tree)
            manager.save(step, args=orbax.args.StandardSave(state))
    whole = checkpoint.arrays(source, steps[-1])
    found: dict[str, list[str]] = {kind: [] for kind in DAMAGE}
    for i in ticked(range(count), "the same with plain Orbax"):
        kind, chance = DAMAGE[i % len(DAMAGE)], random.Random(f"{seed}/{i}")
        copy = work / "copy" / "checkpoints"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        damage(copy, files_of(copy, steps[-1]), kind, chance)
        try:
            with orbax.CheckpointManager(copy / "arrays") as manager:
                state = manager.restore(manager.latest_step(),
                                        args=orbax.args.StandardRestore(tree))
            found[kind].append("right" if equal(values(state), whole) else "wrong")
        except Exception:  # Of any kind: see RELIABILITY.md.
            found[kind].append("error")
    return found


def mutations(campaign: Campaign) -> Iterator[Figure]:
    """Row 9: damages a file of the newest checkpoint, and restores."""
    run = campaign.folder / "run"
    arguments = "--steps=12", "--save_every=4", "--keep=3", "--task.model.widths=(256,256)"
    trained(run, *arguments)
    source, work = run / "checkpoints", campaign.memory
    ours = forked(damaged, source, work, campaign.count, campaign.seed)
    plain = forked(damaged_plain, source, work, campaign.count, campaign.seed)
    wrong = [text for texts in ours.values() for text in texts if text]
    for text in wrong[:5]:
        campaign.note(text)
    for kind in DAMAGE:
        one = Counter(plain[kind])
        n = len(ours[kind])
        good = sum(not text for text in ours[kind])
        yield Figure("9", f"{kind}: {n}", f"{good} of {n} named, and the step before restored to "
                     "the bit", good == n, f"plain Orbax: {one['wrong']} silently wrong, "
                     f"{one['error']} errors, {one['right']} unharmed")
    total, one = campaign.count, Counter(x for texts in plain.values() for x in texts)
    yield Figure("9", f"all {total:,} together", f"{total - len(wrong):,} of {total:,}", not wrong,
                 f"plain Orbax: {one['wrong']} silently wrong, {one['error']} errors without a "
                 f"fall-back, {one['right']} unharmed", one["wrong"] > 0)
    yield continued(campaign, source, arguments)


def continued(campaign: Campaign, source: Path, arguments: tuple[str, ...]) -> Figure:
    """Each kind of damage once through the command, which goes on to the same end."""
    run = source.parent
    whole, (before, newest) = checkpoint_values(run), committed(source)[-2:]
    wrong = []
    for i, kind in enumerate(ticked(DAMAGE, "damaged and continued by the command")):
        copy = campaign.folder / f"continued{i}"
        shutil.copytree(run, copy)
        folder = copy / "checkpoints"
        path = damage(folder, [*files_of(folder, newest), folder / f"{newest}.json"], kind,
                      random.Random(f"{campaign.seed}/{kind}"))
        child = trained(copy, *arguments)
        said = child.out.read_text()
        if f"continuing {copy} from step {before}" not in said or "warning: " not in said:
            wrong.append(f"{kind} of {path}: {said}")
        elif not equal(checkpoint_values(copy), whole) or metrics(copy) != metrics(run):
            wrong.append(f"{kind} of {path}: another end")
    for text in wrong:
        campaign.note(text)
    n = len(DAMAGE)
    return Figure("9", f"{n} kinds, continued by the command", f"{n - len(wrong)} of {n} warned "
                  "and came to the same arrays and log, to the bit", not wrong)


def checkpoint_values(run: Path) -> dict[str, np.ndarray]:
    """Every array of a run's newest checkpoint, read in another process."""
    folder = run / "checkpoints"
    place = folder.parent / "values.npz"

    def read() -> None:
        arrays = checkpoint.arrays(folder, committed(folder)[-1])
        np.savez(place, **{p.replace("/", "|"): x.view(np.uint8) if x.dtype.kind == "V" else x
                           for p, x in arrays.items()})

    forked(read)
    with np.load(place) as stored:
        found = {name: stored[name] for name in stored.files}
    place.unlink()
    return found


# Row 16: double launches.


def launches(campaign: Campaign) -> Iterator[Figure]:
    """Row 16: two commands in one directory, 0 to 50 ms apart; a third after a kill."""
    chance = random.Random(campaign.seed)
    trained(campaign.folder / "first", "--steps=8")  # compiles
    wrong, freed, killed, delays = [], 0, 0, []
    for i in ticked(range(campaign.count), "double launches"):
        run = campaign.folder / f"race{i}"
        delay = chance.uniform(0, 0.05)
        a = train(run, "--steps=8", log=campaign.folder / f"race{i}a.log")
        time.sleep(delay)
        b = train(run, "--steps=8", log=campaign.folder / f"race{i}b.log")
        loser, winner = waited_first(a, b)
        if i % 4 == 3:  # Its lock stays, without a holder.
            os.kill(winner.pid, 9)
            killed += 1
        status = winner.wait()
        if problem := raced(run, loser, winner, -9 if i % 4 == 3 else 0):
            wrong.append(f"{run}, {delay * 1000:.0f} ms: {problem}")
        elif i % 4 == 3:
            again = train(run, "--steps=8")
            freed += again.wait() == 0
            status = again.status
        if status == 0:
            checkpoint.verify(run / "checkpoints", 8)
        delays.append(delay)
        shutil.rmtree(run)
    for text in wrong[:5]:
        campaign.note(text)
    n, rounds = campaign.count, 4 if campaign.short else 12
    mixed = Counter(double_plain(campaign.folder / f"plain{i}", chance) for i in ticked(
        range(rounds), "two plain Orbax managers in one directory"))
    both = 0
    for i in ticked(range(rounds // 2), "mutant: without the lock"):
        pair = [train(campaign.folder / f"both{i}", "--steps=8", call=unlocked,
                      log=campaign.folder / f"both{i}{name}.log") for name in "ab"]
        both += [child.wait() for child in pair] != [0, 2]
    yield Figure("16", f"{n} double launches, {min(delays) * 1000:.0f} to "
                 f"{max(delays) * 1000:.0f} ms apart", f"{n - len(wrong)} of {n}: exactly one ran, "
                 "the other ended with status 2 and named process, host and time", not wrong,
                 f"two plain Orbax managers: {rounds - mixed['right']} of {rounds} rounds with "
                 f"failed saves, {mixed['mixed']} with mixed and {mixed['unreadable']} with "
                 f"unreadable steps; jaxdl without its lock: both ran in {both} of {rounds // 2}",
                 mixed["right"] < rounds and both > 0)
    yield Figure("16", f"{killed} locks of killed processes", f"{freed} of {killed} freed",
                 freed == killed)


def waited_first(a: Child, b: Child) -> tuple[Child, Child]:
    """(the one that ended first, the other)."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for one, other in ((a, b), (b, a)):
            if one.poll() is not None:
                return one, other
        time.sleep(0.001)
    raise TimeoutError("neither of two launches ended")


def raced(run: Path, loser: Child, winner: Child, status: int) -> str:
    """What was not as it should be, or ""."""
    said = loser.err.read_text()
    want = (rf"error: {re.escape(str(run))} is in use by process {winner.pid} on "
            rf"{re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\n")
    if loser.status != 2 or not re.fullmatch(want, said):
        return f"status {loser.status} and {said!r} of one"
    if winner.status != status or winner.err.read_text():
        return f"status {winner.status} and {winner.err.read_text()!r} of the other"
    return ""


def double_plain(folder: Path, chance: random.Random) -> str:
    """What two plain managers leave in one directory, at worst."""
    def write(number: int) -> int:
        failed = 0
        with orbax.CheckpointManager(folder / "steps") as manager:
            for step in range(1, 13):
                value = np.full(50_000, 1000. * number + step)
                try:
                    manager.save(step, args=orbax.args.StandardSave({"w": value, "v": value}))
                    manager.wait_until_finished()
                except Exception:  # Whatever Orbax raises: the save has failed.
                    failed += 1
        return failed

    def read() -> list[str]:
        found = []
        for path in (p for p in (folder / "steps").iterdir() if p.name.isdecimal()):
            try:
                state = orbax.StandardCheckpointer().restore(path / "default")
                values = {float(x) for array in state.values() for x in (array.min(), array.max())}
                found.append("mixed" if len(values) > 1 else "right")
            except Exception:
                found.append("unreadable")
        return found

    folder.mkdir()
    first = fork(write, 1, log=folder / "1.log")
    time.sleep(chance.uniform(0, 0.05))
    second = fork(write, 2, log=folder / "2.log")
    failed = first.wait() + second.wait()
    found = {*forked(read, log=folder / "read.log"), "failed" if failed else "right"}
    return next(kind for kind in ("mixed", "unreadable", "failed", "right") if kind in found)


def unlocked(*command: str) -> int:
    """The mutant: the command without its lock."""
    with mock.patch.object(record, "Lock", lambda folder: mock.Mock()):
        return cli.main(list(command))


# Row 17: which checkpoints stay.


def retained(campaign: Campaign) -> Iterator[Figure]:
    """Row 17: random schedules of saves, kills, damage and restarts against a policy."""
    def ours(count: int) -> dict[str, Any]:
        kinds: Counter[str] = Counter()
        wrong = []
        for i in ticked(range(count), "schedules"):
            events = retention.schedule(random.Random(f"{campaign.seed}/{i}"))
            kinds.update(type(e).__name__ + (" killed" if getattr(e, "kill", None) is not None
                                             else "") for e in events)
            if text := retention.violation(events, campaign.memory / "run", 1 + i % 3):
                wrong.append(f"schedule {campaign.seed}/{i}: {text}")
        return {"wrong": wrong, "kinds": kinds}

    def mutant(name: str, count: int) -> int:
        with mock.patch.object(*retention.MUTANTS[name]):
            return sum(retention.violation(
                retention.schedule(random.Random(f"{campaign.seed}/{i}")),
                campaign.memory / "run", 1 + i % 3) is not None
                for i in ticked(range(count), f"mutant: {name}"))

    n, few = campaign.count, 100 if campaign.short else 500
    found = forked(ours, n)
    for text in found["wrong"][:5]:
        campaign.note(text)
    kinds, bad = found["kinds"], len(found["wrong"])
    planted = {name: forked(mutant, name, few) for name in retention.MUTANTS}
    plain = 20 if campaign.short else 100
    orbax_alone = Counter(forked(retained_plain, campaign.memory / "plain", plain, campaign.seed))
    yield Figure(
        "17", f"{n:,} schedules: {kinds['Save'] + kinds['Save killed']:,} saves "
        f"({kinds['Save killed']:,} killed), {kinds['Restart'] + kinds['Restart killed']:,} "
        f"restarts ({kinds['Restart killed']:,} killed), {kinds['Damage']:,} damaged; Orbax's "
        "files replaced by small ones", f"{bad} violations: never without an intact step, the best "
        "kept", not bad, "; ".join(f"{name}: {k} of {few}" for name, k in planted.items()),
        all(planted.values()))
    yield Figure("17", f"{plain} schedules without kills, Orbax's own LatestN and BestN(1)", "",
                 True, f"plain Orbax: {plain - orbax_alone['']} schedules failed ("
                 + ", ".join(f"{text}: {k}" for text, k in orbax_alone.most_common() if text) + ")",
                 orbax_alone[""] < plain)


def retained_plain(folder: Path, count: int, seed: int) -> list[str]:
    """What Orbax's managers do in the same schedules, without the kills: "" if all is well."""
    return [plain_schedule(retention.schedule(random.Random(f"{seed}/{i}")), emptied(folder))
            for i in ticked(range(count), "plain Orbax")]


def plain_schedule(events: list[retention.Event], folder: Path) -> str:
    def opened(keep: int) -> orbax.CheckpointManager:
        policy = AnyPreservationPolicy([LatestN(keep), BestN(get_metric_fn=lambda m: m["x"], n=1)])
        return orbax.CheckpointManager(folder, options=orbax.CheckpointManagerOptions(
            preservation_policy=policy, enable_async_checkpointing=False))

    policy, manager, step = retention.Policy(2), opened(2), 0
    try:
        for event in events:
            if isinstance(event, retention.Save):
                step += 1
                policy.history[step] = event.metric
                manager.save(step, metrics={"x": event.metric}, args=orbax.args.StandardSave(
                    {"x": np.full(64, step)}))
                best = policy.best(step)
                if best is not None and best not in manager.all_steps():
                    return "best deleted"
            elif isinstance(event, retention.Damage):
                steps = sorted(manager.all_steps())
                if len(steps) > event.back:
                    files = [p for p in (folder / str(steps[-1 - event.back])).rglob("*")
                             if p.is_file() and p.stat().st_size]
                    path = max(files, key=lambda p: (p.parent.name == "d", p.stat().st_size))
                    data = bytearray(path.read_bytes())
                    data[len(data) // 2] ^= 1
                    path.write_bytes(data)
            else:
                manager.close()
                manager = opened(event.keep)
                newest = manager.latest_step()
                if newest is None:
                    continue
                try:
                    state = manager.restore(newest, args=orbax.args.StandardRestore(
                        {"x": np.zeros(64, np.int64)}))
                except Exception:
                    return "newest cannot be restored, no fall-back"
                if (np.asarray(state["x"]) != newest).any():
                    return "restored silently wrong"
                step = newest
        return ""
    finally:
        manager.close()


# Row 11: full, read-only and used-up file systems.

WIDE = ("--task.model.widths=(256,256)", "--steps=30", "--save_every=3", "--evals.test.every=5")


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A file system in memory, seen by this process and its children alone."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder],
                          capture_output=True, text=True)
    if done.returncode:
        raise Skip(f"mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], capture_output=True)


def own_mounts() -> None:
    """What is mounted from now on is seen by this process and its children alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000):  # CLONE_NEWNS of <linux/sched.h>
        raise Skip(f"unshare: {os.strerror(ctypes.get_errno())}: mounting needs root")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True, capture_output=True)


def disk(campaign: Campaign) -> Iterator[Figure]:
    """Row 11: the disk fills up, runs out of inodes or becomes read-only in mid-run."""
    own_mounts()
    straight = campaign.folder / "straight"
    trained(straight, *WIDE)
    whole, log = checkpoint_values(straight), metrics(straight)
    chance = random.Random(campaign.seed)
    size = bytes_of(values_tree(straight))
    place = campaign.folder / "disk"

    def point(options: tuple[str, ...], fault: dict[str, Any]) -> tuple[str, str, float]:
        """(what was wrong, the line that was printed, seconds to the end) of one fault."""
        with mounted(place, *options):
            run = place / "run"
            child = train(run, *WIDE, log=campaign.folder / "full.log",
                          environment=fault_in(fault | {"told": str(campaign.folder / "told")}))
            child.wait()
            ended = time.time() - float((campaign.folder / "told").read_text())
            said = child.err.read_text()
            if child.status == 0:
                return "it did not fail", said, ended
            if child.status != 1 or said.count("\n") != 1 or not said.startswith("error: "):
                return f"status {child.status}, {said.count(chr(10))} lines", said, ended
            before = committed(run / "checkpoints")
            for step in before:
                checkpoint.verify(run / "checkpoints", step)
            # The save before is committed; one may have been under way.
            if before[-1] < fault["step"] // 3 * 3 - 6:
                return f"only {before} are left", said, ended
            if fault.get("leave", 0) < 5_000:
                # Launched again, it fails in one line too, unless what the failed save had taken,
                # which is given back, is enough.
                child = train(run, *WIDE, log=campaign.folder / "full.log")
                lines = child.err.read_text().count("\n") if child.wait() in (0, 1, 2) else -1
                if lines != (child.status != 0):
                    return f"launched again: {child.err.read_text()}", said, ended
                before = committed(run / "checkpoints")
            if fault["kind"] == "read-only":
                subprocess.run(["umount", fault["path"]], check=True)
            (place / "ballast").unlink(missing_ok=True)
            shutil.rmtree(place / "ballasts", ignore_errors=True)
            child = train(run, *WIDE, log=campaign.folder / "full.log")
            if child.wait():
                return f"does not continue: {child.err.read_text()}", said, ended
            if not re.search(rf"from step {before[-1]}|is finished", child.out.read_text()):
                return f"went on elsewhere: {child.out.read_text()}", said, ended
            if not equal(checkpoint_values(run), whole) or metrics(run) != log:
                return "another end", said, ended
            return "", said, ended

    checkpoints = str(place / "run/checkpoints")
    kinds: dict[str, tuple[tuple[str, ...], Callable[[], dict[str, Any]]]] = {
        "full": (("size=20m",), lambda: {
            "kind": "fill", "section": "evaluation", "path": str(place),
            "leave": chance.choice((0, 4096, chance.randrange(size)))}),
        "filled during a save": (("size=20m",), lambda: {
            "kind": "fill", "section": "save", "path": str(place),
            "leave": chance.choice((0, chance.randrange(size)))}),
        "out of inodes": (("size=20m", "nr_inodes=2000"), lambda: {
            "kind": "inodes", "section": "evaluation", "path": str(place),
            "leave": chance.randrange(12)}),
        "read-only": (("size=20m",), lambda: {
            "kind": "read-only", "section": "evaluation", "quietly": checkpoints,
            "path": chance.choice((checkpoints, str(place / "run")))}),
    }
    for what, (options, fault) in kinds.items():
        found = [point(options, {"step": chance.randrange(5, 25), **fault()})
                 for _ in ticked(range(campaign.count), f"disk: {what}")]
        wrong = [f"{what}: {problem}: {said}" for problem, said, _ in found if problem]
        for text in wrong[:3]:
            campaign.note(text)
        said = Counter(re.sub(r"/\S+", "PATH", re.sub(r"[\d,]{2,}", "N", s.strip()))
                       for problem, s, _ in found if not problem)
        for text, k in said.most_common():
            campaign.note(f"{what}, {k} times: {text[:200]}")
        n = campaign.count
        yield Figure("11", f"disk {what}, {n} times", f"{n - len(wrong)} of {n}: one line, status "
                     "1, committed steps intact; then the same command went on to the same end, to "
                     f"the bit; at most {max(s for _, _, s in found):.1f} s to the end", not wrong)
    with mounted(place, "size=4m"):
        child = train(place / "run", *WIDE, log=campaign.folder / "small.log")
        said, free = (child.wait(), child.err.read_text())
        good = child.status == 2 and re.fullmatch(
            rf"error: {place}/run/checkpoints: 4 checkpoints need {4 * size:,} bytes, [\d,]+ are "
            r"free\.\n", free) is not None
        if not good:
            campaign.note(free)
        yield Figure("13", "disk almost full at the start", "refused before the first step with "
                     "the bytes that are needed and free" if good else f"status {said}", good)
    with mounted(place, "size=8m"):
        lost = forked(full_plain, place / "plain")
    yield Figure("11", "8 MB, twelve saves of 1.4 MB with Orbax alone, as its guide does", "", True,
                 f"plain Orbax: {lost['reported']} saves returned True, {lost['errors']} raised an "
                 f"error, {lost['readable']} steps can be read; latest_step() was "
                 f"{lost['latest']}", lost["readable"] < lost["reported"])


def fault_in(fault: Mapping[str, Any]) -> dict[str, str]:
    """The environment that plants it."""
    return {"FAULT": json.dumps(fault)}


def values_tree(run: Path) -> Any:
    """The shapes of a run's newest checkpoint."""
    folder = run / "checkpoints"
    return {p: np.empty(shape, "uint64" if dtype.startswith("key") else dtype) for p, (
        shape, dtype) in checkpoint.read_manifest(folder, committed(folder)[-1])["arrays"].items()}


def full_plain(folder: Path) -> dict[str, int]:
    """Saves of Orbax alone on a small disk."""
    random_numbers = np.random.default_rng(0).standard_normal(350_000, np.float32)
    reported, errors, latest = 0, 0, 0
    manager = orbax.CheckpointManager(folder)
    for step in range(1, 13):
        try:
            reported += manager.save(step, args=orbax.args.StandardSave({"x": random_numbers}))
            latest = manager.latest_step()
        except Exception:
            errors += 1
        time.sleep(0.2)  # the steps between
    readable = 0
    for step in range(1, 13):
        with contextlib.suppress(Exception):
            state = orbax.StandardCheckpointer().restore(folder / str(step) / "default")
            readable += np.array_equal(state["x"], random_numbers)
    return {"reported": reported, "errors": errors, "readable": readable, "latest": latest or 0}



"""Checks of the data: what the network is given, before it has done anything with it."""

import collections
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxdl.checks.subject import Finding, Subject, judged, skipped

EXAMPLES = 20_000  # that are hashed and counted, of each split


def inputs(subject: Subject) -> Finding:
    """Inputs are finite, not constant, scaled to about one, and the same way in every split.

    A forgotten division by 255 trains, only badly; test data scaled otherwise than training data
    looks like overfitting."""
    wrong, doubtful, said = [], [], []
    seen = {"train": subject.batch(subject.train, 1_024), **{
        name: subject.batch(source, 512) for name, source in subject.others.items()}}
    for split, source in {"train": subject.train, **subject.others}.items():
        for field, stored in (source.arrays or {}).items():  # all of them, not only a batch
            if field in subject.inputs and np.issubdtype(np.asarray(stored).dtype, np.floating):
                finite = np.isfinite(stored).reshape(len(stored), -1).all(1)
                if not finite.all():
                    wrong.append(f"{split}: {field} is not finite in {(~finite).sum()} of "
                                 f"{len(finite):,} examples (example {finite.argmin()})")
    for field in subject.inputs:
        first: Any = None
        for split, batch in seen.items():
            x = np.asarray(batch[field])
            if not np.issubdtype(x.dtype, np.floating):
                if x.size and (x == x.flat[0]).all():
                    wrong.append(f"{split}: {field} is {x.flat[0]} everywhere")
                continue
            x = x.astype(np.float64)
            if bad := int((~np.isfinite(x)).sum()):
                example = int(np.asarray(batch["index"])[np.argwhere(~np.isfinite(x))[0][0]])
                wrong.append(f"{split}: {bad} values of {field} are not finite (example {example})")
                continue
            mean, deviation = x.mean(), x.std()
            if deviation == 0:
                wrong.append(f"{split}: {field} is {mean:.3g} everywhere")
                continue
            said.append(f"{split} {field} {mean:.2f} ± {deviation:.2f}")
            if abs(mean) > 5 or not 0.05 < deviation < 10:
                wrong.append(f"{split}: {field} has mean {mean:.3g}, deviation {deviation:.3g}")
            elif abs(mean) > 1.5 or not 0.2 < deviation < 4:
                doubtful.append(f"{split}: {field} has mean {mean:.3g}, deviation {deviation:.3g}")
            channels = x.reshape(-1, x.shape[-1]).std(0) if x.ndim == 4 else np.ones(1)
            if (channels == 0).any():
                doubtful.append(f"{split}: channel {int(np.argmin(channels))} of {field} is "
                                "constant")
            if first is None:
                first = mean, deviation
            elif abs(mean - first[0]) > first[1] or not 1 / 3 < deviation / first[1] < 3:
                wrong.append(f"{split}: {field} {mean:.3g} ± {deviation:.3g}, in train "
                             f"{first[0]:.3g} ± {first[1]:.3g}")
    return judged("; ".join(wrong), "; ".join(doubtful),
                  measured="; ".join(said) or "whole numbers",
                  expected="finite, about 0 ± 1, all splits alike",
                  look_at="normalisation, and which split it is for")


def _labels(subject: Subject, source: Any) -> np.ndarray | None:
    """Class labels [N] of a split as it is stored."""
    for name in subject.targets:
        x = np.asarray((source.arrays or {}).get(name, np.zeros(0)))
        if np.issubdtype(x.dtype, np.integer) and x.ndim == 1 and len(x):
            return x
    return None


def classes(subject: Subject) -> int | None:
    """K of the logits, if the task has some, and the same of all where it has several."""
    if not hasattr(subject.task, "logits"):
        return None
    found = {x.shape[-1] for x in jax.tree.leaves(jax.eval_shape(
        subject.task.logits, subject.fresh, subject.batch(subject.train, 2)))}
    return found.pop() if len(found) == 1 else None


def labels(subject: Subject) -> Finding:
    """Labels are classes that the model has, each of them with training examples.

    A label out of range is clipped in silence by a gather; a class without examples is never
    predicted; a very frequent one makes a bad accuracy look good."""
    count, wrong, doubtful = classes(subject), [], []
    train = _labels(subject, subject.train)
    if count is not None:
        for name, source in {"train": subject.train, **subject.others}.items():
            for field in subject.targets:
                x = np.asarray((source.arrays or {}).get(field, np.zeros(0)))
                least = -1 if x.ndim > 1 else 0  # Of a token, -1 is none.
                if x.size and np.issubdtype(x.dtype, np.integer) and (
                        x.min() < least or x.max() >= count):
                    wrong.append(f"{name}: {field} runs from {x.min()} to {x.max()}, the model "
                                 f"has {count} classes")
    if train is None:
        if not wrong and count is None:
            return skipped("there are no class labels")
        return judged("; ".join(wrong), measured="in range", expected="in range")
    names, counts = np.unique(train, return_counts=True)
    share = counts / counts.sum()
    for split, source in subject.others.items():
        there = _labels(subject, source)
        missing = np.setdiff1d([] if there is None else there, names)
        if len(missing):
            wrong.append(f"{split} has class {missing[0]}, train has not")
    if share.max() > 0.8:
        doubtful.append(f"{share.max():.0%} of the examples are of class {names[share.argmax()]}")
    if share.min() * len(names) < 0.1:
        doubtful.append(f"class {names[share.argmin()]} has {counts.min()} examples of "
                        f"{counts.sum():,}")
    if count is not None and count > len(names) and not wrong:
        doubtful.append(f"the model has {count} classes, the data {len(names)}")
    text = f"{len(names)} classes, {share.min():.1%} to {share.max():.1%} of the examples each"
    return judged("; ".join(wrong), "; ".join(doubtful), measured=text,
                  expected="classes of the model, all of them in train",
                  look_at="how labels are numbered, and how the splits were made")


def _hashes(subject: Subject, source: Any) -> list[bytes]:
    """A hash of the inputs of each example as it is stored."""
    arrays = [np.ascontiguousarray(x[:EXAMPLES]) for n, x in (source.arrays or {}).items()
              if n not in (*subject.targets, "index", "mask")]
    return [hashlib.blake2b(b"".join(x[i].tobytes() for x in arrays), digest_size=16).digest()
            for i in range(len(arrays[0]))] if arrays else []


def _rows(subject: Subject) -> bool:
    """Whether an example is one row of features, which two people may share and yet be two."""
    arrays = [np.asarray(x) for n, x in (subject.train.arrays or {}).items()
              if n in subject.inputs]
    return bool(arrays) and all(x.ndim <= 2 for x in arrays)


def duplicates(subject: Subject) -> Finding:
    """No example stands twice in the training data, least of all with two labels. Rows of a table
    may agree by chance: there it is something to look at, and no failure."""
    if getattr(subject.task, "causal", False):
        return skipped("a text goes on in more than one way")
    found = _hashes(subject, subject.train)
    if not found:
        return skipped("there are no examples")
    targets = [np.asarray((subject.train.arrays or {})[n][:EXAMPLES]) for n in subject.targets
               if n in (subject.train.arrays or {})]
    first: dict[bytes, int] = {}
    twice, conflicts = 0, []
    for i, digest in enumerate(found):
        j = first.setdefault(digest, i)
        if j != i:
            twice += 1
            if any((t[i] != t[j]).any() for t in targets):
                conflicts.append((j, i))
    share, conflict = twice / len(found), len(conflicts) / len(found)
    text = f"{twice} of {len(found):,} are copies, {len(conflicts)} with another label"
    where = f" (examples {conflicts[0][0]} and {conflicts[0][1]})" if conflicts else ""
    return judged(text + where if conflict > 0.005 and not _rows(subject) else "",
                  text + where if conflicts or share > 0.01 else "", measured=text,
                  expected="no copies, no contradictions", look_at="how the data was collected")


def leakage(subject: Subject) -> Finding:
    """No example of a held-out split is in the training data. Where training examples equal one
    another, by chance in a table, those of the held-out split may as often."""
    if not subject.others:
        return skipped("no split is held out")
    counts = collections.Counter(_hashes(subject, subject.train))
    train = set(counts)
    chance = sum(n for n in counts.values() if n > 1) / max(counts.total(), 1)
    wrong, doubtful, said = [], [], []
    for split, source in subject.others.items():
        found = _hashes(subject, source)
        both = [i for i, digest in enumerate(found) if digest in train]
        share = len(both) / max(len(found), 1)
        text = f"{len(both)} of {len(found):,} of {split}"
        said.append(text)
        if both:
            often = f"; {chance:.1%} of train have an equal there" if chance > 0.01 else ""
            (wrong if share > 0.01 + 1.5 * chance * _rows(subject) else doubtful).append(
                f"{text} are in train (example {both[0]} of {split}{often})")
    return judged("; ".join(wrong), "; ".join(doubtful), measured=f"{', '.join(said)} in train",
                  expected="none", look_at="how the splits were made")


def order(subject: Subject) -> Finding:
    """An epoch visits each example once, in an order that the seed decides, and that mixes.

    Batches of one class after the other, or examples drawn with replacement, train worse and
    nobody sees why; an order that cannot be repeated makes a run that cannot be. Repetitions are
    told only where the source says that the end of an epoch meets the next, and how far."""
    source, batch = subject.opened("train"), subject.declared.batch_size
    size = source.size
    steps = max(1, min(size, 1_000_000) // batch)
    ids = [np.asarray(source.index(0, i * batch, batch)) for i in range(steps)]
    again = [np.asarray(source.index(0, i * batch, batch)) for i in range(min(steps, 20))]
    if any(a.shape != b.shape or (a != b).any() for a, b in zip(ids, again, strict=False)):
        return judged("the same seed and position give another order the second time",
                      measured="", expected="a function of seed and position",
                      look_at="index() of the data's source")
    rest = min(size, 1_000_000) - steps * batch
    if rest > 0:
        ids.append(np.asarray(source.index(0, steps * batch, rest)))
    whole = np.concatenate(ids)
    repeated = len(whole) - len(np.unique(whole))
    text = f"{repeated:,} of {len(whole):,} examples of an epoch are repetitions" * bool(repeated)
    wrong = text if repeated > getattr(source, "overlap", lambda batch_size: 0)(batch) else ""
    other = np.asarray(source.index(1, 0, batch))
    same = len(other) == len(ids[0]) and (other == ids[0]).all() and size > 2
    doubtful = "another seed has the same order" if same else text
    stored = _labels(subject, source) if source.arrays is not None else None
    if stored is not None and not wrong and batch >= 16 and len(np.unique(stored)) > 1:
        def entropy(x: np.ndarray) -> float:
            p = np.unique(x, return_counts=True)[1] / len(x)
            return float(-(p * np.log(p)).sum())

        drawn = np.random.default_rng(0).permutation(stored)
        mixed = np.mean([entropy(drawn[i * batch:(i + 1) * batch]) for i in range(min(steps, 50))])
        inside = np.mean([entropy(stored[x]) for x in ids[:min(steps, 50)]])
        if inside < 0.7 * mixed:
            wrong = (f"a batch has labels of entropy {inside:.2f}, mixed ones would have "
                     f"{mixed:.2f}")
    return judged(wrong, doubtful, measured=f"{len(whole):,} examples, each once",
                  expected="each once, mixed, as the seed says",
                  look_at="index() of the data's source, shuffling")


def shapes(subject: Subject) -> Iterator[tuple[Any, ...]]:
    """The shapes of the batches of an epoch, as the host plans them."""
    source, batch = subject.opened("train"), subject.declared.batch_size
    for i in range(min(10_000, math.ceil(source.size / batch) + 1)):
        yield np.shape(source.index(subject.declared.seed, i * batch, batch))


DATA: Mapping[str, Any] = {f.__name__: f for f in (
    inputs, labels, duplicates, leakage, order)}

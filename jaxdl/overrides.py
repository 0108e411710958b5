"""How trials are told apart: of a swept sub-tree, the leaves in which trials of one kind differ."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def plain(value: Any) -> str:
    """Plain JSON as a table shows it, a sub-tree by the name of its class."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "(" + ", ".join(map(plain, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, dict) and "_" in value:
        return str(value["_"]).rpartition(":")[2].rpartition(".")[2]
    return str(value)


def leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(path, value) of all leaves of plain JSON, below the names of the classes that hold them."""
    if not _is_tree(value):
        yield path, value
        return
    if "_" in value or isinstance(value, list):
        yield path, plain(value)
    for name, child in value.items() if isinstance(value, dict) else enumerate(value):
        if name != "_":
            yield from leaves(f"{path}.{name}", child)


def _is_tree(value: Any) -> bool:
    """Whether there are leaves below, rather than one that is a number, a text or a tuple."""
    return isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(x, (dict, list)) for x in value))


def told_apart(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The overrides of each trial (plain JSON, by path) without sub-trees: in the place of one, the
    name of its class, and those of its leaves in which trials with the same classes differ."""
    rows: list[dict[str, dict[str, Any]]] = [
        {path: dict(leaves(path, value)) for path, value in trial.items()} for trial in trials]
    shown: list[dict[str, Any]] = [{} for _ in trials]
    for path in dict.fromkeys(p for trial in trials for p in trial):
        kinds: dict[str, list[int]] = defaultdict(list)  # trials whose leaves have the same paths
        for i, row in enumerate(rows):
            if path in row:
                names = {p: v for p, v in row[path].items() if _is_tree(_at(trials[i], path, p))}
                kinds[json.dumps([sorted(row[path]), names])].append(i)
        for members in kinds.values():
            first = members[0]
            for leaf in rows[first][path]:
                fellows = members
                if _is_tree(_at(trials[first], path, leaf)):  # its class, of one outer class
                    fellows = [i for i, row in enumerate(rows) if row.get(path, {}).get(
                        path) == rows[first][path].get(path) and leaf in row[path]]
                values = {json.dumps(rows[i][path][leaf]) for i in fellows}
                if leaf == path or len(values) > 1:
                    for i in members:
                        shown[i][leaf] = rows[i][path][leaf]
        told = [row for row in shown if path in row]
        below = any(leaf.startswith(f"{path}.") for row in told for leaf in row)
        if below and len(told) == len(shown) and len({json.dumps(row[path])
                                                               for row in told}) == 1:
            for row in told:  # The class of all; what differs is in it.
                del row[path]
    return shown


def _at(trial: Mapping[str, Any], path: str, leaf: str) -> Any:
    """What stands at a leaf of an override."""
    node = trial[path]
    for name in leaf[len(path):].split(".")[1:]:
        node = node[int(name)] if isinstance(node, list) else node[name]
    return node

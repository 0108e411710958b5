"""What the terminal shows: tables, a progress line, and the box of a stand-in."""

import math
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# In a notebook plain lines: rich would display an object of HTML for each, or, told by the kernel's
# FORCE_COLOR that it writes to a terminal, draw a progress line anew below the last one.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, force_jupyter=False,
                  force_terminal=False if "ipykernel" in sys.modules else None)


def announce(stand_in: str, reason: str) -> None:
    """The box that nobody misses."""
    text = Text.assemble((stand_in, "bold"), f"\n{reason}\nThe numbers of this run are those of "
                         "the stand-in. --strict_data refuses it.")
    console.print(Panel(text, title="STAND-IN DATA", border_style="yellow", expand=False))


def parameter_table(params: Mapping[str, Any], frozen: Mapping[str, Any]) -> Table:
    """Parameters by module, at the first level of the tree."""
    table = Table("module", "arrays", "parameters", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    groups: dict[str, list[int]] = {}
    for suffix, flat in (("", params), (" (frozen)", frozen)):
        for path, x in flat.items():
            groups.setdefault(path.split("/")[0] + suffix, []).append(math.prod(x.shape))
    for name, sizes in groups.items():
        table.add_row(name, str(len(sizes)), f"{sum(sizes):,}")
    table.add_row("total", str(sum(map(len, groups.values()))),
                  f"{sum(map(sum, groups.values())):,}", style="bold")
    return table


def metric_table(values: Mapping[str, float]) -> Table:
    """Names and numbers, one a row."""
    table = Table("metric", "value", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, value in values.items():
        table.add_row(name, f"{value:.6g}")
    return table


class Watcher(Protocol):
    """Who is told of numbers as they come."""

    def trained(self, step: int, values: Mapping[str, float]) -> None: ...

    def evaluated(self, step: int, values: Mapping[str, float]) -> None: ...

    def over(self, step: int) -> bool:
        """Whether to end the training, after all evaluations of this step."""
        ...

    def close(self) -> None: ...


class Bar:
    """A progress line on a terminal; elsewhere a plain line each time there are new numbers."""

    def __init__(self, step: int, steps: int) -> None:
        self.steps = steps
        self._progress = Progress(
            TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"), BarColumn(bar_width=20),
            TimeRemainingColumn(), TextColumn("{task.fields[text]}", markup=False), console=console,
            transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=steps, completed=step, text="")
        self._progress.start()

    def trained(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of the training log; a terminal has room for the loss, the means and the rate."""
        values = {name.removeprefix("train/"): value for name, value in values.items()}
        rate = f"{speed(values.pop('examples_per_second'))} examples/s"
        waited = f"{values.pop('data_wait'):.0%} waiting for data"
        values = {k: v for k, v in values.items() if k not in ("flops_per_second", "memory_peak")}
        if "mfu" in values:
            rate += f", {values.pop('mfu'):.1%} of the peak"
        if console.is_terminal:
            values = {k: v for k, v in values.items() if k not in ("grad_norm", "learning_rate")}
            self._progress.update(self._task, completed=step, text=f"{_numbers(values)}  {rate}")
        else:
            self._print(step, f"{_numbers(values)}  {rate}, {waited}")

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of an evaluator: always a line that stays."""
        self._print(step, _numbers(values))

    def over(self, step: int) -> bool:
        return False

    def _print(self, step: int, text: str) -> None:
        self._progress.console.print(f"step {step:,}/{self.steps:,}  {text}", markup=False)

    def close(self) -> None:
        self._progress.stop()


def _numbers(values: Mapping[str, float]) -> str:
    """The loss first; four digits each, and no exponent for what people count."""
    order = sorted(values, key=lambda name: name.split("/")[-1] != "loss")
    return "  ".join(f"{name} {values[name]:,.0f}" if 1_000 <= abs(values[name]) < 1e9
                     else f"{name} {values[name]:.4g}" for name in order)


def speed(rate: float) -> str:
    """How many a second, as a reader wants it: 1,234 or 0.15."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"

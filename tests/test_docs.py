"""Every page of the documentation runs, from top to bottom, in a folder of its own.

What a page says with its blocks:

    ```python     is executed, in one module for the page. If its first line is the comment
                  "# NAME.py", it is that file: it is written, for the commands that follow.
    ```sh         commands; they have to succeed.
    ```console    commands after "$ ", each with what it prints. The lines must be printed, in this
                  order; numbers may differ, and "..." is any number of lines. A command fails if
                  the page shows an error of it, and only then.
    ```text       is read only, as what a file holds, and so are blocks that are indented: their
                  commands are parsed by test_faults_config.py.

A block whose first line is "# not run: REASON" is not run; `NOT_RUN` has all of them. Commands of
jaxdl are called in this process, on one device; sweeps train `SWEEP` steps, at once.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import jax
import pytest

from jaxdl import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
SWEEP = 20
NOT_RUN = {("export.md", "needs onnxruntime, and a file that only jaxdl[export] writes"),
           ("language.md", "it takes a file of 548 MB")}
NUMBER = r"[-+]?\d(?:[\d.,:_-]*\d)?(?:e[-+]?\d+)?"
JAXDL = r"(?:jaxdl|python launch\.py)"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the line of the page that it begins at, and its text."""

    language: str
    line: int
    text: str

    @property
    def reason(self) -> str | None:
        """Why it is not run, if it says so."""
        return found[1] if (found := re.match(r"# not run: (.+)\n", self.text)) else None

    @property
    def file(self) -> str | None:
        """The file that it is, if it says so."""
        return found[1] if (found := re.match(r"# ([\w/]+\.py)\n", self.text)) else None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.M | re.S):
        yield Block(found[1], text[:found.start(2)].count("\n") + 1, found[2])


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder for the page, one device as most readers have, and the command `jaxdl`."""
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *a: one)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setitem(os.environ, "XLA_FLAGS", "")  # of commands that a shell starts
    folder, commands = tmp_path / "page", tmp_path / "bin"
    for each in (folder, commands):
        each.mkdir()
    jaxdl = '-c "import sys; from jaxdl.cli import main; sys.exit(main())"'
    for name, program in {"jaxdl": jaxdl, "python": ""}.items():
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {program} "$@"\n')
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(folder)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:  # Another page may have a file of the same name.
        if getattr(sys.modules[name], "__file__", None) is None or str(tmp_path) in str(
                sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module = types.ModuleType(f"page_{page.stem}")
    sys.modules[module.__name__] = module
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.reason is not None:
            continue
        if block.language == "python" and block.file:
            path = Path(block.file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.language == "python":
            execute(block, page, module)
        elif block.language == "sh":
            script(block.text, where, capfd)
        elif block.language == "console":
            for command, shown in session(block.text):
                fails = re.search("^error: ", shown, re.M) is not None
                printed = script(command, where, capfd, fails)
                missing = missing_line(shown, printed)
                assert missing is None, (f"{where}: {command}\nprinted\n{printed}\nbut not there\n"
                                         f"{missing}")


def execute(block: Block, page: Path, module: types.ModuleType) -> None:
    """In the module of the page; a traceback has the line of the page."""
    code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
    exec(code, vars(module))


def session(text: str) -> Iterator[tuple[str, str]]:
    """(command, what it prints) of a console."""
    starts = [found.start() for found in re.finditer(r"^\$ ", text, re.M)]
    for start, end in pairwise([*starts, len(text)]):
        command, _, shown = text[start + 2:end].partition("\n")
        yield command, shown


def script(text: str, where: str, capfd: pytest.CaptureFixture[str], fails: bool = False) -> str:
    """What the commands print; they succeed, or fail."""
    text = text.replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip()]
    capfd.readouterr()
    if all(re.match(JAXDL + r" [^|&;<>$*]+$", line) for line in lines):
        out = err = ""
        for line in lines:
            words = shlex.split(re.sub(f"^{JAXDL} ", "", line), comments=True)
            if words[0] == "sweep":
                words += [f"--steps={SWEEP}", "--executor=vmap"]
            status = cli.main(words)
            out, err = capfd.readouterr()
            assert (status == 0) != fails, f"{where}: {line}: status {status}\n{out}{err}"
        return out + err
    done = subprocess.run(["bash", "-euc", text], stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT, timeout=120)
    assert done.returncode == 0, f"{where}: status {done.returncode}\n{done.stdout}"
    return done.stdout


def missing_line(shown: str, printed: str) -> str | None:
    """The first line of what a page shows that was not printed where it should be, if any."""
    whole = "".join(shape(line) + "\n" for line in printed.splitlines() if line.strip())
    pattern = ""
    for line in filter(str.strip, shown.splitlines()):
        some = line.strip() == "..."
        pattern += r"(?:.*\n)*?" if some else re.escape(shape(line)) + r"\n"
        if not re.match(pattern, whole):
            return line
    return None if re.fullmatch(pattern, whole) else "(the end)"


def shape(line: str) -> str:
    """A line without its numbers, and without how wide a table is."""
    return " ".join(re.sub(NUMBER, "#", line).split())


def test_the_notebook_runs() -> None:
    """Its cells, as code; the build of the site runs it in a kernel."""
    module = types.ModuleType("page_notebook")
    sys.modules[module.__name__] = module
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    for i, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None, "stored with outputs"
            exec(compile("".join(cell["source"]), f"cell {i}", "exec"), vars(module))


def test_what_is_not_run_says_why() -> None:
    found = {(page.name, block.reason) for page in PAGES for block in blocks(page)
             if block.reason is not None}
    assert found == NOT_RUN
    assert len(NOT_RUN) <= 5


def test_every_block_says_what_it_is() -> None:
    known = ("python", "sh", "console", "text")
    for page in PAGES:
        for block in blocks(page):
            assert block.language in known or block.language.startswith("{"), (
                f"{page.name}:{block.line}: a block of {block.language or 'no language'}")


def test_every_page_is_in_the_site_and_links_to_what_there_is() -> None:
    """Links to files and to their headings. (The build of the site finds the same, and more.)"""
    index = (ROOT / "docs" / "index.md").read_text()
    for page in PAGES:
        assert page.stem == "index" or re.search(rf"\b{page.stem}\b", index), page.name
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)]+)\)", text):
            if re.match(r"https?://", link):
                assert re.fullmatch(r"https?://[\w.-]+\.\w+(/\S*)?", link), (page.name, link)
                continue
            path, _, heading = link.partition("#")
            target = page.parent / path if path else page
            assert target.is_file(), (page.name, link)
            if heading:
                assert heading in headings(target), (page.name, link)


def headings(page: Path) -> set[str]:
    """The names by which GitHub, and the site, link to headings."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in found}


@pytest.mark.parametrize(("shown", "printed", "missing"), [
    ("step 5  loss 0.1", "step 50  loss  1e-05", None),
    ("a\n...\nc", "a\nb\nb\nc", None),
    ("a\nc", "a\nb\nc", "c"),
    ("a\n...\nb 2\nc", "a\nb 1\nd\nb 2\nc", None),
    ("a", "a\nb", "(the end)"),
    ("saved step 1,000 in runs/2026-11-29_13-42-51", "saved step 7 in runs/1", None),
    ("loss", "", "loss"),
])
def test_what_a_page_shows_is_compared(shown: str, printed: str, missing: str | None) -> None:
    assert missing_line(shown, printed) == missing


@pytest.mark.parametrize("block", [
    "python\nassert False", "sh\njaxdl list --nonsense", "sh\ntrue; false",
    "console\n$ echo 1 2\n3", "console\n$ jaxdl show --experiment=mlp_digit\nmlp_digit: Experiment",
    "console\n$ jaxdl list\nerror: none",
])
def test_a_block_that_fails_fails_its_page(tmp_path: Path, capfd: pytest.CaptureFixture[str],
                                           block: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```{block}\n```\n")
    with pytest.raises(AssertionError):
        test_a_page_runs(page, capfd)

"""How the site is built: `make docs`. Sphinx reads the Markdown of the whole repository, so that a
link such as ../RESULTS.md leads to the same place here as where the files are read as they are."""

import os
import re
from pathlib import Path
from typing import Any

from jaxdl import __version__

ROOT = Path(__file__).parent.parent

project = "jaxdl"
author = copyright = "The jaxdl authors"
release = version = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "docs/*.ipynb", "README.md", "RESULTS.md", "CONTRIBUTING.md",
                    "CHANGELOG.md", "benchmarks/README.md"]
myst_heading_anchors = 3  # links to headings, as #what-is-checked
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}

# The notebook is stored without outputs: what the site shows is what this build computed.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]  # plotly's own; its HTML is taken
os.environ["PLOTLY_RENDERER"] = "notebook"  # with plotly.js in the page: nothing is loaded

html_theme = "furo"
html_title = f"jaxdl {__version__}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}

highlight_language = "text"
default_role = "code"  # `name` in a docstring
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # Flax's, of methods that say nothing themselves
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # "Attributes:" as a list of the class, as they are written
# Types of other packages, which are no pages here; a page that is missing is found all the same.
nitpick_ignore_regex = [("py:.*", ".*")]
exclude_patterns = ["docs/_build"]


def without_bounds(app: Any, what: str, name: str, thing: Any, options: Any, signature: str,
                   returns: str) -> tuple[str, str] | None:
    """A signature with `float` in place of `Annotated[float, Between(low=0, high=1)]`."""
    def plain(text: str) -> str:
        return re.sub(r"~?(?:typing\.)?Annotated\[([^\[\],]+)(?:, ~?[\w.]+\([^()]*\))+\]", r"\1",
                      text)

    if signature is None:
        return None
    signature = signature.replace("<factory>", "...")  # which could not be parsed
    return plain(signature), plain(returns) if returns else returns


def plain_text(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: but for `code` no character is markup, so those of formulas are
    kept from being it; and what is indented by four after a blank line stays as it is."""
    spans = re.split(r"(`[^`]+`)", "\n".join(lines))
    spans[::2] = [re.sub(r"([\\*|]|_\b)", r"\\\1", text) for text in spans[::2]]
    spans[2::2] = [re.sub(r"^(?=\w)", r"\\ ", text) for text in spans[2::2]]  # as in `name`s
    escaped = "".join(spans).split("\n")
    found: list[str] = []
    inside = False
    for before, line, marked in zip(["x", *lines], lines, escaped, strict=False):
        if line.startswith("    ") and not before.strip() and not inside:
            inside, found = True, [*found, "::", ""]
        inside = inside and (line.startswith("    ") or not line.strip())
        found.append(line if inside else marked)
    lines[:] = found


def finish(app: Any, error: Exception | None) -> None:
    """index.html leads to docs/index.html; no page loads anything from another site."""
    if error is None and app.builder.format == "html":
        notebook = Path(app.outdir) / "docs" / "notebook.html"
        notebook.write_text(re.sub(r'<script src="https://[^"]*mathjax[^"]*"></script>', "",
                                   notebook.read_text()))  # plotly asks for it, and needs it not
        (Path(app.outdir) / "index.html").write_text(
            '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html">'
            '<a href="docs/index.html">jaxdl</a>\n')


def setup(app: Any) -> None:
    app.connect("autodoc-process-signature", without_bounds)
    app.connect("autodoc-process-docstring", plain_text, priority=400)  # before napoleon's
    app.connect("build-finished", finish)

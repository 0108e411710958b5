"""A page: one HTML file with tables and charts, which loads nothing from anywhere.

    charts = page.Charts()
    body = page.section("Loss", charts.add([{"type": "scatter", "x": xs, "y": ys}], page.layout()))
    body += page.section("Layers", page.table("<th>layer<th>size", rows))
    page.save(path, page.document("A run", body, charts))

Whatever comes from elsewhere goes through `escaped` into HTML, `chart_text` into the texts of a
chart and `as_json` (as all of a chart does) into a script; `section` and `cell` escape by
themselves. `document(script=...)` runs JavaScript before the charts are drawn, which finds them in
`page.charts` and `data` in `page`. Imports no jax.
"""

import base64
import functools
import gzip
import html
import io
import json
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl.atomic import write_atomically

# Values and their text.


def finite(value: Any) -> float | None:
    """A number as a float; None if it is none, or not finite."""
    if type(value) is float:  # most are
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def text(value: Any) -> str:
    """A value as people write it, numbers to four digits."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {text(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text, value))}]"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10 ** 7:
        number = finite(value)
        return text(number) if number is not None else (
            f"{'-' if value < 0 else ''}2^{math.log2(abs(value)):.0f}")
    if isinstance(value, float):
        return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return '""' if value == "" else str(value)


def key(value: Any) -> tuple[str, Any]:
    """What makes two values the same: 1 and 1.0 are, 1 and True are not."""
    if isinstance(value, Mapping):
        return "tree", tuple(sorted(((str(k), key(v)) for k, v in value.items()),
                                    key=lambda pair: pair[0]))
    if isinstance(value, list | tuple):
        return "list", tuple(map(key, value))
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return "number", value if value == value else "nan"
    return type(value).__name__, str(value)


def clipped(value: str, length: int) -> str:
    """On one line, and of a long text the beginning and the end."""
    value = " ".join(value.split())
    return value if len(value) <= length else f"{value[:length * 2 // 3]}…{value[-length // 4:]}"


def escaped(value: Any) -> str:
    return html.escape(str(value))


def as_json(value: Any) -> str:
    """JSON that can stand inside a script: numbers to six digits, null for those not finite."""
    def plain(value: Any) -> Any:
        if type(value) is int and abs(value) < 2 ** 53:
            return value
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return value.encode(errors="backslashreplace").decode()
        number = finite(value)
        if number is None or (number.is_integer() and abs(number) < 2 ** 53):
            return None if number is None else int(number)
        return float(f"{number:.6g}")

    escapes = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}
    return json.dumps(plain(value), separators=(",", ":"), allow_nan=False).translate(escapes)


# Charts, as plotly.js takes them.


def chart_text(value: Any, length: int = 60) -> str:
    """Text in a chart, where plotly.js reads tags, entities, and formulas between dollars."""
    return html.escape(clipped(text(value), length), quote=False).replace("$", "&#36;")


def layout(**options: Any) -> dict[str, Any]:
    lines = {"gridcolor": "#e9ecef", "linecolor": "#adb5bd", "showline": True, "zeroline": False,
             "automargin": True, "exponentformat": "power", "minexponent": 5}
    for name in ("xaxis", "yaxis"):
        options[name] = {**lines, **options.get(name, {})}
    return {"font": {"family": "system-ui, sans-serif", "size": 12, "color": "#212529"},
            "plot_bgcolor": "white", "paper_bgcolor": "white", "hovermode": "closest",
            "hoverlabel": {"align": "left"}, "showlegend": False, "uirevision": 1,
            "margin": {"l": 55, "r": 15, "t": 15, "b": 45}, **options}


def falls(curves: Sequence[Sequence[float | None]]) -> bool:
    """Whether curves begin far above their ends, as losses do: a logarithmic axis shows both."""
    known = [found for c in curves if (found := [x for x in c if x is not None])]
    return bool(known) and min(map(min, known)) > 0 and (
        max(map(max, known)) > 10 * float(np.median([c[-1] for c in known])))


class Charts:
    """The charts of a page, which are drawn when it has loaded.

    Args:
      prefix: of the names of their elements.
    """

    def __init__(self, prefix: str = "chart") -> None:
        self.prefix, self.charts = prefix, dict[str, Any]()

    def add(self, data: Sequence[Mapping[str, Any]], shape: Mapping[str, Any], height: int = 360,
            caption: str = "", width: int = 0) -> str:
        """The element of a chart.

        Args:
          data: traces, as plotly.js takes them.
          shape: its `layout`.
          height: in pixels.
          caption: stands below.
          width: in pixels, at least.
        """
        name = f"{self.prefix}{len(self.charts)}"
        self.charts[name] = {"data": data, "layout": {**shape, "height": height}}
        note = f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
        return (f'<figure><div id="{name}" class="chart" style="height:{height}px;'
                f'min-width:{width}px"></div>{note}</figure>')


# Elements, and the whole.


def section(title: str, content: str, aside: str = "") -> str:
    return f"<section><h2>{escaped(title)} <small>{aside}</small></h2>{content}</section>"


def table(head: str, rows: Sequence[str]) -> str:
    return (f"<div class=scroll><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table></div>")


def cell(place: float | None, shown: str, title: str = "", colour: str = "") -> str:
    """A cell of a table: where it is sorted, what it shows, what it says under the mouse."""
    sort = "" if place is None else f' data-v="{place:.9g}"'
    tip = f' title="{escaped(title[:2000])}"' if title and title != shown else ""
    dot = f'<i style="background:{colour}"></i>' if colour else ""
    return f"<td{sort}{tip}>{dot}{escaped(shown)}</td>"


def image(picture: np.ndarray, most: int = 112) -> str:
    """A picture [H, W, 1 or 3] in [0, 1] as an address that holds it; a large one is made smaller,
    and compressed with loss."""
    from PIL import Image

    pixels = np.round(255 * np.clip(np.nan_to_num(picture), 0, 1)).astype(np.uint8)
    made = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    large = max(made.size) > 64
    if max(made.size) > most:
        made.thumbnail((most, most))
    with io.BytesIO() as file:
        made.save(file, "JPEG" if large else "PNG", **({"quality": 88} if large else {}))
        kind = "jpeg" if large else "png"
        return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def document(title: str, body: str, charts: Charts | None = None, *,
             data: Mapping[str, Any] | None = None, script: str = "", style: str = "") -> str:
    """The whole page.

    Args:
      title: of the window.
      body: HTML, everything in it escaped.
      charts: that the body refers to.
      data: plain values, for `script`.
      script: JavaScript that runs before the charts are drawn, where there are any.
      style: further CSS.
    """
    drawn = ""
    if charts is not None and charts.charts:
        drawn = (f'<script type="text/plain" id="plotly">{_plotly()}</script>\n'
                 f"<script>const page = {as_json({**(data or {}), 'charts': charts.charts})};\n"
                 f"{LOAD}load().then(() => {{\n{script}{DRAW}}}).catch(refuse);</script>\n")
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n{POLICY}\n'
            f'<link rel="icon" href="data:,"><title>{escaped(title)}</title>\n'
            f"<style>{STYLE}{style}</style></head>\n<body><main>\n{body}\n</main>\n{drawn}"
            f"<script>{SORT}</script></body></html>\n")


def save(path: Path, text: str) -> None:
    """Writes the page, in one piece."""
    write_atomically(path, text.encode(errors="backslashreplace"))


@functools.cache
def _plotly() -> str:
    """plotly.js, compressed: 2.0 MB in place of 4.8."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


# No request leaves the page. plotly.js compiles what it draws on the graphics card.
POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none';
script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:">"""
STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f4f5f7; color: #212529; font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 10px; overflow-wrap: anywhere; }
section { background: white; border: 1px solid #e1e4e8; border-radius: 8px; margin: 18px 0 0;
  padding: 16px 18px; }
small { color: #5c636a; font-weight: 400; }
.summary { margin: 0; overflow-wrap: anywhere; }
.note, figcaption { color: #5c636a; font-size: 13px; margin: 6px 0 0; overflow-wrap: anywhere; }
code { font-size: 13px; background: #e9ecef; border-radius: 4px; padding: 1px 5px; }
.scroll { max-height: 436px; overflow: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: white; box-shadow: inset 0 -2px #ced4da; }
th, td { text-align: left; padding: 4px 16px 4px 6px; white-space: nowrap; }
td { border-bottom: 1px solid #eef0f2; }
td.reason { white-space: normal; min-width: 280px; overflow-wrap: anywhere; }
tr.best td { background: #fff1e6; font-weight: 600; }
th button { all: unset; cursor: pointer; }
th button:hover, th button:focus-visible { text-decoration: underline; }
td i { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 7px; }
figure { margin: 0; overflow-x: auto; min-width: 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 8px; }
"""
LOAD = """
async function load() {
  const packed = atob(document.getElementById("plotly").textContent);
  const stream = new Blob([Uint8Array.from(packed, c => c.charCodeAt(0))]).stream();
  const script = document.createElement("script");
  script.text = await new Response(stream.pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(script);
}
function refuse(error) {
  console.error(error);
  for (const chart of document.querySelectorAll(".chart:empty"))
    chart.textContent = `The chart could not be drawn (${error.message}).`;
}
"""
DRAW = """
for (const [name, chart] of Object.entries(page.charts))
  Plotly.newPlot(name, chart.data, chart.layout, {
    responsive: true, displaylogo: false, showSendToCloud: false,
    displayModeBar: !!chart.layout.updatemenus});
"""
SORT = """
document.querySelectorAll("th button").forEach(button => button.onclick = () => {
  const th = button.parentNode, body = th.closest("table").tBodies[0];
  const up = th.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
  const value = row => parseFloat(row.cells[th.cellIndex].dataset.v ?? "NaN");
  const rows = [...body.rows].sort((a, b) => {
    const x = value(a), y = value(b);
    return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);
  });
  for (const other of th.parentNode.cells) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...rows);
});
"""

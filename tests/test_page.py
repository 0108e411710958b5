"""The shell that pages share."""

import base64
import gzip
import json
import re
from pathlib import Path

from plotly.offline import get_plotlyjs

from jaxdl import page

EVIL = "</script><img src=x onerror=alert(1)>"


def test_plotly_is_inside_and_only_where_there_are_charts() -> None:
    assert "plotly" not in page.document("A page", "<p>text</p>")
    charts = page.Charts()
    body = charts.add([{"type": "bar", "x": [1], "y": [2]}], page.layout(), caption=EVIL)
    whole = page.document(EVIL, body, charts, data={"more": EVIL})
    packed = re.search(r'<script type="text/plain" id="plotly">(.*?)</script>', whole)
    assert packed and gzip.decompress(base64.b64decode(packed[1])).decode() == get_plotlyjs()
    assert len(whole) < 2.2e6
    assert "<img" not in whole and "http:" not in whole and "https:" not in whole
    data = re.search(r"const page = (.*);", whole)
    assert data and json.loads(data[1])["more"] == EVIL
    assert list(json.loads(data[1])["charts"]) == ["chart0"] and 'id="chart0"' in body


def test_a_page_is_written_in_one_piece(tmp_path: Path) -> None:
    page.save(tmp_path / "x.html", "old")
    page.save(tmp_path / "x.html", "ü \ud800")
    assert (tmp_path / "x.html").read_bytes().startswith("ü ".encode())
    assert [p.name for p in tmp_path.iterdir()] == ["x.html"]

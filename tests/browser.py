"""A page in a real browser: what it draws, what it says, and what it asks for."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
               None)

PROBE = """<script>setTimeout(() => {
  const size = e => { const r = e.getBoundingClientRect(); return [r.width, r.height]; };
  const found = [...document.querySelectorAll(".chart")].map(chart => ({
    drawn: [...chart.querySelectorAll("svg.main-svg, canvas")].map(size),
    marks: chart.querySelectorAll(".points path, .js-line, .hm image, canvas").length,
    refused: !!chart.querySelector(".no-webgl"),
    wide: chart.scrollWidth <= chart.clientWidth + 1}));
  const row = () => document.querySelector("tbody tr")?.cells[0].textContent, rows = [row()];
  for (const _ of [0, 1]) { document.querySelector("th button")?.click(); rows.push(row()); }
  const buttons = [...document.querySelectorAll(".modebar-btn")].map(b => b.dataset.title);
  let acted = null;
  ACT
  const probe = document.createElement("pre");
  probe.id = "probe";
  probe.textContent = JSON.stringify({found, rows, buttons, acted, broken: window.broken ?? null});
  document.body.append(probe);
}, 3000)</script>"""


def browse(path: Path, folder: Path, *options: str,
           act: str = "") -> tuple[dict[str, Any], list[str], list[str]]:
    """(what the probe saw, messages of the console, addresses that the page asked for).

    Args:
      path: of the page, which is changed.
      folder: for what the browser writes.
      options: of the browser.
      act: JavaScript that does what a user would, and may set `acted` to what came of it.
    """
    assert BROWSER
    probe = PROBE.replace("ACT", act)
    path.write_text(path.read_text().replace("</body>", f"{probe}</body>"))
    log = folder / "net.json"
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader",
         "--enable-unsafe-swiftshader", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-default-apps",
         "--disable-extensions", "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND",
         f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--enable-logging=stderr",
         "--v=0", "--window-size=1300,3000", "--virtual-time-budget=20000", "--dump-dom", *options,
         path.as_uri()], capture_output=True, text=True, timeout=120)
    seen = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout)
    assert seen, done.stderr
    console = [line for line in done.stderr.splitlines()
               if "CONSOLE" in line and "GL Driver Message" not in line]
    requests = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    asked = [r["url"] for r in requests if r.get("url", "").startswith("http")
             and r.get("initiator", "not an origin") != "not an origin"]  # as the browser's own are
    return json.loads(html.unescape(seen[1])), console, asked

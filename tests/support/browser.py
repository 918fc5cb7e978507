"""Pages in Chromium, without a window: what a page became, and what a script within it found out."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")


def opened(page: Path, dark: bool = False) -> subprocess.CompletedProcess[str]:
    """Opens a page in a browser, whose standard output is then what the page became."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--enable-logging=stderr", "--dump-dom", "--window-size=1400,2400"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command += [f"--user-data-dir={page.parent}/profile", "--virtual-time-budget=20000", f"file://{page}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


class View(NamedTuple):
    """A page in a window of some width, opened at an address that ends with `ending`."""

    page: Path
    width: int
    ending: str = ""


def look(views: Sequence[View], probe: str, folder: Path, dark: bool = False) -> list[Any]:
    """Returns what the function `probe` (of JavaScript) returns in each page, all of which one browser shows
    beside each other. Fails where a page has something to say on the console."""
    say = f"<script>addEventListener('load', () => parent.postMessage(({probe})(), '*'))</script></body>"
    frames = []
    for place, (page, width, ending) in enumerate(views):
        probed = page.with_name(f"probed{place}.html")
        probed.write_text(page.read_text().replace("</body>", say))
        style = f"width:{width}px;height:2400px;border:0;display:block"
        frames.append(
            f'<iframe style="{style}" src="{html.escape(f"file://{probed.absolute()}{ending}")}"></iframe>'
        )
    listen = """<script>
      const said = [];
      addEventListener("message", e => {
        said[[...document.querySelectorAll("iframe")].findIndex(f => f.contentWindow === e.source)] = e.data;
        document.getElementById("said").textContent = JSON.stringify(said);
      });
    </script>"""  # before the frames: one may be done before the next is read
    host = folder / "host.html"
    host.write_text(f"<!doctype html><body><pre id=said></pre>{listen}{''.join(frames)}</body>")
    done = opened(host, dark)
    assert "CONSOLE" not in done.stderr, done.stderr
    (text,) = re.findall(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    found: list[Any] = json.loads(html.unescape(text))
    assert None not in found and len(found) == len(views), found
    return found


# What a page of imgcls compare looks like, for `look`.
LOOK = """() => {
  const all = (s, within = document) => [...within.querySelectorAll(s)], box = e => e.getBoundingClientRect();
  const lap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.5
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.5;
  const said = { overlaps: [], outside: [], texts: 0 };
  for (const svg of all("svg")) {
    const texts = all("text", svg).filter(t => box(t).width);
    said.texts += texts.length;
    texts.forEach((a, i) => texts.slice(0, i).forEach(b =>
      lap(box(a), box(b)) && said.overlaps.push([svg.id, a.textContent, b.textContent])));
    const s = box(svg);
    said.outside.push(...texts.filter(t => box(t).left < s.left - 2 || box(t).right > s.right + 2
      || box(t).bottom > s.bottom + 2 || box(t).top < s.top - 2).map(t => t.textContent));
  }
  said.axes = all("#parallel .axis").length;
  said.wide = document.documentElement.scrollWidth - innerWidth;
  const head = document.querySelector("th[aria-sort]"), name = box(document.querySelector("#runs th"));
  const table = box(document.getElementById("runs").parentNode);
  said.sorted = [head.title, box(head).left >= name.right - 1 && box(head).right <= table.right + 1];
  said.columns = all("#runs thead th").map(h => h.title);
  said.rows = all("#runs tbody tr").map(r => [...r.cells].map(c => c.textContent));
  const page = getComputedStyle(document.body);
  const colour = name => {
    const e = document.body.appendChild(document.createElement("i"));
    e.style.color = `var(--${name})`;
    return getComputedStyle(e).color;
  };
  const marks = ["low", "middle", "high", "other", "wrong", ...Array.from({ length: 10 }, (_, i) => `c${i}`)];
  said.page = page.backgroundColor;
  said.marks = marks.map(colour);
  said.words = ["text", "soft", "accent"].map(colour);
  return said;
}"""

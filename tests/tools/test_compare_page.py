"""The page of imgcls compare: what is in it, and how it works in a browser."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from support.browser import View, look, needs_chromium, opened
from support.pages import HOSTILE, elements
from support.runs import Here, write_run, write_sweep


def write_named(folder: Path, word: str) -> None:
    """Writes two runs in whose keys, values, names and metrics a word stands."""
    for place in range(2):
        path = write_run(
            folder / f"{word.replace('/', '∕')}{place}", 0.5 + place / 10, "failed" if place else "finished"
        )
        config = yaml.safe_load((path / "config.yaml").read_text())
        config |= {
            word: f"{word}{place}",
            f"n{word}": place,
            "optimized_metric": f"val/{word}",
            "seed": place,
        }
        config["names"] |= {"run": f"{word}=1", "backbone": f"{word}{place}"}
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        quoted = word.replace('"', '""')
        rows = (path / "metrics.csv").read_text().replace("val/top1", f'"val/{quoted}"')
        (path / "metrics.csv").write_text(rows)
        (path / "status.json").write_text(
            json.dumps(
                {
                    "status": ["finished", "failed"][place],
                    "error": word,
                    "seconds": 1 + place,
                    "parameters": 9,
                }
            )
        )
        found = json.loads((path / "environment.json").read_text())
        found |= {
            word: f"{word}{place}",
            "packages": {word: f"{word}{place}"},
            "data": {word: f"{word}{place}"},
        }
        (path / "environment.json").write_text(json.dumps(found))


def test_names_and_values_are_text_on_the_page_and_the_terminal(
    here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    pages, word = [], f"{HOSTILE}</script><!--{{{{ 7*7 }}}}[/b][red]"
    for folder, name in (("hostile", word), ("plain", "word")):
        write_named(Path(folder), name)
        here("compare", f"runs={folder}", "average=seed", f"hydra.run.dir=out-{folder}")
        pages.append(elements(Path(f"out-{folder}/index.html").read_text()))
    assert pages[0] == pages[1] and len(pages[0]) > 60
    assert "[/b][red]" in capsys.readouterr().out
    script = Path("out-hostile/index.html").read_text().rpartition("<script>")[2]
    assert "<img" not in script and not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write", script
    )


@needs_chromium
def test_no_script_of_the_data_runs_in_a_browser(here: Here, tmp_path: Path) -> None:
    write_named(Path("runs"), HOSTILE)
    here("compare", "runs=runs", "average=seed", "hydra.run.dir=out")
    done = opened(tmp_path / "out" / "index.html")
    assert "<title>Comparison of 2 runs</title>" in done.stdout and "<img" not in done.stdout
    assert done.stdout.count("<circle") == 4 and "CONSOLE" not in done.stderr, done.stderr


PROBE = """<script>addEventListener("load", () => {
  const all = s => [...document.querySelectorAll(s)], count = s => all(s + " .run:not(.out)").length;
  const rows = () => all("#runs tbody tr:not(.out)").map(r => r.cells[0].textContent);
  const state = () => [count("#curves"), count("#parallel"), count("#seconds"), rows()];
  const said = { start: state() };
  all("#runs th button").find(b => b.textContent === "time").click(); said.sorted = rows();
  all("#runs th button").find(b => b.textContent.startsWith("time")).click(); said.back = rows();
  const axis = document.querySelector('.axis[data-column="backbone"]'), box = axis.getBoundingClientRect();
  const point = (type, x, y, on) =>
    on.dispatchEvent(new PointerEvent(type, { clientX: x, clientY: y, bubbles: true }));
  const middle = box.x + box.width / 2, third = box.top + box.height / 3;
  point("pointerdown", middle, box.top - 2, axis);
  point("pointermove", middle, third, window);
  point("pointerup", middle, third, window);
  said.brushed = [...state(), document.getElementById("count").textContent];
  const dot = document.querySelector("#seconds circle.run:not(.out)"), place = dot.getBoundingClientRect();
  scrollTo(0, 0); const q = dot.getBoundingClientRect();
  point("pointermove", q.x + q.width / 2, q.y + q.height / 2, document);
  said.hot = [all(".hot").length, document.getElementById("tip").textContent.slice(0, 12)];
  document.getElementById("clear").click(); said.cleared = rows().length;
  const columns = () => all("#runs th").map(c => c.textContent), before = columns().length;
  all("#columns input").find(i => i.parentNode.textContent.trim() === "seed").click();
  said.hidden = [before - columns().length, columns().includes("seed")];
  said.bars = all(".share i").length; said.wide = document.documentElement.scrollWidth > innerWidth;
  document.title = JSON.stringify(said);
});</script></body>"""


@needs_chromium
def test_the_page_in_a_browser(here: Here, tmp_path: Path) -> None:
    """Opens without a network and an error; sorts, brushes, hides, and shows what the pointer is on."""
    write_sweep(Path("runs"))
    write_run(Path("runs/x</script>"), 0.7, "failed", backbone="simple_cnn", seed=9)
    here("compare", "runs=runs", "hydra.run.dir=out", "average=seed", "baseline=backbone=resnet20 and lr=0.1")
    text = Path("out/index.html").read_text()
    assert "http" not in text
    Path("out/probe.html").write_text(text.replace("</body>", PROBE))
    done = opened(tmp_path / "out" / "probe.html")
    assert "CONSOLE" not in done.stderr, done.stderr
    said = json.loads(
        re.findall(r"<title>(.*?)</title>", done.stdout)[0].replace("&lt;", "<").replace("&gt;", ">")
    )
    table = pd.read_csv("out/runs.csv")
    assert said["start"] == [13, 13, 13, list(table["name"])]
    by_time = list(table.sort_values("seconds", kind="stable")["name"])
    assert said["sorted"] == by_time and said["back"] == by_time[::-1]
    cnn = [name for name in by_time[::-1] if "resnet20" not in name]
    assert said["brushed"] == [7, 7, 7, cnn, "7 of 13 runs"]
    assert said["hot"][0] == 5 and said["hot"][1] in {
        name[:12] for name in cnn
    }  # row, curve, line and two dots at one place
    assert said["cleared"] == 13 and said["hidden"] == [1, False] and said["bars"] == 2 and not said["wide"]


STATE = """() => {
  const all = s => [...document.querySelectorAll(s)], texts = s => all(s).map(e => e.textContent);
  return {
    hash: location.hash, count: texts("#count")[0], chips: texts("#chips .chip"),
    sort: texts("th[aria-sort]"),
    controls: all(".controls :is(select, input)").map(e => e.type === "checkbox" ? e.checked : e.value),
    columns: texts("#runs th"), axes: all("#parallel .axis").map(a => a.dataset.column),
    rows: all("#runs tbody tr:not(.out):not(.unchosen)").map(r => r.cells[0].textContent),
    ticked: all("[data-tick]:checked").length, curves: all("#curves .run").length,
    raw: all("#curves .raw").length, bands: all("#curves .band").length, about: texts("#about")[0],
    dots: all("#seconds .run:not(.out)").length, lines: all("#parallel .run:not(.out)").length,
    two: !document.getElementById("two").hidden, pair: texts("#pair p"),
  };
}"""
WORKS = f"""() => {{
  const state = {STATE}, all = s => [...document.querySelectorAll(s)], said = {{ start: state() }};
  const set = (id, value) => {{
    const e = document.getElementById(id);
    e.value = value;
    e.dispatchEvent(new Event(e.type === "range" ? "input" : "change"));
  }};
  const point = (type, x, y, on) =>
    on.dispatchEvent(new PointerEvent(type, {{ clientX: x, clientY: y, bubbles: true }}));
  set("smoothed", "0.6");
  said.smooth = state();
  set("view", "deviation");
  said.bands = state();
  const runs = R.map((_, i) => i).filter(i => D.groups.of[i] === 0);
  said.band = bandOf(runs, new Map(runs.map(i => [i, pointsOf(D.curves[i], D.curves[i]["val/top1"])])));
  said.ema = smoothed([1, null, 2, 4], 0.5);
  all("#legend .entry").find(e => e.textContent === "resnet20").click();
  said.legend = state();
  const field = document.querySelector("#seconds .field"), box = field.getBoundingClientRect();
  point("pointerdown", box.left + 0.7 * box.width, box.bottom - 0.7 * box.height, field);
  point("pointermove", box.right, box.top, window);
  point("pointerup", box.right, box.top, window);
  said.rectangle = state();
  document.getElementById("clear").click();
  document.querySelector("#groups tbody tr").click();
  said.group = state();
  document.getElementById("clear").click();
  all("[data-tick]").slice(0, 2).forEach(e => e.click());
  said.two = state();
  all("#columns input").find(i => i.parentNode.textContent.trim() === "seed").click();
  all("#runs th button").find(b => b.textContent === "time").click();
  all("#axes input").find(i => i.parentNode.textContent.trim() === "seed").click();
  set("colour", at("seed"));
  all("#legend .entry").find(e => e.textContent === "2").click();
  said.end = state();
  return said;
}}"""


@needs_chromium
def test_how_the_page_works(here: Here, tmp_path: Path) -> None:
    """Smoothing, bands, one filter from all views, and two runs; a reload of the address brings all of it
    back, and an address that is broken brings the page as it was at first."""
    folder = write_sweep(Path("runs"))
    write_run(folder / "x", 0.7, "failed", backbone="simple_cnn", seed=9)
    here("compare", "runs=runs", "hydra.run.dir=out", "average=seed")
    page = Path("out/index.html")
    (said,) = look([View(page, 1400)], WORKS, tmp_path)
    start = said["start"]
    assert (
        start["hash"] == "" and start["count"] == "13 of 13 runs" and (start["raw"], start["bands"]) == (0, 0)
    )
    assert (said["smooth"]["raw"], said["smooth"]["curves"]) == (13, 13)
    assert said["ema"] == pytest.approx([1, None, 5 / 3, 3])
    assert said["bands"]["bands"] == 4 and "sample standard deviation" in said["bands"]["about"]
    best = pd.read_csv("out/groups.csv").iloc[0]
    epoch, mean, low, high = said["band"][1]
    assert (epoch, mean) == (1, pytest.approx(best["best/val/top1 mean"]))
    assert (high - low) / 2 == pytest.approx(best["best/val/top1 std"])
    kept = said["legend"]
    assert kept["chips"] == ["backbone: resnet20 ×"] and kept["count"] == "6 of 13 runs"
    assert len(kept["rows"]) == kept["dots"] == kept["lines"] == 6 and kept["bands"] == 2
    kept = said["rectangle"]
    names = pd.read_csv("out/runs.csv").query("seconds > 81.6 and `best/val/top1` > 0.816")["name"]
    assert kept["rows"] == list(names) and len(kept["chips"]) == 3 and kept["dots"] == len(names)
    assert len(said["group"]["rows"]) == 3 and said["group"]["chips"] == ["3 ticked rows ×"]
    assert not said["group"]["two"] and said["two"]["two"] and said["two"]["count"] == "2 of 13 runs"
    assert "has no test/confusion_matrix.csv" in said["two"]["pair"][0]
    assert "of the two runs alone shows the images" in said["two"]["pair"][1]
    end = said["end"]
    assert end["sort"] == ["time ▲"] and "seed" not in end["columns"] and end["count"] == "1 of 13 runs"
    assert "seed" not in end["axes"] and "seed" in start["axes"] and start["axes"][-1] == "best/val/top1"
    broken = "#keep=[&keep=5&keep=[%22seed%22]&keep=%E0%A4%A&metric=no&axis=x&sort=-&x=time&smooth=a&view=b"
    again, first = look([View(page, 1400, end["hash"]), View(page, 1400, broken)], STATE, tmp_path)
    assert again == end and first == start

"""The page of imgcls compare: what is in it, and how it looks and works in a browser."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from PIL import Image
from support.browser import View, look, needs_chromium, opened
from support.many_runs import CLASSES, write_matrix
from support.pages import HOSTILE, elements
from support.runs import Here, write_run, write_sweep

import imgcls


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


def contrast(one: str, other: str) -> float:
    """The ratio of the luminances of two colours, as WCAG 2 has it."""

    def luminance(colour: str) -> float:
        parts = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
        r, g, b = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def value_of(text: str) -> float:
    """The number that a cell of the table stands for."""
    if ":" in text:
        hours, minutes, seconds = map(int, text.split(":"))
        return hours * 3600 + minutes * 60 + seconds
    return float(text.removesuffix(" s").replace(",", ""))


def assert_table(said: Any, table: pd.DataFrame) -> None:
    """Each number of the page's table is that of runs.csv, as far as it has digits."""
    assert len(said["rows"]) == len(table)
    numbers = 0
    for column, name in list(enumerate(said["columns"]))[1:]:
        digit = 6e-5 if "/" in name else 0.06 if name == "seconds" else 0
        for row, value in zip(said["rows"], table[name], strict=True):
            if isinstance(value, str):
                assert row[column] == value
            elif pd.isna(value):
                assert row[column] == ""
            else:
                numbers += 1
                assert value_of(row[column]) == pytest.approx(value, rel=6e-4, abs=digit)
    assert numbers >= 4 * len(table)


def write_looks(runs: int) -> Path:
    """Writes runs with what is hard to draw: long words, values that are missing, infinite or all the same,
    300 names of networks; and with 44 runs more settings than there is room for."""
    folder = Path(f"runs{runs}")
    for place in range(runs):
        words = {
            f"a_setting_with_a_long_name_{i}": f"value {place % (i + 2)} of «{i}» <b>" for i in range(16)
        }
        given: dict[str, Any] = {"optimizer__lr": 10 ** -(1 + place % 7 / 2), "seed": place % 4}
        given |= {"backbone": f"a_network_of_a_long_name.with_weights_{place}"} if runs >= 44 else {}
        given |= words if runs == 44 else {}
        status = "failed" if place % 10 == 4 else "finished"
        name = f"{place}_{'a long name ' * 9 if runs == 12 else ''}lr={given['optimizer__lr']:.2g}"
        path = write_run(folder / name, 0.5 + place % 37 / 80, status, epochs=1 if runs == 3 else 7, **given)
        if place % 10 == 5:
            table = (path / "metrics.csv").read_text()
            (path / "metrics.csv").write_text(table.replace("1,19,1.9,", "1,19,inf,"))
        if place % 10 == 6:
            (path / "status.json").write_text('{"status": "finished", "seconds": Infinity}')
    return folder


@needs_chromium
def test_how_pages_look(here: Here, tmp_path: Path) -> None:
    """With 3 to 300 runs, in windows of 1,000 and 1,400 pixels, light and dark: no words lie on others or are
    cut off, nothing is wider than the window, the column that sorts is in view, and the numbers are those of
    runs.csv."""
    tables, views = [], []
    for runs in (3, 12, 44, 300):
        more = ["average=seed"] if runs > 3 else []
        here("compare", f"runs={write_looks(runs)}", "failed=true", *more, f"hydra.run.dir=out{runs}")
        for width in (1000, 1400):
            views.append(View(Path(f"out{runs}/index.html"), width))
            tables.append(pd.read_csv(f"out{runs}/runs.csv"))
    for dark in (False, True):
        for view, table, said in zip(views, tables, look(views, LOOK, tmp_path, dark), strict=True):
            assert said["overlaps"] == [] == said["outside"] and said["texts"] > 20, view
            assert said["wide"] <= 0 and said["axes"] <= 12, view
            assert said["sorted"] == ["best/val/top1", True], view
            assert_table(said, table)
            assert said["page"] == ("rgb(21, 23, 27)" if dark else "rgb(255, 255, 255)")
            assert min(contrast(one, said["page"]) for one in said["marks"]) > 3
            assert min(contrast(one, said["page"]) for one in said["words"]) > 4.5


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


def write_predictions(run: Path, wrong: dict[int, tuple[str, float]]) -> None:
    """Writes the test of a run on digits, as it would be with the images `wrong` taken for other classes."""
    images = imgcls.load_data().sets["test"]
    rows = ["name,target,prediction,confidence,index"]
    for i, target in enumerate(images.targets.tolist()):
        prediction, confidence = wrong.get(i, (CLASSES[target], 0.9))
        rows.append(f"{images.name(i)},{CLASSES[target]},{prediction},{confidence},{i}")
    (run / "test" / "predictions.csv").write_text("\n".join([*rows, ""]))


def test_two_tests_image_by_image(here: Here) -> None:
    """The images that one run gets right and the other wrong come with small pictures, those first of which
    the wrong one is surest. Where tests do not compare, one line says why."""
    one, other = write_run(Path("runs/a"), 0.9), write_run(Path("runs/b"), 0.8)

    def compared() -> dict[str, Any]:
        here("compare", "runs=[runs/a,runs/b]", "hydra.run.dir=out")
        (text,) = re.findall(r'id="data">(.*?)</script>', Path("out/index.html").read_text())
        found: dict[str, Any] = json.loads(text)["two"]
        return found

    assert "a has no test/predictions.csv; imgcls eval makes one" in compared()["why"]
    write_predictions(one, {3: ("odd", 0.5)})
    write_predictions(other, {i: ("odd", 0.3 + i / 100) for i in (3, *range(10, 40))})
    found = compared()
    assert found["why"] == found["no_pictures"] == ""
    assert found["counts"] == [len(imgcls.load_data().sets["test"]) - 31, 30, 0, 1]
    assert found["p"] == pytest.approx(2 * 0.5**30)
    assert [card["index"] for card in found["alone"][0]] == [str(i) for i in range(39, 15, -1)]
    picture = Image.open(io.BytesIO(base64.b64decode(found["alone"][0][0]["picture"].partition(",")[2])))
    assert picture.format == "JPEG" and picture.size == (96, 96)
    assert Path("out/index.html").stat().st_size < 300_000
    table = (other / "test" / "predictions.csv").read_text()
    (other / "test" / "predictions.csv").write_text(table.replace("\n0,", "\nother,", 1))
    assert "of other images or labels: 0 0" in compared()["why"]
    (other / "test" / "predictions.csv").write_text("\n".join([*table.splitlines()[:9], ""]))
    assert re.search(r"of [\d,]+ and 8 images", compared()["why"])
    (other / "test" / "predictions.csv").write_text("name,cat,dog\n0,1,0\n")
    assert "gives an image more or less than one class" in compared()["why"]
    (other / "test" / "predictions.csv").write_text(table)
    config = (one / "config.yaml").read_text()  # a run directory names no code that is then run
    (one / "config.yaml").write_text(config.replace("_target_: imgcls.data.digits", "_target_: os"))
    found = compared()
    assert found["counts"][1] == 30 and "picture" not in found["alone"][0][0] and found["no_pictures"]


@needs_chromium
def test_two_runs_in_a_browser(here: Here, tmp_path: Path) -> None:
    """Three matrices, of each and of the difference, and the report of a test behind the name of its run."""
    for place, name in enumerate(("a", "b c#%")):
        run = write_run(Path("runs") / name, 0.9 - place / 10)
        write_matrix(run, CLASSES, [[30 - place, place]])
        (run / "test" / "index.html").write_text("<title>the report</title>")
        write_predictions(run, dict.fromkeys(range(place, 9), ("odd", 0.5)))
    here("compare", "runs=runs", "hydra.run.dir=out")
    probe = """() => ({
      cells: [...document.querySelectorAll(".matrices svg")].map(s => s.querySelectorAll(".cell").length),
      pictures: [...document.querySelectorAll(".cards img")].filter(i => i.naturalWidth === 96).length,
      links: [...document.querySelectorAll("#runs a")].map(a => a.getAttribute("href")),
      said: document.getElementById("pair").textContent,
      overlaps: LOOK().overlaps, wide: document.documentElement.scrollWidth - innerWidth,
    })""".replace("LOOK", f"({LOOK})")
    (said,) = look([View(Path("out/index.html"), 1000)], probe, tmp_path)
    assert said["cells"] == [10, 20, 20] and said["pictures"] == 1 and said["overlaps"] == []
    assert said["links"] == ["../runs/a/test/index.html", "../runs/b%20c%23%25/test/index.html"]
    assert "b c#% alone on 1," in said["said"] and said["wide"] <= 0

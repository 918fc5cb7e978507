"""How the page of imgcls compare looks: few runs and many, light and dark, and runs that are odd."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.browser import LOOK, View, look, needs_chromium
from support.runs import Here, write_run


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
    views.append(View(Path("out44/index.html"), 1000, "#sort=parameters"))
    tables.append(tables[4].sort_values("parameters", kind="stable"))
    for dark in (False, True):
        for view, table, said in zip(views, tables, look(views, LOOK, tmp_path, dark), strict=True):
            assert said["overlaps"] == [] == said["outside"] and said["texts"] > 20, view
            assert said["wide"] <= 0 and said["axes"] <= 12, view
            assert said["sorted"] == ["parameters" if view.ending else "best/val/top1", True], view
            assert_table(said, table)
            assert said["page"] == ("rgb(21, 23, 27)" if dark else "rgb(255, 255, 255)")
            assert min(contrast(one, said["page"]) for one in said["marks"]) > 3
            assert min(contrast(one, said["page"]) for one in said["words"]) > 4.5


OWN = (("val/mine <b>'é", (1, 2, 3)), ("seconds", (30, 70, 90)), ("val/f1", ("inf", "nan", 0)))


def write_odd(place: Path) -> None:
    """Writes folders of runs that a page may stumble over."""
    for i, (own, values) in enumerate(OWN):
        run = write_run(place / "without curves" / str(i), 0.5, seed=i)
        if i:
            (run / "metrics.csv").unlink()
        write_run(place / "failed" / str(i), 0.5, "failed" if i else "finished", seed=i)
        run = write_run(place / "own metric" / str(i), 0.5 + i / 10, seed=i)
        head, *rows = (run / "metrics.csv").read_text().splitlines()
        rows = [f"{row},{value}" for row, value in zip(rows, values, strict=True)]
        (run / "metrics.csv").write_text("\n".join([f"{head},{own}", *rows, ""]))
    write_run(place / "one" / "0", 0.5)
    for i in range(24):
        settings: dict[str, Any] = {
            f"h{k}_{'x' * (k % 9)}<i>'\"&日本 {k}": (k * i) % 7 / 10 for k in range(60)
        }
        write_run(place / "settings" / str(i), 0.5 + i % 13 / 30, seed=i, **settings)
    for i in range(80):
        write_run(place / "seeds" / str(i), 0.5 + i / 200, seed=i // 2, optimizer__lr=0.1 + i % 2)


@needs_chromium
def test_odd_runs(here: Here, tmp_path: Path) -> None:
    """Runs without curves, failed, with a metric or an axis of time that no other has; a single one; 60
    settings with names that no one expects; 40 seeds."""
    write_odd(Path("odd"))
    views = []
    for folder in sorted(Path("odd").iterdir()):
        here("compare", f"runs={folder}", "average=seed", "failed=true", f"hydra.run.dir=out/{folder.name}")
        page = Path("out", folder.name, "index.html")
        endings = ("", "#x=seconds&view=range", "#smooth=0.9&log=true&colour=seed&metric=last/val/f1")
        views += [View(page, 1000, ending) for ending in endings]
    for view, said in zip(views, look(views, LOOK, tmp_path), strict=True):
        assert said["overlaps"] == [] == said["outside"] and said["wide"] <= 0 and said["sorted"][1], view
        assert said["axes"] <= 12

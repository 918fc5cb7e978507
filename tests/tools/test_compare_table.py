"""The table of imgcls compare: its runs and columns, the Pareto front, and the same numbers on the page."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from support.runs import Here, write_run, write_sweep

from imgcls.runs.read import read_runs
from imgcls.tools.compare.comparison import figure
from imgcls.tools.compare.table import named_parts, pareto_front, short_names


def page_of(folder: str) -> dict[str, Any]:
    (text,) = re.findall(r'id="data">(.*?)</script>', Path(folder, "index.html").read_text())
    found: dict[str, Any] = json.loads(text)
    return found


def columns_of(folder: str) -> list[str]:
    return [column["name"] for column in page_of(folder)["columns"]]


def test_what_differs_comes_first(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    """Then what the table is sorted by, then the rest, with the paths that differ at the end. On the page,
    which may be wider than its window, what sorts comes right after the name."""
    for place in range(3):
        given: dict[str, Any] = {
            "optimizer__lr": 0.1 * (place + 1),
            "data__root": f"/machine{place}/data",
            "tags": ["a", str(place)],
        }
        name = f"sweeps/mine/{place}_optimizer.lr=0.{place + 1},trainer.max_time=5"
        write_run(Path("runs") / name, 0.7 + place / 10, **given, trainer__max_time=f"0{place}", seed=place)
    here("compare", "runs=runs", "sort=test/top1", "average=seed", "hydra.run.dir=out")
    out = capsys.readouterr().out
    first = ["name", "optimizer.lr", "seed", "trainer.max_time", "tags", "test/top1", "best/val/top1"]
    read = pd.read_csv("out/runs.csv")
    assert sorted(read.columns[1:5]) == sorted(first[1:5]) and list(read.columns[5:7]) == first[5:]
    assert list(read.columns).index("data.root") > list(read.columns).index("images_per_second")
    found, sorts = columns_of("out"), "test/top1"
    assert [n for n in found if n in first and n != sorts] == [
        n for n in read.columns if n in first and n != sorts
    ]
    assert found[:3] == ["name", "status", sorts]
    assert found[-1] == "data.root" and [row[0] for row in page_of("out")["rows"]] == [
        "2_optimizer.lr=0.3", "1_optimizer.lr=0.2", "0_optimizer.lr=0.1",
    ]  # fmt: skip
    assert "no room for" in out and not re.search("no room for.*(optimizer.lr|max_time)", out)
    assert list(pd.read_csv("out/groups.csv").columns[:3]) == ["optimizer.lr", "trainer.max_time", "runs"]


def test_short_names() -> None:
    assert short_names(["s/0_lr=1,a=2", "s/1_lr=3,a=2"]) == ["0_lr=1", "1_lr=3"]
    assert short_names(["s/0_lr=1", "t/0_lr=1"]) == ["s/0", "t/0"]
    assert short_names(["a/b", "a/c/d"]) == ["b", "c/d"]
    assert short_names(["s/x", "s/x"]) == ["x", "x"] and short_names(["s/0_a=1"]) == ["s/0_a=1"]
    assert short_names(["0_a=[1,2],b=3", "1_a=[1,2],b=4"]) == ["0_b=3", "1_b=4"]


def test_whole_numbers_have_all_their_digits() -> None:
    """A seed of 123456 is no 1.235e+05; it is a float where another run has none."""
    assert figure("seed", 123456) == figure("seed", 123456.0) == "123456"
    assert [figure("optimizer.lr", value) for value in (0.012345, 3e-5, 2e9)] == ["0.01235", "3e-05", "2e+09"]
    assert figure("best/epoch", 7.0) == "7" and figure("best/val/top1", 1.0) == "1.0000"


def test_names_of_networks_and_sets() -> None:
    for place, name in enumerate(("resnet18.a1_in1k", "convnext_tiny")):
        path = write_run(Path(f"runs/{place}"), backbone="timm") / "config.yaml"
        config = yaml.safe_load(path.read_text())
        config["backbone"]["name"] = name
        config["names"]["data"], config["data"]["root"] = "imagefolder", f"/data/set{place}"
        path.write_text(yaml.safe_dump(config))
    write_run(Path("runs/2"), backbone="resnet20")
    found = named_parts(read_runs("runs"))
    assert list(found["backbone"]) == ["resnet18.a1_in1k", "convnext_tiny", "resnet20"]
    assert list(found["data"]) == ["imagefolder set0", "imagefolder set1", "digits"]


def test_runs_of_several_data_sets(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said; they stand together in the table, and a baseline is that of the same data."""
    for data, lift in (("digits", 0.0), ("cifar10", 0.2)):
        for path in write_sweep(Path("runs") / data).iterdir():
            config = yaml.safe_load((path / "config.yaml").read_text())
            config["names"]["data"] = data
            (path / "config.yaml").write_text(yaml.safe_dump(config))
            rows = (path / "metrics.csv").read_text().splitlines()
            lifted = [
                ",".join([*r.split(",")[:3], str(float(r.split(",")[3]) - lift), "1"]) for r in rows[1:]
            ]
            (path / "metrics.csv").write_text("\n".join([rows[0], *lifted, ""]))
    baseline = "baseline=backbone=simple_cnn and lr=0.1"
    here("compare", "runs=runs", "average=seed", baseline, "hydra.run.dir=out")
    assert "several data sets, whose metrics do not compare: cifar10, digits" in capsys.readouterr().out
    assert list(pd.read_csv("out/runs.csv")["data"]) == ["cifar10"] * 12 + ["digits"] * 12
    groups = pd.read_csv("out/groups.csv")
    assert groups.columns[0] == "data" and groups["difference"].isna().sum() == 2
    assert groups["difference"].abs().max() < 0.1  # each against its own
    assert "the runs are of 2 data sets; choose one by where=data=…" in Path("out/index.html").read_text()


def test_debug_runs_are_left_out(here: Here, capsys: pytest.CaptureFixture[str], said: Any) -> None:
    write_run(Path("runs/a"))
    hydra = write_run(Path("runs/debug/b"), 0.5) / ".hydra"
    hydra.mkdir()
    (hydra / "hydra.yaml").write_text("hydra:\n  runtime:\n    choices:\n    data: digits\n    debug: fast\n")
    here("compare", "runs=runs", "hydra.run.dir=out")
    assert "1 run of debug=… left out; debug=true shows them" in capsys.readouterr().out
    assert list(pd.read_csv("out/runs.csv")["name"]) == ["a"]
    here("compare", "runs=runs", "debug=true", "hydra.run.dir=all")
    assert list(pd.read_csv("all/runs.csv")["debug"].dropna()) == ["fast"]
    expected = "no run is left to compare: 1 run of debug=… left out; debug=true shows them"
    assert said("compare", "runs=runs/debug") == f"imgcls compare: {expected}"


def test_the_old_word_for_average(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(Path("runs"))
    here("compare", "runs=runs", "group=seed", "hydra.run.dir=out")
    assert "group=seed: the word for it is average=seed now" in capsys.readouterr().out
    assert len(pd.read_csv("out/groups.csv")) == 4


def test_the_pareto_front(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the two metrics of a sweep; a run that is as good in one and worse in the other is beaten."""
    values = pd.DataFrame(
        {"a": [1.0, 2.0, 2.0, 0.5, 3.0], "b": [3.0, 2.0, 1.0, 3.0, 9.0], "status": "finished"}
    )
    values.loc[4, "status"] = "failed"
    front = pareto_front(values, {"a": "max", "b": "max"})
    assert list(front) == [True, True, False, False, False]
    assert list(pareto_front(values, {"a": "min", "b": "max"})) == [False, False, False, True, False]
    for place, (top1, speed) in enumerate(((0.9, 10), (0.8, 30), (0.7, 20))):
        path = write_run(Path(f"runs/s/{place}_seed={place}"), top1, seed=place)
        rows = re.sub(r",\d+$", f",{speed}", (path / "metrics.csv").read_text(), flags=re.MULTILINE)
        (path / "metrics.csv").write_text(rows)
    sweep = {"optimized_metric": ["val/top1", "images_per_second"], "directions": ["max", "max"]}
    Path("runs/s/sweep.yaml").write_text(yaml.safe_dump(sweep))
    here("compare", "runs=runs/s", "hydra.run.dir=out")
    out = capsys.readouterr().out.splitlines()
    expected = "Pareto front of val/top1 (max) and images_per_second (max), marked *: 0_seed=0, 1_seed=1"
    assert out[-3] == expected and expected in Path("out/index.html").read_text()
    assert list(pd.read_csv("out/runs.csv")["Pareto"].fillna("")) == ["*", "*", ""]
    assert [row[columns_of("out").index("Pareto")] for row in page_of("out")["rows"]] == ["*", "*", ""]


def test_numbers_of_the_page_are_those_of_the_files(here: Here) -> None:
    """All of its table to the last digit; of the groups, rounded as they are shown."""
    write_sweep(Path("runs"))
    here("compare", "runs=runs", "average=seed", "baseline=backbone=simple_cnn,lr=0.1", "hydra.run.dir=out")
    page, table = page_of("out"), pd.read_csv("out/runs.csv")
    numbers = 0
    for place, column in enumerate(page["columns"]):
        if column["number"]:
            assert [row[place] for row in page["rows"]] == pytest.approx(
                list(table[column["name"]]), abs=1e-12
            )
            numbers += len(page["rows"])
    assert numbers > 100
    text = Path("out/index.html").read_text().partition("<h2>Groups</h2>")[2].partition("</table>")[0]
    head, *rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in text.split("</tr>")[:-1]]
    shown, groups = pd.DataFrame(rows, columns=head), pd.read_csv("out/groups.csv")
    assert list(shown["runs"].astype(int)) == list(groups["runs"])
    for name, mean, width in (
        ("difference ± 95%", "difference", "95% of all"),
        ("best/val/top1", "best/val/top1 mean", "best/val/top1 std"),
        ("test/top1", "test/top1 mean", "test/top1 std"),
    ):
        for cell, *numbers_of in zip(shown[name], groups[mean], groups[width], strict=True):
            assert cell == " ± ".join(f"{number:.4f}" for number in numbers_of if number == number)
    for test in ("t", "Wilcoxon"):
        expected = [f"{p:.4g}" if p == p else "" for p in groups[f"p ({test}, Holm)"]]
        assert list(shown[f"p ({test})"]) == expected and any(expected)

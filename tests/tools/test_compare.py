"""imgcls compare: what it reads from run directories, and what it shows of them."""

import datetime
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.cells import cell_len
from support.command import imgcls
from support.many_runs import write_many
from support.runs import Here, write_run, write_sweep

from imgcls.runs.read import read_runs
from imgcls.runs.record import write_config
from imgcls.runs.run_files import Damaged, curves, differences, read_config
from imgcls.tools.compare.conditions import EXPECTED, where
from imgcls.tools.compare.table import differing_config, ordered


def test_a_training_as_it_is_read(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished, and one that fails in its test."""
    given = ("logger=csv", "backbone.width=4", "trainer.max_epochs=2", "trainer.limit_train_batches=4")
    here("train", *given, "hydra.run.dir=runs/one", "optimizer.lr=0.01")

    def broken(*_: Any) -> None:
        raise RuntimeError("the disk\nis gone")

    monkeypatch.setattr("imgcls.commands.train.calibrate_and_test", broken)
    with pytest.raises(RuntimeError):
        here("train", *given, "hydra.run.dir=runs/two")
    one, two = (row for _, row in read_runs("runs").iterrows())
    assert (one["name"], one["status"], two["name"], two["status"]) == ("one", "finished", "two", "failed")
    assert two["reason"] == "RuntimeError: the disk is gone" and pd.isna(two["test/top1"])
    assert one["optimizer.lr"] == 0.01 and one["optimizer"] == "AdamW" and one["backbone"] == "simple_cnn"
    logged = curves("runs/one")
    assert len(logged) == 2 and one["last/val/loss"] == logged["val/loss"].iloc[-1]
    assert (
        one["best/val/top1"] == logged["val/top1"].max() and one["best/epoch"] == logged["val/top1"].argmax()
    )
    assert one["test/top1"] == json.loads(Path("runs/one/test/metrics.json").read_text())["test/top1"]
    assert (
        0 < one["seconds"] < 100
        and one["images_per_second"] > 0
        and one["parameters"] == two["parameters"] > 1000
    )
    assert len(json.loads(Path("runs/one/environment.json").read_text())["data"]) == 3
    assert differing_config(read_runs("runs")) == ["optimizer.lr"]


def test_runs_that_are_no_good(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is named with what is wrong, and none stops the others."""
    write_run(Path("runs/good"))
    write_run(Path("runs/failed"), status="failed")
    write_run(Path("runs/killed"), status="running", epochs=1)
    for name, file, content in (
        ("cut", "metrics.csv", b"epoch,val/top1\n1,0.5\n2,0."),
        ("text", "metrics.csv", b"epoch,val/top1\n1,x\n"),
        ("yaml", "config.yaml", b"{"),
        ("empty", "config.yaml", b""),
        ("json", "test/metrics.json", b"{"),
    ):
        (write_run(Path("runs/damaged") / name) / file).write_bytes(content)
    (write_run(Path("runs/damaged/none")) / "metrics.csv").unlink()
    (write_run(Path("runs/damaged/no config")) / "config.yaml").unlink()
    (write_run(Path("runs/old")) / "status.json").unlink()
    for mode in ("RUN", "MULTIRUN"):  # a mistake on the command line: only in a sweep is it a run that lacks
        folder = Path(f"runs/{mode}/.hydra")
        folder.mkdir(parents=True)
        (folder / "hydra.yaml").write_text(f"hydra:\n  mode: {mode}\n  job:\n    config_name: train\n")
    inner = Path("runs/good/wandb/run/files")
    inner.mkdir(parents=True)
    (inner / "config.yaml").touch()
    found = read_runs("runs").set_index("name")
    damaged = ("cut", "text", "yaml", "empty", "json", "none", "no config")
    assert dict(found["status"]) == {
        "MULTIRUN": "failed",
        "good": "finished",
        "failed": "failed",
        "killed": "unfinished",
        "old": "finished",
        **{f"damaged/{name}": "damaged" for name in damaged},
    }
    reasons = found["reason"]
    assert reasons["damaged/cut"].startswith("metrics.csv can't be read: it is cut short")
    assert (
        reasons["damaged/yaml"].startswith("config.yaml can't be read")
        and "config.yaml is not there" in reasons["damaged/no config"]
    )
    here("compare", "runs=runs", "hydra.run.dir=out")
    out = capsys.readouterr().out
    assert (
        "unfinished: killed: it runs still, or was killed" in out
        and "damaged: damaged/none: metrics.csv is not there" in out
    )
    assert "1 run failed before the first epoch left out; failed=true shows them" in out
    assert len(pd.read_csv("out/runs.csv")) == 11
    here("compare", "runs=runs", "failed=true", "hydra.run.dir=all")
    assert len(pd.read_csv("all/runs.csv")) == 12


def test_the_command(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, with a condition that Hydra's grammar has no place for."""
    write_sweep(Path("runs"))
    done = imgcls(
        "compare", "runs=runs", "where=val/top1>0.805 and backbone!=x", "hydra.run.dir=out", COLUMNS="100"
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "9 runs, best/val/top1" and all(cell_len(line) <= 100 for line in lines)
    assert lines[1].split()[::2] == [
        "name",
        "backbone",
        "seed",
        "lr",
        "best",
        "last",
        "test",
        "time",
        "parameters",
    ]
    assert [word.strip() for word in lines[3].split("│")][1:5] == ["resnet20", "2", "0.1", "0.8660"]
    table = pd.read_csv("out/runs.csv")
    assert list(table["best/val/top1"]) == sorted(table["best/val/top1"], reverse=True)
    assert lines[-2:] == ["page: out/index.html", "table: out/runs.csv"]


def test_where_and_order() -> None:
    table = read_runs(write_sweep(Path("runs")))
    table["tags"] = ["['mine', 'b']" if place % 5 == 0 else "['mines']" for place in range(12)]
    for condition, count in (
        ("backbone=resnet20", 6), ("backbone!=resnet20", 6), ("lr<0.1", 6),
        ("optimizer.lr>=0.001, seed=0", 4), ("seed>0 and seed<=1", 4), (["seed=1", "lr=0.1"], 2),
        ("status=finished", 12), ("tune=null", 12), ("channels_last=true", 12), ("test/top1>0.8", 5),
        ("seed in (0,1) and backbone=='resnet20' or lr=0.001 and seed=2", 6), ("seed not in [0, 1]", 4),
        ("(seed=0 or seed=1) and not backbone=resnet20", 4), ("`optimizer.lr`<0.1 & seed==0 | seed==1", 6),
        ("lr<0.1, seed=0 or seed=1", 4), ("tags holds mine", 3), ("'MINE' in tags and lr=0.1", 1),
        ("backbone holds resnet", 6),
    ):  # fmt: skip
        assert len(where(table, condition)) == count, condition
    assert ordered(table, "best/val/top1")["best/val/top1"].is_monotonic_decreasing
    assert ordered(table, "best/val/loss")["best/val/loss"].is_monotonic_increasing
    assert ordered(table, "seconds", reverse=True)["seconds"].is_monotonic_decreasing
    assert ordered(table, "optimizer.lr")["optimizer.lr"].is_monotonic_increasing


def test_only_values_that_differ() -> None:
    """`backbone.depth` comes with `backbone`; a rate that the command line set is shown all the same."""
    write_run(Path("runs/a"), backbone="simple_cnn", optimizer__lr=0.1)
    write_run(Path("runs/b"), backbone="resnet20", optimizer__lr=0.2)
    table = read_runs("runs")
    assert differing_config(table) == ["backbone", "optimizer.lr"]
    assert {"backbone.depth", "backbone.width"} <= set(table)
    (Path("runs/a") / "config.yaml").unlink()  # what is not known does not differ
    assert differing_config(read_runs("runs")) == []


def test_a_seed_that_was_run_twice_is_one_seed(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest of the two counts: a repeat is no new sample."""
    for age, (name, top1, seed) in enumerate((("a", 0.8, 0), ("b", 0.9, 1), ("c", 0.84, 0))):
        path = write_run(Path("runs") / name, top1, seed=seed)
        os.utime(path / "config.yaml", (10**9 + age, 10**9 + age))
    write_run(Path("runs/other"), 0.5, seed=0, optimizer__lr=0.1)
    here("compare", "runs=runs", "average=seed", "hydra.run.dir=out")
    group = pd.read_csv("out/groups.csv").iloc[0]
    spread = pd.Series([0.84, 0.9])
    assert group["runs"] == 2 and group["best/val/top1 std"] == pytest.approx(spread.std())
    line = "repeats: of runs with the same seed and config the newest counts, not a"
    assert line in capsys.readouterr().out.splitlines() and line in Path("out/index.html").read_text()


MALFORMED = {
    "status.json": [
        "5", "[]", '{"status": 5}', '{"status": "finished", "seconds": "long"}',
        '{"status": "finished", "parameters": [1]}', '{"status": "finished", "parameters": 1e400}',
        "[" * 100_000,
    ],
    "config.yaml": [
        "5", "names: 5", "names: {run: [1]}", "optimized_metric: {a: b}", "optimized_metric: []", "logger: 5",
        "7: x", "names: {backbone: 5}", "run_dir: [x]", "a: &a {b: *a}", "? [1]\n: 2",
        "a: !!python/object:os.x {}",
    ],
    "metrics.csv": ["epoch,val/top1\n1,2,3\n", "x\n", "\0", "epoch,val/top1\n1,True\n", ""],
    "test/metrics.json": ["5", '{"test/top1": "good"}', '{"test/top1": [1]}', '{"test/top1": null}'],
}  # fmt: skip


def test_malformed_files_damage_their_own_run_alone(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(Path("runs/good"))
    for file, contents in MALFORMED.items():
        for place, content in enumerate(contents):
            (write_run(Path(f"runs/{file.replace('/', ' ')} {place}")) / file).write_text(content)
    (write_run(Path("runs/folder")) / "config.yaml").unlink()
    Path("runs/folder/config.yaml").mkdir()
    found = read_runs("runs").set_index("name")
    assert found["status"].to_dict() == dict.fromkeys(found.index, "damaged") | {"good": "finished"}
    assert found["reason"].map(len).between(10, 200).drop("good").all()
    here("compare", "runs=runs", "hydra.run.dir=out")
    assert (
        "damaged: config.yaml 1: config.yaml can't be read: names=5: input should be a valid dictionary"
        in capsys.readouterr().out
    )
    for file, content in (("git", "[]"), ("packages", "5")):
        (Path("runs/good/environment.json")).write_text(json.dumps({file: json.loads(content)}))
        with pytest.raises(Damaged, match="environment.json can't be read"):
            differences(Path("runs/good"), Path("runs/good"))


def test_aliases_are_neither_read_nor_written(here: Here) -> None:
    """Nine lines of them can stand for more than memory holds."""
    write_run(Path("runs/good"))
    for name, first, more in (("lists", "[x, x]", "[{}]"), ("maps", "{x: 1}", "{{<<: [{}]}}")):
        lines = [f"a0: &a0 {first}"]
        for i in range(1, 10):
            lines.append(f"a{i}: &a{i} " + more.format(", ".join([f"*a{i - 1}"] * 9)))
        (write_run(Path(f"runs/{name}")) / "config.yaml").write_text("\n".join(lines))
    found = read_runs("runs").set_index("name")
    assert found["status"].to_dict() == {"good": "finished", "lists": "damaged", "maps": "damaged"}
    assert found.loc["lists", "reason"] == "config.yaml can't be read: it has aliases, which no run writes"
    shared = ["*", "&"]
    config = {"names": {"run": "a*b"}, "one": shared, "other": shared}
    write_config(Path("runs/good"), config)
    assert read_config(Path("runs/good")) == config


def test_values_of_any_type_and_names_of_the_table(here: Here) -> None:
    """A config may hold whatever YAML has, also under a name that the table has for something else."""
    odd: dict[str, Any] = {
        "path": "elsewhere", "status": "pruned", "seconds": "x", "best/val/top1": "y",
        "when": datetime.date(2026, 1, 2),
        "huge": 10**400, "bytes": b"\xff", "set": {1}, "mixed": 3, "nothing": {},
    }  # fmt: skip
    path = write_run(Path("runs/a")) / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | odd))
    write_run(Path("runs/b"), mixed="three", huge=1)
    write_run(Path("runs/c"), mixed=None).rename(Path("runs") / os.fsdecode(b"\xff"))
    (path.parent / "test/metrics.json").write_text(
        json.dumps({"test/top1": 0.85, "test/\ud800": 1, "status": 0})
    )
    for sort in ("mixed", "-huge"):
        here("compare", "runs=runs", f"sort={sort}", "average=seed", "hydra.run.dir=out")
    found = read_runs("runs").set_index("name")
    assert (found["status"] == "finished").all() and found.loc["a", "seconds"] == 90
    assert found.loc["a", "path"] == "runs/a" and found.loc["a", "best/val/top1"] == 0.9


def test_infinity_is_shown_and_not_plotted(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(Path("runs"))
    for path, value in zip(sorted(Path("runs").iterdir())[:2], ("inf", "-inf"), strict=True):
        rows = (
            (path / "metrics.csv").read_text().replace("0.8\n", f"{value}\n").replace(",1.9,", f",{value},")
        )
        (path / "metrics.csv").write_text(rows)
        (path / "status.json").write_text('{"status": "finished", "seconds": Infinity, "parameters": 3}')
    here("compare", "runs=runs", "average=seed", "hydra.run.dir=out", "metric=best/val/loss")
    assert " inf " in capsys.readouterr().out
    text = Path("out/index.html").read_text()
    (data,) = re.findall(r'id="data">(.*?)</script>', text)
    found = json.loads(data, parse_constant=lambda word: pytest.fail(word))
    names = [column["name"] for column in found["columns"]]
    seconds = [row[names.index("seconds")] for row in found["rows"]]
    assert seconds.count("inf") == 2 and any(None in curve["val/loss"] for curve in found["curves"])


def test_two_runs(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(Path("runs/a"), optimizer__lr=0.1), write_run(Path("runs/b"), optimizer__lr=0.2)
    record = json.loads((b / "environment.json").read_text())
    record["packages"] |= {"torch": "2.12", "new": "1"}
    record["git"]["commit"] = "def"
    record["data"]["train"] = "34"
    (b / "environment.json").write_text(json.dumps(record))
    (b / "git.diff").write_text("+one line\n")
    assert differences(a, b) == {
        "config": [("optimizer.lr", 0.1, 0.2)],
        "environment": [("torch (package)", "2.11", "2.12"), ("new (package)", None, "1")],
        "git": [("commit", "abc", "def"), ("diff", "none", "1 lines")],
        "data": [("train", "12", "34")],
    }
    here("compare", "runs=[runs/a,runs/b]", "hydra.run.dir=out")
    assert re.search(r"torch \(package\) │ 2.11 │ 2.12", capsys.readouterr().out)
    assert "torch (package)" in Path("out/index.html").read_text()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            ["runs=nothing"],
            "runs=nothing: there is no such folder; expected one with runs of imgcls train in it",
        ),
        (["runs=empty"], "runs=empty: no run is in or below it; expected what imgcls train made"),
        (["where=lr~3"], f"where=lr~3: {EXPECTED}"),
        (["where=lr<0.1 and (seed=0"], f"where=lr<0.1 and (seed=0: {EXPECTED}"),
        (["where=lr<0.1 seed"], "where=lr<0.1 seed: < compares numbers"),
        (["where=@pd.eval('1')=1"], f"where=@pd.eval('1')=1: {EXPECTED}"),
        (["where=__import__('os')"], f"where=__import__('os'): {EXPECTED}"),
        (["where=backbone.str.len()>3"], f"where=backbone.str.len()>3: {EXPECTED}"),
        (["where=seed.__class__=1"], "seed.__class__: no run has a value of this name; "),
        (["where=backbone in (resnet20"], f"where=backbone in (resnet20: {EXPECTED}"),
        (["where=seed=0 or sed=1"], "sed: no run has a value of this name; did you mean 'seed'?"),
        (["where=()"], f"where=(): {EXPECTED}"),
        (["where=backbon=x"], "backbon: no run has a value of this name; did you mean 'backbone'?"),
        (["where=backbone>3"], "where=backbone>3: > compares numbers"),
        (["where=seed>7"], "where=seed>7: no run that is compared is like this; take a condition away"),
        (["sort=eps2"], "eps2: no run has a value of this name; choose one of: "),
        (["metric=lr2"], "lr2: no run has a value of this name; "),
        (
            ["metric=backbone"],
            "metric=backbone: none of the runs that are compared has such a measured value",
        ),
        (
            ["baseline=seed=0"],
            "baseline=seed=0 needs average=seed or average=fold, over which runs are paired",
        ),
        (
            ["average=seed", "baseline=lr>0"],
            "baseline: 4 configs are like this; expected one, by backbone, optimizer.lr",
        ),
    ],
)
def test_mistakes(given: list[str], expected: str, said: Callable[..., str]) -> None:
    write_sweep(Path("runs"), seeds=2)
    Path("empty").mkdir()
    message = said("compare", *(given if "runs=" in given[0] else ["runs=runs", *given]))
    assert message.startswith(f"imgcls compare: {expected}")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_thousand_runs() -> None:
    """In a process of its own: under 10 s of a core and 500 MB, with a page under 5 MB."""
    write_many(Path("runs"))
    code = "import atexit; atexit.register(lambda: print(open('/proc/self/status').read()))"
    code += "; from imgcls.__main__ import main; main()"
    words = ["compare", "runs=runs", "average=seed", "hydra.run.dir=out"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    megabytes = int(re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)[0]) / 1e3
    print(f"{seconds:.1f} s of a core, {megabytes:.0f} MB")
    assert done.returncode == 0 and len(pd.read_csv("out/runs.csv")) == 1000
    assert seconds < 10 and megabytes < 500 and Path("out/index.html").stat().st_size < 5e6

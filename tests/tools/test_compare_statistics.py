"""Statistics of imgcls compare: averages, tests and their corrections, and what matters."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats
from support.command import ROOT
from support.runs import Here, write_run, write_sweep

from imgcls.errors import UserError
from imgcls.runs.read import read_runs
from imgcls.tools.compare.conditions import where
from imgcls.tools.compare.importance import Importance, encoded, importance
from imgcls.tools.compare.statistics import compared, grouped, holm, paired_test
from imgcls.tools.compare.sweep_files import searched

TARGET = "best/val/top1"
KEYS = ["backbone", "optimizer.lr"]


def simulations() -> Any:
    spec = importlib.util.spec_from_file_location("simulations", ROOT / "docs" / "compare_simulations.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_groups_and_the_paired_test() -> None:
    """Against SciPy's own, over the seeds that both have."""
    shutil.rmtree(next(write_sweep(Path("runs"), seeds=4).glob("*resnet20,lr=0.1,seed=3")))
    table = read_runs("runs")
    baseline = where(table, "backbone=simple_cnn,lr=0.1").index
    groups, notes = grouped(table, "seed", KEYS, TARGET, baseline)
    assert sorted(groups["runs"]) == [3, 4, 4, 4]
    row = groups[(groups["backbone"] == "resnet20") & (groups["optimizer.lr"] == "0.1")].iloc[0]

    def values(backbone: str) -> "pd.Series[float]":
        chosen = table[(table["backbone"] == backbone) & (table["optimizer.lr"] == 0.1) & (table["seed"] < 3)]
        return chosen.sort_values("seed")[TARGET]

    ours, theirs = values("resnet20").to_numpy(), values("simple_cnn").to_numpy()
    test = stats.ttest_rel(ours, theirs)
    assert row["pairs"] == 3 and row["p (t)"] == pytest.approx(test.pvalue)
    assert row["p (Wilcoxon)"] == pytest.approx(stats.wilcoxon(ours, theirs).pvalue)
    assert row[f"{TARGET} mean"] == pytest.approx(ours.mean())
    assert row[f"{TARGET} std"] == pytest.approx(ours.std(ddof=1))
    low, high = test.confidence_interval()
    assert (row["difference"] - row["95%"], row["difference"] + row["95%"]) == pytest.approx((low, high))
    assert row["d"] == pytest.approx((ours - theirs).mean() / (ours - theirs).std(ddof=1))
    # The other rate has the same differences for all seeds, which are no test; so two are corrected for.
    assert row["p (t, Holm)"] >= row["p (t)"] and row["95% of all"] > row["95%"]
    assert any(note.startswith("p is corrected for 2 tests (Holm)") for note in notes)
    assert "p (Wilcoxon) can't be below 0.25 with 4 pairs and 2 tests; it takes 7 for 0.05" in notes


def test_the_best_config_as_baseline() -> None:
    """It may have been chosen by its result: all three pairs of the three configs count, not two."""
    rng = np.random.default_rng(0)
    rows = [
        (name, seed, lift + rng.normal() / 100)
        for name, lift in zip("abc", (0.9, 0.5, 0.7), strict=True)
        for seed in range(4)
    ]
    values = pd.DataFrame(rows, columns=["config", "seed", "top1"]).pivot(
        index="config", columns="seed", values="top1"
    )
    late, notes = compared(values, {"": "a"}, 0.0)
    assert any("all pairs of configs count" in note for note in notes) and "3 tests" in notes[0]
    assert late["p (t, Holm)"].min() == pytest.approx(3 * late["p (t)"].min())
    early, notes = compared(values, {"": "b"}, 0.0)
    assert early["p (t, Holm)"].min() == pytest.approx(2 * early["p (t)"].min()) and "2 tests" in notes[0]


def test_equal_differences_are_no_test() -> None:
    """Though rounding makes them differ in the last digits."""
    differences = pd.Series([0.85, 0.75, 0.95]) - pd.Series([0.8, 0.7, 0.9])
    assert differences.std() > 0 and paired_test(differences).keys() == {"difference", "pairs"}


def test_the_correction_by_holm() -> None:
    """The example of two lines: the smallest times their number, then ever less, and never falling."""
    found = holm(pd.Series([0.01, np.nan, 0.04, 0.03, 0.5]))
    assert list(found.round(6)[[0, 2, 3, 4]]) == [0.04, 0.09, 0.09, 0.5] and np.isnan(found[1])


def test_folds_share_images(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    """The variance of Nadeau and Bengio: 1/5 + 1/4 times that of the differences, in place of 1/5."""
    differences = pd.Series([0.01, 0.03, 0.02, 0.04, 0.015])
    found = paired_test(differences, 1 / 4)
    t = differences.mean() / np.sqrt((1 / 5 + 1 / 4) * differences.var())
    assert found["p (t)"] == pytest.approx(2 * special.stdtr(4, -t)) and "p (Wilcoxon)" not in found
    assert found["p (t)"] > paired_test(differences)["p (t)"]
    for backbone in ("simple_cnn", "resnet20"):
        for fold in range(3):
            top1 = 0.8 + 0.01 * fold + (0.03 + 0.002 * fold**2) * (backbone == "resnet20")
            write_run(Path(f"runs/{backbone}{fold}"), top1, backbone=backbone, data__fold=fold, data__folds=3)
    here("compare", "runs=runs", "average=fold", "baseline=backbone=simple_cnn", "hydra.run.dir=out")
    row = pd.read_csv("out/groups.csv").set_index("backbone").loc["resnet20"]
    expected = pd.Series([0.03, 0.032, 0.038])
    t = expected.mean() / np.sqrt((1 / 3 + 1 / 2) * expected.var())
    assert row["p (t, Holm)"] == pytest.approx(2 * special.stdtr(2, -t))
    assert "folds share training images" in capsys.readouterr().out
    write_run(Path("runs/other"), data__fold=0, data__folds=5)
    with pytest.raises(
        UserError, match="runs with 3 and 5 folds do not pair; choose one by where=data.folds="
    ):
        table = read_runs("runs")
        grouped(table, "data.fold", ["backbone"], TARGET, table.index[:1])


def test_how_often_the_table_errs() -> None:
    """On fewer tables than docs/comparing.md: none of them is far from 5%."""
    own = simulations()
    for case in own.TABLES:
        found = own.false_positives(100, **case)
        assert max(found["Holm, t"], found["interval without 0"]) <= 0.1, (case, found)
    assert own.false_positives(100, 20, 5, False)["uncorrected"] > 0.3


def test_the_tables_of_the_document() -> None:
    """docs/comparing.md has the results that docs/compare_simulations.py stored, and they hold."""
    stored = json.loads((ROOT / "docs" / "compare_simulations.json").read_text())
    document = (ROOT / "docs" / "comparing.md").read_text()
    for part in stored.values():
        assert simulations().markdown(part["rows"]) in document and part["command"] in document
    for row in stored["tables"]["rows"]:
        several = row["configs"] > 2  # two are one test, of 5% by its making
        assert row["Holm, t"] <= (0.05 if several else 0.057)
    for row in stored["studies"]["rows"]:
        assert row["silent"] >= 0.95 if "explains" not in row else row["runs"] == 8 or row["lr first"] >= 0.9


def test_noise_is_not_spoken_of() -> None:
    """On fewer studies than docs/comparing.md."""
    own = simulations()
    assert own.what_matters(20, 20)["silent"] >= 0.85
    assert own.what_matters(10, 20, 0.8)["lr first"] >= 0.9


def test_importance() -> None:
    """The parameters share R²; a seed is none of them, and data sets are not mixed."""
    table = read_runs(write_sweep(Path("runs")))
    names = ["backbone", "seed", "optimizer.lr"]
    found = importance(table, names, TARGET, set())
    assert list(found.parts) == ["backbone", "optimizer.lr"] and found.r2 is not None
    assert sum(part for part, _ in found.parts.values()) == pytest.approx(found.r2[0]) and not found.why
    assert found.r2[1] <= found.r2[0] <= found.r2[2]
    assert found == importance(table, names, TARGET, set())
    few = importance(table.head(4), names, TARGET, set())
    assert few == Importance("4 finished runs are too few; at least 8 are needed")
    mixed = importance(table.assign(data=["a", "b"] * 6), names, TARGET, set())
    assert mixed == Importance("the runs are of 2 data sets; choose one by where=data=…")


def test_scales_are_those_of_the_sweep() -> None:
    """Not of the values: three decades that were searched on a line stay on a line."""
    values = pd.Series([0.001, 0.1, 1.0])
    assert encoded(values, True)[:, 0] == pytest.approx(np.log(values))
    assert encoded(values, False)[:, 0] == pytest.approx(values)
    folder = write_run(Path("sweep/0")).parent
    space = {"optimizer.lr": "tag(log, interval(1e-4, 1e-1))", "loss.label_smoothing": "interval(0.0, 0.2)"}
    found = {
        "space": space | {"data.batch_size": "32,64"},
        "optimized_metric": ["val/top1"],
        "directions": ["max"],
    }
    (folder / "sweep.yaml").write_text(json.dumps(found))
    sweeps = searched(["sweep/0", "elsewhere/0"])
    assert (sweeps.logarithmic, sweeps.linear) == ({"optimizer.lr"}, {"loss.label_smoothing"})
    (folder / "sweep.yaml").write_text("space: 5")
    assert not searched(["sweep/0"]).logarithmic

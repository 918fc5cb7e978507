"""ImageTable: labels, splits, groups, paths and bytes of a table, and all verbs on such sets."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.pictures import write_picture
from support.runs import assert_same_run
from support.sets import check_set
from support.tables import SHAPE, write_hub, write_parquet, write_table

from imgcls.__main__ import VERBS
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.table import ImageTable
from imgcls.engine.signals import STOPPED
from imgcls.errors import UserError

pytest.importorskip("pyarrow")
FACTS: dict[str, Any] = {"image_size": 24, "mean": [0.5], "std": [0.25], "num_workers": 0}
KINDS = {
    "labels": [
        "data=table", "data.file=labels.csv", "data.label_column=tags", "data.separator=;", "task=multilabel",
    ],
    "groups": ["data=table", "data.file=labels.csv", "data.group_column=patient"],
    "hub": ["data=huggingface", "data.name=hub", "data.label_column=label"],
    "bytes": ["data=table", "data.file=images.parquet", "data.path_column=image"],
}  # fmt: skip
LABELS = {"cat": 16, "dog": 16, "even": 24, "fox": 16}


@pytest.fixture
def table() -> pd.DataFrame:
    return write_table(Path())


def built(file: str = "labels.csv", **given: Any) -> ImageTable:
    return ImageTable(file=file, **FACTS | given)


def refused(table: pd.DataFrame, **given: Any) -> str:
    """Returns the error of a table, without its place."""
    table.to_csv("wrong.csv", index=False)
    with pytest.raises(UserError) as error:
        built("wrong.csv", **given)
    assert "\n" not in str(error.value)
    return str(error.value)


# All verbs


# Each takes 10 s: the one that differs most from a folder is of the ordinary suite.
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "labels" else [pytest.mark.slow]) for kind in KINDS]
)
def test_all_verbs(
    kind: str,
    table: pd.DataFrame,
    train: Callable[..., Any],
    here: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that was stopped within its second epoch goes on to the same bits; then each other verb."""
    for report in ("classification.ClassificationReport", "multilabel.MultiLabelReport"):
        monkeypatch.setattr(f"imgcls.report.{report}.draw", lambda *_: None)  # half of the time
    if kind == "hub":
        pytest.importorskip("datasets")
        write_hub(Path("hub"), table)
    write_parquet(Path(), table)
    data = [*KINDS[kind], *SHAPE]
    short = [*data, "trainer=cpu", "trainer.max_epochs=2", "logger=csv", "backbone=simple_cnn"]
    train(*short, "hydra.run.dir=whole")
    assert train(*short, "hydra.run.dir=cut", stop=6) == STOPPED
    assert not (Path("cut") / "test").exists()
    train("resume=cut")
    assert_same_run(Path("whole"), Path("cut"))

    here("eval", "checkpoint=whole", "hydra.run.dir=again")
    expected = json.loads(Path("whole/test/metrics.json").read_text())
    assert json.loads(Path("again/metrics.json").read_text()) == expected
    here("predict", "checkpoint=whole", "source=pictures", "out=found.csv", "num_workers=0")
    assert len(pd.read_csv("found.csv")) == len(table)
    own = [word for word in data if not word.startswith("task=")]
    here("inspect", *own, "hydra.run.dir=seen")
    seen = json.loads(Path("seen/inspect.json").read_text())
    assert seen["images"] == len(table) and seen["training_refuses"] is None
    counts = {name: split["train"] for name, split in seen["classes"].items()}
    assert counts == LABELS if kind == "labels" else set(counts.values()) == {20}
    if "pack" in VERBS:
        here("pack", *own, "out=packed", "size=null")
        here("eval", "checkpoint=whole", "data=packed", "data.root=packed", "hydra.run.dir=of_pack")
        found = json.loads(Path("of_pack/metrics.json").read_text())
        assert found == pytest.approx(expected)  # other batches
    here("compare", "runs=.")
    assert "whole" in capfd.readouterr().out


def test_a_table_is_the_folder(table: pd.DataFrame) -> None:
    """The same files by a table and by their folders: the same classes, and the same first batch."""
    one, other = built(seed=3), ImageFolder(root="pictures", seed=3, **FACTS)
    batches = []
    for data in (one, other):
        data.setup()
        batches.append(next(iter(data.train_dataloader())))
    assert one.spec == other.spec
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*batches, strict=True))


@pytest.mark.parametrize("struct", [True, False])
def test_bytes_are_the_files(struct: bool, table: pd.DataFrame) -> None:
    write_parquet(Path(), table, struct)
    stored, files = built("images.parquet", path_column="image").rows, built().rows
    for i in (0, 16, 17, 59):
        assert torch.equal(stored.read(i), files.read(i))
    named = (
        ("pictures_cat_00.jpg", "pictures_fox_19.jpg")
        if struct
        else ("images.parquet, row 1", "images.parquet, row 60")
    )
    assert (stored.name(0), stored.name(59)) == named
    part = stored.part(torch.tensor([59, 3]))
    assert torch.equal(part.read(0), files.read(59)) and part.name(1) == stored.name(3)


def test_bytes_that_are_no_image(
    table: pd.DataFrame, train: Callable[..., Any], said: Callable[..., str]
) -> None:
    write_picture(Path("pictures/cat/03.jpg"))
    Path("pictures/cat/03.jpg").write_bytes(b"no picture")
    write_parquet(Path(), table)
    data = ["data=table", "data.file=images.parquet", "data.path_column=image", *SHAPE, "debug=fast"]
    assert "pictures_cat_03.jpg can't be read as an image" in said(
        "train", *data, "trainer.limit_train_batches=1.0", "data.val_fraction=0.3"
    )
    train(
        *data,
        "data.on_error=skip",
        "data.max_errors=0.5",
        "trainer.limit_train_batches=1.0",
        "hydra.run.dir=run",
        "test=false",
    )
    assert "pictures_cat_03.jpg" in Path("run/unreadable.csv").read_text()


def test_a_folder_of_another_place(
    table: pd.DataFrame, train: Callable[..., Any], here: Callable[..., None]
) -> None:
    """eval reads the run's own table from any folder, and another table where it is given."""
    train(*KINDS["groups"], *SHAPE, "debug=fast", "hydra.run.dir=run")
    Path("labels.csv").rename("moved.csv")
    whole = ("split=all", "trainer.limit_test_batches=1.0", "hydra.run.dir=again")
    here("eval", "checkpoint=run", "data.file=moved.csv", *whole)
    assert len(pd.read_csv("again/predictions.csv")) == len(table)


# What the columns mean


def test_several_labels(table: pd.DataFrame) -> None:
    """Of a separator, of lists and of columns of 0 and 1."""
    joined = built(label_column="tags", separator=";")
    lists: Any = [cell.split(";") if cell else [] for cell in table["tags"]]
    table.assign(tags=lists).to_json("t.jsonl", orient="records", lines=True)
    listed = built("t.jsonl", label_column="tags")
    assert joined.spec.class_names == listed.spec.class_names == ("cat", "dog", "even", "fox")
    assert torch.equal(joined.rows.targets, listed.rows.targets)
    assert joined.rows.targets.dtype == torch.int64 and joined.rows.targets[[0, 2]].tolist() == [
        [0, 0, 0, 0],
        [1, 0, 1, 0],
    ]
    columns = built(label_column=["first", "even"])
    assert columns.spec.class_names == ("first", "even")
    assert columns.rows.targets.tolist() == table[["first", "even"]].to_numpy().tolist()


def test_measures(table: pd.DataFrame) -> None:
    table.assign(age=np.arange(60) / 7).to_csv("ages.csv", index=False)
    data = built("ages.csv", label_column="age", measures=True)
    data.setup()
    assert data.spec.class_names == () and data.rows.targets.dtype == torch.float32
    assert data.rows.targets.tolist() == pytest.approx((np.arange(60) / 7).tolist())


def test_classes_that_are_numbers(table: pd.DataFrame) -> None:
    """Numbers come in their order, and a label that looks like a missing value is one."""
    table.assign(label=[("10", "9", "1")[i % 3] for i in range(60)]).to_csv("n.csv", index=False)
    assert built("n.csv").spec.class_names == ("1", "9", "10")
    table.assign(label=[("NA", "null")[i % 2] for i in range(60)]).to_csv("n.csv", index=False)
    assert built("n.csv").spec.class_names == ("NA", "null")
    table.assign(label=[1.0, 0.0] * 30).to_parquet("n.parquet")
    assert built("n.parquet").spec.class_names == ("0", "1")


def labelled(table: pd.DataFrame, labels: list[Any], file: str = "made.parquet", **given: Any) -> ImageTable:
    """Returns the table with these labels, again and again, in a file."""
    made = table.assign(
        label=pd.Series(labels * (60 // len(labels)), dtype=object if file[-1] == "l" else None)
    )
    write: dict[str, Any] = {
        ".csv": lambda: made.to_csv(file, index=False), ".parquet": lambda: made.to_parquet(file),
        ".jsonl": lambda: made.to_json(file, orient="records", lines=True),
    }  # fmt: skip
    write[Path(file).suffix]()
    return built(file, **given)


def test_one_name_for_a_class(table: pd.DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    """The forms of a letter are one; truth is not 1; numbers that are equal keep an order of their own, and
    names that a person may mean as one are named."""
    assert labelled(table, ["café", "cafe\u0301", "tea"], "made.csv").spec.class_names == ("café", "tea")
    assert labelled(table, [True, 1, "x"], "made.jsonl").spec.class_names == ("1", "True", "x")
    assert labelled(table, [1.0, 2.0, 1e30]).spec.class_names == ("1.0", "1e+30", "2.0")
    assert not caplog.messages
    for labels in (["1", "01"], ["01", "1"]):
        assert labelled(table, labels, "made.csv").spec.class_names == ("01", "1")
    assert caplog.messages[0] == "'01' and '1' are two labels; if they are one, give them one name"
    labelled(table, ["cat", "Cat", "dog", "dog\u200b"], "made.csv")
    assert "'Cat' and 'cat' are two labels (2 pairs are so)" in caplog.text
    table["patient"] = ["p1", "P1"] * 30
    labelled(table, ["a", "b"], "made.csv", group_column="patient")
    assert "'P1' and 'p1' are two groups" in caplog.text or "'p1' and 'P1' are two groups" in caplog.text


def test_lists_of_labels(table: pd.DataFrame) -> None:
    """Numbers in lists are named as in cells; blanks are none of a label's."""
    assert labelled(table, [[1.0, 2.0], [3.0]]).spec.class_names == ("1", "2", "3")
    assert labelled(table, [["a "], [" a", "b"]]).spec.class_names == ("a", "b")
    for lists, line in (
        ([["a", None], ["b"]], "row 1: the list in column 'label' has an empty label, or one that is no te"),
        ([["b"], ["a", ""]], "row 2: the list in column 'label' has an empty label, or one that is no text"),
        ([[["a"]], [["b"]]], "row 1: the list in column 'label' has an empty label, or one that is no text"),
        ([[1, 0], [0, 1, 0]], "row 2: the list in column 'label' names a label twice; numbers for each lab"),
        ([[], []], "no row has a label in column 'label'"),
        ([{"a": 1}, {"a": 2}], "row 1: column 'label' has a cell of the type dict; expected text"),
        ([b"a", b"b"], "row 1: column 'label' has a cell of the type bytes; expected text"),
        (["a\nb", "c"], "row 1: the label in column 'label' has a line break: is a quote not closed?"),
    ):
        with pytest.raises(UserError) as error:
            labelled(table, lists)
        assert line in str(error.value) and "\n" not in str(error.value)
    groups: Any = [["a"]] * 60
    with pytest.raises(UserError, match="row 1: column 'patient' has a cell of the type ndarray"):
        labelled(table.assign(patient=groups), ["a", "b"], group_column="patient")


def test_how_a_file_was_written(table: pd.DataFrame) -> None:
    """By a table with an index of its own, with a mark of UTF-8, with other marks between cells, and with one
    name for two columns."""
    table.set_index("path").to_parquet("index.parquet")
    assert built("index.parquet").spec == built().spec
    table[table["label"] != "cat"].assign(path="no.jpg").to_parquet("part.parquet")
    with pytest.raises(UserError, match="row 2: no.jpg is in row 1, too"):
        built("part.parquet")
    Path("mark.jsonl").write_text(table.to_json(orient="records", lines=True), encoding="utf-8-sig")
    assert built("mark.jsonl").spec == built().spec
    table.to_csv("cut.csv", index=False, sep=";")
    with pytest.raises(UserError, match="the cells of its first row are separated by ';'; expected ','"):
        built("cut.csv")
    two = table.rename(columns={"tags": "label"})
    two.to_csv("two.csv", index=False)
    with pytest.raises(UserError, match="data.label_column=label: two.csv has 2 columns of this name"):
        built("two.csv")


def test_paths(table: pd.DataFrame, tmp_path: Path) -> None:
    """Relative to the file, to a root, and absolute ones beside these."""
    Path("there").mkdir()
    table.to_csv("there/labels.csv", index=False)
    with pytest.raises(
        UserError, match="row 1: there is no file pictures/cat/00.jpg; .* data.root .*60 rows"
    ):
        built("there/labels.csv")
    rooted = built("there/labels.csv", root=".")
    table.loc[5, "path"] = f"{tmp_path}/{table['path'][5]}"
    table.to_csv("mixed.csv", index=False)
    mixed = built("mixed.csv")
    for row in (4, 5):
        assert torch.equal(rooted.rows.read(row), mixed.rows.read(row))
        assert mixed.name_of(mixed.rows, row) == rooted.name_of(rooted.rows, row)


def test_images_that_are_left_out(table: pd.DataFrame) -> None:
    Path("list").write_text("pictures/cat/00.jpg\t# twice\n")
    data = built(exclude="list", group_column="patient")
    assert len(data.rows) == 59 and data.row_groups is not None and len(data.row_groups) == 59
    assert data.name_of(data.rows, 0) == "pictures/cat/01.jpg"
    Path("list").write_text("pictures/cat/77.jpg\n")
    with pytest.raises(UserError, match="names 'pictures/cat/77.jpg', which is no image of labels.csv"):
        built(exclude="list")


# Splits and groups


def patients(data: ImageTable, table: pd.DataFrame) -> dict[str, set[str]]:
    of = dict(zip(table["path"], table["patient"], strict=True))
    return {
        split: {of[os.path.relpath(images.name(i))] for i in range(len(images))}
        for split, images in data.sets.items()
    }


@pytest.mark.parametrize("given", [{}, {"folds": 3, "fold": 1}, {"fraction": 0.7}, {"split_column": "part"}])
def test_a_group_is_in_one_split(given: dict[str, Any], table: pd.DataFrame) -> None:
    table["part"] = np.where(table["patient"].str.endswith("4"), "Testing", "train")
    table.to_csv("labels.csv", index=False)
    data = built(group_column="patient", **given)
    data.setup()
    found = patients(data, table)
    assert all(found[one].isdisjoint(found[other]) for one in found for other in found if one < other)
    assert all(len({name[:3] for name in names}) == 3 for names in found.values())  # each class in each
    if "split_column" in given:
        assert found["test"] == {"cat4", "dog4", "fox4"}


# What is wrong with a table


def test_mistakes_of_rows(table: pd.DataFrame) -> None:
    def changed(row: int, **cells: str) -> pd.DataFrame:
        out = table.copy()
        for name, cell in cells.items():
            out.loc[row, name] = cell
        return out

    table["part"] = np.where(table["patient"].str.endswith("4"), "test", "train")
    by_part: dict[str, Any] = {"split_column": "part", "group_column": "patient"}
    assert "wrong.csv, row 8: there is no file nowhere.jpg; paths are relative to" in refused(
        changed(7, path="nowhere.jpg")
    )
    assert refused(changed(7, path="")) == "wrong.csv, row 8: the path in column 'path' is empty"
    assert refused(changed(7, path="./pictures//cat/00.jpg")).startswith(
        "wrong.csv, row 8: ./pictures//cat/00.jpg is in row 1, too"
    )
    assert refused(changed(7, label=" ")) == "wrong.csv, row 8: the label in column 'label' is empty"
    several = refused(table, label_column=["first", "tags"])
    assert "row 1: the label in column 'tags' is empty (12 rows are so)" in several
    several = refused(table.assign(tags="cat"), label_column=["first", "tags"])
    assert "row 1: column 'tags' has 'cat'; of several label columns each is 0 or 1" in several
    assert "row 8: the split 'tran' is unknown; did you mean 'train'?" in refused(
        changed(7, part="tran"), **by_part
    )
    assert "row 8: the group in column 'patient' is empty" in refused(changed(7, patient=""), **by_part)
    message = refused(changed(7, part="val"), **by_part)
    assert (
        message
        == "wrong.csv, row 8: the group 'cat1' is in val, and in train in row 5; a group must be in one split"
    )
    assert "has no row of the split train" in refused(table.assign(part="val"), **by_part)
    assert "column 'label' has 'cat'; expected a finite number (60 rows are so)" in refused(
        table, measures=True
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"path_column": "pth"}, "data.path_column=pth: labels.csv has no such column; did you mean 'path'?"),
        ({"label_column": ["first", "evn"]}, "data.label_column=evn: labels.csv has no such column; did you"),
        ({"group_column": "x"}, "data.group_column=x: labels.csv has no such column; choose one of: even"),
        ({"separator": ";", "measures": True}, "data.separator=;: it is for one column of labels"),
        ({"file": "no.csv"}, "data.file=no.csv: there is no such file; expected .csv or"),
        ({"file": "pictures"}, "data.file=pictures: there is no such file"),
        ({"file": "odd.txt"}, "data.file=odd.txt: expected a file that ends in .csv or .tsv or .parquet"),
        ({"file": "empty.csv"}, "data.file=empty.csv can't be read (No columns to parse from file)"),
        ({"file": "header.csv"}, "data.file=header.csv has no rows"),
        ({"file": "latin.csv"}, "invalid continuation byte); expected a whole .csv file in UTF-8"),
        ({"file": "odd.parquet"}, "data.file=odd.parquet can't be read (Parquet"),
        ({"file": "odd.jsonl"}, "data.file=odd.jsonl can't be read ("),
        ({"file": "ragged.csv"}, "Expected 2 fields in line 3, saw 3"),
    ],
)  # fmt: skip
def test_mistakes(given: dict[str, Any], expected: str, table: pd.DataFrame) -> None:
    for name, content in {"odd.txt": "path,label\n", "empty.csv": "", "header.csv": "path,label\n"}.items():
        Path(name).write_text(content)
    Path("odd.parquet").write_bytes(b"PAR1 is how it begins, but not how it goes on")
    Path("odd.jsonl").write_text('{"path": \n')
    Path("latin.csv").write_text("path,label\na.png,été\n", encoding="latin-1")
    Path("ragged.csv").write_text("path,label\na.jpg,cat\nb.jpg,cat,dog\n")
    with pytest.raises(UserError) as error:
        built(**given)
    assert expected in str(error.value)


def test_no_pyarrow(table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(Path(), table)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="needs the package pyarrow, which is not installed; .*\\[table\\]"):
        built("images.parquet", path_column="image")


def test_one_label_for_a_task_of_several(table: pd.DataFrame, said: Callable[..., str]) -> None:
    message = said(
        "train", "data=table", "data.file=labels.csv", "data.label_column=[first,even]", *SHAPE, "debug=fast"
    )
    assert "task=multilabel" in message


def test_the_choice_of_data(table: pd.DataFrame) -> None:
    check_set("table", "data.file=labels.csv", "data.image_size=24")


def test_a_set_without_its_files_is_refused(table: pd.DataFrame, said: Callable[..., str]) -> None:
    shutil.rmtree("pictures")
    given = ["data=table", "data.file=labels.csv", "data.num_workers=0"]
    assert "there is no file" in said("inspect", *given)

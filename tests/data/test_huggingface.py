"""HuggingFace: local sets of the datasets library, their labels, splits and faults."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from support.sets import check_set
from support.tables import write_hub, write_table

from imgcls.data.table import ImageTable
from imgcls.errors import UserError

datasets: Any = pytest.importorskip("datasets")
from imgcls.data.huggingface import HuggingFace  # noqa: E402

FACTS: dict[str, Any] = {"image_size": 24, "mean": [0.5], "std": [0.25], "num_workers": 0}


@pytest.fixture
def table() -> pd.DataFrame:
    return write_table(Path())


def built(name: str = "hub", **given: Any) -> HuggingFace:
    return HuggingFace(name=name, cache="cache", **FACTS | given)


def test_a_set_is_the_table(table: pd.DataFrame) -> None:
    """From each kind of place the same images and labels as a table of the files has."""
    made = write_hub(Path("hub"), table)
    Path("parquets").mkdir()
    made.select_columns(["image", "label", "patient"]).to_parquet("parquets/train-00000.parquet")
    files = ImageTable(file="labels.csv", group_column="patient", **FACTS)
    files.setup()
    made.select_columns(["image", "label", "patient"]).to_parquet("parquets[1].parquet")
    places = [{"name": name} for name in ("parquets", "parquets/train-00000.parquet", "parquets[1].parquet")]
    for given in ({"label_column": "label"}, *places):
        data = built(**given, group_column="patient")
        data.setup()
        assert data.spec == files.spec
        for split, images in files.sets.items():
            assert torch.equal(data.sets[split].targets, images.targets)
            assert torch.equal(data.sets[split].picture(3), images.picture(3))


def test_several_labels(table: pd.DataFrame) -> None:
    write_hub(Path("hub"), table)
    joined = ImageTable(file="labels.csv", label_column="tags", separator=";", **FACTS)
    data = built(label_column="tags")
    order = [data.spec.class_names.index(name) for name in joined.spec.class_names]
    assert torch.equal(data.rows.targets[:, order], joined.rows.targets)


def test_splits(table: pd.DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    made = write_hub(Path("hub"), table)
    parts = {"train": made, "validation": made.select(range(12, 33)), "extra": made.select(range(5))}
    datasets.DatasetDict(parts).save_to_disk("splits")
    data = built("splits", label_column="label")
    assert "left out beside the splits train, val: extra" in caplog.text
    data.setup()
    assert len(data.sets["val"]) == 21 and len(data.sets["train"]) + len(data.sets["test"]) == 60
    assert data.sets["val"].name(2) == "val/2"
    with pytest.raises(
        UserError, match="splits, row 1 of val: the group 'cat3' is in val, and in train in row 13 of train"
    ) as error:
        built("splits", label_column="label", group_column="patient")
    assert "a group must be in one split" in str(error.value)


def of_parts(made: Any, name: str, **parts: Any) -> HuggingFace:
    """Returns a set of parts in which train is `made`."""
    datasets.DatasetDict({"train": made, **parts}).save_to_disk(name)
    data = built(name, label_column="label")
    data.setup()
    return data


def test_a_part_without_labels(table: pd.DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    """A challenge's test is left out, and said to be: with -1, with null, without the column."""
    made = write_hub(Path("hub"), table)
    few = made.select(range(9)).remove_columns("label")
    for i, labels in enumerate(([-1] * 9, [None] * 9, None)):
        test = few if labels is None else few.add_column("label", labels).cast(made.features)
        data = of_parts(made, f"bare{i}", test=test)
        assert "left out, as no image there has a label: test; train is cut for it" in caplog.text
        assert len(data.sets["test"]) == 12 and min(data.sets["test"].targets) == 0
        caplog.clear()
    with pytest.raises(
        UserError, match="row 1 of test: the label in column 'label' is empty \\(3 rows are so\\)"
    ):
        of_parts(made, "some", test=few.add_column("label", [-1] * 3 + [1] * 6).cast(made.features))


def test_two_names_of_a_split(table: pd.DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    made = write_hub(Path("hub"), table)
    data = of_parts(made, "two", validation=made, val=made.select(range(0, 60, 2)))
    assert len(data.sets["val"]) == 30
    assert "left out beside the splits train, val: validation" in caplog.text
    other = made.cast_column("label", datasets.ClassLabel(names=["dog", "fox", "cat"]))
    with pytest.raises(UserError, match="the splits train, test don't fit together .* expected the same"):
        of_parts(made, "other", test=other)


def test_lists_with_an_unknown_label(table: pd.DataFrame) -> None:
    """Of -1, which would be the last class."""
    made = write_hub(Path("hub"), table).remove_columns("tags")
    names = datasets.List(datasets.ClassLabel(names=["cat", "dog", "fox"]))
    for i, odd in enumerate(([-1], [1, None])):
        features = datasets.Features({**made.features, "tags": names})
        made.add_column("tags", [[0], odd, *[[1, 2]] * 58]).cast(features).save_to_disk(f"odd{i}")
        with pytest.raises(UserError, match="row 2: the list in column 'tags' has an empty label, or one of"):
            built(f"odd{i}", label_column="tags")


def test_mistakes(table: pd.DataFrame) -> None:
    made = write_hub(Path("hub"), table)
    made.add_column("unknown", [None, *[1] * 59]).cast_column("unknown", made.features["label"]).save_to_disk(
        "gap"
    )
    Path("empty").mkdir()
    for given, expected in (
        ({}, "data.label_column: the columns label, tags are of the type ClassLabel; name one"),
        (
            {"label_column": "lable"},
            "data.label_column=lable: there is no such column; did you mean 'label'?",
        ),
        ({"image_column": "x"}, "data.image_column=x: there is no such column"),
        (
            {"image_column": "label", "label_column": "label"},
            "data.image_column=label: the column is of Class",
        ),
        ({"name": "gap", "label_column": "unknown"}, "gap, row 1: the label in column 'unknown' is empty"),
        ({"name": "./nowhere"}, "data.name=./nowhere: there is no such folder or file"),
        ({"name": "owner/set", "download": False}, "data.name=owner/set: there is no such folder or file"),
        ({"name": "empty"}, "data.name=empty can't be read ("),
    ):
        with pytest.raises(UserError) as error:
            built(**given)
        assert expected in str(error.value)


def test_the_choice_of_data(table: pd.DataFrame) -> None:
    write_hub(Path("hub"), table)
    check_set(
        "huggingface", "data.name=hub", "data.label_column=label", "data.image_size=24", "data.cache=cache"
    )


def test_the_librarys_streaming_is_not_taken(said: Callable[..., str]) -> None:
    """It shuffles in a buffer that a run can't go on from: a set is packed for it."""
    message = said("train", "data=huggingface", "data.name=x", "data.streaming=true", "debug=fast")
    assert "write imgcls pack data=huggingface format=litdata …, and train with data=streaming" in message


def test_no_datasets(monkeypatch: pytest.MonkeyPatch, said: Callable[..., str]) -> None:
    monkeypatch.delitem(sys.modules, "imgcls.data.huggingface")
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = said("train", "data=huggingface", "data.name=hub", "debug=fast")
    assert "this data needs datasets, which is not installed" in message

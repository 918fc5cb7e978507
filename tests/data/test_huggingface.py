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
    for given in ({"label_column": "label"}, {"name": "parquets"}, {"name": "parquets/train-00000.parquet"}):
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
        UserError, match="splits, row 61: the group 'cat3' is in val, and in train in row 13"
    ) as error:
        built("splits", label_column="label", group_column="patient")
    assert "a group must be in one split" in str(error.value)


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


def test_no_datasets(monkeypatch: pytest.MonkeyPatch, said: Callable[..., str]) -> None:
    monkeypatch.delitem(sys.modules, "imgcls.data.huggingface")
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = said("train", "data=huggingface", "data.name=hub", "debug=fast")
    assert "this data needs datasets, which is not installed" in message

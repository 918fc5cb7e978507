"""What training refuses, pack and inspect refuse with the same words."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.pictures import write_picture


def pictures(**counts: int) -> None:
    for name, count in counts.items():
        Path("set", name.replace("__", "/")).mkdir(parents=True)
        for i in range(count):
            write_picture(Path("set", name.replace("__", "/"), f"{i}.png"), seed=i)


def table(rows: str) -> None:
    pictures(a=8)
    Path("set/table.csv").write_text("path,label,split,group\n" + rows)


FOLDER = ["data=imagefolder", "data.root=set"]
TABLE = ["data=table", "data.file=set/table.csv", "data.split_column=split", "data.group_column=group"]
GROUPS = "".join(f"a/{i}.png,{'xy'[i % 2]},{'train' if i < 5 else 'val'},{i // 2}\n" for i in range(8))
TWICE = "".join(f"a/{i}.png,{'xy'[i % 2]},train,{i}\n" for i in range(8)) + "a/0.png,x,val,9\n"


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda: pictures(a=8), "the data has 1 class"),
        (lambda: pictures(a=8, b=0), "holds no image"),
        (lambda: pictures(a=8, b=1), "the train split has no image of 1 of 2 classes (b)"),
        (lambda: pictures(train__a=4, train__b=4, val__a=2, val__c=2), "has the class 'c', which"),
        (lambda: pictures(val__a=4, val__b=4), "no train folder"),
        (lambda: table(GROUPS), "group"),
        (lambda: table(TWICE), "expected each image once"),
    ],
)
def test_the_same_words(
    write: Callable[[], None],
    words: str,
    here: Callable[..., None],
    said: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write()
    data = [*(TABLE if Path("set/table.csv").exists() else FOLDER), "data.num_workers=0"]
    refused = said("train", *data, "trainer=cpu").removeprefix("imgcls train: ")
    assert words in refused
    assert said("pack", *data, "out=packed") == f"imgcls pack: {refused}" and not Path("packed").exists()
    try:
        here("inspect", *data, "hydra.run.dir=seen")
    except SystemExit as ended:  # a table that can't be read
        assert ended.code == f"imgcls inspect: {refused}"
        return
    assert json.loads(Path("seen/inspect.json").read_text())["training_refuses"] == refused
    assert f"training refuses this data: {refused}" in "".join(capsys.readouterr()).replace("\n", "")

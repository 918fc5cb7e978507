"""Paths are written as in a shell, whatever is in them, for every key and verb."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from support.pictures import write_picture

from imgcls.config.paths import expand, quoted

AS_THEY_ARE = [
    "~/pics", "/a b/c", "a=b,c", "it's", "it\\'s", "back\\", "x\\y", "2024", "1e5", "-3", "true", "ünï/ö",
    "..", "./x", "-", "*.jpg", "[old] pics", "pics (1)", "{a,b}.png", "s3://b/x?y=1",
    "a#b!c%d@e:f;g&h<i>j|k^l`m", "runs/${now:%Y}", "'tis",
]  # fmt: skip


def parsed(word: str) -> Any:
    return OverridesParser.create().parse_override(word)


@pytest.mark.parametrize("sign", ["", "+", "++"])
@pytest.mark.parametrize("value", AS_THEY_ARE)
def test_a_path_is_taken_as_it_is(sign: str, value: str) -> None:
    (word,) = quoted([f"{sign}data.root={value}"])
    assert parsed(word).value() == value
    assert quoted([word]) == [word]  # ranks and jobs are given it again


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("data.root='~/a b'", "~/a b"),
        ('data.root="~/a b"', "~/a b"),
        ("data.exclude=null", None),
        ("runs=[a,~/b c]", ["a", "~/b c"]),
        ("runs=[${oc.env:A,b},c]", ["${oc.env:A,b}", "c"]),
        ("where=lr<0.1,backbone=resnet20", "lr<0.1,backbone=resnet20"),
        ("optimizer.lr=1e-3", 1e-3),  # no path
    ],
)
def test_what_hydras_grammar_has_already(word: str, value: Any) -> None:
    assert parsed(quoted([word])[0]).value() == value


@pytest.mark.parametrize(
    ("value", "jobs"),
    [
        ("~/a b,it's", ["'~/a b'", "'it\\'s'"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("choice(a,b)", ["a", "b"]),
        ("${oc.env:DATA,/x}", ["'${oc.env:DATA,/x}'"]),
        ("${oc.env:A,${oc.env:B,${c}}}/d,e", ["'${oc.env:A,${oc.env:B,${c}}}/d'", "e"]),
        ("${a,b", ["'${a'", "b"]),
    ],
)
def test_a_comma_parts_jobs(value: str, jobs: list[str]) -> None:
    override = parsed(quoted(["-m", f"data.root={value}"])[1])
    many = override.is_sweep_override()
    assert (list(override.sweep_string_iterator()) if many else [override.get_value_element_as_str()]) == jobs


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config: dict[str, Any] = {
        "data": {"root": "~/a", "name": "~/b"},
        "runs": ["~/c", "d"],
        "logger": {"csv": {"save_dir": "~/e"}},
    }
    config |= {"out": None, "source": "~nobody-of-this-name/x", "trainer": {"default_root_dir": "~"}}
    assert expand(config) == {
        "data": {"root": "/home/me/a", "name": "~/b"}, "runs": ["/home/me/c", "d"], "out": None,
        "logger": {"csv": {"save_dir": "/home/me/e"}}, "source": "~nobody-of-this-name/x",
        "trainer": {"default_root_dir": "/home/me"},
    }  # fmt: skip
    assert quoted(["hydra.run.dir=~/a,b", "-m"]) == ["hydra.run.dir='/home/me/a,b'", "-m"]


ODD = "it's, a=b"
KEYS = {
    f"train data=imagefolder data.root=~/{ODD}": f"data.root=HOME/{ODD}: there is no such folder",
    f"train data=imagefolder data.root=pictures data.exclude=~/{ODD}": (
        f"data.exclude=HOME/{ODD} can't be read"
    ),
    f"train backbone.weights=~/{ODD}": f"weights=HOME/{ODD}: there is no such file",
    f"train callbacks=distillation callbacks.distillation.teacher=~/{ODD}": (
        f"=HOME/{ODD}: there is no such file"
    ),
    "train callbacks=distillation backbone@callbacks.distillation.backbone=simple_cnn "
    f"callbacks.distillation.backbone.weights=~/{ODD}": f"weights=HOME/{ODD}: there is no such file",
    f"eval checkpoint=x features=~/{ODD}": f"features=HOME/{ODD}: expected a file name that ends in .npz",
    f"train resume=~/{ODD}": f"resume=~/{ODD}: there is no run in it",
    "train -m data=imagefolder data.root=~/it's seed=1,2": "data.root=HOME/it's: there is no such folder",
    f"bench data=imagefolder data.root=~/{ODD}": f"data.root=HOME/{ODD}: there is no such folder",
    f"eval checkpoint=~/{ODD}": f"checkpoint=HOME/{ODD}: there is no such file",
    f"predict checkpoint=x source=~/{ODD}": f"source=HOME/{ODD}: there is no such file",
    f"export out=x.onnx checkpoint=~/{ODD}": f"checkpoint=HOME/{ODD}: there is no such file",
    f"inspect data.root=~/{ODD}": f"data.root=HOME/{ODD}: there is no such folder",
    f"reproduce run=~/{ODD}": f"run=HOME/{ODD}: there is no run in it",
    f"compare runs=~/{ODD}": f"runs=HOME/{ODD}: there is no such folder",
}


@pytest.mark.parametrize("given", list(KEYS))
def test_keys_of_all_verbs(
    said: Callable[..., str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    words = [word.replace("\0", " ") for word in given.replace(ODD, ODD.replace(" ", "\0")).split(" ")]
    assert KEYS[given].replace("HOME", str(tmp_path / "home")) in said(*words)
    assert not Path("~").exists()


def test_directories_that_are_made(
    here: Callable[..., None], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder.rename(tmp_path / ODD)
    short = ("data.num_workers=0", "data.image_size=32", "samples=1")
    here("inspect", f"data.root=~/{ODD}", "hydra.run.dir=~/r, s", *short)
    assert (tmp_path / "r, s" / "inspect.json").is_file()
    (tmp_path / "conf" / "local").mkdir(parents=True)
    local = "# @package _global_\ndata: {root: ~/it's, a=b}\nhydra: {run: {dir: ~/t u}}\n".replace(
        "it's, a=b", '"it\'s, a=b"'
    )
    (tmp_path / "conf" / "local" / "default.yaml").write_text(local.replace('~/"', '"~/'))
    here("inspect", "--config-dir=~/conf", *short)
    assert (tmp_path / "t u" / "inspect.json").is_file() and not Path("~").exists()


def test_an_image_with_a_comma_in_its_name(said: Callable[..., str]) -> None:
    write_picture(Path("a, b.png"))
    assert "checkpoint=nowhere" in said("predict", "checkpoint=nowhere", "source=a, b.png")

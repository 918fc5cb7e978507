"""Help: what is said of verbs, groups and keys, and that it is what the types and files say."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field
from support.command import imgcls

from imgcls.__main__ import VERBS
from imgcls.config.conf_files import files
from imgcls.config.help import composed, keys
from imgcls.config.signatures import parameters
from imgcls.data.imagefolder import ImageFolder

Said = Callable[..., str]
WITH_CONFIG = [verb for verb in VERBS if verb != "new"]
Aliased = Annotated[int, Field(ge=1, le=9)]


class Base:
    """A base.

    Args:
        size: what it is
            in two lines. Not this.
    """

    def __init__(self, size: "Aliased | None", *, kind: Literal["a", "b"] = "a") -> None: ...


class Derived(Base):
    """Takes what its base does.

    Args:
        share, other: two at once.
    """

    def __init__(
        self, share: Annotated[float, Field(gt=0, lt=1)], other: list[int], **common: object
    ) -> None:
        super().__init__(1)


def test_parameters_are_read_from_source() -> None:
    found = parameters(f"{__name__}.Derived")
    assert {name: parameter.takes for name, parameter in found.items()} == {
        "size": "integer from 1 to 9 or null",
        "kind": "a, b",
        "share": "number above 0 below 1",
        "other": "list of integers",
    }
    assert found["size"].phrase == "what it is in two lines"
    assert found["share"].phrase == found["other"].phrase == "two at once"
    assert parameters("nowhere.at.all") == {} == parameters("torch.nothing")


@pytest.mark.parametrize(
    ("target", "name", "takes"),
    [
        ("torch.optim.SGD", "nesterov", "true, false"),
        ("lightning.pytorch.Trainer", "max_epochs", "integer or null"),
        ("imgcls.data.imagefolder.ImageFolder", "interpolation", "nearest, bilinear, bicubic or null"),
        ("imgcls.data.digits.Digits", "batch_size", "integer from 1"),
        ("torchvision.transforms.v2.RandAugment", "magnitude", "integer"),
    ],
)
def test_parameters_of_what_the_config_calls(target: str, name: str, takes: str) -> None:
    assert parameters(target)[name].takes == takes


def test_the_parameters_are_those_of_the_signature() -> None:
    from imgcls.config.check import hints_of

    assert hints_of(ImageFolder)[0].keys() - parameters("imgcls.data.imagefolder.ImageFolder").keys() == set()


@pytest.mark.parametrize("verb", WITH_CONFIG)
def test_help_of_a_verb_has_all_its_keys(
    verb: str, here: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    here(verb, "--help")
    said = capsys.readouterr().out
    config = composed(verb, [])
    for key in keys(verb, config):
        assert f"  {key.name}=" in said or key.value == "{}", key.name
    for key, value in yaml.safe_load(files("")[verb].read_text()).items():
        if key not in ("defaults", "hydra") and not isinstance(value, dict):
            assert f"  {key}=" in said or key in ("run_dir", "cwd"), key
    assert max(map(len, said.splitlines())) <= 140


def test_help_takes_choices_into_account(
    here: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    here("train", "data=imagefolder", "optimizer=sgd", "--help")
    said = capsys.readouterr().out
    assert "data.on_error=raise" in said and "optimizer.momentum=0.9" in said and "*imagefolder" in said
    assert "[raise, skip]" in said and not list(Path().iterdir())


def test_help_answers_within_a_second() -> None:
    """Of processor time: others may use the machine too."""
    for arguments in (["train", "--help"], ["help", "optimizer.lr"]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert imgcls(*arguments).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


KEYS = [
    (
        "optimizer.lr",
        ["takes       number", "conf/optimizer/adamw.yaml, line 3", "sgd: 0.1", "imgcls train optimizer"],
    ),
    ("trainer.precision", ["bf16-mixed", "also in     eval, predict"]),
    ("data.root", ["conf/data/", "imgcls train data="]),
    ("callbacks.ema.decay", ["imgcls train 'callbacks=[ema]' callbacks.ema.decay=0.999"]),
    ("sweep.n_trials", ["in all, those of earlier starts", "imgcls train -m sweep="]),
    ("backbone.lora.r", ["integer from 1", "imgcls train finetune=lora backbone.lora.r=8"]),
    ("augment.mixup", ["augment.mixup.alpha=0.2", "augment.mixup.probability=0.0", "mix: 0.5"]),
    ("optimizer", ["adamw", "torch.optim.AdamW", "You et al. 2019"]),
    ("knn", ["imgcls eval 'knn=…'", "nearest images"]),
    ("hydra.run.dir", ["the directory of a run"]),
    ("compare", ["runs=???"]),
    ("optimizer.lr=0.3", ["optimizer.lr=0.002"]),
]


@pytest.mark.parametrize(("word", "expected"), KEYS)
def test_help_of_a_key(
    word: str, expected: list[str], here: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    here("help", word)
    said = " ".join(capsys.readouterr().out.split())
    assert all(" ".join(words.split()) in said for words in expected), said


def test_help_of_what_is_not_there(said: Said) -> None:
    assert said("help", "lr") == "imgcls help lr: there is no such key; write optimizer.lr=…"
    assert "did you mean 'optimizer.lr'?" in said("help", "optimzer.lr")


def test_paths_are_completed(tmp_path: Path) -> None:
    for name in ("pictures", "plain.pth"):
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).touch()

    def completed(line: str) -> list[str]:
        return imgcls("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line))).stdout.split()

    assert completed("imgcls train data.root=p") == ["data.root=pictures/", "data.root=plain.pth"]
    assert completed(f"imgcls train backbone.weights={tmp_path}/pl") == [
        f"backbone.weights={tmp_path}/plain.pth"
    ]
    assert completed("imgcls train optimizer=sg") == ["optimizer=sgd"]

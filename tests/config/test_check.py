"""From a config to objects: names, types, and the one line where something is wrong."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest.mock import patch

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from pydantic import Field

from imgcls.augment.settings import Augment, Mix
from imgcls.config.build import build
from imgcls.config.check import arguments, check, locate, plain, typed
from imgcls.config.command_line import check_groups, check_keys, explain, take_unchosen
from imgcls.config.paths import CONF
from imgcls.engine.run_directory import put
from imgcls.errors import UserError, nearest

SGD = "torch.optim.SGD"
AUGMENT = "imgcls.augment.settings.Augment"


def refused(function: Callable[..., Any], *given: Any, **named: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*given, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# locate


@pytest.mark.parametrize(("name", "found"), [(SGD, torch.optim.SGD), ("imgcls.config.check.locate", locate)])
def test_locate(name: str, found: Any) -> None:
    assert locate(name) is found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch.optim.SGDD", "x=torch.optim.SGDD: no 'SGDD' there; did you mean 'SGD'?"),
        ("torch.optimm.SGD", "x=torch.optimm.SGD: no 'optimm' there; did you mean 'optim'?"),
        ("toch.optim.SGD", "x=toch.optim.SGD: there is no package 'toch'; correct the name or install it"),
        ("torch.optim", "x=torch.optim is no class or function"),
        ("torch.__version__", "x=torch.__version__ is no class or function"),
        ("sgd", "x=sgd: expected a dotted name such as torch.optim.SGD"),
        ("", "x=: expected a dotted name such as torch.optim.SGD"),
        (None, "x=None: expected a dotted name such as torch.optim.SGD"),
        (5, "x=5: expected a dotted name such as torch.optim.SGD"),
        pytest.param(f".{SGD}", f"x=.{SGD}: expected a dotted name such as torch.optim.SGD"),
    ],
)
def test_locate_nothing(name: Any, message: str) -> None:
    assert refused(locate, name, "x") == message


def test_a_module_that_needs_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy.py").write_text("import not_installed_here\n\n\nclass Network: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = "x=needy.Network needs the package not_installed_here, which is not installed"
    assert refused(locate, "needy.Network", "x") == message
    sys.modules.pop("needy", None)


# typed


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (5, int, 5),
        (1, float, 1.0),
        (True, bool, True),
        (None, int | None, None),
        ("a", Literal["a", "b"], "a"),
        ([1, 2], tuple[float, float], (1.0, 2.0)),
        ([0.1], list[float], [0.1]),
        ("runs", Path, Path("runs")),
        ({"alpha": 1}, Mix, Mix(1.0)),
        ({"mixup": {"probability": 0.5}}, Augment, Augment(mixup=Mix(1.0, 0.5))),
        ("anything", Any, "anything"),
    ],
)
def test_typed(value: Any, hint: Any, expected: Any) -> None:
    got = typed(value, hint, "x")
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "begin", "phrase"),
    [
        ("abc", int, "data.x=abc: ", "integer"),
        (5.5, int, "data.x=5.5: ", "integer"),
        (None, int, "data.x=None: ", "integer"),
        ("abc", int | None, "data.x=abc: ", ""),
        ("abc", int | float | None, "data.x=abc: ", "expected a number or null"),
        ("c", Literal["a", "b"], "data.x=c: ", "'a' or 'b'"),
        ([1, 2, 3], tuple[float, float], "data.x=[1, 2, 3]: ", "at most 2 items"),
        ([1, "b"], list[int], "data.x=[1, 'b']: ", "integer"),
        (3, str, "data.x=3: ", "string"),
        ({"alpha": "b"}, Mix, "data.x.alpha=b: ", "number"),
        ({"mixup": {"alpha": "b"}}, Augment, "data.x.mixup.alpha=b: ", "number"),
        ({"alpha": "b", "probability": "c"}, Mix, "data.x.alpha=b: ", "number"),
    ],
)
def test_wrong_types(value: Any, hint: Any, begin: str, phrase: str) -> None:
    message = refused(typed, value, hint, "data.x")
    assert message.startswith(begin) and phrase in message


def test_an_unknown_key_of_a_nested_dataclass() -> None:
    assert "alhpa" in refused(build, {"_target_": AUGMENT, "mixup": {"alhpa": 0.2}}, "augment")


# arguments, check, build


def test_arguments_are_checked_and_converted() -> None:
    node = {
        "_target_": AUGMENT,
        "crop": "resized",
        "scale": [0.5, 1],
        "mixup": {"alpha": 0.2, "probability": 0.1},
    }
    assert arguments(node, "augment") == {"crop": "resized", "scale": (0.5, 1.0), "mixup": Mix(0.2, 0.1)}
    assert build(node, "augment") == Augment(crop="resized", scale=(0.5, 1.0), mixup=Mix(0.2, 0.1))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"_target_": AUGMENT, "cropp": "none"},
            f"a.cropp: {AUGMENT} takes no 'cropp'; did you mean 'crop'?",
        ),
        ({"_target_": AUGMENT, "flip": "often"}, "a.flip=often: "),
        ({"_target_": AUGMENT, "crop": "big"}, "a.crop=big: "),
        ({"_target_": SGD, "lrr": 1}, f"a.lrr: {SGD} takes no 'lrr'; did you mean 'lr'?"),
        ({"_target_": "lightning.pytorch.Trainer", "max_epochs": "abc"}, "a.max_epochs=abc: "),
        ({"_target_": "torch.optim.SGDD"}, "a._target_=torch.optim.SGDD: "),
    ],
)
def test_what_does_not_fit_is_said_by_check_and_by_build(node: dict[str, Any], message: str) -> None:
    assert refused(check, {"a": node}).startswith(message)
    assert refused(check, node, "a").startswith(message)
    assert refused(build, node, "a").startswith(message)


def test_check_goes_down_and_leaves_alone_what_is_no_call() -> None:
    check({"seed": 0, "optimizer": {"_target_": SGD, "lr": 0.1}, "any": {"thing": {"lrr": 1}}})
    message = refused(check, {"b": {"c": {"_target_": SGD, "momentun": 0.9}}})
    assert message == f"b.c.momentun: {SGD} takes no 'momentun'; did you mean 'momentum'?"


def keywords(first: int, **others: Any) -> dict[str, Any]:
    return {"first": first, **others}


def test_a_target_that_takes_any_keyword() -> None:
    node = {"_target_": f"{__name__}.keywords", "first": 1, "second": "b"}
    assert build(node, "x", third=3) == {"first": 1, "second": "b", "third": 3}
    assert refused(build, {**node, "first": "a"}, "x").startswith("x.first=a: ")


def test_what_the_target_itself_says() -> None:
    message = "augment.mixup.probability + cutmix.probability=2.0: expected a number from 0 to 1"
    both = {"mixup": {"probability": 1.0}, "cutmix": {"probability": 1.0}}
    assert refused(build, {"_target_": AUGMENT, **both}, "augment") == message


def raises(kind: str) -> None:
    raise {"type": TypeError, "key": KeyError, "assert": AssertionError}[kind]("no\nsuch thing")


@pytest.mark.parametrize(
    ("kind", "name"), [("type", "TypeError"), ("key", "KeyError"), ("assert", "AssertionError")]
)
def test_whatever_a_constructor_raises_is_a_line(kind: str, name: str) -> None:
    message = refused(build, {"_target_": f"{__name__}.raises", "kind": kind}, "data")
    assert message.startswith(f"data._target_={__name__}.raises: {name}: ")
    assert message.endswith("the traceback is in run.log")


def test_an_argument_that_is_missing() -> None:
    assert "size" in refused(build, {"_target_": "torchvision.transforms.v2.Resize"}, "augment.image.policy")


# plain


def test_plain() -> None:
    config = OmegaConf.create({"a": 1, "b": "${a}", "c": {"d": ["${c.e}"], "e": "x"}, "f": None})
    got = plain(config)
    assert got == {"a": 1, "b": 1, "c": {"d": ["x"], "e": "x"}, "f": None}
    assert type(got) is dict and type(got["c"]) is dict and type(got["c"]["d"]) is list


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"data": {"root": "???"}}, "data.root must be given: data.root=…"),
        ({"b": "???", "a": {"c": "???"}}, "a.c must be given: a.c=…"),
        ({"a": "${nope:1}"}, "a: Unsupported interpolation type nope"),
    ],
)
def test_plain_of_what_is_missing(config: dict[str, Any], message: str) -> None:
    assert refused(plain, OmegaConf.create(config)) == message


@pytest.mark.parametrize(
    "config", [{"a": {"b": "${nowhere}"}}, {"a": {"b": "${.c}"}}, {"a": {"b": "${a.b}"}}]
)
def test_interpolation_to_nowhere(config: dict[str, Any]) -> None:
    assert refused(plain, OmegaConf.create(config)).startswith("a.b: ")


# explain


@pytest.fixture
def conf() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF)):
        yield


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", "optimizer.lrr: there is no such key; did you mean 'lr'?"),
        ("seeed=1", "seeed: there is no such key; did you mean 'seed'?"),
        ("dta=cifar10", "dta: there is no such key; did you mean 'data'?"),
        ("data=cifar11", "data=cifar11: there is no such choice; did you mean 'cifar10'?"),
        ("data=qqqqqqq", "data=qqqqqqq: there is no such choice; choose one of: cifar10, cifar100, digits"),
        ("optimizer.lr=[", "optimizer.lr=[: "),
        ("data.root", "data.root: "),
        ("~nope", "Could not delete from config. 'nope' does not exist."),
        ("+seed=3", "Could not append to config. An item is already at 'seed'."),
    ],
)
def test_explain(override: str, message: str) -> None:
    with pytest.raises(Exception) as caught:
        compose("train", overrides=[override])
    said = explain(caught.value)
    assert said.startswith(message) and "\n" not in said


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "callbacks.early_stopping.patience=3",
            "callbacks.early_stopping: it is not chosen; write callbacks=[early_stopping]",
        ),
        ("logger.mlflow.run_name=x", "logger.mlflow: it is not chosen; write logger=[csv,wandb,mlflow]"),
        (
            "callbacks.finetune.body_lr=1",
            "callbacks.finetune: it is not chosen; write finetune=…; choose one of: bitfit, gradual",
        ),
        (
            "callbacks.mine._target_=x.Y",
            "callbacks.mine: there is no such key; a + in front of it adds it",
        ),
        ("callbacks=[default,ema]", "callbacks=default: there is no such choice; what it had is"),
    ],
)  # fmt: skip
def test_a_part_that_is_not_chosen(override: str, message: str) -> None:
    with pytest.raises(Exception) as caught:
        compose("train", overrides=[override])
    assert explain(caught.value).startswith(message)


KEYS = "every_minutes, filename, flush_every_n_steps, flush_seconds, gradient_norm, mode, monitor"
KEYS += ", on_nonfinite, … (10 in all)"


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("callbacks.checkpoint.monitor", "write recovery.monitor=…"),
        ("callbacks.checkpoint.dirpath", f"write recovery.…; choose one of: {KEYS}"),
        ("callbacks.safeguard.every_minutes", "write recovery.every_minutes=…"),
        ("callbacks.progress.refresh_seconds", "write recovery.refresh_seconds=…"),
        ("trainer.on_nonfinite", "write recovery.on_nonfinite=…"),
        ("trainer.on_oom", "find a size that fits with tune=batch_size"),
    ],
)
def test_keys_of_before(key: str, advice: str) -> None:
    """On the command line, with a + or from a file, and where a run is resumed."""
    with pytest.raises(Exception) as caught:
        compose("train", overrides=[f"{key}=1"])
    assert explain(caught.value) == f"{key}: there is no such key; {advice}"
    group, *names = key.split(".")
    if group == "callbacks":
        parts = {group: {names[0]: {names[1]: 1}}}
        assert refused(take_unchosen, parts, [f"+{key}=1"]).endswith(f"it is not chosen; {advice}")
    run: dict[str, Any] = {"callbacks": {}, "trainer": {}, "recovery": {}}
    message = refused(put, run, {"callbacks": {names[0]: {names[-1]: 1}}}, f"++{key}=1")
    assert message == f"{key}: the run has no such key; {advice}"


@pytest.mark.usefixtures("conf")
def test_a_callback_may_have_a_name_of_before() -> None:
    own = ["+callbacks.checkpoint._target_=lightning.pytorch.callbacks.ModelCheckpoint"]
    config: dict[str, Any] = {"callbacks": dict(compose("train", overrides=own).callbacks)}
    assert take_unchosen(config, own) == [] and "checkpoint" in config["callbacks"]


def test_settings_of_parts_that_are_not_chosen() -> None:
    def parts() -> dict[str, Any]:
        return {
            "callbacks": {"ema": {"_target_": "x"}, "early_stopping": {"patience": 3}},
            "logger": {"wandb": None, "mlflo": {"a": 1}},
        }

    config = parts()
    assert take_unchosen(config, ["seed=1", "callbacks.ema.decay=0.9"]) == [
        "callbacks.early_stopping: its settings are not used, because it is not chosen; "
        "write callbacks=[ema,early_stopping]",
        "logger.mlflo: its settings are not used, because it is not chosen; there is nothing to choose from",
    ]
    assert config == {"callbacks": {"ema": {"_target_": "x"}}, "logger": {"wandb": None}}
    message = refused(take_unchosen, parts(), ["+callbacks.early_stopping.patience=3"])
    assert message == "callbacks.early_stopping: it is not chosen; write callbacks=[ema,early_stopping]"


@pytest.mark.parametrize(
    "word", ["true", "False", "3", "-1", "1_0", "+5", "1.", ".5", "1e5", "-.5e-3", "inf", "NaN"]
)
def test_what_is_no_name_of_a_choice(word: str) -> None:
    for given in (f"debug={word}", f"callbacks=[{word}]"):
        assert "there is no such choice; choose one of: " in refused(check_groups, "train", ["seed=1", given])


@pytest.mark.parametrize(
    "word", ["2024_base", "3d_scans", "1.5.0", "007", "1e", "-x", "+x", ".x", "infer", "1-2"]
)
def test_a_name_that_begins_like_a_number(word: str) -> None:
    check_groups("train", [f"experiment={word}", f"data={word}", f"callbacks=[{word}]"])


@pytest.mark.parametrize("root", ["train", "bench"])
def test_null_where_it_is_the_default(root: str) -> None:
    """Hydra would refuse it."""
    assert check_groups(root, ["experiment=null", "debug=fast", "seed=1", "debug=null", "sweep=null"]) == [
        "seed=1"
    ]
    assert check_groups(root, ["debug=null", "debug=fast"]) == ["debug=fast"]
    assert "debug=null,fast: null is no choice" in refused(check_groups, root, ["-m", "debug=null,fast"])
    assert "data=null: null is no choice" in refused(check_groups, root, ["data=null"])
    together = refused(check_groups, root, ["finetune=[lora,bitfit]"])
    assert together == "finetune=[lora,bitfit]: these can't go together; choose lora or bitfit"
    assert check_groups(root, words := ["-m", "finetune=lora,bitfit"]) == words
    assert check_groups("eval", ["data=null"]) == []


# top-level keys


def whole(root: str, *overrides: str) -> Any:
    return compose(root, overrides=list(overrides), return_hydra_config=True)


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize("root", sorted({path.stem for path in CONF.glob("*.yaml")} - {"wandb_sweep"}))
def test_unknown_keys_of_a_command_line(root: str) -> None:
    check_keys(whole(root))
    assert refused(check_keys, whole(root, "+foo.bar=1")).startswith("foo: there is no such key; ")
    check_keys(whole(root, "+foo=1", "++hydra.job.env_set.FOO='${foo}'"))  # it is used


@pytest.mark.usefixtures("conf")
def test_other_roots_are_not_read_for_known_keys() -> None:
    """To read all of them takes half of the time in which a command starts."""
    config = whole("train", "seed=1")
    with patch("imgcls.config.command_line.yaml.safe_load", wraps=yaml.safe_load) as load:
        check_keys(config)
    assert 0 < load.call_count < 5


@pytest.mark.usefixtures("conf")
def test_keys_of_another_verb() -> None:
    assert refused(check_keys, whole("predict", "+seed=1")).startswith(
        "seed: there is no such key; choose one of: "
    )
    assert refused(check_keys, whole("train", "+optimiser.lr=1")).endswith("did you mean 'optimizer'?")
    check_keys(
        whole("bench", "seed=1", "+optimizer.foreach=true", "+callbacks.mine._target_=x.Y", "sweep=seeds")
    )


def test_unknown_keys_of_a_file(tmp_path: Path) -> None:
    """A file of the local group is for all verbs: it may hold keys that only some of them have."""
    for name, text in {
        "common": "compile: true\ndata: {num_workers: 1}",
        "typo": "optimiser: {lr: 1}",
    }.items():
        path = tmp_path / "local" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# @package _global_\n{text}\n")
    (tmp_path / "mine.yaml").write_text("defaults: [train, _self_]\nfolder: x\n")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF)):
        place = f"hydra.searchpath=[file://{tmp_path}]"
        check_keys(whole("predict", place, "local=common"))
        message = refused(check_keys, whole("train", place, "local=typo"))
        assert (
            message
            == "optimiser: there is no such key (a file of the config sets it); did you mean 'optimizer'?"
        )
    GlobalHydra.instance().clear()
    (tmp_path / "local" / "typo.yaml").unlink()
    with initialize_config_dir(str(tmp_path)):
        check_keys(whole("mine", f"hydra.searchpath=[file://{CONF}]", "folder=y"))


@pytest.mark.parametrize(
    "text", [b"a: 1\n---\nb: 2\n", b"- a\n", b"text", b"", b"a: [", b"\xff\xfe\x00", b"defaults: 3"]
)
def test_files_beside_the_configs_that_are_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "other.yaml").write_bytes(text)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF)):
        config = whole("train", f"hydra.searchpath=[file://{tmp_path}]", "+foo=1")
        assert refused(check_keys, config).startswith("foo: there is no such key; ")
        OmegaConf.set_struct(config, False)
        config.other = 1  # of no root config, and not of the command line
        del config.foo
        config.hydra.overrides.task = []
        assert "(a file of the config sets it)" in refused(check_keys, config)


# nearest


@pytest.mark.parametrize(
    ("word", "choices", "expected"),
    [
        ("dgits", ["digits", "cifar10"], "did you mean 'digits'?"),
        ("xyz", ["digits", "cifar10"], "choose one of: cifar10, digits"),
        ("xyz", list("abcdefghijk"), "choose one of: a, b, c, d, e, f, g, h, … (11 in all)"),
        ("xyz", [], "there is nothing to choose from"),
    ],
)
def test_nearest(word: str, choices: list[str], expected: str) -> None:
    assert nearest(word, choices) == expected


# bounds and numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite_anywhere(value: float) -> None:
    assert (
        refused(plain, OmegaConf.create({"a": {"b": [1.0, value]}}))
        == f"a.b.1={value}: expected a finite number"
    )


def bounded(share: Annotated[float, Field(ge=0, lt=1)]) -> float:
    return share


def test_the_bounds_of_a_parameter_are_checked() -> None:
    node = {"_target_": f"{__name__}.bounded", "share": 1.0}
    assert refused(check, {"part": node}) == "part.share=1.0: input should be less than 1"

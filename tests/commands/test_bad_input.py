"""Every mistake on the command line: what is given, what is said, in one line and before any training."""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.command import imgcls
from support.composed import training
from support.pictures import write_picture

from imgcls.tasks.classification import ImageClassifier

Said = Callable[..., str]

MISTAKES = [
    ("tran", "there is no such verb; did you mean 'train'?"),
    ("train date=cifar10", "date: there is no such key; did you mean 'data'?"),
    ("train data=cifr10", "data=cifr10: there is no such choice; did you mean 'cifar10'?"),
    ("train callbacks=emma", "callbacks=emma: there is no such choice; did you mean 'ema'?"),
    ("train data.batchsize=3", "data.batchsize: there is no such key; write data.batch_size=3"),
    ("train +data.batchsize=3", "takes no 'batchsize'; write data.batch_size=…"),
    ("train callbacks=null", "callbacks=null: null is no choice; write callbacks=[]"),
    ("train logger=null", "logger=null: null is no choice; write logger=[]"),
    ("train -m scheduler=null,cosine", "scheduler=null,cosine: null is no choice; write scheduler=constant"),
    (
        "train backbone=resnet18 backbone.pretrained=true backbone.weights=net.pth",
        "backbone.pretrained=true backbone.weights=net.pth: either the library's weights or those of a file",
    ),
    ("train optimizer=null", "optimizer=null: null is no choice; leave it out, or choose one of: adamw"),
    ("train ~scheduler", "scheduler: nothing is chosen; write scheduler=…"),
    ("train callbacks=[default,ema]", "leave it out, as in callbacks=ema or callbacks=[ema,early_stopping]"),
    ("train trainer.on_nonfinite=skip", "trainer.on_nonfinite: there is no such key; write recovery."),
    ("train ++trainer.on_nonfinite=skip", "trainer.on_nonfinite: there is no such key; write recovery."),
    ("train recovery.on_nonfinite=x", "recovery.on_nonfinite=x: input should be 'stop' or 'skip'"),
    ("train recovery.every_minutes=0", "recovery.every_minutes=0: input should be greater than 0"),
    ("train recovery.save_top_k=-2", "recovery.save_top_k=-2: input should be greater than or equal to -1"),
    ("train +recovery.x=1", "recovery.x=1: extra inputs are not permitted"),
    ("train debug=true", "debug=true: there is no such choice; choose one of: fast, limit, overfit, profile"),
    ("train callbacks.ema.decay=0.9", "callbacks.ema: it is not chosen; write callbacks=[ema]"),
    ("train +callbacks.ema.decay=0.9", "callbacks.ema: it is not chosen; write callbacks=[ema]"),
    ("train logger=csv logger.wandb.tags=[a]", "logger.wandb: it is not chosen; write logger=[csv,wandb]"),
    ("train +foo=1", "foo: there is no such key; choose one of: augment"),
    ("train +optimiser.lr=0.1", "optimiser: there is no such key; did you mean 'optimizer'?"),
    ("train -m +optimiser.lr=0.1,0.2", "optimiser: there is no such key; did you mean 'optimizer'?"),
    ("compare runs=. +metrc=x", "metrc: there is no such key; did you mean 'metric'?"),
    (
        "train hydra.run.dir=/proc/x",
        "hydra.run.dir=/proc/x: the folder can't be made (No such file or directory)",
    ),
    ("train -m seed=1,2 hydra.sweep.dir=/proc/x", "hydra.sweep.dir=/proc/x: the folder can't be made"),
    ("bench json=empty", "json=empty: expected a file"),
    ("train optimizer.lr=[", "optimizer.lr=["),
    ("train seed=x", "seed=x: input should be a valid integer"),
    ("train trainer.max_epochs=abc", "trainer.max_epochs=abc: input should be a valid integer"),
    ("train optimizer.lr=fast", "optimizer.lr=fast: expected a number"),
    ("train data.num_workers=x", "data.num_workers=x: input should be a valid integer"),
    ("train augment.crop=pad", "input should be 'none', 'padded', 'resized', 'auto' or 'own'"),
    ("train augment.flip=3", "augment.flip=3: input should be less than or equal to 1"),
    ("train augment.scale=[0,0]", "augment.scale=0: input should be greater than 0"),
    (
        "train augment.mixup.probability=-0.5",
        "augment.mixup.probability=-0.5: input should be greater than or equal to 0",
    ),
    ("train scheduler.final=-1", "scheduler.final=-1: input should be greater than or equal to 0"),
    (
        "train scheduler.warmup_epochs=-1",
        "scheduler.warmup_epochs=-1: input should be greater than or equal to 0",
    ),
    (
        "train scheduler=one_cycle scheduler.div_factor=0",
        "scheduler.div_factor=0: input should be greater than 0",
    ),
    ("train loss.label_smoothing=1", "loss.label_smoothing=1: input should be less than 1"),
    (
        "train loss=binary loss.label_smoothing=-0.1",
        "loss.label_smoothing=-0.1: input should be greater than or equal to 0",
    ),
    ("train loss=focal loss.gamma=-1", "loss.gamma=-1: input should be greater than or equal to 0"),
    ("train task.class_weights=[1,-1]", "class_weights"),
    (
        "train task.class_weights={_target_:builtins.list}",
        "task.class_weights has a call within it: a checkpoint keeps a task's settings",
    ),
    ("train +task.seed=5", "task.seed=5: another part of the config says it; leave it out"),
    ("train +data.seed=5", "data.seed=5: another part of the config says it; leave it out"),
    ("train +backbone.num_classes=7", "backbone.num_classes=7: another part of the config says it"),
    ("train +trainer.use_distributed_sampler=true", "trainer.use_distributed_sampler=True: another part"),
    ("train +trainer.callbacks=[]", "trainer.callbacks: there is no such key; write callbacks=…"),
    ("train +trainer.logger=false", "trainer.logger: there is no such key; write logger=…"),
    ("train +trainer.enable_checkpointing=false", "checkpoints are always kept, as recovery says"),
    ("train +callbacks.mine._target_=torch.nn.ReLU", "callbacks.mine: it makes a ReLU, expected a Callback"),
    ("train recovery.filename=last", "recovery.filename=last: value error, expected a name without folders"),
    ("train recovery.filename=../x", "recovery.filename=../x: value error, expected a name without folders"),
    ("train data.batch_size=${nope}", "imgcls train: Interpolation key 'nope' not found"),
    ("train trainer.precision=foo", "trainer.precision=foo: expected 64 or 32"),
    (
        "train trainer.strategy=ddp_spawn",
        "trainer.strategy=ddp_spawn: its processes can't take over what is built",
    ),
    ("train trainer.accelerator=foo", "invalid accelerator name"),
    ("train optimizer._target_=torch.optim.SDG", "no 'SDG' there; did you mean 'SGD'?"),
    ("train loss._target_=nowhere.Loss", "there is no package 'nowhere'"),
    ("train optimizer=timm optimizer.opt=adann", "Optimizer adann not found"),
    ("train data=imagefolder", "data.root must be given: data.root=…"),
    (
        "train data=imagefolder data.root=/nowhere",
        "data.root=/nowhere: there is no such folder; expected root/<class>/…",
    ),
    ("train data=imagefolder data.root=empty", "has no class folders"),
    ("train data=cifar10 data.download=false", "put cifar-10-batches-py into data"),
    ("train seed=-1", "seed=-1: input should be greater than or equal to 0"),
    ("train data.channels=2", "data.channels=2: input should be 1 or 3"),
    ("train data.num_workers=-1", "data.num_workers=-1: input should be greater than or equal to 0"),
    (
        "train trainer.accumulate_grad_batches=0",
        "trainer.accumulate_grad_batches=0: input should be greater than or equal to 1",
    ),
    (
        "train trainer.gradient_clip_val=-1",
        "trainer.gradient_clip_val=-1: input should be greater than or equal to 0",
    ),
    ("train trainer.limit_test_batches=0", "trainer.limit_test_batches=0: input should be greater than 0"),
    ("train trainer.limit_train_batches=0", "trainer.limit_train_batches=0: input should be greater than 0"),
    ("train trainer.limit_val_batches=0", "val/top1: with trainer.limit_val_batches=0 nothing is validated"),
    ("train trainer.max_epochs=0", "val/top1: with trainer.max_epochs=0 nothing is validated"),
    (
        "train trainer.check_val_every_n_epoch=0",
        "trainer.check_val_every_n_epoch=0: input should be greater than or equal to 1",
    ),
    (
        "train trainer.check_val_every_n_epoch=3 trainer.max_epochs=2",
        "with trainer.check_val_every_n_epoch=3 in 2 epochs nothing",
    ),
    ("train trainer.max_epochs=null", "scheduler=cosine needs an end: set trainer.max_epochs"),
    (
        "train trainer=ddp_cpu trainer.devices=9999",
        "trainer.devices=9999: each is a process, and this machine has",
    ),
    ("train trainer.limit_train_batches=0.001 logger=csv", "trainer: "),
    (
        "train optimized_metric=val/loss recovery.mode=max",
        "recovery.mode=max: val/loss is better the other way; set mode=min",
    ),
    (
        "train scheduler=plateau scheduler.monitor=val/top1",
        "scheduler.mode=min: val/top1 is better the other way; set mode=max",
    ),
    ("train data.fraction=2", "data.fraction=2: input should be less than or equal to 1"),
    ("train data.batch_size=0", "data.batch_size=0: input should be greater than or equal to 1"),
    ("train data.batch_size=true", "data.batch_size=True: input should be a valid integer"),
    ("train data=imagefolder data.root=", "data.root=: string should have at least 1 character"),
    ("train data=cifar10 data.std=[0,1,1]", "data.std=[0, 1, 1]: input should be greater than 0"),
    ("train +data.mean=[]", "data.mean=[]: list should have at least 1 item"),
    ("train backbone=vgg16_bn", "images of 1×8×8 do not fit this network"),
    (
        "train backbone=torchvision backbone.name=resnet19",
        "torchvision has no such network; did you mean 'resnet18'?",
    ),
    ("train backbone=timm backbone.name=vit_smal_patch16_224", "did you mean 'vit_small_patch16_224'?"),
    ("train backbone=resnet20 backbone.depth=21", "backbone.depth=21: expected 6n+2"),
    ("train backbone=resnet20 backbone.weights=nowhere.pth", "weights=nowhere.pth: there is no such file"),
    (
        "train task.class_weights=[1,2]",
        "task.class_weights=[1.0, 2.0]: expected 10 numbers of 0 or more, not all 0",
    ),
    ("train recovery.monitor=val/acc", "recovery.monitor=val/acc: no such metric is logged"),
    ("train scheduler=plateau scheduler.monitor=val/los", "did you mean 'val/loss'?"),
    ("train optimized_metric=val/top", "optimized_metric=val/top: no such metric is logged"),
    ("train trainer.max_epochs=-1 logger=csv", "scheduler=cosine needs an end: set trainer.max_epochs"),
    ("eval", "checkpoint must be given"),
    ("eval checkpoint=nowhere", "checkpoint=nowhere: there is no such file"),
    ("eval checkpoint=.", "the folder has no checkpoints/best.ckpt"),
]


@pytest.mark.parametrize(("given", "expected"), MISTAKES, ids=[given for given, _ in MISTAKES])
def test_what_is_said(said: Said, given: str, expected: str) -> None:
    Path("empty").mkdir()
    assert expected in said(*given.split())
    assert not list(Path().rglob("*.ckpt"))


WORDS_OF_OTHERS = [
    ("train lr=0.1", "lr: there is no such key; write optimizer.lr=0.1"),
    ("train batch_size=32", "batch_size: there is no such key; write data.batch_size=32"),
    ("train epochs=3", "epochs: there is no such key; write trainer.max_epochs=3"),
    ("train model=resnet18", "model: there is no such key; write backbone=resnet18"),
    ("train --epochs 3", "--epochs: there is no such option, values are given as key=value; write trainer."),
    ("train --lr=0.3", "values are given as key=value; write optimizer.lr=0.3"),
    ("train --batch-size 8 data=cifar10", "values are given as key=value; write data.batch_size=8"),
    ("train -x", "-x: there is no such option"),
    ("train epochs 3", "epochs: expected key=value; write trainer.max_epochs=3"),
    ("train optimizer.learning_rate=1", "there is no such key; write optimizer.lr=1"),
    ("train data.img_size=64", "data.img_size: there is no such key; write data.image_size=64"),
    ("train +trainer.gpus=2", "lightning.pytorch.Trainer takes no 'gpus'; write trainer.devices=…"),
    ("train mixup=0.3", "mixup: there is no such key; write augment.mixup.probability=0.3"),
    ("train num_classes=3", "num_classes: there is no such key; the data has the number of classes"),
    ("train wandb=true", "wandb: there is no such key; write logger=[csv,wandb]"),
    ("train -m seed=0..4", "seed=0..4: a range is written seed=range(0,5)"),
    ("train seed=0..4", "seed=0..4: several values are a sweep; write -m 'seed=range(0,5)'"),
    ("train backbone=resnet20,resnet32", "write imgcls train -m backbone=resnet20,resnet32"),
    ("train logger=csv,tensorboard", "several are a list; write logger=[csv,tensorboard]"),
    ("train resnet20", "resnet20: expected key=value; write backbone=resnet20"),
    ("train .", ".: expected key=value; write data=imagefolder data.root=."),
    ("compare runs", "runs: expected key=value; write runs=runs"),
    ("eval runs/x", "runs/x: expected key=value; write checkpoint=runs/x"),
    ("predict checkpoint=x source=", "source=: string should have at least 1 character"),
    ("predict checkpoint= source=x", "checkpoint=: string should have at least 1 character"),
    ("export checkpoint=x out=", "out=: string should have at least 1 character"),
    ("predict a.jpg", "a.jpg: expected key=value; write source=a.jpg"),
    ("reproduce runs/x", "runs/x: expected key=value; write run=runs/x"),
    ("train train=false", "imgcls train always trains; to test alone write imgcls eval"),
    ("train ckpt_path=x.ckpt", "ckpt_path: there is no such key; write resume=RUN_DIR to go on with a run"),
    ("eval ckpt_path=x.ckpt", "ckpt_path: there is no such key; write checkpoint=x.ckpt"),
    ("train -m hparams_search=mnist_optuna", "hparams_search: there is no such key; write -m sweep=optuna"),
    ("train model.net.width=3", "model.net.width: there is no such key; write backbone.width=3"),
    ("train model.optimizer.lr=1", "model.optimizer.lr: there is no such key; write optimizer.lr=1"),
    ("train model.scheduler.final=0", "there is no such key; write scheduler.final=0"),
    ("train model.compile=true", "model.compile: there is no such key; write compile=true"),
    ("train task_name=x", "task_name: there is no such key; write sweep.name=x"),
    ("train paths.data_dir=x", "paths.data_dir: there is no such key; write data.root=x"),
    ("train paths.log_dir=x", "paths.log_dir: there is no such key; write hydra.run.dir=x"),
    ("train extras.print_config=true", "write --cfg job to see the config"),
    ("train debug=fdr", "debug=fdr: there is no such choice; write debug=fast"),
    ("train trainer=ddp_sim", "trainer=ddp_sim: there is no such choice; write trainer=ddp_cpu"),
    ("train callbacks=none", "callbacks=none: there is no such choice; write callbacks=[]"),
    ("train optimizer=adam", "write optimizer=torch optimizer._target_=torch.optim.Adam"),
    ("train callbacks.model_checkpoint.monitor=x", "there is no such key; write recovery.monitor=x"),
    ("train hydra/launcher=submitit_slurm", "here it has another name; write -m launcher=slurm"),
    ("train --config-dir=nowhere", "Additional config directory"),
    ("train --config-name nowhere", "--config-name=nowhere: there is no such choice; choose one of"),
    pytest.param(
        "train trainer=gpu",
        "finds none here; write trainer=cpu, or leave trainer out",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA"),
    ),
]


NOTHING_MADE = [
    "debug=true",
    "+callbacks.ema.decay=0.9",
    "callbacks.ema.decay=0.9",
    "+foo=1",
    "-m seed=1 +foo=1",
    "seed=x",
    "data=imagefolder data.root=nowhere",
    "+callbacks.mine._target_=torch.nn.ReLU",
]


@pytest.mark.parametrize(("given", "expected"), WORDS_OF_OTHERS)
def test_words_of_others(said: Said, given: str, expected: str) -> None:
    words = given.replace("'", "").split()
    assert expected in said(*words)
    assert not list(Path().rglob("runs*"))


@pytest.mark.parametrize("given", NOTHING_MADE)
def test_a_wrong_name_leaves_no_directory(said: Said, given: str) -> None:
    said("train", *given.split())
    assert not list(Path().rglob("runs*"))


def test_a_folder_with_a_run_in_it_stays(said: Said) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("kept")
    said("train", "seed=x", "hydra.run.dir=mine")
    assert Path("mine/notes.txt").read_text() == "kept"


def test_what_fails_in_the_hook_before_a_run(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra would go on without the checks."""

    def failing(config: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("imgcls.commands.verb.check_keys", failing)
    for many in ([], ["-m", "seed=1,2"]):
        line, _, file = said("train", *many).partition(" (traceback: ")
        assert line == "imgcls train: RuntimeError: two lines"
        assert "in failing" in Path(file.removesuffix(")")).read_text()
        Path(file.removesuffix(")")).unlink()
    assert not list(Path().rglob("runs*"))


def test_a_data_class_of_the_users_that_fails(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "from imgcls.data.digits import Digits\n"
        "class Mine(Digits):\n    def __init__(self, **given):\n        None + 1\n"
    )
    (tmp_path / "my_set.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    message = said("train", "data._target_=my_set.Mine", "hydra.run.dir=run")
    assert message.startswith(
        "imgcls train: data._target_=my_set.Mine: TypeError: unsupported operand type(s)"
    )
    log = Path("run/run.log").read_text()
    assert "Traceback (most recent call last)" in log and "None + 1" in log


def test_settings_in_a_file_for_what_is_not_chosen(
    here: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        "# @package _global_\nlogger: {wandb: {tags: [a]}}\ncallbacks: {early_stopping: {patience: 1}}\n"
    )
    here("train", "--config-dir=conf", "experiment=mine", "logger=csv", "test=false", "trainer.max_epochs=1")
    said = capsys.readouterr().out
    assert (
        "logger.wandb: its settings are not used, because it is not chosen; write logger=[csv,wandb]" in said
    )
    assert "callbacks.early_stopping: its settings are not used, because it is not chosen" in said


def test_in_a_process_of_its_own() -> None:
    done = imgcls("train", "data=cifr10")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "imgcls train: data=cifr10: there is no such choice; did you mean 'cifar10'?\n"


def spoil(name: str, folder: Path) -> str:
    """Damages a folder of pictures; returns what is to be said of it."""
    if name == "class without an image":
        shutil.rmtree(folder / "dog")
        (folder / "dog").mkdir()
        return "dog holds no image"
    if name == "unreadable image":
        data = (folder / "fox" / "03.jpg").read_bytes()
        for picture in (folder / "fox").iterdir():
            picture.write_bytes(data[: len(data) // 2])
        return (
            "can't be read as an image (Image is incomplete or truncated); "
            "data.on_error=skip leaves out such images"
        )
    for split, classes in {"train": ("cat", "dog", "fox"), "val": ("cat", "dog", "fox", "owl")}.items():
        for label in classes:
            write_picture(folder / split / label / "1.png", seed=len(label))
            write_picture(folder / split / label / "2.png", seed=2 * len(label))
    return "has the class 'owl', which"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["class without an image", "unreadable image", "other classes in val"])
def test_spoilt_folders(said: Said, folder: Path, name: str, workers: int) -> None:
    if workers and name != "unreadable image":
        pytest.skip("found before there are workers")
    expected = spoil(name, folder)
    message = said(
        "train",
        "data=imagefolder",
        f"data.root={folder}",
        "data.image_size=32",
        "data.batch_size=8",
        f"data.num_workers={workers}",
        "logger=csv",
    )
    assert expected in message and str(folder) in message


class Code:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("it_ran",)


@pytest.fixture
def checkpoint(said: Said) -> Path:
    """A checkpoint as train writes it, of a network that has learnt nothing."""
    from imgcls.commands.build import build_task
    from imgcls.engine.build import build_data

    config = training()
    classifier = build_task(config, build_data(config.data, config.augment, 0))
    content = {
        "state_dict": classifier.state_dict(),
        "hyper_parameters": dict(classifier.hparams),
        "config": config.record,
    }
    torch.save(content, "good.ckpt")
    return Path("good.ckpt")


def test_spoilt_checkpoints(said: Said, checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    Path("cut.ckpt").write_bytes(whole[: len(whole) // 2])
    Path("empty.ckpt").touch()
    with Path("code.ckpt").open("wb") as file:
        pickle.dump({"state_dict": Code()}, file)
    torch.save({"state_dict": {}, "config": Code()}, "code_in_zip.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["backbone"]["width"] = 16
    torch.save(content, "other.ckpt")
    torch.save(content["state_dict"], "state.ckpt")
    for name, expected in {
        "cut": "it is damaged",
        "empty": "it is damaged",
        "code": "it carries code",
        "code_in_zip": "it carries code",
        "other": "its weights are of another network",
        "state": "it was not written by imgcls train",
    }.items():
        assert expected in said("eval", f"checkpoint={name}.ckpt"), name
    assert not Path("it_ran").exists()
    assert checkpoint.read_bytes() == whole
    assert isinstance(
        ImageClassifier(**torch.load(checkpoint, weights_only=True)["hyper_parameters"]), ImageClassifier
    )


UNTRUSTED = {
    "eval checkpoint=FILE": (
        "checkpoint=FILE: it carries code or objects beside tensors, so it was not loaded"
    ),
    "predict checkpoint=FILE source=pictures": "checkpoint=FILE: it carries code",
    "export checkpoint=FILE out=net.onnx": "checkpoint=FILE: it carries code",
    "train backbone.weights=FILE logger=csv": "weights=FILE: it carries code",
    "train callbacks=distillation callbacks.distillation.teacher=FILE": ("checkpoint=FILE: it carries code"),
}


@pytest.mark.parametrize("name", ["bare.ckpt", "zipped.ckpt"])
def test_code_in_a_file_does_not_run(said: Said, checkpoint: Path, folder: Path, name: str) -> None:
    content = {**torch.load(checkpoint, weights_only=True), "code": Code()}
    Path("bare.ckpt").write_bytes(pickle.dumps({"state_dict": Code()}))
    torch.save(content, "zipped.ckpt")
    for given, expected in UNTRUSTED.items():
        assert expected.replace("FILE", name) in said(*given.replace("FILE", name).split()), given
    assert not Path("it_ran").exists()
    torch.load("zipped.ckpt", weights_only=False)  # it would have
    assert Path("it_ran").exists()


def test_code_in_a_run_does_not_run(said: Said, train: Callable[..., object]) -> None:
    assert train("logger=csv", "test=false", "trainer.max_epochs=1", "hydra.run.dir=run") is None
    last = Path("run/checkpoints/last.ckpt")
    torch.save({**torch.load(last, weights_only=True), "code": Code()}, last)
    message = said("train", "resume=run", "trainer.max_epochs=2")
    assert "run/checkpoints/last.ckpt: it carries code" in message and not Path("it_ran").exists()


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_a_reader_that_has_ended(words: list[str]) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "imgcls", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout is not None and command.stderr is not None
    command.stdout.close()
    assert command.stderr.read() == b""
    command.stderr.close()
    assert command.wait() == 141


def test_help_and_completion_answer_at_once() -> None:
    done = imgcls("train", "--help")
    assert done.returncode == 0 and "backbone   clip_vit_b16 convnext_tiny" in done.stdout, done.stderr
    assert "imgcls VERB key=value" in imgcls().stdout
    assert imgcls("--version").stdout.strip() == "0.1.0"
    done = imgcls("-sc", "query=bash", COMP_LINE="imgcls train backbone=resnet", COMP_POINT="28")
    assert "backbone=resnet20" in done.stdout.split() and "backbone=resnet110" in done.stdout.split(), done
    assert "eval" in imgcls("-sc", "query=bash", COMP_LINE="imgcls e").stdout.split()

    imported = (
        "import sys; sys.argv = ['imgcls', 'train', '--help']; from imgcls.__main__ import main\n"
        "try: main()\nfinally: print(*sys.modules)"
    )
    modules = (
        subprocess.run([sys.executable, "-c", imported], capture_output=True, text=True)
        .stdout.splitlines()[-1]
        .split()
    )
    assert "hydra" in modules and not {"torch", "lightning", "timm", "torchvision", "pandas", "wandb"} & set(
        modules
    )

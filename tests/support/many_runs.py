"""Writes many run directories, to time `imgcls compare`: python tests/support/many_runs.py FOLDER [RUNS]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script

from support.runs import write_run

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_many(folder: Path, runs: int = 1000) -> None:
    """Writes runs of 20 epochs, with 31 rates, 5 seeds and 4 batch sizes, each with a test of 10 classes."""
    for place in range(runs):
        rate, size = 10 ** (-(place % 31) / 10 - 1), 2 ** (4 + place % 4)
        top1 = 0.5 + place % 97 / 200
        path = write_run(
            folder / str(place), top1, epochs=20, optimizer__lr=rate, seed=place % 5, data__batch_size=size
        )
        write_matrix(path, CLASSES, [[90, place % 11]])
        (path / "test" / "index.html").touch()


def write_matrix(run: Path, classes: tuple[str, ...], right_and_wrong: list[list[int]]) -> None:
    """Writes the confusion matrix of a test: for each class, again and again, how many images were right, and
    how many were taken for the next class."""
    rows = [f",{','.join(classes)}"]
    for place, name in enumerate(classes):
        right, wrong = right_and_wrong[place % len(right_and_wrong)]
        counts = [0] * len(classes)
        counts[place], counts[(place + 1) % len(classes)] = right, wrong
        rows.append(f"{name},{','.join(map(str, counts))}")
    (run / "test" / "confusion_matrix.csv").write_text("\n".join([*rows, ""]))


if __name__ == "__main__":
    write_many(Path(sys.argv[1]), *map(int, sys.argv[2:]))

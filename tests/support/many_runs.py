"""Writes many run directories, to time `imgcls compare`: python tests/support/many_runs.py FOLDER [RUNS]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script

from support.runs import write_run


def write_many(folder: Path, runs: int = 1000) -> None:
    """Writes runs of 20 epochs, with 31 rates, 5 seeds and 4 batch sizes."""
    for place in range(runs):
        rate, size = 10 ** (-(place % 31) / 10 - 1), 2 ** (4 + place % 4)
        top1 = 0.5 + place % 97 / 200
        write_run(
            folder / str(place), top1, epochs=20, optimizer__lr=rate, seed=place % 5, data__batch_size=size
        )


if __name__ == "__main__":
    write_many(Path(sys.argv[1]), *map(int, sys.argv[2:]))

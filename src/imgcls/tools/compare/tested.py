"""What the tests of runs left in their directories: the page of each, the confusion matrices, and of two runs
the images that one gets right and the other wrong."""

import base64
import csv
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pandas as pd

from imgcls.runs.run_files import Damaged, read_config, read_file

if TYPE_CHECKING:
    from imgcls.data.batch import ImageDataset

MOST_BYTES = 1_000_000  # of all confusion matrices in the page
MOST_PICTURES, SIDE = 24, 96  # on each side, and their longer side in pixels
MATRIX, PREDICTIONS = Path("test", "confusion_matrix.csv"), Path("test", "predictions.csv")
IMAGES = ["index", "name", "target"]  # the columns in which two tests of the same images agree


@dataclass(frozen=True)
class Disagreement:
    """Two tests, image by image: how many both get right, one alone, the other alone, and none; p of
    McNemar's exact test; and for each run the images that it alone gets right. `why` says why there is none
    of it, `no_pictures` why it has no pictures."""

    why: str = ""
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)
    p: float = 1.0
    alone: tuple[list[dict[str, str]], list[dict[str, str]]] = field(default_factory=lambda: ([], []))
    no_pictures: str = ""


def report_links(paths: "pd.Series[str]", page: Path) -> list[str | None]:
    """Returns for each run the address of its test report, as the page reaches it; None where it has none."""
    reports = [Path(path, "test", "index.html") for path in paths]
    start = page.absolute().parent
    return [quote(os.fsencode(os.path.relpath(r, start))) if r.is_file() else None for r in reports]


def confusions(paths: "pd.Series[str]") -> dict[str, Any]:
    """Returns for the page the confusion matrices of runs: `classes`, the lists of classes that there are,
    and `of`, for each run the place of its list and its counts, row by row. `why`: they are too large."""
    files = [Path(path) / MATRIX for path in paths]
    size = sum(file.stat().st_size for file in files if file.is_file())
    if size > MOST_BYTES:
        return {"classes": [], "of": [], "why": f"the confusion matrices of all runs are {size / 1e6:.1f} MB"}
    lists, of = dict[tuple[str, ...], int](), list[Any]()
    for file in files:
        try:
            classes, counts = read_file(file, matrix)
        except Damaged:  # or there is none
            of.append(None)
            continue
        of.append([lists.setdefault(tuple(classes), len(lists)), counts])
    return {"classes": [list(one) for one in lists], "of": of, "why": ""}


def matrix(text: str) -> tuple[list[str], list[int]]:
    """Reads a confusion_matrix.csv: the classes, and the counts row by row."""
    (_, *classes), *rows = csv.reader(io.StringIO(text))
    counts = [int(cell) for row in rows for cell in row[1:]]
    if len(counts) != len(classes) ** 2:
        raise ValueError("it has not a row and a column for each class")
    return classes, counts


def disagreement(paths: tuple[Path, Path], names: tuple[str, str]) -> Disagreement:
    """Returns where the tests of two runs disagree."""
    try:
        one, other = (predictions(path, name) for path, name in zip(paths, names, strict=True))
    except Damaged as error:
        return Disagreement(str(error))
    if len(one) != len(other):
        return Disagreement(f"the tests are of {len(one):,} and {len(other):,} images")
    unlike = (one[IMAGES] != other[IMAGES]).any(axis=1).to_numpy().nonzero()[0]
    if len(unlike):
        first, second = (" ".join(table[IMAGES].iloc[unlike[0]]) for table in (one, other))
        return Disagreement(f"the tests are of other images or labels: {first} and {second}")
    right = [(table["prediction"] == table["target"]).to_numpy() for table in (one, other)]
    alone = right[0] & ~right[1], right[1] & ~right[0]
    both, none = int((right[0] & right[1]).sum()), int((~right[0] & ~right[1]).sum())
    counts = both, int(alone[0].sum()), int(alone[1].sum()), none
    shown = [cards(one[which], other[which], wrong) for which, wrong in zip(alone, (other, one), strict=True)]
    no_pictures = add_pictures(paths[0], shown[0] + shown[1])
    return Disagreement("", counts, mcnemar(counts[1], counts[2]), (shown[0], shown[1]), no_pictures)


def predictions(path: Path, name: str) -> pd.DataFrame:
    """Returns the predictions of a run's test, all of them text. Raises Damaged."""
    if not (path / PREDICTIONS).is_file():
        advice = "imgcls eval checkpoint=RUN hydra.run.dir=RUN/test makes one"
        raise Damaged(f"{name} has no {PREDICTIONS}; {advice}")
    try:
        options: dict[str, Any] = {"dtype": str, "keep_default_na": False}
        table = pd.read_csv(path / PREDICTIONS, encoding_errors="surrogateescape", **options)
    except (OSError, ValueError) as error:
        raise Damaged(f"{PREDICTIONS} of {name} can't be read: {error}") from error
    if not {*IMAGES, "prediction", "confidence"} <= set(table):
        raise Damaged(f"the test of {name} gives an image more or less than one class")
    return table


def cards(one: pd.DataFrame, other: pd.DataFrame, wrong: pd.DataFrame) -> list[dict[str, str]]:
    """Returns what is shown of images that runs disagree on, those first of which the wrong one is surest."""
    sure = pd.to_numeric(wrong.loc[one.index, "confidence"], errors="coerce")
    order = sure.sort_values(ascending=False, kind="stable").index[:MOST_PICTURES]
    columns = {"first": one["prediction"], "second": other["prediction"]}
    out: list[dict[str, str]] = one[IMAGES].assign(**columns).loc[order].to_dict("records")
    return out


def mcnemar(one: int, other: int) -> float:
    """Returns the p of McNemar's exact test; the numbers are of images that only one run got right."""
    from scipy.stats import binomtest

    return float(binomtest(one, one + other).pvalue) if one + other else 1.0


def add_pictures(path: Path, shown: list[dict[str, str]]) -> str:
    """Adds to each image its `picture`, read from the data of the run; or returns why there is none."""
    if not shown:
        return ""
    try:
        images = test_images(path)
        for row in shown:
            index = int(row["index"])
            if images.name(index) != row["name"]:
                return "the data of the run has other images now than when it was tested"
            row["picture"] = thumbnail(images, index)
    except Exception as error:  # whatever fails in reading data, the page can do without
        return " ".join(str(error).split())[:300] or type(error).__name__
    return ""


def test_images(path: Path) -> "ImageDataset":
    """Returns the images that a run was tested on. Nothing is fetched; no code of a run directory runs."""
    from imgcls.commands.eval import data_as_trained
    from imgcls.engine.build import build_data

    config = read_config(path)
    return build_data(data_as_trained(config, {}), None, config["seed"], "test").sets["test"]


def thumbnail(images: "ImageDataset", index: int) -> str:
    """Returns the address of a small JPEG that lies within the page."""
    from PIL import Image

    from imgcls.report.figures import as_picture

    picture = Image.fromarray(as_picture(images.picture(index)))
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

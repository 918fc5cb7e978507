"""Page of `imgcls inspect`: draws its figures, and writes a page that needs no network (page.html)."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid, save_image

from imgcls.report.figures import as_picture, shortened
from imgcls.report.page import plain, render
from imgcls.report.page import table as text_table
from imgcls.tools.inspect.scan import Reader
from imgcls.tools.inspect.words import facts, faults, headline

PICTURED = 12  # groups of copies that are drawn
COLOURS = {"train": "#4c72b0", "val": "#dd8452", "test": "#55a868"}


def write(
    run_dir: Path,
    found: dict[str, Any],
    table: pd.DataFrame,
    reader: Reader,
    samples: list[tuple[Tensor, str]],
) -> None:
    """Writes the figures and the page; `samples` are images `(C, H, W) uint8` and their labels."""
    draw_counts(found).savefig(run_dir / "class_counts.png", dpi=110)
    if found["images"]:
        draw_sizes(table[table["reason"].isna()]).savefig(run_dir / "sizes.png", dpi=110)
    if samples:
        save_image(make_grid([image / 255 for image, _ in samples]), run_dir / "samples.png")
    counts, place = class_counts(found), {file: i for i, file in enumerate(table["file"])}
    counts.loc["in all"] = counts.sum()
    copies = []
    for group in found["duplicates"][:PICTURED] + found["near_duplicates"][:PICTURED]:
        pair = [image["file"] for image in group["images"][:2]]
        copies.append({file: as_picture(reader.picture(place[file])) for file in pair})
    render(
        "tools/inspect/page.html",
        run_dir / "index.html",
        found=found,
        headline=headline(found),
        facts=facts(found),
        faults=faults(found),
        copies=copies,
        counts=text_table(counts.rename_axis("").reset_index()),
        samples=[(as_picture(image), label) for image, label in samples],
    )


def class_counts(found: dict[str, Any]) -> pd.DataFrame:
    """Returns how many images each class (row) has in each split (column)."""
    return pd.DataFrame(found["classes"]).T


def draw_counts(found: dict[str, Any]) -> Figure:
    """Draws how many images each class has, by split: up to 60 classes by name, more of them by size."""
    counts = class_counts(found)
    named, many = counts.rename(index=lambda name: shortened(plain(name), 24)), len(counts) > 60
    if many:
        named = named.iloc[(-counts.sum(axis=1)).argsort()]
    figure = Figure(figsize=(8, 4 if many else max(2.0, 0.26 * len(counts) + 1)), layout="constrained")
    axes, bars, width = figure.subplots(), named.plot.barh, 1 if many else 0.8
    bars(ax=axes, stacked=True, width=width, color=COLOURS, xlabel="images")  # type: ignore[arg-type]
    axes.invert_yaxis()
    axes.set_ylabel(f"{len(counts):,} classes, largest first" if many else "")
    if many:
        axes.set_yticks([])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(COLOURS), loc="lower right", bbox_to_anchor=(1, 1))
    return figure


def draw_sizes(good: pd.DataFrame) -> Figure:
    """Draws width against height, a dot for each size, its area by how many images have it."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    sizes = good.groupby(["width", "height"]).size().reset_index(name="images")
    area = (2000 * sizes["images"] / max(len(good), 1)).clip(8, 400)
    axes = figure.subplots()
    axes.scatter(sizes["width"], sizes["height"], area, color=COLOURS["train"], alpha=0.5, linewidths=0)
    axes.set(xlim=(0, None), ylim=(0, None), xlabel="width in pixels", ylabel="height in pixels")
    axes.spines[["top", "right"]].set_visible(False)
    return figure

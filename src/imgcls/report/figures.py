"""Figures of a test report: draws matrices of classes or labels, curves, and the worst mistakes."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional as F

from imgcls.report.calibration import BINS, confidence_bins

SIDE = 160  # of a picture in a report, about, in pixels
LIGHT_BLUE, BLUE, ORANGE = "#9ecae1", "#08519c", "#d94801"
TICKS = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]  # of the colours of shares


@dataclass
class Mistake:
    """A sample that was taken for another class; pictures are `(H, W, 3) uint8`."""

    picture: np.ndarray
    evidence: np.ndarray | None  # the picture under a heat map of the evidence for the predicted class
    target: str
    prediction: str
    confidence: float
    name: str


class Curve(NamedTuple):
    """Precision and recall of a label at all thresholds, and (recall, precision) at the one chosen."""

    label: str
    recall: np.ndarray
    precision: np.ndarray
    chosen: tuple[float, float]
    average_precision: float


def draw_training(logged: pd.DataFrame, metric: str) -> Figure:
    """Draws the losses of a training over its epochs, and beside them its metric, of training and validation
    as far as they were logged."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    name = metric.rpartition("/")[2]
    for axes, kind in zip(figure.subplots(1, 2), ("loss", name), strict=True):
        for split, colour in (("train", LIGHT_BLUE), ("val", BLUE)):
            if f"{split}/{kind}" in logged:
                known = logged[logged[f"{split}/{kind}"].notna()]
                axes.plot(known["epoch"] + 1, known[f"{split}/{kind}"], color=colour, label=split)
        axes.set(xlabel="epoch", title=kind)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.lines:
            axes.legend()
    return figure


def draw_confusion(confusion: np.ndarray, names: list[str]) -> Figure:
    """Draws the matrix, each row as shares of its class: with numbers up to 20 classes, with names up to 100.
    Above 200 classes a cell stands for several and has the largest of their shares: one could not be seen."""
    classes, together = len(names), -(-len(names) // 200)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    shares = F.max_pool2d(torch.from_numpy(shares)[None], together, ceil_mode=True)[0].numpy()
    side = min(max(3.5, 0.45 * classes + 2.5), 15.0)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # a few in a hundred can be seen too
    axes.set(xlabel="predicted", ylabel="true", xticks=[], yticks=[])
    if classes <= 100:
        name_ticks(axes, names)
    if classes <= 20:
        figure.suptitle("Images of each true class, and (colour) their share")
        for row, column in np.argwhere(confusion):
            text, colour = str(confusion[row, column]), "white" if shares[row, column] > 0.4 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    else:
        largest = f", the largest of {together}×{together}" if together > 1 else ""
        figure.suptitle(f"Share of each true class{largest}")
        figure.colorbar(shown, shrink=0.4, fraction=0.04, pad=0.01, ticks=TICKS, format="{x:.0%}")
    return figure


def name_ticks(axes: Axes, names: list[str]) -> None:
    """Writes the names of classes at the rows and columns of a matrix."""
    size, short = 9 if len(names) <= 20 else 8, [shortened(name, 20) for name in names]
    axes.set_xticks(range(len(names)), short, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(len(names)), short, fontsize=size, parse_math=False)


def draw_cooccurrence(panels: dict[str, np.ndarray], names: list[str]) -> Figure:
    """Draws matrices of shares `(K, K)` by title: with numbers up to 12 labels, with names up to 100."""
    labels = len(names)
    side, wide = min(max(3.5, 0.4 * labels + 2), 15.0), labels <= 20
    rows, columns = (1, len(panels)) if wide else (len(panels), 1)
    figure = Figure(figsize=(side * columns + 1, side * rows), layout="constrained")
    for axes, (title, shares) in zip(figure.subplots(rows, columns).flat, panels.items(), strict=True):
        shown = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
        axes.set(ylabel="images with the label …", xticks=[], yticks=[])
        axes.set_title(title, fontsize=10)
        if labels <= 100:
            name_ticks(axes, names)
        for row, column in np.argwhere(shares > 0.005) if labels <= 12 else ():
            share = shares[row, column]
            text, colour = f"{100 * share:.0f}", "white" if share > 0.4 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(shown, ax=figure.axes, shrink=0.7, fraction=0.04, pad=0.01, ticks=TICKS, format="{x:.0%}")
    return figure


def draw_curves(curves: list[Curve]) -> Figure:
    """Draws precision against recall, a small diagram for each label, a dot where its threshold is."""
    columns = min(len(curves), 6)
    rows = -(-len(curves) // columns)
    width, height = 1.55 * columns + 0.6, 1.6 * rows + 0.8
    figure = Figure(figsize=(width, height))  # a constrained layout of 80 diagrams takes ten seconds
    margins = {"left": 0.5 / width, "bottom": 0.5 / height, "right": 1 - 0.1 / width, "top": 1 - 0.3 / height}
    grid = figure.add_gridspec(rows, columns, wspace=0.15, hspace=0.25, **margins)
    for place, curve in enumerate(curves):
        axes = figure.add_subplot(grid[divmod(place, columns)])
        axes.fill_between(curve.recall, curve.precision, step="pre", color=LIGHT_BLUE, alpha=0.5)
        axes.step(curve.recall, curve.precision, where="pre", color=BLUE, linewidth=1)
        axes.plot(*curve.chosen, "o", color=ORANGE, markersize=4, clip_on=False, zorder=3)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        lowest = place + columns >= len(curves)
        axes.tick_params(labelsize=7, labelleft=place % columns == 0, labelbottom=lowest)
        title = f"{shortened(curve.label, 16)} {curve.average_precision:.2f}"
        axes.set_title(title, fontsize=8, loc="left", parse_math=False)
    figure.supxlabel("recall", fontsize=9, y=0.1 / height)
    figure.supylabel("precision", fontsize=9, x=0.1 / width)
    return figure


def reliability(confidences: np.ndarray, right: np.ndarray) -> pd.DataFrame:
    """Returns accuracy, mean confidence and share of the samples in each range of confidence."""
    place = confidence_bins(torch.tensor(confidences)).numpy()
    groups = pd.DataFrame({"accuracy": right, "confidence": confidences}).groupby(place)
    return groups.mean().assign(share=groups.size() / len(right)).reindex(range(BINS))


def draw_reliability(bins: pd.DataFrame, before: pd.DataFrame | None, title: str) -> Figure:
    """Draws accuracy and share of samples by confidence (Guo et al. 2017), also `before` the temperature."""
    figure = Figure(figsize=(5, 5.5), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    left = np.arange(BINS) / BINS
    upper.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="perfectly calibrated")
    upper.bar(left, bins["accuracy"], 1 / BINS, align="edge", color=LIGHT_BLUE, edgecolor="white")
    upper.plot(bins["confidence"], bins["accuracy"], "o", color=BLUE, markersize=4, label="accuracy")
    lower.bar(left, bins["share"], 1 / BINS, align="edge", color=LIGHT_BLUE, edgecolor="white")
    if before is not None:
        old = {"color": ORANGE, "label": "before scaling"}
        upper.plot(before["confidence"], before["accuracy"], "x", markersize=5, **old)
        lower.stairs(before["share"].fillna(0), np.linspace(0, 1, BINS + 1), **old)
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), title=title)
    lower.set(xlabel="confidence", ylabel="share of samples")
    legend = upper.get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def draw_mistakes(mistakes: list[Mistake]) -> Figure:
    """Draws each mistake, beside it the evidence for what was predicted."""
    columns = min(len(mistakes), 4)
    rows = -(-len(mistakes) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.15 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, mistake in zip(figure.axes, mistakes, strict=False):
        parts = [mistake.picture] if mistake.evidence is None else [mistake.picture, mistake.evidence]
        axes.imshow(np.hstack(parts), interpolation="nearest")
        target, prediction = (shortened(name, 24) for name in (mistake.target, mistake.prediction))
        text = f"true: {target}\npredicted: {prediction}, {mistake.confidence:.1%}"
        axes.set_title(text, fontsize=9, loc="left", parse_math=False)
    return figure


def shortened(name: str, most: int) -> str:
    """Returns a name of at most so many characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def as_picture(image: Tensor) -> np.ndarray:
    """Returns `image (C, H, W) uint8` as `(H, W, 3)`, enlarged or reduced to about `SIDE` pixels; views
    `(V, C, H, W)` side by side."""
    image = side_by_side(image)
    image = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    longer = max(image.shape[-2:])
    if enlarge := SIDE // longer:
        image = image.repeat_interleave(enlarge, -1).repeat_interleave(enlarge, -2)
    else:
        size = [max(SIDE * side // longer, 1) for side in image.shape[-2:]]
        image = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0].round().byte()
    return image.permute(1, 2, 0).contiguous().numpy()


def side_by_side(image: Tensor) -> Tensor:
    """Returns views `(V, C, H, W)` of an image as one `(C, H, V * W)`; an image `(C, H, W)` as it is."""
    return torch.cat(list(image), -1) if image.ndim == 4 else image


def under_heat(picture: np.ndarray, heat: Tensor) -> np.ndarray:
    """Returns a picture `(H, W, 3) uint8` in grey under a heat map `(h, w)` of values in [0, 1]."""
    large = F.interpolate(heat[None, None].float(), picture.shape[:2], mode="bilinear")[0, 0].numpy()
    colours = 255 * colormaps["inferno"](large)[..., :3]
    grey = picture.mean(2, keepdims=True)
    return (0.45 * grey + 0.55 * colours).round().astype(np.uint8)

"""Draws docs/overview.png from a run directory: python docs/overview.py RUN"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import yaml

from imgcls.engine.build import build_data
from imgcls.report.figures import as_picture

run = Path(sys.argv[1])
config = yaml.safe_load((run / "config.yaml").read_text())
data = build_data(config["data"], None, config["seed"])
epochs = pd.read_csv(run / "metrics.csv")
confusion = pd.read_csv(run / "test" / "confusion_matrix.csv", index_col=0)
predictions = pd.read_csv(run / "test" / "predictions.csv")
predictions = predictions.rename(columns={"index": "sample"})
worst = predictions[predictions.target != predictions.prediction].nlargest(12, "confidence")

figure = plt.figure(figsize=(15, 4.6), layout="constrained")
curves, matrix, mistakes = figure.subfigures(1, 3, width_ratios=(1, 1.05, 1.15))
axes = curves.subplots()
for split, colour in (("train", "tab:grey"), ("val", "tab:blue")):
    axes.plot(epochs.epoch + 1, 100 * epochs[f"{split}/top1"], color=colour, marker="o", markersize=3)
    axes.annotate(
        split,
        (len(epochs), 100 * epochs[f"{split}/top1"].iloc[-1]),
        (6, 3 if split == "train" else -9),
        textcoords="offset points",
        color=colour,
    )
axes.set(xlabel="epoch", ylabel="top1, %", title="metrics.csv")
axes.spines[["top", "right"]].set_visible(False)
axes.set_xlim(0.5, len(epochs) + 1.6)
axes = matrix.subplots()
axes.imshow(confusion.div(confusion.sum(axis=1), axis=0), cmap="Blues")
axes.set_xticks(range(len(confusion)), confusion.columns, rotation=90, fontsize=8)
axes.set_yticks(range(len(confusion)), confusion.index, fontsize=8)
axes.set_title("confusion_matrix.png")
cells = mistakes.subplots(3, 4)
mistakes.suptitle("worst mistakes, in W&B")
for cell, row in zip(cells.flat, worst.itertuples(), strict=True):
    cell.imshow(as_picture(data.sets["test"].picture(row.sample)))
    cell.set_title(f"{row.target}\ntaken for {row.prediction}", fontsize=7)
    cell.axis("off")
figure.savefig(Path(__file__).with_name("overview.png"), dpi=90)

"""What `imgcls inspect` shows: lines on the terminal, figures, a page that needs no network (page.html)."""

import sys
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from torch import Tensor
from torchvision.utils import make_grid, save_image

from imgcls.augment.batch import BatchAugment
from imgcls.config.paths import hydra_quoted, shown
from imgcls.data.batch import EpochSampler
from imgcls.data.module import ImageDataModule
from imgcls.report.figures import as_picture, shortened, side_by_side
from imgcls.report.page import plain, render, table
from imgcls.tools.inspect.scan import Reader

LINES, CLASSES = 8, 30  # of a list and of the class table on the terminal; LINES copies in a line
PICTURED = 12  # groups of copies, and pictures of an odd look, that are drawn
COLOURS = {"train": "#4c72b0", "val": "#dd8452", "test": "#55a868"}
Samples = list[tuple[Tensor, str]]  # images (C, H, W) uint8 and their labels


class Fault(NamedTuple):
    """Something that is wrong with the data: a headline, the cases, and whether it makes results wrong."""

    title: str
    cases: list[str]
    grave: bool


def headline(found: dict[str, Any]) -> str:
    """Returns the name of the data, and how many images and classes it has."""
    return f"{found['data']}: {found['images']:,} images, {len(found['classes']):,} classes"


def facts(found: dict[str, Any]) -> dict[str, str]:
    """Returns what is in the data, a line each."""
    lines = {}
    for key in ("sizes", "formats", "modes"):
        lines[key] = ", ".join(f"{name} ({n:,})" for name, n in list(found[key].items())[:3] if name)
    if found["different_sizes"] > 3:
        lines["sizes"] += f", … {found['different_sizes']:,} different ones"
    if found["different_sizes"] > 1:
        sides = ((found[side], side) for side in ("width", "height"))
        lines["sides in pixels"] = ", ".join(f"{n['min']:,g} to {n['max']:,g} ({side})" for n, side in sides)
    lines["depth"] = "; ".join(depth(deep) for deep in found["deep"])
    lines["mean and std"] = found["override"]
    if ways := found["imbalance"]:
        weigh = "; task.class_weights=balanced evens it out" if ways["ratio"] >= 3 else ""
        largest = f"{ways['ratio']:g} to 1 in train: {ways['largest']} to {ways['smallest']}"
        lines["imbalance"] = f"{largest}{weigh}"
    lines["read"] = f"{found['seconds']:,.1f} s, {found['images_per_second']:,.0f} images/s"
    return {name: text for name, text in lines.items() if text}


def faults(found: dict[str, Any]) -> list[Fault]:
    """Returns what is wrong with the data, with the number of cases in the headline."""
    cut = " and ".join(found["cut"]) + (" are" if len(found["cut"]) > 1 else " is")
    lands = f"; {cut} cut from train, so copies can land on both sides" if found["cut"] else ""
    copies, near = sorted_copies(found["duplicates"]), sorted_copies(found["near_duplicates"])
    bad = [f"{plain(i.get('file') or i['folder'] + '/')}: {i['reason']}" for i in found["unreadable"]]
    deep = [f"{depth(d)}; set {d['override']} and inspect again" for d in found["deep"] if d["override"]]
    beside, absent = [plain(name) for name in found["left_out"]], list[str]()
    for name, at in found["absent"].items():
        there, lacking = ", ".join(at["in"]) or "no split", ", ".join(at["not_in"])
        absent.append(f"{plain(name)}: in {there}, not in {lacking}")
    listed = [
        Fault("LEAK: the same picture in more than one split", copies["leak"], True),
        Fault("the same picture under two labels", copies["two_labels"], True),
        Fault("can't be read", bad, True),
        Fault("folders beside the splits, which are not read", beside, True),
        Fault("kinds of files that are read too dark or too bright", deep, True),
        Fault("classes that not all splits have", absent, True),
        Fault(f"the same picture more than once{lands}", copies["harmless"], False),
        Fault("near duplicates in more than one split", near["leak"], False),
        Fault("near duplicates under two labels", near["two_labels"], False),
        Fault(f"near duplicates{lands}", near["harmless"], False),
    ]
    for look, rows in found["looks"].items():
        cases = [f"{plain(row['file'])}: {row['reason']}" for row in rows]
        listed.append(Fault(f"pictures that are {look}", cases, False))
    out = [fault._replace(title=f"{fault.title} ({len(fault.cases):,})") for fault in listed if fault.cases]
    if sum(len(group["images"]) for group in found["near_duplicates"]) > max(100, 0.02 * found["images"]):
        title = "so many near duplicates may be look-alikes, not copies; near=2 is stricter"
        out.append(Fault(title, [], False))
    if found["training_refuses"]:
        out.append(Fault(f"training refuses this data: {found['training_refuses']}", [], True))
    return out


def sorted_copies(groups: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Returns a line for each group of copies, by what is wrong with it; a group can be under two names."""
    out: dict[str, list[str]] = {"leak": [], "two_labels": [], "harmless": []}
    for group in groups:
        names = []
        for image in group["images"][:LINES]:
            label = "" if f"{image['label']}/" in image["file"] else f" ({image['label']})"
            names.append(plain(image["file"]) + label)
        more = ["…"] if len(group["images"]) > LINES else []
        for wrong in [name for name in ("leak", "two_labels") if group[name]] or ["harmless"]:
            out[wrong].append("  =  ".join(names + more))
    return out


def depth(deep: dict[str, Any]) -> str:
    """Returns what the images of more than 8 bits hold, in words."""
    images, peak = f"{deep['images']:,}", f"up to {deep['peak']:g}"
    if deep["white"] == 1:
        return f"{images} of floats {peak}, where 1 is white"
    bits = f"{deep['uses']} of {int(deep['white']).bit_length()} bits"
    return f"{images} of {deep['numbers']} use {bits}: {peak}, where {deep['white']:g} is white"


def show(found: dict[str, Any], run_dir: Path) -> None:
    """Prints how many images the first classes have, the facts, the faults, and where the rest is."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=True)
    console.print(escape(headline(found)), style="bold")
    heads = [Column(split, f"{n:,}", justify="right") for split, n in found["splits"].items()]
    grid = Table(Column("class", "all"), *heads, box=box.SIMPLE, show_footer=True)
    for name, counts in list(found["classes"].items())[:CLASSES]:
        grid.add_row(escape(plain(name)), *(f"{n:,}" if n else "[bold red]0" for n in counts.values()))
    if (more := len(found["classes"]) - CLASSES) > 0:
        grid.add_row(f"… {more:,} more")
    console.print(grid, soft_wrap=False)
    for name, text in facts(found).items():
        console.print(escape(f"  {name:<17}{text}"))
    for title, cases, grave in faults(found) or [Fault("no faults found", [], False)]:
        console.print(escape(f"\n{title}"), style="bold red" if grave else "bold yellow" if cases else "")
        rest = [f"… {len(cases) - LINES:,} more"] if len(cases) > LINES else []
        for case in cases[:LINES] + rest:
            console.print(escape(f"  {case}"))
    if found["no_samples"]:
        console.print(escape(f"\nno page of samples: {found['no_samples']}"), end="")
    console.print(escape(f"\npage: {shown(run_dir / 'index.html')}"))
    if found["excluded"]:
        path = hydra_quoted(shown(run_dir / "exclude.txt"))
        console.print(escape(f"leave {found['excluded']:,} files out: data.exclude={path}"))


def write(run_dir: Path, found: dict[str, Any], seen: pd.DataFrame, reader: Reader, samples: Samples) -> None:
    """Writes the figures and the page."""
    counts, place = pd.DataFrame(found["classes"]).T, {file: i for i, file in enumerate(seen["file"])}
    draw_counts(counts).savefig(run_dir / "class_counts.png", dpi=110)
    if found["images"]:
        draw_sizes(seen[seen["reason"].isna()]).savefig(run_dir / "sizes.png", dpi=110)
    if samples:
        save_image(make_grid([image / 255 for image, _ in samples]), run_dir / "samples.png")
    counts.loc["in all"] = counts.sum()
    copies = []
    for group in found["duplicates"][:PICTURED] + found["near_duplicates"][:PICTURED]:
        pair = [image["file"] for image in group["images"][:2]]
        copies.append({file: as_picture(reader.picture(place[file])) for file in pair})
    looks = {
        name: {row["file"]: as_picture(reader.picture(place[row["file"]])) for row in rows[:PICTURED]}
        for name, rows in found["looks"].items()
    }
    words = {"headline": headline(found), "facts": facts(found), "faults": faults(found)}
    pictures = {
        "copies": copies,
        "looks": looks,
        "samples": [(as_picture(image), label) for image, label in samples],
    }
    grid, path = table(counts.rename_axis("").reset_index()), run_dir / "index.html"
    render("tools/inspect/page.html", path, found=found, counts=grid, **words, **pictures)


def draw_counts(counts: pd.DataFrame) -> Figure:
    """Draws how many images each class (row) has in each split: up to 60 by name, more of them by size."""
    named, many = counts.rename(index=lambda name: shortened(plain(name), 24)), len(counts) > 60
    if many:
        named = named.iloc[(-counts.sum(axis=1)).argsort()]
    figure = Figure(figsize=(8, 4 if many else max(2.0, 0.26 * len(counts) + 1)), layout="constrained")
    axes, bars, width = figure.subplots(), named.plot.barh, 1 if many else 0.8
    bars(ax=axes, stacked=True, width=width, color=COLOURS, xlabel="images")  # type: ignore[arg-type]
    axes.invert_yaxis()
    axes.set_ylabel("")
    if many:
        axes.set(ylabel=f"{len(counts):,} classes, largest first", yticks=[])
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


def draw_samples(data: ImageDataModule, unreadable: set[str], number: int) -> Samples:
    """Returns training images as the network sees them, not normalised; fewer where fewer can be read. The
    label of a mixed one has each class with its share."""
    dataset, spec = data.sets["train"], data.spec
    order = EpochSampler(len(dataset), data.seed, shuffle=True, training=True)
    keys = list(islice((key for key in order if dataset.name(key) not in unreadable), number))
    if not keys:
        return []
    images, targets, *_ = dataset.__getitems__(keys)
    pixels, shares = BatchAugment(data.augment, spec).shown(images, targets)
    if shares.ndim == 1:
        shares = torch.eye(spec.num_classes)[targets]
    samples = []
    for image, row in zip(pixels, shares.tolist(), strict=True):
        parts = [(share, name) for share, name in zip(row, spec.class_names, strict=True) if share > 0.005]
        label = " + ".join(name if len(parts) == 1 else f"{share:.2f} {name}" for share, name in parts)
        samples.append((side_by_side(image), label))
    return samples

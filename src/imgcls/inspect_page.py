"""What `imgcls inspect` shows of its findings: the terminal's table, figures, and a page that needs no network."""

import html
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from imgcls.data.scan import Reader
from imgcls.run import hydra_quoted, shown

LINES, ROWS = 8, 1000  # of a list, on the terminal and on the page; inspect.json has all
COPIES, PICTURED = 8, 12  # copies in a line; groups of copies that are drawn
COLOURS = {"train": "#4c72b0", "val": "#dd8452", "test": "#55a868"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; font-size: .9rem } th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
thead th { border-bottom: 1px solid #999 } tbody tr:nth-child(even) { background: #f6f6f6 }
td { overflow-wrap: anywhere } img { max-width: 100% } code { background: #f2f2f2; padding: .1rem .3rem }
.counts td, .counts thead th:not(:first-child) { text-align: right } .counts th { font-weight: normal }
.alarm { border-left: .4rem solid #b00020; background: #fdf0f1; padding: .5rem 1rem; font-weight: 600 }
"""


def facts(found: dict[str, Any]) -> dict[str, str]:
    """Returns what is in the data, a line each."""
    sizes = ", ".join(f"{size} ({n:,})" for size, n in list(found["sizes"].items())[:3])
    sizes += f", … {found['different_sizes']:,} different ones" if found["different_sizes"] > 3 else ""
    several = found["different_sizes"] > 1
    ranges = [f"{found[side]['min']:,} to {found[side]['max']:,} ({side})" for side in ("width", "height") if several]
    ways = found["imbalance"]
    weigh = "; class_weights=balanced evens it out" if ways and ways["ratio"] >= 3 else ""
    lines = {
        "sizes": sizes,
        "sides in pixels": ", ".join(ranges),
        "formats": ", ".join(f"{name} ({n:,})" for name, n in found["formats"].items() if name),
        "modes": ", ".join(f"{name} ({n:,})" for name, n in found["modes"].items() if name),
        "mean and std": found["override"] or "",
        "imbalance": f"{ways['ratio']:g} to 1 in train: {ways['largest']} to {ways['smallest']}{weigh}" if ways else "",
        "read": f"{found['seconds']:,.1f} s, {found['images_per_second']:,.0f} images/s",
    }
    return {name: text for name, text in lines.items() if text}


def faults(found: dict[str, Any]) -> list[tuple[str, list[str], bool]]:
    """Returns what is wrong with the data: a headline, the cases, and whether it makes results wrong."""

    def chosen(groups: str, key: str | None) -> list[str]:
        """Those that leak, that have two labels, or that have neither."""
        lines = []
        for group in found[groups]:
            if group[key] if key else not (group["leak"] or group["two_labels"]):
                named = [(i["file"], f" ({i['label']})" * (f"{i['label']}/" not in i["file"])) for i in group["images"]]
                words = [plain(file) + label for file, label in named[:COPIES]] + ["…"] * (len(named) > COPIES)
                lines.append("  =  ".join(words))
        return lines

    cut = " and ".join(found["cut"]) + (" are" if len(found["cut"]) > 1 else " is")
    lands = f"; {cut} cut from train, so copies can land on both sides" if found["cut"] else ""
    absent = [
        f"{plain(name)}: in {', '.join(at['in']) or 'no split'}, not in {', '.join(at['not_in'])}"
        for name, at in found["absent"].items()
    ]
    bad = [f"{plain(item.get('file') or item['folder'] + '/')}: {item['reason']}" for item in found["unreadable"]]
    listed = [
        ("LEAK: the same picture in more than one split", chosen("duplicates", "leak"), True),
        ("the same picture under two labels", chosen("duplicates", "two_labels"), True),
        ("can't be read", bad, True),
        ("classes that not all splits have", absent, True),
        (f"the same picture more than once{lands}", chosen("duplicates", None), False),
        ("near duplicates in more than one split", chosen("near_duplicates", "leak"), False),
        ("near duplicates under two labels", chosen("near_duplicates", "two_labels"), False),
        (f"near duplicates{lands}", chosen("near_duplicates", None), False),
    ]  # fmt: skip
    out = [(f"{title} ({len(cases):,})", cases, grave) for title, cases, grave in listed if cases]
    if sum(len(g["images"]) for g in found["near_duplicates"]) > max(100, 0.02 * found["images"]):
        out.append(("so many near duplicates may be look-alikes, not copies; near=2 is stricter", [], False))
    if found["training_refuses"]:
        out.append((f"training refuses this data: {found['training_refuses']}", [], True))
    return out


def show(found: dict[str, Any], run_dir: Path) -> None:
    """Prints the class table, the facts, the faults, and where the rest is."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    table = Table("class", *found["splits"], box=box.SIMPLE, show_footer=True)
    table.columns[0].footer = "all"
    for column, count in zip(table.columns[1:], found["splits"].values(), strict=True):
        column.justify, column.footer = "right", f"{count:,}"
    rows = list(found["classes"].items())
    for name, counts in rows[:30]:
        table.add_row(Text(plain(name)), *(f"{n:,}" if n else "[bold red]0" for n in counts.values()))
    if len(rows) > 30:
        table.add_row(f"… {len(rows) - 30:,} more", *[""] * len(found["splits"]))
    console.print(Text(f"{found['data']}: {found['images']:,} images, {len(rows):,} classes", "bold"), soft_wrap=True)
    console.print(table)
    for name, text in facts(found).items():
        console.print(Text(f"  {name:<17}{text}"), soft_wrap=True)
    for title, cases, grave in faults(found):
        console.print(Text(f"\n{title}", "bold red" if grave else "bold yellow"), soft_wrap=True)
        for case in cases[:LINES]:
            console.print(Text(f"  {case}"), soft_wrap=True)
        if len(cases) > LINES:
            console.print(f"  … {len(cases) - LINES:,} more")
    console.print("" if faults(found) else "\n[green]no faults found\n", end="\n")
    if found["no_samples"]:
        console.print(Text(f"no page of samples: {found['no_samples']}"), soft_wrap=True)
    console.print(Text(f"page: {shown(run_dir / 'index.html')}"), soft_wrap=True)
    if found["excluded"]:
        path = hydra_quoted(shown(run_dir / "exclude.txt"))
        console.print(Text(f"leave {found['excluded']:,} files out: data.exclude={path}"), soft_wrap=True)


def write_page(
    run_dir: Path,
    found: dict[str, Any],
    table: pd.DataFrame,
    reader: Reader,
    seen: tuple[list[Tensor], list[str]] | None,
) -> None:
    """Writes the figures and index.html; `seen` is what `samples` returned, if there are any."""
    figures = {"class_counts": draw_counts(found)}
    if found["images"]:
        figures["sizes"] = draw_sizes(table[table["reason"].isna()])
    for name in ("duplicates", "near_duplicates"):
        if found[name]:
            figures[name] = draw_copies(table, reader, found[name][:PICTURED])
    if seen is not None:
        figures["samples"] = draw_grid(*seen, 8)
    for name, figure in figures.items():
        figure.savefig(run_dir / f"{name}.png", dpi=110)
    (run_dir / "index.html").write_text(page(found, set(figures)), encoding="utf-8", errors="backslashreplace")


def draw_counts(found: dict[str, Any]) -> Figure:
    """Draws how many images each class has, by split: up to 60 classes by name, more of them largest first."""
    names, counts = list(found["classes"]), pd.DataFrame(found["classes"]).T
    named = names if len(names) <= 60 else []
    if not named:
        counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False).index]
    figure = Figure(figsize=(8, max(2.0, 0.26 * len(named) + 1) if named else 4), layout="constrained")
    axes, left = figure.subplots(), np.zeros(len(names))
    for split, colour in COLOURS.items():
        if split in counts:
            axes.barh(range(len(names)), counts[split], 0.8 if named else 1, left, label=split, color=colour)
            left = left + counts[split].to_numpy()
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(named)), [short(name) for name in named], parse_math=False)
    axes.set_xlabel("images")
    axes.set_ylabel("" if named else f"{len(names):,} classes, largest first")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(COLOURS), loc="lower right", bbox_to_anchor=(1, 1))
    return figure


def draw_sizes(good: pd.DataFrame) -> Figure:
    """Draws width against height, a dot for each size, its area by how many images have it."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes, sizes = figure.subplots(), good.groupby(["width", "height"]).size().reset_index(name="images")
    area = np.clip(2000 * sizes["images"] / max(len(good), 1), 8, 400)
    axes.scatter(sizes["width"], sizes["height"], area, color=COLOURS["train"], alpha=0.5, linewidths=0)
    axes.set_xlim(0, 1.1 * sizes["width"].max())
    axes.set_ylim(0, 1.1 * sizes["height"].max())
    axes.set_xlabel("width in pixels")
    axes.set_ylabel("height in pixels")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_copies(table: pd.DataFrame, reader: Reader, groups: list[dict[str, Any]]) -> Figure:
    """Draws the first two images of each group, side by side."""
    place = {file: i for i, file in enumerate(table["file"])}
    files = [image["file"] for group in groups for image in group["images"][:2]]
    return draw_grid([reader.picture(place[file]) for file in files], files, 6)


def draw_grid(images: list[Tensor], names: list[str], columns: int) -> Figure:
    """Draws `images (C, H, W) uint8` in rows, each with its name."""
    rows, side = -(-len(images) // columns), 10 / columns
    figure = Figure(figsize=(10, rows * (side + 0.15)), layout="constrained")
    for axes in (grid := figure.subplots(rows, columns, squeeze=False).ravel()):
        axes.axis("off")
    for axes, image, name in zip(grid, images, names, strict=False):
        if min(image.shape[1:]) > 256:
            image = F.resize(image, [256], antialias=True)
        pixels = image.permute(1, 2, 0).numpy()
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if len(pixels) < 128 else None)
        axes.set_title(short(name, round(170 / columns)), fontsize=7, parse_math=False)
    return figure


def plain(name: str) -> str:
    """Returns a name with its line ends, escape codes and bytes that are no text spelt out."""
    return name if name.isprintable() else repr(name)[1:-1]


def short(name: str, most: int = 24) -> str:
    name = plain(name)
    return name if len(name) <= most else f"…{name[1 - most :]}"


def page(found: dict[str, Any], figures: set[str]) -> str:
    """Returns the page; its figures lie beside it."""

    def figure(name: str, words: str) -> str:
        return f'<p><img src="{name}.png" alt="{words}"></p>' if name in figures else ""

    title = html.escape(f"{found['data']}: {found['images']:,} images, {len(found['classes']):,} classes")
    alarms = "".join(f'<p class="alarm">{html.escape(text)}</p>' for text, _, grave in faults(found) if grave)
    lines = "".join(f"<tr><th>{name}<td>{html.escape(text)}" for name, text in facts(found).items())
    counts = pd.DataFrame(found["classes"]).T
    counts.loc["in all"] = counts.sum()
    numbers = counts.to_html(border=0, classes="counts", formatters=["{:,}".format] * counts.shape[1])
    sections = ""
    for text, cases in ((text, cases) for text, cases, _ in faults(found) if cases):
        items = [f"<li>{html.escape(case)}</li>" for case in cases[:ROWS]]
        sections += f"<h2>{html.escape(text)}</h2><ul>{''.join(items[:20])}</ul>"
        if len(items) > 20:
            rest = f"{len(cases) - 20:,} more" + (", all of them in inspect.json" if len(cases) > ROWS else "")
            sections += f"<details><summary>{rest}</summary><ul>{''.join(items[20:])}</ul></details>"
    pictured = figure("duplicates", "pictures that are there more than once") + figure("near_duplicates", "pairs")
    samples = figure("samples", "augmented images") or f"<p>None: {html.escape(str(found['no_samples']))}.</p>"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,"><title>{title}</title><style>{STYLE}</style></head><body>
<h1>{title}</h1>
{alarms}
<h2>What is in it</h2><table class="facts">{lines}</table>
{"" if faults(found) else "<p>No faults found.</p>"}
{sections}
{pictured}
<h2>Classes</h2>
{figure("class_counts", "images of each class")}
<details><summary>numbers</summary>{numbers}</details>
<h2>Sizes</h2>{figure("sizes", "width and height of the images")}
<h2>Training images as the network sees them</h2>{samples}
</body></html>
"""

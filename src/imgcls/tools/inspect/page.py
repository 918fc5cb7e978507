"""What `imgcls inspect` shows of its findings: the terminal's table, figures, and a page that needs no network."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torchvision.utils import make_grid, save_image

from imgcls.config.paths import hydra_quoted, shown
from imgcls.report.figures import as_picture
from imgcls.report.page import inline, plain, write_page
from imgcls.report.page import table as html
from imgcls.tools.inspect.scan import Reader

LINES = 8  # of a list on the terminal, and copies in a line
PICTURED = 12  # groups of copies that are drawn
COLOURS = {"train": "#4c72b0", "val": "#dd8452", "test": "#55a868"}


def facts(found: dict[str, Any]) -> dict[str, str]:
    """Returns what is in the data, a line each."""
    counted = {
        key: ", ".join(f"{name} ({n:,})" for name, n in list(found[key].items())[:3] if name)
        for key in ("sizes", "formats", "modes")
    }
    if found["different_sizes"] > 3:
        counted["sizes"] += f", … {found['different_sizes']:,} different ones"
    if found["different_sizes"] > 1:
        ranges = [
            f"{found[side]['min']:,g} to {found[side]['max']:,g} ({side})" for side in ("width", "height")
        ]
        counted["sides in pixels"] = ", ".join(ranges)
    counted["depth"] = "; ".join(depth(deep) for deep in found["deep"])
    counted["mean and std"] = found["override"]
    if ways := found["imbalance"]:
        weigh = "; class_weights=balanced evens it out" if ways["ratio"] >= 3 else ""
        counted["imbalance"] = (
            f"{ways['ratio']:g} to 1 in train: {ways['largest']} to {ways['smallest']}{weigh}"
        )
    counted["read"] = f"{found['seconds']:,.1f} s, {found['images_per_second']:,.0f} images/s"
    return {name: text for name, text in counted.items() if text}


def faults(found: dict[str, Any]) -> list[tuple[str, list[str], bool]]:
    """Returns what is wrong with the data: a headline, the cases, and whether it makes results wrong."""

    def chosen(groups: str, key: str | None) -> list[str]:
        """Those that leak, that have two labels, or that have neither."""
        lines = []
        for group in found[groups]:
            if group[key] if key else not (group["leak"] or group["two_labels"]):
                named = [
                    (i["file"], f" ({i['label']})" * (f"{i['label']}/" not in i["file"]))
                    for i in group["images"]
                ]
                words = [plain(file) + label for file, label in named[:LINES]] + ["…"] * (len(named) > LINES)
                lines.append("  =  ".join(words))
        return lines

    cut = " and ".join(found["cut"]) + (" are" if len(found["cut"]) > 1 else " is")
    lands = f"; {cut} cut from train, so copies can land on both sides" if found["cut"] else ""
    absent = [
        f"{plain(name)}: in {', '.join(at['in']) or 'no split'}, not in {', '.join(at['not_in'])}"
        for name, at in found["absent"].items()
    ]
    bad = [
        f"{plain(item.get('file') or item['folder'] + '/')}: {item['reason']}" for item in found["unreadable"]
    ]
    deep = [f"{depth(d)}; set {d['override']} and inspect again" for d in found["deep"] if d["override"]]
    listed = [
        ("LEAK: the same picture in more than one split", chosen("duplicates", "leak"), True),
        ("the same picture under two labels", chosen("duplicates", "two_labels"), True),
        ("can't be read", bad, True),
        ("folders beside the splits, which are not read", list(map(plain, found["left_out"])), True),
        ("kinds of files that are read too dark or too bright", deep, True),
        ("classes that not all splits have", absent, True),
        (f"the same picture more than once{lands}", chosen("duplicates", None), False),
        ("near duplicates in more than one split", chosen("near_duplicates", "leak"), False),
        ("near duplicates under two labels", chosen("near_duplicates", "two_labels"), False),
        (f"near duplicates{lands}", chosen("near_duplicates", None), False),
    ]
    out = [(f"{title} ({len(cases):,})", cases, grave) for title, cases, grave in listed if cases]
    if sum(len(g["images"]) for g in found["near_duplicates"]) > max(100, 0.02 * found["images"]):
        out.append(("so many near duplicates may be look-alikes, not copies; near=2 is stricter", [], False))
    if found["training_refuses"]:
        out.append((f"training refuses this data: {found['training_refuses']}", [], True))
    return out


def depth(deep: dict[str, Any]) -> str:
    """Returns what the images of more than 8 bits hold, in words."""
    if deep["white"] == 1:
        return f"{deep['images']:,} of floats up to {deep['peak']:g}, where 1 is white"
    bits = f"{deep['uses']} of {int(deep['white']).bit_length()} bits"
    return f"{deep['images']:,} of {deep['numbers']} use {bits}: up to {deep['peak']:g}, where {deep['white']:g} is white"


def headline(found: dict[str, Any]) -> str:
    return f"{found['data']}: {found['images']:,} images, {len(found['classes']):,} classes"


def show(found: dict[str, Any], run_dir: Path) -> None:
    """Prints the class table, the facts, the faults, and where the rest is."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=True)
    table = Table("class", *found["splits"], box=box.SIMPLE, show_footer=True)
    table.columns[0].footer = "all"
    for column, count in zip(table.columns[1:], found["splits"].values(), strict=True):
        column.justify, column.footer = "right", f"{count:,}"
    rows = list(found["classes"].items())
    for name, counts in rows[:30]:
        table.add_row(escape(plain(name)), *(f"{n:,}" if n else "[bold red]0" for n in counts.values()))
    if len(rows) > 30:
        table.add_row(f"… {len(rows) - 30:,} more")
    console.print(escape(headline(found)), style="bold")
    console.print(table, soft_wrap=False)
    for name, text in facts(found).items():
        console.print(escape(f"  {name:<17}{text}"))
    for title, cases, grave in faults(found) or [("no faults found", [], False)]:
        console.print(escape(f"\n{title}"), style="bold red" if grave else "bold yellow" if cases else "")
        more = [f"… {len(cases) - LINES:,} more"] if len(cases) > LINES else []
        for case in cases[:LINES] + more:
            console.print(escape(f"  {case}"))
    if found["no_samples"]:
        console.print(escape(f"\nno page of samples: {found['no_samples']}"), end="")
    console.print(escape(f"\npage: {shown(run_dir / 'index.html')}"))
    if found["excluded"]:
        path = hydra_quoted(shown(run_dir / "exclude.txt"))
        console.print(escape(f"leave {found['excluded']:,} files out: data.exclude={path}"))


def write(
    run_dir: Path,
    found: dict[str, Any],
    table: pd.DataFrame,
    reader: Reader,
    seen: tuple[list[Tensor], list[str]] | None,
) -> None:
    """Writes the figures and the page; `seen` is what `samples` returned."""
    draw_counts(found).savefig(run_dir / "class_counts.png", dpi=110)
    if found["images"]:
        draw_sizes(table[table["reason"].isna()]).savefig(run_dir / "sizes.png", dpi=110)
    if seen is not None:
        save_image(make_grid([image / 255 for image in seen[0]]), run_dir / "samples.png")
    wrong, place = faults(found), {file: i for i, file in enumerate(table["file"])}
    counts = pd.DataFrame(found["classes"]).T
    counts.loc["in all"] = counts.sum()
    numbers = html(counts, index=True)
    copies = []
    for group in found["duplicates"][:PICTURED] + found["near_duplicates"][:PICTURED]:
        pair = [image["file"] for image in group["images"][:2]]
        pictures = [inline(as_picture(reader.picture(place[file]))) for file in pair]
        copies.append((pictures, {f"{plain(pair[0])} = {plain(pair[1])}": ""}))
    samples = [
        ([inline(as_picture(image))], {plain(label): ""})
        for image, label in zip(*(seen or ([], [])), strict=True)
    ]
    sections: list[dict[str, Any]] = [
        {"title": "What is in it", "facts": facts(found), "text": "" if wrong else "No faults found."},
        *({"title": title, "lines": cases} for title, cases, _ in wrong if cases),
        {"title": "Copies, a pair of each" if copies else "", "gallery": copies},
        {"title": "Classes", "pictures": ["class_counts.png"], "details": numbers},
        {"title": "Sizes", "pictures": ["sizes.png"] if found["images"] else []},
        {
            "title": "Training images as the network sees them", "gallery": samples,
            "text": "" if samples else f"None: {found['no_samples']}.",
        },
    ]  # fmt: skip
    alarms = [title for title, _, grave in wrong if grave]
    write_page(run_dir / "index.html", headline(found), sections, alarms)


def draw_counts(found: dict[str, Any]) -> Figure:
    """Draws how many images each class has, by split: up to 60 classes by name, more of them largest first."""
    counts = pd.DataFrame(found["classes"]).T
    named, many = counts.rename(index=short), len(counts) > 60
    if many:
        named = named.iloc[(-counts.sum(axis=1)).argsort()]
    figure = Figure(figsize=(8, 4 if many else max(2.0, 0.26 * len(counts) + 1)), layout="constrained")
    axes = figure.subplots()
    named.plot.barh(ax=axes, stacked=True, width=1 if many else 0.8, color=COLOURS, xlabel="images")  # type: ignore[arg-type]
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


def short(name: str, most: int = 24) -> str:
    name = plain(name)
    return name if len(name) <= most else f"…{name[1 - most :]}"

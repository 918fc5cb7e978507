"""Words of `imgcls inspect`: says what is in the data, and what is wrong with it, and prints both."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from imgcls.config.paths import hydra_quoted, shown
from imgcls.report.page import plain

LINES = 8  # of a list on the terminal, and copies in a line


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
        weigh = "; class_weights=balanced evens it out" if ways["ratio"] >= 3 else ""
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
    absent = [
        f"{plain(name)}: in {', '.join(at['in']) or 'no split'}, not in {', '.join(at['not_in'])}"
        for name, at in found["absent"].items()
    ]
    listed = [
        Fault("LEAK: the same picture in more than one split", copies["leak"], True),
        Fault("the same picture under two labels", copies["two_labels"], True),
        Fault("can't be read", bad, True),
        Fault(
            "folders beside the splits, which are not read", [plain(name) for name in found["left_out"]], True
        ),
        Fault("kinds of files that are read too dark or too bright", deep, True),
        Fault("classes that not all splits have", absent, True),
        Fault(f"the same picture more than once{lands}", copies["harmless"], False),
        Fault("near duplicates in more than one split", near["leak"], False),
        Fault("near duplicates under two labels", near["two_labels"], False),
        Fault(f"near duplicates{lands}", near["harmless"], False),
    ]
    out = [fault._replace(title=f"{fault.title} ({len(fault.cases):,})") for fault in listed if fault.cases]
    if sum(len(group["images"]) for group in found["near_duplicates"]) > max(100, 0.02 * found["images"]):
        out.append(
            Fault("so many near duplicates may be look-alikes, not copies; near=2 is stricter", [], False)
        )
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
        wrong = [name for name in ("leak", "two_labels") if group[name]] or ["harmless"]
        for name in wrong:
            out[name].append("  =  ".join(names + more))
    return out


def depth(deep: dict[str, Any]) -> str:
    """Returns what the images of more than 8 bits hold, in words."""
    images, peak = f"{deep['images']:,}", f"up to {deep['peak']:g}"
    if deep["white"] == 1:
        return f"{images} of floats {peak}, where 1 is white"
    bits = f"{deep['uses']} of {int(deep['white']).bit_length()} bits"
    return f"{images} of {deep['numbers']} use {bits}: {peak}, where {deep['white']:g} is white"


def show(found: dict[str, Any], run_dir: Path) -> None:
    """Prints the class table, the facts, the faults, and where the rest is."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=True)
    console.print(escape(headline(found)), style="bold")
    console.print(class_table(found), soft_wrap=False)
    for name, text in facts(found).items():
        console.print(escape(f"  {name:<17}{text}"))
    for title, cases, grave in faults(found) or [Fault("no faults found", [], False)]:
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


def class_table(found: dict[str, Any]) -> Table:
    """Returns how many images the first classes have, and all of them, by split."""
    table = Table("class", *found["splits"], box=box.SIMPLE, show_footer=True)
    table.columns[0].footer = "all"
    for column, count in zip(table.columns[1:], found["splits"].values(), strict=True):
        column.justify, column.footer = "right", f"{count:,}"
    rows = list(found["classes"].items())
    for name, counts in rows[:30]:
        table.add_row(escape(plain(name)), *(f"{n:,}" if n else "[bold red]0" for n in counts.values()))
    if len(rows) > 30:
        table.add_row(f"… {len(rows) - 30:,} more")
    return table

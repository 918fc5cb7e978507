"""Counts what the source of checkouts is made of, by folder: python docs/counts.py CHECKOUT [CHECKOUT …]"""

import ast
import re
import sys
from collections import Counter
from pathlib import Path

COUNTED = {
    "Any": re.compile(r"\bAny\b"),
    "type: ignore": re.compile(r"# type: ignore"),
    "fmt: skip": re.compile(r"# fmt: skip"),
    "over 110 columns": re.compile(r"^.{111,}$", re.MULTILINE),
}
PUBLIC = {"_exit", "_replace", "_fields", "_fields_", "_target_"}  # documented, in spite of their names


def private_names(text: str) -> int:
    """Counts the attributes and imported names with a leading underscore, neither self's nor the file's."""
    tree = ast.parse(text)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id in ("self", "cls")
    }
    read = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr not in own]
    modules = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    names = read + [part for module in modules for part in module.split(".")]
    return sum(bool(re.match(r"_[a-z]", name)) and name not in PUBLIC for name in names)


def count(checkout: Path) -> dict[str, Counter[str]]:
    """Returns for each folder of src/imgcls, and for all, how much there is of each thing."""
    found: dict[str, Counter[str]] = {}
    source = checkout / "src" / "imgcls"
    for path in sorted(source.rglob("*.py")):
        text, (folder, *inner) = path.read_text(), path.relative_to(source).parts
        counts = Counter({"files": 1, "lines": text.count("\n")})
        counts |= Counter({name: len(pattern.findall(text)) for name, pattern in COUNTED.items()})
        counts["over 250 lines"] = int(text.count("\n") > 250)
        counts["private names"] = 0 if path.name == "private.py" else private_names(text)
        for name in (f"{folder}/" if inner else "(top)", "all"):
            found[name] = found.get(name, Counter()) + counts
    return found


def main() -> None:
    columns = ("files", "over 250 lines", "lines", *COUNTED, "private names")
    for checkout in map(Path, sys.argv[1:]):
        found = count(checkout)
        print(f"| {checkout.name} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
        for folder in sorted(found, key=lambda name: (name == "all", name)):
            print(f"| {folder} | {' | '.join(f'{found[folder][column]:,}' for column in columns)} |")
        print()


if __name__ == "__main__":
    main()

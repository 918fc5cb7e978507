"""Parameters of what the config calls, read from source files: to import torch would take seconds."""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

WORDS = {
    "int": "integer", "float": "number", "str": "text", "bool": "true, false", "None": "null", "Path": "text",
    "PositiveFloat": "number above 0", "NonNegativeFloat": "number from 0", "PositiveInt": "integer from 1",
    "NonNegativeInt": "integer from 0", "Any": "", "dict": "keys and values", "list": "list",
}  # fmt: skip
BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}
LISTS = ("list", "List", "Sequence", "Iterable", "tuple", "Tuple", "set")
Definition = ast.FunctionDef | ast.ClassDef | ast.expr  # the last: an assigned value
STEPS = 12  # aliases and imports that are followed


class Parameter(NamedTuple):
    """A parameter: what it takes, in words, and what the docstring says of it; "" where it is not said."""

    takes: str
    phrase: str


@cache
def parameters(target: str) -> dict[str, Parameter]:
    """Returns the parameters of a class or function by its dotted name, those of its base classes included;
    none where its source is not found."""
    found = _definition(target)
    if found is None:
        return {}
    module, node = found
    if not isinstance(node, ast.ClassDef):
        return _of(module, [node] if isinstance(node, ast.FunctionDef) else [])
    inits = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    own = _of(module, [*inits, node])
    if not inits or any(init.args.kwarg for init in inits):
        for base in node.bases:
            name = ast.unparse(base)
            inherited = parameters(_qualified(module, name)) if "[" not in name else {}
            own = {**inherited, **own}
    return own


def _of(module: str, nodes: list[ast.FunctionDef | ast.ClassDef]) -> dict[str, Parameter]:
    """Returns the parameters of a function, or of a class whose `__init__` or fields are given."""
    said = " \n".join(filter(None, (ast.get_docstring(node) for node in nodes)))
    takes = dict[str, str]()
    for node in nodes:
        if isinstance(node, ast.FunctionDef):
            named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            takes |= {
                one.arg: _words(one.annotation, module) for one in named if one.arg not in ("self", "cls")
            }
        else:
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            takes |= {ast.unparse(field.target): _words(field.annotation, module) for field in fields}
    return {name: Parameter(words, _phrase(name, said)) for name, words in takes.items()}


def _phrase(name: str, docstring: str) -> str:
    """Returns what the section Args of a docstring says of a parameter, its first sentence."""
    names = rf"^(?P<indent> +)(?:[\w, ]+, )?{re.escape(name)}(?:, [\w, ]+)?(?: ?\([^)]*\))? ?:"
    pattern = names + r" *(?P<text>.*(?:\n(?P=indent) +.*)*)"
    found = re.search(pattern, docstring, re.MULTILINE)
    text = " ".join(found["text"].split()) if found else ""
    return re.split(r"(?<=[.;]) (?=[A-Z])", re.sub(r":\w+:|``|`", "", text))[0].rstrip(".")


def _words(node: ast.expr | None, module: str, steps: int = STEPS) -> str:
    """Returns in words what an annotation allows."""
    if node is None or steps == 0:
        return ""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):  # an annotation in quotes
            return _words(ast.parse(node.value, mode="eval").body, module, steps - 1)
        return WORDS.get(str(node.value), str(node.value))
    if isinstance(node, ast.BinOp):
        return _either([_words(side, module, steps - 1) for side in (node.left, node.right)])
    if isinstance(node, ast.Subscript):
        return _generic(node, module, steps - 1)
    name = ast.unparse(node).rpartition(".")[2]
    if name in WORDS:
        return WORDS[name]
    found = _definition(_qualified(module, ast.unparse(node)))
    return _words(found[1], found[0], steps - 1) if found and isinstance(found[1], ast.expr) else ""


def _generic(node: ast.Subscript, module: str, steps: int) -> str:
    kind = ast.unparse(node.value).rpartition(".")[2]
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if kind == "Literal":
        return ", ".join(WORDS.get(str(ast.literal_eval(one)), str(ast.literal_eval(one))) for one in inner)
    if kind == "Optional":
        return _either([_words(inner[0], module, steps), "null"])
    if kind == "Union":
        return _either([_words(one, module, steps) for one in inner])
    if kind == "Annotated":
        bounds = [
            BOUNDS[keyword.arg].format(ast.unparse(keyword.value).replace("2 ** 32", "4294967296"))
            for call in inner[1:]
            if isinstance(call, ast.Call)
            for keyword in call.keywords
            if keyword.arg in BOUNDS
        ]
        return " ".join([_words(inner[0], module, steps), *bounds])
    if kind in LISTS:
        of = re.sub(r"^(integer|number|text)", r"\1s", _words(inner[0], module, steps))
        return f"list of {of}" if of else "list"
    return WORDS.get(kind, "")


def _either(words: list[str]) -> str:
    """Returns alternatives, null at the end."""
    parts = list(dict.fromkeys(filter(None, words)))
    parts = [part for part in parts if part != "null"] + ["null"] * ("null" in parts)
    return " or ".join(parts)


def _definition(target: str, steps: int = STEPS) -> tuple[str, Definition] | None:
    """Returns the module and the syntax of what a dotted name is."""
    module, _, name = target.rpartition(".")
    tree = _tree(module) if module and steps else None
    if tree is None:
        return None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and name in map(ast.unparse, node.targets):
            return module, node.value
        if isinstance(node, ast.ImportFrom) and any((one.asname or one.name) == name for one in node.names):
            original = next(one.name for one in node.names if (one.asname or one.name) == name)
            return _definition(f"{_imported(node, module)}.{original}", steps - 1)
    return None


def _qualified(module: str, name: str) -> str:
    """Returns the dotted name of what a module calls `name`, which may be of a module that it imports."""
    first, _, rest = name.partition(".")
    tree = _tree(module)
    for node in tree.body if rest and tree is not None else ():
        if isinstance(node, ast.Import | ast.ImportFrom):
            for one in node.names:
                if (one.asname or one.name) == first:
                    of = f"{_imported(node, module)}." if isinstance(node, ast.ImportFrom) else ""
                    return f"{of}{one.name}.{rest}"
    return f"{module}.{name}"


def _imported(node: ast.ImportFrom, module: str) -> str:
    """Returns the dotted name of the module that `from … import` names."""
    if not node.level:
        return node.module or ""
    path = _source(module)
    levels = node.level - (path is not None and path.name == "__init__.py")
    package = module.rsplit(".", levels)[0] if levels else module
    return ".".join(filter(None, [package, node.module]))


@cache
def _tree(module: str) -> ast.Module | None:
    path = _source(module)
    return ast.parse(path.read_text(encoding="utf-8")) if path else None


@cache
def _source(module: str) -> Path | None:
    """Returns the file of a module, without importing it or the packages that it is in."""
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    for folder in folders:
        path = folder.joinpath(*rest)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return file
    return Path(spec.origin) if spec and spec.origin and not rest and not folders else None

"""Conditions of compare's `where` and `baseline`. Pandas reads how they are joined, by and, or, not and round
brackets, as in `DataFrame.query`; a condition itself is read here. So keys have dots and slashes, words need
no quotes, and nothing that a user types is run."""

import ast
import re
from operator import eq, ge, gt, le, lt, ne
from tokenize import TokenError
from typing import Any, NamedTuple

import pandas as pd

from imgcls.errors import UserError, nearest
from imgcls.runs.read import written

OPERATORS = {"!=": ne, "<=": le, ">=": ge, "==": eq, "=": eq, "<": lt, ">": gt}
TOKEN = re.compile(
    r"""\s*(?: (?P<quoted> '[^']*' | "[^"]*" )
             | ` (?P<key> [^`]+ ) `
             | (?P<sign> == | != | <= | >= | = | < | > )
             | (?P<mark> [()\[\],&|] )
             | (?P<word> [^\s()\[\],&|=!<>'"`]+ ) )""",
    re.VERBOSE,
)
JOINING = {"and": "and", "&": "and", "or": "or", "|": "or", "not": "not"}
EXPECTED = "expected name=value, or with != < > <= >= in holds; join them by and, or, not and ( )"


class Token(NamedTuple):
    kind: str
    text: str


def column(table: pd.DataFrame, name: str) -> str:
    """Returns the column that a name means: `lr` is `optimizer.lr`, `val/top1` is `best/val/top1`."""
    ends = [found for found in table.columns if found.endswith(f".{name}")]
    for found in (name, *(ends if len(ends) == 1 else ()), f"best/{name}", f"test/{name}"):
        if found in table:
            return found
    advice = f"it could be {', '.join(ends)}; give one of them" if ends else nearest(name, table.columns)
    raise UserError(f"{name}: no run has a value of this name; {advice}")


def where(table: pd.DataFrame, conditions: str | list[str] | None, key: str = "where") -> pd.DataFrame:
    """Returns the rows for which all conditions hold: `backbone=resnet20`, `lr<0.1 and seed in (0,1)`,
    `tags holds mine or not status=finished`. A comma is an `and` that binds less than `or`.
    Raises UserError where there is no comparison, no such column, or no row is left."""
    for text in [conditions] if isinstance(conditions, str) else conditions or []:
        table = table[Conditions(table, text, key).hold()]
    if not len(table):
        raise UserError(f"{key}={conditions}: no run that is compared is like this; take a condition away")
    return table


class Conditions:
    """One text of conditions, read from left to right."""

    def __init__(self, table: pd.DataFrame, text: str, key: str) -> None:
        self.table, self.text, self.key = table, text, key
        self.tokens, self.place, end = list[Token](), 0, 0
        while text[end:].strip():
            found = TOKEN.match(text, end)
            if found is None or found.lastgroup is None:
                raise self.wrong()
            self.tokens.append(Token(found.lastgroup, found[found.lastgroup]))
            end = found.end()

    def wrong(self) -> UserError:
        return UserError(f"{self.key}={self.text}: {EXPECTED}")

    def hold(self) -> "pd.Series[bool]":
        """Returns for each run whether all of it holds."""
        found, joined = dict[str, Any](), "("
        while self.place < len(self.tokens):
            token = self.tokens[self.place]
            if token.kind == "mark" and token.text in "()":
                joined += token.text * 2
            elif token == ("mark", ","):
                joined += ") and ("
            elif token.kind != "quoted" and token.text.lower() in JOINING:
                joined += f" {JOINING[token.text.lower()]} "
            else:
                name = f"c{len(found)}"
                found[name], joined = self.condition(), f"{joined} {name} "
                continue
            self.place += 1
        if not found:
            raise self.wrong()
        try:
            holds = pd.DataFrame(found, index=self.table.index, dtype=bool).eval(
                f"{joined})", engine="python"
            )
        except (
            SyntaxError,
            TokenError,
            ValueError,
            TypeError,
            AttributeError,
        ):  # pandas can't read how they join
            raise self.wrong() from None
        return pd.Series(holds, self.table.index).astype(bool)

    def next(self, *kinds: str) -> str:
        """Returns the next token's text. Raises UserError: there is none, or one of another kind."""
        if self.place >= len(self.tokens) or self.tokens[self.place].kind not in kinds:
            raise self.wrong()
        self.place += 1
        return self.tokens[self.place - 1].text

    def follows(self, *words: str) -> bool:
        """Tells whether the next tokens are these words, and steps over them."""
        found = [token.text.lower() for token in self.tokens[self.place : self.place + len(words)]]
        if found != list(words):
            return False
        self.place += len(words)
        return True

    def condition(self) -> "pd.Series[bool]":
        """Reads one condition, and returns for which runs it holds."""
        name = self.next("word", "key", "quoted")
        if self.follows("not", "in"):
            return ~self.any_of(name)
        if self.follows("in"):
            listed = self.tokens[self.place : self.place + 1] in ([Token("mark", "(")], [Token("mark", "[")])
            return self.any_of(name) if listed else self.holding(self.next("word", "key"), name)
        if self.follows("holds"):
            return self.holding(name, self.value())
        return self.compared(name, self.next("sign"), self.value())

    def value(self) -> str:
        """Returns a value in quotes, or the words up to what joins conditions."""
        if self.tokens[self.place : self.place + 1] and self.tokens[self.place].kind == "quoted":
            return self.next("quoted")[1:-1]
        words = list[str]()
        while self.place < len(self.tokens) and self.tokens[self.place].kind == "word":
            if words and self.tokens[self.place].text.lower() in JOINING:
                break
            words.append(self.next("word"))
        if not words:
            raise self.wrong()
        return " ".join(words)

    def any_of(self, name: str) -> "pd.Series[bool]":
        """Returns for which runs a key has one of the values in brackets, which come next."""
        end = {"(": ")", "[": "]"}[self.next("mark")]
        found = pd.Series(False, self.table.index)
        while not self.follows(end):
            found |= self.compared(name, "=", self.value())
            self.follows(",")
        return found

    def holding(self, name: str, text: str) -> "pd.Series[bool]":
        """Returns for which runs a list, such as `tags`, has a member; of other values, which have a text in
        them."""
        text = text.strip("'\"").lower()
        return self.of(name).map(lambda value: text in members(value)).astype(bool)

    def of(self, name: str) -> pd.Series:
        return self.table[column(self.table, name)]

    def compared(self, name: str, sign: str, text: str) -> "pd.Series[bool]":
        """Returns for which runs a comparison holds; numbers are compared as numbers, all else as text."""
        values, compare = self.of(name), OPERATORS[sign]
        given, numbers = pd.to_numeric(text, errors="coerce"), pd.to_numeric(values, errors="coerce")
        if given == given and numbers.notna().any():
            return compare(numbers, given)
        if compare not in (eq, ne):
            raise UserError(f"{self.key}={name}{sign}{text}: {sign} compares numbers")
        return compare(values.map(written).str.lower(), text.lower())


def members(value: Any) -> list[str] | str:
    """Returns the members of a list that the table holds as text, or the text."""
    text = written(value).lower()
    if text.startswith("["):
        try:
            return [str(item) for item in ast.literal_eval(text)]
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
    return text

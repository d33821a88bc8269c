"""Our sources, read and not imported, and what Markdown is made of.

Nothing here names a module of ours where it can be found by what stands in it, so that moving one
changes a page and no line of a program.
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SIDES = (ROOT / "runtime", ROOT / "operator")
PACKAGES = ("rekindle", "rekindle_operator", "rekindle_local", "rekindle_cli")
for side in SIDES:
    sys.path.insert(0, str(side))


@dataclass(frozen=True)
class Module:
    """A source file of ours."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """Name of the top package."""
        return self.name.partition(".")[0]

    @property
    def doc(self) -> str:
        """The module's docstring."""
        return ast.get_docstring(self.tree) or ""


@cache
def modules() -> dict[str, Module]:
    """All modules of the product, by name."""
    found = {}
    for side in SIDES:
        for package in PACKAGES:
            for path in sorted((side / package).rglob("*.py")):
                parts = path.relative_to(side).with_suffix("").parts
                parts = parts[:-1] if parts[-1] == "__init__" else parts
                name = ".".join(parts)
                found[name] = Module(name, path, ast.parse(path.read_text()))
    return found


def sentence(text: str) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(text.split("\n\n", maxsplit=1)[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", paragraph)[0] if paragraph else ""


def prose(text: str) -> str:
    """A docstring as Markdown: one kind of backticks, no tags, code where there is code."""
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(
        f"```pycon\n{re.sub(r' +# doctest: .*', '', one)}\n```"
        if one.startswith(">>> ")
        else words_only(one)
        for one in paragraphs
        if one.strip() != "::"
    )


def words_only(text: str) -> str:
    """A paragraph of a docstring as Markdown; one that is indented is code already."""
    if text.startswith("    "):
        return text
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = text.replace(":\n- ", ":\n\n- ")
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else part.replace("<", "&lt;") for part in parts
    ).rstrip()


def cell(text: str) -> str:
    """A text that fits into a table."""
    return prose(" ".join(str(text).split())).replace("|", "\\|")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def text_of(node: ast.expr | None) -> str | None:
    """The text that an expression is, if it is one."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def name_of(node: ast.expr) -> str:
    """The last part of a dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def documented(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr | None, ast.expr | None, str]]:
    """Names with annotation, value and the string behind them, in the order of a body."""
    for index, node in enumerate(body):
        follows = body[index + 1] if index + 1 < len(body) else None
        doc = text_of(follows.value) if isinstance(follows, ast.Expr) else None
        doc = inspect.cleandoc(doc or "")
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, None, node.value, doc
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.annotation, node.value, doc


def checked(known: dict[str, str], used: set[str], what: str) -> None:
    """End if the texts above and the source do not speak of the same names."""
    wrong = sorted(used - set(known)), sorted(set(known) - used)
    if any(wrong):
        sys.exit(f"docs/generate.py: {what}: say what these are: {wrong[0]}; unused: {wrong[1]}")


def holding(package: str, *names: str) -> Module:
    """The module of a package in which all these names are given a value, or a class."""
    for module in modules().values():
        if module.package == package:
            given = {name for name, *_ in documented(module.tree.body)}
            given |= {one.name for one in module.tree.body if isinstance(one, ast.ClassDef)}
            if set(names) <= given:
                return module
    sys.exit(f"docs/generate.py: no module of {package} has {', '.join(names)}")


def enumeration(name: str) -> list[tuple[str, str, str]]:
    """Members of an enumeration that both planes share: name, value, docstring."""
    (node,) = (
        one
        for one in holding("rekindle", name, "ExitCode", "Cause").tree.body
        if isinstance(one, ast.ClassDef) and one.name == name
    )
    return [
        (member, str(ast.literal_eval(value)), doc)
        for member, _, value, doc in documented(node.body)
        if value is not None
    ]

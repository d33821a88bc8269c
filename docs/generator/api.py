"""reference/python*.md: public names with signature and docstring, read by ast."""

import ast
from collections.abc import Iterator

from generator.source import cell, documented, modules, name_of, prose, sentence, table, text_of

PUBLIC = (
    ("rekindle", "What a script needs. `import rekindle as rk` costs nothing; torch loads with the first name used."),
    ("rekindle.callbacks", "Ready-made callbacks. Their state is in every checkpoint."),
    ("rekindle.loggers", "Where metrics go besides the console and Prometheus: `Trainer(logger=...)`."),
    ("rekindle.profilers", "Where the time of a run goes: `Trainer(profiler=...)`."),
    ("rekindle.strategies", "How a model is spread over processes: `Trainer(strategy=...)`, `Trainer(mesh=...)`."),
    ("rekindle.checkpoint", "The checkpoint store, for any loop: see [a plain loop](../guides/plain-loop.md)."),
    ("rekindle.bridge", "For scripts that keep their Lightning Trainer: see [from Lightning](../guides/lightning.md)."),
)  # fmt: skip


def homes(package: str) -> dict[str, tuple[str, str]]:
    """Public names of a package, with the module that has each and its name there."""
    tree = modules()[package].tree
    public: list[str] = []
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and name_of(node.targets[0]) == "__all__":
            public = ast.literal_eval(node.value)
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found[alias.asname or alias.name] = (node.module, alias.name)
    return {name: found.get(name, (package, name)) for name in sorted(public, key=str.lower)}


def definition(module: str, name: str) -> ast.stmt | None:
    """Where a name is defined, through re-exports."""
    for node in modules()[module].tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and node.module in modules():
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return definition(str(node.module), alias.name)
    for home, original in homes(module).items():
        if home == name and original != (module, name):
            return definition(*original)
    return None


def signature(node: ast.FunctionDef, name: str, bound: bool) -> str:
    """A call as it is written, over several lines where one is too long."""
    given = node.args
    words: list[str] = []
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    pairs = list(zip(positional, defaults, strict=True))[1 if bound else 0 :]
    for argument, value in pairs:
        words.append(one_argument(argument, value))
    if given.vararg:
        words.append("*" + one_argument(given.vararg, None))
    elif given.kwonlyargs:
        words.append("*")
    for argument, value in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        words.append(one_argument(argument, value))
    if given.kwarg and given.kwarg.arg != "unknown":
        words.append("**" + one_argument(given.kwarg, None))
    returns = f" -> {unquoted(node.returns)}" if node.returns and node.name != "__init__" else ""
    line = f"{name}({', '.join(words)}){returns}"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){returns}"


def unquoted(node: ast.expr) -> str:
    """An annotation without the quotes that keep it from being evaluated."""
    return text_of(node) or ast.unparse(node)


def one_argument(argument: ast.arg, value: ast.expr | None) -> str:
    """One argument with its annotation and default."""
    word = argument.arg
    if argument.annotation is not None:
        word += f": {unquoted(argument.annotation)}"
    if value is not None:
        word += f" = {ast.unparse(value)}" if argument.annotation else f"={ast.unparse(value)}"
    return word


def is_property(node: ast.FunctionDef) -> bool:
    """Whether it is read without a call."""
    return any(name_of(one) in {"property", "cached_property"} for one in node.decorator_list)


def classes(node: ast.ClassDef, module: str) -> Iterator[ast.ClassDef]:
    """A class and those of ours that it inherits from."""
    yield node
    for base in node.bases:
        if name_of(base) == "Callback":
            continue
        for found in modules().values():
            if found.name.partition(".")[0] != "rekindle":
                continue
            imported = any(
                isinstance(one, ast.ImportFrom)
                and one.module == found.name
                and any(alias.name == name_of(base) for alias in one.names)
                for one in modules()[module].tree.body
            )
            if not imported and found.name != module:
                continue
            for one in found.tree.body:
                if isinstance(one, ast.ClassDef) and one.name == name_of(base):
                    yield from classes(one, found.name)


def described(package: str, name: str, module: str, original: str) -> str:
    """One public name."""
    node = definition(module, original)
    text = f"\n### {name}\n\n"
    if isinstance(node, ast.FunctionDef):
        return (
            text
            + f"```python\n{signature(node, f'{package}.{name}', False)}\n```\n\n{prose(ast.get_docstring(node) or '')}\n"
        )
    if not isinstance(node, ast.ClassDef):
        return text + f"`{package}.{name}`\n"
    members = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
    made = members.get("__init__")
    if made is not None:
        text += f"```python\n{signature(made, f'{package}.{name}', True)}\n```\n\n"
    else:
        fields = [
            f"{field}: {unquoted(annotation)}" + (f" = {ast.unparse(value)}" if value else "")
            for field, annotation, value, _ in documented(node.body)
            if annotation is not None and not field.startswith("_")
        ]
        dataclass_like = any(
            name_of(one.func if isinstance(one, ast.Call) else one) == "dataclass"
            for one in node.decorator_list
        )
        if dataclass_like and fields:
            line = f"{package}.{name}({', '.join(fields)})"
            if len(line) > 100:
                line = f"{package}.{name}(\n" + "".join(f"    {one},\n" for one in fields) + ")"
            text += f"```python\n{line}\n```\n\n"
        else:
            text += f"`class {package}.{name}`\n\n"
    text += prose(ast.get_docstring(node) or "") + "\n"
    if made is not None and ast.get_docstring(made):
        text += "\n" + prose(ast.get_docstring(made) or "") + "\n"
    rows, seen = [], set()
    for one in classes(node, module):
        for member in one.body:
            if not isinstance(member, ast.FunctionDef) or member.name.startswith("_"):
                continue
            if member.name in seen or any(
                name_of(d) in {"setter", "overload"} for d in member.decorator_list
            ):
                continue
            seen.add(member.name)
            static = any(name_of(d) == "staticmethod" for d in member.decorator_list)
            shown = (
                member.name
                if is_property(member)
                else f"{member.name}({', '.join(a.arg for a in argument_names(member, not static))})"
            )
            rows.append((f"`{shown}`", cell(sentence(ast.get_docstring(member) or ""))))
    if rows:
        text += "\n" + table(("member", "what it does"), rows)
    return text


def argument_names(node: ast.FunctionDef, bound: bool) -> list[ast.arg]:
    """Arguments of a method, for a short form."""
    given = [*node.args.posonlyargs, *node.args.args]
    return [*given[1 if bound else 0 :], *node.args.kwonlyargs]


def python() -> str:
    """What scripts begin with."""
    return (
        (
            "# Python API\n\nNames that are the same as in PyTorch Lightning mean the same: "
            "`rekindle.pytorch` has all of them, and [the table of what was compared](../lightning.md) "
            "says where they do not. [Callbacks, loggers and the like](python-parts.md) and [the "
            "checkpoint store](python-store.md) have pages of their own.\n"
        )
        + names_of(PUBLIC[:1])
        + loop()
    )


def loop() -> str:
    """The loop with every hook at its place: the docstring of the module that has Callback."""
    module, _ = homes("rekindle")["Callback"]
    return "\n## The loop and its hooks\n\n" + prose(modules()[module].doc) + "\n"


def parts() -> str:
    """What a trainer is put together with."""
    return (
        "# Callbacks, loggers, profilers, strategies\n\nImporting these packages is free: "
        "`rekindle.callbacks.Timer` works without an import. Every callback has the hooks of "
        "[`rekindle.Callback`](python.md#callback); here are its own members.\n"
    ) + names_of(PUBLIC[1:5])


def store() -> str:
    """What serves any loop."""
    return (
        "# Store and bridge\n\nFor loops that are not ours.\n"
        + names_of(PUBLIC[5:6], docstrings=True)
        + names_of(PUBLIC[6:], docstrings=True)
    )


def names_of(public: tuple[tuple[str, str], ...], *, docstrings: bool = False) -> str:
    """Public names of packages with signature and docstring, and what the packages say."""
    text, known = "", dict[tuple[str, str], str]()
    for package, words in public:
        text += f"\n## {package}\n\n{words}\n"
        if docstrings:
            text += f"\n{prose(modules()[package].doc)}\n"
        for name, (module, original) in homes(package).items():
            if (module, original) in known:
                text += f"\n### {name}\n\nAnother name of `{known[module, original]}`.\n"
                continue
            known[module, original] = f"{package}.{name}"
            text += described(package, name, module, original)
    return text

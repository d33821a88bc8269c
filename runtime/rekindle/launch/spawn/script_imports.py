"""What a script does first, read from its source without running a line of it: imports, variables.

A worker that is forked from a process which has imported the same modules already starts in
milliseconds. It must not differ from one that ran the script from its first line, so:

- Only imports that run in any case are taken: of the module's own level, and of a ``try`` there
  (the usual way to do without something). What stands below an ``if`` or in a function may never
  run, and may have a reason for it.
- They are taken up to the first statement that could change what a later import finds or does
  (``sys.path``, a call with unknown effects); the rest is left to the script.
- Variables that the script sets to plain text first, ``os.environ["OMP_NUM_THREADS"] = "1"``, have
  to be set before anything is imported: libraries read some of them only once.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import resolve_name

_STEERING = frozenset(
    {
        "sys.path",
        "sys.modules",
        "sys.meta_path",
        "sys.path_hooks",
        "os.chdir",
        "os.putenv",
        "os.environ",
        "site.addsitedir",
        "importlib.reload",
    }
)
"""What no statement between imports may touch."""
_HARMLESS = frozenset({"print", "warnings", "logging"})
"""Calls of these may stand between imports."""


@dataclass(frozen=True)
class Import:
    """``import module``, or ``from module import names``."""

    module: str
    names: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        """The package that it belongs to."""
        return self.module.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Top:
    """The beginning of a script."""

    imports: tuple[Import, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    """What it sets in its environment."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    """What it sets where it is not set yet."""


def top_of(source: str | bytes, package: str = "") -> Top:
    """Read the beginning of a module.

    ``package`` is what relative imports refer to. Raises SyntaxError, and ValueError for a source
    that is no text.
    """
    reader = _Reader(package)
    reader.read(ast.parse(source).body)
    return Top(imports=tuple(reader.imports), variables=reader.variables, defaults=reader.defaults)


class _Reader:
    def __init__(self, package: str) -> None:
        self._package = package
        self.imports: list[Import] = []
        self.variables: dict[str, str] = {}
        self.defaults: dict[str, str] = {}

    def read(self, body: Sequence[ast.stmt]) -> bool:
        """Read statements; False when one was met that nothing may be taken after."""
        return all(self._statement(statement) for statement in body)

    def _statement(self, statement: ast.stmt) -> bool:
        if isinstance(statement, ast.Import):
            self.imports += [Import(alias.name) for alias in statement.names]
            return True
        if isinstance(statement, ast.ImportFrom):
            self._take_from(statement)
            return True
        if isinstance(statement, ast.Try):
            return self.read(statement.body)
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            return True  # Nothing of it runs yet, except decorators, which rarely reach far.
        if (setting := _setting(statement)) is not None:
            into, name, value = setting
            {"set": self.variables, "default": self.defaults}[into][name] = value
            return True
        return _is_harmless(statement)

    def _take_from(self, statement: ast.ImportFrom) -> None:
        module = "." * statement.level + (statement.module or "")
        if statement.level:
            try:
                module = resolve_name(module, self._package)
            except ImportError:
                return  # No package to refer to: the script will say so itself.
        if module != "__future__":
            names = tuple(alias.name for alias in statement.names if alias.name != "*")
            self.imports.append(Import(module, names))


def _setting(statement: ast.stmt) -> tuple[str, str, str] | None:
    """Read ``os.environ["NAME"] = "value"`` and ``os.environ.setdefault("NAME", "value")``."""
    match statement:
        case ast.Assign(
            targets=[ast.Subscript(value=where, slice=ast.Constant(value=str(name)))],
            value=ast.Constant(value=str(value)),
        ) if _dotted(where) == "os.environ":
            return "set", name, value
        case ast.Expr(
            value=ast.Call(
                func=function,
                args=[ast.Constant(value=str(name)), ast.Constant(value=str(value))],
                keywords=[],
            )
        ) if _dotted(function) == "os.environ.setdefault":
            return "default", name, value
    return None


def _is_harmless(statement: ast.stmt) -> bool:
    """Say whether a statement leaves alone what later imports find and do."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Attribute) and _dotted(node) in _STEERING:
            return False
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await):
            called = _dotted(getattr(node.value, "func", node.value))
            if called is None or called.partition(".")[0] not in _HARMLESS:
                return False
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            return False
    return True


def _dotted(node: ast.expr) -> str | None:
    """Give the name of ``a.b.c``; None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (first := _dotted(node.value)) is not None:
        return f"{first}.{node.attr}"
    return None

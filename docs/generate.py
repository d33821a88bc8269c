"""The pages of docs/reference and docs/architecture/tree.md, made from the source.

    python docs/generate.py           writes them
    python docs/generate.py --check   says which of them are not what the source says, and exits with 1

Sources are read, not imported, so that the pages need no torch and are the same wherever they are
made. The command line is the exception: it is asked what it takes.
"""

import sys
import textwrap
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent / "runtime"), str(DOCS.parent / "operator")]

from generator import api, command, conditions, metrics, resource, settings, tree  # noqa: E402

MADE = "<!-- Made by docs/generate.py; change the source that it reads, not this page. -->\n\n"

PAGES = {
    "reference/trainingjob.md": resource.trainingjob,
    "reference/python.md": api.python,
    "reference/python-parts.md": api.parts,
    "reference/python-store.md": api.store,
    "reference/cli.md": command.cli,
    "reference/metrics.md": metrics.metrics,
    "reference/conditions.md": conditions.conditions,
    "reference/signs.md": conditions.signs,
    "reference/exit-codes.md": command.exit_codes,
    "reference/environment.md": settings.environment,
    "reference/chart.md": settings.chart,
    "architecture/tree.md": tree.tree,
}


def page(name: str) -> str:
    """The text of one page, as the source says now."""
    title, _, rest = PAGES[name]().partition("\n")
    return f"{title}\n\n{MADE}{textwrap.dedent(rest).strip()}\n"


def stale() -> list[str]:
    """Pages that are not what the source says."""
    return [
        name
        for name in PAGES
        if not (DOCS / name).exists() or (DOCS / name).read_text() != page(name)
    ]


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        old = stale()
        sys.exit(f"run python docs/generate.py: {', '.join(old)}" if old else 0)
    for each in stale():
        (DOCS / each).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / each).write_text(page(each))
        print(each)

"""reference/environment.md and chart.md: what can be set from outside."""

import ast
import re
from collections.abc import Iterator

from generator.source import (
    ROOT,
    cell,
    checked,
    documented,
    holding,
    modules,
    prose,
    table,
    text_of,
)

# No source says these in a sentence. A name that is missing ends the program, as does one that
# nobody uses any more.
ENVIRONMENT = {
    "REKINDLE_ACCELERATOR": "Overrides `Trainer(accelerator=...)`.",
    "REKINDLE_CONFIG": "Configuration file of `rekindle fit` and its like, as `--config`.",
    "REKINDLE_DEBUG": "Anything but nothing and 0: the `rekindle` command shows tracebacks.",
    "REKINDLE_DEVICES": "Overrides `Trainer(devices=...)`.",
    "REKINDLE_FLUSH_SECONDS": "How long a snapshot of a trainer that has died is stored on at most; 120.",
    "REKINDLE_TAKE_OVER": "`1` takes a run over from whoever holds it.",
}
INTERNAL = {
    "REKINDLE_PARENT_PID": "Set for worker processes that end with the one that started them.",
    "REKINDLE_SOUGHT_TORCH": "Set once the launcher has looked for an interpreter that has torch.",
    "REKINDLE_TORCHRUN": "Set for workers, by which a torchrun within one knows where it runs.",
    "REKINDLE_UPLOADER": "What the process that stores snapshots begins with, as JSON.",
}


def environment() -> str:
    """Every variable of ours."""
    known: dict[str, str] = {}
    used: set[str] = set()
    shared = holding("rekindle", "ENV_JOB", "ENV_POD", "ENV_CHECKPOINT_URI")
    for module in modules().values():
        docs = {
            text: doc
            for name, _, value, doc in documented(module.tree.body)
            if (text := text_of(value)) is not None and text.startswith("REKINDLE_") and doc
        }
        for name, doc in docs.items():
            if name not in known or module == shared:
                known[name] = doc
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used.update(re.findall(r"\bREKINDLE_[A-Z_]*[A-Z]\b", node.value))
    used = {name for name in used if not name.startswith("REKINDLE_TRAINER_")}
    by_hand = {**ENVIRONMENT, **INTERNAL}
    checked(by_hand, (used - set(known)) | (set(by_hand) & used), "environment")
    contract = {
        text for _, _, value, _ in documented(shared.tree.body)
        if (text := text_of(value)) is not None and text.startswith("REKINDLE_")
    }  # fmt: skip
    people = {
        name: words
        for name, words in {**known, **ENVIRONMENT}.items()
        if name not in contract and name not in INTERNAL
    }
    settable = (
        "REKINDLE_NOTICE_FILE",
        "REKINDLE_WARM",
        "REKINDLE_METRICS_PORT",
        "REKINDLE_HANG_TIMEOUT",
        "REKINDLE_TERMINATION_LOG",
    )
    text = (
        "# Environment variables\n\n## For people\n\nTo be set in the shell, or in `env` of the "
        "container `trainer`.\n\n"
    )
    rows = [(f"`{name}`", cell(words)) for name, words in people.items()]
    rows += [(f"`{name}`", cell(known[name])) for name in settable if name in known]
    rows += [
        (
            "`REKINDLE_TRAINER_MAX_EPOCHS` and the like",
            "Any argument of `model`, `data` and `trainer` for `rekindle fit`; files come first, then the environment, then the command line.",
        )
    ]
    text += table(("variable", "what it does"), sorted(rows))
    text += (
        "\nBesides these, workers have torchrun's variables (`RANK`, `LOCAL_RANK`, `WORLD_SIZE`, "
        "`MASTER_ADDR` and so on), a command that runs once per worker also `PET_*`, `NNODES`, "
        "`NODE_RANK` and `NPROC_PER_NODE`. `PL_TRAINER_MAX_EPOCHS=3` and the like are flags of a "
        "trainer that its script does not give, as in Lightning. The store reads what AWS's own "
        "tools read.\n"
        "\n## Between operator, agent and workers\n\nSet by the operator for each pod, and by the "
        "agent for its workers. A template that sets one of them is named in the conditions of the job.\n\n"
    )
    rows = [(f"`{name}`", cell(known[name])) for name in contract & set(known) - set(settable)]
    rows += [(f"`{name}`", cell(words)) for name, words in INTERNAL.items()]
    return text + table(("variable", "what it says"), sorted(rows))


def values_of(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """Path, default and comment of each value."""
    stack: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in lines:
        stripped = line.strip()
        if stripped.startswith("#"):
            comment.append(stripped.lstrip("# "))
            continue
        if not stripped:
            comment = []
            continue
        indent = len(line) - len(line.lstrip())
        name, _, value = stripped.partition(":")
        while stack and stack[-1][0] >= indent:
            stack.pop()
        path = ".".join([*(part for _, part in stack), name])
        inner = not value.strip()
        if inner:
            stack.append((indent, name))
        if value.strip() or comment:
            yield path, "" if inner else value.strip(), " ".join(comment)
        comment = []


def chart() -> str:
    """Values of the Helm chart."""
    lines = (ROOT / "charts" / "rekindle" / "values.yaml").read_text().splitlines()
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").removeprefix(" "))
    rows = [
        (f"`{path}`", f"`{value}`" if value else "", cell(comment))
        for path, value, comment in values_of(lines[len(head) :])
    ]
    return (
        "# Chart values\n\n" + prose("\n".join(head)) + "\n\n"
        + table(("value", "default", "what it is"), rows)
    )  # fmt: skip

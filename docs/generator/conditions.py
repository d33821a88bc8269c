"""reference/conditions.md and signs.md: what a status says, and what announces the end of a node."""

import ast
import re
from functools import cache
from importlib import import_module

from generator.source import (
    cell,
    checked,
    documented,
    enumeration,
    holding,
    modules,
    name_of,
    table,
    text_of,
)

# No source says these in a sentence. A name that is missing ends the program, as does one that
# nobody uses any more.
CONDITIONS = {
    "Ready": "Training is under way: the workers of the current round do steps.",
    "Progressing": "The job is on its way to training, or again: pods are made, a round forms.",
    "Degraded": "Something needs attention. The message names the pod or node and what to do.",
    "Suspended": "`spec.suspend` is true.",
    "Complete": "The job has ended, and training is complete.",
    "Failed": "The job has ended without that. The message says why.",
    "ReplicasUnused": "More pods are wanted than have something to do; they are spares.",
    "Reconciled": "False while the operator itself cannot do its work on this job.",
}


@cache
def constants() -> dict[str, str]:
    """Texts that have a name at the top of a module of the operator."""
    return {
        name: text
        for module in modules().values()
        if module.package in {"rekindle_operator", "rekindle"}
        for name, _, value, _ in documented(module.tree.body)
        if (text := text_of(value)) is not None and name.isupper()
    }


def words_of(node: ast.expr | None) -> list[str]:
    """The reasons that an expression may be, as far as it says."""
    if node is None:
        return []
    if isinstance(node, ast.IfExp):
        return [*words_of(node.body), *words_of(node.orelse)]
    text = text_of(node)
    if text is None and isinstance(node, ast.Name | ast.Attribute) and name_of(node).isupper():
        text = constants().get(name_of(node))
    return [text] if text and re.fullmatch(r"[A-Z]\w+", text) else []


def payers() -> dict[str, str]:
    """Who pays for each cause: the table itself, from a module that needs no torch."""
    module = import_module(holding("rekindle", "PAID_BY", "Cause").name)
    return {str(cause): payer for cause, payer in module.PAID_BY.items()}


def conditions() -> str:
    """Conditions, their reasons, events and causes of incidents."""
    reasons: dict[str, set[str]] = {}
    events: dict[str, set[str]] = {}
    holds: dict[str, tuple[str, str]] = {}
    for module in modules().values():
        if module.package != "rekindle_operator":
            continue
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            given = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
            called = name_of(node.func)
            if called == "condition" and node.args:
                for kind in words_of(node.args[0]):
                    reasons.setdefault(kind, set())
                    if len(node.args) > 2:
                        reasons[kind].update(words_of(node.args[2]))
            elif called == "Event" and "reason" in given:
                for reason in words_of(given["reason"]):
                    kinds = words_of(given.get("kind"))
                    events.setdefault(reason, set()).update(kinds)
            elif "says" in given and "fits" in given and "cause" not in given:
                says, todo = text_of(given["says"]) or "", text_of(given.get("todo")) or ""
                for reason in words_of(given.get("reason")):
                    if reason not in holds:
                        holds[reason] = (says, todo)
    checked(CONDITIONS, set(reasons) | {"Reconciled"}, "conditions")
    text = (
        "# Conditions, events, causes\n\n## Conditions\n\n"
        "`kubectl wait tj/NAME --for=condition=Complete` waits for one of them. All but "
        "`ReplicasUnused` and `Reconciled` are always there.\n\n"
    )
    text += table(
        ("condition", "what True says", "reasons that it is given by name"),
        [
            (f"`{name}`", words, ", ".join(f"`{one}`" for one in sorted(reasons.get(name, ()))))
            for name, words in CONDITIONS.items()
        ],
    )
    text += (
        "\nBesides these, `Ready` and `Progressing` have the phase or what holds the pods as their "
        "reason, `Degraded` what holds a pod or the reasons `LossNotFinite`, `CheckpointDamaged` "
        "and `Straggler`, `Failed` the cause of the last incident or the stable code of a check "
        "(`Store:R5`).\n\n## What holds a pod\n\nReasons of conditions and of events, each with "
        "the sentence that is shown. Names in braces are filled in.\n\n"
    )
    text += table(
        ("reason", "message", "what to do"),
        [(f"`{name}`", cell(says), cell(todo)) for name, (says, todo) in sorted(holds.items())],
    )
    text += (
        "\n## Events\n\nOn the TrainingJob, beside one for each of the reasons above and one for "
        "each incident, whose reason is the cause.\n\n"
    )
    text += table(
        ("reason", "type"),
        [(f"`{name}`", ", ".join(sorted(kinds))) for name, kinds in sorted(events.items())],
    )
    paid = payers()
    text += "\n## Causes of incidents\n\n`status.incidents[].cause`, and which budget of `spec.restart` pays.\n\n"
    text += table(
        ("cause", "what has happened", "paid by"),
        [(f"`{value}`", cell(doc), paid[value]) for _, value, doc in enumeration("Cause")],
    )
    return text


def signs() -> str:
    """What announces that a node goes, and how long it leaves."""
    module = holding("rekindle_operator", "SOURCES", "ADVICE", "LOST")
    values = {name: value for name, _, value, _ in documented(module.tree.body)}
    rows, sources = [], values["SOURCES"]
    assert isinstance(sources, ast.Dict)
    for key, value in zip(sources.keys, sources.values, strict=True):
        assert key is not None
        assert isinstance(value, ast.Call)
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        node = values[key.id] if isinstance(key, ast.Name) else key
        seconds = name_of(given["seconds"]) or ast.literal_eval(given["seconds"])
        words = {"LOST": "lost at once", "ADVICE": "advice", None: "the pod's grace"}.get(seconds)
        if words is None:
            number = ast.literal_eval(values[seconds]) if isinstance(seconds, str) else seconds  # type: ignore[arg-type]
            words = f"{number:g} s"
        rows.append((f"`{text_of(node)}`", text_of(given["words"]) or "", words))
    return (
        "# Signs of preemption\n\nTaints and conditions of nodes that are known without being named "
        "in a job, and what each leaves. *Advice*: another pod is made and training moves once that "
        "is ready. *The pod's grace*: `terminationGracePeriodSeconds`, since the pod is evicted. "
        "*Lost at once*: nothing there can save any more. `spec.capacity.notices` overrules each, "
        "and adds others: see [Preemption notices](../guides/preemption-notices.md).\n\n"
    ) + table(("sign", "what it says", "leaves"), rows)

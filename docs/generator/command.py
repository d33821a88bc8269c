"""reference/cli.md and exit-codes.md: what the command takes, asked of itself, and how processes end."""

import ast
import inspect
import re
from typing import Any

from generator.source import cell, documented, enumeration, holding, prose, table


def cli() -> str:
    """The `rekindle` command, asked of itself."""
    import typer

    from rekindle_cli.__main__ import app

    command = typer.main.get_command(app)
    text = f"# rekindle, the command\n\n{command.help}\n\n{command.epilog or ''}\n"
    text += "\nEvery command takes `-h` and `--help`. `rekindle --install-completion` teaches the shell the command, the names of jobs included. See [exit codes](exit-codes.md) for what a script may rely on.\n"
    return text + commands(command, "rekindle")


def commands(command: Any, path: str) -> str:
    """All commands of a group, in their order."""
    text = ""
    for name, one in command.commands.items():
        if one.hidden:
            continue
        full = f"{path} {name}"
        if hasattr(one, "commands"):
            text += f"\n## {full}\n\n{prose(one.help or '')}\n" + commands(one, full)
            continue
        arguments = [p for p in one.params if p.param_type_name == "argument"]
        options = [p for p in one.params if p.param_type_name == "option" and not p.hidden]
        words = [
            (p.metavar or p.name.upper()) if p.required else f"[{p.metavar or p.name.upper()}]"
            for p in arguments
        ]
        usage = " ".join([full, *words, *(["[OPTIONS]"] if options else [])])
        text += f"\n### {full}\n\n```console\n$ {usage}\n```\n\n{prose(inspect.cleandoc(one.help or ''))}\n"
        rows = [
            (
                f"`{p.metavar or p.name.upper()}`",
                "required" if p.required else "",
                cell(p.help or ""),
            )
            for p in arguments
            if p.help
        ]
        for p in options:
            if "--help" in p.opts:
                continue
            default = p.default
            shown = (
                f"`{default}`" if isinstance(default, str | int | float) and not p.is_flag else ""
            )
            if callable(default) or default == "" or p.show_default is False:
                shown = ""
            negative = [f"`{one}`" for one in p.secondary_opts]
            names = ", ".join([*(f"`{one}`" for one in p.opts), *negative])
            rows.append((names, "required" if p.required else shown, cell(p.help or "")))
        if rows:
            text += "\n" + table(("", "default", "what it is"), rows)
    return text


def exit_codes() -> str:
    """Of pods, and of the command."""
    text = "# Exit codes\n\n## Of a pod, and of a training script\n\n"
    text += table(
        ("code", "name", "means"),
        [(value, f"`{name}`", cell(doc)) for name, value, doc in enumeration("ExitCode")],
    )
    text += (
        "\nCodes above 128 are the shell's: 137 is SIGKILL, 143 SIGTERM. torchrun on its own ends "
        "with 1 whatever its workers ended with; where Rekindle is installed it ends with 75 when "
        "they have saved. `srun` gives the highest code of its tasks, `mpirun` and `deepspeed` in "
        "general that of the first process that failed.\n\nThe termination message of a pod is "
        "JSON with cause, code, message, step, checkpoint, rank and the head of the traceback: "
        "`kubectl get pod NAME -o jsonpath='{.status.containerStatuses[0].state.terminated.message}'`.\n"
        "\n## Of the rekindle command\n\n"
    )
    rows, reasons = [("0", "What was asked for is done.")], []
    module = holding("rekindle_cli", "USAGE", "INTERRUPTED", "REASONS")
    names = {name: (value, doc) for name, _, value, doc in documented(module.tree.body)}
    for name in ("JOB_FAILED", "USAGE", "INTERRUPTED"):
        value, doc = names[name]
        assert value is not None
        rows.append((str(ast.literal_eval(value)), cell(doc)))
    value, _ = names["REASONS"]
    assert value is not None
    lines = ast.get_source_segment(module.path.read_text(), value) or ""
    reasons = re.findall(r'"(\w+)",\s*# (.+)', lines)
    text += table(("code", "means"), rows)
    text += (
        "\nWith `--json`, standard output has one JSON object, the answer or "
        '`{"error": {"message": ..., "reason": ..., "hint": ...}}`, and everything for people goes '
        "to standard error. The reason is one of these, and they never change their meaning:\n\n"
    )
    return text + table(
        ("reason", "means"), [(f"`{name}`", cell(words)) for name, words in reasons]
    )

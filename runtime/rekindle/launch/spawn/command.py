"""What a command line asks to be run in the workers: a pure function of words.

Two things can come of it. A ``Script`` is Python code, which workers run in an interpreter of ours:
warm ones, and its errors are told in its own words. A ``Program`` is anything else; it runs as it
is written, with the environment that torchrun gives.

Who is used to another way of starting has written one of these, and each starts workers by itself:

- ``torchrun`` and the modules behind it (see ``torchrun_flags``) are taken apart: their script is
  run, what they say about the rendezvous is replaced by the round.
- ``accelerate launch`` is told to start one process, in each worker; it leaves ranks alone then.
- torchrun inside of something else (a shell, ``tune run``) is run once per pod, as one node: it
  starts the workers, and its rendezvous is the round (see ``joining``).
- Launchers that find the other machines by themselves (mpirun, deepspeed) cannot be served: N pods
  would train N times. They are refused.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

LOCAL_RANK = "@rekindle:local_rank@"
"""Stands in arguments for the worker's local rank."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """Python code."""

    arguments: tuple[str, ...]
    """``script args...``, ``-m module args...`` or ``-c code args...``."""
    flags: tuple[str, ...] = ()
    """Of the interpreter. Workers are then fresh ones, which take flags."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """An executable and its arguments."""

    arguments: tuple[str, ...]
    per_pod: bool = False
    """Whether it is started once in each pod, and starts the workers itself."""
    joins: bool = True
    """Whether a torchrun within it may join the round as a node."""
    one_gpu: bool = False
    """Whether each worker sees its own GPU only, as number 0."""


@dataclass(frozen=True, kw_only=True)
class LaunchCommand:
    """What is to be run, and what was said beside it."""

    target: Script | Program
    nproc: str | None = None
    """Workers per pod, as the command itself wants it."""
    role: str | None = None
    notes: tuple[str, ...] = ()
    """One line each, for the log."""


Torchrun = Callable[[Sequence[str], bool], LaunchCommand]
"""Takes torchrun's arguments apart; the flag says that it is the older ``launch`` module."""

_TORCHRUN_MODULES = {"torch.distributed.run": False, "torch.distributed.launch": True}
_INSIDE = re.compile(
    r"(?:^|[\s;&|(/\"'`])torchrun(?:$|[\s;&|)\"'`])|\btorch\.distributed\.(?:run|launch)\b"
)
_FOREIGN = ("deepspeed", "horovodrun", "mpirun", "mpiexec", "srun", "colossalai")
_FOREIGN_INSIDE = re.compile(
    rf"(?:^|[;&|(\n]|\bexec\b|\bthen\b|\bdo\b)\s*(?:\w+=\S*\s+)*({'|'.join(_FOREIGN)})\b(?!=)"
)
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "ash"})
_PYTHON = re.compile(r"^(?:python|pypy)[0-9.]*$")
_PLAIN_FLAGS = frozenset("uq")
"""Flags that change nothing for a worker: what it prints goes out at once anyway."""
_SHUTTING = frozenset("EIS")
"""Flags that shut out the environment or installed packages, and with them our worker."""
_ALONE = frozenset("hV?i")


def is_python(word: str) -> bool:
    """Whether a word names a Python interpreter."""
    return bool(_PYTHON.match(PurePath(word).name))


def command_of(
    words: Sequence[str],
    *,
    torchrun: Torchrun,
    same_python: Callable[[str], bool] = lambda _: True,
    read: Callable[[str], str | None] = lambda _: None,
) -> LaunchCommand:
    """Take a command line apart; raises ValueError with what cannot be run and what to do.

    ``same_python`` says whether a word names the interpreter that this is, ``read`` gives the text
    of a shell script.
    """
    if not words or not words[0]:
        raise ValueError("there is no command to run: nothing follows --")
    name = PurePath(words[0]).name
    if is_python(name):
        return _python(words, torchrun, same_python, read)
    if name == "torchrun":
        return torchrun(words[1:], False)
    if name in {"accelerate", "accelerate-launch"}:
        return _accelerate(words, len(words) > 1 and name == "accelerate")
    return _program(words, read)


def _python(
    words: Sequence[str],
    torchrun: Torchrun,
    same_python: Callable[[str], bool],
    read: Callable[[str], str | None],
) -> LaunchCommand:
    flags, rest = _interpreter_flags(words)
    letters = {letter for flag in flags for letter in _letters(flag)}
    if letters & _ALONE and not rest:
        return _program(words, read)
    if not rest or rest[0] == "-":
        raise ValueError(
            f"{' '.join(words)} reads its program from standard input, which a pod does not have; "
            "give a script, -m MODULE or -c CODE"
        )
    if rest[0] == "-m" and rest[1] in _TORCHRUN_MODULES and same_python(words[0]):
        return torchrun(rest[2:], _TORCHRUN_MODULES[rest[1]])
    if rest[0] == "-m" and rest[1].startswith("accelerate.commands."):
        return _accelerate((words[0], *flags, *rest), rest[1].endswith("accelerate_cli"))
    if not same_python(words[0]):
        command = _program(words, read)
        note = f"{words[0]} is another interpreter than the launcher's: its workers start slowly"
        return replace(command, notes=(*command.notes, note))
    if letters & (_SHUTTING | _ALONE):
        return _program(words, read)
    kept = tuple(flag for flag in flags if not set(_letters(flag)) <= _PLAIN_FLAGS)
    notes = (f"workers start as fresh interpreters, with {' '.join(kept)}",) if kept else ()
    return LaunchCommand(target=Script(arguments=tuple(rest), flags=kept), notes=notes)


def _interpreter_flags(words: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Give the interpreter's flags, and what follows: the script, ``-m``, ``-c``, or nothing."""
    flags: list[str] = []
    at = 1
    while at < len(words):
        word = words[at]
        if word == "--":
            at += 1
            break
        if word == "-" or not word.startswith("-"):
            break
        if word.startswith("--"):
            flags.append(word)
            at += 1
            if word == "--check-hash-based-pycs" and at < len(words):
                flags.append(words[at])
                at += 1
            elif word in {"--help", "--version"}:
                flags[-1] = "-h"
            continue
        for place, letter in enumerate(word[1:], 1):
            if letter in "cm":
                if place > 1:
                    flags.append(word[:place])
                value = word[place + 1 :]
                rest = list(words[at + 1 :])
                if not value:
                    if not rest:
                        raise ValueError(f"argument expected for the -{letter} option of python")
                    value = rest.pop(0)
                return tuple(flags), [f"-{letter}", value, *rest]
            if letter in "WX":
                flags.append(word)
                if place == len(word) - 1:
                    at += 1
                    if at < len(words):
                        flags.append(words[at])
                break
        else:
            flags.append(word)
        at += 1
    return tuple(flags), list(words[at:])


def _letters(flag: str) -> str:
    if not flag.startswith("-") or flag.startswith("--"):
        return "X"
    found = ""
    for letter in flag[1:]:
        found += letter
        if letter in "WX":
            break
    return found


_REPLACED = {
    "num_processes": 1,
    "num_machines": 1,
    "machine_rank": 1,
    "main_process_ip": 1,
    "main_process_port": 1,
    "rdzv_backend": 1,
    "rdzv_conf": 1,
    "max_restarts": 1,
    "monitor_interval": 1,
    "deepspeed_hostfile": 1,
    "multi_gpu": 0,
    "same_network": 0,
    "quiet": 0,
}
"""Flags of ``accelerate launch`` about which the round decides, with the words that follow."""
NO_VALUE = frozenset(
    {
        "cpu",
        "debug",
        "downcast_bf16",
        "dynamo_use_dynamic",
        "dynamo_use_fullgraph",
        "dynamo_use_regional_compilation",
        "enable_cpu_affinity",
        "fp8_use_autocast_during_eval",
        "help",
        "module",
        "multi_gpu",
        "no_python",
        "no_tpu_cluster",
        "quiet",
        "same_network",
        "tpu",
        "tpu_cluster",
        "tpu_use_sudo",
        "use_deepspeed",
        "use_fsdp",
        "use_megatron_lm",
        "use_parallelism_config",
    }
)
"""Flags of ``accelerate launch`` that no word follows."""
_REFUSED = frozenset({"tpu", "tpu_cluster", "mpirun_hostfile", "aws_access_key_id"})


def _accelerate(words: Sequence[str], sub: bool) -> LaunchCommand:
    """Have ``accelerate launch`` start one process, which takes its ranks from the environment."""
    start = next((at for at, word in enumerate(words) if word == "launch"), None) if sub else None
    if sub and start is None:
        return LaunchCommand(target=Program(arguments=tuple(words)))  # accelerate env, for example
    begin = 1 if start is None else start + 1
    if start is None and "-m" in words and is_python(words[0]):
        begin = list(words).index("-m") + 2
    kept: list[str] = []
    gone: list[str] = []
    nproc = None
    shape = {"num_processes": "", "num_machines": ""}
    python = True
    at = begin
    while at < len(words) and words[at].startswith("-") and words[at] != "--":
        word = words[at]
        name, _, value = word.lstrip("-").partition("=")
        name = {"q": "quiet", "m": "module"}.get(name, name).replace("-", "_")
        if name in _REFUSED:
            raise ValueError(
                f"accelerate launch --{name} finds other machines by itself, which would train "
                "apart from this job; remove it"
            )
        takes = 0 if "=" in word or name in NO_VALUE else 1
        values = list(words[at + 1 : at + 1 + takes])
        at += 1 + takes
        if name in shape:
            shape[name] = value or (values[0] if values else "")
        if name in _REPLACED:
            gone.append(f"--{name}")
            continue
        if name in {"no_python", "module"}:
            python = python and name != "no_python"
        kept += [word, *values]
    if at < len(words) and words[at] == "--":
        at += 1
    if at >= len(words):
        raise ValueError("accelerate launch names no script to run")
    total, machines = (int(text) if text.isdecimal() else 0 for text in shape.values())
    if total and total % max(machines, 1) == 0:
        nproc = str(total // max(machines, 1))
    script = list(words[at:])
    if python:
        # Its own worker is one of ours then, which tells how it ended.
        module = "-m" in kept or "--module" in kept
        kept = [word for word in kept if word not in {"-m", "--module"}]
        inner = ["-m", *script] if module else script
        script = ["@rekindle:python@", "-u", "-m", "rekindle.launch.spawn.worker", *inner]
        kept.append("--no_python")
    notes = (f"replaced by the job's own: {' '.join(gone)} of accelerate launch",) if gone else ()
    arguments = (
        *words[:begin],
        *kept,
        *("--num_processes", "1", "--num_machines", "1"),
        *script,
    )
    return LaunchCommand(
        target=Program(arguments=arguments, one_gpu=True),
        nproc=nproc,
        notes=notes,
    )


PYTHON = "@rekindle:python@"
"""Stands in arguments for the interpreter of this process."""


def _program(words: Sequence[str], read: Callable[[str], str | None]) -> LaunchCommand:
    name = PurePath(words[0]).name
    if name in _FOREIGN:
        raise ValueError(_foreign(name))
    text = _shell_text(words, read)
    if text is not None and (found := _FOREIGN_INSIDE.search(text)):
        raise ValueError(_foreign(found[1]))
    inside = text if text is not None else " ".join(words)
    tune = name == "tune" and "run" in words[1:2] and any(w.startswith("--n") for w in words[2:])
    if tune or _INSIDE.search(inside):
        return LaunchCommand(
            target=Program(arguments=tuple(words), per_pod=True),
            nproc=_inner_nproc(inside),
            notes=(f"{name} starts torchrun itself: once in each pod, as one node of the round",),
        )
    return LaunchCommand(target=Program(arguments=tuple(words)))


def _foreign(name: str) -> str:
    return (
        f"{name} starts processes on other machines by itself, and cannot be told of the pods of "
        "this job: each would train alone. Start the script by torchrun, which it can do as well"
    )


def _shell_text(words: Sequence[str], read: Callable[[str], str | None]) -> str | None:
    """Give what a shell is going to run; None where no shell is seen."""
    if PurePath(words[0]).name not in _SHELLS:
        return read(words[0])
    at = 1
    while at < len(words) and words[at].startswith(("-", "+")):
        if not words[at].startswith("--") and "c" in words[at][1:]:
            return words[at + 1] if at + 1 < len(words) else ""
        at += 2 if words[at] in {"-o", "+o", "--rcfile", "--init-file"} else 1
    return read(words[at]) if at < len(words) else None


_NPROC = re.compile(r"--nproc[-_]per[-_]node[= ]+[\"']?(\d+|gpu|cpu|auto)\b")


def _inner_nproc(text: str) -> str | None:
    found = {each for each in _NPROC.findall(text)}
    return found.pop() if len(found) == 1 else None

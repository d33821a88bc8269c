"""torchrun's own flags, read by torch's own parser: what of them is ours, theirs, or cannot be had.

The parser belongs to the torch that is installed, so its flags are those that its users know. Each
is in exactly one of three classes (a test goes through the parser): what the round decides is
replaced, with a note; what a worker can be given is obeyed; the rest is refused by name, and so is
a flag of a newer torch that nobody has thought about here.
"""

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from rekindle.launch.spawn.command import LOCAL_RANK, LaunchCommand, Program, Script

REPLACED = frozenset(
    {
        "nnodes",
        "node_rank",
        "rdzv_backend",
        "rdzv_endpoint",
        "rdzv_id",
        "rdzv_conf",
        "standalone",
        "master_addr",
        "master_port",
        "local_addr",
        "max_restarts",
        "monitor_interval",
        "start_method",
        "shutdown_timeout",
        "signals_to_handle",
        # What workers print is the container's log, with the rank before each line.
        "log_dir",
        "redirects",
        "tee",
    }
)
"""The round, the operator's budgets and the pod's log take their place."""
OBEYED = frozenset(
    {
        "nproc_per_node",
        "role",
        "module",
        "no_python",
        "run_path",
        "use_env",
        "training_script",
        "training_script_args",
    }
)
REFUSED: Mapping[str, str] = {
    "event_log_handler": "there is no torch agent whose events it could handle",
    "local_ranks_filter": "the log of a pod has the lines of all its workers",
    "duplicate_stdout_filters": "the log of a pod is not copied",
    "duplicate_stderr_filters": "the log of a pod is not copied",
    "logs_specs": "what workers print goes to the pod's log",
    "numa_binding": "workers are not bound; have the kubelet's topology manager do it",
    "virtual_local_rank": "workers see all GPUs of their pod",
}
"""Why not."""


class _Unset:
    """What a flag is that was not given."""


def parse(arguments: Sequence[str], legacy: bool, environment: Mapping[str, str]) -> LaunchCommand:
    """Take torchrun's arguments apart; raises ValueError with the flag and what to do.

    ``legacy``: they are those of torch.distributed.launch, which hands the local rank to the script
    unless ``--use-env`` says that it reads it from the environment.
    """
    given = _given(arguments, legacy)
    for name in sorted(given):
        if name in REPLACED or name in OBEYED:
            continue
        why = REFUSED.get(name, "this version of Rekindle does not know it")
        raise ValueError(
            f"torchrun --{name.replace('_', '-')} cannot be had in a pod: {why}; remove it"
        )
    script = given.get("training_script")
    if not isinstance(script, str):
        raise ValueError("torchrun names no script to run; its flags come before the script")
    rest = [
        str(each).replace("${local_rank}", LOCAL_RANK) for each in given["training_script_args"]
    ]
    if legacy and not given.get("use_env"):
        rest.insert(0, f"--local-rank={LOCAL_RANK}")
    if given.get("no_python") and not given.get("run_path"):
        if given.get("module"):
            raise ValueError("torchrun: --module and --no-python exclude each other; remove one")
        target: Script | Program = Program(arguments=(script, *rest))
    else:
        module = ("-m",) if given.get("module") else ()
        target = Script(arguments=(*module, script, *rest))
    gone = [f"--{name.replace('_', '-')}" for name in sorted(REPLACED & set(given))]
    notes = (f"replaced by the job's own: {' '.join(gone)} of torchrun",) if gone else ()
    nproc = given.get("nproc_per_node") or environment.get("PET_NPROC_PER_NODE")
    if nproc is not None and nproc not in {"auto", "gpu", "cpu"} and not str(nproc).isdecimal():
        raise ValueError(
            f"torchrun --nproc-per-node is {nproc!r}, must be auto, gpu, cpu or a number from 1 up"
        )
    role = given.get("role") or environment.get("PET_ROLE")
    return LaunchCommand(target=target, nproc=nproc, role=role, notes=notes)


def _given(arguments: Sequence[str], legacy: bool) -> dict[str, Any]:
    """Give the values of the flags that were given, and only of those."""
    from torch.distributed.run import get_args_parser

    # Variables would be defaults, and look like flags.
    hidden = {name: value for name, value in os.environ.items() if name.startswith("PET_")}
    for name in hidden:
        del os.environ[name]
    try:
        parser = get_args_parser()
    finally:
        os.environ.update(hidden)
    if legacy:
        parser.add_argument("--use-env", "--use_env", default=False, action="store_true")

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"torchrun: {message}")

    parser.error = refuse  # type: ignore[method-assign]
    unset = _Unset()
    space = Namespace(**{action.dest: unset for action in parser._actions})
    try:
        found = parser.parse_args(list(arguments), namespace=space)
    except SystemExit as request:
        raise ValueError("torchrun --help runs no script; remove it") from request
    return {name: value for name, value in vars(found).items() if value is not unset}

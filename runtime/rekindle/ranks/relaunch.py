"""``Trainer(devices=4)`` in a script that was started alone: the launcher starts it four times.

The process is replaced by torch's launcher, which runs the same script with the same arguments in
every process it starts. Nothing is forked or pickled, so it does not matter whether the script
guards its main part; but what it did before `fit` is done again, in each of the processes.

That is right for a script or a module that was run by name. It would be wrong for an interactive
session, a notebook or a test, whose "script" is not the user's program: there the answer is the
command.
"""

import os
import sys
from typing import NoReturn

import torch


def startable() -> bool:
    """Whether this is a script or a module that could be started again."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    if hasattr(sys, "ps1") or sys.flags.interactive or file is None:
        return False
    return "ipykernel" not in sys.modules and not os.environ.get("PYTEST_CURRENT_TEST")


def command(devices: int) -> list[str]:
    """What starts this program on so many processes; ValueError when that cannot be known."""
    main = sys.modules["__main__"]
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if not startable():
        raise ValueError(
            f"devices={devices}, but this process was started alone, and not from a script that "
            f"could be started again. Start the script with `torchrun --nproc-per-node {devices} "
            f"script.py`, or as a TrainingJob."
        )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher.append(f"--nproc-per-node={devices}")
    if spec is not None and spec.name != "__main__":
        program = ["--module", spec.name.removesuffix(".__main__")]
    else:
        program = [os.path.abspath(str(file))]
    return [*launcher, *program, *sys.argv[1:]]


def check(accelerator: str, devices: int) -> None:
    """Refuse more GPUs than there are, before anything is started."""
    if accelerator == "cpu" or not torch.cuda.is_available():
        return
    here = torch.cuda.device_count()
    if devices > here:
        raise ValueError(
            f"devices={devices}, but this machine has {here} GPU{'s' * (here != 1)}. Lower it, or "
            f"use accelerator='cpu'."
        )


def by_hand(devices: object, num_nodes: int = 1) -> None:
    """Complete the environment of a process that somebody has started as one of several.

    As in Lightning, ``LOCAL_RANK`` alone, with ``NODE_RANK`` where there are several machines, says
    which of `devices` processes this is. Raises ValueError where they could not find each other.
    """
    given = os.environ.get("LOCAL_RANK")
    if given is None or "WORLD_SIZE" in os.environ or type(devices) is not int or devices < 2:
        return
    if "MASTER_PORT" not in os.environ or not 0 <= int(given) < devices:
        raise ValueError(
            f"LOCAL_RANK={given} says that this is one of devices={devices} processes that were "
            f"started by hand: each needs another LOCAL_RANK below {devices}, and all the same "
            f"MASTER_ADDR and MASTER_PORT. Remove LOCAL_RANK to have them started, or use torchrun."
        )
    rank = int(os.environ.get("NODE_RANK", "0")) * devices + int(given)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(num_nodes * devices),
        "LOCAL_WORLD_SIZE": str(devices),
    }


def relaunch(accelerator: str, devices: int) -> NoReturn:
    """Replace this process by `devices` processes of the same program."""
    check(accelerator, devices)
    words = command(devices)
    print(f"devices={devices}: starting {devices} processes: {' '.join(words)}", flush=True)
    sys.stderr.flush()
    os.execv(sys.executable, words)

"""What workers find in their environment: torchrun's names, and ours.

Three layers, because workers are forked from a process that has an environment of its own: what
holds for the pod's whole life is there from the beginning, for libraries that look only once; what
belongs to a round and what belongs to one worker is set in the forked process. A module that keeps
one of the latter (``OF_A_WORKER``) from the time of its import must not be shared (``preload``).
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rekindle import api
from rekindle.api import Round
from rekindle.launch.pod.settings import Settings
from rekindle.launch.spawn.command import Program

MANY = 1_000_000
"""torch's max_restarts, which workers see in their environment; nothing is counted against it."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where torch's ``record`` decorator leaves an exception."""
ENV_TORCHRUN = "REKINDLE_TORCHRUN"
"""In workers that are no Python script: the place that a torchrun within takes in the round, as
``rank/size``; or a sentence that says why there is none. See ``joining``."""
OF_A_WORKER = frozenset(
    {
        "RANK",
        "ROLE_RANK",
        "LOCAL_RANK",
        "GROUP_RANK",
        "LOCAL_WORLD_SIZE",
        "WORLD_SIZE",
        "ROLE_WORLD_SIZE",
        "GROUP_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "NODE_RANK",
        "PET_NODE_RANK",
        "TORCHELASTIC_RESTART_COUNT",
        ERROR_FILE,
        api.ENV_RUN_DIR,
        api.ENV_ROUND,
        api.ENV_REPORT,
    }
)
"""Variables that differ between the workers of a pod, or between its rounds."""


def of_pod(
    settings: Settings, directory: Path, memory: Sequence[int], role: str = "default"
) -> dict[str, str]:
    """Give what all workers of all rounds of a pod have in common, beside the agent's own."""
    variables = {
        # Chosen per round in a worker. But whether metrics go to files at all, libraries decide
        # when they are imported, which happens before.
        "PROMETHEUS_MULTIPROC_DIR": str(directory / "prometheus"),
        "ROLE_NAME": role,
        "TORCHELASTIC_MAX_RESTARTS": str(MANY),
        "TORCHELASTIC_RUN_ID": settings.job,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    if memory:
        variables[api.ENV_MEMORY] = ",".join(str(file) for file in memory)
    defaults = {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        # Looking for GPUs must not initialise CUDA in a process that others are forked from.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }
    if settings.nproc > 1:
        # As torchrun does: workers that each take all cores fight for them.
        defaults["OMP_NUM_THREADS"] = "1"
    if settings.address.startswith("127.") and sys.platform.startswith("linux"):
        # gloo takes the interface of the host's name, which is another one than the pods' here.
        defaults["GLOO_SOCKET_IFNAME"] = "lo"
    return variables | {name: value for name, value in defaults.items() if name not in os.environ}


def of_round(current: Round, directory: Path) -> dict[str, str]:
    """Give what all workers of a round have in common."""
    told = current.variables or {}
    return {
        **{name: value for name, value in told.items() if name in api.OF_A_ROUND},
        api.ENV_RUN_DIR: str(directory),
        api.ENV_ROUND: str(current.number),
        "PROMETHEUS_MULTIPROC_DIR": str(directory / "prometheus"),
        "TORCHELASTIC_RESTART_COUNT": str(current.number - 1),
    }


def of_worker(
    *,
    rank: int,
    local_rank: int,
    nproc: int,
    world_size: int,
    group_rank: int,
    group_size: int,
    address: str,
    port: int,
) -> dict[str, str]:
    """Give what one worker has for itself; ``address`` and ``port`` are those of the store."""
    return {
        "RANK": str(rank),
        "ROLE_RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "GROUP_RANK": str(group_rank),
        "LOCAL_WORLD_SIZE": str(nproc),
        "WORLD_SIZE": str(world_size),
        "ROLE_WORLD_SIZE": str(world_size),
        "GROUP_WORLD_SIZE": str(group_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        # What Kubeflow's operator gives a pod, and torchrun takes for flags that are not given.
        "PET_NNODES": str(group_size),
        "PET_NODE_RANK": str(group_rank),
        "PET_NPROC_PER_NODE": str(nproc),
        "PET_MASTER_ADDR": address,
        "PET_MASTER_PORT": str(port),
        # As scripts for several schedulers have it.
        "NNODES": str(group_size),
        "NODE_RANK": str(group_rank),
        "NPROC_PER_NODE": str(nproc),
    }


def of_program(
    program: Program, worker: Mapping[str, str], job: str, gpus: Sequence[str]
) -> dict[str, str]:
    """Give what a worker that is no Python script has in addition to ``of_worker``'s.

    ``gpus`` are those that the pod sees, as CUDA_VISIBLE_DEVICES names them.
    """
    found = {
        "PYTHONUNBUFFERED": "1",
        "PET_RDZV_BACKEND": "rekindle",
        "PET_RDZV_ID": job,
        "PET_RDZV_ENDPOINT": f"{worker['MASTER_ADDR']}:{worker['MASTER_PORT']}",
        "PET_MAX_RESTARTS": "0",
    }
    nproc = int(worker["LOCAL_WORLD_SIZE"])
    if program.per_pod or nproc == 1:
        found[ENV_TORCHRUN] = f"{worker['GROUP_RANK']}/{worker['GROUP_WORLD_SIZE']}"
    elif program.one_gpu:
        found[ENV_TORCHRUN] = f"{worker['RANK']}/{worker['WORLD_SIZE']}"
    else:
        found[ENV_TORCHRUN] = (
            f"this pod starts the command {nproc} times, once for each worker, and a torchrun "
            "within would start workers again; set procPerNode to 1, or make torchrun the command"
        )
    local = int(worker["LOCAL_RANK"])
    if program.one_gpu and 1 < nproc <= len(gpus):
        found |= {"CUDA_VISIBLE_DEVICES": gpus[local], "LOCAL_RANK": "0"}
    return found

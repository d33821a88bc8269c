"""Settings of torch that belong to the process, for as long as a trainer runs.

`deterministic`, `benchmark` and `detect_anomaly` are global in torch. What a script has set itself
is left alone unless the flag is given, and is there again afterwards: two trainers in one process
do not change each other's numbers.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rekindle.flags import Flags


@contextmanager
def settings(flags: Flags) -> Iterator[None]:
    """Apply the flags inside, and bring back what was there before."""
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    benchmark, deterministic = cudnn.benchmark, cudnn.deterministic
    anomaly = torch.is_anomaly_enabled()
    try:
        if flags.deterministic is not None:
            if flags.deterministic:
                # cuBLAS is deterministic only with a workspace of a fixed size.
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            cudnn.deterministic = bool(flags.deterministic)
            torch.use_deterministic_algorithms(
                bool(flags.deterministic), warn_only=flags.deterministic == "warn"
            )
        if flags.benchmark is not None:
            cudnn.benchmark = flags.benchmark
        if flags.detect_anomaly:
            torch.autograd.set_detect_anomaly(True)
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        cudnn.benchmark, cudnn.deterministic = benchmark, deterministic
        torch.autograd.set_detect_anomaly(anomaly)

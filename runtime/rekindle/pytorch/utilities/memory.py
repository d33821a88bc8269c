"""Memory that has run out: telling it from other errors, and giving back what nobody uses."""

import gc
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

FLOAT16_EPSILON = torch.finfo(torch.float16).eps
FLOAT32_EPSILON = torch.finfo(torch.float32).eps
FLOAT64_EPSILON = torch.finfo(torch.float64).eps


def recursive_detach(in_dict: Any, to_cpu: bool = False) -> Any:
    """The same collection with its tensors detached, and on the CPU where that is asked for."""

    def detached(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().cpu() if to_cpu else tensor.detach()

    return tree_map_only(torch.Tensor, detached, in_dict)


def is_cuda_out_of_memory(exception: BaseException) -> bool:
    """Whether a GPU has no memory left."""
    return _says(exception, "CUDA", "out of memory")


def is_cudnn_snafu(exception: BaseException) -> bool:
    """Whether cuDNN found no memory for an algorithm, in the words it has for that."""
    return _says(exception, "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED.")


def is_out_of_cpu_memory(exception: BaseException) -> bool:
    """Whether the host has no memory left."""
    return _says(exception, "DefaultCPUAllocator: can't allocate memory")


def is_oom_error(exception: BaseException) -> bool:
    """Whether any memory has run out."""
    return (
        is_cuda_out_of_memory(exception)
        or is_cudnn_snafu(exception)
        or is_out_of_cpu_memory(exception)
    )


def _says(exception: BaseException, *words: str) -> bool:
    if not isinstance(exception, RuntimeError) or len(exception.args) != 1:
        return False
    return all(word in str(exception.args[0]) for word in words)


def garbage_collection_cuda() -> None:
    """Give memory that nobody uses back to the GPU."""
    gc.collect()
    try:
        torch.cuda.empty_cache()
    except RuntimeError as error:
        # It may fail for the very reason it is called.
        if not is_oom_error(error):
            raise

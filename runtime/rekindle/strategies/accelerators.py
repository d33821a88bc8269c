"""Kinds of devices, for scripts that ask what there is: ``CUDAAccelerator.is_available()``.

Given to `Trainer(accelerator=)`, one means its name.
"""

from typing import Any

import torch


class Accelerator:
    """Base class of the kinds that there are."""

    @staticmethod
    def is_available() -> bool:
        """Whether there is such a device."""
        raise NotImplementedError

    @staticmethod
    def auto_device_count() -> int:
        """How many there are."""
        raise NotImplementedError

    @staticmethod
    def name() -> str:
        """What `Trainer(accelerator=)` calls it."""
        raise NotImplementedError

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        """Figures of a device's memory and load."""
        raise NotImplementedError


class CPUAccelerator(Accelerator):
    """The host's processors."""

    @staticmethod
    def is_available() -> bool:
        """Always."""
        return True

    @staticmethod
    def auto_device_count() -> int:
        """One."""
        return 1

    @staticmethod
    def name() -> str:
        """``cpu``."""
        return "cpu"

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        """Shares of memory and processors in use."""
        return dict(get_cpu_stats())


class CUDAAccelerator(Accelerator):
    """NVIDIA's GPUs, and AMD's with ROCm."""

    @staticmethod
    def is_available() -> bool:
        """Whether there is one."""
        return torch.cuda.device_count() > 0

    @staticmethod
    def auto_device_count() -> int:
        """How many there are."""
        return torch.cuda.device_count()

    @staticmethod
    def name() -> str:
        """``cuda``."""
        return "cuda"

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        """Figures of the device's memory."""
        return dict(torch.cuda.memory_stats(device))


class MPSAccelerator(Accelerator):
    """Apple's GPUs."""

    @staticmethod
    def is_available() -> bool:
        """Whether there is one."""
        return torch.backends.mps.is_available()

    @staticmethod
    def auto_device_count() -> int:
        """One."""
        return 1

    @staticmethod
    def name() -> str:
        """``mps``."""
        return "mps"

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        """Shares of the host's memory and processors in use, which are the device's too."""
        return dict(get_cpu_stats())


def get_cpu_stats() -> dict[str, float]:
    """Shares of memory and processors in use, in percent; ModuleNotFoundError without psutil."""
    try:
        import psutil
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "figures of the CPU need psutil, which is not installed: pip install psutil",
            name=error.name,
        ) from error
    return {
        "cpu_vm_percent": psutil.virtual_memory().percent,
        "cpu_percent": psutil.cpu_percent(),
        "cpu_swap_percent": psutil.swap_memory().percent,
    }


def find_usable_cuda_devices(num_devices: int = -1) -> list[int]:
    """Numbers of GPUs that a tensor can be put on, so many or (-1) all of them.

    Raises ValueError where there are fewer, RuntimeError where others have taken too many.
    """
    count = torch.cuda.device_count()
    if num_devices == 0:
        return []
    if count == 0 or num_devices > count:
        raise ValueError(
            f"find_usable_cuda_devices({num_devices}): there are {count} GPUs on this machine"
        )
    usable: list[int] = []
    for number in range(count):
        try:
            torch.tensor(0, device=torch.device("cuda", number))
        except RuntimeError:
            continue
        usable.append(number)
        if len(usable) == num_devices:
            break
    if num_devices > len(usable):
        raise RuntimeError(
            f"find_usable_cuda_devices({num_devices}): {len(usable)} of {count} GPUs can be used, "
            f"others have taken the rest"
        )
    return usable

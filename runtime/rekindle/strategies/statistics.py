"""BatchNorm over the batches of all processes (``sync_batchnorm=True``).

torch's own SyncBatchNorm is for GPUs only. This one sums counts, sums and squares over the
processes with one differentiable collective, on any device. A process that repeats a batch for the
sake of the others takes part with weight zero (`muted`).

The names of parameters and buffers are those of the layer that is replaced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_muted = False


@contextmanager
def muted() -> Iterator[None]:
    """Inside, this process's batch does not count."""
    global _muted  # noqa: PLW0603 - one step runs at a time in a process
    _muted = True
    try:
        yield
    finally:
        _muted = False


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class SynchronisedBatchNorm(_BatchNorm):
    """A BatchNorm of any dimension whose training statistics are those of all processes."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise; outside of training as the layer that was replaced."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        dims = [d for d in range(input.dim()) if d != 1]
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        weight = 0.0 if _muted else 1.0
        count = wide.new_full((1,), weight * input.numel() / input.shape[1])
        own = torch.cat([weight * wide.sum(dims), weight * wide.square().sum(dims), count])
        total: torch.Tensor = _SumOverRanks.apply(own)  # type: ignore[no-untyped-call]
        channels = input.shape[1]
        mean = total[:channels] / total[-1]
        variance = (total[channels:-1] / total[-1] - mean.square()).clamp(min=0.0)
        if self.track_running_stats:
            self._note(mean.detach(), variance.detach(), total[-1].detach())
        shape = [1, channels] + [1] * (input.dim() - 2)
        scale = torch.rsqrt(variance + self.eps)
        out = (wide - mean.view(shape)) * scale.view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    def _note(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor: Any = self.momentum
        if factor is None:
            factor = 1.0 / self.num_batches_tracked
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        # Running variances are those of a sample, as torch has them.
        unbiased = variance * count / (count - 1).clamp(min=1)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)


def synchronise(module: nn.Module) -> bool:
    """Replace every BatchNorm inside; whether there was one."""
    found = False
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, SynchronisedBatchNorm):
            setattr(module, name, _replacement(child))
            found = True
        else:
            found = synchronise(child) or found
    return found


def _replacement(layer: _BatchNorm) -> SynchronisedBatchNorm:
    made = SynchronisedBatchNorm(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    )
    # The very same tensors: an optimizer or another layer may hold them already.
    made._parameters, made._buffers = layer._parameters, layer._buffers
    made.training = layer.training
    return made


def synchronised(module: nn.Module) -> bool:
    """Whether a forward pass in training is a collective operation for statistics."""
    return any(isinstance(child, SynchronisedBatchNorm) for child in module.modules())

"""Data parallelism: gradients of all ranks summed in a fixed layout.

torch's DistributedDataParallel regroups its buckets after the first backward pass of a process.
Floating-point sums depend on that grouping as soon as three ranks take part, so a restarted run
would not be bit-equal to an uninterrupted one. Here the layout is a pure function of the
parameters (order, shape, dtype): parameters in reverse order, which is about the order in which
their gradients become ready, packed into flat buckets of about 25 MiB. ``parameter.grad`` is a view
into its bucket, so nothing is copied; there is no wrapper around the module and no frame of ours
between it and the loop.

On the last micro-batch of a step a hook counts down as gradients become ready, and complete buckets
are summed asynchronously, always in the same order, while the backward pass goes on with the rest.
The loss of each micro-batch was multiplied by its share of the step's samples before, so the sum is
the mean over the true global batch on any number of ranks. A rank without a micro-batch adds zeros.

Each bucket ends with one element per parameter that says how many ranks had a gradient for it: a
parameter that no rank used gets ``grad = None`` for the step, as in a single process, where an
optimizer leaves it alone. These elements are read only by ranks that missed a gradient themselves,
so the usual step needs no look at them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

BUCKET_BYTES = 25 * 1024 * 1024
"""Large enough for full bandwidth, small enough to begin before the backward pass ends."""


@dataclass(frozen=True, kw_only=True)
class GradientPlacement:
    """Where one parameter's gradient lies."""

    parameter: int
    bucket: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class BucketLayout:
    """Size and contents of one bucket, in elements."""

    placements: tuple[GradientPlacement, ...]
    dtype: torch.dtype
    size: int
    """Elements of gradients; the flags come after them."""


def layout(
    shapes: Iterable[tuple[int, torch.dtype]], *, limit: int = BUCKET_BYTES
) -> list[BucketLayout]:
    """Pack (elements, dtype) of the parameters, in reverse order, into buckets; pure."""
    buckets: list[BucketLayout] = []
    current: list[GradientPlacement] = []
    used, dtype = 0, torch.float32

    def close() -> None:
        nonlocal used
        if current:
            buckets.append(BucketLayout(placements=tuple(current), dtype=dtype, size=used))
            current.clear()
            used = 0

    for index, (elements, kind) in reversed(list(enumerate(shapes))):
        if current and (kind != dtype or (used + elements) * kind.itemsize > limit):
            close()
        dtype = kind
        current.append(
            GradientPlacement(
                parameter=index, bucket=len(buckets), start=used, stop=used + elements
            )
        )
        used += elements
    close()
    return buckets


class GradientSum:
    """Sums the gradients of a module's parameters over all ranks of the default group."""

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        *,
        limit: int = BUCKET_BYTES,
        overlap: bool = True,
    ) -> None:
        """Without `overlap` nothing is sent before `finish`: another backward pass may follow."""
        self._overlap = overlap
        self._parameters = list(parameters)
        self._layout = layout(((p.numel(), p.dtype) for p in self._parameters), limit=limit)
        self._flat: list[torch.Tensor] = []
        self._views: list[torch.Tensor] = [torch.empty(0)] * len(self._parameters)
        self._bucket_of = [0] * len(self._parameters)
        self._flag_of = [0] * len(self._parameters)
        for number, bucket in enumerate(self._layout):
            device = self._parameters[bucket.placements[0].parameter].device
            length = bucket.size + len(bucket.placements)
            flat = torch.zeros(length, dtype=bucket.dtype, device=device)
            self._flat.append(flat)
            for place, p in enumerate(bucket.placements):
                parameter = self._parameters[p.parameter]
                self._views[p.parameter] = flat[p.start : p.stop].view_as(parameter)
                self._bucket_of[p.parameter] = number
                self._flag_of[p.parameter] = bucket.size + place
        self._used = [False] * len(self._parameters)
        self._waiting = [0] * len(self._layout)
        self._armed = False
        self._next = 0
        self._works: list[Any] = []
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(index))  # type: ignore[no-untyped-call]
            for index, parameter in enumerate(self._parameters)
        ]
        self.clear()

    def _hook(self, index: int) -> Any:
        def ready(_parameter: torch.Tensor) -> None:
            self._used[index] = True
            if self._armed:
                self._count_down(self._bucket_of[index])

        return ready

    def clear(self) -> None:
        """Zero all gradients, before the first micro-batch of a step."""
        for flat in self._flat:
            flat.zero_()
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.grad = view
        self._used = [False] * len(self._parameters)

    def used(self, *, summed: bool) -> set[int]:
        """By identity, the parameters that have a gradient on this rank, or of all in the sum."""
        return {
            id(parameter)
            for parameter, used in zip(self._parameters, self._used, strict=True)
            if used or summed
        }

    def use(self, parameter: torch.nn.Parameter) -> None:
        """A parameter of this sum, if it is one, has been given a gradient."""
        for index, own in enumerate(self._parameters):
            if own is parameter:
                self._used[index] = True

    def begin(self, _position: int, *, last: bool) -> None:
        """Before the forward pass of this rank's micro-batch number `position` of the step."""
        if last and self._overlap:
            self.arm()

    def arm(self) -> None:
        """The next backward pass is this rank's last one of the step: send what becomes ready."""
        self._waiting = [len(bucket.placements) for bucket in self._layout]
        self._armed = True

    def _count_down(self, bucket: int) -> None:
        self._waiting[bucket] -= 1
        if self._waiting[bucket] < 0:
            raise RuntimeError(
                "a parameter's gradient became ready twice in one backward pass. Use "
                "torch.utils.checkpoint with use_reentrant=False."
            )
        while self._next < len(self._flat) and self._waiting[self._next] == 0:
            self._send()

    def _send(self) -> None:
        number = self._next
        flags = [float(self._used[p.parameter]) for p in self._layout[number].placements]
        flat = self._flat[number]
        tail = flat[self._layout[number].size :]
        if all(flags):
            tail.fill_(1.0)
        else:
            tail.copy_(torch.tensor(flags, dtype=flat.dtype))
        self._works.append(dist.all_reduce(flat, async_op=True))
        self._next += 1

    def finish(self) -> None:
        """Send what is left and wait for all sums; afterwards gradients are those of the step."""
        self._armed = False
        for parameter, view in zip(self._parameters, self._views, strict=True):
            if parameter.grad is not view:
                raise RuntimeError(
                    "a gradient was replaced during the step (zero_grad or an assignment to "
                    ".grad in a hook). Change gradients in place; the trainer clears them."
                )
        while self._next < len(self._flat):
            self._send()
        for work in self._works:
            work.wait()
        self._works, self._next = [], 0
        self._drop_unused()

    def _drop_unused(self) -> None:
        if all(self._used):
            return
        for number, bucket in enumerate(self._layout):
            if all(self._used[p.parameter] for p in bucket.placements):
                continue
            counts = self._flat[number][bucket.size :].tolist()
            for count, place in zip(counts, bucket.placements, strict=True):
                if count == 0.0:
                    self._parameters[place.parameter].grad = None

    def reopen(self, *, keep: bool) -> None:
        """Let another backward pass add to gradients that may have been summed or dropped.

        Without `keep` they begin at zero again: of a sum that is to be counted once in the next
        sum, one rank keeps all and the others nothing.
        """
        if not keep:
            for flat in self._flat:
                flat.zero_()
        for parameter, view in zip(self._parameters, self._views, strict=True):
            if parameter.grad is None:
                view.zero_()
                parameter.grad = view

    def cleared(self, *, keep: bool) -> None:
        """A script has dropped or zeroed gradients itself, or left them; see `reopen`."""
        used = zip(self._used, self._parameters, strict=True)
        self._used = [was and p.grad is not None for was, p in used]
        self.reopen(keep=keep)

    def close(self) -> None:
        """Remove the hooks and give the parameters their independence back."""
        for handle in self._handles:
            handle.remove()
        for parameter in self._parameters:
            parameter.grad = None


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite tensors with those of rank 0, in flat pieces per dtype."""
    groups: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for group in groups.values():
        for part in _pieces(group):
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in part])
            wire = flat.view(torch.uint8) if flat.dtype is torch.bool else flat
            dist.broadcast(wire, src=0)
            start = 0
            for tensor in part:
                stop = start + tensor.numel()
                tensor.detach().copy_(flat[start:stop].view_as(tensor))
                start = stop


def _pieces(tensors: list[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
    part: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        part.append(tensor)
        size += tensor.numel() * tensor.element_size()
        if size > BUCKET_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part

"""Gradients whose sum is bit-equal on any number of ranks (``data={'guarantee': 'bitwise'}``).

A floating-point sum depends on how it is grouped, and a reduction over ranks groups by rank. Here
the gradient of every micro-batch is kept in a row of its own; ranks exchange their rows and each of
them adds all rows in the order of the micro-batches. That order, and every draw within a
micro-batch, is the same on any number of ranks, so the weights are too. In a world of one the same
code runs without the exchange.

It costs one gradient per micro-batch of this rank, and the traffic of gathering instead of reducing
them. Adding the row of a micro-batch that does not exist (in the last step of an epoch) adds zeros,
which changes nothing: a row begins as +0.0, and no sum of it can become -0.0.

Buffers that change in the forward pass (running statistics of BatchNorm) depend on which
micro-batches a rank has seen before. So every micro-batch starts from the buffers of the step's
beginning, and the step's end adds the mean of their changes, in the same order: one update per step
instead of one per micro-batch. Buffers that are not floating-point (counters) become what the first
micro-batch has made of them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rekindle.ranks.gradients import broadcast, layout

# Its name changed in torch 2.13; the old one warns.
_gather: Callable[..., object] = (
    getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
)


class _Rows:
    """One row of values per micro-batch of this rank, and the sum over those of all ranks."""

    def __init__(self, size: int, like: torch.Tensor) -> None:
        self.size = size
        self._like = like
        self._own = torch.zeros(0, size, dtype=like.dtype, device=like.device)

    def reserve(self, rows: int) -> None:
        """Make room for at least so many rows; contents are undefined."""
        if rows > len(self._own):
            self._own = self._like.new_zeros(rows, self.size)

    def row(self, position: int) -> torch.Tensor:
        return self._own[position]

    def summed(self, lanes: int, own: int, world_size: int) -> torch.Tensor:
        """The sum over all lanes in their order; collective. `own`: rows that this rank filled."""
        rows = -(-lanes // world_size)
        mine = self._own[:rows]
        mine[own:].zero_()
        everyone = mine
        if world_size > 1:
            everyone = mine.new_empty(world_size, rows, self.size)
            _gather(everyone.view(-1), mine.reshape(-1))
        everyone = everyone.view(world_size, rows, self.size)
        total = everyone[0, 0].clone()
        for lane in range(1, lanes):
            total += everyone[lane % world_size, lane // world_size]
        return total


class LaneSum:
    """Sums gradients and changes of buffers over all micro-batches in one fixed order."""

    def __init__(self, module: nn.Module, *, world_size: int, lanes: Callable[[], int]) -> None:
        """`lanes` tells how many micro-batches a full step has at the moment."""
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._world_size, self._lanes = world_size, lanes
        self._layout = layout((p.numel(), p.dtype) for p in self._parameters)
        # After the gradients comes one element per parameter: whether it had one.
        self._rows = [
            _Rows(
                bucket.size + len(bucket.placements),
                self._parameters[bucket.placements[0].parameter].detach(),
            )
            for bucket in self._layout
        ]
        self._used = [False] * len(self._parameters)
        self._views: list[torch.Tensor] = []
        self._position = -1
        """Of the micro-batch that runs, among this rank's; -1 between steps."""
        self._buffers = _Buffers(module)
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(index))  # type: ignore[no-untyped-call]
            for index, parameter in enumerate(self._parameters)
        ]

    def _hook(self, index: int) -> Any:
        def ready(_parameter: torch.Tensor) -> None:
            self._used[index] = True

        return ready

    def begin(self, position: int, *, last: bool) -> None:
        """Before the forward pass of this rank's micro-batch number `position` of the step."""
        if self._position < 0:
            rows = -(-max(1, self._lanes()) // self._world_size)
            for each in self._rows:
                each.reserve(rows)
            self._buffers.keep(rows)
        else:
            self._close_row()
            self._buffers.reset()
        # Of lanes of a stream that have ended in between, nothing may be left from steps before.
        for skipped in range(self._position + 1, position):
            for each in self._rows:
                each.row(skipped).zero_()
            self._buffers.skip(skipped)
        self._position = position
        self._used = [False] * len(self._parameters)
        self._views = [torch.empty(0)] * len(self._parameters)
        for bucket, rows_of in zip(self._layout, self._rows, strict=True):
            row = rows_of.row(position)
            row.zero_()
            for p in bucket.placements:
                parameter = self._parameters[p.parameter]
                parameter.grad = row[p.start : p.stop].view_as(parameter)
                self._views[p.parameter] = parameter.grad

    def _close_row(self) -> None:
        """The newest micro-batch is through: check and mark which gradients it had."""
        for parameter, view in zip(self._parameters, self._views, strict=True):
            if parameter.grad is not view:
                raise RuntimeError(
                    "a gradient was replaced during the step (zero_grad or an assignment to "
                    ".grad in a hook). Change gradients in place; the trainer clears them."
                )
        for bucket, rows_of in zip(self._layout, self._rows, strict=True):
            tail = rows_of.row(self._position)[bucket.size :]
            flags = [float(self._used[p.parameter]) for p in bucket.placements]
            tail.copy_(torch.tensor(flags, dtype=tail.dtype))
        self._buffers.note(self._position)

    def finish(self) -> None:
        """Exchange and add all rows; afterwards gradients and buffers are those of the step."""
        lanes = max(1, self._lanes())
        own = self._position + 1
        if own:
            self._close_row()
        else:
            rows = -(-lanes // self._world_size)
            for each in self._rows:
                each.reserve(rows)
            self._buffers.keep(rows)
        for bucket, rows_of in zip(self._layout, self._rows, strict=True):
            total = rows_of.summed(lanes, own, self._world_size)
            counts = total[bucket.size :].tolist()
            for count, p in zip(counts, bucket.placements, strict=True):
                parameter = self._parameters[p.parameter]
                # As in a single process: an optimizer leaves a parameter alone that nobody used.
                parameter.grad = total[p.start : p.stop].view_as(parameter) if count else None
        self._buffers.merge(lanes, own, self._world_size)
        self._position = -1

    def clear(self) -> None:
        """Forget all gradients, after the optimizer."""
        self._position = -1
        for parameter in self._parameters:
            parameter.grad = None

    def close(self) -> None:
        """Remove the hooks and give the parameters their independence back."""
        for handle in self._handles:
            handle.remove()
        for parameter in self._parameters:
            parameter.grad = None


class _Buffers:
    """The buffers of a module that checkpoints hold, per micro-batch and merged."""

    def __init__(self, module: nn.Module) -> None:
        saved = set(module.state_dict())
        # By owner and name: a forward pass may put another tensor in a buffer's place.
        self._places = [
            (owner, name)
            for path, owner in module.named_modules()
            for name, buffer in owner.named_buffers(recurse=False)
            if buffer.numel() and (f"{path}.{name}" if path else name) in saved
        ]
        self._start: list[torch.Tensor] = []
        self._first: dict[int, torch.Tensor] = {}
        self._groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for index, buffer in enumerate(self._now()):
            if buffer.is_floating_point():
                self._groups.setdefault((buffer.dtype, buffer.device), []).append(index)
        # The last element of a row says that there was such a micro-batch.
        self._rows = {
            key: _Rows(sum(self._now()[i].numel() for i in group) + 1, self._now()[group[0]])
            for key, group in self._groups.items()
        }

    def _now(self) -> list[torch.Tensor]:
        return [owner.get_buffer(name).detach() for owner, name in self._places]

    def keep(self, rows: int) -> None:
        """Take the state of the step's beginning."""
        self._start = [buffer.clone() for buffer in self._now()]
        self._first = {}
        for each in self._rows.values():
            each.reserve(rows)

    def reset(self) -> None:
        """Go back to the step's beginning."""
        for buffer, start in zip(self._now(), self._start, strict=True):
            buffer.copy_(start)

    def note(self, position: int) -> None:
        """Take what the micro-batch has changed."""
        now = self._now()
        for key, group in self._groups.items():
            changes = [(now[i] - self._start[i]).reshape(-1) for i in group]
            self._rows[key].row(position).copy_(torch.cat([*changes, changes[0].new_ones(1)]))
        if position == 0:
            self._first = {
                i: buffer.clone() for i, buffer in enumerate(now) if not buffer.is_floating_point()
            }

    def skip(self, position: int) -> None:
        """There is no such micro-batch in this step."""
        for each in self._rows.values():
            each.row(position).zero_()

    def merge(self, lanes: int, own: int, world_size: int) -> None:
        """Apply the mean of all changes; collective."""
        self.reset()
        now = self._now()
        for key, group in self._groups.items():
            total = self._rows[key].summed(lanes, own, world_size)
            mean, start = total / total[-1], 0
            for i in group:
                stop = start + now[i].numel()
                now[i] += mean[start:stop].view_as(now[i])
                start = stop
        others = [i for i, buffer in enumerate(now) if not buffer.is_floating_point()]
        for i in others:
            if i in self._first:
                now[i].copy_(self._first[i])
        if others and world_size > 1:
            # The first micro-batch is the first rank's.
            broadcast([now[i] for i in others])

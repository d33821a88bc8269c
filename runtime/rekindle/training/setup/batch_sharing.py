"""Whose the batch is: the job's, for as long as the run lasts.

The global batch of a run follows from its script and from the number of processes that the job
wants, not from how many of them were there first: a pod that comes late, or a replacement that the
first round had to do without, must not decide how a model is trained. The first checkpoint fixes
it. Fewer processes then do more micro-batches each.

More processes than micro-batches are no error either. Where nothing forbids it micro-batches are
cut into smaller ones. What forbids it: the guarantee ``bitwise``, whose sums are per micro-batch;
streams, whose positions are; BatchNorm, whose statistics are; a script that names its micro-batch
(``Trainer(micro_batch=16)``). Processes without a micro-batch take part in everything else and
contribute nothing, so the agent is told how many are of use, and the operator makes rounds of no
more.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rekindle.api import ENV_WORKERS
from rekindle.data.sampling.order import Cursor
from rekindle.flags import Flags


def workers_of_the_job(world_size: int, environ: Mapping[str, str] = os.environ) -> int:
    """How many processes there are once all are there: the job's word, else those that are.

    Raises ValueError for a word that is no such number.
    """
    told = environ.get(ENV_WORKERS)
    if not told:
        return world_size
    if not told.isdecimal() or not int(told):
        raise ValueError(f"{ENV_WORKERS}={told!r} must be a whole number above 0")
    return int(told)


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How the micro-batches of a step may be shared out."""

    whole: str | None = None
    """Why they keep the size that the script gives them; None: they may be cut."""
    everybody: bool = False
    """Whether a process is of use without one, since it holds a share of the model."""

    def cut(self, cursor: Cursor, processes: int) -> Cursor:
        """The position, its micro-batches cut for so many processes if they may be."""
        return cursor if self.whole else cursor.cut_for(processes)

    def useful(self, cursor: Cursor) -> int | None:
        """The largest number of processes that all have something to do; None: any number."""
        if self.everybody:
            return None
        return cursor.lanes if self.whole else cursor.G

    def told(self, cursor: Cursor, processes: int) -> str | None:
        """What people should know about more processes than micro-batches, in one line."""
        lanes = cursor.G // cursor.m
        if processes <= lanes:
            return None
        have = (
            f"global_batch_size={cursor.G} in micro-batches of {cursor.m} is work for {lanes} of "
            f"{processes} processes"
        )
        useful = self.useful(cursor)
        if cursor.micro != cursor.m and (useful is None or processes <= useful):
            return f"{have}; micro-batches are cut to {cursor.micro}"
        kept = f", which are not cut because of {self.whole}" if self.whole else ""
        return f"{have}{kept}; give global_batch_size= or a smaller batch_size to use them all"


def sharing(flags: Flags, module: nn.Module, *, streamed: bool, sharded: bool) -> Sharing:
    """What a script allows; the module has its layers."""
    reasons = {
        "data['guarantee']='bitwise'": flags.data.guarantee == "bitwise",
        "the stream, which has a position for each": streamed,
        f"micro_batch={flags.micro_batch}": isinstance(flags.micro_batch, int),
        "BatchNorm, whose statistics are those of a micro-batch": any(
            isinstance(layer, _BatchNorm) for layer in module.modules()
        ),
    }
    found = (reason for reason, true in reasons.items() if true)
    return Sharing(whole=next(found, None), everybody=sharded)

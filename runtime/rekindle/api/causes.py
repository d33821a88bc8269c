"""Why something ended: exit codes, causes of incidents, and which budget pays for each."""

from collections.abc import Mapping
from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """What a pod's exit code (and a worker's) means. torchrun itself always exits with 1."""

    DONE = 0
    """Training is complete."""
    USER_ERROR = 1
    """The program is wrong or its configuration is: running it again gives the same."""
    INTEGRITY = 70
    """Data or every checkpoint is damaged (EX_SOFTWARE of sysexits.h)."""
    SAVED = 75
    """State is committed, wants to go on (EX_TEMPFAIL of sysexits.h)."""
    PREEMPTED = 76
    """Told to go away and could not save in time."""


class Cause(StrEnum):
    """Why a round, or a pod, ended. Also the vocabulary of status.incidents[].cause."""

    COMPLETED = "Completed"
    """Training is complete."""
    SAVED = "Saved"
    """Saved at an agreed step because something asked for it."""
    PREEMPTED = "Preempted"
    """The pod was told to go: spot reclaim, drain, eviction, deletion."""
    USER_ERROR = "UserError"
    """The user's program raised or exited with an error."""
    INTEGRITY = "Integrity"
    """Data or checkpoints are damaged."""
    CONFIGURATION = "Configuration"
    """A check before training refused: store not writable, wrong credentials, ..."""
    OUT_OF_MEMORY = "OutOfMemory"
    """The kernel killed it for its memory."""
    CRASHED = "Crashed"
    """A worker ended by a signal of its own doing: it broke its memory, or called abort."""
    WORKER_KILLED = "WorkerKilled"
    """Somebody else than its program has killed a worker, or what it relied on."""
    POD_LOST = "PodLost"
    """Pod killed or gone without notice."""
    NODE_LOST = "NodeLost"
    """The node died, is unreachable or was removed."""
    PEER_LOST = "PeerLost"
    """A worker failed because another one went away: collateral, never a root cause."""
    STORE_LOST = "StoreLost"
    """The checkpoint store gives no answer, or refuses a job that has used it before."""
    CHECKPOINT_DAMAGED = "CheckpointDamaged"
    """A checkpoint was damaged and was passed over; training went on from an older one."""
    INIT_FAILED = "InitFailed"
    """A container that the trainer waits for before it starts has failed."""
    PROBE_FAILED = "ProbeFailed"
    """The kubelet ended the container because a probe of the template kept failing."""
    OUT_OF_STORAGE = "OutOfStorage"
    """The pod used more of its node's disk than its own limits allow."""
    EVICTED = "Evicted"
    """The kubelet ended it because its node had run short of something."""
    REJECTED = "Rejected"
    """The kubelet of the node that it was given to did not take it."""
    START_FAILED = "StartFailed"
    """The container could not start: image, command, mounts."""
    HUNG = "Hung"
    """No rank made a step for longer than steps of this job have ever taken, by a wide margin."""
    ROLLED_BACK = "RolledBack"
    """The trainer went back to an older checkpoint by itself: the loss was not finite, or rose."""
    TIMEOUT = "DeadlineExceeded"
    """A deadline of the job has passed."""
    OPERATOR = "OperatorRestarted"
    """The operator was away; named for the record, costs nothing by itself."""


PAID_BY: Mapping[Cause, str] = {
    **dict.fromkeys(Cause, "infrastructure"),
    **dict.fromkeys(
        (
            *(Cause.USER_ERROR, Cause.CRASHED, Cause.OUT_OF_MEMORY, Cause.OUT_OF_STORAGE),
            *(Cause.CONFIGURATION, Cause.INTEGRITY),
            *(Cause.START_FAILED, Cause.INIT_FAILED, Cause.PROBE_FAILED),
        ),
        "user",
    ),
    Cause.PREEMPTED: "preemption",
    **dict.fromkeys(
        (
            *(Cause.OPERATOR, Cause.ROLLED_BACK, Cause.CHECKPOINT_DAMAGED),
            *(Cause.COMPLETED, Cause.SAVED, Cause.TIMEOUT),
        ),
        "nobody",
    ),
}
"""Which budget of spec.restart an incident of each cause is charged to."""
CERTAIN = frozenset({Cause.USER_ERROR, Cause.CONFIGURATION, Cause.INTEGRITY, Cause.START_FAILED})
"""Causes of which it is certain, as long as a job has not made a step, that the same would follow
again: the script's exceptions and what it relies on. All others are tried again."""
RECOVERY_PHASES = ("detect", "decide", "restart", "restore", "firstStep")
"""Keys of status.incidents[].recovery, in the order in which they follow each other."""

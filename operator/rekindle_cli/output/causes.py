"""What each cause of an incident and each exit code means, in words for the person who reads it."""

from rekindle.api import Cause, ExitCode

HAPPENED: dict[str, str] = {
    Cause.PREEMPTED: "was told to go away: its machine was reclaimed or drained, or it was evicted "
    "or deleted",
    Cause.NODE_LOST: "was lost with its node, which died, became unreachable or was removed",
    Cause.POD_LOST: "was killed or disappeared without notice",
    Cause.OUT_OF_MEMORY: "was killed by the kernel because it used more memory than its limit",
    Cause.CRASHED: "crashed: a worker ended by a signal of its own doing",
    Cause.WORKER_KILLED: "lost a worker, which somebody else than its program has killed",
    Cause.USER_ERROR: "ended with an error of the program itself",
    Cause.INTEGRITY: "found data or checkpoints damaged",
    Cause.CONFIGURATION: "was refused by a check before training",
    Cause.CHECKPOINT_DAMAGED: "found a checkpoint damaged and went on from an older one",
    Cause.STORE_LOST: "could not reach the checkpoint store, or got no answer from it",
    Cause.START_FAILED: "could not start its container",
    Cause.INIT_FAILED: "never came to train, because an init container failed",
    Cause.PROBE_FAILED: "was ended by the kubelet, because a probe of its template kept failing",
    Cause.OUT_OF_STORAGE: "was ended by the kubelet, because it used more disk than its limits "
    "allow",
    Cause.EVICTED: "was ended by the kubelet, because its node had run short of something",
    Cause.REJECTED: "was not taken by the node that it was given to",
    Cause.PEER_LOST: "failed because another pod went away",
    Cause.SAVED: "saved and stopped because something asked for it",
    Cause.TIMEOUT: "was stopped because a deadline of the job had passed",
    Cause.COMPLETED: "completed",
    Cause.OPERATOR: "was away for a moment, or for long; another process has taken over",
    Cause.HUNG: "did not get on any more, and all others waited for it",
    Cause.ROLLED_BACK: "went back to an older step by itself, because its loss was of no use",
}
"""Predicate for the victims of an incident, by its cause."""

SHORT: dict[str, str] = {
    Cause.PREEMPTED: "preempted",
    Cause.NODE_LOST: "lost with its node",
    Cause.POD_LOST: "lost without notice",
    Cause.OUT_OF_MEMORY: "out of memory",
    Cause.CRASHED: "crashed",
    Cause.WORKER_KILLED: "worker killed",
    Cause.USER_ERROR: "error in the program",
    Cause.INTEGRITY: "damaged data or checkpoint",
    Cause.CONFIGURATION: "refused before training",
    Cause.CHECKPOINT_DAMAGED: "damaged checkpoint passed over",
    Cause.STORE_LOST: "checkpoint store out of reach",
    Cause.START_FAILED: "could not start",
    Cause.INIT_FAILED: "init container failed",
    Cause.PROBE_FAILED: "probe failed",
    Cause.OUT_OF_STORAGE: "used too much disk",
    Cause.EVICTED: "evicted from a full node",
    Cause.REJECTED: "rejected by a node",
    Cause.PEER_LOST: "failed after a peer",
    Cause.SAVED: "saved and stopped",
    Cause.TIMEOUT: "deadline passed",
    Cause.COMPLETED: "completed",
    Cause.OPERATOR: "operator restarted",
    Cause.HUNG: "hung",
    Cause.ROLLED_BACK: "training went back by itself",
}
"""A few words for a timeline, by cause."""

_EXIT = {
    ExitCode.DONE: "done",
    ExitCode.USER_ERROR: "error in the program",
    ExitCode.INTEGRITY: "data or checkpoints damaged",
    ExitCode.SAVED: "saved",
    ExitCode.PREEMPTED: "had to go before it could save",
}
_SIGNALS = {130: "SIGINT", 134: "SIGABRT", 137: "SIGKILL", 139: "SIGSEGV", 143: "SIGTERM"}


def exit_meaning(code: int) -> str:
    """What the exit code of a trainer container says; empty for codes without a meaning."""
    if code in _SIGNALS:
        return f"ended by {_SIGNALS[code]}"
    return _EXIT[ExitCode(code)] if code in list(ExitCode) else ""

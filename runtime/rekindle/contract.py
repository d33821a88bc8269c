"""Everything the control plane and the data plane agree on, and nothing else.

The operator and the runtime are installed in different images and never import each other. They
meet in the words of this module: names of labels and environment variables, exit codes, ports, and
the documents that a pod's agent and the operator's coordinator exchange over HTTP. It imports the
standard library only, so that both images can afford it.

The conversation between an agent (PID 1 of a pod, ``rekindle.launch``) and the coordinator::

    POST {url}/v1/namespaces/{ns}/jobs/{job}/pods/{pod}            body: AgentReport -> View
    GET  {url}/v1/namespaces/{ns}/jobs/{job}/pods/{pod}?version=V&wait=S             -> View

    POST {url}/v1/namespaces/{ns}/jobs/{job}/pods/{pod}/lifeline?uid=U       a body without an end

The last one is held by the pod's first process: a byte now and then, the end of the body when the
pod ends by itself, and a connection that breaks when it is killed. With ``probe=1`` behind the uid
it is answered at once and for as long as it is held: whoever reads a chunk of the answer sends one,
which is how the coordinator asks a pod that has fallen silent whether anything in it still runs.

All carry ``Authorization: Bearer {token}``. A report is the agent's whole state and replaces the
one before: reporting twice is harmless, and a coordinator that has lost its memory knows everything
again once each agent has reported. The GET answers when the view differs from version V, or after S
seconds. Refusals: 401 for a wrong token, 404 for an unknown job, 409 for a pod that the operator
does not know (yet) as a live pod of that job; an agent retries all of them with backoff, because an
operator that has just started answers like that for a moment.

Documents travel as JSON with the field names below. A reader ignores fields that it does not know,
so that an operator and a runtime of neighbouring versions can talk.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import Any, Self

GROUP = "rekindle.dev"
"""API group of the custom resource."""
VERSION = "v1alpha1"
"""The only served version of the API group."""
KIND = "TrainingJob"
"""Kind of the custom resource."""
PLURAL = "trainingjobs"
"""Resource name in URLs."""
TRAINER_CONTAINER = "trainer"
"""Name of the container of the pod template that trains."""

LABEL_JOB = f"{GROUP}/job"
"""On every child: the name of its TrainingJob."""
LABEL_SLOT = f"{GROUP}/slot"
"""On pods: which of the wanted pods this is, 0-based. Rank order follows it."""
LABEL_INCARNATION = f"{GROUP}/incarnation"
"""On pods: how many pods held this slot before."""
ANNOTATION_RESTART = f"{GROUP}/restart"
"""On a job: any new value asks for another run of a job that has ended."""
ANNOTATION_RESTART_FROM = f"{GROUP}/restart-from"
"""On a job: what a run that was asked for begins with, ``latest`` (checkpoint) or ``scratch``."""
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
"""On every child, with the value ``rekindle``."""

COORDINATOR_PORT = 8430
"""Where the operator serves agents."""
OPERATOR_METRICS_PORT = 8431
"""Where the operator serves /metrics and /healthz."""
POD_METRICS_PORT = 9430
"""Where a pod's agent serves /metrics and /healthz."""
POD_METRICS_PORT_NAME = "rkd-metrics"
"""Name of that container port: what a PodMonitor selects. Kubernetes allows 15 characters."""

ENV_JOB = "REKINDLE_JOB_NAME"
"""Name of the TrainingJob."""
ENV_NAMESPACE = "REKINDLE_JOB_NAMESPACE"
"""Namespace of the TrainingJob."""
ENV_POD = "REKINDLE_POD_NAME"
"""Name of the pod."""
ENV_POD_UID = "REKINDLE_POD_UID"
"""Uid of the pod."""
ENV_POD_IP = "REKINDLE_POD_IP"
"""Address at which other pods reach this one."""
ENV_COORDINATOR = "REKINDLE_COORDINATOR_URL"
"""Base URL of the coordinator. When unset, there is no operator."""
ENV_TOKEN = "REKINDLE_TOKEN"
"""The job's secret, which proves to the coordinator that a pod belongs to the job."""
ENV_PROC_PER_NODE = "REKINDLE_PROC_PER_NODE"
"""Workers per pod: a number, or ``auto`` (one per GPU, or one), ``gpu``, ``cpu``."""
ENV_GRACE = "REKINDLE_GRACE_SECONDS"
"""The pod's terminationGracePeriodSeconds: what is left between SIGTERM and SIGKILL."""
ENV_TERMINATION_LOG = "REKINDLE_TERMINATION_LOG"
"""File that receives the termination message."""
ENV_CHECKPOINT_URI = "REKINDLE_CHECKPOINT_URI"
"""Root of the run's checkpoints; wins over the root that a script gives."""
ENV_CHECKPOINT_ENDPOINT = "REKINDLE_CHECKPOINT_ENDPOINT_URL"
"""S3 endpoint of that URI, when it is not AWS; wins over the endpoint that a script gives."""
ENV_CHECKPOINT_REGION = "REKINDLE_CHECKPOINT_REGION"
"""Region of that URI's bucket, if the script gives none."""
ENV_CHECKPOINT_ADDRESSING = "REKINDLE_CHECKPOINT_ADDRESSING"
"""``path`` or ``virtual``: how the bucket gets into URLs, if the script does not say."""
ENV_CHECKPOINT_COMMIT = "REKINDLE_CHECKPOINT_COMMIT"
"""``conditional`` or ``lease``: how a commit becomes the only one, if the script does not say."""
ENV_CHECKPOINT_EVERY_STEPS = "REKINDLE_CHECKPOINT_EVERY_STEPS"
"""Save after this many optimizer steps."""
ENV_CHECKPOINT_EVERY_SECONDS = "REKINDLE_CHECKPOINT_EVERY_SECONDS"
"""Save after this many seconds."""
ENV_CHECKPOINT_EVERY = "REKINDLE_CHECKPOINT_EVERY"
"""``auto``: save as often as cost and failures suggest. Steps and seconds above go first."""
ENV_MTBF = "REKINDLE_MTBF_SECONDS"
"""Mean time between failures of this job's pods, as the operator has counted them."""
ENV_CHECKPOINT_KEEP = "REKINDLE_CHECKPOINT_KEEP"
"""What retention keeps, as JSON: ``{"latest": 3, "best": [{"metric", "mode", "count"}], "every":
steps or null, "hourly": 0}``."""
ENV_NOTICE_FILE = "REKINDLE_NOTICE_FILE"
"""A file that says, as soon as it is there, that the pod has to go; see rekindle.launch.notices."""
ENV_HANG_TIMEOUT = "REKINDLE_HANG_TIMEOUT"
"""Seconds without a sign of life after which a worker counts as hung; ``auto`` (or unset) learns
them from the run, ``never`` looks away."""
ENV_PROGRESS = "REKINDLE_PROGRESS"
"""``spec.progress`` as JSON: where a script without our trainer shows its steps. At most one of
``{"file": PATH}``, ``{"tensorboard": DIR}``, ``{"log": {"pattern": REGEX}}`` and ``{"log":
{"preset": "huggingface"}}``. Unset: nothing but ``rekindle.report`` tells them."""
ENV_METRICS_PORT = "REKINDLE_METRICS_PORT"
"""Overrides POD_METRICS_PORT; 0 picks a free port, empty serves nothing."""
ENV_RUN_DIR = "REKINDLE_RUN_DIR"
"""Set by the agent for its workers: their round's private directory (see ranks.control)."""
ENV_ROUND = "REKINDLE_ROUND"
"""Set by the agent for its workers: the number of the round they belong to."""
ENV_MEMORY = "REKINDLE_MEMORY"
"""Set by the agent for its workers: descriptors of two memory files that outlive them, as numbers
separated by a comma. Unset: there are none."""
ENV_REPORT = "REKINDLE_REPORT_FILE"
"""Set by the agent for the worker of rank 0: the file in which ``rekindle.report`` leaves word."""
ENV_WARM = "REKINDLE_WARM"
"""``0`` starts each worker as a fresh interpreter instead of forking it from a warm one."""

ENV_WORKERS = "REKINDLE_WORKERS"
"""Workers of the job when all pods that it wants are there: what a global batch follows from that
the script does not give. Comes with each round; unset: those that are there."""

RUNS_AFTER = 10.0
"""Seconds for which the workers of a script that says nothing must run to count as running."""


OF_A_ROUND = (
    ENV_CHECKPOINT_EVERY_STEPS,
    ENV_CHECKPOINT_EVERY_SECONDS,
    ENV_CHECKPOINT_EVERY,
    ENV_CHECKPOINT_KEEP,
    ENV_HANG_TIMEOUT,
    ENV_GRACE,
    ENV_MTBF,
    ENV_WORKERS,
)
"""Variables that a round brings along, so that a change of them needs no new pods. Empty: unset."""


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
    """The checkpoint store, which this job has used before, does not answer or refuses."""
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


class AgentPhase(StrEnum):
    """Where an agent is in its life."""

    WARMING = "warming"
    """Imports what its workers will need; a round with it would wait for that."""
    WAITING = "waiting"
    """Ready to run, without workers; wants to be in a round."""
    RUNNING = "running"
    """Its workers run in ``report.round``."""
    FAILED = "failed"
    """Its workers failed in ``report.round``; it holds for a verdict: a new round, or stop."""
    DONE = "done"
    """All its workers ended with 0 in ``report.round``; it waits for ``stop`` and exits with 0."""
    LEAVING = "leaving"
    """Told to go away; its workers are gone and its process is about to end."""


class DirectiveKind(StrEnum):
    """What the coordinator asks of one agent, besides publishing rounds."""

    SAVE = "save"
    """Agree on a step with all ranks of ``round``, save, stop the workers, report ``waiting``."""
    DUMP = "dump"
    """Write the stacks of all workers of ``round`` to the pod's log, and report them."""
    STOP = "stop"
    """End the workers at once and exit with ``code``."""


SUSPENDED = "spec.suspend"
"""Reason of a directive to save after which no pod stays."""


class Document:
    """JSON both ways for the frozen dataclasses below; unknown fields are ignored."""

    def to_json(self) -> dict[str, Any]:
        """Give a tree of plain values, ready for json.dumps."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Parse; raises ValueError naming the document and what is wrong with it."""
        if not isinstance(data, Mapping):
            raise ValueError(f"{cls.__name__} must be a JSON object, not {type(data).__name__}")
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        try:
            return cls(**{k: v for k, v in data.items() if k in known})
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"bad {cls.__name__}: {error}") from error


def _check(value: object, kind: type | tuple[type, ...], name: str) -> None:
    """Type check of one field of a document that came over the wire."""
    wrong_bool = isinstance(value, bool) and kind is not bool
    if wrong_bool or not isinstance(value, kind):
        raise ValueError(f"field {name!r} has a value of type {type(value).__name__}")


def _count(value: object, name: str) -> None:
    """Check of a whole number that is not negative and that 64 bits can hold."""
    _check(value, int, name)
    if not 0 <= value < 2**63:  # type: ignore[operator]
        raise ValueError(f"field {name!r} is {value}, must be from 0 to 2**63 - 1")


def _seconds(value: object, name: str) -> None:
    """Check of a time or duration in seconds: finite, not negative, within calendars."""
    _check(value, (int, float), name)
    if not 0 <= value < 1e11:  # type: ignore[operator]
        raise ValueError(f"field {name!r} is {value}, must be a number of seconds from 0 to 1e11")


def _optional(check: Callable[[object, str], None], value: object, name: str) -> None:
    """Check of a field that may be None."""
    if value is not None:
        check(value, name)


def _port(value: object, name: str) -> None:
    """Check of a port, or 0 for none."""
    _check(value, int, name)
    if not 0 <= value < 2**16:  # type: ignore[operator]
        raise ValueError(f"field {name!r} is {value}, must be from 0 to 65535")


def _text(value: object, name: str) -> None:
    _check(value, str, name)


def _number(value: object, name: str) -> None:
    _check(value, (int, float), name)


@dataclass(frozen=True, kw_only=True)
class Member(Document):
    """One pod of a round."""

    pod: str
    uid: str
    address: str
    store_port: int
    """Port of the spare store that this pod's agent hosts, should it be first."""
    slots: int
    """How many workers the pod runs."""
    reach_port: int = 0
    """Where the pod's agent says its uid to whoever connects (``rekindle.launch.reach``); 0: it
    does not."""

    def __post_init__(self) -> None:
        for name in ("pod", "uid", "address"):
            _check(getattr(self, name), str, name)
        _check(self.store_port, int, "store_port")
        _check(self.slots, int, "slots")
        _port(self.reach_port, "reach_port")
        if self.slots < 1:
            raise ValueError(f"slots is {self.slots}, must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Round(Document):
    """A set of pods that train together. Members are in rank order; the first one hosts the store.

    Numbers grow over the life of a job and are never used twice for different members: the operator
    writes the number into the job's status before it publishes the round.
    """

    number: int
    members: tuple[Member, ...]
    reason: str
    """Why it was formed, for people."""
    formed_at: float
    """Unix seconds, operator's clock; for people and figures, no agent decides by it."""
    variables: dict[str, str] | None = None
    """What its workers find in their environment in place of the pod's: names of OF_A_ROUND."""

    def __post_init__(self) -> None:
        _count(self.number, "number")
        if self.variables is not None:
            _check(self.variables, dict, "variables")
            for name, value in self.variables.items():
                _text(name, "variables")
                _text(value, f"variables[{name}]")
        _check(self.reason, str, "reason")
        _check(self.members, (list, tuple), "members")
        _check(self.formed_at, (int, float), "formed_at")
        members = tuple(m if isinstance(m, Member) else Member.from_json(m) for m in self.members)
        if not members:
            raise ValueError("members is empty: a round has one at least")
        object.__setattr__(self, "members", members)

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return sum(member.slots for member in self.members)

    @cached_property
    def key(self) -> str:
        """Tells apart two rounds of one number (an operator that died between deciding twice)."""
        text = json.dumps([self.number, [(m.uid, m.store_port, m.slots) for m in self.members]])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def first_rank(self, uid: str) -> int | None:
        """Global rank of the first worker of the pod with this uid; None when it is no member."""
        rank = 0
        for member in self.members:
            if member.uid == uid:
                return rank
            rank += member.slots
        return None


@dataclass(frozen=True, kw_only=True)
class Progress(Document):
    """How far the workers of a round are, as the first worker of the pod sees it."""

    step: int = 0
    """Optimizer steps completed in the surviving timeline."""
    total_steps: int | None = None
    epoch: int = 0
    loss: float | None = None
    metrics: dict[str, float] | None = None
    """Newest validation metrics, at most a dozen."""
    samples: int = 0
    """Samples used in the surviving timeline."""
    samples_per_second: float | None = None
    productive_seconds: float = 0.0
    """Seconds spent on steps of the surviving timeline (restored with a checkpoint)."""
    stall_seconds: float = 0.0
    """Seconds that training has stood still for checkpoints (restored with a checkpoint)."""
    round_steps: int = 0
    """Steps completed since this round began; its first step ends a recovery."""

    def __post_init__(self) -> None:
        for name in ("step", "epoch", "samples", "round_steps"):
            _count(getattr(self, name), name)
        for name in ("productive_seconds", "stall_seconds"):
            _seconds(getattr(self, name), name)
        _optional(_count, self.total_steps, "total_steps")
        _optional(_number, self.loss, "loss")
        _optional(_number, self.samples_per_second, "samples_per_second")
        if self.metrics is not None:
            _check(self.metrics, dict, "metrics")
            for key, value in self.metrics.items():
                _text(key, "metrics")
                _number(value, f"metrics[{key}]")


@dataclass(frozen=True, kw_only=True)
class CheckpointReport(Document):
    """The newest commit that the workers know of."""

    step: int
    committed_at: float
    """Unix seconds, worker's clock."""
    uri: str

    def __post_init__(self) -> None:
        _count(self.step, "step")
        _seconds(self.committed_at, "committed_at")
        _text(self.uri, "uri")


@dataclass(frozen=True, kw_only=True)
class Restored(Document):
    """Where the workers of a round began."""

    step: int
    """0 when there was no checkpoint."""
    source: str
    """URI of the commit, ``scratch``, ``memory`` (of this pod), or ``memory of POD`` over the
    network."""
    skipped: tuple[str, ...] = ()
    """Messages (R16) about newer checkpoints that were found damaged."""

    def __post_init__(self) -> None:
        _count(self.step, "step")
        _text(self.source, "source")
        _check(self.skipped, (list, tuple), "skipped")
        for message in self.skipped:
            _text(message, "skipped")
        object.__setattr__(self, "skipped", tuple(self.skipped))


@dataclass(frozen=True, kw_only=True)
class Timings(Document):
    """How the workers of a round came up: seconds since the agent first saw the round.

    Durations of one clock and no times of day, so that nothing rests on clocks that agree. None:
    not yet, or never (a plain script restores nothing that we know of).
    """

    age: float = 0.0
    """How long ago the agent first saw the round, when this report was made."""
    broken: float | None = None
    """For how long the workers of the round before had been dead then; None if they ran until
    they were stopped for this round, or if there were none."""
    stood: float | None = None
    """For how long the workers of the rounds before had done no step then; None if they never did
    one that could be seen."""
    stopped: float | None = None
    """The workers of the round before were gone."""
    started: float | None = None
    """The round's store was reached and the workers were processes."""
    grouped: float | None = None
    """Their process group was formed."""
    restored: float | None = None
    """State was back in place, in whatever way."""
    stepped: float | None = None
    """The first optimizer step was done."""
    running: float | None = None
    """The workers counted as running: the first step was done or, where steps are unknown, their
    process group was formed, or they had run for RUNS_AFTER seconds."""

    def __post_init__(self) -> None:
        _seconds(self.age, "age")
        for each in fields(self):
            _optional(_seconds, getattr(self, each.name), each.name)


@dataclass(frozen=True, kw_only=True)
class RankReport(Document):
    """One worker of the pod, from its own words of shared memory."""

    rank: int
    step: int
    """Optimizer steps that it has completed."""
    phase: str
    """starting, training, validating or saving."""
    idle: float
    """Seconds since it was last seen to get on with anything."""
    busy: float | None = None
    """Its own seconds per step (median of the newest), waiting for others left out."""

    def __post_init__(self) -> None:
        _count(self.rank, "rank")
        _count(self.step, "step")
        _text(self.phase, "phase")
        _seconds(self.idle, "idle")
        _optional(_seconds, self.busy, "busy")


@dataclass(frozen=True, kw_only=True)
class Hang(Document):
    """A worker of this pod has not got on for longer than it may."""

    rank: int
    step: int
    phase: str
    idle: float
    """Seconds."""
    timeout: float
    """Seconds, as learned from this run or given by the job."""
    stacks: str | None = None
    """Where the threads of this pod's workers stood, innermost frames first; at most 4000
    characters. None until they have been asked for and were written."""
    waits: bool | None = None
    """Whether this rank's main thread waits for other ranks, as its stack says."""

    def __post_init__(self) -> None:
        _count(self.rank, "rank")
        _count(self.step, "step")
        _text(self.phase, "phase")
        _seconds(self.idle, "idle")
        _seconds(self.timeout, "timeout")
        _optional(_text, self.stacks, "stacks")
        if self.waits is not None:
            _check(self.waits, bool, "waits")


@dataclass(frozen=True, kw_only=True)
class Rollback(Document):
    """The trainer went back by itself."""

    at_step: int
    to_step: int
    reason: str
    at: float
    """Unix seconds, worker's clock; tells one from another."""

    def __post_init__(self) -> None:
        _count(self.at_step, "at_step")
        _count(self.to_step, "to_step")
        _text(self.reason, "reason")
        _seconds(self.at, "at")


@dataclass(frozen=True, kw_only=True)
class Outcome(Document):
    """How the workers of a pod ended; also the pod's termination message."""

    cause: str
    """A value of Cause, as far as the pod itself can tell."""
    code: int
    """A value of ExitCode."""
    message: str
    """One line, the user's own error first."""
    reason: str | None = None
    """Stable code for conditions, ``Store/R5`` for example."""
    step: int | None = None
    checkpoint: int | None = None
    """Step of the newest commit."""
    rank: int | None = None
    traceback: str | None = None
    """Head and tail of it, at most 2000 characters."""
    at: float = 0.0
    """Unix seconds, pod's clock."""

    def __post_init__(self) -> None:
        _text(self.cause, "cause")
        _check(self.code, int, "code")
        _text(self.message, "message")
        _seconds(self.at, "at")
        for name in ("reason", "traceback"):
            _optional(_text, getattr(self, name), name)
        for name in ("step", "checkpoint", "rank"):
            _optional(_count, getattr(self, name), name)


@dataclass(frozen=True, kw_only=True)
class AgentReport(Document):
    """The whole state of one pod's agent."""

    pod: str
    uid: str
    address: str
    store_port: int
    slots: int
    phase: AgentPhase
    round: Round | None = None
    """The round its workers run in, or last ran in."""
    notice: str | None = None
    """Set once the pod has been told to go away: the source, ``SIGTERM`` for example."""
    notice_seconds: float | None = None
    """What was left until the end when the notice came."""
    progress: Progress | None = None
    checkpoint: CheckpointReport | None = None
    restored: Restored | None = None
    outcome: Outcome | None = None
    failed_for: float | None = None
    """Seconds since the workers were seen to fail, when this report was made."""
    timings: Timings | None = None
    """Of the round that the workers run in."""
    ranks: tuple[RankReport, ...] = ()
    hang: Hang | None = None
    rollback: Rollback | None = None
    """The newest one of this round."""
    reach_port: int = 0
    """See Member."""
    unreachable: tuple[str, ...] = ()
    """Uids of the view's suspects that this pod has tried to reach and could not."""
    useful_world: int | None = None
    """Of more workers than these some have nothing to do in any step, as the script's own workers
    have said in ``round``; None: not known, or there is no such number."""
    least_world: int | None = None
    """Fewer workers than these cannot go on from the checkpoints of the present ones; None: any
    number can, or it is not known."""

    def __post_init__(self) -> None:
        for name in ("pod", "uid", "address"):
            _check(getattr(self, name), str, name)
        _check(self.store_port, int, "store_port")
        _check(self.slots, int, "slots")
        _port(self.reach_port, "reach_port")
        _check(self.unreachable, (list, tuple), "unreachable")
        if len(self.unreachable) > MOST_SUSPECTS:
            raise ValueError(
                f"unreachable has {len(self.unreachable)} entries, may have {MOST_SUSPECTS}"
            )
        for uid in self.unreachable:
            _check(uid, str, "unreachable")
            if len(uid) > UID_CHARACTERS:
                raise ValueError(f"unreachable has a uid of more than {UID_CHARACTERS} characters")
        object.__setattr__(self, "unreachable", tuple(self.unreachable))
        if self.slots < 1:
            raise ValueError(f"slots is {self.slots}, must be at least 1")
        _optional(_text, self.notice, "notice")
        for name in ("useful_world", "least_world"):
            _optional(_count, getattr(self, name), name)
        for name in ("notice_seconds", "failed_for"):
            _optional(_seconds, getattr(self, name), name)
        object.__setattr__(self, "phase", AgentPhase(self.phase))
        _check(self.ranks, (list, tuple), "ranks")
        ranks = (r if isinstance(r, RankReport) else RankReport.from_json(r) for r in self.ranks)
        object.__setattr__(self, "ranks", tuple(ranks))
        for name, kind in (
            ("round", Round),
            ("progress", Progress),
            ("checkpoint", CheckpointReport),
            ("restored", Restored),
            ("outcome", Outcome),
            ("timings", Timings),
            ("hang", Hang),
            ("rollback", Rollback),
        ):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                object.__setattr__(self, name, kind.from_json(value))

    @property
    def trains(self) -> bool:
        """Whether the workers have got on in ``round``: they did a step or, unknown steps, run."""
        stepped = self.progress is not None and self.progress.round_steps > 0
        return stepped or (self.timings is not None and self.timings.running is not None)


@dataclass(frozen=True, kw_only=True)
class Directive(Document):
    """An order to one agent. It stays in the view until a report shows that it is done."""

    kind: DirectiveKind
    round: int
    """The round that it is about; an agent in another round ignores a ``save``."""
    reason: str
    seconds: float | None = None
    """``save``: how long it may take, from when the agent first sees it."""
    code: int = 0
    """``stop``: the exit code of the pod."""
    message: str = ""
    """``stop``: for the termination message, when the agent has none of its own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", DirectiveKind(self.kind))
        _count(self.round, "round")
        _check(self.code, int, "code")
        _text(self.reason, "reason")
        _text(self.message, "message")
        _optional(_seconds, self.seconds, "seconds")


MOST_SUSPECTS = 16
"""Pods that are asked about at a time: when more fall silent, it is rather the way to them."""
UID_CHARACTERS = 64
"""Longest uid of a pod."""


@dataclass(frozen=True, kw_only=True)
class Suspect(Document):
    """A pod of the job that the coordinator does not hear: can its peers reach it?"""

    pod: str
    uid: str
    address: str
    reach_port: int

    def __post_init__(self) -> None:
        for name in ("pod", "uid", "address"):
            _check(getattr(self, name), str, name)
        _port(self.reach_port, "reach_port")


@dataclass(frozen=True, kw_only=True)
class View(Document):
    """What the coordinator has for one pod."""

    version: str
    """Opaque; differs whenever anything below differs, also after an operator restart."""
    round: Round | None = None
    """The current round, whether or not the pod is a member."""
    directive: Directive | None = None
    suspects: tuple[Suspect, ...] = ()
    """Pods to try to reach, and to name in ``unreachable`` for as long as that fails."""

    def __post_init__(self) -> None:
        _check(self.version, str, "version")
        _check(self.suspects, (list, tuple), "suspects")
        found = (s if isinstance(s, Suspect) else Suspect.from_json(s) for s in self.suspects)
        object.__setattr__(self, "suspects", tuple(found)[:MOST_SUSPECTS])
        if self.round is not None and not isinstance(self.round, Round):
            object.__setattr__(self, "round", Round.from_json(self.round))
        if self.directive is not None and not isinstance(self.directive, Directive):
            object.__setattr__(self, "directive", Directive.from_json(self.directive))


LIFELINE = "/lifeline"
"""Behind a pod's path, with ``?uid=``: a POST whose body goes on for as long as the pod lives."""
PROBED = "probe"
"""Set to 1 in the lifeline's query: its holder answers when it is asked (see the module's text)."""


def pod_path(namespace: str, job: str, pod: str) -> str:
    """Path of a pod's resource at the coordinator."""
    return f"/v1/namespaces/{namespace}/jobs/{job}/pods/{pod}"

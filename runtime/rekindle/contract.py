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
so that an operator and a runtime of neighbouring versions can talk. Each field states beside its
type how long or large it may be: names and numbers beyond that are refused, words for people are
cleaned and cut, in one place for all (see ``Document``), so that nothing that a pod can say fills a
status, a log or a memory, or moves the cursor of whoever reads it.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import IntEnum, StrEnum
from functools import cache, cached_property
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin, get_type_hints

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
LABEL_INDEX = f"{GROUP}/index"
"""On pods: which of the wanted pods this is, 0-based. Rank order follows it."""
LABEL_GENERATION = f"{GROUP}/generation"
"""On pods: how many pods held this index before."""
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
ENV_JOB_UID = "REKINDLE_JOB_UID"
"""Its uid: another cluster may have a job of the same name and namespace."""
ENV_POD = "REKINDLE_POD_NAME"
"""Name of the pod."""
ENV_POD_UID = "REKINDLE_POD_UID"
"""Uid of the pod."""
ENV_POD_IP = "REKINDLE_POD_IP"
"""Address at which other pods reach this one."""
ENV_ACCESS = "REKINDLE_ACCESS_DIR"
"""Directory with the files below: how the coordinator is reached. They may change at any time and
are read anew for each connection."""
ACCESS_URL = "url"
"""File, and key of the job's secret: base URL of the coordinator."""
ACCESS_TOKEN = "token"
"""Likewise: what proves to the coordinator that a pod belongs to the job."""
ACCESS_CA = "ca.crt"
"""Likewise: certificates of those who vouch for the coordinator (PEM), if it speaks TLS and no
authority that the pod's image trusts does."""
ACCESS_PATH = "/var/run/secrets/rekindle.dev"
"""Where the job's secret is mounted."""
ENV_COORDINATOR = "REKINDLE_COORDINATOR_URL"
"""Base URL of the coordinator, for whoever is started by hand. When this and ENV_ACCESS are unset,
there is no operator."""
ENV_TOKEN = "REKINDLE_TOKEN"
"""The job's token, likewise."""
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
"""A file that says, as soon as it is there, that the pod is to go; see
rekindle.launch.health.preemption_notices."""
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


@dataclass(frozen=True)
class Name:
    """A word that something is known by. One that is too long, or not printable, is refused."""

    most: int
    """Characters."""

    def __call__(self, value: object, name: str) -> str:
        """Check."""
        text: str = _of(value, str, name)
        if len(text) > self.most:
            raise ValueError(
                f"field {name!r} has {len(text)} characters, may have no more than {self.most}"
            )
        if _UNPRINTABLE.search(text):
            raise ValueError(f"field {name!r} has characters that cannot be printed")
        return text


@dataclass(frozen=True)
class Text:
    """Words for people: what moves a cursor or is no character is taken out, the rest is cut.

    They come from programs and exceptions, and no report is worth losing for them.
    """

    most: int
    """Characters."""
    lines: bool = False
    """Whether it may have several."""

    def __call__(self, value: object, name: str) -> str:
        """Clean."""
        text: str = _of(value, str, name)
        if not text.isprintable():
            text = _COLOURS.sub("", text).replace("\r\n", "\n").replace("\t", "    ")
            parts = text.split("\n") if self.lines else [text.replace("\n", " ")]
            text = "\n".join(_UNPRINTABLE.sub("\ufffd", part) for part in parts)
        if len(text) <= self.most:
            return text
        if not self.lines:
            return text[: self.most - 3] + "..."
        # Of a traceback the head says where in the user's code, and the tail says what.
        head = (self.most - len(_LEFT_OUT)) // 3
        return text[:head] + _LEFT_OUT + text[head + len(_LEFT_OUT) - self.most :]


@dataclass(frozen=True)
class Whole:
    """A whole number within bounds."""

    least: int
    most: int

    def __call__(self, value: object, name: str) -> int:
        """Check."""
        number: int = _of(value, int, name)
        if not self.least <= number <= self.most:
            bounds = f"from {self.least} to {self.most}"
            raise ValueError(f"{name} is {_shown(number)}, must be {bounds}")
        return number


@dataclass(frozen=True)
class Seconds:
    """A time or a duration: finite, not negative, within calendars."""

    def __call__(self, value: object, name: str) -> float:
        """Check."""
        number: float = _of(value, (int, float), name)
        if not 0 <= number < 1e11:
            bounds = "a number of seconds from 0 to 1e11"
            raise ValueError(f"field {name!r} is {_shown(number)}, must be {bounds}")
        return number


@dataclass(frozen=True)
class Measure:
    """A figure out of somebody's training. Any float is a fact: a loss may well be NaN."""

    def __call__(self, value: object, name: str) -> float:
        """Check; a whole number that no float can hold is infinite."""
        number = _of(value, (int, float), name)
        try:
            return float(number)
        except OverflowError:
            return math.inf if number > 0 else -math.inf


@dataclass(frozen=True)
class Most:
    """A list, or a table of names, that has so many entries at most; what they are comes next.

    Where the rest can be done without, it is left out; else a list that is too long is refused.
    """

    most: int
    rest: bool = False

    def cut(self, value: Any, name: str) -> Any:
        """Check the number of entries."""
        if len(value) <= self.most:
            return value
        if not self.rest:
            raise ValueError(f"field {name!r} has {len(value)} entries, may have {self.most}")
        kept = list(value)[: self.most]
        return {key: value[key] for key in kept} if isinstance(value, Mapping) else kept


_LEFT_OUT = "\n[...]\n"
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
"""What moves a cursor, breaks a line or turns its direction, and halves of characters."""
_COLOURS = re.compile("\x1b\\[[0-9;?]*[A-Za-z]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)")
"""What terminals are sent between the words."""

MOST_SUSPECTS = 16
"""Pods that are asked about at a time: when more fall silent, it is rather the way to them."""
POD_NAME, UID, ADDRESS = Name(253), Name(64), Name(253)
COUNT = Whole(0, 2**53)
"""Steps and the like: what every reader of JSON can hold."""
SECONDS = Seconds()
MEASURE = Measure()
PORT = Whole(0, 65535)
NPROC = Whole(1, 1024)
PHRASE = Text(200)
"""A few words, or a stable code."""
SENTENCE = Text(1000)
PLACE = Text(1024)
"""A URI of a checkpoint."""
PAGE = Text(4000, lines=True)
"""Stacks of threads."""


def _of(value: object, kind: type | tuple[type, ...], name: str) -> Any:
    """The value, if it is of this type."""
    wrong_bool = isinstance(value, bool) and kind is not bool
    if wrong_bool or not isinstance(value, kind):
        raise ValueError(f"field {name!r} has a value of type {type(value).__name__}")
    return value


def _shown(number: float) -> str:
    """A number that may be long, in short."""
    return str(number) if isinstance(number, float) or abs(number) < 10**30 else "out of range"


Rule = Callable[[object, str], Any]
"""Gives what a field may hold for what it was given, or raises ValueError naming it."""


def _rule(kind: Any, where: str) -> Rule:
    """The rule that a field's annotation states."""
    limits: tuple[Any, ...] = ()
    if get_origin(kind) is Annotated:
        kind, *found = get_args(kind)
        limits = tuple(found)
    if get_origin(kind) in (Union, UnionType):
        inner = next(k for k in get_args(kind) if k is not type(None))
        rule = _rule(_limited(inner, limits), where)
        return lambda value, name: None if value is None else rule(value, name)
    if isinstance(kind, type) and issubclass(kind, Document):
        made: type[Document] = kind
        return lambda value, name: value if isinstance(value, made) else made.from_json(value)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return lambda value, name: _one_of(kind, value, name)
    if kind is bool:
        return lambda value, name: _of(value, bool, name)
    bound = next((limit for limit in limits if isinstance(limit, Most)), None)
    if get_origin(kind) is tuple and bound is not None:
        each = _rule(_limited(get_args(kind)[0], limits[1:]), where)
        return lambda value, name: tuple(
            each(one, name) for one in bound.cut(_of(value, (list, tuple), name), name)
        )
    if get_origin(kind) is dict and bound is not None:
        key_of = limits[1]
        each = _rule(_limited(get_args(kind)[1], limits[-1:]), where)
        return lambda value, name: {
            key_of(key, name): each(one, name)
            for key, one in bound.cut(_of(value, dict, name), name).items()
        }
    if len(limits) == 1 and callable(limits[0]):
        return limits[0]  # type: ignore[no-any-return]
    raise TypeError(f"{where} has no limit: annotate it with one of those above")


def _one_of(words: type[StrEnum], value: object, name: str) -> StrEnum:
    word: str = _of(value, str, name)
    if word not in list(words):
        raise ValueError(f"field {name!r} must be one of {', '.join(words)}")
    return words(word)


def _limited(kind: Any, limits: Sequence[Any]) -> Any:
    """The annotation of a type with these limits."""
    for limit in limits:
        kind = Annotated[kind, limit]
    return kind


class Document:
    """JSON both ways for the frozen dataclasses below; unknown fields are ignored.

    Each field states its limits where it is declared. They hold for whoever makes a document, too,
    so that nobody sends what the other side refuses.
    """

    def __post_init__(self) -> None:
        for name, rule in _rules(type(self)).items():  # type: ignore[arg-type]
            given = getattr(self, name)
            value = rule(given, name)
            if value is not given:
                object.__setattr__(self, name, value)

    def to_json(self) -> dict[str, Any]:
        """Give a tree of plain values, ready for json.dumps."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Parse; raises ValueError naming the document and what is wrong with it."""
        if not isinstance(data, Mapping):
            raise ValueError(f"{cls.__name__} must be a JSON object, not {type(data).__name__}")
        known = _rules(cls)  # type: ignore[arg-type]
        try:
            return cls(**{k: v for k, v in data.items() if k in known})
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"bad {cls.__name__}: {error}") from error


@cache
def _rules(kind: type[Document]) -> dict[str, Rule]:
    """The rule of each field."""
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return {name: _rule(hints[name], f"{kind.__name__}.{name}") for name in names}


@dataclass(frozen=True, kw_only=True)
class Member(Document):
    """One pod of a round."""

    pod: Annotated[str, POD_NAME]
    uid: Annotated[str, UID]
    address: Annotated[str, ADDRESS]
    store_port: Annotated[int, PORT]
    """Port of the spare store that this pod's agent hosts, should it be first."""
    nproc: Annotated[int, NPROC]
    """How many workers the pod runs."""
    reach_port: Annotated[int, PORT] = 0
    """Where the pod's agent says its uid to whoever connects (``launch.coordinator.reachability``);
    0: it does not."""


@dataclass(frozen=True, kw_only=True)
class Round(Document):
    """A set of pods that train together. Members are in rank order; the first one hosts the store.

    Numbers grow over the life of a job and are never used twice for different members: the operator
    writes the number into the job's status before it publishes the round.
    """

    number: Annotated[int, COUNT]
    members: Annotated[tuple[Member, ...], Most(4096)]
    reason: Annotated[str, SENTENCE]
    """Why it was formed, for people."""
    formed_at: Annotated[float, SECONDS]
    """Unix seconds, operator's clock; for people and figures, no agent decides by it."""
    variables: Annotated[dict[str, str] | None, Most(32), Name(64), Text(4096)] = None
    """What its workers find in their environment in place of the pod's: names of OF_A_ROUND."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.members:
            raise ValueError("members is empty: a round has one at least")

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return sum(member.nproc for member in self.members)

    @cached_property
    def key(self) -> str:
        """Tells apart two rounds of one number (an operator that died between deciding twice)."""
        text = json.dumps([self.number, [(m.uid, m.store_port, m.nproc) for m in self.members]])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def first_rank(self, uid: str) -> int | None:
        """Global rank of the first worker of the pod with this uid; None when it is no member."""
        rank = 0
        for member in self.members:
            if member.uid == uid:
                return rank
            rank += member.nproc
        return None


@dataclass(frozen=True, kw_only=True)
class Progress(Document):
    """How far the workers of a round are, as the first worker of the pod sees it."""

    step: Annotated[int, COUNT] = 0
    """Optimizer steps completed in the surviving timeline."""
    total_steps: Annotated[int | None, COUNT] = None
    epoch: Annotated[int, COUNT] = 0
    loss: Annotated[float | None, MEASURE] = None
    metrics: Annotated[dict[str, float] | None, Most(12, rest=True), Text(64), MEASURE] = None
    """Newest validation metrics, at most a dozen."""
    samples: Annotated[int, COUNT] = 0
    """Samples used in the surviving timeline."""
    samples_per_second: Annotated[float | None, MEASURE] = None
    productive_seconds: Annotated[float, SECONDS] = 0.0
    """Seconds spent on steps of the surviving timeline (restored with a checkpoint)."""
    stall_seconds: Annotated[float, SECONDS] = 0.0
    """Seconds that training has stood still for checkpoints (restored with a checkpoint)."""
    round_steps: Annotated[int, COUNT] = 0
    """Steps completed since this round began; its first step ends a recovery."""


@dataclass(frozen=True, kw_only=True)
class CheckpointReport(Document):
    """The newest commit that the workers know of."""

    step: Annotated[int, COUNT]
    committed_at: Annotated[float, SECONDS]
    """Unix seconds, worker's clock."""
    uri: Annotated[str, PLACE]


@dataclass(frozen=True, kw_only=True)
class RestoredFrom(Document):
    """Where the workers of a round began."""

    step: Annotated[int, COUNT]
    """0 when there was no checkpoint."""
    source: Annotated[str, PLACE]
    """URI of the commit, ``scratch``, ``memory`` (of this pod), or ``memory of POD`` over the
    network."""
    skipped: Annotated[tuple[str, ...], Most(8, rest=True), SENTENCE] = ()
    """Messages (R16) about newer checkpoints that were found damaged."""


@dataclass(frozen=True, kw_only=True)
class Timings(Document):
    """How the workers of a round came up: seconds since the agent first saw the round.

    Durations of one clock and no times of day, so that nothing rests on clocks that agree. None:
    not yet, or never (a plain script restores nothing that we know of).
    """

    age: Annotated[float, SECONDS] = 0.0
    """How long ago the agent first saw the round, when this report was made."""
    broken: Annotated[float | None, SECONDS] = None
    """For how long the workers of the round before had been dead then; None if they ran until
    they were stopped for this round, or if there were none."""
    stood: Annotated[float | None, SECONDS] = None
    """For how long the workers of the rounds before had done no step then; None if they never did
    one that could be seen."""
    stopped: Annotated[float | None, SECONDS] = None
    """The workers of the round before were gone."""
    started: Annotated[float | None, SECONDS] = None
    """The round's store was reached and the workers were processes."""
    grouped: Annotated[float | None, SECONDS] = None
    """Their process group was formed."""
    restored: Annotated[float | None, SECONDS] = None
    """State was back in place, in whatever way."""
    stepped: Annotated[float | None, SECONDS] = None
    """The first optimizer step was done."""
    running: Annotated[float | None, SECONDS] = None
    """The workers counted as running: the first step was done or, where steps are unknown, their
    process group was formed, or they had run for RUNS_AFTER seconds."""


@dataclass(frozen=True, kw_only=True)
class RankReport(Document):
    """One worker of the pod, from its own words of shared memory."""

    rank: Annotated[int, COUNT]
    step: Annotated[int, COUNT]
    """Optimizer steps that it has completed."""
    phase: Annotated[str, PHRASE]
    """starting, training, validating or saving."""
    idle: Annotated[float, SECONDS]
    """Seconds since it was last seen to get on with anything."""
    busy: Annotated[float | None, SECONDS] = None
    """Its own seconds per step (median of the newest), waiting for others left out."""


@dataclass(frozen=True, kw_only=True)
class Hang(Document):
    """A worker of this pod has not got on for longer than it may."""

    rank: Annotated[int, COUNT]
    step: Annotated[int, COUNT]
    phase: Annotated[str, PHRASE]
    idle: Annotated[float, SECONDS]
    """Seconds."""
    timeout: Annotated[float, SECONDS]
    """Seconds, as learned from this run or given by the job."""
    stacks: Annotated[str | None, PAGE] = None
    """Where the threads of this pod's workers stood, innermost frames first; at most 4000
    characters. None until they have been asked for and were written."""
    waits: bool | None = None
    """Whether this rank's main thread waits for other ranks, as its stack says."""


@dataclass(frozen=True, kw_only=True)
class Rollback(Document):
    """The trainer went back by itself."""

    at_step: Annotated[int, COUNT]
    to_step: Annotated[int, COUNT]
    reason: Annotated[str, SENTENCE]
    at: Annotated[float, SECONDS]
    """Unix seconds, worker's clock; tells one from another."""


@dataclass(frozen=True, kw_only=True)
class Outcome(Document):
    """How the workers of a pod ended; also the pod's termination message."""

    cause: Annotated[str, PHRASE]
    """A value of Cause, as far as the pod itself can tell."""
    code: Annotated[int, Whole(-255, 255)]
    """A value of ExitCode."""
    message: Annotated[str, SENTENCE]
    """One line, the user's own error first."""
    reason: Annotated[str | None, PHRASE] = None
    """Stable code for conditions, ``Store/R5`` for example."""
    step: Annotated[int | None, COUNT] = None
    checkpoint: Annotated[int | None, COUNT] = None
    """Step of the newest commit."""
    rank: Annotated[int | None, COUNT] = None
    traceback: Annotated[str | None, Text(4096, lines=True)] = None
    """Head and tail of it, at most 2000 characters."""
    at: Annotated[float, SECONDS] = 0.0
    """Unix seconds, pod's clock."""


@dataclass(frozen=True, kw_only=True)
class AgentReport(Document):
    """The whole state of one pod's agent."""

    pod: Annotated[str, POD_NAME]
    uid: Annotated[str, UID]
    address: Annotated[str, ADDRESS]
    store_port: Annotated[int, PORT]
    nproc: Annotated[int, NPROC]
    phase: AgentPhase
    round: Round | None = None
    """The round its workers run in, or last ran in."""
    notice: Annotated[str | None, SENTENCE] = None
    """Set once the pod has been told to go away: the source, ``SIGTERM`` for example."""
    notice_seconds: Annotated[float | None, SECONDS] = None
    """What was left until the end when the notice came."""
    progress: Progress | None = None
    checkpoint: CheckpointReport | None = None
    restored: RestoredFrom | None = None
    outcome: Outcome | None = None
    failed_for: Annotated[float | None, SECONDS] = None
    """Seconds since the workers were seen to fail, when this report was made."""
    timings: Timings | None = None
    """Of the round that the workers run in."""
    ranks: Annotated[tuple[RankReport, ...], Most(1024)] = ()
    hang: Hang | None = None
    rollback: Rollback | None = None
    """The newest one of this round."""
    reach_port: Annotated[int, PORT] = 0
    """See Member."""
    unreachable: Annotated[tuple[str, ...], Most(MOST_SUSPECTS), UID] = ()
    """Uids of the view's suspects that this pod has tried to reach and could not."""
    useful_world: Annotated[int | None, COUNT] = None
    """Of more workers than these some have nothing to do in any step, as the script's own workers
    have said in ``round``; None: not known, or there is no such number."""
    least_world: Annotated[int | None, COUNT] = None
    """Fewer workers than these cannot go on from the checkpoints of the present ones; None: any
    number can, or it is not known."""
    waits: Annotated[str | None, SENTENCE] = None
    """What the workers of ``round`` wait for that others have to give, in words: somebody else
    holds the run."""

    @property
    def trains(self) -> bool:
        """Whether the workers have got on in ``round``: they did a step or, unknown steps, run."""
        stepped = self.progress is not None and self.progress.round_steps > 0
        return stepped or (self.timings is not None and self.timings.running is not None)


@dataclass(frozen=True, kw_only=True)
class Directive(Document):
    """An order to one agent. It stays in the view until a report shows that it is done."""

    kind: DirectiveKind
    round: Annotated[int, COUNT]
    """The round that it is about; an agent in another round ignores a ``save``."""
    reason: Annotated[str, SENTENCE]
    seconds: Annotated[float | None, SECONDS] = None
    """``save``: how long it may take, from when the agent first sees it."""
    code: Annotated[int, Whole(0, 255)] = 0
    """``stop``: the exit code of the pod."""
    message: Annotated[str, SENTENCE] = ""
    """``stop``: for the termination message, when the agent has none of its own."""


@dataclass(frozen=True, kw_only=True)
class Suspect(Document):
    """A pod of the job that the coordinator does not hear: can its peers reach it?"""

    pod: Annotated[str, POD_NAME]
    uid: Annotated[str, UID]
    address: Annotated[str, ADDRESS]
    reach_port: Annotated[int, PORT]


@dataclass(frozen=True, kw_only=True)
class View(Document):
    """What the coordinator has for one pod."""

    version: Annotated[str, Name(64)]
    """Opaque; differs whenever anything below differs, also after an operator restart."""
    round: Round | None = None
    """The current round, whether or not the pod is a member."""
    directive: Directive | None = None
    suspects: Annotated[tuple[Suspect, ...], Most(MOST_SUSPECTS, rest=True)] = ()
    """Pods to try to reach, and to name in ``unreachable`` for as long as that fails."""


LIFELINE = "/lifeline"
"""Behind a pod's path, with ``?uid=``: a POST whose body goes on for as long as the pod lives."""
PROBED = "probe"
"""Set to 1 in the lifeline's query: its holder answers when it is asked (see the module's text)."""


def pod_path(namespace: str, job: str, pod: str) -> str:
    """Path of a pod's resource at the coordinator."""
    return f"/v1/namespaces/{namespace}/jobs/{job}/pods/{pod}"

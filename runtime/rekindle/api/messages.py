"""The messages between an agent and the coordinator.

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
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Annotated

from rekindle.api.document import (
    ADDRESS,
    COUNT,
    MEASURE,
    NPROC,
    PAGE,
    PHRASE,
    PLACE,
    POD_NAME,
    PORT,
    SECONDS,
    SENTENCE,
    UID,
    Document,
    Most,
    Name,
    Text,
    Whole,
)


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
MOST_SUSPECTS = 16
"""Pods that are asked about at a time: when more fall silent, it is rather the way to them."""


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

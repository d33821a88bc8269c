"""The status of a job: what the operator remembers about it, and what people read.

`JobRecord` is the memory: everything that an operator which has just started must know to go on as
if it had never been away. It is read from the status and written back to it; nothing else is
persisted. `render` turns a record and what is observed into the document that ``kubectl`` shows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rekindle.api import AgentPhase, AgentReport, CheckpointReport, Progress
from rekindle.api.spec import TrainingJob
from rekindle.api.timestamps import parse_time
from rekindle_operator.incidents.incidents import Incident, from_status, kept, stamp, to_status
from rekindle_operator.incidents.retries import History
from rekindle_operator.observed.observations import Observed, Pod
from rekindle_operator.pods.manifests import selector
from rekindle_operator.status.status_size import fit

PENDING, STARTING, RUNNING = "Pending", "Starting", "Running"
RECOVERING, SUSPENDED = "Recovering", "Suspended"
SUCCEEDED, FAILED = "Succeeded", "Failed"
DELETING = "Deleting"
TERMINAL = {SUCCEEDED, FAILED}
ETA_MOST = 10 * 365 * 86400.0
"""Seconds; an end that is further away than this is not worth telling."""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """What must survive an operator."""

    phase: str = PENDING
    round: int = 0
    """The highest round number ever used."""
    start_time: float | None = None
    completion_time: float | None = None
    pending_since: float | None = None
    """Since when pods have been wanted without a first step since."""
    waiting_since: float | None = None
    """Since when the job has neither trained nor had enough pods with a node (see deadlines)."""
    first_step_at: float | None = None
    """When training first ran: by a step or, steps unknown, by workers that counted as running."""
    operator_since: float | None = None
    """Since when the operator process that wrote this has been listening."""
    suspended_at: float | None = None
    suspended_seconds: float = 0.0
    pending_seconds: float = 0.0
    """Pending before ``pending_since``."""
    restart_seconds: float = 0.0
    """From incidents until training went on, those that are open left out."""
    rework_seconds: float = 0.0
    charged_round: int = 0
    """The highest round of which an incident was charged: there is one at most for each."""
    generations: Mapping[int, int] | None = None
    """The highest generation of each index, so that no name is used twice."""
    template: str | None = None
    """The hash of the template that was wanted when this was written."""
    template_alias: str | None = None
    """The label that an earlier operator gave to pods of that template."""
    run: int = 0
    """How often the job was run again after its end."""
    scratch: int = 0
    """The run whose place below the URI holds the checkpoints; 0: the URI itself does."""
    restart_seen: str | None = None
    """The newest order to run again that was heeded or told (see again)."""
    ended_generation: int | None = None
    told_generation: int | None = None
    """The newest generation of which it was told that it came after the end."""
    productive_before: float = 0.0
    stall_before: float = 0.0
    """What the trainer has counted in runs before, which its checkpoints carry along."""
    tokens: tuple[float, float] | None = None
    """How many replacements may be created at once, and when that was so (see pods)."""
    slow: Mapping[str, tuple[float, float]] | None = None
    """Nodes whose pod has held up the others (see stragglers)."""
    damage_told: str | None = None
    """Which damage to checkpoints was told last."""
    incidents: tuple[Incident, ...] = ()
    history: History = History()
    counts: Mapping[str, int] | None = None
    """Incidents by class, over the whole life of the job, whether or not a budget paid."""
    progress: Progress | None = None
    progress_at: float | None = None
    checkpoint: CheckpointReport | None = None
    reason: str = ""
    """Of the end, for the Failed condition."""
    message: str = ""
    conditions: tuple[Mapping[str, Any], ...] = ()

    def seconds_between_failures(self, now: float) -> float | None:
        """Mean over the life of the job, suspensions left out; None before the first failure."""
        counts = self.counts or {}
        failures = counts.get("infrastructure", 0) + counts.get("preemption", 0)
        if not failures or self.start_time is None:
            return None
        return max(1.0, now - self.start_time - self.suspended_seconds) / failures

    @property
    def open_incidents(self) -> tuple[Incident, ...]:
        """Those after which training has not gone on yet."""
        return tuple(incident for incident in self.incidents if incident.open)

    def with_incident(self, incident: Incident, history: History) -> "JobRecord":
        """Add one, and count it."""
        counts = dict(self.counts or {})
        counts[incident.klass] = counts.get(incident.klass, 0) + 1
        return replace(
            self,
            incidents=kept((*self.incidents, incident)),
            history=history,
            counts=counts,
            charged_round=max(self.charged_round, incident.round),
        )

    def pending(self, now: float) -> float:
        """Seconds for which pods have been wanted without a first step since."""
        since = now if self.pending_since is None else self.pending_since
        return self.pending_seconds + max(0.0, now - since)


def read(status: Mapping[str, Any]) -> JobRecord:
    """The record that a status holds; an empty status gives an empty record."""
    accounting = status.get("accounting") or {}
    restarts = status.get("restarts") or {}
    spent = accounting.get("spent") or {}
    progress = status.get("progress") or {}
    goodput = status.get("goodput") or {}
    checkpoint = status.get("checkpoint") or {}
    conditions = tuple(status.get("conditions") or ())
    failed: Mapping[str, Any] = next(
        (c for c in conditions if c["type"] == FAILED and c["status"] == "True"), {}
    )
    return JobRecord(
        phase=status.get("phase", PENDING),
        round=status.get("round", 0),
        start_time=parse_time(status.get("startTime")),
        completion_time=parse_time(status.get("completionTime")),
        pending_since=accounting.get("pendingSince"),
        operator_since=accounting.get("operatorSince"),
        first_step_at=accounting.get("firstStepAt"),
        suspended_at=accounting.get("suspendedAt"),
        suspended_seconds=accounting.get("suspendedSeconds", 0.0),
        pending_seconds=accounting.get("pendingSeconds", 0.0),
        waiting_since=accounting.get("waitingSince"),
        restart_seconds=accounting.get("restartSeconds", 0.0),
        rework_seconds=accounting.get("reworkSeconds", 0.0),
        charged_round=accounting.get("chargedRound", 0),
        generations={int(s): n for s, n in (accounting.get("generations") or {}).items()},
        run=status.get("run", 0),
        scratch=accounting.get("scratch", 0),
        restart_seen=accounting.get("restartSeen"),
        ended_generation=accounting.get("endedGeneration"),
        told_generation=accounting.get("toldGeneration"),
        damage_told=accounting.get("damageTold"),
        productive_before=accounting.get("productiveBefore", 0.0),
        stall_before=accounting.get("stallBefore", 0.0),
        template=accounting.get("template"),
        template_alias=accounting.get("templateAlias"),
        tokens=(accounting.get("tokens", 0.0), accounting["tokensAt"])
        if "tokensAt" in accounting
        else None,
        slow={e["node"]: (e["since"], e["last"]) for e in accounting.get("slowNodes") or ()},
        incidents=tuple(from_status(i) for i in status.get("incidents") or ()),
        history=History(
            user=tuple((e["at"], e.get("step")) for e in spent.get("user") or ()),
            infrastructure=tuple(spent.get("infrastructure") or ()),
            preemptions=spent.get("preemption", 0),
        ),
        counts={k: restarts.get(k, 0) for k in ("user", "infrastructure", "preemption")},
        progress=Progress(
            step=progress.get("step", 0),
            total_steps=progress.get("totalSteps"),
            epoch=progress.get("epoch", 0),
            loss=progress.get("loss"),
            metrics=progress.get("metrics"),
            samples=progress.get("samples", 0),
            samples_per_second=progress.get("samplesPerSecond"),
            productive_seconds=goodput.get("productiveSeconds", 0.0)
            + accounting.get("productiveBefore", 0.0),
            stall_seconds=(goodput.get("lost") or {}).get("stall", 0.0)
            + accounting.get("stallBefore", 0.0),
        )
        if progress
        else None,
        progress_at=parse_time(progress.get("reportedAt")),
        checkpoint=CheckpointReport(
            step=checkpoint["step"],
            committed_at=parse_time(checkpoint.get("committedAt")) or 0.0,
            uri=checkpoint.get("uri", ""),
        )
        if checkpoint
        else None,
        reason=failed.get("reason", ""),
        message=failed.get("message", "") if failed else "",
        conditions=conditions,
    )


def _spent(history: History) -> dict[str, Any]:
    """What is spent of each budget; the only place in a status that budgets are counted from."""
    return {
        "user": [_user_error(at, step) for at, step in history.user],
        "infrastructure": list(history.infrastructure),
        "preemption": history.preemptions,
    }


def leader(observed: Observed) -> AgentReport | None:
    """The report of the current round's first member that is heard in it: it speaks for all."""
    for member in observed.round.members if observed.round else ():
        agent = observed.agents.get(member.uid)
        told = agent.report.round if agent else None
        if agent and observed.round and told and told.key == observed.round.key:
            return agent.report
    return None


def condition(kind: str, value: bool, reason: str, message: str) -> dict[str, Any]:
    """One condition, without its transition time."""
    return {
        "type": kind,
        "status": "True" if value else "False",
        "reason": reason,
        "message": message[:4000],
    }


def _stamped(
    fresh: list[dict[str, Any]], old: tuple[Mapping[str, Any], ...], generation: int, now: float
) -> list[dict[str, Any]]:
    """Conditions with the time of their last transition, in Kubernetes' sense: of their status."""
    before = {c["type"]: c for c in old}
    result = []
    for item in fresh:
        last = before.get(item["type"])
        same = last is not None and last["status"] == item["status"]
        at = last["lastTransitionTime"] if same and last else stamp(now)
        result.append({**item, "lastTransitionTime": at, "observedGeneration": generation})
    return result


def goodput(record: JobRecord, now: float) -> dict[str, Any] | None:
    """Where the time since the first pod was wanted has gone; every second in one place.

    productive and stall are counted by the trainer and travel with its checkpoints, so that steps
    that were lost are not in them; pending is the time before a first step; rework that of lost
    steps; what remains is the price of restarts. Where a program that is not ours trains, nobody
    has counted what was productive: only what is known is told then, and no ratio. Nor of one that
    has succeeded before anybody could see it train.
    """
    if record.start_time is None:
        return None
    end = record.completion_time or record.suspended_at or now
    total = max(0.0, end - record.start_time - record.suspended_seconds)
    progress = record.progress or Progress()
    unseen = record.first_step_at is None and record.phase == SUCCEEDED
    if unseen and not progress.productive_seconds:
        return {"percent": "unknown", "lost": {"restart": round(record.restart_seconds, 3)}}
    if record.first_step_at is not None and not progress.productive_seconds:
        pending = min(record.pending(end), total)
        since = min((i.at - i.silent for i in record.open_incidents), default=end)
        restart = min(record.restart_seconds + max(0.0, end - since), total - pending)
        lost = {"pending": round(pending, 3), "restart": round(restart, 3)}
        return {"percent": "unknown", "lost": lost}
    stall = min(max(0.0, progress.stall_seconds - record.stall_before), total)
    productive = max(0.0, progress.productive_seconds - record.productive_before)
    productive = min(productive, total - stall)
    pending = max(0.0, min(record.pending(end), total - productive - stall))
    rework = min(record.rework_seconds, total - productive - stall - pending)
    restart = max(0.0, total - productive - stall - pending - rework)
    ratio = productive / total if total > 0 else 0.0
    return {
        "ratio": round(ratio, 4),
        "percent": f"{100 * ratio:.0f}%",
        "productiveSeconds": round(productive, 3),
        "lost": {
            "pending": round(pending, 3),
            "restart": round(restart, 3),
            "rework": round(rework, 3),
            "stall": round(stall, 3),
        },
    }


def render(
    job: TrainingJob,
    record: JobRecord,
    observed: Observed,
    conditions: list[dict[str, Any]],
    message: str,
    now: float,
) -> dict[str, Any]:
    """The whole status document. Keys without a value are left out."""
    alive = [pod for pod in observed.pods if pod.alive and not pod.deleting]
    ready = sum(pod.ready for pod in alive)
    # What is beyond the wanted number is a spare, whichever indexes hold the ranks at the moment.
    idle = min(max(len(alive) - job.replicas, 0), job.spares)
    ready -= min(max(ready - job.replicas, 0), job.spares)
    wanted = 0 if record.phase in TERMINAL or job.suspend else job.replicas
    counts = {k: (record.counts or {}).get(k, 0) for k in ("user", "infrastructure", "preemption")}
    document: dict[str, Any] = {
        "observedGeneration": job.generation,
        "phase": record.phase,
        "message": message[:1000],
        "ready": f"{ready}/{wanted}",
        "replicas": len(alive) - idle,
        "readyReplicas": ready,
        "spares": _spares(job, observed, alive) if job.spares else None,
        "selector": ",".join(f"{k}={v}" for k, v in selector(job.name).items()),
        "round": record.round,
        "run": record.run or None,
        "startTime": stamp(record.start_time) if record.start_time else None,
        "completionTime": stamp(record.completion_time) if record.completion_time else None,
        "conditions": _stamped(conditions, record.conditions, job.generation, now),
        "restarts": {**counts, "total": sum(counts.values())},
        "goodput": goodput(record, now),
        "incidents": [to_status(incident) for incident in record.incidents],
        "progress": _progress(record),
        "checkpoint": {
            "step": record.checkpoint.step,
            "committedAt": stamp(record.checkpoint.committed_at),
            "uri": record.checkpoint.uri,
        }
        if record.checkpoint
        else None,
        "accounting": {
            key: value
            for key, value in (
                ("spent", _spent(record.history)),
                ("pendingSince", record.pending_since),
                ("operatorSince", record.operator_since),
                ("firstStepAt", record.first_step_at),
                ("pendingSeconds", round(record.pending_seconds, 3)),
                ("waitingSince", record.waiting_since),
                ("restartSeconds", round(record.restart_seconds, 3)),
                ("reworkSeconds", round(record.rework_seconds, 3)),
                ("chargedRound", record.charged_round),
                ("generations", {str(s): n for s, n in (record.generations or {}).items()}),
                ("scratch", record.scratch or None),
                ("restartSeen", record.restart_seen),
                ("endedGeneration", record.ended_generation),
                ("toldGeneration", record.told_generation),
                ("damageTold", record.damage_told),
                ("productiveBefore", round(record.productive_before, 3)),
                ("stallBefore", round(record.stall_before, 3)),
                ("template", record.template),
                ("templateAlias", record.template_alias),
                ("tokens", round(record.tokens[0], 3) if record.tokens else None),
                ("tokensAt", record.tokens[1] if record.tokens else None),
                ("slowNodes", _slow_nodes(record)),
                ("suspendedSeconds", round(record.suspended_seconds, 3)),
                ("suspendedAt", record.suspended_at),
            )
            if value not in (None, [], {}, 0.0)
        },
    }
    return fit({key: value for key, value in document.items() if value is not None})


def _user_error(at: float, step: int | None) -> dict[str, Any]:
    return {"at": at} if step is None else {"at": at, "step": step}


def _slow_nodes(record: JobRecord) -> list[dict[str, Any]]:
    newest = sorted((record.slow or {}).items(), key=lambda item: item[1][1])[-20:]
    return [{"node": node, "since": since, "last": last} for node, (since, last) in newest]


def _spares(job: TrainingJob, observed: Observed, alive: list[Pod]) -> int:
    """How many warm pods there are beyond those that hold a rank or could take a free one."""
    inside = {m.uid for m in observed.round.members} if observed.round else set()
    warm = [
        pod
        for pod in alive
        if pod.uid not in inside
        and (agent := observed.agents.get(pod.uid))
        and agent.report.phase is AgentPhase.WAITING
    ]
    free = max(job.replicas - len(inside), 0)
    return min(max(len(warm) - free, 0), job.spares)


def _finite(value: float | None) -> float | None:
    """A number that JSON can carry; None for NaN and infinities, which the API server refuses."""
    return value if value is not None and math.isfinite(value) else None


def _progress(record: JobRecord) -> dict[str, Any] | None:
    progress = record.progress
    if progress is None or record.progress_at is None:
        return None
    eta = None
    if progress.total_steps and progress.step and progress.productive_seconds:
        left = progress.total_steps - progress.step
        eta = record.progress_at + left * progress.productive_seconds / progress.step
        if eta - record.progress_at > ETA_MOST:
            eta = None
    document = {
        "step": progress.step,
        "totalSteps": progress.total_steps,
        "epoch": progress.epoch,
        "loss": _finite(progress.loss),
        "metrics": {k: v for k, v in (progress.metrics or {}).items() if _finite(v) is not None}
        or None,
        "samples": progress.samples,
        "samplesPerSecond": _finite(progress.samples_per_second),
        "eta": stamp(eta) if eta else None,
        "reportedAt": stamp(record.progress_at),
    }
    return {key: value for key, value in document.items() if value is not None}

"""The summary of a run: what the status, the pods and the checkpoint store say, put together.

Each figure has one source and is absent when that source does not give it: steps lost come from
the incidents, samples from the ledger in the newest commit, rounds from the pods. `flaws` is the
verdict of the demo; it trusts nothing that is missing.
"""

from dataclasses import dataclass
from typing import Any

from rekindle_cli.jobs.evidence import Evidence
from rekindle_cli.jobs.rounds import RoundView
from rekindle_cli.jobs.snapshot import IncidentView, JobView
from rekindle_cli.jobs.timeline import round_text
from rekindle_cli.output.causes import SHORT
from rekindle_cli.output.wording import clock, count, listed, number, seconds


@dataclass(frozen=True, kw_only=True)
class Preemption:
    """What the demo did to the job."""

    at_step: int
    pod: str
    node: str
    notice_seconds: float


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """A job that has ended, and what is known about it."""

    job: JobView
    seconds: float
    """Wall clock from the first command to the end of the job."""
    rounds: tuple[RoundView, ...] = ()
    evidence: Evidence = Evidence()
    preemption: Preemption | None = None
    steps_back: int = 0
    """By how many steps the progress was seen to fall back, over all times that it did: at least
    so many steps were lost, whatever the incidents say."""

    @property
    def steps_lost(self) -> int | None:
        """Steps that had to be done again, over all incidents; None while one has no figure."""
        figures = [incident.steps_lost for incident in self.job.incidents]
        known = [figure for figure in figures if figure is not None]
        return max(sum(known), self.steps_back) if len(known) == len(figures) else None

    @property
    def resumed_from(self) -> int | None:
        """The step that training went on from after the newest incident that stopped it."""
        found = [incident.resumed_from for incident in self.job.incidents]
        return next((step for step in reversed(found) if step is not None), None)

    @property
    def world_sizes(self) -> list[int]:
        """Workers of each round."""
        return [found.workers for found in self.rounds]

    @property
    def final_metric(self) -> tuple[str, float] | None:
        """The accuracy, if one is logged, else the first metric by name."""
        metrics = dict(self.job.metrics) or dict(self.evidence.metrics)
        names = sorted(
            metrics, key=lambda name: ("acc" not in name, not name.startswith("val"), name)
        )
        return (names[0], metrics[names[0]]) if names else None


def flaws(report: JobReport) -> list[str]:
    """Why the demo did not show what it is there to show; empty if it did."""
    found = []
    job, samples = report.job, report.evidence.samples
    if job.phase != "Succeeded":
        found.append(f"the job is {job.phase or 'not seen by any operator'}")
    if report.preemption is None:
        found.append("the job ended before a pod could be preempted")
    elif not any(incident.cause == "Preempted" for incident in job.incidents):
        found.append("the preemption is not among the incidents")
    if report.steps_lost is None:
        found.append("the steps lost are not known")
    elif report.steps_lost:
        found.append(f"{count(report.steps_lost, 'step')} lost")
    if samples is None:
        found.append(f"the samples cannot be proven: {report.evidence.problem or 'no ledger'}")
    else:
        if samples.repeated:
            found.append(f"{count(samples.repeated, 'sample')} repeated")
        if samples.missed:
            found.append(f"{count(samples.missed, 'sample')} missed")
        if not samples.exact and not samples.repeated and not samples.missed:
            found.append("the samples used are not those of the data order")
    newest = report.evidence.commits[0].step if report.evidence.commits else None
    if newest is not None and job.total_steps and newest != job.total_steps:
        found.append(f"the newest checkpoint is of step {newest}, not of {job.total_steps}")
    return found


def as_json(report: JobReport) -> dict[str, Any]:
    """One object for machines; figures that are not known are null."""
    job, samples = report.job, report.evidence.samples
    metric = report.final_metric
    return {
        "job": f"{job.namespace}/{job.name}",
        "phase": job.phase or None,
        "message": job.message or None,
        "seconds": round(report.seconds, 3),
        "steps": job.step,
        "total_steps": job.total_steps,
        "steps_lost": report.steps_lost,
        "samples": samples.used if samples else job.samples,
        "samples_expected": samples.expected if samples else None,
        "samples_repeated": samples.repeated if samples else None,
        "samples_missed": samples.missed if samples else None,
        "samples_proven": samples.exact if samples else None,
        "resumed_from": report.resumed_from,
        "final_metric": metric[1] if metric else None,
        "final_metric_name": metric[0] if metric else None,
        "final_loss": job.loss,
        "goodput": job.goodput,
        "seconds_lost": dict(job.lost_seconds),
        "world_sizes": report.world_sizes,
        "rounds": [
            {
                "number": found.number,
                "members": list(found.members),
                "reason": found.reason,
                "workers": found.workers,
                "at": found.at.isoformat() if found.at else None,
            }
            for found in report.rounds
        ],
        "incidents": [incident_json(incident) for incident in job.incidents],
        "preemption": {
            "step": report.preemption.at_step,
            "pod": report.preemption.pod,
            "node": report.preemption.node,
            "notice_seconds": report.preemption.notice_seconds,
        }
        if report.preemption
        else None,
        "checkpoints": [
            {
                "step": commit.step,
                "attempt": commit.fence,
                "world_size": commit.world_size,
                "resumed_from": commit.base,
            }
            for commit in report.evidence.commits
        ],
        "checkpoint_uri": job.checkpoint_uri or job.checkpoint_root or None,
        "evidence_problem": report.evidence.problem or None,
    }


def incident_json(incident: IncidentView) -> dict[str, Any]:
    """An incident for machines."""
    return {
        "at": incident.at.isoformat() if incident.at else None,
        "round": incident.round,
        "cause": incident.cause,
        "evidence": incident.evidence,
        "victims": list(incident.victims),
        "collateral": list(incident.collateral),
        "step": incident.step,
        "resumed_from": incident.resumed_from,
        "recovered_in_round": incident.recovered_in,
        "steps_lost": incident.steps_lost,
        "seconds_lost": incident.seconds_lost,
        "action": incident.action,
        "recovery": dict(incident.recovery) or None,
        "restored": dict(incident.restored) or None,
        "stacks": incident.stacks or None,
    }


def summary(report: JobReport) -> list[tuple[str, str]]:
    """Label and text of each line of the summary for people."""
    job = report.job
    rows = [("Job", f"{job.namespace}/{job.name}: {job.phase or 'unknown'}")]
    if job.phase == "Failed":
        condition = job.holds("Failed")
        rows.append(("Why", condition.message if condition else job.message))
    if job.step is not None:
        rows.append(("Steps", f"{job.step:,} of {job.total_steps or job.step:,}"))
    elif job.steps_unknown:
        rows.append(("Steps", "unknown"))
    rows += [(f"Round {found.number}", _round(found)) for found in report.rounds]
    rows += [_incident(incident) for incident in job.incidents]
    if report.resumed_from is not None:
        rows.append(("Resumed from", f"the checkpoint of step {report.resumed_from:,}"))
    lost = report.steps_lost
    rows.append(("Steps lost", "not known" if lost is None else f"{lost:,}"))
    rows.append(("Samples", _samples(report.evidence, job.samples)))
    metric = report.final_metric
    if metric is not None:
        rows.append(("Final metric", f"{metric[0]} {number(metric[1])}"))
    if job.goodput is not None:
        parts = [f"{name} {seconds(amount)}" for name, amount in job.lost_seconds if amount > 0]
        rest = f" (not productive: {listed(parts)})" if parts else ""
        rows.append(("Goodput", f"{job.goodput:.0%}{rest}"))
    elif job.goodput_unknown:
        rows.append(("Goodput", "unknown"))
    rows.append(("Total time", seconds(report.seconds)))
    return rows


def _round(found: RoundView) -> str:
    return round_text(found).partition(" ")[2].partition(" ")[2]


def _incident(incident: IncidentView) -> tuple[str, str]:
    what = SHORT.get(incident.cause, incident.cause)
    text = f"{listed(incident.victims)} {what}"
    if incident.step is not None:
        text += f" at step {incident.step:,}"
    if incident.at is not None:
        text += f", {clock(incident.at)}"
    if incident.seconds_lost is not None and incident.over:
        text += f", {seconds(incident.seconds_lost)} until training went on"
    return "Incident", text


def _samples(evidence: Evidence, counted: int | None) -> str:
    samples = evidence.samples
    if samples is None:
        told = "" if counted is None else f"{counted:,} used, as the program counted; "
        return f"{told}not proven: {evidence.problem or 'no checkpoint was read'}"
    proof = "proven by the ledger" if samples.digest_ok else "but not those of the data order"
    text = f"{samples.used:,} used, {samples.repeated:,} repeated, {samples.missed:,} missed"
    return f"{text} ({proof})"

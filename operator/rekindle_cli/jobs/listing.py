"""Jobs as a table, and as objects for machines."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rekindle_cli.jobs.report import incident_json
from rekindle_cli.jobs.snapshot import JobView
from rekindle_cli.output.wording import age, number

HEADER = (
    "NAME", "PHASE", "READY", "ROUND", "STEP", "DONE", "LOSS", "CHECKPOINT", "RESTARTS", "GOODPUT",
    "AGE",
)  # fmt: skip
"""Titles of `row`, without the namespace."""


def row(job: JobView, now: datetime) -> tuple[str, ...]:
    """One job; what is not known is a dash."""
    step = "-" if job.step is None else f"{job.step}/{job.total_steps or '?'}"
    goodput = "unknown" if job.goodput_unknown else "-"
    return (
        job.name,
        job.phase or "-",
        job.ready or "-",
        str(job.round) if job.round else "-",
        "unknown" if job.steps_unknown else step,
        "-" if job.fraction is None else f"{job.fraction:.0%}",
        "-" if job.loss is None else number(job.loss),
        "-" if job.checkpoint_step is None else str(job.checkpoint_step),
        str(sum(amount for _, amount in job.restarts)),
        goodput if job.goodput is None else f"{job.goodput:.0%}",
        "-" if job.created is None else age(job.created, now),
    )


def table(jobs: Iterable[JobView], now: datetime, *, namespaces: bool) -> list[str]:
    """Aligned lines with a header; with the namespace in front where several are listed."""
    ordered = sorted(jobs, key=lambda job: (job.namespace, job.name))
    header = ("NAMESPACE", *HEADER) if namespaces else HEADER
    body = [(job.namespace, *row(job, now)) if namespaces else row(job, now) for job in ordered]
    rows = [header, *body]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(header))]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in rows
    ]


def job_json(job: JobView) -> dict[str, Any]:
    """What the table says and more, for machines; what is not known is null."""
    return {
        "namespace": job.namespace,
        "name": job.name,
        "phase": job.phase or None,
        "message": job.message or None,
        "ready": job.ready or None,
        "replicas": job.replicas,
        "round": job.round,
        "step": job.step,
        "total_steps": job.total_steps,
        "epoch": job.epoch,
        "loss": job.loss,
        "metrics": dict(job.metrics),
        "samples": job.samples,
        "samples_per_second": job.samples_per_second,
        "eta": job.eta.isoformat() if job.eta else None,
        "checkpoint": {
            "step": job.checkpoint_step,
            "committed_at": job.checkpoint_at.isoformat() if job.checkpoint_at else None,
            "uri": job.checkpoint_uri or job.checkpoint_root or None,
        },
        "restarts": dict(job.restarts),
        "goodput": job.goodput,
        "seconds_lost": dict(job.lost_seconds),
        "conditions": [
            {
                "type": entry.type,
                "status": entry.status,
                "reason": entry.reason,
                "message": entry.message,
            }
            for entry in job.conditions
        ],
        "incidents": [incident_json(incident) for incident in job.incidents],
    }

"""`rekindle get` and `rekindle why`: asking any cluster about its jobs.

The API server lists a namespace that does not exist as an empty one. Who named it has most likely
misspelt it, so an empty answer is looked into before it is believed.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rekindle_cli.jobs import client
from rekindle_cli.jobs.client import Api, ServerError, Unavailable, jobs_path, namespace_path
from rekindle_cli.jobs.explain import Sentence, explain
from rekindle_cli.jobs.listing import job_json, table
from rekindle_cli.jobs.report import incident_json
from rekindle_cli.jobs.snapshot import JobView
from rekindle_cli.output.failure import CommandFailure

_WATCH_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which jobs of which cluster."""

    name: str | None = None
    namespace: str | None = None
    everywhere: bool = False
    kubeconfig: Path | None = None


def listed(query: Query, *, as_json: bool) -> str:
    """The jobs as a table or as one JSON object; raises Failure when the named one is not there."""
    api = client.connect(query.kubeconfig)
    return _text(_once(api, query), query, as_json=as_json, where=_where(api, query))


def watched(query: Query, *, as_json: bool) -> Iterator[str]:
    """The same again after each change, until the caller stops; survives an absent server."""
    api = client.connect(query.kubeconfig)
    last: list[JobView] | None = None
    while True:
        try:
            jobs = _jobs(api, query)
        except Unavailable:
            time.sleep(_WATCH_SECONDS)
            continue
        if jobs != last:
            yield _text(jobs, query, as_json=as_json, where=_where(api, query))
        last = jobs
        time.sleep(_WATCH_SECONDS)


def explained(query: Query) -> tuple[JobView, list[Sentence]]:
    """One job and what there is to say about it; raises Failure when it is not there."""
    api = client.connect(query.kubeconfig)
    job = _once(api, query)[0]
    return job, explain(job)


def _once(api: Api, query: Query) -> list[JobView]:
    try:
        return _jobs(api, query)
    except Unavailable as error:
        raise CommandFailure(
            f"The cluster at {api.where} does not answer: {error}.", reason="Unreachable"
        ) from None


def names(query: Query) -> list[str]:
    """The names of the jobs that are there, for a shell to complete; raises Failure."""
    return sorted(job.name for job in _once(client.connect(query.kubeconfig), query))


def explained_json(job: JobView, said: Sequence[Sentence]) -> dict[str, Any]:
    """The explanation for machines: sentences, and the figures that they rest on."""
    return {
        "namespace": job.namespace,
        "name": job.name,
        "phase": job.phase or None,
        "sentences": [
            {"about": one.about, "text": one.text, "incident": one.incident} for one in said
        ],
        "incidents": [incident_json(incident) for incident in job.incidents],
        "goodput": job.goodput,
        "seconds_lost": dict(job.lost_seconds),
    }


def _where(api: Api, query: Query) -> str:
    return "the whole cluster" if query.everywhere else f"namespace {_namespace(api, query)}"


def _namespace(api: Api, query: Query) -> str:
    return query.namespace or api.namespace


def _jobs(api: Api, query: Query) -> list[JobView]:
    """The jobs asked for; Unavailable passes through to who wants to try again."""
    namespace = None if query.everywhere else _namespace(api, query)
    try:
        answer = api.get(jobs_path(namespace))
    except ServerError as error:
        if error.status == 404:
            raise CommandFailure(
                f"The cluster at {api.where} does not know TrainingJobs.",
                "Install Rekindle there: helm install rekindle charts/rekindle.",
                reason="NotFound",
            ) from None
        if error.status in {401, 403}:
            raise CommandFailure(
                f"You may not list TrainingJobs in {_where(api, query)}: {error.body}",
                "Ask for the role rekindle-view, or name another namespace with -n.",
                reason="Unauthorized" if error.status == 401 else "Forbidden",
            ) from None
        raise CommandFailure(
            f"The cluster at {api.where} is in trouble: {error}.", reason="Unreachable"
        ) from None
    jobs = [JobView.read(item) for item in answer.get("items") or ()]
    if not jobs and namespace is not None:
        check_namespace(api, namespace)
    if query.name is None:
        return jobs
    found = [job for job in jobs if job.name == query.name]
    if not found:
        others = ", ".join(sorted(job.name for job in jobs)[:10]) or "none"
        raise CommandFailure(
            f"There is no TrainingJob {query.name} in {_where(api, query)} (there: {others}).",
            "Name another namespace with -n, or list all jobs with 'rekindle get -A'.",
            reason="NotFound",
        )
    return found


def check_namespace(api: Api, namespace: str) -> None:
    """Raises Failure when the cluster has no such namespace, and lets one may not see pass."""
    try:
        if api.find(namespace_path(namespace)) is not None:
            return
    except ServerError:
        return
    raise CommandFailure(
        f"There is no namespace {namespace} in the cluster at {api.where}.",
        "Name another one with -n, or list all jobs with 'rekindle get -A'.",
        reason="NotFound",
    )


def _text(jobs: Sequence[JobView], query: Query, *, as_json: bool, where: str) -> str:
    if as_json:
        return json.dumps({"jobs": [job_json(job) for job in jobs]})
    if not jobs:
        return f"No TrainingJobs in {where}."
    return "\n".join(table(jobs, datetime.now(UTC), namespaces=query.everywhere))

"""`rekindle restart`: asks the operator to run a job again that has ended.

All that happens here is a request, an annotation with a value that was not there before; the
operator answers it and removes nothing. Both annotations go out in one write, and a request that
was written twice is two requests of which the second finds a job that runs.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rekindle.api import ANNOTATION_RESTART, ANNOTATION_RESTART_FROM
from rekindle_cli.jobs import client, query
from rekindle_cli.jobs.client import ServerError, Unavailable, jobs_path
from rekindle_cli.jobs.query import Query
from rekindle_cli.jobs.snapshot import JobView
from rekindle_cli.output.failure import CommandFailure


@dataclass(frozen=True, kw_only=True)
class Requested:
    """What was asked of the operator."""

    namespace: str
    name: str
    value: str
    begin: str
    """``latest`` or ``scratch``."""

    def document(self) -> dict[str, Any]:
        """For --json."""
        return {
            "namespace": self.namespace,
            "name": self.name,
            "restart": self.value,
            "from": self.begin,
        }


def restart(wanted: Query, *, scratch: bool, now: datetime) -> Requested:
    """Ask for another run; raises Failure when the job is not there or has not ended."""
    api = client.connect(wanted.kubeconfig)
    namespace, name = wanted.namespace or api.namespace, str(wanted.name)
    path = jobs_path(namespace, name)
    try:
        found = api.find(path) if re.fullmatch(r"[a-z0-9.-]+", name) else None
        if found is None:
            query.check_namespace(api, namespace)
            raise CommandFailure(
                f"There is no TrainingJob {name} in namespace {namespace}.",
                "Name another namespace with -n, or list all jobs with 'rekindle get -A'.",
                reason="NotFound",
            )
        check(JobView.read(found))
        begin = "scratch" if scratch else "latest"
        value = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        annotations = {
            ANNOTATION_RESTART: value,
            ANNOTATION_RESTART_FROM: begin,
        }
        # Only the job that was looked at: one of the same name that has taken its place is left.
        identity = {"uid": found["metadata"]["uid"], "annotations": annotations}
        api.merge(path, {"metadata": identity})
    except ServerError as error:
        reasons = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict"}
        raise CommandFailure(
            f"TrainingJob {name} cannot be asked to restart: {error}.",
            "Try again." if error.status in {404, 409} else "Ask for the role rekindle-edit.",
            reason=reasons.get(error.status, "Invalid"),
        ) from None
    except Unavailable as error:
        raise CommandFailure(
            f"The cluster at {api.where} does not answer: {error}.", reason="Unreachable"
        ) from None
    return Requested(namespace=namespace, name=name, value=value, begin=begin)


def check(job: JobView) -> None:
    """Raises Failure for a job that has not ended: there is nothing to run again."""
    if job.finished:
        return
    where = f"rekindle why {job.name} -n {job.namespace}"
    if job.phase == "Suspended":
        raise CommandFailure(
            f"TrainingJob {job.name} has not ended, it is suspended.",
            f"Let it go on: kubectl patch tj {job.name} -n {job.namespace} --type merge "
            """-p '{"spec": {"suspend": false}}'.""",
            reason="Conflict",
        )
    raise CommandFailure(
        f"TrainingJob {job.name} has not ended: {job.phase or 'no operator has seen it yet'}.",
        f"'{where}' says where it is. To begin anew now, delete it and apply it again.",
        reason="Conflict",
    )

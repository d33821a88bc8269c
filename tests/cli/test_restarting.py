"""`rekindle restart`: a request that the operator can tell from every one before."""

import json
from datetime import UTC, datetime

import pytest

from rekindle.api import ANNOTATION_RESTART, ANNOTATION_RESTART_FROM
from rekindle_cli.jobs import client, restarting
from rekindle_cli.jobs.client import ServerError
from rekindle_cli.jobs.query import Query
from rekindle_cli.jobs.snapshot import JobView
from rekindle_cli.output.failure import CommandFailure

NOW = datetime(2026, 11, 30, 9, 0, 0, 250_000, tzinfo=UTC)


class Server:
    """One job, and what was written to it."""

    where, namespace = "http://cluster", "team"

    def __init__(self, document):
        self.document = document
        self.written = []
        self.refusal = None

    def find(self, path):
        return self.document if path.endswith("/namespaces/team/trainingjobs/digits") else None

    def merge(self, path, body):
        if self.refusal:
            raise self.refusal
        self.written.append((path, body))


@pytest.fixture
def server(job, monkeypatch):
    server = Server(job(phase="Failed"))
    monkeypatch.setattr(client, "connect", lambda kubeconfig: server)
    return server


@pytest.mark.parametrize(("scratch", "begin"), [(False, "latest"), (True, "scratch")])
def test_both_annotations_are_one_write_to_the_job_that_was_looked_at(
    server, scratch, begin
) -> None:
    asked = restarting.restart(Query(name="digits"), scratch=scratch, now=NOW)
    ((path, body),) = server.written
    assert path == "/apis/rekindle.dev/v1alpha1/namespaces/team/trainingjobs/digits"
    assert body == {
        "metadata": {
            "uid": "job-uid",
            "annotations": {
                ANNOTATION_RESTART: "2026-11-30T09:00:00.250Z",
                ANNOTATION_RESTART_FROM: begin,
            },
        }
    }
    assert json.loads(json.dumps(asked.document()))["from"] == begin


def test_the_next_request_has_another_value(server) -> None:
    for second in (1, 2):
        restarting.restart(Query(name="digits"), scratch=False, now=NOW.replace(second=second))
    values = {body["metadata"]["annotations"][ANNOTATION_RESTART] for _, body in server.written}
    assert len(values) == 2


@pytest.mark.parametrize(
    ("phase", "part"),
    [
        ("Pending", "rekindle why digits -n default"),
        ("Starting", "rekindle why"),
        ("Running", "rekindle why"),
        ("Recovering", "rekindle why"),
        ("Suspended", '"suspend": false'),
    ],
)
def test_a_job_that_has_not_ended_is_left_alone(server, job, phase, part) -> None:
    server.document = job(phase=phase)
    with pytest.raises(CommandFailure) as refused:
        restarting.restart(Query(name="digits"), scratch=False, now=NOW)
    assert refused.value.reason == "Conflict"
    assert part in refused.value.hint
    assert not server.written


def test_every_phase_is_ended_or_not(job) -> None:
    for phase in ("Succeeded", "Failed"):
        restarting.check(JobView.read(job(phase=phase)))


@pytest.mark.parametrize(("status", "reason"), [(403, "Forbidden"), (409, "Conflict")])
def test_a_write_that_is_refused_says_why(server, status, reason) -> None:
    server.refusal = ServerError(status, "because")
    with pytest.raises(CommandFailure, match="because") as refused:
        restarting.restart(Query(name="digits"), scratch=False, now=NOW)
    assert refused.value.reason == reason

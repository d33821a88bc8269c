import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from rekindle_cli.jobs.client import Forgotten, Unavailable
from rekindle_cli.jobs.follow import Follower
from rekindle_cli.jobs.snapshot import JobSnapshot
from rekindle_cli.local.run import Patience, StepWatch, follow_to_end
from rekindle_cli.output.failure import CommandFailure
from rekindle_cli.output.wording import parse_time

pytestmark = pytest.mark.servers

NOW = parse_time("2026-11-20T12:00:30Z")
SECONDS = 60.0
LOG = (
    "2026-11-20T12:00:05Z 2026-11-20 12:00:05,0 rekindle round 3 (first round): 1 pods, "
    "1 workers; ours have rank 0 to 0"
)


class FakeApi:
    """Collections that a test changes; a watch hands out what `tell` is given."""

    def __init__(self, jobs: list[dict], pods: list[dict]) -> None:
        self.lists = {"trainingjobs": jobs, "pods": pods}
        self.events: dict[str, list[dict]] = {"trainingjobs": [], "pods": []}
        self.away = False
        self.forget: set[str] = set()
        """Collections whose watches are to be told that their place is forgotten."""
        self.ends = False
        self.logs_read = 0
        self._changed = threading.Condition()

    def get(self, path: str, query: Any = None) -> dict:
        if self.away:
            raise Unavailable("gone")
        kind = path.rpartition("/")[2]
        return {"metadata": {"resourceVersion": "1"}, "items": list(self.lists[kind])}

    def watch(self, path: str, query: Any, version: str, stop: Any) -> Iterator[dict]:
        kind = path.rpartition("/")[2]
        while not stop.is_set():
            with self._changed:
                self._changed.wait_for(
                    lambda: self.events[kind] or kind in self.forget or self.away, 0.05
                )
                events, self.events[kind] = self.events[kind], []
                forget = kind in self.forget
                self.forget.discard(kind)
            if self.away:
                raise Unavailable("gone")
            if forget:
                raise Forgotten
            yield from events
            if self.ends:
                return

    def log_tail(self, namespace: str, pod: str, lines: int, *, timestamps: bool) -> list[str]:
        self.logs_read += 1
        return [LOG]

    def tell(self, kind: str, event: str, item: dict) -> None:
        item["metadata"]["resourceVersion"] = "2"
        with self._changed:
            self.events[kind].append({"type": event, "object": item})
            self._changed.notify_all()


def until(follower: Follower, holds) -> JobSnapshot:
    end = threading.Event()
    timer = threading.Timer(SECONDS, end.set)
    timer.start()
    try:
        for snapshot in follower.snapshots(tick=0.3):
            if holds(snapshot):
                return snapshot
            assert not end.is_set(), f"not seen within {SECONDS} s: {snapshot}"
    finally:
        timer.cancel()
    raise AssertionError("snapshots never end")


@pytest.fixture
def api(job, pod) -> FakeApi:
    return FakeApi([job()], [pod("digits-0")])


@pytest.fixture
def follower(api):
    with Follower(api, "default", "digits") as follower:
        assert follower.ready(SECONDS)
        yield follower


def test_what_is_there_is_in_the_first_snapshot(follower) -> None:
    first = next(iter(follower.snapshots()))
    assert first.job is not None
    assert (first.job.name, [pod.name for pod in first.pods]) == ("digits", ["digits-0"])


def test_a_change_is_seen_by_the_watch(api, follower, job) -> None:
    api.tell("trainingjobs", "MODIFIED", job(phase="Recovering"))
    until(follower, lambda seen: seen.job is not None and seen.job.phase == "Recovering")


def test_a_pod_that_is_deleted_is_handed_over_once_as_it_was(api, follower, pod) -> None:
    state = {"terminated": {"exitCode": 75}}
    api.tell("pods", "DELETED", pod("digits-0", phase="Failed", state=state))
    last = until(follower, lambda seen: seen.gone)
    assert [one.exit_code for one in last.gone] == [75]
    assert last.pods == ()
    assert follower.now().gone == ()


def test_a_forgotten_place_is_answered_with_a_new_list(api, follower, job) -> None:
    api.lists["trainingjobs"] = [job(phase="Succeeded")]
    api.forget = {"trainingjobs"}
    until(follower, lambda seen: seen.job is not None and seen.job.finished)


def test_what_a_watch_has_lost_is_seen_after_its_end(api, follower, job) -> None:
    api.lists["trainingjobs"] = [job(phase="Succeeded")]
    api.ends = True
    until(follower, lambda seen: seen.job is not None and seen.job.finished)


def test_an_absent_server_is_told_and_survived(api, follower, job) -> None:
    api.away = True
    until(follower, lambda seen: follower.lost_for > 0)
    api.lists["trainingjobs"] = [job(phase="Succeeded")]
    api.away = False
    until(follower, lambda seen: seen.job is not None and seen.job.finished)
    # Several things are watched; the one that the answer came from may be the first to be back.
    until(follower, lambda seen: follower.lost_for == 0)


def test_the_log_of_a_known_round_is_not_read_again(api, follower) -> None:
    rounds = until(follower, lambda seen: seen.rounds).rounds
    assert [(one.number, one.members) for one in rounds] == [(3, ("digits-0",))]
    read = api.logs_read
    follower.now()
    assert api.logs_read == read == 1


class Recorder:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def show(self, snapshot, lines) -> None:
        self.lines += [line.text for line in lines]


def seen(job) -> JobSnapshot:
    return JobSnapshot.read(at=NOW, job=job)


def test_following_ends_with_the_job(job) -> None:
    view = Recorder()
    done = seen(job(phase="Succeeded"))
    assert follow_to_end([seen(job()), done, seen(job())], view) is done
    assert view.lines[-1].startswith("Succeeded")


def test_a_job_that_is_deleted_meanwhile_is_a_failure(job) -> None:
    with pytest.raises(CommandFailure, match="digits was deleted"):
        follow_to_end([seen(job()), seen(None)], Recorder())


def test_a_cluster_that_stays_away_is_a_failure(job) -> None:
    with pytest.raises(CommandFailure, match="has not answered"):
        follow_to_end([seen(job())] * 3, Recorder(), lost_for=lambda: 61.0)


def test_progress_that_falls_back_is_counted(job) -> None:
    watch = StepWatch()
    for step in (10, 40, 35, 50, 50, 49):
        watch(seen(job(progress={"step": step})))
    watch(seen(job(unseen=True)))
    assert watch.back == 6


def test_a_job_that_nobody_takes_up_is_complained_about_once(job) -> None:
    patience = Patience()
    snapshots = [
        JobSnapshot.read(at=NOW + timedelta(seconds=after), job=job(unseen=True))
        for after in (0, 29, 31, 40)
    ]
    assert [patience.over(one) for one in snapshots] == [False, False, True, False]
    assert not Patience().over(seen(job()))

from datetime import UTC, datetime

import pytest

from rekindle_cli.jobs.snapshot import JobSnapshot
from rekindle_cli.local.demo import NOTICE_SECONDS, DemoPlan, Reclaimer, plan

NOW = datetime(2026, 11, 20, tzinfo=UTC)
HALF = DemoPlan(share=0.5, lot=0.0)


def test_the_moment_lies_between_a_third_and_two_thirds_for_every_seed() -> None:
    plans = [plan(seed) for seed in range(300)]
    assert all(0.3 <= one.share <= 0.6 for one in plans)
    assert len({round(one.share, 3) for one in plans}) > 100
    assert plan(7) == plan(7)


def test_every_pod_is_the_victim_of_some_seed(job, pod) -> None:
    snapshot = JobSnapshot.read(at=NOW, job=job(), pods=[pod("digits-0"), pod("digits-1")])
    assert {plan(seed).victim(snapshot).name for seed in range(20)} == {"digits-0", "digits-1"}


@pytest.mark.parametrize(
    ("status", "due"),
    [
        ({"progress": {"step": 149}}, False),
        ({"progress": {"step": 150}}, True),
        ({"phase": "Recovering"}, False),
        ({"phase": "Succeeded"}, False),
        ({"progress": {"totalSteps": None}}, False),
    ],
)
def test_the_node_goes_only_while_training_is_stably_under_way(job, pod, status, due) -> None:
    assert HALF.due(JobSnapshot.read(at=NOW, job=job(**status), pods=[pod()])) is due


def test_a_pod_that_goes_anyway_is_no_victim(job, pod) -> None:
    pods = [pod("digits-0", deleting=True), pod("digits-1", ready=False)]
    assert not HALF.due(JobSnapshot.read(at=NOW, job=job(), pods=pods))


def test_the_node_is_taken_away_once(job, pod) -> None:
    taken: list[tuple[str, float]] = []
    reclaimer = Reclaimer(HALF, lambda *call: taken.append(call), lambda text: None)
    snapshot = JobSnapshot.read(at=NOW, job=job(), pods=[pod(node="node-2")])
    for _ in range(3):
        reclaimer(snapshot)
    assert taken == [("node-2", NOTICE_SECONDS)]
    assert reclaimer.done is not None
    assert (reclaimer.done.pod, reclaimer.done.at_step) == ("digits-0", 150)

"""Workers that hang, seen by their agent: what it tells, and where they stand."""

import pytest

from rekindle.api import AgentPhase, AgentReport, DirectiveKind

pytestmark = pytest.mark.processes

# Steps as a trainer announces them; rank 1 stands still after a while, rank 0 waits for it.
HANGS = """
import os, time
from rekindle.ranks.heartbeat import Heartbeat
heart, rank = Heartbeat.from_environment(), int(os.environ["RANK"])

def own_code():
    while True:
        time.sleep(60)

for step in range(1, 8):
    heart.step(step, time.monotonic())
    time.sleep(0.05)
own_code()
"""


def report_of(coordinator, what) -> AgentReport:
    """The newest report of the pod, once it is such."""
    coordinator.wait_for(lambda: what(coordinator.reports["a"]))
    return coordinator.reports["a"]


@pytest.mark.timeout(300)
def test_a_worker_that_hangs_is_told_with_its_stack_and_the_next_round_ends_it(
    coordinator, start_pod
):
    pod = start_pod("a", HANGS, to=coordinator, environment={"REKINDLE_HANG_TIMEOUT": "1"})
    coordinator.wait_phase("a", AgentPhase.WAITING)
    coordinator.form("a")
    report = report_of(coordinator, lambda r: r.hang is not None and r.hang.stacks is not None)
    assert (report.hang.rank, report.hang.step, report.hang.timeout) == (0, 7, 1.0)
    assert report.hang.waits is False
    assert "own_code" in report.hang.stacks
    assert [rank.step for rank in report.ranks] == [7]
    assert "own_code" in pod.text(), "the pod's log has the stacks, too"
    assert report.phase is AgentPhase.RUNNING
    coordinator.form("a")
    report_of(coordinator, lambda r: r.round.number == 2 and r.hang is None)


@pytest.mark.timeout(300)
def test_a_pod_that_is_asked_tells_where_its_workers_stand_before_their_time_is_up(
    coordinator, start_pod
):
    start_pod("a", HANGS, to=coordinator, environment={"REKINDLE_HANG_TIMEOUT": "4"})
    coordinator.wait_phase("a", AgentPhase.WAITING)
    coordinator.form("a")
    report_of(coordinator, lambda r: r.ranks and r.ranks[0].idle > 2.0)
    coordinator.order("a", DirectiveKind.DUMP)
    report = report_of(coordinator, lambda r: r.hang is not None and r.hang.stacks is not None)
    assert report.hang.idle < 4.0

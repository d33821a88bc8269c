"""What an agent does when a round cannot be joined as it should be."""

import time
from types import SimpleNamespace

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError
from torch.distributed.elastic.rendezvous.api import RendezvousGracefulExitError

from rekindle.api import AgentPhase, Cause, ExitCode
from rekindle.launch.agent.agent import RETRY, Agent

OFFERED = SimpleNamespace(number=3, key="k3", reason="without digits-1")


def joining(failure):
    """An agent without workers to whom a round is offered that it fails to join in this way."""
    told, ended = [], []

    def initialize(group):
        raise failure

    session = SimpleNamespace(
        joinable=lambda: OFFERED,
        announce=lambda phase, outcome, *, failed_at: told.append((phase, outcome, failed_at)),
    )
    agent = SimpleNamespace(
        _session=session,
        _workers=None,
        _worker_group=None,
        _retry=None,
        directory=None,
        _initialize_workers=initialize,
        _shutdown=lambda: ended.append(True),
    )
    Agent._join(agent)
    return agent, told, ended


def test_a_store_that_cannot_be_reached_is_tried_again_after_a_pause():
    before = time.monotonic()
    agent, told, ended = joining(RendezvousConnectionError("no route to 10.0.0.9"))
    key, at = agent._retry
    assert key == "k3"
    assert before + RETRY <= at <= time.monotonic() + RETRY
    assert not told
    assert not ended


def test_an_order_to_stop_meanwhile_is_no_failure():
    agent, told, ended = joining(RendezvousGracefulExitError("stop"))
    assert (agent._retry, told, ended) == (None, [], [])


@pytest.mark.parametrize("failure", [OSError("the fork server has died"), BrokenPipeError()])
def test_workers_that_cannot_be_started_are_told_as_a_loss_and_not_as_the_scripts_fault(failure):
    _, told, ended = joining(failure)
    ((phase, outcome, failed_at),) = told
    assert phase is AgentPhase.FAILED
    assert outcome.cause == Cause.POD_LOST
    assert outcome.code == ExitCode.PREEMPTED
    assert outcome.message.startswith("the workers of round 3 could not be started")
    assert failed_at <= time.monotonic()
    assert ended, "those that could be started go, too"

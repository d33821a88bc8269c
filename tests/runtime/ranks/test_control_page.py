import math
import time

import pytest

from rekindle.api import Cause, Outcome, RestoredFrom
from rekindle.ranks.control_page import ControlPage


@pytest.fixture
def sides(tmp_path):
    return ControlPage(tmp_path, create=True), ControlPage(tmp_path)


def test_a_fresh_page_says_nothing(sides):
    agent, worker = sides
    assert not agent.attached
    assert not worker.stop_requested
    assert worker.seconds_left == math.inf
    assert agent.checkpoint("s3://b/r") is None
    progress = agent.progress()
    assert (progress.step, progress.total_steps, progress.loss) == (0, None, None)


def test_a_stop_request_reaches_the_worker_with_its_deadline(sides):
    agent, worker = sides
    agent.request_stop(time.monotonic() + 30)
    assert worker.stop_requested
    assert 25 < worker.seconds_left <= 30


def test_progress_reaches_the_agent(sides):
    agent, worker = sides
    worker.attach()
    worker.begin(step=10, samples=100, total_steps=50)
    worker.step_done(step=11, epoch=2, samples=110, productive=1.5, stall=0.25)
    worker.observe(loss=0.5, samples_per_second=20.0)
    worker.committed(step=11, at=1000.0)
    worker.write_metrics({"val/loss": 0.25})
    assert agent.attached
    progress = agent.progress()
    assert (progress.step, progress.total_steps, progress.epoch) == (11, 50, 2)
    assert (progress.samples, progress.round_steps) == (110, 1)
    assert (progress.productive_seconds, progress.stall_seconds) == (1.5, 0.25)
    assert (progress.loss, progress.metrics) == (0.5, {"val/loss": 0.25})
    assert agent.checkpoint("s3://b/r").step == 11


def test_the_fits_of_a_script_are_told_as_one_training(tmp_path):
    agent = ControlPage(tmp_path, create=True)
    first = ControlPage(tmp_path)
    first.begin(step=0, samples=0, total_steps=10)
    first.step_done(step=10, epoch=1, samples=40, productive=2.0, stall=0.5)
    first.fit_ended()
    # The second has another page object, as every call of fit has, and goes on from a checkpoint.
    second = ControlPage(tmp_path)
    second.begin(step=3, samples=12, total_steps=20, productive=1.0, stall=0.0)
    second.write_restored(RestoredFrom(step=3, source="s3://bucket/run/fits/2"))
    assert (agent.progress().step, agent.progress().total_steps) == (13, 30)
    assert agent.restored().step == 13
    second.step_done(step=4, epoch=0, samples=16, productive=1.5, stall=0.25)
    second.committed(step=4, at=7.0)
    progress = agent.progress()
    assert (progress.step, progress.samples, progress.round_steps) == (14, 56, 2)
    assert (progress.productive_seconds, progress.stall_seconds) == (3.5, 0.75)
    assert agent.checkpoint("").step == 14
    second.write_outcome(
        Outcome(cause=Cause.USER_ERROR, code=1, message="no", step=4, checkpoint=4, rank=0, at=1.0)
    )
    assert [(found.step, found.checkpoint) for found in agent.outcomes()] == [(14, 14)]


def test_documents_reach_the_agent(sides):
    agent, worker = sides
    worker.write_restored(RestoredFrom(step=4, source="scratch"))
    for rank, at in ((1, 20.0), (0, 30.0)):
        worker.write_outcome(Outcome(cause="UserError", code=1, message="x", rank=rank, at=at))
    assert agent.restored().step == 4
    assert [outcome.rank for outcome in agent.outcomes()] == [1, 0]


def test_no_agent_means_no_page(monkeypatch, tmp_path):
    monkeypatch.delenv("REKINDLE_RUN_DIR", raising=False)
    assert ControlPage.from_environment() is None
    ControlPage(tmp_path, create=True)
    monkeypatch.setenv("REKINDLE_RUN_DIR", str(tmp_path))
    assert ControlPage.from_environment() is not None


def test_a_round_is_stamped_as_it_comes_up(tmp_path):
    agent = ControlPage(tmp_path, create=True)
    worker = ControlPage(tmp_path)
    assert agent.stamps() == (None, None, None)
    assert agent.save_seconds is None
    worker.attach()
    worker.begin(step=3, samples=30, total_steps=None)
    grouped, restored, stepped = agent.stamps()
    assert grouped <= restored
    assert stepped is None
    for step in (4, 5):
        worker.step_done(step=step, epoch=0, samples=10 * step, productive=0.0, stall=0.0)
        stepped = stepped or agent.stamps()[2]
    assert agent.stamps() == (grouped, restored, stepped)
    assert restored <= stepped
    worker.committed(step=4, at=1.0, seconds=0.5)
    assert agent.save_seconds == 0.5


def test_a_pod_stays_unless_it_is_asked_to_stop_for_good(tmp_path):
    page = ControlPage(tmp_path, create=True)
    worker = ControlPage(tmp_path)
    assert worker.stays
    page.request_stop(1.0)
    assert not worker.stays
    page.request_stop(1.0, stays=True)
    assert worker.stays

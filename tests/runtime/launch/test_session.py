"""Which round a pod joins, what it reports, and how it lives without an operator."""

from types import SimpleNamespace

import pytest

from rekindle.api import (
    AgentPhase,
    Directive,
    DirectiveKind,
    Member,
    Outcome,
    RestoredFrom,
    Round,
    View,
)
from rekindle.launch.agent.rendezvous import place
from rekindle.launch.coordinator.session import PodSession, joinable
from rekindle.launch.coordinator.single_pod import SoloLink, solo_view
from rekindle.launch.pod.settings import from_environment
from rekindle.launch.pod.signals import Signals
from rekindle.ranks.control_page import ControlPage


def a_round(number: int, *nproc: int, port: int = 1000) -> Round:
    members = tuple(
        Member(pod=f"p{i}", uid=f"u{i}", address="127.0.0.1", store_port=port + i, nproc=size)
        for i, size in enumerate(nproc)
    )
    return Round(number=number, members=members, reason="test", formed_at=0.0)


class RecordingLink(SoloLink):
    """Keeps reports and hands over the views that a test makes."""

    def __init__(self):
        self.reports = []

    def poke(self):
        self.reports.append(self._snapshot())

    def say(self, **view):
        self._received(View(version=str(len(self.reports)), **view))


@pytest.fixture
def link():
    return RecordingLink()


@pytest.fixture
def session(link):
    settings = from_environment({"REKINDLE_POD_UID": "u1", "REKINDLE_PROC_PER_NODE": "1"})
    made = PodSession(settings, link, SimpleNamespace(port=4321), Signals())
    made.start()
    return made


def test_places_follow_the_order_of_members_with_unequal_slots():
    there = place(a_round(1, 2, 1, 4), "u2")
    assert (there.group_rank, there.group_size) == (2, 3)
    assert (there.first_rank, there.nproc, there.world_size) == (3, 4, 7)


def test_a_stranger_has_no_place():
    with pytest.raises(ValueError, match="no member with uid u9"):
        place(a_round(1, 1), "u9")


@pytest.mark.parametrize(
    ("offered", "ran", "expected"),
    [
        (None, None, False),
        (a_round(1, 1), None, False),
        (a_round(1, 1, 1), None, True),
        (a_round(2, 1, 1), a_round(1, 1, 1), True),
        (a_round(2, 1, 1), a_round(2, 1, 1), False),
        (a_round(2, 1, 1, port=2000), a_round(2, 1, 1), True),
        (a_round(1, 1, 1), a_round(2, 1, 1), False),
    ],
    ids=["none", "without us", "first", "newer", "the same", "same number, other key", "older"],
)
def test_a_pod_joins_only_what_it_has_not_run(offered, ran, expected):
    view = View(version="1", round=offered)
    assert (joinable(view, "u1", ran) is not None) == expected


def test_a_newer_round_without_the_pod_excludes_it(session, link):
    session.joined(a_round(1, 1, 1))
    link.say(round=a_round(1, 1, 1))
    assert not session.excluded()
    link.say(round=a_round(2, 1))
    assert session.excluded()


def test_an_order_to_save_is_about_one_round(session, link):
    session.joined(a_round(1, 1, 1))
    order = Directive(kind=DirectiveKind.SAVE, round=2, reason="test")
    link.say(round=a_round(1, 1, 1), directive=order)
    assert session.save() is None
    session.joined(a_round(2, 1, 1))
    assert session.save() == order
    assert session.stop() is None


def test_listeners_hear_of_changes_only(session, link):
    heard = []
    session.listen(lambda: heard.append(1))
    link._received(View(version="1"))
    link._received(View(version="1"))
    assert len(heard) == 1


def test_progress_is_told_once_the_workers_have_begun_and_kept_when_they_end(
    session, link, tmp_path
):
    page = ControlPage(tmp_path, create=True)
    session.joined(a_round(1, 1, 1))
    session.attach(page)
    assert session.report().progress is None
    page.begin(step=40, samples=400, total_steps=100)
    page.step_done(step=41, epoch=2, samples=410, productive=1.5, stall=0.5)
    page.committed(step=40, at=1.0)
    session.announce(AgentPhase.WAITING, Outcome(cause="Saved", code=75, message="test"))
    assert link.reports[-1].progress.step == 41
    assert link.reports[-1].checkpoint.step == 40
    session.joined(a_round(2, 1, 1))
    assert link.reports[-1].progress is None
    assert link.reports[-1].checkpoint.step == 40
    assert link.reports[-1].outcome is None


def test_a_notice_is_in_the_next_report(session):
    assert session.report().notice is None
    session._signals.notice(15)
    session._signals.notice(2)
    assert session.report().notice == "SIGTERM"
    assert 29 < session.report().notice_seconds <= 30.0
    assert session._signals.hurry


def test_alone_a_pod_gets_one_round_and_then_its_own_verdict(session):
    first = solo_view(session.report(), now=5.0)
    assert [m.uid for m in first.round.members] == ["u1"]
    assert first.round.members[0].store_port == 4321
    session.joined(first.round)
    assert solo_view(session.report(), now=6.0).directive is None
    for phase, code in [(AgentPhase.FAILED, 70), (AgentPhase.WAITING, 75), (AgentPhase.DONE, 0)]:
        session.announce(phase, Outcome(cause="x", code=code, message="test"))
        assert solo_view(session.report(), now=7.0).directive.code == code


def test_for_how_many_workers_it_is_work_holds_until_others_say_otherwise(session, link, tmp_path):
    """Who decides about the next round needs it when no workers run, and before they have begun."""

    def worlds():
        told = session.report()
        return told.least_world, told.useful_world

    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    assert worlds() == (None, None)
    page = ControlPage(first, create=True)
    session.joined(a_round(1, 1, 1))
    session.attach(page)
    page.use(2, least=1)
    assert worlds() == (None, None), "workers that have not begun may still refuse"
    page.write_restored(RestoredFrom(step=0, source="scratch"))
    assert worlds() == (1, 2)
    session.joined(a_round(2, 1, 1))
    session.attach(ControlPage(second, create=True))
    assert worlds() == (1, 2)
    ControlPage(second).write_restored(RestoredFrom(step=9, source="scratch"))
    assert worlds() == (None, None), "the script of this round knows of no limit"


def test_what_the_workers_wait_for_is_told_until_they_begin(session, tmp_path):
    page = ControlPage(tmp_path, create=True)
    session.joined(a_round(1, 1, 1))
    session.attach(page)
    assert session.report().waits is None
    page.write_waits("s3://b/r is in use by bob")
    assert session.report().waits == "s3://b/r is in use by bob"
    page.write_restored(RestoredFrom(step=0, source="scratch"))
    assert session.report().waits is None
    session.joined(a_round(2, 1, 1))
    assert session.report().waits is None

"""One run, one writer: who is let in, who waits, and what a person is told."""

import contextlib
import os
import threading
from dataclasses import replace

import pytest
import torch

import rekindle as rk
from rekindle.checkpoint import Store
from rekindle.checkpoint.holder import WATCH_SECONDS, Holder, started
from rekindle.checkpoint.objects.interface import Unreachable
from rekindle.errors.requirement import RequirementError
from rekindle.persistence import admission
from rekindle.persistence.admission import LOOK_SECONDS, Presence, RunAdmission
from rekindle.persistence.lease import SharedLease
from rekindle.ranks.control_page import ControlPage
from rekindle.ranks.distributed import World

SELF = Holder.here({})
NOBODY = 2**22 + 1
"""A number that no process has."""


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path / "run"))


class Clock:
    """Time that passes only where somebody waits; the test may do something meanwhile."""

    def __init__(self, meanwhile=lambda now: None):
        self.now, self.meanwhile = 0.0, meanwhile

    def __call__(self):
        return self.now

    def pause(self, seconds):
        self.now += seconds
        self.meanwhile(self.now)


def admit(store, own, clock=None, forced=False):
    clock = clock or Clock()
    gate = RunAdmission(store, own, forced=forced, now=clock)
    while gate.look():
        clock.pause(LOOK_SECONDS)
    return clock.now


ALIVE = replace(SELF, pid=os.getppid(), started=started(os.getppid()), who="ann on a1 (pid 7)")
DEAD = replace(SELF, pid=NOBODY)
ANOTHER_OF_ITS_NUMBER = replace(ALIVE, started=ALIVE.started + 1)
ELSEWHERE = replace(SELF, machine="another", who="bob on b2 (pid 8)")
MINE = replace(SELF, job="TrainingJob ml/digits")
THEIRS = replace(ALIVE, job="TrainingJob ml/digits")


@pytest.mark.parametrize(
    ("own", "other", "verdict"),
    [
        (SELF, SELF, "free"),
        (SELF, ALIVE, "held"),
        (SELF, DEAD, "free"),
        (SELF, ANOTHER_OF_ITS_NUMBER, "free"),
        (SELF, ELSEWHERE, "unknown"),
        (SELF, replace(ALIVE, machine=""), "unknown"),
        (replace(SELF, machine=""), replace(ALIVE, machine=""), "unknown"),
        # Attempts of one job take over, whatever the one before still does.
        (MINE, THEIRS, "free"),
        (MINE, replace(THEIRS, machine="another"), "free"),
        (MINE, ALIVE, "held"),
        (MINE, replace(THEIRS, job="TrainingJob ml/other"), "held"),
        (SELF, THEIRS, "held"),
    ],
)
def test_who_is_seen_to_hold_a_run(own, other, verdict):
    assert own.sees(other) == verdict


def test_the_names_of_jobs():
    assert Holder.here({}).job == ""
    # Two scripts that somebody starts on a laptop are not two attempts of one job.
    for unnamed in ("", "none", "local"):
        assert Holder.here({"TORCHELASTIC_RUN_ID": unnamed}).job == ""
    assert Holder.here({"TORCHELASTIC_RUN_ID": "a"}).job == "torchrun a"
    assert Holder.here({"TORCHELASTIC_RUN_ID": "a"}, "TrainingJob ml/d").job == "TrainingJob ml/d"


def test_a_lease_says_who_holds_it(store):
    assert store.held() is None
    store.acquire(owner="of an older release")
    assert store.held() is None
    lease = store.acquire(owner="a", holder=ALIVE)
    held = store.held()
    assert (held.holder, held.fence, held.ended) == (ALIVE, lease.fence, False)
    assert store.held().etag == lease.etag
    lease = store.renew(lease)
    assert store.held().etag == lease.etag != held.etag
    store.renew(lease, ended=True)
    assert store.held().ended


@pytest.mark.parametrize(
    "odd", [{"created": 1e30}, {"created": -1}, {"who": "\x1b[31m"}, {"pid": -1}, {"pid": "1"}]
)
def test_a_lease_that_makes_no_sense_holds_nobody_up(store, odd):
    lease = store.acquire(owner="a", holder=ALIVE)
    assert store.held() is not None
    store.renew(replace(lease, fields={**lease.fields, **odd}))
    assert store.held() is None
    assert admit(store, SELF) == 0.0


def test_a_script_is_told_who_holds_the_run_since_when_and_how_to_take_over(store):
    store.acquire(owner="a", holder=ALIVE)
    words = r"R15 file://.*run is in use by ann on a1 \(pid 7\) since 20\d\d-.*REKINDLE_TAKE_OVER=1"
    with pytest.raises(RequirementError, match=words):
        admit(store, SELF)
    assert admit(store, SELF, forced=True) == 0.0


@pytest.mark.parametrize("holder", [SELF, DEAD, ANOTHER_OF_ITS_NUMBER])
def test_whoever_is_gone_is_followed_at_once(store, holder):
    store.acquire(owner="a", holder=holder)
    assert admit(store, SELF) == 0.0


def test_a_holder_elsewhere_that_is_silent_is_taken_for_gone(store, caplog):
    store.acquire(owner="a", holder=ELSEWHERE)
    assert WATCH_SECONDS <= admit(store, SELF) < WATCH_SECONDS + 5.0
    assert "bob on b2 (pid 8) holds it; waiting to see whether that goes on" in caplog.text
    assert "bob on b2 (pid 8) has held it and has not been heard of" in caplog.text


def test_a_holder_elsewhere_that_renews_its_lease_is_there(store):
    lease = [store.acquire(owner="a", holder=ELSEWHERE)]

    def renew(now):
        if now % 20.0 == 0.0:
            lease[0] = store.renew(lease[0])

    with pytest.raises(RequirementError, match="R15 .* in use by bob on b2"):
        admit(store, SELF, Clock(renew))


def test_a_holder_that_gives_up_lets_the_next_one_in(store):
    lease = store.acquire(owner="a", holder=ELSEWHERE)

    def give_up(now):
        if now == 10.0:
            store.renew(lease, ended=True)

    assert admit(store, SELF, Clock(give_up)) == 10.0


def test_an_attempt_of_another_job_waits_for_a_while(store):
    lease = store.acquire(owner="a", holder=ALIVE)
    clock = Clock()
    with pytest.raises(RequirementError, match="R15 .* in use by ann"):
        admit(store, MINE, clock)
    assert clock.now > admission.PATIENCE

    def give_up(now):
        if now == 100.0:
            store.renew(lease, ended=True)

    assert admit(store, MINE, Clock(give_up)) == 100.0
    store.acquire(owner="b", holder=THEIRS)
    assert admit(store, MINE) == 0.0


def test_a_lease_is_renewed_while_it_is_held_and_given_up_at_the_end(store):
    lease = store.acquire(owner="a", holder=SELF)
    presence = Presence(store, lease, seconds=0.01)
    changed = [lease.etag]
    while len(changed) < 4:  # the test's own limit ends this
        if (etag := store.held().etag) != changed[-1]:
            changed.append(etag)
    presence.end()
    assert store.held().ended


def test_a_lease_that_was_taken_over_is_left_alone(store):
    lease = store.acquire(owner="a", holder=SELF)
    presence = Presence(store, lease, seconds=60.0)
    newer = store.acquire(owner="b", holder=ALIVE)
    presence.end()
    held = store.held()
    assert (held.fence, held.ended, held.holder) == (newer.fence, False, ALIVE)


def test_a_renewal_whose_answer_was_lost_is_gone_on_from(store, monkeypatch):
    presence = Presence(store, store.acquire(owner="a", holder=SELF), seconds=60.0)
    objects, plain = presence._store.objects, presence._store.objects.put

    def lost(*given, **named):
        plain(*given, **named)
        raise Unreachable("no answer")

    def away(*_given, **_named):
        raise Unreachable("no answer")

    monkeypatch.setattr(objects, "put", lost)
    assert presence._renewed()
    with monkeypatch.context() as down:
        down.setattr(objects, "head", away)
        assert presence._renewed(), "nobody can tell while the store is away"
    monkeypatch.setattr(objects, "put", plain)
    assert presence._renewed(), "the etag is not the one that is known"
    assert presence._renewed()
    store.acquire(owner="b", holder=ALIVE)
    store.objects.delete("lease/epoch-00000001.json")
    assert not presence._renewed()
    presence.end()


def test_the_names_of_operators_jobs(monkeypatch):
    monkeypatch.setenv("REKINDLE_JOB_NAME", "digits")
    monkeypatch.setenv("REKINDLE_JOB_NAMESPACE", "ml")
    assert admission.who().job == "TrainingJob ml/digits"
    monkeypatch.setenv("REKINDLE_JOB_UID", "c0ffee")
    ours = admission.who()
    assert ours.job == "TrainingJob ml/digits c0ffee"
    assert ours.who.startswith("TrainingJob ml/digits on ")
    elsewhere = replace(ours, machine="another")
    assert ours.sees(elsewhere) == "free"
    assert ours.sees(replace(elsewhere, job="TrainingJob ml/digits beef")) == "unknown"
    monkeypatch.delenv("REKINDLE_JOB_NAMESPACE")
    assert admission.who().job == ""


class Line(rk.Module):
    def __init__(self, fails):
        super().__init__()
        self.layer, self.fails = torch.nn.Linear(1, 1), fails

    def training_step(self, batch, batch_idx):
        if self.fails and batch_idx == 2:
            raise ValueError("the third batch is cursed")
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("job", ["", "digits"])
def test_a_run_that_is_over_shows_nobody_any_more(tmp_path, monkeypatch, fails, job):
    if job:
        monkeypatch.setenv("REKINDLE_JOB_NAME", job)
        monkeypatch.setenv("REKINDLE_JOB_NAMESPACE", "ml")
    trainer = rk.Trainer(max_steps=5, root=str(tmp_path / "run"), enable_progress_bar=False)
    with pytest.raises(ValueError, match="cursed") if fails else contextlib.nullcontext():
        trainer.fit(Line(fails), torch.utils.data.DataLoader(torch.ones(40, 1), batch_size=4))
    for thread in threading.enumerate():
        if thread.name == "rekindle-lease":
            thread.join(60)
            assert not thread.is_alive()
    # The next attempt of a job does not look; anybody else has to be let in.
    assert Store.open(str(tmp_path / "run")).held().ended is not (fails and bool(job))


class Waiting:
    """Rank 0 of a job's attempt that wants a run which somebody else holds."""

    def __init__(self, tmp_path, monkeypatch):
        monkeypatch.setenv("REKINDLE_JOB_NAME", "digits")
        monkeypatch.setenv("REKINDLE_JOB_NAMESPACE", "ml")
        self.page = ControlPage(tmp_path, create=True)
        flags = rk.Trainer(root=str(tmp_path / "run"), enable_progress_bar=False).flags
        world = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"), control=None)
        self.lease = SharedLease(world, flags, self.page)
        self.held = self.lease.store.acquire(owner="a", holder=ALIVE)
        self.told = []

    def take(self, then):
        """Take it; `then` happens when it has looked so often that others would be refused."""

        def pause(_seconds):
            self.told.append(self.page.waits())
            if len(self.told) == 3:
                then(self)

        self.lease.take(pause=pause)


def test_an_attempt_that_waits_says_for_whom_until_it_begins(tmp_path, monkeypatch):
    one = Waiting(tmp_path, monkeypatch)
    monkeypatch.setattr(admission, "PATIENCE", 0.0)
    one.take(lambda one: one.lease.store.renew(one.held, ended=True))
    assert len(set(one.told)) == 1
    assert one.told[0].startswith(f"file://{tmp_path}/run is in use by ann on a1 (pid 7) since 20")
    assert one.page.waits() is None
    assert one.lease.fence > one.held.fence
    one.lease.release()


def test_an_attempt_that_waits_goes_when_it_is_told_to(tmp_path, monkeypatch):
    one = Waiting(tmp_path, monkeypatch)
    with pytest.raises(SystemExit) as ended:
        one.take(lambda one: one.page.request_stop(1e9))
    assert ended.value.code == 75, "there is nothing that could be lost"
    assert one.lease.store.held().holder == ALIVE


def test_who_has_no_operator_that_could_tell_waits_for_a_while(monkeypatch):
    assert admission.patience(shown=True) == admission.PATIENCE
    monkeypatch.setenv("REKINDLE_JOB_NAME", "digits")
    monkeypatch.setenv("REKINDLE_JOB_NAMESPACE", "ml")
    assert admission.patience(shown=False) == admission.PATIENCE
    assert admission.patience(shown=True) > 1e9

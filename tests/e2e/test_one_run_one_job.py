"""One job writes a run's checkpoints: another one waits its turn, for a script as well."""

import pytest

from rekindle.checkpoint.holder import Holder
from rekindle.data.ledger import audit
from rekindle.persistence.admission import Presence

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

FOR_EVER = ["--steps=1000000", "--delay=0.1"]


def in_use(status):
    """The condition that says who holds the run."""
    held = [c for c in status.get("conditions", ()) if c["reason"] == "CheckpointInUse"]
    return next((c for c in held if c["status"] == "True"), None)


def test_a_second_job_waits_for_the_first_and_goes_on_from_its_checkpoint(submit):
    first = submit("first", *FOR_EVER, replicas=1)
    first.wait(lambda s: (s.get("checkpoint") or {}).get("step", 0) >= 10, "a checkpoint")
    uri = first.get()["spec"]["checkpoint"]["uri"]
    second = submit("second", *FOR_EVER, replicas=1, checkpoint={"uri": uri})
    told = second.wait(in_use, "the first one to be named")
    assert f"{first.namespace}/first" in told["message"]
    assert f"{first.namespace}/first" in second.why()
    assert second.pods() == []
    first.wait_step(first.status["progress"]["step"] + 10)
    assert first.status["restarts"]["total"] == 0
    assert first.status["incidents"] == []

    at = first.status["checkpoint"]["step"]
    first.delete()
    second.wait(lambda s: (s.get("checkpoint") or {}).get("step", 0) > at, "a commit of its own")
    status = second.status
    assert in_use(status) is None
    assert status["incidents"] == []
    store = second.store()
    proof = audit(store.read(store.commits()[0]).meta)
    assert (proof.samples_repeated, proof.samples_missed) == (0, 0)
    assert proof.digest_ok


def test_a_run_that_a_script_holds_is_waited_for_and_the_script_is_named(submit):
    job = submit("held", *FOR_EVER, replicas=2, suspend=True)
    store = job.store()
    by_hand = Presence(store, store.acquire(owner="by hand", holder=Holder.here({})))
    try:
        job.patch({"suspend": False})
        told = job.wait(in_use, "the script to be named")
        assert Holder.here({}).who in told["message"]
        assert Holder.here({}).who in job.why()
        assert len(job.pods()) == 2
    finally:
        by_hand.end()
    job.wait_step(5)
    status = job.wait(lambda s: s if in_use(s) is None else None, "nobody to be waited for")
    assert status["restarts"]["total"] == 0
    assert status["incidents"] == []

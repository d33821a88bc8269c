"""Loss follows loss, faster than pods can come: training goes on, and every sample counts once."""

import pytest

from rekindle.data.ledger import audit

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

LOSSES = 10


def test_spares_take_over_at_once_and_ten_kills_in_a_row_repeat_no_sample(submit, site):
    job = submit(
        "spared", "--steps=100000", "--delay=0.1", "--notice-at=15",
        replicas=2, elastic={"spares": 1}, notice_file="/told/notice", grace=60,
    )  # fmt: skip
    spare_takes_over_from_who_finds_a_notice_in_a_file(job)
    spare_takes_over_from_who_is_killed(job, site)
    victims = []
    for number in range(LOSSES):
        members = job.members()
        victims.append(members[number % len(members)])
        site.kill_pod(job.namespace, victims[-1])
        job.incident(victims[-1])
    status = job.whole()
    # Collateral are those, too, whose workers failed for it: they go on, and are lost another time.
    lost = [victim for incident in status["incidents"] for victim in incident["victims"]]
    assert all(lost.count(victim) == 1 for victim in victims), status["incidents"]
    assert status["restarts"]["user"] == 0
    assert status["restarts"]["infrastructure"] <= LOSSES + 1
    job.wait(lambda s: s["checkpoint"]["step"] > status["progress"]["step"], "one more commit")
    store = job.store()
    proof = audit(store.read(store.commits()[0]).meta)
    assert (proof.samples_repeated, proof.samples_missed) == (0, 0)
    assert proof.digest_ok


def spare_takes_over_from_who_finds_a_notice_in_a_file(job):
    job.whole()
    (victim,) = job.wait(newest, "the notice")["victims"]
    incident = job.measured(victim)
    assert incident["cause"] == "Preempted"
    assert incident["stepsLost"] == 0
    assert incident["recoveredInRound"] == incident["round"] + 1
    assert "rack 7 moves" in incident["evidence"]


def newest(status):
    return next(reversed(status.get("incidents", ())), None)


def spare_takes_over_from_who_is_killed(job, site):
    job.whole()
    before = job.members()
    spare = next(p.metadata.name for p in job.pods() if ready(p) and p.metadata.name not in before)
    site.kill_pod(job.namespace, before[1])
    incident = job.measured(before[1])
    assert {entry["pod"]: entry["source"] for entry in incident["restored"]} == {
        before[0]: "memory",
        spare: f"memory of {before[0]}",
    }
    assert incident["recoveredInRound"] == incident["round"] + 1
    assert job.members() == [before[0], spare]


def ready(pod):
    return pod.status.phase == "Running" and pod.metadata.deletion_timestamp is None

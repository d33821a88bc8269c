"""A program that is not ours is lost, preempted, scaled and suspended; its status never lies.

Its status is read ten times a second all the while, and each one has to be true of a program whose
steps nobody counts.
"""

import threading

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


class Watch:
    """Every status of a job that a reader could have seen."""

    def __init__(self, job):
        self.job = job
        self.seen = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join(30)

    def _look(self):
        while not self._over.wait(0.1):
            status = self.job.status
            if status and (not self.seen or status != self.seen[-1]):
                self.seen.append(status)


def true_of_unknown_steps(status):
    """What must hold of each status, whatever happens."""
    phase, message = status["phase"], status["message"]
    assert "progress" not in status
    ready = next(c for c in status["conditions"] if c["type"] == "Ready")
    assert (ready["status"] == "True") == (phase == "Running")
    if phase == "Running" and message.startswith("training on"):
        assert "steps unknown" in message
        assert status["goodput"]["percent"] == "unknown"
    open_ones = [i for i in status["incidents"] if "secondsLost" not in i]
    assert bool(open_ones) == (phase == "Recovering"), message
    for incident in status["incidents"]:
        assert not {"step", "resumedFrom"} & set(incident)
        assert "stepsLost" not in incident or incident["stepsLost"] == 0
    lost = status.get("goodput", {}).get("lost", {})
    assert all(seconds >= 0 for seconds in lost.values())


def test_a_plain_ddp_program_is_lost_preempted_scaled_and_suspended(submit, site):
    job = submit(
        "plain",
        container={"args": ["/scripts/plain_ddp.py", "--delay=0.05"]},
        replicas=2,
        elastic={"minReplicas": 2},
    )
    with Watch(job) as watch:
        status = job.whole()
        assert status["message"] == "training on 2 pods, 2 workers; steps unknown"

        victim = job.members()[1]
        site.kill_pod(job.namespace, victim)
        incident = job.measured(victim)
        assert incident["cause"] == "PodLost"
        assert incident["secondsLost"] > 0
        assert set(incident["recovery"]) >= {"detect", "restart", "firstStep", "total"}
        job.whole(besides=victim)

        victim = job.members()[0]
        job.delete_pod(victim)
        assert job.incident(victim)["cause"] == "Preempted"
        job.whole(besides=victim)

        job.patch({"replicas": 3})
        assert job.whole()["message"].startswith("training on 3 pods, 3 workers")
        job.patch({"replicas": 2})
        before = job.whole()

        job.patch({"suspend": True})
        job.wait_phase("Suspended")
        job.wait(lambda _: not job.pods(), "its pods to go")
        assert "steps unknown" in job.why()
        job.patch({"suspend": False, "replicas": 1, "elastic": {"minReplicas": 1}})
        end = job.wait_phase("Succeeded")
    assert end["restarts"] == before["restarts"]
    assert end["restarts"] == {"user": 0, "infrastructure": 1, "preemption": 1, "total": 2}
    seen = [*watch.seen, end]
    for status in seen:
        true_of_unknown_steps(status)
    phases = {status["phase"] for status in seen}
    assert {"Starting", "Running", "Recovering", "Suspended", "Succeeded"} <= phases


def test_a_command_that_ends_without_a_round_is_no_success(submit):
    """Something has taken the launcher's place, a shell that swallows its failure for example."""
    job = submit(
        "stranger",
        container={"command": ["sh", "-c", "exit 0; exec python -m rekindle.launch x.py"]},
        replicas=2,
    )
    failed = job.failed()
    assert failed["reason"] == "StartFailed"
    assert "was in no round" in failed["message"]
    assert job.status["round"] == 0

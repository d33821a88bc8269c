"""Programs that know nothing of Rekindle lose a pod, are told to go, grow, shrink and pause.

One job per kind of program; all of them live through the same events at once. Beside that somebody
looks at each status that the API server ever had: what it says has to be true at every moment.
"""

import contextlib
import re
import threading
from typing import Any

import pytest
from kubernetes import watch
from urllib3.exceptions import HTTPError

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

PLAIN = "no-launcher"
LONG = ["--steps=1000000", "--delay=0.05"]
KINDS: dict[str, dict[str, Any]] = {
    "ddp": {"args": ["/scripts/ddp.py", *LONG]},
    "torchrun": {
        "command": ["torchrun", "--nnodes=1:3", "--nproc_per_node=1", "--rdzv_backend=c10d"],
        "args": ["/scripts/ddp.py", *LONG],
    },
    PLAIN: {
        "command": ["python", "/scripts/ddp.py"],
        "args": LONG,
    },
    "accelerate": {"command": ["accelerate", "launch", "/scripts/accelerated.py"], "args": LONG},
    "lightning": {"command": ["python", "/scripts/lit.py"], "args": LONG},
}
"""The container that trains, by the kind of its program."""
STEPS_KNOWN = {"lightning"}
"""Kinds of which somebody tells the steps: here the bridge for Lightning's scripts."""
FIXED = {"lightning"}
"""Kinds that train on one number of pods only: Lightning fixes the batch per process."""


def untrue(status: dict[str, Any]) -> list[str]:
    """What a status says that cannot be so, whatever has happened."""
    phase, message = status["phase"], status["message"]
    conditions = {c["type"]: c for c in status["conditions"]}
    restarts = status["restarts"]
    found = []
    if phase == "Failed":
        found.append(f"failed: {message}")
    if (conditions["Ready"]["status"] == "True") != (phase == "Running"):
        found.append(f"phase {phase}, but Ready={conditions['Ready']['status']}")
    if phase == "Running" and not message.startswith("training"):
        found.append(f"phase Running, but: {message}")
    if any(not c["message"] or not c["reason"] for c in conditions.values()):
        found.append(f"a condition without words: {conditions}")
    still_open = [i for i in status["incidents"] if "secondsLost" not in i]
    if bool(still_open) != (phase == "Recovering"):
        found.append(f"phase {phase}, but open incidents: {still_open}")
    if restarts["user"]:
        found.append(f"the program is blamed: {status['incidents']}")
    if re.search(r"\bNone\b|\bnan\b", f"{message} {status.get('ready', '')}"):
        found.append(f"a figure that is none: {message}")
    return found


class Witness:
    """Sees every status of a job, in a thread of its own."""

    def __init__(self, job: Any) -> None:
        self._job = job
        self._watch = watch.Watch()
        self.untrue: list[str] = []
        self.seen = 0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        job = self._job
        stream = self._watch.stream(
            job.site.jobs.list_namespaced_custom_object,
            "rekindle.dev", "v1alpha1", job.namespace, "trainingjobs",
            field_selector=f"metadata.name={job.name}",
        )  # fmt: skip
        # The stream ends with the test, in whichever way.
        with contextlib.suppress(HTTPError):
            self._read(stream)

    def _read(self, stream: Any) -> None:
        for event in stream:
            status = event["object"].get("status") or {}
            if "conditions" in status:
                self.seen += 1
                self.untrue.extend(untrue(status))

    def stop(self) -> None:
        self._watch.stop()


@pytest.fixture(scope="module")
def jobs(site, submit_for_all, wild_scripts):
    """All kinds, each training on two pods."""
    kinds = dict(KINDS)
    if site.plain_image:
        kinds[PLAIN] = KINDS[PLAIN] | {"image": site.plain_image}
    else:
        del kinds[PLAIN]  # this cluster was given no image without Rekindle
    made = {
        kind: submit_for_all(
            kind,
            container=container,
            grace=4,
            replicas=2,
            elastic={"minReplicas": 2 if kind in FIXED else 1, "maxReplicas": 3},
            **({"launcher": {"inject": True, "image": site.image}} if kind == PLAIN else {}),
        )
        for kind, container in kinds.items()
    }
    witnesses = {kind: Witness(job) for kind, job in made.items()}
    yield made
    for witness in witnesses.values():
        witness.stop()
    assert all(witness.seen > 5 for witness in witnesses.values())
    assert {kind: w.untrue for kind, w in witnesses.items() if w.untrue} == {}


def test_they_train(jobs):
    for kind, job in jobs.items():
        status = job.whole()
        assert status["restarts"]["total"] == 0, kind
        if kind not in STEPS_KNOWN:
            assert "step" not in (status.get("progress") or {}), kind
            assert "steps unknown" in status["message"], kind
            assert status["goodput"]["percent"] == "unknown", kind


def test_a_killed_pod_is_one_incident_of_the_infrastructure(jobs):
    for kind, job in jobs.items():
        job.site.kill_pod(job.namespace, f"{kind}-1")
    for kind, job in jobs.items():
        incident = job.incident(f"{kind}-1")
        assert incident["cause"] in {"PodLost", "Preempted"}, kind  # a kubelet may send SIGTERM
        assert incident["secondsLost"] > 0, kind
        if kind not in STEPS_KNOWN:
            assert "stepsLost" not in incident, kind
        assert job.whole(besides=f"{kind}-1")["restarts"]["total"] == 1, kind
    recovery = jobs["ddp"].measured("ddp-1")["recovery"]
    assert set(recovery) >= {"detect", "restart", "firstStep", "total"}


def test_a_pod_that_is_told_to_go_is_a_preemption(jobs):
    for kind, job in jobs.items():
        job.delete_pod(f"{kind}-0")
    for kind, job in jobs.items():
        incident = job.incident(f"{kind}-0")
        assert incident["cause"] == "Preempted", kind
        status = job.whole(besides=f"{kind}-0")
        assert (status["restarts"]["preemption"], status["restarts"]["total"]) == (1, 2), kind


def test_scaling_up_and_down_is_no_incident(jobs):
    elastic = {kind: job for kind, job in jobs.items() if kind not in FIXED}
    for replicas in (3, 2):
        for job in elastic.values():
            job.patch({"replicas": replicas})
        for kind, job in elastic.items():
            status = job.whole()
            assert status["ready"] == f"{replicas}/{replicas}", kind
            assert status["restarts"]["total"] == 2, (kind, status["incidents"])


def test_suspending_ends_the_pods_and_going_on_begins_anew(jobs, eventually):
    for job in jobs.values():
        job.patch({"suspend": True})
    for kind, job in jobs.items():
        job.wait_phase("Suspended")
        eventually(lambda job=job: not job.pods(), f"the pods of {kind} to go")
    for job in jobs.values():
        job.patch({"suspend": False})
    for kind, job in jobs.items():
        status = job.whole()
        assert status["restarts"]["total"] == 2, (kind, status["incidents"])
        assert "None" not in job.why(), kind

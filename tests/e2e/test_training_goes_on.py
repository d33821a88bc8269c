"""Pods, nodes and the operator go away in the middle of training; the job finishes and says why."""

import os
import random
import urllib.request
from typing import Any

import pytest
import torch

from rekindle.checkpoint import Store
from rekindle.data.ledger import audit

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

STEPS = 60


def final_commit(job) -> tuple[Store, Any]:
    """The newest commit of a job."""
    store = job.store()
    return store, store.read(store.commits()[0])


def scrape(url: str) -> dict[str, float]:
    """Samples of a metrics page by name and labels."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def assert_exact(job, until: int | None = STEPS) -> None:
    """The surviving weights have seen every sample once, and training went to its end."""
    _, commit = final_commit(job)
    assert until is None or commit.ref.step == until
    proof = audit(commit.meta)
    assert (proof.samples_repeated, proof.samples_missed) == (0, 0)
    assert proof.digest_ok


def weights(job) -> dict[str, Any]:
    store, commit = final_commit(job)
    model = store.load(commit).state["model"]
    return {name: (tensor.dtype, tensor.numpy().tobytes()) for name, tensor in model.items()}


def test_a_preempted_pod_costs_no_step_and_the_weights_are_those_of_an_undisturbed_run(
    submit, site
):
    """With minReplicas = replicas the world size stays, so the weights must be equal to the bit."""
    # Late enough for a save, early enough for another pod to come before the training is over.
    moment = random.Random(os.environ.get("REKINDLE_E2E_SEED")).randrange(5, 20)
    print(f"preempted at about step {moment}")
    both = {"replicas": 2, "elastic": {"minReplicas": 2}}
    disturbed = submit("disturbed", f"--steps={STEPS}", "--delay=0.25", **both)
    disturbed.wait_step(moment)
    disturbed.delete_pod("disturbed-0")
    status = disturbed.wait_phase("Succeeded")
    undisturbed = submit("undisturbed", f"--steps={STEPS}", **both)
    undisturbed.wait_phase("Succeeded")

    (incident,) = status["incidents"]
    assert incident["cause"] == "Preempted"
    assert incident["victims"] == ["disturbed-0"]
    assert incident["stepsLost"] == 0
    assert status["restarts"]["preemption"] == 1
    assert_exact(disturbed)
    assert weights(disturbed) == weights(undisturbed)
    assert "disturbed-0" in disturbed.why()


def test_a_sweep_that_loses_pods_in_several_fits_comes_to_what_it_would_have(submit, site):
    """A script of three fits; each has its own checkpoints, below those of the first one."""
    both = {"replicas": 2, "elastic": {"minReplicas": 2}}
    plain, disturbed = (
        submit(name, container={"args": ["/scripts/sweep.py", f"--delay={delay}"]}, **both)
        for name, delay in (("plain-sweep", 0.0), ("sweep", 0.25))
    )
    for index, step in ((0, 12), (1, 42), (0, 72)):
        disturbed.wait_step(step)
        victim = disturbed.members()[index]
        site.kill_pod(disturbed.namespace, victim)
        disturbed.incident(victim)
    status = disturbed.wait_phase("Succeeded")
    plain.wait_phase("Succeeded")
    assert status["restarts"]["user"] == 0
    for place in ("", "/fits/2", "/fits/3"):
        ends = [job.store(place) for job in (plain, disturbed)]
        commits = [store.read(store.commits()[0]) for store in ends]
        assert [commit.meta["finished"] for commit in commits] == [True, True]
        models = [s.load(c).state["model"] for s, c in zip(ends, commits, strict=True)]
        assert all(torch.equal(models[0][name], models[1][name]) for name in models[0]), place


@pytest.mark.parametrize("victim", [0, 1])
def test_a_pod_killed_without_notice_is_replaced_and_named(submit, site, victim):
    job = submit(f"killed-{victim}", f"--steps={STEPS}", "--delay=0.05", replicas=2)
    job.wait(lambda s: (s.get("checkpoint") or {}).get("step", 0) >= 10, "a checkpoint")
    site.kill_pod(job.namespace, f"killed-{victim}-{victim}")
    status = job.wait_phase("Succeeded")

    incident = status["incidents"][0]
    # A kubelet sends SIGTERM even for a forced deletion; whose word comes first decides the name.
    causes = {"PodLost"} if site.embedded else {"PodLost", "Preempted"}
    assert incident["cause"] in causes
    assert incident["victims"] == [f"killed-{victim}-{victim}"]
    assert incident["resumedFrom"] >= 10
    assert incident["stepsLost"] <= 2 * 10
    assert status["restarts"]["total"] >= 1
    assert status["restarts"]["user"] == 0
    assert_exact(job)
    assert f"killed-{victim}-{victim}" in job.why()


def test_training_outlives_the_operator_and_a_pod_that_goes_meanwhile_still_saves(submit, site):
    job = submit("alone", f"--steps={STEPS}", "--delay=0.1", replicas=2)
    job.wait_step(5)
    before = {pod.metadata.uid for pod in job.pods()}
    site.operator.kill()
    job.delete_pod("alone-1")  # nobody is there to tell the others but the pod itself
    site.operator.start()
    status = job.wait_phase("Succeeded")

    causes = {i["cause"]: i for i in status["incidents"]}
    assert set(causes) == {"Preempted", "OperatorRestarted"}, job.diagnosis()
    assert causes["Preempted"]["stepsLost"] == 0
    assert status["restarts"]["total"] == 1
    assert "operator" in job.why()
    after = {pod.metadata.name: pod.metadata.uid for pod in job.pods()}
    assert after["alone-0"] in before, "the pod that stayed was not restarted"
    assert_exact(job)


def test_prometheus_sees_pods_and_operator_and_an_operator_that_returns_disturbs_nothing(
    submit, site
):
    job = submit("quiet", f"--steps={STEPS}", "--delay=0.1", replicas=2)
    job.wait_step(12)
    pages = []
    for pod in job.pods():
        ports = {p.name: p.container_port for p in pod.spec.containers[0].ports}
        pages.append(scrape(f"http://{pod.status.pod_ip}:{ports['rkd-metrics']}/metrics"))
    assert all(page["rekindle_step"] >= 10 for page in pages)
    assert all(page["rekindle_step_seconds_count"] >= 5 for page in pages)
    assert any(page.get("rekindle_last_committed_step", 0) >= 10 for page in pages)
    assert scrape(f"{site.operator.health}/metrics")['rekindle_jobs{phase="Running"}'] >= 1
    before = {pod.metadata.uid for pod in job.pods()}
    site.operator.kill()
    site.operator.start()
    job.wait_step(20)
    assert {pod.metadata.uid for pod in job.pods()} == before
    status = job.wait_phase("Succeeded")
    assert status["round"] == 1
    assert [i["cause"] for i in status["incidents"]] == ["OperatorRestarted"]
    assert status["restarts"]["total"] == 0
    assert_exact(job)


def test_kubectl_scale_changes_the_number_of_pods_at_an_agreed_step(submit, site):
    """README's script: a batch of 16 on one pod is one micro-batch, which two then share."""
    scaling = {"replicas": 1, "elastic": {"minReplicas": 1}}
    job = submit("scaled", "--steps=100000", "--delay=0.05", "--batch=16", **scaling)
    job.wait_step(3)
    grown = site.kubectl("scale", "tj/scaled", "--replicas=2", "-n", job.namespace)
    assert grown.returncode == 0, grown.stderr
    status = job.wait(lambda s: s if s["round"] == 2 else None, "a round of two pods")
    job.wait_step(status["progress"]["step"] + 60)  # far beyond what the first round has done
    shrunk = site.kubectl("scale", "tj/scaled", "--replicas=1", "-n", job.namespace)
    assert shrunk.returncode == 0, shrunk.stderr
    status = job.wait(
        lambda s: s if s["round"] == 3 and s["phase"] == "Running" else None, "one pod to train"
    )
    assert status["incidents"] == []
    # By what it holds, not by its step: the status may tell of one of an earlier round by then.
    job.wait(
        lambda s: len(final_commit(job)[1].meta["history"]) > 2, "a checkpoint of the third round"
    )
    assert_exact(job, until=None)
    history = final_commit(job)[1].meta["history"]
    assert [(h["world_size"], h["G"], h["m"]) for h in history] == [
        (1, 16, 16),
        (2, 16, 8),
        (1, 16, 16),
    ]
    (unused,) = [c for c in status["conditions"] if c["type"] == "ReplicasUnused"]
    assert unused["status"] == "False"


def test_a_suspended_job_saves_and_goes_on_where_it_was(submit, site):
    job = submit("paused", f"--steps={STEPS}", "--delay=0.05", replicas=1)
    job.wait_step(5)
    job.patch({"suspend": True})
    job.wait(lambda s: s["phase"] == "Suspended" and s["replicas"] == 0, "no pods")
    at = job.status["progress"]["step"]
    job.patch({"suspend": False})
    status = job.wait_phase("Succeeded")
    assert status["incidents"] == []
    _, commit = final_commit(job)
    assert commit.ref.step == STEPS
    assert at >= 5
    assert_exact(job)


def test_a_deleted_job_takes_everything_with_it(submit, site, eventually):
    job = submit("short-lived", "--steps=100000", "--delay=0.05", replicas=1)
    job.wait_step(2)
    job.delete()

    def left() -> list[Any]:
        selector = "rekindle.dev/job=short-lived"
        core = site.core
        return [
            *core.list_namespaced_pod(job.namespace, label_selector=selector).items,
            *core.list_namespaced_secret(job.namespace, label_selector=selector).items,
            *core.list_namespaced_service(job.namespace, label_selector=selector).items,
        ]

    eventually(lambda: not left(), "pods, secret and service to go")

"""What a lost or leaving pod costs, and that its incident says so: where state came from, and when.

Most scenarios disturb one job that trains all the while, one after the other: each waits until all
of its pods train, and looks at the incident that it has made itself.
"""

import json
import urllib.request
from base64 import b64decode

import pytest

from rekindle.data.ledger import audit

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

KARPENTER = "karpenter.sh/disrupted"


@pytest.fixture(scope="module")
def living(submit_for_all):
    return submit_for_all("living", "--steps=1000000", "--delay=0.1", replicas=3, grace=120)


def assert_adds_up(incident):
    """The phases of a recovery are its whole, which is no more than what the incident has cost."""
    phases = dict(incident["recovery"])
    total = phases.pop("total")
    assert set(phases) == {"detect", "decide", "restart", "restore", "firstStep"}
    assert sum(phases.values()) == pytest.approx(total, rel=0.05)
    assert 0 < total <= incident["secondsLost"] + 1.0


def sources(incident):
    return {entry["pod"]: entry["source"] for entry in incident["restored"]}


def test_after_a_kill_the_others_go_on_from_memory(living, site):
    living.whole()
    victim = living.members()[0]
    site.kill_pod(living.namespace, victim)
    incident = living.incident(victim)
    assert incident["cause"] == "PodLost"
    assert incident["stepsLost"] <= 10
    incident = living.measured(victim)
    assert len(sources(incident)) == 2
    assert all(source.startswith("memory") for source in sources(incident).values())
    assert_adds_up(incident)
    assert victim in living.why()


def assert_handed_over(job, victim, before):
    """The very next round has another pod in the victim's place, and no step was lost."""
    incident = job.measured(victim)
    assert incident["cause"] == "Preempted"
    assert incident["stepsLost"] == 0
    assert incident["recoveredInRound"] == incident["round"] + 1
    after = job.members()
    assert len(after) == 3
    (fresh,) = set(after) - set(before)
    assert after.index(fresh) == before.index(victim)
    assert sources(incident)[fresh].startswith("memory of "), incident
    assert_adds_up(incident)
    return fresh


def test_a_deleted_pod_trains_on_until_another_one_has_taken_its_rank(living):
    living.whole()
    before = living.members()
    living.delete_pod(before[1])
    assert_handed_over(living, before[1], before)


def test_a_node_that_goes_is_left_for_another_one_before_it_does(living, site):
    if len(site.core.list_node().items) < 2:
        pytest.skip("this cluster has one node: nobody can leave it for another one")
    living.whole()
    before = living.members()
    node = living.node_of(before[1])
    there = {pod for pod in before if living.node_of(pod) == node}
    taint = {"key": KARPENTER, "effect": "NoSchedule"}
    site.core.patch_node(node, {"spec": {"taints": [taint]}})
    try:
        incident = living.measured(before[1])
        assert incident["cause"] == "Preempted"
        assert incident["stepsLost"] == 0
        assert "Karpenter" in incident["evidence"]
        assert set(incident["victims"]) == there
        living.whole()
        after = living.members()
        assert len(after) == 3
        assert node not in {living.node_of(pod) for pod in after}
        assert "Karpenter" in living.why()
    finally:
        site.core.patch_node(node, {"spec": {"taints": None}})


def test_a_platform_says_by_an_http_call_that_a_pod_has_to_go(living, site):
    living.whole()
    before = living.members()
    pod = site.core.read_namespaced_pod(before[2], living.namespace)
    secret = site.core.read_namespaced_secret(f"{living.name}-rekindle", living.namespace)
    token = b64decode(secret.data["token"]).decode()
    port = next(p.container_port for p in pod.spec.containers[0].ports if p.name == "rkd-metrics")
    call = urllib.request.Request(
        f"http://{pod.status.pod_ip}:{port}/v1/notice",
        data=json.dumps({"seconds": 180, "reason": "rack 7 moves"}).encode(),
        headers={"Authorization": f"Bearer {token}"},
        method="POST",
    )
    with urllib.request.urlopen(call, timeout=60) as answer:
        assert answer.status < 300
    assert_handed_over(living, before[2], before)
    assert "rack 7 moves" in living.incident(before[2])["evidence"]


def test_a_dead_node_with_a_pod_that_cannot_end_holds_up_nobody(living, site):
    if site.embedded is None:
        pytest.skip("only machines of the embedded cluster can be taken away")
    living.whole()
    before = living.members()
    node = living.node_of(before[0])
    site.embedded.fail(node)
    living.delete_pod(before[0])
    incident = living.incident(before[0])
    assert incident["cause"] in {"NodeLost", "Preempted", "PodLost"}
    site.embedded.add_node()
    living.whole(besides=before[0])
    assert before[0] not in {pod.metadata.name for pod in living.pods()}
    assert before[0] in living.why()


def test_a_second_pod_and_the_operator_die_during_the_recovery(living, site):
    before = living.whole()
    first, second, stays = living.members()
    site.kill_pod(living.namespace, first)
    living.incident(first, over=False)
    site.kill_pod(living.namespace, second)
    site.operator.kill()
    site.operator.start()
    # A kubelet sends SIGTERM even for a forced deletion; whose word comes first decides the name.
    causes = {"PodLost"} if site.embedded else {"PodLost", "Preempted"}
    assert living.incident(first)["cause"] in causes
    status = living.whole()
    assert stays in living.members()
    lost = [victim for incident in status["incidents"] for victim in incident["victims"]]
    collateral = [pod for incident in status["incidents"] for pod in incident["collateral"]]
    told = json.dumps(status["incidents"], indent=1)
    assert lost.count(first) == 1, told
    # Part of the first loss, or one of its own, also when its workers had failed for the first.
    told_once = lost.count(second) == 1 or (second in collateral and second not in lost)
    assert told_once, told
    assert 1 <= status["restarts"]["total"] - before["restarts"]["total"] <= 2


def test_what_all_of_that_has_left_is_every_sample_once(living):
    status = living.whole()
    living.wait_step(status["progress"]["step"] + 20)
    store = living.store()
    proof = audit(store.read(store.commits()[0]).meta)
    assert (proof.samples_repeated, proof.samples_missed) == (0, 0)
    assert proof.digest_ok
    assert status["restarts"]["user"] == 0

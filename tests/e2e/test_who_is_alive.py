"""Who answers is alive, whatever is said of its node; who says nothing any more is left in seconds.

One job trains all the while. Things are away for as long as the embedded cluster needs to notice:
a node of it counts as gone after four seconds. REKINDLE_E2E_AWAY names other seconds, 120 for
example, and then the cluster waits as long for a node as a real one does.
"""

import time
import urllib.request

import pytest

from rekindle.data.ledger import audit

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

UNREACHABLE = "node.kubernetes.io/unreachable"


@pytest.fixture(scope="module")
def living(submit_for_all):
    return submit_for_all("alive", "--steps=1000000", "--delay=0.1", replicas=3, grace=60)


@pytest.fixture
def embedded(site):
    if site.embedded is None:
        pytest.skip("only machines of the embedded cluster, and its API server, can be stopped")
    return site.embedded


@pytest.fixture
def trains_on(living, away, eventually):
    """Waits until the workers have trained on for so long; asks a pod and not the API server."""
    living.whole()
    pod = living.site.core.read_namespaced_pod(living.members()[0], living.namespace)
    port = next(p.container_port for p in pod.spec.containers[0].ports if p.name == "rkd-metrics")
    page = f"http://{pod.status.pod_ip}:{port}/metrics"

    def step():
        with urllib.request.urlopen(page, timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        found = (float(line.split()[1]) for line in lines if line.startswith("rekindle_step "))
        return next(found, 0.0)

    def wait():
        ends, last = time.monotonic() + away, step() + 20

        def trained():
            return time.monotonic() >= ends and step() >= last

        eventually(trained, "the workers to train on", seconds=away + 60)

    return wait


def told(job, node):
    taints = job.site.core.read_node(node).spec.taints or ()
    return UNREACHABLE in {taint.key for taint in taints}


def losses(status):
    return [i for i in status.get("incidents", ()) if i["cause"] != "OperatorRestarted"]


def assert_nothing_happened(job, before):
    """The same round trains on, no budget has paid, and there is no incident of it."""
    job.wait_step(before["progress"]["step"] + 20)
    after = job.whole()
    assert (after["round"], losses(after)) == (before["round"], losses(before))
    assert after["restarts"] == before["restarts"]


def test_a_kubelet_that_is_away_costs_its_pods_nothing(
    living, embedded, trains_on, away, eventually
):
    before = living.whole()
    node = living.node_of(living.members()[1])
    embedded.stop_kubelet(node)
    try:
        if away > 4:
            eventually(lambda: told(living, node), "its node to count as unreachable")
        trains_on()
    finally:
        embedded.resume(node)
    eventually(lambda: not told(living, node), "its node to be well again")
    assert_nothing_happened(living, before)


def test_an_api_server_that_is_away_costs_nothing(living, embedded, trains_on):
    before = living.whole()
    embedded.stop_api_server()
    try:
        trains_on()
    finally:
        embedded.start_api_server()
    assert_nothing_happened(living, before)


def test_an_operator_that_is_away_costs_nothing(living, site, trains_on):
    before = living.whole()
    site.operator.kill()
    try:
        trains_on()
    finally:
        site.operator.start()
    assert_nothing_happened(living, before)


def test_a_node_that_is_away_and_back_is_charged_once(living, embedded):
    before = living.whole()
    victim = living.members()[1]
    node = living.node_of(victim)
    embedded.pause(node)
    try:
        incident = living.incident(victim)
    finally:
        embedded.resume(node)
    assert incident["cause"] in {"PodLost", "NodeLost"}
    after = living.whole()
    there = [pod.metadata.name for pod in living.pods() if pod.status.phase == "Running"]
    assert len(there) == 3
    assert len(losses(after)) == len(losses(before)) + 1
    assert after["restarts"]["total"] == before["restarts"]["total"] + 1


def test_a_node_that_has_lost_its_power_is_left_and_its_pod_replaced(living, embedded):
    living.whole()
    victim = living.members()[0]
    node = living.node_of(victim)
    others = [pod for pod in living.members() if living.node_of(pod) != node]
    embedded.add_node()
    embedded.power_loss(node)
    try:
        incident = living.incident(victim)
        assert incident["cause"] in {"PodLost", "NodeLost"}
        assert "is not heard" in incident["evidence"] or "no report" in incident["evidence"]
        # Of two that were on the node the second one follows from the first.
        if len(others) == 2:
            assert any(f"{pod}" in incident["evidence"] for pod in others)
            assert "cannot reach it" in incident["evidence"]
        living.whole(besides=victim)
        assert victim in living.why()
    finally:
        embedded.remove(node)


def test_what_all_of_that_has_left_is_every_sample_once(living):
    status = living.whole()
    living.wait_step(status["progress"]["step"] + 20)
    store = living.store()
    proof = audit(store.read(store.commits()[0]).meta)
    assert (proof.samples_repeated, proof.samples_missed) == (0, 0)
    assert proof.digest_ok
    assert status["restarts"]["user"] == 0

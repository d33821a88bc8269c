import asyncio

import pytest

from rekindle_local.client import KubeClient, node_path, pod_path
from rekindle_local.nodes.node_lifecycle import (
    LifecycleTimings,
    NodeLifecycle,
    managed_taints,
    toleration_seconds,
)

UNREACHABLE = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}
READY = {"conditions": [{"type": "Ready", "status": "True"}]}


def keys(node, *, alive):
    return [(one["key"], one["effect"]) for one in managed_taints(node, alive=alive)]


def test_a_healthy_node_keeps_foreign_taints_only():
    taints = [{"key": "spot", "effect": "NoSchedule"}, UNREACHABLE]
    assert keys({"spec": {"taints": taints}, "status": READY}, alive=True) == [
        ("spot", "NoSchedule")
    ]


def test_a_silent_node_becomes_unreachable():
    assert keys({"spec": {}, "status": READY}, alive=False) == [
        ("node.kubernetes.io/unreachable", "NoSchedule"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
    ]


def test_a_cordoned_node_is_tainted_unschedulable():
    assert keys({"spec": {"unschedulable": True}, "status": READY}, alive=True) == [
        ("node.kubernetes.io/unschedulable", "NoSchedule")
    ]


def test_a_taint_that_stays_keeps_the_time_it_was_added():
    old = {**UNREACHABLE, "timeAdded": "2020-01-01T00:00:00Z"}
    assert old in managed_taints({"spec": {"taints": [old]}, "status": READY}, alive=False)


@pytest.mark.parametrize(
    ("tolerations", "taint", "expected"),
    [
        ([], UNREACHABLE, 30),
        ([], {"key": "x", "effect": "NoExecute"}, 0),
        ([{"operator": "Exists"}], UNREACHABLE, None),
        ([{"key": UNREACHABLE["key"], "operator": "Exists", "tolerationSeconds": 2}],
         UNREACHABLE, 2),
        ([{"operator": "Exists"}, {"operator": "Exists", "tolerationSeconds": 5}],
         UNREACHABLE, 5),
        ([{"operator": "Exists", "tolerationSeconds": 300}], UNREACHABLE, 30),
        ([{"operator": "Exists", "tolerationSeconds": 300}], {"key": "x", "effect": "NoExecute"},
         300),
    ],
)  # fmt: skip
def test_a_pod_bears_a_taint_as_long_as_its_tolerations_say(tolerations, taint, expected):
    pod = {"spec": {"tolerations": tolerations}}
    assert toleration_seconds(pod, taint, 30) == expected


def test_a_kubelet_that_finds_its_node_doubted_has_the_last_word_about_its_pods():
    node = {"metadata": {"name": "n", "uid": "n"}, "status": READY}
    pod = {"metadata": {"name": "p", "namespace": "d", "uid": "p"}, "spec": {"nodeName": "n"}}
    written = []

    class Client(KubeClient):
        async def patch(self, path, *_, **__):
            written.append(path)
            return {}

    async def doubt():
        async with Client("http://127.0.0.1") as client:
            lifecycle = NodeLifecycle(client, LifecycleTimings())
            lifecycle._pods.items["p"] = pod
            await lifecycle._judge({**node, "spec": {"taints": managed_taints(node, alive=False)}})

    asyncio.run(doubt())
    assert written == [pod_path("d", "p", "status"), node_path("n", "status")]


def test_trouble_is_said_once_for_as_long_as_it_lasts(caplog):
    async def look(error=None):
        if error is not None:
            raise error

    async def told():
        async with KubeClient("http://127.0.0.1:9") as client:
            life = NodeLifecycle(client, LifecycleTimings())
            for error in (OSError("away"), OSError("away"), None, OSError("away"), OSError("full")):
                await life._attempt(look(error))

    asyncio.run(told())
    assert [r.message.rpartition(" ")[2] for r in caplog.records] == ["away", "away", "full"]

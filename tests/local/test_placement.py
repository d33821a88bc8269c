import pytest

from rekindle_local.scheduling.placement import (
    Bind,
    ClusterSnapshot,
    Unschedulable,
    decide,
    requests,
)

READY = [{"type": "Ready", "status": "True"}]
SPOT = {"key": "spot", "value": "yes", "effect": "NoSchedule"}


def node(name, *, taints=(), labels=None, cpu="2", ready=True, **spec):
    return {
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, **(labels or {})},
        },
        "spec": {"taints": list(taints), **spec},
        "status": {
            "allocatable": {"cpu": cpu, "memory": "4Gi", "pods": "3"},
            "conditions": READY if ready else [],
        },
    }


def pod(name="p", *, on=None, cpu=None, labels=None, phase=None, **spec):
    resources = {"requests": {"cpu": cpu}} if cpu else {}
    return {
        "metadata": {"name": name, "namespace": "d", "labels": labels or {}},
        "spec": {"nodeName": on, "containers": [{"name": "c", "resources": resources}], **spec},
        "status": {"phase": phase},
    }


def where(wanted, nodes, pods=()):
    decision = decide(wanted, ClusterSnapshot(nodes, pods))
    assert isinstance(decision, Bind), decision
    return decision.node


def why(wanted, nodes, pods=()):
    decision = decide(wanted, ClusterSnapshot(nodes, pods))
    assert isinstance(decision, Unschedulable), decision
    return decision.message


def anti(labels):
    term = {"labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname"}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def wants_zone(zone):
    expression = {"key": "zone", "operator": "In", "values": [zone]}
    return {"matchExpressions": [expression]}


def test_the_least_loaded_node_is_taken():
    assert where(pod(cpu="1"), [node("a"), node("b")], [pod("x", on="a", cpu="1")]) == "b"


def test_load_counts_before_the_number_of_pods():
    two_small = [pod("x", on="a", cpu="100m"), pod("y", on="a", cpu="100m")]
    assert where(pod(cpu="1"), [node("a"), node("b")], [*two_small, pod("z", on="b", cpu="1")]) == (
        "a"
    )


def test_pods_without_requests_spread_too():
    assert where(pod(), [node("a"), node("b")], [pod("x", on="a")]) == "b"


def test_ended_pods_take_no_room():
    assert where(pod(cpu="2"), [node("a")], [pod("x", on="a", cpu="2", phase="Failed")]) == "a"


def test_without_nodes_the_message_says_so():
    assert why(pod(), []) == "no nodes available to schedule pods"


@pytest.mark.parametrize(
    ("wanted", "nodes", "message"),
    [
        (
            pod(cpu="1500m"),
            [node("a", cpu="1"), node("b", unschedulable=True)],
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable.",
        ),
        (
            pod(),
            [node("a", taints=[SPOT]), node("b", taints=[SPOT])],
            "0/2 nodes are available: 2 node(s) had untolerated taint {spot: yes}.",
        ),
        (
            pod(),
            [node("a", ready=False)],
            "0/1 nodes are available: "
            "1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }.",
        ),
        (
            pod(nodeSelector={"disk": "ssd"}),
            [node("a")],
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
        ),
    ],
)
def test_the_message_counts_the_causes_in_kubernetes_words(wanted, nodes, message):
    assert why(wanted, nodes) == message


def test_too_many_pods_and_unknown_resources_are_insufficient():
    three = [pod(str(number), on="a") for number in range(3)]
    assert "Too many pods" in why(pod(), [node("a")], three)
    gpu = {"limits": {"nvidia.com/gpu": "1"}}
    wanted = pod()
    wanted["spec"]["containers"][0]["resources"] = gpu
    assert "Insufficient nvidia.com/gpu" in why(wanted, [node("a")])


@pytest.mark.parametrize(
    "toleration",
    [
        {"key": "spot", "operator": "Exists"},
        {"key": "spot", "value": "yes", "effect": "NoSchedule"},
        {"operator": "Exists"},
    ],
)
def test_a_toleration_opens_a_tainted_node(toleration):
    assert where(pod(tolerations=[toleration]), [node("a", taints=[SPOT])]) == "a"


def test_a_toleration_of_another_value_does_not():
    wanted = pod(tolerations=[{"key": "spot", "value": "no"}])
    assert "untolerated" in why(wanted, [node("a", taints=[SPOT])])


def test_required_node_affinity_is_honoured_in_any_of_its_terms():
    terms = {"nodeSelectorTerms": [wants_zone("x"), wants_zone("b")]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    nodes = [node("a", labels={"zone": "a"}), node("b", labels={"zone": "b"})]
    assert where(pod(affinity=affinity), nodes) == "b"


def test_preferred_node_affinity_wins_over_load():
    preference = {"weight": 1, "preference": wants_zone("a")}
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [preference]}}
    nodes = [node("a", labels={"zone": "a"}), node("b", labels={"zone": "b"})]
    assert where(pod(affinity=affinity), nodes, [pod("x", on="a", cpu="1")]) == "a"


def test_anti_affinity_keeps_pods_apart_both_ways():
    mine = pod(affinity=anti({"job": "j"}), labels={"job": "j"})
    other = pod("x", on="a", labels={"job": "j"})
    assert where(mine, [node("a"), node("b")], [other]) == "b"
    assert "didn't match pod anti-affinity rules" in why(mine, [node("a")], [other])
    jealous = pod("x", on="a", affinity=anti({"job": "j"}))
    plain = pod(labels={"job": "j"})
    assert "existing pods anti-affinity" in why(plain, [node("a")], [jealous])


def test_a_group_that_wants_to_be_near_itself_can_start():
    term = {"labelSelector": {"matchLabels": {"g": "1"}}, "topologyKey": "kubernetes.io/hostname"}
    affinity = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    wanted = pod(affinity=affinity, labels={"g": "1"})
    nodes = [node("a"), node("b")]
    assert where(wanted, nodes) == "a"
    assert where(wanted, nodes, [pod("x", on="b", labels={"g": "1"})]) == "b"
    assert "pod affinity rules" in why(pod(affinity=affinity), nodes)


def test_a_hard_topology_spread_is_kept():
    rule = {
        "topologyKey": "kubernetes.io/hostname",
        "maxSkew": 1,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"g": "1"}},
    }
    wanted = pod(topologySpreadConstraints=[rule], labels={"g": "1"})
    pods = [pod("x", on="a", labels={"g": "1"})]
    assert where(wanted, [node("a"), node("b")], pods) == "b"
    full = [node("a"), node("b", cpu="0", unschedulable=True)]
    assert "topology spread" in why(wanted, full, pods)


def needs(cpu, **more):
    return {"name": "x", "resources": {"requests": {"cpu": cpu}}, **more}


@pytest.mark.parametrize(
    ("init", "cpu"),
    [
        ([], 1),
        ([needs("3")], 3),
        # An init container runs beside the sidecars before it, the others beside all sidecars.
        ([needs("2", restartPolicy="Always")], 3),
        ([needs("2", restartPolicy="Always"), needs("3")], 5),
        ([needs("3"), needs("2", restartPolicy="Always")], 3),
    ],
)
def test_a_pod_takes_what_runs_at_the_same_time(init, cpu):
    assert requests(pod(cpu="1", initContainers=init))["cpu"] == cpu


def ports(*numbers, ip=None, protocol="TCP"):
    own = [{"hostPort": one, "protocol": protocol, "hostIP": ip} for one in numbers]
    return [{"name": "c", "ports": own}]


@pytest.mark.parametrize(
    ("wanted", "taken", "free"),
    [
        (ports(80), ports(80), False),
        (ports(80), ports(81), True),
        (ports(80, protocol="UDP"), ports(80), True),
        (ports(80, ip="10.0.0.1"), ports(80, ip="10.0.0.2"), True),
        (ports(80, ip="10.0.0.1"), ports(80), False),
    ],
)
def test_a_port_of_the_node_is_taken_once(wanted, taken, free):
    other = pod("x", on="a", containers=taken)
    if free:
        assert where(pod(containers=wanted), [node("a")], [other]) == "a"
    else:
        text = "1 node(s) didn't have free ports for the requested pod ports"
        assert text in why(pod(containers=wanted), [node("a")], [other])
        assert where(pod(containers=wanted), [node("a"), node("b")], [other]) == "b"


def test_an_accelerator_that_no_node_has_is_named():
    gpu = [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]
    assert "1 Insufficient nvidia.com/gpu" in why(pod(containers=gpu), [node("a")])

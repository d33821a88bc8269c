"""Where a pod may run, and where it runs best: a pure function over manifests.

`decide` filters nodes as the default scheduler does (unschedulable, taints, node selector and
affinity, resources, pod affinity and anti-affinity, hard topology spread) and takes the best of
what is left: preferred affinities first, then the least loaded. When nothing is left, the reason is
counted per cause and worded as the real one words it, because people search for those words.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from rekindle_local.client import Manifest
from rekindle_local.quantity import parse_quantity
from rekindle_local.scheduling import constraints, demands

HOSTNAME = "kubernetes.io/hostname"
_HARD = {"NoSchedule", "NoExecute"}


@dataclass(frozen=True, kw_only=True)
class Bind:
    """The pod goes to this node."""

    node: str


@dataclass(frozen=True, kw_only=True)
class Unschedulable:
    """No node takes the pod now; `message` says why, per cause."""

    message: str


Decision = Bind | Unschedulable


def requests(pod: Manifest) -> dict[str, Fraction]:
    """What a pod takes of a node."""
    return demands.total(pod["spec"], demands.requested)


def is_over(pod: Manifest) -> bool:
    """Whether the pod has ended and takes nothing any more."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


class ClusterSnapshot:
    """All nodes, the living pods on them, and what they take; built once for many decisions."""

    def __init__(
        self,
        nodes: Sequence[Manifest],
        pods: Iterable[Manifest],
        *,
        claims: Iterable[Manifest] = (),
        volumes: Iterable[Manifest] = (),
    ) -> None:
        self.claims = {
            (one["metadata"]["namespace"], one["metadata"]["name"]): one for one in claims
        }
        self.volumes = {one["metadata"]["name"]: one for one in volumes}
        self.nodes = {node["metadata"]["name"]: node for node in nodes}
        self.on: dict[str, list[Manifest]] = defaultdict(list)
        self.used: dict[str, dict[str, Fraction]] = defaultdict(lambda: defaultdict(Fraction))
        for pod in pods:
            if pod["spec"].get("nodeName") and not is_over(pod):
                self.add(pod, pod["spec"]["nodeName"])

    def add(self, pod: Manifest, node: str) -> None:
        """Count a pod on a node."""
        self.on[node].append(pod)
        for resource, amount in requests(pod).items():
            self.used[node][resource] += amount

    def domain(self, node: Manifest, key: str) -> list[Manifest]:
        """The pods on nodes that share the value of a topology label with `node`."""
        value = (node["metadata"].get("labels") or {}).get(key)
        return [pod for pod, place in self.placed(key) if place == value and value is not None]

    def placed(self, key: str) -> list[tuple[Manifest, str | None]]:
        """Every placed pod with the topology value of its node."""
        return [
            (pod, (self.nodes[name]["metadata"].get("labels") or {}).get(key))
            for name, pods in self.on.items()
            if name in self.nodes
            for pod in pods
        ]


def decide(pod: Manifest, cluster: ClusterSnapshot) -> Decision:
    """The node for `pod` in a cluster as it is."""
    nodes = list(cluster.nodes.values())
    if not nodes:
        return Unschedulable(message="no nodes available to schedule pods")
    if problem := _unready_claim(pod, cluster):
        return Unschedulable(message=f"0/{len(nodes)} nodes are available: {problem}.")
    causes: Counter[str] = Counter()
    fitting: list[Manifest] = []
    for node in nodes:
        why = _filter(pod, node, cluster)
        causes.update(why)
        if not why:
            fitting.append(node)
    if not fitting:
        parts = sorted(f"{count} {cause}" for cause, count in causes.items())
        head = f"0/{len(nodes)} nodes are available"
        return Unschedulable(message=f"{head}: {', '.join(parts)}.")
    best = min(fitting, key=lambda node: _rank(pod, node, cluster))
    return Bind(node=best["metadata"]["name"])


def _filter(pod: Manifest, node: Manifest, cluster: ClusterSnapshot) -> list[str]:
    """Why the node cannot take the pod; like the real one, the first failing check answers."""
    spec = node.get("spec") or {}
    taints = list(spec.get("taints") or ())
    if spec.get("unschedulable"):
        cordon = {"key": constraints.UNSCHEDULABLE, "effect": "NoSchedule"}
        if constraints.untolerated(pod, [cordon], _HARD):
            return ["node(s) were unschedulable"]
    if not constraints.is_ready(node):
        taints.append({"key": constraints.NOT_READY, "effect": "NoSchedule"})
    if taint := constraints.untolerated(pod, taints, _HARD):
        pair = f"{{{taint['key']}: {taint.get('value') or ''}}}"
        return [f"node(s) had untolerated taint {pair}"]
    if not _affine(pod, node):
        return ["node(s) didn't match Pod's node affinity/selector"]
    if _port_conflict(pod, cluster.on[node["metadata"]["name"]]):
        return ["node(s) didn't have free ports for the requested pod ports"]
    if short := _insufficient(pod, node, cluster):
        return short
    if not _volumes_reach(pod, node, cluster):
        return ["node(s) had volume node affinity conflict"]
    return _companions(pod, node, cluster)


def _affine(pod: Manifest, node: Manifest) -> bool:
    labels = node["metadata"].get("labels") or {}
    selector = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in selector.items()):
        return False
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    terms = required.get("nodeSelectorTerms") or ()
    return any(constraints.matches_node_term(term, node) for term in terms)


def _unready_claim(pod: Manifest, cluster: ClusterSnapshot) -> str:
    """Why no node can have the pod's volumes yet; empty when nothing is wrong."""
    namespace = pod["metadata"].get("namespace", "default")
    for name in constraints.claims_of(pod):
        claim = cluster.claims.get((namespace, name))
        if claim is None:
            return f'persistentvolumeclaim "{name}" not found'
        if claim["metadata"].get("deletionTimestamp"):
            return f'persistentvolumeclaim "{name}" is being deleted'
        phase = (claim.get("status") or {}).get("phase")
        if phase == "Lost":
            bound = claim["spec"].get("volumeName")
            return (
                f'persistentvolumeclaim "{name}" bound to non-existent persistentvolume "{bound}"'
            )
        if phase != "Bound":
            return "pod has unbound immediate PersistentVolumeClaims"
        alone = "ReadWriteOncePod" in (claim["spec"].get("accessModes") or ())
        if alone and any(
            name in constraints.claims_of(other)
            for pods in cluster.on.values()
            for other in pods
            if other["metadata"].get("namespace", "default") == namespace
        ):
            return (
                "node has pod using PersistentVolumeClaim with the same name and "
                "ReadWriteOncePod access mode"
            )
    return ""


def _volumes_reach(pod: Manifest, node: Manifest, cluster: ClusterSnapshot) -> bool:
    namespace = pod["metadata"].get("namespace", "default")
    for name in constraints.claims_of(pod):
        claim = cluster.claims.get((namespace, name)) or {"spec": {}}
        volume = cluster.volumes.get(claim["spec"].get("volumeName", "")) or {"spec": {}}
        required = (volume["spec"].get("nodeAffinity") or {}).get("required")
        terms = (required or {}).get("nodeSelectorTerms") or ()
        if required and not any(constraints.matches_node_term(term, node) for term in terms):
            return False
    return True


_EVERY_ADDRESS = "0.0.0.0"


def _host_ports(pod: Manifest) -> list[tuple[str, str, int]]:
    """(protocol, address, port) of each port that a pod takes of its node."""
    spec = pod["spec"]
    sidecars = [
        one for one in spec.get("initContainers") or () if one.get("restartPolicy") == "Always"
    ]
    return [
        (port.get("protocol") or "TCP", port.get("hostIP") or _EVERY_ADDRESS, port["hostPort"])
        for container in (*sidecars, *(spec.get("containers") or ()))
        for port in container.get("ports") or ()
        if port.get("hostPort")
    ]


def _port_conflict(pod: Manifest, others: Iterable[Manifest]) -> bool:
    wanted = _host_ports(pod)
    taken = [port for other in others for port in _host_ports(other)] if wanted else []
    return any(
        (protocol, port) == (other_protocol, other_port)
        and (address == other_address or _EVERY_ADDRESS in (address, other_address))
        for protocol, address, port in wanted
        for other_protocol, other_address, other_port in taken
    )


def _allocatable(node: Manifest) -> Mapping[str, str]:
    status = node.get("status") or {}
    return status.get("allocatable") or status.get("capacity") or {}


def _insufficient(pod: Manifest, node: Manifest, cluster: ClusterSnapshot) -> list[str]:
    offered = _allocatable(node)
    name = node["metadata"]["name"]
    short = []
    if len(cluster.on[name]) + 1 > parse_quantity(offered.get("pods", "110")):
        short.append("Too many pods")
    for resource, amount in sorted(requests(pod).items()):
        free = parse_quantity(offered.get(resource, "0")) - cluster.used[name][resource]
        if amount > 0 and amount > free:
            short.append(f"Insufficient {resource}")
    return short


def _companions(pod: Manifest, node: Manifest, cluster: ClusterSnapshot) -> list[str]:
    affinity = pod["spec"].get("affinity") or {}
    for term in _required(affinity.get("podAffinity")):
        near = any(_term_matches(term, pod, one) for one in _around(term, node, cluster))
        # The first pod of a group that wants its own kind near has to start somewhere.
        anywhere = any(
            _term_matches(term, pod, one) for one, _ in cluster.placed(term["topologyKey"])
        )
        if not near and (anywhere or not _term_matches(term, pod, pod)):
            return ["node(s) didn't match pod affinity rules"]
    for term in _required(affinity.get("podAntiAffinity")):
        if any(_term_matches(term, pod, one) for one in _around(term, node, cluster)):
            return ["node(s) didn't match pod anti-affinity rules"]
    for other in [one for pods in cluster.on.values() for one in pods]:
        rules = _required((other["spec"].get("affinity") or {}).get("podAntiAffinity"))
        for term in rules:
            if other in _around(term, node, cluster) and _term_matches(term, other, pod):
                return ["node(s) didn't satisfy existing pods anti-affinity rules"]
    for rule in pod["spec"].get("topologySpreadConstraints") or ():
        if rule.get("whenUnsatisfiable", "DoNotSchedule") == "DoNotSchedule" and not _spread(
            rule, pod, node, cluster
        ):
            return ["node(s) didn't match pod topology spread constraints"]
    return []


def _required(affinity: Manifest | None) -> list[Manifest]:
    return list((affinity or {}).get("requiredDuringSchedulingIgnoredDuringExecution") or ())


def _around(term: Manifest, node: Manifest, cluster: ClusterSnapshot) -> list[Manifest]:
    return cluster.domain(node, term["topologyKey"])


def _term_matches(term: Manifest, owner: Manifest, other: Manifest) -> bool:
    """Whether `other` is one of the pods that a term of `owner` speaks about."""
    own = owner["metadata"].get("namespace", "default")
    where = other["metadata"].get("namespace", "default")
    everywhere = term.get("namespaceSelector") == {}
    if not everywhere and where not in (term.get("namespaces") or [own]):
        return False
    return constraints.matches_labels(
        term.get("labelSelector"), other["metadata"].get("labels") or {}
    )


def _spread(rule: Manifest, pod: Manifest, node: Manifest, cluster: ClusterSnapshot) -> bool:
    key = rule["topologyKey"]
    value = (node["metadata"].get("labels") or {}).get(key)
    if value is None:
        return False
    counts: Counter[str] = Counter()
    for one in cluster.nodes.values():
        label = (one["metadata"].get("labels") or {}).get(key)
        if label is not None and _affine(pod, one):
            counts[label] += 0
    namespace = pod["metadata"].get("namespace", "default")
    for other, place in cluster.placed(key):
        same = other["metadata"].get("namespace", "default") == namespace
        labels = other["metadata"].get("labels") or {}
        known = place is not None and place in counts
        if known and same and constraints.matches_labels(rule.get("labelSelector"), labels):
            counts[str(place)] += 1
    own = constraints.matches_labels(rule.get("labelSelector"), pod["metadata"].get("labels") or {})
    return counts[value] + int(own) - min(counts.values()) <= int(rule.get("maxSkew") or 1)


def _rank(
    pod: Manifest, node: Manifest, cluster: ClusterSnapshot
) -> tuple[int, Fraction, int, str]:
    """Small is good: preferences, then load, then pods, then the name."""
    name = node["metadata"]["name"]
    offered = _allocatable(node)
    load = Fraction(0)
    for resource, wanted in {"cpu": Fraction(0), **requests(pod)}.items():
        capacity = parse_quantity(offered.get(resource, "0"))
        if capacity > 0:
            load += (cluster.used[name][resource] + wanted) / capacity
    return -_preference(pod, node, cluster), load, len(cluster.on[name]), name


def _preference(pod: Manifest, node: Manifest, cluster: ClusterSnapshot) -> int:
    affinity = pod["spec"].get("affinity") or {}
    score = 0
    key = "preferredDuringSchedulingIgnoredDuringExecution"
    for term in (affinity.get("nodeAffinity") or {}).get(key) or ():
        if constraints.matches_node_term(term["preference"], node):
            score += int(term["weight"])
    for kind, sign in (("podAffinity", 1), ("podAntiAffinity", -1)):
        for entry in (affinity.get(kind) or {}).get(key) or ():
            term = entry["podAffinityTerm"]
            near = sum(_term_matches(term, pod, one) for one in _around(term, node, cluster))
            score += sign * int(entry["weight"]) * near
    taints = (node.get("spec") or {}).get("taints") or ()
    if constraints.untolerated(pod, taints, {"PreferNoSchedule"}):
        score -= 100
    return score

"""Taints, tolerations, selectors, claims: the small languages by which objects choose each other.

Pure functions over manifests, shared by the scheduler and by the node life cycle.
"""

from collections.abc import Iterable, Mapping

from rekindle_local.client import Manifest

NOT_READY = "node.kubernetes.io/not-ready"
UNREACHABLE = "node.kubernetes.io/unreachable"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"


def tolerates(toleration: Manifest, taint: Manifest) -> bool:
    """Whether one toleration covers one taint."""
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    exists = toleration.get("operator") == "Exists"
    key = toleration.get("key")
    if not key:
        return exists
    if key != taint["key"]:
        return False
    return exists or (toleration.get("value") or "") == (taint.get("value") or "")


def untolerated(pod: Manifest, taints: Iterable[Manifest], effects: set[str]) -> Manifest | None:
    """The first taint with one of the effects that the pod does not tolerate."""
    tolerations = pod["spec"].get("tolerations") or ()
    for taint in taints:
        if taint["effect"] in effects and not any(tolerates(one, taint) for one in tolerations):
            return taint
    return None


def matches_labels(selector: Manifest | None, labels: Mapping[str, str]) -> bool:
    """A LabelSelector over labels; no selector matches nothing, an empty one everything."""
    if selector is None:
        return False
    wanted = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    expressions = selector.get("matchExpressions") or ()
    return all(matches_expression(one, labels) for one in expressions)


def matches_expression(expression: Manifest, labels: Mapping[str, str]) -> bool:
    """One requirement: In, NotIn, Exists, DoesNotExist, Gt or Lt; unknown operators never match."""
    key, operator = expression["key"], expression["operator"]
    values = list(expression.get("values") or [])
    present = key in labels
    if operator == "In":
        return present and labels[key] in values
    if operator == "NotIn":
        return not present or labels[key] not in values
    if operator == "Exists":
        return present
    if operator == "DoesNotExist":
        return not present
    if operator in ("Gt", "Lt") and present and len(values) == 1:
        try:
            left, right = int(labels[key]), int(values[0])
        except ValueError:
            return False
        return left > right if operator == "Gt" else left < right
    return False


def matches_node_term(term: Manifest, node: Manifest) -> bool:
    """A node selector term; an empty one matches nothing, as in Kubernetes."""
    expressions = term.get("matchExpressions") or ()
    fields = term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    labels = node["metadata"].get("labels") or {}
    names = {"metadata.name": node["metadata"]["name"]}
    return all(matches_expression(one, labels) for one in expressions) and all(
        matches_expression(one, names) for one in fields
    )


def is_ready(node: Manifest) -> bool:
    """Whether the node's Ready condition is True."""
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def claims_of(pod: Manifest) -> list[str]:
    """The names of the claims that a pod's volumes are."""
    found = []
    for volume in pod["spec"].get("volumes") or ():
        if claim := volume.get("persistentVolumeClaim"):
            found.append(claim["claimName"])
        elif volume.get("ephemeral"):
            found.append(f"{pod['metadata']['name']}-{volume['name']}")
    return found

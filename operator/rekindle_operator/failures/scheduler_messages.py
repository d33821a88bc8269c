"""What the sentences of the scheduler and of the API server ask for.

Both say in words, and in words only, why a pod finds no node or is not created. The words stay as
they are; what is known of them is a name for the condition, and what can be done.
"""

import re

from rekindle_operator.observed.containers import one_line

SENTENCES: tuple[tuple[str, str], ...] = (
    (
        r"Insufficient (\S+?)[,.;]?(?=\s|$)",
        "free or add {0}, or ask for less of it in spec.template",
    ),
    (r"untolerated taint", "add a toleration to spec.template, or a node without that taint"),
    (
        r"didn't match Pod's node affinity/selector",
        "no node has the labels that nodeSelector or nodeAffinity of spec.template ask for",
    ),
    (r"didn't have free ports", "two pods with one hostPort cannot share a node: leave it out"),
    (
        r"persistentvolumeclaim \"([^\"]+)\" not found",
        "create the claim {0}, or correct volumes in spec.template",
    ),
    (
        r"unbound immediate PersistentVolumeClaims",
        "a claim that the pod uses has no volume yet: see kubectl describe pvc",
    ),
    (
        r"volume node affinity conflict",
        "a volume that the pod uses is in another zone than the nodes with room",
    ),
    (r"exceed max volume count", "the nodes hold as many volumes as they can: add a node"),
    (r"waiting for ephemeral volume controller", "its ephemeral volume is being made"),
    (r"topology spread constraints", "loosen topologySpreadConstraints in spec.template"),
    (r"pod (anti-)?affinity rules", "loosen podAffinity or podAntiAffinity in spec.template"),
    (r"were unschedulable", "the nodes are cordoned: kubectl uncordon, or wait for the drain"),
    (r"Too many pods", "the nodes hold as many pods as they can: add a node"),
    (r"resourceclaim|cannot allocate all claims", "see kubectl describe resourceclaim"),
    (r"no nodes available|^0/0 nodes", "the cluster has no node: wait for its autoscaler"),
)
"""What the scheduler says (a pattern) and what can be done; the first two that are found count."""


def scheduling_advice(words: str) -> str:
    """What can be done about what the scheduler says; empty when that is new to us."""
    found: list[str] = []
    for pattern, todo in SENTENCES:
        match = re.search(pattern, words, re.IGNORECASE)
        if match:
            found.append(todo.format(*match.groups("")))
    return "; ".join(found[:2])


REFUSALS: tuple[tuple[str, str, str], ...] = (
    (r"exceeded quota", "QuotaExceeded", "it waits for room in the namespace's ResourceQuota"),
    (
        r"failed quota",
        "QuotaExceeded",
        "the namespace's ResourceQuota wants requests and limits: set them in spec.template",
    ),
    (
        r"violates PodSecurity",
        "PodSecurity",
        "set securityContext in spec.template as the namespace's Pod Security level wants it",
    ),
    (
        r"no PriorityClass with name (\S+)",
        "PriorityClassMissing",
        "create the PriorityClass, or correct priorityClassName in spec.template",
    ),
    (
        r"serviceaccount \"([^\"]+)\" not found",
        "ServiceAccountMissing",
        "create it, or correct serviceAccountName in spec.template",
    ),
    (
        r"(maximum|minimum) \S+ usage per|limit to request ratio",
        "LimitRange",
        "set resources in spec.template within the namespace's LimitRange",
    ),
    (
        r"failed calling webhook",
        "WebhookUnreachable",
        "an admission webhook of the cluster does not answer",
    ),
    (r"admission webhook", "AdmissionDenied", "do what the webhook asks, or have it changed"),
    (
        r"is being terminated|NamespaceTerminating",
        "NamespaceTerminating",
        "the namespace is being deleted: nothing can be created in it",
    ),
    (
        r"cannot create resource",
        "OperatorForbidden",
        "the operator lacks rights: compare its role with the chart's",
    ),
    (
        r"is not part of this job",
        "NameTaken",
        "delete it, or give the job another name; it goes on as soon as that is gone",
    ),
    (
        r"is going away|of an earlier job .* is being deleted",
        "NameTaken",
        "it goes on as soon as that is gone",
    ),
    (r"is forbidden", "Forbidden", "the API server does not allow it"),
)
"""A pattern of the answer, the condition's reason, and what can be done."""


def of_refusal(words: str) -> tuple[str, str]:
    """Reason and message for an answer of the API server that keeps a child from being made."""
    plain = one_line(words, 1000)
    for pattern, reason, todo in REFUSALS:
        if re.search(pattern, plain, re.IGNORECASE):
            return reason, f"{plain}; {todo}"
    return "CannotCreate", plain

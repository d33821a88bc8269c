"""A TrainingJob as frozen dataclasses, parsed once from what the API server holds.

The schema and the CEL rules of the custom resource have refused bad input before it gets here, and
have filled in the defaults. Parsing still names the field when something is off, since an older CRD
may be installed than the one that this operator was written for.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from rekindle.api import ANNOTATION_RESTART, ANNOTATION_RESTART_FROM

PLACE = frozenset({"uri", "secret", "endpoint_url", "region", "addressing", "commit"})
"""Fields of the checkpoint that a pod is made with; the others reach it with the next round."""
FIRST_RHYTHM = frozenset({"every_steps", "every_seconds", "every_auto", "keep"})
"""Those others, as the first operators knew them."""
_DURATION = re.compile(r"^(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?$")


class SpecError(ValueError):
    """A field of the spec that cannot be understood; the text names it."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many incidents of a class are answered with another try."""

    max: int | None
    """None: without limit."""
    window: float
    """Seconds of the sliding window."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSpec:
    """Where and how often state is committed."""

    uri: str
    secret: str | None
    endpoint_url: str | None
    every_steps: int | None
    every_seconds: int | None
    every_auto: bool
    keep: Mapping[str, Any]
    """What to keep, in the words of rekindle.api.ENV_CHECKPOINT_KEEP."""
    region: str | None = None
    addressing: str | None = None
    commit: str = "conditional"
    """What is not said is the trainer's own choice; see rekindle.api."""


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """How the launcher comes into a pod."""

    inject: bool = False
    """Copied into it by an init container, since its image does not have it."""
    image: str | None = None
    """Copied from there; None: from the runtime image that the operator knows."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What the user wants."""

    name: str
    namespace: str
    uid: str
    generation: int
    created_at: float
    replicas: int
    min_replicas: int
    spares: int
    """Pods beyond ``replicas`` that are warm and hold no rank."""
    proc_per_node: str
    template: Mapping[str, Any]
    checkpoint: CheckpointSpec
    user_budget: Budget
    infrastructure_budget: Budget
    preemption_budget: Budget
    startup_deadline: float | None
    active_deadline: float | None
    hang_timeout: str
    """``auto``, ``never``, or seconds: in the words of rekindle.api.ENV_HANG_TIMEOUT."""
    suspend: bool
    ttl_after_finished: float | None
    clean_pods: str
    slow_nodes: str
    """tell or avoid."""
    notice_seconds: Mapping[str, float]
    """What the job says about notices, by their source; infinity: an advice."""
    pending_deadline: float | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)
    """Where steps are read from, in the words of rekindle.api.ENV_PROGRESS."""
    launcher: Launcher = Launcher()
    restart: str | None = None
    """A value that is new asks for another run of a job that has ended (see again)."""
    restart_from: str = "latest"
    template_alias: str | None = None
    """Another hash that stands for the present template, in labels of an earlier operator."""

    @property
    def pods(self) -> int:
        """How many pods there are to be: those that train and the spares."""
        return self.replicas + self.spares

    @property
    def grace_seconds(self) -> float:
        """What a pod has between SIGTERM and SIGKILL, by its template or as the job says."""
        grace = float(self.template["spec"].get("terminationGracePeriodSeconds") or 30)
        return min(grace, self.notice_seconds.get("SIGTERM", grace))

    @cached_property
    def template_hash(self) -> str:
        """Changes when pods made before the change no longer are what is wanted.

        Made from the user's words only, not from the rendered pod: a new operator that renders a
        little differently must not restart anybody's training. For the same reason a field that
        has a default counts only where it differs: it may be newer than the job. What workers are
        told with their next round is not in it, nor is from where steps are read: that is not worth
        a restart of training which nobody can resume to the step.
        """
        place = {name: value for name, value in self._asked().items() if name in PLACE}
        return _digest([self.template, self.proc_per_node, place, *self._launched()])

    @cached_property
    def earlier_hash(self) -> str:
        """What the first operators labelled pods with, which is of all of the checkpoint.

        A pod of an unchanged job with this label is what is wanted, or an update of the operator
        would replace all pods.
        """
        asked = {n: v for n, v in self._asked().items() if n in PLACE | FIRST_RHYTHM}
        return _digest([self.template, self.proc_per_node, asked, *self._launched()])

    def _asked(self) -> dict[str, Any]:
        """What the job says of its checkpoints, beyond defaults."""
        given = ((one, getattr(self.checkpoint, one.name)) for one in fields(self.checkpoint))
        return {one.name: value for one, value in given if value != one.default}

    def _launched(self) -> list[dict[str, Any]]:
        return [{"launcher": self.launcher.image}] if self.launcher.inject else []

    def wants(self, template: str) -> bool:
        """Whether a pod made from the template with this hash is what is wanted."""
        return template in (self.template_hash, self.template_alias)


def _digest(words: list[Any]) -> str:
    text = json.dumps(words, sort_keys=True, default=dict)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def parse_duration(text: str, field: str) -> float:
    """Seconds of a duration such as ``1h30m``; SpecError names the field."""
    match = _DURATION.match(text)
    if not text or not match:
        raise SpecError(f"{field} is {text!r}, which is no duration such as 90s, 30m or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return hours * 3600.0 + minutes * 60.0 + seconds


def parse(body: Mapping[str, Any], created_at: float) -> TrainingJob:
    """Read the object as the API server has it; SpecError names a missing or wrong field."""
    meta, spec = body["metadata"], body["spec"]
    try:
        checkpoint = spec["checkpoint"]
        template = spec["template"]
        if not template["spec"]["containers"]:
            raise SpecError("spec.template.spec.containers is empty")
        uri = str(checkpoint["uri"])
    except (KeyError, TypeError) as error:
        raise SpecError(f"spec lacks {error}: is the CRD of this operator installed?") from error
    every = checkpoint.get("every") or {"seconds": 120}
    restart = spec.get("restart") or {}
    deadlines = spec.get("deadlines") or {}
    return TrainingJob(
        name=meta["name"],
        namespace=meta["namespace"],
        uid=meta["uid"],
        generation=int(meta.get("generation", 0)),
        created_at=created_at,
        replicas=int(spec.get("replicas", 1)),
        min_replicas=int((spec.get("elastic") or {}).get("minReplicas", 1)),
        spares=int((spec.get("elastic") or {}).get("spares", 0)),
        proc_per_node=str(spec.get("procPerNode", "auto")),
        template=template,
        checkpoint=CheckpointSpec(
            uri=uri,
            secret=(checkpoint.get("secretRef") or {}).get("name"),
            endpoint_url=checkpoint.get("endpointUrl"),
            every_steps=every.get("steps"),
            every_seconds=every.get("seconds"),
            every_auto=bool(every.get("auto")),
            keep=_keep(checkpoint.get("keep") or {}),
            region=checkpoint.get("region"),
            addressing=checkpoint.get("addressing"),
            commit=checkpoint.get("commit", "conditional"),
        ),
        user_budget=_budget(restart, "user", 3, "1h"),
        infrastructure_budget=_budget(restart, "infrastructure", 50, "24h"),
        preemption_budget=_budget(restart, "preemption", None, "24h"),
        startup_deadline=_deadline(deadlines, "startup", "30m"),
        active_deadline=_deadline(deadlines, "active", None),
        hang_timeout=_hang_timeout((spec.get("hang") or {}).get("timeout", "auto")),
        suspend=bool(spec.get("suspend", False)),
        ttl_after_finished=spec.get("ttlSecondsAfterFinished"),
        clean_pods=spec.get("cleanPods", "Running"),
        slow_nodes=str((spec.get("capacity") or {}).get("slowNodes", "tell")),
        notice_seconds=_notice_seconds(spec.get("capacity") or {}),
        restart=(meta.get("annotations") or {}).get(ANNOTATION_RESTART),
        restart_from=(meta.get("annotations") or {}).get(ANNOTATION_RESTART_FROM, "latest"),
        pending_deadline=_deadline(deadlines, "pending", None),
        progress=_progress(spec.get("progress") or {}),
        launcher=Launcher(
            inject=bool((spec.get("launcher") or {}).get("inject")),
            image=(spec.get("launcher") or {}).get("image"),
        ),
    )


def _notice_seconds(capacity: Mapping[str, Any]) -> dict[str, float]:
    given = capacity.get("notices") or ()
    return {
        str(entry["sign"]): math.inf if entry.get("advice") else float(entry.get("seconds", 0))
        for entry in given
    }


def _progress(given: Mapping[str, Any]) -> dict[str, Any]:
    """The source of steps; a pattern has to be one for Python, which CEL cannot tell."""
    pattern = (given.get("log") or {}).get("pattern")
    if pattern is not None:
        where = "spec.progress.log.pattern"
        try:
            groups = re.compile(pattern).groupindex
        except (re.error, OverflowError, RecursionError) as error:
            raise SpecError(f"{where} is no regular expression of Python: {error}") from error
        if "step" not in groups:
            raise SpecError(f"{where} has no group (?P<step>...)")
    return dict(given)


def _keep(given: Mapping[str, Any]) -> dict[str, Any]:
    best = given.get("best")
    rule = best and {
        "metric": best["metric"],
        "mode": best.get("mode", "min"),
        "count": best.get("count", 1),
    }
    return {
        "latest": given.get("latest", 3),
        "best": [rule] if rule else [],
        "every": given.get("everySteps"),
        "hourly": given.get("hourly", 0),
    }


def _budget(restart: Mapping[str, Any], name: str, most: int | None, window: str) -> Budget:
    given = restart.get(name) or {}
    return Budget(
        max=given.get("max", most),
        window=parse_duration(given.get("window", window), f"spec.restart.{name}.window"),
    )


def _hang_timeout(text: str) -> str:
    if text in {"auto", "never"}:
        return text
    return f"{parse_duration(text, 'spec.hang.timeout'):.0f}"


def _deadline(deadlines: Mapping[str, Any], name: str, default: str | None) -> float | None:
    text = deadlines.get(name, default)
    return None if text is None else parse_duration(text, f"spec.deadlines.{name}")

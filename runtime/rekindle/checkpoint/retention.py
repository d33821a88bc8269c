"""Which checkpoints stay: one pure function of the commits, a policy and the pins.

A checkpoint stays when any rule wants it, so rules only ever add:

- `latest`: the newest ones, those of the live line first; damaged ones do not count, and go when
  enough good ones are newer;
- `best`: the best values of a metric that the trainer put into `meta["metrics"]`; of several
  checkpoints that carry one measurement, the first one counts, which was saved when it was taken;
- `every`: every step that is a multiple of it, for ever;
- `hourly`: the last one of each of the newest hours in which any was written;
- pins, which people set by hand;
- the end of every run that another one has followed in the same place;
- the newest good one and the one that this attempt resumed from, whatever the policy says: there is
  always one that is known to load.

Only `latest` asks whether a commit is on the live line. The other rules name what a checkpoint
holds, and a line loses its older part when retention takes the one checkpoint that linked it to the
rest: what a user asked to keep for ever must not depend on that.

A place may hold several runs, one after the other: a script that is started anew begins anew. Each
has its own best ones.

`hourly` is the only rule that looks at a clock, the writer's. A clock that jumps makes it keep
other checkpoints, never fewer of the other rules.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from rekindle.checkpoint.format.manifest import Commit, CommitRef, ref_of

_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Best:
    """Keep the `count` checkpoints with the lowest (`min`) or highest (`max`) value of a metric."""

    metric: str
    mode: Literal["min", "max"]
    count: int = 1

    def __post_init__(self) -> None:
        if not self.metric or self.mode not in {"min", "max"} or self.count < 1:
            raise ValueError(
                f"best: metric {self.metric!r}, mode {self.mode!r}, count {self.count}: need the "
                f"name of a logged metric, mode 'min' or 'max', and a count of at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What to keep; the union of all rules. Raises `ValueError` for what no rule can mean."""

    latest: int = 3
    best: tuple[Best, ...] = ()
    every: int | None = None
    """Steps; None keeps none for ever."""
    hourly: int = 0

    def __post_init__(self) -> None:
        if self.latest < 1:
            raise ValueError(f"keep_latest is {self.latest}: at least 1 checkpoint must be kept")
        if self.every is not None and self.every < 1:
            raise ValueError(f"every is {self.every}: need a positive number of steps, or None")
        if self.hourly < 0:
            raise ValueError(f"hourly is {self.hourly}: need 0 or a number of hours")

    def also(self, other: "Retention") -> "Retention":
        """Keep what either of the two keeps."""
        periods = [every for every in (self.every, other.every) if every is not None]
        return Retention(
            latest=max(self.latest, other.latest),
            best=tuple(dict.fromkeys((*self.best, *other.best))),
            every=math.gcd(*periods) if periods else None,
            hourly=max(self.hourly, other.hourly),
        )

    def to_json(self) -> dict[str, Any]:
        """For another process."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**{**document, "best": tuple(Best(**rule) for rule in document["best"])})


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What the rules need to know about one commit."""

    ref: CommitRef
    created: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, int] = field(default_factory=dict)
    """The step at which each metric was taken, as far as the writer said."""
    good: bool = True
    """Neither marked as damaged nor unreadable."""
    on_line: bool = True
    run: str = ""
    """Which run it is of, where a place has seen several."""
    finished: bool = False
    """Whether it is the end of its run."""
    borrowed: frozenset[str] = frozenset()
    """Keys of objects in groups of other checkpoints that this one needs."""


def candidate(commit: Commit, *, good: bool, on_line: bool) -> Candidate:
    """The summary of a commit that has been read."""
    return Candidate(
        ref=commit.ref,
        created=commit.created,
        metrics=metrics_of(commit.meta),
        measured=measured_of(commit.meta),
        good=good,
        on_line=on_line,
        run=run_of(commit.meta),
        finished=commit.meta.get("finished") is True,
        borrowed=frozenset(e.key for e in commit.objects if ref_of(e.key) != commit.ref),
    )


def run_of(meta: Mapping[str, Any]) -> str:
    """The number of the script that wrote it; empty where no meta tells."""
    found = meta.get("run")
    script = found.get("script") if isinstance(found, Mapping) else None
    return script if isinstance(script, str) else ""


def metrics_of(meta: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers in `meta["metrics"]`."""
    found = meta.get("metrics")
    if not isinstance(found, Mapping):
        return {}
    return {
        str(name): float(value)
        for name, value in found.items()
        # The bound keeps integers beyond the range of floats out.
        if type(value) in {int, float} and abs(value) < 1e300 and math.isfinite(value)
    }


def measured_of(meta: Mapping[str, Any]) -> dict[str, int]:
    """The steps in `meta["measured"]`; commits of older writers have none."""
    found = meta.get("measured")
    if not isinstance(found, Mapping):
        return {}
    return {str(name): step for name, step in found.items() if type(step) is int}


def kept(
    commits: Iterable[Candidate],
    policy: Retention,
    pins: Collection[CommitRef] = (),
    *,
    restored: CommitRef | None = None,
) -> frozenset[CommitRef]:
    """The commits that stay. `restored` is the one this attempt began from."""
    ordered = _newest_first(commits)
    good = [one for one in ordered if one.good]
    found = {one.ref for one in ordered if one.ref in pins or one.ref == restored}
    found |= {one.ref for one in _latest(ordered, policy.latest)}
    runs: dict[str, list[Candidate]] = {}
    for one in good:
        runs.setdefault(one.run, []).append(one)
    found |= {one.ref for rule in policy.best for own in runs.values() for one in _best(own, rule)}
    found |= {one.ref for one in good if one.finished and one.run != good[0].run}
    if policy.every is not None:
        found |= {one.ref for one in good if one.ref.step % policy.every == 0}
    found |= {one.ref for one in _hourly(good, policy.hourly)}
    return frozenset(found)


def _newest_first(commits: Iterable[Candidate]) -> list[Candidate]:
    """The line by step, then everything off it by attempt."""
    unique = {one.ref: one for one in commits}.values()
    line = sorted((c for c in unique if c.on_line), key=lambda c: c.ref, reverse=True)
    rest = sorted(
        (c for c in unique if not c.on_line), key=lambda c: (c.ref.fence, c.ref.step), reverse=True
    )
    return [*line, *rest]


def _latest(ordered: Sequence[Candidate], count: int) -> Sequence[Candidate]:
    good = 0
    for index, one in enumerate(ordered):
        good += one.good
        if good >= count:
            return ordered[: index + 1]
    return ordered


def best(commits: Iterable[Candidate], rule: Best) -> list[Candidate]:
    """The best good commits by one rule, best first; equal values in favour of the later step."""
    return _best([one for one in commits if one.good], rule)


def _best(good: Sequence[Candidate], rule: Best) -> list[Candidate]:
    sign = 1.0 if rule.mode == "max" else -1.0
    having, taken = [], set()
    for one in sorted(good, key=lambda one: one.ref):
        step = one.measured.get(rule.metric)
        if rule.metric in one.metrics and (step is None or step not in taken):
            having.append(one)
            taken.add(step)
    having.sort(key=lambda one: (sign * one.metrics[rule.metric], one.ref), reverse=True)
    return having[: rule.count]


def _hourly(good: Sequence[Candidate], count: int) -> list[Candidate]:
    last: dict[int, Candidate] = {}
    for one in good:
        hour = int(one.created // _HOUR)
        if hour not in last or one.ref > last[hour].ref:
            last[hour] = one
    return [last[hour] for hour in sorted(last, reverse=True)[:count]]

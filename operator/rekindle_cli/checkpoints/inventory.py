"""What lies in a checkpoint store: every commit with what is known about it.

`restore` looks at the checkpoints that count; a person who looks for a lost one wants all of them:
those off the line of the training, those marked as damaged, those nobody can read. Names are found
generously: `latest`, a step, a step and an attempt (`7400-3`), the full name, a pin.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rekindle.checkpoint.format.manifest import Commit, CommitRef, IntegrityError, VersionError
from rekindle.checkpoint.objects.interface import NotFound
from rekindle.checkpoint.retention import metrics_of
from rekindle.checkpoint.store import Store
from rekindle_cli.output.failure import CommandFailure
from rekindle_cli.output.wording import date, number

_NAME = re.compile(r"^0*(\d{1,12})(?:-0*(\d{1,8}))?$")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One commit of the store."""

    ref: CommitRef
    commit: Commit | None
    """None when it cannot be read."""
    on_line: bool
    bad: bool
    pins: tuple[str, ...]
    problem: str = ""

    @property
    def metrics(self) -> Mapping[str, float]:
        """What the trainer logged with it."""
        return {} if self.commit is None else metrics_of(self.commit.meta)

    @property
    def remark(self) -> str:
        """What is special about it."""
        found = []
        if self.problem:
            found.append("unreadable")
        if self.bad:
            found.append("damaged")
        if not self.on_line:
            found.append("off the line")
        if self.commit is not None and self.commit.mode != "conditional":
            found.append(f"commit={self.commit.mode}")
        return ", ".join([*found, *(f"pin {name}" for name in self.pins)])


def entries(store: Store) -> list[Entry]:
    """All commits, newest first; raises StoreError and ManifestError (a damaged pin)."""
    line = store.line()
    bad = set(line) - set(store.commits())
    listed = sorted(store.listed(), key=lambda ref: (ref in line, ref), reverse=True)
    pins = store.pins()
    return [
        _entry(
            store,
            ref,
            on_line=ref in line,
            bad=ref in bad,
            pins=tuple(name for name, pin in pins.items() if pin.ref == ref),
        )
        for ref in listed
    ]


def _entry(
    store: Store, ref: CommitRef, *, on_line: bool, bad: bool, pins: tuple[str, ...]
) -> Entry:
    commit, problem = None, ""
    try:
        commit = store.read(ref)
    except (IntegrityError, VersionError, NotFound) as error:
        problem = str(error)
    return Entry(ref=ref, commit=commit, on_line=on_line, bad=bad, pins=pins, problem=problem)


def resolve(store: Store, name: str) -> CommitRef:
    """The checkpoint that a person means; raises Failure with what there is."""
    line = store.line()
    if name == "latest":
        good = store.commits()
        if not good:
            raise CommandFailure(
                f"{store.uri} holds no checkpoint that can be restored.", reason="NotFound"
            )
        return good[0]
    known = sorted(store.listed(), key=lambda ref: (ref in line, ref), reverse=True)
    match = _NAME.match(name)
    if match:
        step = int(match[1])
        found = [ref for ref in known if ref.step == step]
        if match[2] is not None:
            found = [ref for ref in found if ref.fence == int(match[2])]
        on_line = [ref for ref in found if ref in line]
        if len(on_line or found) == 1 or on_line:
            return (on_line or found)[0]
        if found:
            choices = ", ".join(f"{ref.step}-{ref.fence}" for ref in found)
            raise CommandFailure(f"Several attempts saved step {step}.", f"Say which: {choices}.")
    for pin, content in store.pins().items():
        if pin == name:
            return content.ref
    have = ", ".join(str(ref.step) for ref in known[:10]) or "none"
    raise CommandFailure(
        f"{store.uri} holds no checkpoint {name!r}.",
        f"It holds the steps {have}{' and more' if len(known) > 10 else ''}. Allowed are a step, "
        f"STEP-ATTEMPT, the name of a pin, and 'latest'.",
        reason="NotFound",
    )


HEADER = ("STEP", "ATTEMPT", "CREATED", "RANKS", "SIZE", "METRICS", "REMARKS")
"""Titles of `row`."""


def row(entry: Entry) -> tuple[str, ...]:
    """One line of the listing."""
    commit = entry.commit
    return (
        str(entry.ref.step),
        str(entry.ref.fence),
        "-" if commit is None else moment(commit.created),
        "-" if commit is None else str(commit.world_size),
        "-" if commit is None else size(commit.nbytes),
        "  ".join(f"{name} {number(value)}" for name, value in list(entry.metrics.items())[:3]),
        entry.remark,
    )


def moment(created: float) -> str:
    """The writer's clock, in UTC."""
    return date(datetime.fromtimestamp(created, UTC)) if created < 4e9 else "-"


def size(nbytes: int) -> str:
    """Bytes in the unit that people use: ``12 B``, ``3.4 MB``."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def entry_json(entry: Entry) -> dict[str, Any]:
    """One commit for machines."""
    commit = entry.commit
    found: dict[str, Any] = {
        **ref_json(entry.ref),
        "on_line": entry.on_line,
        "damaged": entry.bad,
        "pins": list(entry.pins),
        "problem": entry.problem or None,
    }
    if commit is not None:
        found |= {
            "created": commit.created,
            "world_size": commit.world_size,
            "bytes": commit.nbytes,
            "base": None if commit.base is None else ref_json(commit.base),
            "mode": commit.mode,
            "metrics": dict(entry.metrics),
        }
    return found


def ref_json(ref: CommitRef) -> dict[str, int]:
    """The name of a checkpoint for machines."""
    return {"step": ref.step, "attempt": ref.fence}


def details(entry: Entry) -> list[tuple[str, str]]:
    """What `show` says, label and text."""
    commit = entry.commit
    rows = [("step", str(entry.ref.step)), ("attempt", str(entry.ref.fence))]
    if commit is None:
        return [*rows, ("problem", entry.problem)]
    stored = [tensor for tensor in commit.tensors if tensor.slices]
    rows += [
        ("created", moment(commit.created)),
        ("ranks", str(commit.world_size)),
        ("tensors", f"{len(commit.tensors)}, {size(sum(t.nbytes for t in stored))}"),
        ("objects", f"{len(commit.objects)}, {size(commit.nbytes)}"),
        ("checksums", ", ".join(sorted({entry.alg for entry in commit.objects})) or "-"),
        ("resumed from", "nothing" if commit.base is None else _name(commit.base)),
        ("commit mode", commit.mode),
    ]
    if entry.remark:
        rows.append(("remarks", entry.remark))
    return rows


def _name(ref: CommitRef) -> str:
    return f"step {ref.step} of attempt {ref.fence}"


def tensor_rows(commit: Commit) -> Sequence[tuple[str, ...]]:
    """Every tensor: name, dtype, shape, bytes."""
    return [
        (t.name, t.dtype, "x".join(map(str, t.shape)) or "scalar", size(t.nbytes))
        for t in commit.tensors
    ]

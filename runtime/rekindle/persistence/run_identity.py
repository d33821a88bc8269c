"""Which run is this? What a call of `fit` is known by, so that it goes on from its own checkpoints.

A script may call `fit` many times: a sweep, the folds of a cross-validation, two stages. Each call
has a *place* of its own, by its number among the calls with the same root: the first one has the
root itself, the n-th ``<root>/fits/<n>``. A restarted script makes the same calls in the same
order, so each finds its own checkpoints: those of fits that had ended are loaded as their results,
the one that was interrupted goes on, the others begin.

A restart is told from a new start by the *script's* number. In a job it is the job's. Elsewhere the
first fit of a root writes one into ``script.json``, and the end of the program marks it as ended,
unless an error or a preemption was its end: whoever finds it not ended is a restart. A new start
begins anew where the last run came to its end, and goes on with one that did not.

Either way the fit has to be the one that the checkpoint is of: a model of the same class, made with
the same *hyperparameters* (those of `save_hyperparameters`, else the constructor's arguments).
Other ones mean another training, so they are named with both values instead of being overridden by
the checkpoint in silence. Data that differ are R12's business, and parameters R11's.
"""

import atexit
import contextlib
import hashlib
import json
import os
import re
import sys
import uuid
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rekindle.checkpoint.objects.interface import NotFound, Objects, StoreError
from rekindle.errors.requirement import RequirementError

RECORD = "script.json"
"""Object in a root: which script writes there, and whether it has come to its end."""
_LIMIT = 1 << 16
_LONG = 200
"""Characters of a value that are kept; of the rest a checksum."""
_SECRET = re.compile(r"pass(word|wd)?|secret|token|credential|api_?key", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What one call of `fit` is known by, beside its place."""

    script: str
    model: str
    """Qualified name of the module's class."""
    hyperparameters: Mapping[str, str] = field(default_factory=dict)
    """Name -> value as text; ``data.<name>`` for those of the data module."""

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint's meta."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ResumeDecision:
    """Whether to go on from the newest checkpoint of the place."""

    goes_on: bool
    again: bool = False
    """Whether it is the end of an earlier run: its wish to stop does not count for this one."""
    new_script: bool = False
    """Whether this start is another script's than the checkpoints that are there."""
    line: str | None = None
    """For people."""


def decide(
    own: Identity,
    meta: Mapping[str, Any] | None,
    *,
    place: str,
    resume: str,
    job: bool,
    world_size: int,
) -> ResumeDecision:
    """What a fit without a `ckpt_path` does, given the meta of its place's newest commit; pure.

    Raises R11 when the place holds another fit's interrupted run.
    """
    if meta is None or resume == "never":
        return ResumeDecision(goes_on=resume != "never")
    saved, finished = meta.get("run"), bool(meta.get("finished"))
    same, changes = True, list[str]()
    if isinstance(saved, Mapping):
        same, changes = saved["script"] == own.script, changed(saved, own)
    step, told = meta.get("step"), "; ".join(changes)
    if resume == "must":
        line = f"{told}; goes on from step {step} all the same (resume='must')" if told else None
        return ResumeDecision(goes_on=True, again=finished and not same, line=line)
    if finished and not job and (changes or not same):
        why = f" of another fit ({told})" if changes else ""
        return ResumeDecision(
            goes_on=False,
            new_script=same,
            line=f"{place} holds the end of a run{why}, step {step}: a new run begins "
            f"(ckpt_path='last' goes on with that one)",
        )
    if not changes and not (finished and not same):
        return ResumeDecision(goes_on=True)
    if not changes:
        line = (
            f"{place} holds the end of another job's run, step {step}: this job goes on with it "
            f"(to begin anew, give it a checkpoint URI of its own, or resume='never')"
        )
        return ResumeDecision(goes_on=True, again=True, line=line)
    if job and meta.get("world_size") != world_size:
        # What a script computes from the number of processes changes with it.
        line = f"{told}; the run of step {step} goes on"
        return ResumeDecision(goes_on=True, again=finished and not same, line=line)
    raise RequirementError(
        f"R11 {place} holds step {step} of another run: {told}. To go on with it, give the same "
        f"values, or resume='must'; to begin anew, resume='never' or another root. What may differ "
        f"belongs into save_hyperparameters(ignore=[...])."
    )


def changed(saved: Mapping[str, Any], own: Identity) -> list[str]:
    """The differences, each with both values."""
    found = []
    if saved.get("model") != own.model:
        found.append(f"the model was {saved.get('model')} and is {own.model}")
    before = saved.get("hyperparameters")
    before = before if isinstance(before, Mapping) else {}
    for name in dict.fromkeys((*before, *own.hyperparameters)):
        was, now = before.get(name, "absent"), own.hyperparameters.get(name, "absent")
        if was != now:
            found.append(f"{name} was {was} and is {now}")
    return found


def identity(module: Any, datamodule: Any = None, *, script: str = "") -> Identity:
    """The identity of a fit, from what it is given."""
    return Identity(
        script=script,
        model=type(module).__qualname__,
        hyperparameters={
            **_values(module),
            **{f"data.{name}": value for name, value in _values(datamodule).items()},
        },
    )


def _values(owner: Any) -> dict[str, str]:
    """Plain hyperparameters, or else constructor arguments, as texts that can be compared."""
    if owner is None:
        return {}
    given = dict(getattr(owner, "hparams", None) or vars(owner).get("_constructor_arguments", {}))
    return {str(name): _text(str(name), v) for name, v in given.items() if _plain(v)}


def _text(name: str, value: object) -> str:
    """A value as it is compared and shown; of what may be a secret only a digest."""
    text = repr(value)
    if _SECRET.search(name):
        return f"<{hashlib.sha256(text.encode()).hexdigest()[:12]}>"
    return text if len(text) <= _LONG else f"{text[:_LONG]}...<{zlib.crc32(text.encode()):08x}>"


def _plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    return value is None or type(value) in {bool, int, float, str}


def place_of(root: str, number: int) -> str:
    """Where the checkpoints of the n-th fit of a root are."""
    return root if number <= 1 else f"{root.rstrip('/')}/fits/{number}"


def places_before(root: str, number: int) -> list[str]:
    """The places of the fits before the n-th, the newest first."""
    return [place_of(root, n) for n in range(number - 1, 0, -1)]


def again(step: int, *, at_limit: bool) -> str:
    """What a trainer says that has trained before; raises ValueError if it is not at its limits."""
    if at_limit:
        return (
            f"this Trainer has come to its limits at step {step}, so fit() trains nothing; make "
            f"a Trainer for each fit, or give a later limit and ckpt_path='last'"
        )
    raise ValueError(
        f"this Trainer has trained before, and ended at step {step} before its limits. Make a "
        f"Trainer for each fit; with ckpt_path='last' it goes on where that one has ended."
    )


# The calls of this process.

_numbers: Counter[str] = Counter()
_scripts: dict[str, str] = {}
_open: dict[str, Objects] = {}
"""Root -> where this process has written a record that is not marked as ended."""
_failed = False


def next_number(root: str) -> int:
    """Count one more fit of this root."""
    _numbers[root] += 1
    return _numbers[root]


def number_of(root: str) -> int:
    """The number of the newest fit of this root; 1 before the first."""
    return max(1, _numbers[root])


def forget() -> None:
    """Be a process that has called no `fit` yet (for tests of restarts within one process)."""
    global _failed  # noqa: PLW0603
    _numbers.clear()
    _scripts.clear()
    _open.clear()
    _failed = False


def failed() -> None:
    """The program will not come to its end: what is interrupted is to go on."""
    global _failed  # noqa: PLW0603
    _failed = True


def known_script(root: str) -> str | None:
    """The script's number, if this process knows it."""
    return _scripts.get(root)


def note_script(root: str, script: str) -> None:
    """Take note of the number that rank 0 has found."""
    _scripts[root] = script


def enter(objects: Objects, root: str, *, anew: bool = False) -> str:
    """The script's number from the record of a root, a new one where that has ended or `anew`.

    Writes the record, so that a restart finds it; for rank 0, outside of jobs.
    """
    record = None if anew else _read(objects)
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0
    if record is not None and (not record["ended"] or restarted):
        script = str(record["script"])
    else:
        script = uuid.uuid4().hex[:12]
    _write(objects, script, ended=False)
    hold(objects, root, script)
    return script


def hold(objects: Objects, root: str, script: str) -> None:
    """Have the end of this program marked in the record of a root, which says so far it runs."""
    if not _open:
        _watch()
    _open[root] = objects
    note_script(root, script)


def peek(objects: Objects) -> str:
    """The number that `enter` would give, without writing anything; empty for a new one."""
    record = _read(objects)
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0
    return "" if record is None or (record["ended"] and not restarted) else str(record["script"])


def _read(objects: Objects) -> dict[str, Any] | None:
    try:
        record = json.loads(objects.get(RECORD, limit=_LIMIT))
    except NotFound:
        return None
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"script", "ended"} <= set(record) else None


def _write(objects: Objects, script: str, *, ended: bool) -> None:
    objects.put(RECORD, json.dumps({"script": script, "ended": ended}).encode())


def _watch() -> None:
    """Have the end of the program marked, if it ends without an error."""
    previous = sys.excepthook

    def hook(*error: Any) -> None:
        failed()
        previous(*error)

    if not getattr(previous, "_rekindle_runs", False):
        hook._rekindle_runs = True  # type: ignore[attr-defined]
        hook._rekindle = getattr(previous, "_rekindle", False)  # type: ignore[attr-defined]
        sys.excepthook = hook
        atexit.register(_end, os.getpid())


def _end(pid: int) -> None:
    if _failed or os.getpid() != pid:
        return
    for root, objects in _open.items():
        # Whoever starts next takes this for an interruption then, and says so.
        with contextlib.suppress(StoreError):
            _write(objects.impatient(), _scripts[root], ended=True)

"""From what people write for a checkpoint to the commits that it means.

A script may name a run (its URI or directory), one commit object or tag in it, or a word: ``last``,
``best``, ``hpc``. Scripts written for other trainers name files, ``./checkpoints/last.ckpt``; no
such files exist here. Of such a path the folders are walked up until one holds a run, and the rest
is an alias that the run's commits carry in their meta. So a name may hold slashes and metric text
without any object being named after it.

``last`` is never a pointer: it is the newest commit in the list, which the reader verifies.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from rekindle.api import (
    ENV_CHECKPOINT_ADDRESSING,
    ENV_CHECKPOINT_COMMIT,
    ENV_CHECKPOINT_ENDPOINT,
    ENV_CHECKPOINT_REGION,
)
from rekindle.checkpoint import Best, Commit, CommitRef, IntegrityError, Restored, Store
from rekindle.checkpoint.format.manifest import pin_of, ref_of
from rekindle.checkpoint.objects.interface import NotFound
from rekindle.checkpoint.retention import best, candidate, run_of

JOBS_STORE: Mapping[str, str] = {
    "endpoint_url": ENV_CHECKPOINT_ENDPOINT,
    "region": ENV_CHECKPOINT_REGION,
    "addressing": ENV_CHECKPOINT_ADDRESSING,
    "commit": ENV_CHECKPOINT_COMMIT,
}
"""Options of a store that the job may give -> the variable that holds them."""

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")
_OBJECT = re.compile(r"^(.+?)/((?:commit|tag)/[^/]+\.json)$")
Kind = Literal["last", "best", "hpc", "commit", "pin", "alias", "file"]
_WORDS: Mapping[str, Kind] = {"last": "last", "best": "best", "hpc": "hpc"}


@dataclass(frozen=True, kw_only=True)
class CheckpointTarget:
    """What a text means: something in the run at `uri`."""

    text: str
    """As it was written."""
    uri: str
    kind: Kind
    name: str = ""
    """Of an alias or a pin."""
    ref: CommitRef | None = None


def whole(text: "str | os.PathLike[str]") -> str:
    """A URI as it is, a path as an absolute one: both mean the same in any directory."""
    path = os.fspath(text)
    return path if _SCHEME.match(path) else os.path.abspath(path)


def locate(
    text: "str | os.PathLike[str]",
    *,
    root: str | None,
    script_root: str | None = None,
    options: Mapping[str, str] | None = None,
) -> CheckpointTarget:
    """Find the run that a text is about; looks for runs in the folders of an alias.

    `root` is the run's own; `script_root` the one that the script gave, when the job has replaced
    it: paths below it mean the job's. Raises FileNotFoundError when there is no run to be found.
    """
    given = os.fspath(text)
    if given in _WORDS:
        if root is None:
            raise ValueError(f"{given!r} is a name within a run; give the path or URI of one")
        return CheckpointTarget(text=given, uri=root, kind=_WORDS[given])
    path = whole(given)
    if root is not None and script_root is not None and root != script_root:
        below = _below(path, script_root)
        if below is not None:
            path = f"{root.rstrip('/')}/{below}".rstrip("/")
    if (match := _OBJECT.match(path)) is not None:
        uri, key = match.groups()
        ref, pin = ref_of(key), pin_of(key)
        if ref is not None:
            return CheckpointTarget(text=given, uri=uri, kind="commit", ref=ref)
        if pin is not None:
            return CheckpointTarget(text=given, uri=uri, kind="pin", name=pin)
    if not path.endswith(".ckpt"):
        return CheckpointTarget(text=given, uri=path, kind="last")
    return _alias(given, path, root, options or {})


def _below(path: str, root: str) -> str | None:
    """The rest of a path below a root; None when it is elsewhere."""
    root = root.rstrip("/")
    return path[len(root) :].lstrip("/") if path == root or path.startswith(f"{root}/") else None


def _alias(given: str, path: str, root: str | None, options: Mapping[str, str]) -> CheckpointTarget:
    local = path.removeprefix("file://")
    if os.path.isfile(local):
        # Of Lightning's or of ours: whoever reads it says what it holds.
        return CheckpointTarget(
            text=given, uri=root or os.path.dirname(local), kind="file", name=local
        )
    folder, rest = path, ""
    while "/" in folder.partition("://")[2].lstrip("/") or folder.startswith("/"):
        folder, _, last = folder.rpartition("/")
        rest = f"{last}/{rest}" if rest else last
        own = root is not None and whole(root) == folder
        if own or (folder and _holds_run(folder, options)):
            name = rest.removesuffix(".ckpt")
            kind: Kind = "last" if name == "last" else "alias"
            return CheckpointTarget(text=given, uri=folder, kind=kind, name=name)
        if not folder:
            break
    raise FileNotFoundError(
        f"no folder above {given} holds a Rekindle run. Give the directory or URI of the run, one "
        f"of its commit objects, or <run>/<alias>.ckpt."
    )


def _holds_run(folder: str, options: Mapping[str, str]) -> bool:
    if not _SCHEME.match(folder):
        return os.path.isdir(f"{folder}/commit") or os.path.isdir(f"{folder}/lease")
    objects = Store.open(folder, **options).objects
    return any(True for prefix in ("commit/", "lease/") for _ in objects.list(prefix))


def choose(store: Store, target: CheckpointTarget, rule: Best | None) -> list[CommitRef]:
    """The commits that a target means, the one to try first first; may be none for ``last``.

    Raises ValueError or FileNotFoundError that say what there is instead.
    """
    if target.kind == "last":
        return store.commits()
    if target.kind == "commit":
        assert target.ref is not None
        return [target.ref]
    if target.kind == "pin":
        pins = store.pins()
        if target.name not in pins:
            raise FileNotFoundError(_lost("pin", target, pins))
        return [pins[target.name].ref]
    commits = _all(store)
    if target.kind in {"best", "hpc"} and commits:
        # Of the run that was there last; one before it has its own.
        newest = store.line()
        run = next((run_of(c.meta) for c in commits if c.ref in newest[:1]), None)
        commits = [c for c in commits if run is None or run_of(c.meta) == run]
    if target.kind == "best":
        if rule is None:
            # Of checkpoints that nothing compares, the newest is the best, as in Lightning.
            return store.commits()
        line = set(store.line())
        found = best((candidate(c, good=True, on_line=c.ref in line) for c in commits), rule)
        if not found:
            raise FileNotFoundError(
                f"ckpt_path={target.text!r}: no checkpoint in {target.uri} has the metric "
                f"{rule.metric!r} yet"
            )
        return [one.ref for one in found]
    if target.kind == "hpc":
        refs = [c.ref for c in commits if c.meta.get("preempted")]
        if not refs:
            raise FileNotFoundError(
                f"ckpt_path='hpc': no checkpoint in {target.uri} was written because of a "
                f"preemption notice. Use ckpt_path='last'."
            )
        return refs
    names = {name: c.ref for c in reversed(commits) for name in c.meta.get("aliases", ())}
    # What stands in front of an alias is the dirpath of the callback that gave it.
    fitting = [name for name in names if f"/{target.name}".endswith(f"/{name}")]
    if not fitting:
        # Or the folder that nobody has chosen is left out.
        short = {name.removeprefix("checkpoints/"): name for name in names}
        fitting = [short[name] for name in short if f"/{target.name}".endswith(f"/{name}")]
    if not fitting:
        raise FileNotFoundError(_lost("alias", target, names))
    return [names[max(fitting, key=len)]]


def _lost(what: str, target: CheckpointTarget, known: Mapping[str, Any]) -> str:
    close = get_close_matches(target.name, known, n=1, cutoff=0.3)
    hint = f"the closest one is {close[0]!r}" if close else "it has none; use ckpt_path='last'"
    return f"{target.text}: the run {target.uri} has no {what} {target.name!r}; {hint}"


def _all(store: Store) -> list[Commit]:
    """Every readable commit that is not marked as damaged, newest first, on the line or not."""
    bad = {ref_of(stat.key) for stat in store.objects.list("bad/")}
    found = []
    for ref in sorted(store.listed(), reverse=True):
        if ref not in bad:
            try:
                found.append(store.read(ref))
            except (IntegrityError, NotFound):
                continue
    return found


def jobs_options() -> dict[str, str]:
    """How the job says that its store is reached."""
    return {o: os.environ[name] for o, name in JOBS_STORE.items() if os.environ.get(name)}


def first_good(
    store: Store, refs: list[CommitRef], said: Callable[[str], None] = lambda _line: None
) -> Restored:
    """Load the first of the commits that is intact; raises IntegrityError (R16) if none is."""
    damage: IntegrityError | None = None
    for ref in refs:
        try:
            return store.load(store.read(ref))
        except IntegrityError as error:
            damage = error
            said(str(error))
    assert damage is not None
    raise damage


def read(text: "str | os.PathLike[str]", options: Mapping[str, str] | None = None) -> Restored:
    """The checkpoint that a path or URI means, for a process that is no part of the run."""
    options = jobs_options() if options is None else options
    target = locate(text, root=None, options=options)
    store = Store.open(target.uri, **options)
    refs = choose(store, target, None)
    if not refs:
        raise FileNotFoundError(f"there is no checkpoint in {target.uri}")
    return first_good(store, refs)

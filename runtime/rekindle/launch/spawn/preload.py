"""Importing ahead of time what workers will import, and noticing what must not be.

A worker forked from a process with these modules has to be the same as one that imported them by
itself. A module is left out (``Preloaded.unfit``) when its import did something that a fork
cannot share or that each worker has to do for itself:

- it read a variable that differs between workers (``LOCAL_RANK`` kept in a global, for example);
- it started a thread or a process, which the fork would lack or share;
- it keeps a file or connection open, whose position all forks would share;
- it initialised CUDA, after which a fork cannot use it;
- it seeded or used a random generator that a worker seeds anew, or keeps one of its own.

Two things that widely used libraries do are no reason. An installed package may draw from a
generator, since every worker gets a fresh one; whether it only drew, or set it, shows in the state
afterwards. And of the modules in ``RANKED`` it is known how they keep the rank, so that each worker
puts it right (`set_ranks`).

Nothing is collected meanwhile: what an import makes stays, and to look through it again and again
is a fifth of the time that torch takes.

A script whose imports fail fails in its worker, where it can be seen; here that is only noted.
The files of the user's own modules are remembered with their times: who forks later can tell
whether what was imported is still what is on disk.
"""

import contextlib
import gc
import importlib
import importlib.util
import os
import random
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from rekindle.api import ENV_CHECKPOINT_URI
from rekindle.launch.spawn import group_ready
from rekindle.launch.spawn.environment import OF_A_WORKER
from rekindle.launch.spawn.script_imports import Import, Top, top_of

BASE = (
    "torch",
    # The first optimizer imports it: 800 modules, as long as torch itself takes.
    "torch._dynamo",
    # Its generator must be known before anybody seeds it.
    "numpy.random",
    "torch.distributed",
    "torch.nn.parallel",
    "torch.utils.data",
    # The first step of an optimizer imports it.
    "torch.profiler._cupti_monitor",
    "rekindle.trainer.trainer",
)
"""What any script needs, or is soon to."""
OF_STORES = {"s3": "rekindle.checkpoint.objects.s3"}
"""What a store needs in addition, by the scheme of its URI."""
RANKED: Mapping[str, Sequence[str]] = {
    "torchmetrics.utilities.prints": ("LOCAL_RANK",),
    "lightning.fabric.utilities.rank_zero": ("RANK", "LOCAL_RANK"),
    "lightning_fabric.utilities.rank_zero": ("RANK", "LOCAL_RANK"),
}
"""Modules that keep a rank in ``rank_zero_only.rank`` -> the first of these variables that is set.

It decides who prints a warning, for example."""
BLOCKS = 64
"""So many times 624 numbers an import may draw, and it still shows that it drew them."""
EVERYTHING = "*"
"""In place of a name: none of the script's imports."""


@dataclass(frozen=True, kw_only=True)
class Preloaded:
    """What came of it."""

    files: Mapping[str, tuple[int, int]]
    """The files of the user's own modules, with time of change (ns) and size."""
    failed: tuple[str, ...] = ()
    """What could not be imported, and why."""
    unfit: Mapping[str, str]
    """By package: why its modules may not be shared. They are imported here, so this process is
    of no use; another one has to begin without them."""


def import_base() -> None:
    """Import ``BASE``; what cannot be had is missed later, where it matters."""
    with _uncollected():
        for name in _base():
            _try(Import(name), [])


def preload(command: Sequence[str], without: Sequence[str] = ()) -> Preloaded:
    """Import ``BASE`` and what the script imports at its top, except the packages ``without``."""
    failed: list[str] = []
    unfit: dict[str, str] = {}
    with _uncollected():
        for name in _base():
            if importlib.util.find_spec(name.partition(".")[0]) is not None:
                _try(Import(name), failed)
    group_ready.leave_word()
    before = set(sys.modules)
    if EVERYTHING not in without:
        with _watched() as reads:
            for each in _wanted(command, without, failed):
                was = _Situation()
                _try(each, failed)
                why = _charge(reads, was, _Situation(), installed=_is_installed(each.root))
                if why is not None:
                    unfit.setdefault(each.root, why)
                    reads.clear()
    own = [module for name, module in list(sys.modules.items()) if name not in before]
    return Preloaded(files=_files(own), failed=tuple(failed), unfit=unfit)


@contextmanager
def _uncollected() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _base() -> list[str]:
    scheme = os.environ.get(ENV_CHECKPOINT_URI, "").partition(":")[0]
    return [*BASE, *(module for name, module in OF_STORES.items() if name == scheme)]


def changed(files: Mapping[str, tuple[int, int]]) -> str | None:
    """Give a file that is not what it was, if there is one."""
    return next((path for path, stamp in files.items() if _stamp(path) != stamp), None)


def script_top(command: Sequence[str]) -> Top:
    """Read the beginning of a script.

    Empty for a script that cannot be read, which will say so itself, and for ``-m module``: finding
    that may mean importing its package.
    """
    if command[0] == "-m":
        return Top()
    try:
        return top_of(command[1] if command[0] == "-c" else Path(command[0]).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return Top()


def _wanted(command: Sequence[str], without: Sequence[str], failed: list[str]) -> Iterator[Import]:
    """Give the imports of a script, or of a module and before it of the packages that it is in."""
    try:
        if command[0] != "-m":
            found = top_of(command[1] if command[0] == "-c" else Path(command[0]).read_bytes())
        else:
            name = command[1]
            parents = name.rpartition(".")[0]
            if parents.partition(".")[0] in without:
                return
            if parents:
                yield Import(parents)
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.submodule_search_locations is not None:
                yield Import(name)
                spec = importlib.util.find_spec(f"{name}.__main__")
            source = getattr(spec and spec.loader, "get_source", lambda _: None)(spec and spec.name)
            found = top_of(source, spec.parent or "") if spec and source else Top()
    except Exception as error:
        failed.append(f"{' '.join(command[:2])}: {_words(error)}")
        return
    yield from (each for each in found.imports if each.root not in without)


def _try(wanted: Import, failed: list[str]) -> None:
    try:
        module = importlib.import_module(wanted.module)
        for name in wanted.names:
            # Of a lazy package, this is what loads it.
            if not hasattr(module, name):
                importlib.import_module(f"{wanted.module}.{name}")
    except BaseException as error:
        failed.append(f"{wanted.module}: {_words(error)}")


class _Situation:
    """What an import may change."""

    def __init__(self) -> None:
        self.modules = set(sys.modules)
        self.threads = threading.active_count()
        self.children = _has_children()
        self.files = _open_files()
        self.random = _random_state()


def _charge(
    reads: set[str], before: _Situation, after: _Situation, *, installed: bool
) -> str | None:
    """Say what an import did that makes it unfit; `installed`: it is no module of the user's."""
    if reads:
        return f"reads {', '.join(sorted(reads))} while it is imported"
    if after.threads > before.threads:
        return "starts a thread while it is imported"
    if after.children and not before.children:
        return "starts a process while it is imported"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "initialises CUDA while it is imported"
    if not (_drew if installed else _same)(before.random, after.random):
        return "uses or seeds random numbers while it is imported"
    if kept := after.files - before.files:
        return f"keeps {min(kept)} open from its import on"
    for name in sorted(after.modules - before.modules):
        module = sys.modules.get(name)
        if module is not None and _own_file(module) is not None and _keeps_generator(module):
            return f"keeps a random generator in {name}"
    return None


class _Environment(os._Environ):  # type: ignore[type-arg]
    """The environment, and who looks at what in it."""

    reads: set[str]

    def __getitem__(self, key: str) -> str:
        if key in OF_A_WORKER and key not in RANKED.get(_reader(), ()):
            self.reads.add(key)
        return str(super().__getitem__(key))


def _reader() -> str:
    """Give the name of the module that looks at the environment."""
    frame: FrameType | None = sys._getframe(2)
    while frame and frame.f_globals.get("__name__") in {"os", "collections.abc"}:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__")) if frame else ""


def set_ranks() -> None:
    """Put right, in a worker, what modules of ``RANKED`` took for the rank when they were imported.

    Raises ValueError where they would.
    """
    for name, variables in RANKED.items():
        if (module := sys.modules.get(name)) is not None:
            told = [os.environ[variable] for variable in variables if variable in os.environ]
            module.rank_zero_only.rank = int(told[0]) if told else 0


@contextmanager
def _watched() -> Iterator[set[str]]:
    """Note which variables of ``OF_A_WORKER`` are looked for."""
    plain = type(os.environ)
    reads: set[str] = set()
    os.environ.__class__ = _Environment
    os.environ.reads = reads  # type: ignore[attr-defined]
    try:
        yield reads
    finally:
        del os.environ.reads  # type: ignore[attr-defined]
        os.environ.__class__ = plain


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _open_files() -> set[str]:
    """Give what this process has open, as far as the system tells.

    Not the files of metrics: their library begins new ones in a forked process.
    """
    metrics = os.environ.get("PROMETHEUS_MULTIPROC_DIR") or "/proc/self/fd"
    found: set[str] = set()
    try:
        numbers = os.listdir("/proc/self/fd")
    except OSError:
        return found
    for number in numbers:
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{number}")
            if not target.startswith((metrics, "/proc/")):
                found.add(target)
    return found


def _random_state() -> tuple[Any, Any]:
    numpy = sys.modules.get("numpy.random")
    return random.getstate(), None if numpy is None else numpy.get_state()


def _same(before: tuple[Any, Any], after: tuple[Any, Any]) -> bool:
    if before[0] != after[0]:
        return False
    if before[1] is None or after[1] is None:
        return True
    return all(
        (ours == theirs).all() if hasattr(ours, "all") else ours == theirs
        for ours, theirs in zip(before[1], after[1], strict=True)
    )


def _drew(before: tuple[Any, Any], after: tuple[Any, Any]) -> bool:
    """Whether the generators are as they were, or have been drawn from and not been set."""
    if not _advanced(before[0][1], after[0][1]):
        return False
    if not isinstance(before[1], tuple) or not isinstance(after[1], tuple):
        return _same((None, before[1]), (None, after[1]))  # not there yet, or another kind of one
    return _advanced(*((*map(int, state[1]), int(state[2])) for state in (before[1], after[1])))


def _advanced(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether a Mersenne Twister comes from one of its states to another by drawing.

    A state is 624 words and the place of the next one; Python's and NumPy's are the same generator.
    Words stay until all of them are used: so it is enough to look at each block of them once.
    """
    generator = random.Random()
    state = tuple(before)
    for _ in range(BLOCKS):
        if state[:-1] == tuple(after[:-1]):
            return True
        generator.setstate((3, state, None))
        generator.getrandbits(32 * (len(state) - state[-1]))
        state = generator.getstate()[1]
    return False


def _keeps_generator(module: ModuleType) -> bool:
    kinds: list[type] = [random.Random]
    if (numpy := sys.modules.get("numpy.random")) is not None:
        kinds += [numpy.Generator, numpy.RandomState]
    if (torch := sys.modules.get("torch")) is not None:
        kinds.append(torch.Generator)
    return any(isinstance(value, tuple(kinds)) for value in list(vars(module).values()))


_INSTALLED = tuple(
    os.path.realpath(path) + os.sep
    for name, path in sysconfig.get_paths().items()
    if name in {"stdlib", "platstdlib", "purelib", "platlib"}
)


def _is_installed(root: str) -> bool:
    """Whether a package is an installed one, and not the user's own."""
    path = getattr(sys.modules.get(root), "__file__", None)
    return isinstance(path, str) and os.path.realpath(path).startswith(_INSTALLED)


def _own_file(module: ModuleType) -> str | None:
    """Give a module's file, if it is the user's own: part of no installed package."""
    path = getattr(module, "__file__", None)
    if not isinstance(path, str) or os.path.realpath(path).startswith(_INSTALLED):
        return None
    return path


def _files(modules: Sequence[ModuleType]) -> dict[str, tuple[int, int]]:
    found = {}
    for module in modules:
        path = _own_file(module)
        if path is not None and (stamp := _stamp(path)) is not None:
            found[path] = stamp
    return found


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _words(error: BaseException) -> str:
    lines = str(error).strip().split("\n")
    return f"{type(error).__name__}: {lines[0]}" if lines[0] else type(error).__name__

"""Every module and public name of the installed Lightning stands below `rekindle.pytorch`.

Public is what a module lists in ``__all__``, the classes and functions that it defines or that a
package shows, and its constants. A name is real or an alias, or is refused with words when it is
used.
"""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

from rekindle.pytorch import names, namespace, refusals  # noqa: E402

INSIDE = {
    # Constants and loggers that modules have for themselves.
    "CHECKPOINT_PAST_HPARAMS_KEYS", "FRAMEWORK_NAME", "LEFTOVER_PARAMS_NAME", "LIGHTNING_LOGO",
    "LOCAL_FILE_URI_PREFIX", "MODULE_OPTIMIZERS", "NOT_APPLICABLE", "PARAMETER_NUM_UNITS",
    "CPU_DEVICE", "TBroadcast", "TReduce", "UNKNOWN_SIZE", "comet_experiment", "log",
    "warning_cache", "BType", "T", "ModuleType",
}  # fmt: skip


def walk():
    yield "", lightning
    for found in pkgutil.walk_packages(lightning.__path__, "lightning.pytorch."):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(found.name)
        yield found.name.removeprefix("lightning.pytorch."), module


def public(module):
    """The names that scripts may import from a module."""
    found = set(getattr(module, "__all__", ()))
    for name, value in vars(module).items():
        home = getattr(value, "__module__", None) or ""
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
            shown = hasattr(module, "__path__") and home.startswith("lightning")
            if home == module.__name__ or shown:
                found.add(name)
    for node in ast.parse(Path(module.__file__).read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if name in getattr(module, "__all__", ()) or name[0] != "_"}


@pytest.fixture(scope="module")
def walked():
    return dict(walk())


def ours(path):
    return importlib.import_module(f"rekindle.pytorch.{path}".rstrip("."))


def test_every_module_is_there_with_all_its_names(walked):
    missing = {}
    for path, module in walked.items():
        absent = {name for name in public(module) - INSIDE if not hasattr(ours(path), name)}
        if absent:
            missing[path] = absent
        assert all(
            getattr(ours(path), name) is not None for name in getattr(ours(path), "__all__", ())
        )
    assert not missing


def refused():
    for path, homes in names.NAMES.items():
        for name in homes.get("", "").split():
            yield path, name


def test_a_refused_name_says_what_to_write_when_it_is_used():
    for path, name in refused():
        entry = getattr(ours(path), name)
        assert entry.__doc__[-1] != ".", name
        words = rf"^{name} is not supported: \w"
        with pytest.raises(namespace.NotSupported, match=words):
            entry(1, a=2)
        with pytest.raises(namespace.NotSupported, match=words):
            type("Own", (entry,), {})
        with pytest.raises(AttributeError, match=words):
            entry.is_available()
        assert not isinstance(1, entry)
        assert (entry | None) is not None


def test_no_row_of_the_table_is_stale(walked):
    assert {path for path in names.NAMES if path not in walked} == set()
    # In Lightning's module or, for names that packages of ours add, in ours.
    for path, homes in names.NAMES.items():
        for home, listed in homes.items():
            for entry in listed.split():
                name = entry.partition("=")[0]
                assert name == "*" or hasattr(walked[path], name), (path, name)
                if not home:
                    others = [
                        set(importlib.import_module(o).__all__)
                        for o, n in homes.items()
                        if "*" in n
                    ]
                    assert all(name not in other for other in others), f"{name} is there by now"
    used = {key for path, name in refused() for key in (f"{path}.{name}", name)}
    assert set(refusals.INSTEAD) <= used


def test_every_way_to_write_an_import_works():
    script = """
import rekindle.pytorch as pl
import rekindle as L
import rekindle.pytorch.callbacks.early_stopping as module
import rekindle.pytorch.utilities.model_summary.model_summary
from rekindle.pytorch.callbacks.early_stopping import EarlyStopping
from rekindle.pytorch.callbacks import *
from rekindle.pytorch import callbacks, loggers
from rekindle import pytorch
assert module.EarlyStopping is EarlyStopping is callbacks.EarlyStopping is L.callbacks.EarlyStopping
assert pl.callbacks is callbacks and L.pytorch is pl is pytorch
assert ModelCheckpoint is pl.callbacks.model_checkpoint.ModelCheckpoint
assert pl.utilities.rank_zero.rank_zero_only is pl.utilities.rank_zero_only
assert L.callbacks.model_checkpoint.__name__ == "rekindle.callbacks.model_checkpoint"
assert pl.callbacks.checkpoint.__name__ == "rekindle.pytorch.callbacks.checkpoint"
from rekindle.pytorch.cli import LightningCLI
"""
    namespace_of_script = {}
    exec(script, namespace_of_script)
    assert namespace_of_script["pl"].__version__ == lightning.__version__


@pytest.mark.processes
def test_importing_the_names_costs_nothing():
    code = (
        "import sys, rekindle.pytorch as pl, rekindle.pytorch.callbacks.early_stopping\n"
        "import rekindle.pytorch.utilities, rekindle.pytorch.loops, rekindle.pytorch.demos\n"
        "print(*{'torch', 'numpy', 'rekindle.callback'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    )  # fmt: skip
    assert done.stdout.strip() == ""


def test_what_is_nowhere_is_an_error_that_tells_what_there_is():
    import rekindle.pytorch as pl

    with pytest.raises(AttributeError, match=r"no attribute 'Nothing'; it has .*EarlyStopping"):
        _ = pl.callbacks.Nothing
    with pytest.raises(ImportError, match="cannot import name 'EarlyStoping'"):
        exec("from rekindle.pytorch.callbacks import EarlyStoping")
    with pytest.raises(ModuleNotFoundError, match="No module named 'rekindle.pytorch.nothing'"):
        importlib.import_module("rekindle.pytorch.nothing")

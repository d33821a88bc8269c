"""Processes that tests start import `torch._dynamo` when they need it, not with their first step.

Half of what a process that trains costs at its start is that import, and tests start hundreds of
them. Optimizers ask for it in any case, but all they want without a compiler are two functions that
do nothing. Those are here; whoever looks for anything else of it, or for one of its modules, gets
the real one, whole.

And what an import makes stays, so that to look through it for garbage, again and again, is a fifth
of what torch costs: it is done more rarely.
"""

import gc
import importlib
import importlib.abc
import importlib.util
import sys
import types

_NAME = "torch._dynamo"

gc.set_threshold(50_000, 20, 20)


def _real():
    if isinstance(sys.modules.get(_NAME), _Later):
        del sys.modules[_NAME]
        sys.meta_path.remove(_finder)
    return importlib.import_module(_NAME)


class _Later(types.ModuleType):
    def graph_break(self, msg=""):
        if sys.modules.get(_NAME) is not self:
            _real().graph_break(msg)

    def disable(self, fn=None, recursive=True, **options):
        if sys.modules.get(_NAME) is not self or fn is None or not recursive:
            return _real().disable(fn, recursive, **options)
        return fn

    def __getattr__(self, name):
        if name in {"__spec__", "__file__", "__wrapped__"}:
            raise AttributeError(name)
        return getattr(_real(), name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Of the first of its modules that is wanted: by then, the whole may have imported it."""

    def find_spec(self, name, path=None, target=None):
        if not name.startswith(f"{_NAME}."):
            return None
        _real()
        if name in sys.modules:
            return importlib.util.spec_from_loader(name, self)
        return None

    def create_module(self, spec):
        self._module = sys.modules[spec.name]
        self._spec = self._module.__spec__
        return self._module

    def exec_module(self, module):
        module.__spec__ = self._spec


_finder = _Finder()
if _NAME not in sys.modules:
    sys.modules[_NAME] = _Later(_NAME)
    sys.meta_path.insert(0, _finder)

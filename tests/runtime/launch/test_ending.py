"""What a worker leaves alone at its end, since the next round waits for it."""

import sys
import types
import weakref

from rekindle.launch.spawn.worker import keep_operators


class Thing:
    pass


def test_torchs_operators_stay_registered_and_all_else_is_finalized(monkeypatch):
    library = types.SimpleNamespace(_del_library=lambda: None)
    monkeypatch.setitem(sys.modules, "torch.library", library)
    things = Thing(), Thing()
    theirs = weakref.finalize(things[0], library._del_library)
    other = weakref.finalize(things[1], print)
    keep_operators()
    assert (theirs.atexit, other.atexit) == (False, True)
    assert theirs.alive, "while the process lives it counts"
    other.detach()


def test_a_program_without_torch_ends_as_ever(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.library", raising=False)
    keep_operators()

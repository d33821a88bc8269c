"""Manifests as people bring them, on the clusters of the scenarios (tests/e2e)."""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).parent

# A conftest is no module that another folder can import by name.
_spec = importlib.util.spec_from_file_location("e2e_site", HERE.parent / "e2e" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_e2e = sys.modules["e2e_site"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_e2e)

site = _e2e.site

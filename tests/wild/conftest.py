"""Manifests as people bring them, on the clusters of the scenarios (tests/e2e)."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# A conftest is no module that another folder can import by name.
_spec = importlib.util.spec_from_file_location("e2e_site", HERE.parent / "e2e" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_e2e = sys.modules["e2e_site"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_e2e)

site, namespace = _e2e.site, _e2e.namespace
submit_for_all, eventually = _e2e.submit_for_all, _e2e.eventually


def scripts() -> dict[str, str]:
    """What the manifests run, as the data of a ConfigMap."""
    return {path.name: path.read_text() for path in (HERE / "scripts").glob("*.py")}


@pytest.fixture(scope="module")
def wild_scripts(site, namespace) -> None:
    """Have these scripts in the namespace, in the place of the scenarios'."""
    body = {"metadata": {"name": "scripts"}, "data": scripts()}
    site.core.replace_namespaced_config_map("scripts", namespace, body)

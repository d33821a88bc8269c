"""Promises about the package itself."""

import ast
import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import rekindle.checkpoint
from rekindle.checkpoint.format import checksum

FOLDER = Path(rekindle.checkpoint.__file__).parent
MODULES = sorted(
    str(path.relative_to(FOLDER).with_suffix(""))
    for path in FOLDER.rglob("*.py")
    if path.stem != "__init__"
)


def imports(name: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", MODULES)
def test_nothing_in_the_package_can_unpickle(name):
    text = (FOLDER / f"{name}.py").read_text()
    forbidden = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    assert not forbidden & {module.split(".")[0] for module in imports(name)}
    assert "torch.load(" not in text
    assert "eval(" not in text
    assert "allow_pickle" not in text


@pytest.mark.parametrize("name", MODULES)
def test_the_package_reaches_no_other_part_of_the_runtime_than_the_contract_and_threads(name):
    own = {m for m in imports(name) if m.split(".")[0] == "rekindle"} - {"rekindle"}
    outside = ("rekindle.api", "rekindle.threads")
    assert all(m.startswith(("rekindle.checkpoint", *outside)) for m in own), own


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(rekindle.checkpoint)
    assert result.attempted > 3
    assert result.failed == 0


def test_every_public_name_exists():
    for name in rekindle.checkpoint.__all__:
        assert getattr(rekindle.checkpoint, name).__name__ == name
    with pytest.raises(AttributeError, match="Nothing"):
        _ = rekindle.checkpoint.Nothing


def test_crc64nvme_is_the_one_that_s3_computes():
    check = memoryview(b"123456789")
    assert checksum.crc("crc64nvme")(check) == 0xAE8B14860A799888
    assert checksum.crc("crc32")(check) == 0xCBF43926


@pytest.mark.processes
def test_manifests_can_be_read_where_torch_is_not_installed():
    script = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "numpy", "boto3"}:
            raise ModuleNotFoundError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import rekindle.checkpoint
from rekindle.checkpoint import Store, lineage
from rekindle.checkpoint.format import encoding, layout, manifest
from rekindle.checkpoint.objects import file, interface, location
assert Store.open("/tmp/rekindle-none").commits() == []
assert "torch" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        timeout=60,
        env={"PYTHONPATH": str(FOLDER.parents[1])},
    )

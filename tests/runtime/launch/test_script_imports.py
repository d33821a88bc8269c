"""What is read from the beginning of a script."""

import pytest

from rekindle.launch.spawn.script_imports import Import, top_of

TORCH = Import("torch")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch, os.path as path", [TORCH, Import("os.path")]),
        ("from torch import nn, optim as o", [Import("torch", ("nn", "optim"))]),
        ("from model import *", [Import("model")]),
        ("from __future__ import annotations", []),
        ("try:\n    import apex\nexcept ImportError:\n    import other", [Import("apex")]),
        ("if True:\n    import a\ndef f():\n    import b\nclass C:\n    import d", []),
        ("'''Words.'''\nx = 1\nROOT = f(2)\nimport torch", [TORCH]),
        ("warnings.filterwarnings('ignore')\nprint(1)\nimport torch", [TORCH]),
        ("mode = os.environ.get('MODE')\nimport torch", []),
        ("import torch\nsys.path.insert(0, 'src')\nimport utils", [TORCH]),
        ("import torch\nx = sys.path.pop()\nimport utils", [TORCH]),
        ("import torch\npatch()\nimport utils", [TORCH]),
        ("import torch\ntorch.x = 1\nimport utils", [TORCH]),
        ("import torch\nif x:\n    os.chdir('y')\nimport utils", [TORCH]),
        ("try:\n    f()\n    import a\nexcept E:\n    pass\nimport b", []),
    ],
)
def test_imports_are_taken_that_run_in_any_case_and_find_what_they_would(source, expected):
    assert list(top_of(source).imports) == expected


def test_relative_imports_refer_to_the_package():
    source = "from . import model\nfrom .data import load\nfrom ..other import x"
    found = top_of(source, "pack.inner").imports
    assert [each.module for each in found] == ["pack.inner", "pack.inner.data", "pack.other"]
    assert {each.root for each in found} == {"pack"}
    assert top_of(source).imports == ()


def test_variables_set_to_plain_text_are_known_and_others_end_the_reading():
    found = top_of(
        "import os\nos.environ['A'] = '1'\nos.environ.setdefault('B', '2')\nimport torch\n"
        "os.environ['C'] = str(3)\nos.environ['D'] = '4'\nimport late"
    )
    assert (found.variables, found.defaults) == ({"A": "1"}, {"B": "2"})
    assert found.imports == (Import("os"), TORCH)


def test_a_source_that_is_no_python_is_refused():
    with pytest.raises(SyntaxError):
        top_of("def f(:")

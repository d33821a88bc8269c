"""What `tests/startup` puts in the place of `torch._dynamo` costs nothing and hides nothing."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.processes

TRAIN = """
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(2):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
REAL = "hasattr(sys.modules['torch._dynamo'], '__file__')"


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (f"{TRAIN}print({REAL})", "False"),
        (f"torch.compile(abs, backend='eager')(torch.ones(1)); print({REAL})", "True"),
        ("import torch._dynamo.config as c; print(c is torch._dynamo.config)", "True"),
        (f"from torch._dynamo import OptimizedModule; {TRAIN}print({REAL})", "True"),
    ],
)
def test_a_compiler_is_imported_when_it_is_asked_for(program, told):
    program = program.replace("; ", "\n")
    run = subprocess.run(
        [sys.executable, "-c", f"import sys, torch\n{program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == told

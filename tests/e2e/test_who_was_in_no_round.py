"""A pod that ends well has trained only if it was in a round.

What programs that are not ours live through is in tests/wild.
"""

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


def test_a_command_that_ends_without_a_round_is_no_success(submit):
    """Something has taken the launcher's place, a shell that swallows its failure for example."""
    job = submit(
        "stranger",
        container={"command": ["sh", "-c", "exit 0; exec python -m rekindle.launch x.py"]},
        replicas=2,
    )
    failed = job.failed()
    assert failed["reason"] == "StartFailed"
    assert "was in no round" in failed["message"]
    assert job.status["round"] == 0

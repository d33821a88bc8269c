import os

import pytest

from rekindle_cli.local.stack import LocalStack, Options
from rekindle_cli.output.failure import USAGE, CommandFailure
from rekindle_local.state_lock import StateLock


@pytest.mark.processes
def test_a_second_cluster_on_a_state_directory_names_the_first(tmp_path):
    lock = StateLock(tmp_path)
    lock.take()
    with pytest.raises(CommandFailure, match=f"in use by PID {os.getpid()}") as refused:
        LocalStack(Options(nodes=1, state_dir=tmp_path, workdirs={}), print).__enter__()
    assert refused.value.code == USAGE
    lock.release()

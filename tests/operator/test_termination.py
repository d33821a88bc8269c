"""The operator is told to end while it waits for an API server that gives no answer."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import yaml

pytestmark = pytest.mark.processes
SECONDS = 60.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_has_to_wait_can_be_ended(tmp_path, number):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
            "clusters": [{"name": "c", "cluster": {"server": address}}],
            "users": [{"name": "c", "user": {"token": "t"}}],
        }
        (tmp_path / "config").write_text(yaml.safe_dump(config))
        operator = subprocess.Popen(
            [
                sys.executable, "-m", "rekindle_operator",
                "--coordinator-url", "https://rekindle.test:8430", "--tls-secret", "system/tls",
                "--host", "127.0.0.1", "--port", "0", "--metrics-port", "0",
            ],
            env={**os.environ, "KUBECONFIG": str(tmp_path / "config")},
            stderr=subprocess.PIPE,
        )  # fmt: skip
        with operator, server.accept()[0]:  # it has asked for its secret, and waits
            operator.send_signal(number)
            told = operator.communicate(timeout=SECONDS)[1]
        assert operator.returncode == 0, told
        assert b"Traceback" not in told

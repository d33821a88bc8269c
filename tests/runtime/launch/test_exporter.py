"""What a scrape of a pod sees."""

import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from rekindle.api import Member, Round
from rekindle.launch.coordinator.session import PodSession
from rekindle.launch.coordinator.single_pod import SoloLink
from rekindle.launch.health import exporter
from rekindle.launch.pod.settings import from_environment
from rekindle.ranks.control_page import ControlPage

WORKER = """
from prometheus_client import Counter, Gauge

Counter("rekindle_samples", "x").inc(64)
Gauge("rekindle_step", "told by the agent already", multiprocess_mode="max").set(999)
"""


@pytest.fixture
def session(tmp_path) -> PodSession:
    settings = from_environment({"REKINDLE_PROC_PER_NODE": "1"})
    made = PodSession(settings, SoloLink(), SimpleNamespace(port=1))
    made.start()
    member = Member(pod="p", uid="u", address="127.0.0.1", store_port=1, nproc=1)
    made.joined(Round(number=3, members=(member,), reason="test", formed_at=0.0))
    page = ControlPage(tmp_path, create=True)
    page.step_done(step=7, epoch=0, samples=70, productive=2.5, stall=0.5)
    page.committed(step=5, at=1.0)
    made.attach(page)
    (tmp_path / "prometheus").mkdir()
    return made


@contextmanager
def served(session, tmp_path) -> Iterator[str]:
    server = exporter.start(session, lambda: tmp_path, address="127.0.0.1", port=0)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()


@pytest.mark.processes
def test_metrics_of_the_agent_and_of_dead_workers_are_told_once_each(session, tmp_path):
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "prometheus")}
    subprocess.run([sys.executable, "-c", WORKER], env=environment, check=True, timeout=30)
    with served(session, tmp_path) as url:
        lines = get(url + "/metrics").splitlines()
    assert "rekindle_samples_total 64.0" in lines
    assert [line for line in lines if line.startswith("rekindle_step")] == ["rekindle_step 7.0"]
    for line in ("rekindle_round 3.0", "rekindle_rounds_joined_total 1.0"):
        assert line in lines
    assert "rekindle_last_committed_step 5.0" in lines
    assert "rekindle_checkpoint_stall_seconds 0.5" in lines
    assert 'rekindle_pod_phase{phase="running"} 1.0' in lines


def test_health_is_the_main_loops(session, tmp_path):
    with served(session, tmp_path) as url:
        assert get(url + "/healthz") == "ok running\n"
        session.turned_at -= exporter.STUCK + 1
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            get(url + "/healthz")
        caught.value.close()


def test_other_paths_are_not_there(session, tmp_path):
    with (
        served(session, tmp_path) as url,
        pytest.raises(urllib.error.HTTPError, match="404") as caught,
    ):
        get(url + "/")
    caught.value.close()


def test_a_taken_port_costs_the_metrics_only(session, tmp_path, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert exporter.start(session, lambda: None, address="127.0.0.1", port=port) is None
    assert f"cannot listen on 127.0.0.1:{port}" in caplog.text

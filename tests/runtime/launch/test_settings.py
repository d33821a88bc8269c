"""The environment of a pod, read and checked."""

import pytest

from rekindle.launch.__main__ import checked
from rekindle.launch.pod.access import CoordinatorAccess
from rekindle.launch.pod.cgroup import oom_kills
from rekindle.launch.pod.settings import from_environment

OPERATED = {
    "REKINDLE_COORDINATOR_URL": "http://op:8430/",
    "REKINDLE_JOB_NAME": "job",
    "REKINDLE_JOB_NAMESPACE": "ns",
    "REKINDLE_POD_NAME": "job-0",
    "REKINDLE_POD_UID": "u",
    "REKINDLE_POD_IP": "10.0.0.1",
    "REKINDLE_TOKEN": "t",
    "REKINDLE_PROC_PER_NODE": "2",
}


def test_an_operated_pod_knows_its_names():
    settings = from_environment(OPERATED)
    assert settings.access.read() == CoordinatorAccess(url="http://op:8430", token="t")
    assert (settings.nproc, settings.grace, settings.metrics_port) == (2, 30.0, 9430)


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, None), ("auto", None), ("90", 90.0), ("never", float("inf"))]
)
def test_how_long_a_worker_may_be_silent(text, seconds):
    variables = OPERATED | ({"REKINDLE_HANG_TIMEOUT": text} if text else {})
    assert from_environment(variables).hang_timeout == seconds


def test_a_round_brings_what_has_changed_since_the_pod_was_made():
    settings = from_environment(OPERATED | {"REKINDLE_HANG_TIMEOUT": "90"})
    told = {"REKINDLE_HANG_TIMEOUT": "never", "REKINDLE_GRACE_SECONDS": "12", "REKINDLE_TOKEN": "x"}
    now = settings.in_round(told)
    assert (now.hang_timeout, now.grace) == (float("inf"), 12.0)
    assert now.access.read().token == "t"
    assert settings.in_round(None) == settings
    assert settings.in_round({"REKINDLE_HANG_TIMEOUT": "auto"}).hang_timeout is None
    with pytest.raises(ValueError, match="REKINDLE_GRACE_SECONDS is 'soon'"):
        settings.in_round({"REKINDLE_GRACE_SECONDS": "soon"})


def test_a_pod_without_an_operator_needs_nothing():
    settings = from_environment({"REKINDLE_PROC_PER_NODE": "cpu", "REKINDLE_METRICS_PORT": ""})
    assert settings.access is None
    assert settings.nproc >= 1
    assert settings.metrics_port is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"REKINDLE_COORDINATOR_URL": "op:8430"}, "must begin with http"),
        ({"REKINDLE_COORDINATOR_URL": "http://"}, "name a host"),
        ({"REKINDLE_TOKEN": "", "REKINDLE_POD_IP": ""}, "REKINDLE_POD_IP, REKINDLE_TOKEN"),
        ({"REKINDLE_PROC_PER_NODE": "0"}, "must be auto, gpu, cpu or a number"),
        ({"REKINDLE_PROC_PER_NODE": "many"}, "'many'"),
        ({"REKINDLE_HANG_TIMEOUT": "soon"}, "must be auto, never, or a number of seconds"),
        ({"REKINDLE_HANG_TIMEOUT": "0"}, "from 1 up"),
        ({"REKINDLE_GRACE_SECONDS": "soon"}, "REKINDLE_GRACE_SECONDS is 'soon'"),
        ({"REKINDLE_GRACE_SECONDS": "-1"}, "0 or more"),
        ({"REKINDLE_METRICS_PORT": "70000"}, "must be a port number"),
    ],
)
def test_bad_settings_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        from_environment(OPERATED | change)


def test_credentials_in_a_url_are_refused_and_not_repeated():
    with pytest.raises(ValueError, match="holds credentials") as refused:
        from_environment(OPERATED | {"REKINDLE_COORDINATOR_URL": "http://me:s3cr3t@op:8430"})
    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no script"),
        (["-m"], "no script"),
        (["--nproc", "x"], "'--nproc'"),
        (["no.py"], "no.py"),
    ],
)
def test_a_bad_command_line_says_what_is_expected(arguments, words):
    with pytest.raises(ValueError, match=words):
        checked(arguments)


def test_kernel_kills_are_counted_in_either_version_of_cgroups(tmp_path):
    membership = tmp_path / "membership"
    membership.write_text("0::/pod\n")
    (tmp_path / "pod").mkdir()
    (tmp_path / "pod" / "memory.events").write_text("oom 4\noom_kill 3\noom_group_kill 0\n")
    assert oom_kills(tmp_path, membership) == 3
    membership.write_text("7:cpu,memory:/old\n")
    (tmp_path / "memory" / "old").mkdir(parents=True)
    (tmp_path / "memory" / "old" / "memory.oom_control").write_text("under_oom 0\noom_kill 2\n")
    assert oom_kills(tmp_path, membership) == 2
    assert oom_kills(tmp_path / "none", tmp_path / "none") is None

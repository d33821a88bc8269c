"""How the coordinator is reached, out of files that change under the pod."""

import os

import pytest

from rekindle.api import AgentPhase, AgentReport, View
from rekindle.launch.coordinator.client import CoordinatorConnection, CoordinatorError
from rekindle.launch.pod.access import AccessFiles, CoordinatorAccess, access_to
from rekindle.launch.pod.settings import from_environment


def write(folder, **files):
    """As a kubelet does: a new directory, and one link that turns to it."""
    fresh = folder / f"..{len(list(folder.iterdir()))}"
    fresh.mkdir()
    for name, text in files.items():
        (fresh / name.replace("_", ".")).write_text(text)
    link = folder / "..new"
    link.symlink_to(fresh.name)
    os.replace(link, folder / "..data")
    for name in (key.replace("_", ".") for key in files):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")


def settings(folder):
    return from_environment(
        {
            "REKINDLE_ACCESS_DIR": str(folder),
            "REKINDLE_JOB_NAME": "job",
            "REKINDLE_JOB_NAMESPACE": "default",
            "REKINDLE_POD_NAME": "a",
            "REKINDLE_POD_UID": "u",
            "REKINDLE_POD_IP": "127.0.0.1",
            "REKINDLE_PROC_PER_NODE": "1",
        }
    )


def test_each_reading_is_of_one_moment(tmp_path):
    access = AccessFiles(directory=tmp_path)
    write(tmp_path, url="http://a:1/\n", token="one")
    assert access.read() == CoordinatorAccess(url="http://a:1", token="one")
    write(tmp_path, url="https://b:2", token="two", ca_crt="PEM")
    assert access.read() == CoordinatorAccess(url="https://b:2", token="two", authority="PEM")


def test_plain_files_will_do(tmp_path):
    (tmp_path / "url").write_text("http://a:1")
    (tmp_path / "token").write_text("one")
    assert AccessFiles(directory=tmp_path).read() == CoordinatorAccess(
        url="http://a:1", token="one"
    )


def test_what_is_wrong_with_a_file_is_said_and_no_secret(tmp_path):
    with pytest.raises(OSError, match="url"):
        AccessFiles(directory=tmp_path).read()
    write(tmp_path, url="http://me:s3cr3t@op", token="t")
    with pytest.raises(ValueError, match="url holds credentials") as refused:
        AccessFiles(directory=tmp_path).read()
    assert "s3cr3t" not in str(refused.value)


def test_an_authority_that_is_none_is_an_error_of_the_connection():
    with pytest.raises(OSError, match=r".+"):
        CoordinatorAccess(url="https://a:1", token="t", authority="nonsense").context()


def test_the_directory_goes_first_and_without_either_there_is_no_operator(tmp_path):
    both = {"REKINDLE_ACCESS_DIR": str(tmp_path), "REKINDLE_COORDINATOR_URL": "http://a:1"}
    assert access_to(both) == AccessFiles(directory=tmp_path)
    assert access_to({}) is None


@pytest.mark.servers
def test_an_agent_follows_an_operator_that_moves_and_a_token_that_is_replaced(
    coordinator, tmp_path
):
    report = AgentReport(
        pod="a", uid="u", address="127.0.0.1", store_port=1, nproc=1, phase=AgentPhase.WAITING
    )
    write(tmp_path, url="http://127.0.0.1:9", token="a secret")
    client = CoordinatorConnection(settings(tmp_path))
    with pytest.raises(CoordinatorError, match="cannot reach http://127.0.0.1:9"):
        client.report(report)
    write(tmp_path, url=coordinator.url, token="of yesterday")
    with pytest.raises(CoordinatorError, match="answers 401"):
        client.report(report)
    write(tmp_path, url=coordinator.url, token="a secret")
    assert isinstance(client.report(report), View)
    (tmp_path / "..data" / "token").unlink()
    assert isinstance(client.report(report), View), "a connection that stands needs no file"

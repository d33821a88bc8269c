import pytest

from rekindle_local.apiserver.registry import Column, Registry
from rekindle_local.apiserver.tables import (
    custom_cell,
    duration,
    json_path,
    pod_status,
    table,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (190, "3m10s"),
        (900, "15m"),
        (3 * 3600, "3h"),
        (5 * 3600 + 60, "5h1m"),
        (20 * 3600, "20h"),
        (3 * 86400, "3d"),
        (3 * 86400 + 3600, "3d1h"),
        (30 * 86400, "30d"),
        (800 * 86400, "2y70d"),
    ],
)
def test_ages_read_as_kubectl_writes_them(seconds, text):
    assert duration(seconds) == text


def test_json_paths_find_fields_items_and_filtered_items():
    obj = {
        "a": {"b.c": 1, "l": [{"t": "x", "v": 5}, {"t": "y", "v": 6}]},
        "m": {"k": "1", "j": "2"},
    }
    assert json_path(obj, r".a.b\.c") == [1]
    assert json_path(obj, ".a['b.c']") == [1]
    assert json_path(obj, ".a.l[1].v") == [6]
    assert json_path(obj, ".a.l[-1].v") == [6]
    assert json_path(obj, ".a.l[*].v") == [5, 6]
    assert json_path(obj, '.a.l[?(@.t=="y")].v') == [6]
    assert json_path(obj, ".a.missing.x") == []


@pytest.mark.parametrize(
    ("kind", "value", "cell"),
    [
        ("integer", 3, 3),
        ("integer", "3", None),
        ("number", 1.5, 1.5),
        ("string", 3, "3"),
        ("string", {"a": 1}, '{"a":1}'),
        ("boolean", True, True),
        ("date", "1970-01-01T00:00:00Z", "100s"),
    ],
)
def test_cells_of_custom_columns_follow_their_type(kind, value, cell):
    column = Column(name="X", type=kind, path=".f")
    assert custom_cell(column, {"f": value}, 100.0) == cell
    assert custom_cell(column, {}, 100.0) is None


def status(**more):
    return {"metadata": {"name": "p"}, "spec": {"containers": [{}]}, "status": more}


def container(**state):
    return {"containerStatuses": [{"state": state}]}


@pytest.mark.parametrize(
    ("pod", "word"),
    [
        (status(phase="Pending"), "Pending"),
        (status(phase="Failed", reason="Evicted"), "Evicted"),
        (
            status(phase="Running", **container(waiting={"reason": "CrashLoopBackOff"})),
            "CrashLoopBackOff",
        ),
        (
            status(phase="Failed", **container(terminated={"exitCode": 1, "reason": "Error"})),
            "Error",
        ),
        (status(phase="Failed", **container(terminated={"exitCode": 3})), "ExitCode:3"),
        (
            status(phase="Pending", initContainerStatuses=[{"state": {"running": {}}}]),
            "Init:0/0",
        ),
        (
            status(
                phase="Running",
                initContainerStatuses=[{"state": {"terminated": {"exitCode": 0}}}],
                containerStatuses=[{"state": {"running": {}}, "ready": True}],
            ),
            "Running",
        ),
        (
            {**status(phase="Running"), "metadata": {"name": "p", "deletionTimestamp": "x"}},
            "Terminating",
        ),
    ],
)
def test_the_status_of_a_pod_names_what_is_wrong(pod, word):
    assert pod_status(pod) == word


def test_every_builtin_kind_has_as_many_cells_as_columns():
    for resource in Registry():
        obj = {"metadata": {"name": "x"}, "kind": resource.kind}
        made = table(resource, [obj], {}, 0.0, include="None")
        assert len(made["rows"][0]["cells"]) == len(made["columnDefinitions"]), resource.kind

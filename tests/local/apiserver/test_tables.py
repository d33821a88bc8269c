import pytest

from rekindle_local.apiserver.http.tables import custom_cell, json_path, table
from rekindle_local.apiserver.kinds.printers import duration, pod_status
from rekindle_local.apiserver.registry import Column, Registry


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


def initializing(*statuses, sidecars=(), **more):
    """A pod with init containers; the names in `sidecars` are restarted always."""
    made = status(phase="Pending", **more)
    made["status"]["initContainerStatuses"] = [
        {"name": f"i{at}", **one} for at, one in enumerate(statuses)
    ]
    made["spec"]["initContainers"] = [
        {"name": f"i{at}", **({"restartPolicy": "Always"} if at in sidecars else {})}
        for at, _ in enumerate(statuses)
    ]
    return made


def state(**fields):
    return {"state": fields}


def gated():
    condition = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
    return status(phase="Pending", conditions=[condition])


DONE = state(terminated={"exitCode": 0})
NEXT = state(waiting={"reason": "PodInitializing"})


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
        (initializing(state(running={})), "Init:0/1"),
        (initializing(DONE, NEXT), "Init:1/2"),
        (initializing(state(terminated={"exitCode": 4, "reason": "Error"})), "Init:Error"),
        (initializing(state(terminated={"exitCode": 137, "signal": 9})), "Init:Signal:9"),
        (
            initializing(state(waiting={"reason": "CrashLoopBackOff"}), NEXT),
            "Init:CrashLoopBackOff",
        ),
        # A sidecar is past when it has started, whether it runs or is started again.
        (initializing(state(running={}), NEXT, sidecars={0}), "Init:0/2"),
        (
            initializing({**state(running={}), "started": True}, NEXT, sidecars={0}),
            "Init:1/2",
        ),
        (
            initializing(
                state(waiting={"reason": "CrashLoopBackOff"}),
                sidecars={0},
                conditions=[{"type": "Initialized", "status": "True"}],
                containerStatuses=[{"state": {"running": {}}, "ready": True}],
            ),
            "Pending",
        ),
        (gated(), "SchedulingGated"),
        (
            {**status(phase="Running"), "metadata": {"name": "p", "deletionTimestamp": "x"}},
            "Terminating",
        ),
        # What has ended is not on its way out any more, whoever holds the object.
        (
            {
                **status(phase="Failed", reason="DeadlineExceeded"),
                "metadata": {"name": "p", "deletionTimestamp": "x"},
            },
            "DeadlineExceeded",
        ),
    ],
)
def test_the_status_of_a_pod_names_what_is_wrong(pod, word):
    assert pod_status(pod) == word


def cells(pod, now=0.0):
    resource = Registry().find("", "v1", "pods")
    return table(resource, [pod], {}, now, include="None")["rows"][0]["cells"]


def test_sidecars_count_among_the_containers_of_a_pod():
    pod = initializing(
        {**state(running={}), "started": True, "ready": True, "restartCount": 1},
        {**DONE, "restartCount": 5},
        sidecars={0},
        conditions=[{"type": "Initialized", "status": "True"}],
        containerStatuses=[{"name": "c", "state": {"running": {}}, "ready": False}],
    )
    assert cells(pod)[1:4] == ["1/2", "Pending", "1"]


def test_the_last_restart_is_told_with_its_age():
    ended = {"terminated": {"exitCode": 1, "finishedAt": "1970-01-01T00:01:40Z"}}
    pod = status(
        phase="Running",
        containerStatuses=[{"name": "c", "state": {}, "lastState": ended, "restartCount": 2}],
    )
    assert cells(pod, 130.0)[3] == "2 (30s ago)"


def test_every_builtin_kind_has_as_many_cells_as_columns():
    for resource in Registry():
        obj = {"metadata": {"name": "x"}, "kind": resource.kind}
        made = table(resource, [obj], {}, 0.0, include="None")
        assert len(made["rows"][0]["cells"]) == len(made["columnDefinitions"]), resource.kind

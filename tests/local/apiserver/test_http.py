"""Over the wire: what a client without any library of ours sees."""

import asyncio
import http.client
import json
import socket
import threading
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from rekindle_local.apiserver.http import watches

pytestmark = pytest.mark.servers

TABLE = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
PARTIAL = {"Accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"}


def pod(name="p", node=None, **labels):
    spec = {"containers": [{"name": "c", "image": "i:1"}], **({"nodeName": node} if node else {})}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec}


def widget(name="one", **spec):
    metadata = {"name": name}
    body = {"apiVersion": "example.dev/v1", "kind": "Widget", "metadata": metadata}
    return {**body, "spec": {"color": "red", **spec}}


# --- discovery and documents ----------------------------------------------------------------------


def test_discovery_names_every_kind_with_its_subresources(api):
    groups = [group["name"] for group in api.get("/apis").body["groups"]]
    assert "example.dev" in groups
    assert groups == sorted(groups)
    rows = {row["name"]: row for row in api.get("/apis/example.dev/v1").body["resources"]}
    assert rows["widgets"]["shortNames"] == ["wd"]
    assert rows["widgets"]["categories"] == ["all"]
    assert rows["widgets/scale"]["kind"] == "Scale"
    assert "watch" in rows["widgets"]["verbs"]
    core = {row["name"] for row in api.get("/api/v1").body["resources"]}
    assert {"pods", "pods/log", "pods/eviction", "pods/binding", "nodes/status"} <= core


def test_health_and_version_answer(api):
    for path in ("/healthz", "/readyz", "/livez"):
        assert api.get(path).body == b"ok"
    assert api.get("/version").body["gitVersion"].startswith("v1.34")


def test_the_openapi_document_of_a_crd_tells_that_fields_are_validated(api):
    index = api.get("/openapi/v3").body["paths"]
    document = api.get(index["apis/example.dev/v1"]["serverRelativeURL"]).body
    item = document["paths"]["/apis/example.dev/v1/namespaces/{namespace}/widgets/{name}"]
    assert "fieldValidation" in [entry["name"] for entry in item["patch"]["parameters"]]
    assert item["patch"]["x-kubernetes-group-version-kind"]["kind"] == "Widget"
    schema = document["components"]["schemas"]["dev.example.v1.Widget"]
    assert schema["properties"]["spec"]["properties"]["color"]["description"] == "The colour."


def test_every_openapi_document_refers_only_to_what_it_holds(api):
    for entry in api.get("/openapi/v3").body["paths"].values():
        document = api.get(entry["serverRelativeURL"]).body
        text = json.dumps(document)
        names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
        assert names <= document["components"]["schemas"].keys()


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/metrics", 404),
        ("GET", "/apis/monitoring.coreos.com/v1/podmonitors", 404),
        ("GET", "/api/v1/endpoints", 404),
        ("GET", "/api/v1/namespaces/default/pods/none", 404),
        ("GET", "/api/v1/pods/none", 404),
        ("POST", "/api/v1/pods", 405),
        ("POST", "/api/v1/namespaces/default/pods/none", 405),
        ("DELETE", "/api/v1/namespaces", 405),
        ("POST", "/api/v1/namespaces/default/pods/none/exec", 501),
        ("GET", "/api/v1/namespaces/default/pods/none/portforward", 501),
        ("GET", "/api/v1/namespaces/default/services/none/proxy/deep/path", 501),
        ("GET", "/apis/batch/v1/jobs", 404),
        ("POST", "/version", 405),
    ],
)
def test_what_is_not_there_says_so_with_a_status(api, method, path, code):
    answer = api.call(method, path, {} if method == "POST" else None)
    assert answer.status == code
    assert answer.body["kind"] == "Status"
    assert answer.body["code"] == code
    assert answer.body["message"]


# --- reading and writing --------------------------------------------------------------------------


def test_an_object_is_created_read_replaced_patched_and_deleted(api):
    home = api.namespace()
    made = api.post(home.pods, pod())
    assert made.status == 201
    body = made.body
    body["metadata"]["labels"] = {"a": "b"}
    assert api.put(f"{home.pods}/p", body).status == 200
    assert api.put(f"{home.pods}/p", body).status == 409
    patched = api.patch(f"{home.pods}/p", {"metadata": {"labels": {"a": None, "c": "d"}}})
    assert patched.body["metadata"]["labels"] == {"c": "d"}
    assert api.get(f"{home.pods}/p").body == patched.body
    assert api.delete(f"{home.pods}/p").status == 200
    assert api.get(f"{home.pods}/p").status == 404


def test_a_deleted_custom_resource_answers_with_a_status(api):
    home = api.namespace()
    api.post(home.widgets, widget())
    answer = api.delete(f"{home.widgets}/one").body
    assert (answer["kind"], answer["status"]) == ("Status", "Success")
    assert answer["details"]["name"] == "one"


def test_json_patch_tests_guard_a_write(api):
    home = api.namespace()
    api.post(home.widgets, widget())
    guard = {"op": "test", "path": "/spec/replicas", "value": 99}
    change = {"op": "replace", "path": "/spec/replicas", "value": 5}
    assert api.patch(f"{home.widgets}/one", [guard, change], "json-patch+json").status == 422
    assert api.get(f"{home.widgets}/one").body["spec"]["replicas"] == 1
    good = {**guard, "value": 1}
    assert api.patch(f"{home.widgets}/one", [good, change], "json-patch+json").status == 200


def test_a_patch_with_an_old_revision_is_a_conflict(api):
    home = api.namespace()
    revision = api.post(home.widgets, widget()).body["metadata"]["resourceVersion"]
    path = f"{home.widgets}/one"
    api.patch(path, {"spec": {"replicas": 2}})
    stale = {"metadata": {"resourceVersion": revision}, "spec": {"replicas": 3}}
    assert api.patch(path, stale).status == 409


def test_strategic_merge_is_for_builtin_kinds_only(api):
    home = api.namespace()
    api.post(home.widgets, widget())
    kind = "strategic-merge-patch+json"
    assert api.patch(f"{home.widgets}/one", {}, kind).status == 415
    api.post(home.pods, pod())
    body = {"status": {"conditions": [{"type": "A", "status": "True"}]}}
    api.patch(f"{home.pods}/p/status", body, kind)
    body["status"]["conditions"] = [{"type": "B", "status": "True"}]
    patched = api.patch(f"{home.pods}/p/status", body, kind).body
    assert [item["type"] for item in patched["status"]["conditions"]] == ["A", "B"]


def test_server_side_apply_creates_owns_and_conflicts(api):
    home = api.namespace()
    path, kind = f"{home.widgets}/one", "apply-patch+yaml"
    made = api.patch(path, widget(replicas=2), kind, fieldManager="a")
    assert made.status == 201
    assert made.body["metadata"]["managedFields"][0]["manager"] == "a"
    assert api.patch(path, widget(replicas=3), kind, fieldManager="b").status == 409
    taken = api.patch(path, widget(replicas=3), kind, fieldManager="b", force="true")
    assert taken.body["spec"]["replicas"] == 3
    unnamed = api.patch(path, widget(), kind, fieldManager="b").body
    assert unnamed["spec"]["replicas"] == 1, "what nobody owns any more returns to its default"


def test_duplicate_and_unknown_fields_are_refused_or_warned_of(api):
    home = api.namespace()
    raw = b'{"metadata":{"name":"d"},"spec":{"color":"red","color":"blue","nope":1}}'
    strict = api.call("POST", home.widgets, raw, fieldValidation="Strict")
    assert strict.status == 400
    assert 'duplicate field "spec.color", unknown field "spec.nope"' in strict.body["message"]
    assert api.get(f"{home.widgets}/d").status == 404
    warned = api.call("POST", home.widgets, raw)
    assert warned.status == 201
    assert '299 - "unknown field \\"spec.nope\\""' in warned.headers.get_all("Warning")
    assert (
        "Warning"
        not in api.call(
            "POST", home.widgets, raw.replace(b'"d"', b'"e"'), fieldValidation="Ignore"
        ).headers
    )


@pytest.mark.parametrize(
    ("raw", "media", "code"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"", "application/json", 400),
        (b"<x/>", "application/xml", 415),
        (b'{"kind": "Secret", "apiVersion": "v1"}', "application/json", 400),
        (b'{"kind": "Pod", "apiVersion": "v2"}', "application/json", 400),
        (b'{"metadata": {"name": "x", "namespace": "other"}}', "application/json", 400),
        (b"x" * 3_200_000, "application/json", 413),
    ],
)
def test_a_bad_body_is_refused_for_what_it_is(api, raw, media, code):
    answer = api.call("POST", "/api/v1/namespaces/default/pods", raw, media=media)
    assert answer.status == code


@pytest.mark.parametrize(
    "query",
    [
        {"dryRun": "Some"},
        {"fieldValidation": "Maybe"},
        {"limit": "many"},
        {"watch": "perhaps"},
        {"labelSelector": "a in"},
        {"fieldSelector": "spec.nothing=1"},
        {"resourceVersion": "abc"},
        {"resourceVersionMatch": "Exact"},
        {"continue": "garbage"},
    ],
)
def test_a_bad_parameter_is_a_400(api, query):
    method = "POST" if {"dryRun", "fieldValidation"} & query.keys() else "GET"
    body = pod("bad-parameter") if method == "POST" else None
    assert api.call(method, "/api/v1/namespaces/default/pods", body, **query).status == 400


# --- lists ----------------------------------------------------------------------------------------


def test_lists_are_filtered_by_labels_and_fields(api):
    home = api.namespace()
    api.post(home.pods, pod("a", node="n1", app="x"))
    api.post(home.pods, pod("b", node="n2", app="x"))
    api.post(home.pods, pod("c"))

    def names(**query):
        return [item["metadata"]["name"] for item in api.get(home.pods, **query).body["items"]]

    assert names() == ["a", "b", "c"]
    assert names(labelSelector="app=x") == ["a", "b"]
    assert names(fieldSelector="spec.nodeName=n2") == ["b"]
    assert names(labelSelector="!app", fieldSelector="status.phase=Pending") == ["c"]
    assert names(fieldSelector="metadata.name!=a,spec.nodeName!=") == ["b"]


def test_custom_resources_can_be_selected_by_their_selectable_fields(api):
    home = api.namespace()
    for name, color in (("a", "red"), ("b", "blue")):
        api.post(home.widgets, widget(name, color=color))
    found = api.get(home.widgets, fieldSelector="spec.color=blue").body["items"]
    assert [item["metadata"]["name"] for item in found] == ["b"]


def test_a_list_comes_in_pages(api):
    home = api.namespace()
    for at in range(5):
        api.post(home.pods, pod(f"p{at}"))
    names, token, sizes = [], "", []
    while True:
        page = api.get(home.pods, limit=2, **({"continue": token} if token else {})).body
        names += [item["metadata"]["name"] for item in page["items"]]
        sizes.append(page["metadata"].get("remainingItemCount", 0))
        token = page["metadata"].get("continue", "")
        if not token:
            break
    assert names == [f"p{at}" for at in range(5)]
    assert sizes == [3, 1, 0]


def test_a_page_token_is_too_old_when_the_history_is_gone(fresh_api):
    api = fresh_api()
    path = "/api/v1/namespaces/default/configmaps"
    for name in ("a", "b"):
        api.post(path, {"metadata": {"name": name}})
    token = api.get(path, limit=1).body["metadata"]["continue"]
    api.server._store._buckets["configmaps"].forgotten = api.server._store.revision + 1
    expired = api.get(path, limit=1, **{"continue": token})
    assert (expired.status, expired.body["reason"]) == (410, "Expired")


def test_a_collection_is_deleted_by_selector(api):
    home = api.namespace()
    for name, app in (("a", "x"), ("b", "x"), ("c", "y")):
        api.post(home.pods, pod(name, app=app))
    api.delete(home.pods, labelSelector="app=x")
    assert [item["metadata"]["name"] for item in api.get(home.pods).body["items"]] == ["c"]


def test_tables_carry_columns_cells_and_metadata(api):
    home = api.namespace()
    api.post(home.widgets, widget(replicas=4))
    table = api.get(home.widgets, headers=TABLE).body
    assert [column["name"] for column in table["columnDefinitions"]] == [
        "Name",
        "Phase",
        "Replicas",
        "Age",
    ]
    [row] = table["rows"]
    assert row["cells"][:3] == ["one", None, 4]
    assert row["object"]["kind"] == "PartialObjectMetadata"
    full = api.get(f"{home.widgets}/one", headers=TABLE, includeObject="Object").body
    assert full["rows"][0]["object"]["spec"]["replicas"] == 4


def test_metadata_alone_can_be_asked_for(api):
    home = api.namespace()
    api.post(home.pods, pod())
    assert "spec" not in api.get(f"{home.pods}/p", headers=PARTIAL).body
    listed = api.get(home.pods, headers=PARTIAL).body
    assert listed["kind"] == "PartialObjectMetadataList"
    assert "spec" not in listed["items"][0]


def test_an_answer_that_nobody_wants_is_a_406(api):
    assert api.get("/api/v1/pods", headers={"Accept": "text/html"}).status == 406


# --- watches --------------------------------------------------------------------------------------


def seen(event):
    return event["type"], event["object"]["metadata"].get("name")


def test_a_watch_shows_the_present_and_then_every_change(api):
    home = api.namespace()
    api.post(home.pods, pod("old"))
    with api.watch(home.pods) as events:
        assert seen(next(events)) == ("ADDED", "old")
        api.post(home.pods, pod("new"))
        api.patch(f"{home.pods}/new", {"metadata": {"labels": {"a": "b"}}})
        api.delete(f"{home.pods}/new")
        assert [seen(next(events)) for _ in range(3)] == [
            ("ADDED", "new"),
            ("MODIFIED", "new"),
            ("DELETED", "new"),
        ]


def test_a_watch_continues_from_a_revision(api):
    home = api.namespace()
    revision = api.post(home.pods, pod("a")).body["metadata"]["resourceVersion"]
    api.post(home.pods, pod("b"))
    api.delete(f"{home.pods}/a")
    with api.watch(home.pods, resourceVersion=revision) as events:
        assert [seen(next(events)) for _ in range(2)] == [("ADDED", "b"), ("DELETED", "a")]


def test_a_watch_from_before_the_history_ends_with_410(api):
    api.server._store._buckets["pods"].forgotten = 1
    with api.watch("/api/v1/pods", resourceVersion="0000") as events:
        event = next(events)
    assert event["type"] == "ERROR"
    assert event["object"]["code"] == 410
    assert event["object"]["reason"] == "Expired"


def test_an_object_enters_and_leaves_a_selector(api):
    home = api.namespace()
    api.post(home.pods, pod())
    path = f"{home.pods}/p"
    with api.watch(home.pods, labelSelector="app=x") as events:
        api.patch(path, {"metadata": {"labels": {"app": "x"}}})
        api.patch(path, {"metadata": {"labels": {"b": "c"}}})
        api.patch(path, {"metadata": {"labels": {"app": "y"}}})
        api.delete(path)
        api.post(home.pods, pod("q", app="x"))
        assert [seen(next(events)) for _ in range(4)] == [
            ("ADDED", "p"),
            ("MODIFIED", "p"),
            ("DELETED", "p"),
            ("ADDED", "q"),
        ]


def test_a_watch_of_one_name_sees_nothing_else(api):
    home = api.namespace()
    with api.watch(home.pods, fieldSelector="metadata.name=b") as events:
        api.post(home.pods, pod("a"))
        api.post(home.pods, pod("b"))
        assert seen(next(events)) == ("ADDED", "b")


def test_initial_events_end_with_an_annotated_bookmark(api):
    home = api.namespace()
    api.post(home.pods, pod("a"))
    query = {
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
    }
    with api.watch(home.pods, **query) as events:
        assert seen(next(events)) == ("ADDED", "a")
        mark = next(events)
    assert mark["type"] == "BOOKMARK"
    assert mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_an_idle_watch_gets_bookmarks_with_the_current_revision(fresh_api, monkeypatch):
    monkeypatch.setattr("rekindle_local.apiserver.http.server.BOOKMARK_SECONDS", 0.05)
    api = fresh_api()
    with api.watch("/api/v1/pods", allowWatchBookmarks="true") as events:
        mark = next(events)
    assert mark["type"] == "BOOKMARK"
    assert int(mark["object"]["metadata"]["resourceVersion"]) == api.server._store.revision


def test_a_watch_ends_when_its_time_is_over(api):
    with api.watch("/api/v1/nodes", timeoutSeconds=1) as events:
        assert list(events) == []


def test_a_watch_of_tables_sends_the_columns_once(api):
    home = api.namespace()
    api.post(home.widgets, widget())
    with api.watch(home.widgets, headers=TABLE) as events:
        first = next(events)
        api.patch(f"{home.widgets}/one", {"spec": {"replicas": 3}})
        second = next(events)
    assert first["object"]["kind"] == "Table"
    assert first["object"]["columnDefinitions"]
    assert second["object"]["columnDefinitions"] is None
    assert second["object"]["rows"][0]["cells"][2] == 3


def test_a_watcher_that_does_not_read_is_dropped(fresh_api, monkeypatch):
    monkeypatch.setattr(watches, "QUEUE", 10)
    api = fresh_api()
    path = "/api/v1/namespaces/default/configmaps"
    address = urlsplit(api.url)
    with socket.create_connection((address.hostname, address.port)) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.sendall(f"GET {path}?watch=1 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        api.eventually(lambda: watchers(api, "configmaps"))
        body = {"metadata": {"name": "a"}, "data": {"k": "x" * 900_000}}
        api.post(path, body)
        for at in range(40):
            api.patch(f"{path}/a", {"metadata": {"labels": {"at": str(at)}}})
        api.eventually(lambda: not watchers(api, "configmaps"))


def test_a_watcher_that_leaves_is_forgotten_without_waiting_for_an_event(fresh_api):
    api = fresh_api()
    with api.watch("/api/v1/nodes"):
        api.eventually(lambda: watchers(api, "nodes"))
    api.eventually(lambda: not watchers(api, "nodes"))


def watchers(api, bucket):
    found = api.server._store._buckets.get(bucket)
    return len(found.subscribers) if found else 0


def test_stopping_the_server_ends_open_watches(fresh_api):
    api = fresh_api()
    with api.watch("/api/v1/pods") as events:
        done = threading.Event()
        reader = threading.Thread(target=lambda: (drain(events), done.set()))
        reader.start()
        asyncio.run_coroutine_threadsafe(api.server.stop(), api.loop).result(60)
        assert done.wait(60)
        reader.join()


def drain(events):
    try:
        return list(events)
    except (http.client.HTTPException, OSError):
        return []


# --- the worker behind ----------------------------------------------------------------------------


def test_dependents_go_with_their_owner(api):
    home = api.namespace()
    owner = api.post(home.widgets, widget()).body
    body = pod()
    body["metadata"]["ownerReferences"] = [
        {
            "apiVersion": "example.dev/v1",
            "kind": "Widget",
            "name": "one",
            "uid": owner["metadata"]["uid"],
        }
    ]
    api.post(home.pods, body)
    api.delete(f"{home.widgets}/one")
    api.eventually(lambda: api.get(f"{home.pods}/p").status == 404)


def test_a_terminating_namespace_takes_nothing_new(api):
    home = api.namespace()
    body = pod()
    body["metadata"]["finalizers"] = ["example.dev/wait"]
    api.post(home.pods, body)
    api.delete(home.core)
    refused = api.post(home.pods, pod("late"))
    assert refused.status == 403
    assert refused.body["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    api.eventually(lambda: "deletionTimestamp" in api.get(f"{home.pods}/p").body["metadata"])
    api.patch(f"{home.pods}/p", {"metadata": {"finalizers": None}})
    api.eventually(lambda: api.get(home.core).status == 404)


def test_an_eviction_is_refused_under_a_budget_and_else_deletes(api):
    home = api.namespace()
    api.post(home.pods, pod(app="x", node="n1"))
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    api.patch(f"{home.pods}/p/status", {"status": ready})
    budgets = f"/apis/policy/v1/namespaces/{home.name}/poddisruptionbudgets"
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}
    api.post(budgets, {"metadata": {"name": "b"}, "spec": spec})
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}}
    refused = api.post(f"{home.pods}/p/eviction", eviction)
    assert refused.status == 429
    assert refused.body["details"]["causes"][0]["reason"] == "DisruptionBudget"
    api.delete(f"{budgets}/b")
    assert api.post(f"{home.pods}/p/eviction", eviction).status == 201
    assert api.get(f"{home.pods}/p").body["metadata"]["deletionTimestamp"]


# --- access and reviews ---------------------------------------------------------------------------


def test_with_a_token_every_request_must_carry_it(fresh_api):
    api = fresh_api(token="secret")
    assert api.get("/healthz").status == 401
    assert api.get("/api/v1/pods", headers={"Authorization": "Bearer wrong"}).status == 401
    assert api.get("/api/v1/pods", headers={"Authorization": "Bearer secret"}).status == 200


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example:8001"}]
)
def test_without_a_token_a_web_page_cannot_reach_the_server(api, fresh_api, headers):
    assert api.post("/api/v1/namespaces/default/pods", pod(), headers=headers).status == 403
    guarded = fresh_api(token="secret")
    answer = guarded.get("/api", headers={**headers, "Authorization": "Bearer secret"})
    assert answer.status == 200


def test_the_names_of_this_machine_are_fine(api):
    for host in ("localhost:1", "127.0.0.1", "[::1]:80"):
        assert api.get("/api", headers={"Host": host}).status == 200


def test_access_reviews_allow_everything_and_say_why(api):
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    body = {"spec": {"resourceAttributes": {"verb": "delete", "resource": "nodes"}}}
    review = api.post(path, body)
    assert review.status == 201
    assert review.body["status"]["allowed"] is True
    assert "no authorisation" in review.body["status"]["reason"]


# --- logs -----------------------------------------------------------------------------------------


@pytest.fixture
def kubelet(api):
    """A kubelet that answers with what it was asked, on a node that says so."""

    async def logs(request):
        if request.match_info["container"] == "gone":
            return web.Response(status=404, text="no such container")
        return web.Response(text=f"{request.path_qs}\n")

    async def start():
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", logs)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), api.loop).result(60)
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": runner.addresses[0][1]}},
    }
    api.post("/api/v1/nodes", {"metadata": {"name": "log-node"}, "status": status})
    yield "log-node"
    api.delete("/api/v1/nodes/log-node")
    asyncio.run_coroutine_threadsafe(runner.cleanup(), api.loop).result(60)


def test_logs_are_asked_from_the_kubelet_of_the_node(api, kubelet):
    home = api.namespace()
    api.post(home.pods, pod(node=kubelet))
    answer = api.get(f"{home.pods}/p/log", tailLines=5, follow="true", previous="true")
    path = f"/containerLogs/{home.name}/p/c"
    assert answer.body.decode() == f"{path}?follow=true&previous=true&tailLines=5\n"


def test_the_container_of_a_log_must_be_clear(api, kubelet):
    home = api.namespace()
    body = pod(node=kubelet)
    body["spec"]["containers"].append({"name": "gone", "image": "i:1"})
    api.post(home.pods, body)
    unclear = api.get(f"{home.pods}/p/log")
    assert unclear.status == 400
    assert "choose one of: [c gone]" in unclear.body["message"]
    assert api.get(f"{home.pods}/p/log", container="x").status == 400
    assert api.get(f"{home.pods}/p/log", container="gone").status == 404
    annotation = {"kubectl.kubernetes.io/default-container": "c"}
    api.patch(f"{home.pods}/p", {"metadata": {"annotations": annotation}})
    assert api.get(f"{home.pods}/p/log").status == 200


def test_a_pod_without_node_or_kubelet_has_no_log_and_says_why(api):
    home = api.namespace()
    api.post(home.pods, pod())
    assert "does not have a host assigned" in api.get(f"{home.pods}/p/log").body["message"]
    api.post(home.pods, pod("q", node="mute-node"))
    assert api.get(f"{home.pods}/q/log").status == 404
    api.post("/api/v1/nodes", {"metadata": {"name": "mute-node"}})
    silent = api.get(f"{home.pods}/q/log")
    assert silent.status == 500
    assert "reports no kubelet address" in silent.body["message"]

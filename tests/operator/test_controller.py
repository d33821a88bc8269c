"""The shell around `reconcile`, against a cluster that is a dictionary."""

import asyncio
import base64
import copy
import itertools
import time
from operator import ge

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.api import AgentPhase, AgentReport, Progress, spec
from rekindle_operator import metrics
from rekindle_operator.controller import controller as module
from rekindle_operator.controller import handlers, job_state, operator_faults, status_writer
from rekindle_operator.controller.controller import Controller
from rekindle_operator.incidents.incidents import stamp
from rekindle_operator.kube.cluster import KubernetesError, ObjectRefused, token_in
from rekindle_operator.merge_patch import merge_patch
from rekindle_operator.pods import manifests

KEY = ("ml", "digits")


class FakeCluster:
    """Records calls; the k-th of them fails, or the operator is gone in the middle of it."""

    def __init__(self, body):
        self.body = body
        self.objects = {}
        self.status = {}
        self.calls = []
        self.posted = []
        self.events = []
        self.logs = {}
        self.faults = {}
        """By name of a call: exceptions to raise, one after the other."""
        self.die_at = None
        self.after = False
        self.uids = 0
        self.version = 1

    def call(self, *what):
        self.calls.append(what)
        if self.die_at == len(self.calls) and not self.after:
            raise asyncio.CancelledError
        if self.faults.get(what[0]):
            raise self.faults[what[0]].pop(0)

    def done(self):
        if self.die_at is not None and self.after and len(self.calls) >= self.die_at:
            raise asyncio.CancelledError

    def named(self, kind):
        return [name for k, name in self.objects if k == kind]

    async def create(self, manifest):
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        self.call("create", kind, name)
        await asyncio.sleep(0)
        if (kind, name) in self.objects:
            raise KubernetesError(409, "AlreadyExists", f"{kind} {name} already exists")
        self.uids += 1
        body = copy.deepcopy(dict(manifest))
        body["metadata"] |= {
            "uid": f"uid-{self.uids}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        }
        self.objects[kind, name] = body
        self.done()
        return copy.deepcopy(self.objects[kind, name])

    async def delete_pod(self, namespace, doomed):
        self.call("delete", "Pod", doomed.name)
        self.objects.pop(("Pod", doomed.name), None)
        self.done()

    async def end_pod(self, namespace, meant):
        self.call("end", "Pod", meant.name)
        self.objects["Pod", meant.name]["spec"]["activeDeadlineSeconds"] = 1
        self.done()

    async def pod_events(self, namespace, uid):
        return [event for event in self.events if event["involvedObject"]["uid"] == uid]

    async def pod_log(self, namespace, name, container, lines):
        return self.logs[name, container]

    async def patch_status(self, namespace, name, patch):
        self.call("status", patch)
        self.status = merged(self.status, patch)
        self.version += 1
        self.done()
        return await self.job(namespace, name)

    async def delete_job(self, namespace, name, uid):
        self.call("delete", "TrainingJob", name)

    async def token(self, namespace, name, owner):
        secret = self.objects.get(("Secret", name))
        if secret is None:
            return None
        return base64.b64decode(secret["data"]["token"]).decode() if "data" in secret else None

    async def find(self, kind, namespace, name):
        return copy.deepcopy(self.objects.get((kind, name)))

    async def patch(self, kind, namespace, name, patch):
        self.call("patch", kind, name)
        if (kind, name) not in self.objects:
            return None
        self.objects[kind, name] = merged(self.objects[kind, name], patch)
        return copy.deepcopy(self.objects[kind, name])

    async def job(self, namespace, name):
        body = copy.deepcopy({**self.body, "status": self.status})
        body["metadata"]["resourceVersion"] = str(self.version)
        return body

    async def post(self, body, events, now):
        if self.faults.get("post"):
            self.faults["post"].pop(0)
            return False
        self.posted.extend(events)
        return True


def merged(document, patch):
    """RFC 7396, written down here once more, from the RFC."""
    if not isinstance(patch, dict):
        return patch
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def job_body(manifest, **changes):
    body = manifest(replicas=2, **changes)
    body["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    return body


@pytest.fixture
def cluster(bodies):
    return FakeCluster(job_body(bodies))


class Operator:
    """One life of the operator's process."""

    def __init__(self, cluster, url="http://op:8430", authority=""):
        self.cluster, self.authority = cluster, authority
        self.controller = Controller(
            cluster, coordinator_url=url, watch_nodes=True, authority=lambda: self.authority
        )
        self.looks, self.reconcile = 0, self.controller._reconcile
        self.controller._reconcile = self.count

    async def count(self, key, state):
        self.looks += 1
        try:
            await self.reconcile(key, state)
        finally:
            self.looks -= 1

    async def __aenter__(self):
        body = await self.cluster.job(*KEY)
        self.controller.job_event(None, body)
        for (kind, _), body in list(self.cluster.objects.items()):
            if kind == "Pod":
                self.tell(None, body)
        self.controller.listed.set()
        return self

    async def __aexit__(self, *_):
        await self.controller.close()

    def tell(self, kind, body):
        """The watch of pods tells of one, if it has the labels."""
        labels = body["metadata"].get("labels", {})
        if labels.get("app.kubernetes.io/managed-by") == "rekindle":
            self.controller.pod_event(kind, copy.deepcopy(body))

    def look(self):
        """Time for a look at what nobody watches."""
        self.controller._jobs[KEY].looked_at = -1e9
        self.controller.wake(KEY)

    def agent(self, name, phase=AgentPhase.WAITING, **more):
        """An agent reports."""
        body = self.cluster.objects["Pod", name]
        report = AgentReport(
            pod=name,
            uid=body["metadata"]["uid"],
            address="10.0.0.1",
            store_port=1,
            nproc=1,
            phase=phase,
            **more,
        )
        self.controller.coordinator._note(KEY, report, time.time())

    async def until(self, condition, seconds=30.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (self.cluster.calls, self.cluster.status)
            await asyncio.sleep(0.005)

    async def rest(self):
        """Until it has looked at all that there is, and waits for something to happen."""
        state = self.controller._jobs[KEY]
        await self.until(lambda: not self.looks and state.due > time.monotonic())

    @property
    def round(self):
        return self.controller.coordinator.room(KEY).round


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 20))


async def started(operator):
    """Both pods are there and their agents wait."""
    await operator.until(lambda: len(operator.cluster.named("Pod")) == 2)
    for name in operator.cluster.named("Pod"):
        operator.agent(name)
    await operator.until(lambda: operator.round is not None)


def test_children_come_first_then_the_status_then_the_round(cluster):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            kinds = [call[0] for call in cluster.calls]
            assert kinds[:5] == ["create"] * 4 + ["status"]
            assert sorted(cluster.objects) == [
                ("Pod", "digits-0"),
                ("Pod", "digits-1"),
                ("Secret", "digits-rekindle"),
                ("Service", "digits-pods"),
            ]
            assert cluster.status["round"] == 1

    run(scenario())


def test_between_a_loss_and_the_round_that_follows_there_is_one_write_and_nothing_else(cluster):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            first = operator.round
            for name in cluster.named("Pod"):
                operator.agent(name, AgentPhase.RUNNING, round=first)
            await operator.rest()
            cluster.calls.clear()
            gone = cluster.objects.pop(("Pod", "digits-1"))
            operator.tell("DELETED", gone)
            await operator.until(lambda: operator.round is not first)
            assert [call[0] for call in cluster.calls][:2] == ["status", "create"]
            assert cluster.calls[0][1]["round"] == 2
            await operator.until(lambda: "digits-1r1" in cluster.named("Pod"))

    run(scenario())


def test_a_wish_to_save_is_shown_before_any_call(cluster):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            first = operator.round
            progress = Progress(step=5, round_steps=5)
            for name in cluster.named("Pod"):
                operator.agent(name, AgentPhase.RUNNING, round=first, progress=progress)
            await operator.rest()
            cluster.faults["status"] = [TimeoutError()] * 50
            cluster.faults["create"] = [TimeoutError()] * 50
            body = cluster.objects["Pod", "digits-1"]
            ends = stamp(time.time() + 5)
            body["metadata"] |= {"deletionTimestamp": ends, "deletionGracePeriodSeconds": 30}
            operator.tell("MODIFIED", body)
            room = operator.controller.coordinator.room(KEY)
            await operator.until(lambda: len(room.directives) == 2)
            assert all(0 < d.seconds < 5 for d in room.directives.values())

    run(scenario())


def test_nothing_is_decided_before_everything_was_listed(cluster, monkeypatch):
    monkeypatch.setattr(module, "LIST_PATIENCE", 0.05)
    monkeypatch.setattr(operator_faults, "RETRY_LEAST", 0.01)

    async def scenario():
        async with Operator(cluster) as operator:
            operator.controller.listed.clear()
            operator.controller.obstacle(
                "Pod", KubernetesError(403, "Forbidden", "cannot list pods")
            )
            await operator.until(lambda: reconciled(cluster)["status"] == "False")
            assert "cannot list pods" in reconciled(cluster)["message"]
            assert not cluster.objects
            operator.controller.obstacle("Pod", None)
            operator.controller.listed.set()
            await operator.until(lambda: len(cluster.named("Pod")) == 2)
            await operator.until(lambda: reconciled(cluster)["status"] == "True")

    run(scenario())


def versioned(body, version):
    body = copy.deepcopy(body)
    body["metadata"]["resourceVersion"] = str(version)
    return body


def test_no_form_of_before_takes_back_what_a_newer_one_has_told(cluster):
    """A termination taint came, a pod was to go, and a list that was older said they were not."""

    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            state, told = operator.controller._jobs[KEY], operator.controller
            pod = cluster.objects["Pod", "digits-0"]
            pod["spec"]["nodeName"] = "node-0"
            node = {"metadata": {"name": "node-0"}, "spec": {}, "status": {}}
            taint = {"key": "cloud.google.com/impending-node-termination", "effect": "NoSchedule"}
            operator.tell("MODIFIED", versioned(pod, 10))
            told.node_event("ADDED", versioned(node, 10))
            told.node_event("MODIFIED", versioned({**node, "spec": {"taints": [taint]}}, 12))
            going = copy.deepcopy(pod)
            going["metadata"] |= {"deletionTimestamp": stamp(time.time() + 99)}
            operator.tell("MODIFIED", versioned(going, 12))
            for kind in (None, "MODIFIED"):
                told.node_event(kind, versioned(node, 11))
                operator.tell(kind, versioned(pod, 11))
            (uid,) = [uid for uid, one in state.parsed.items() if one.name == "digits-0"]
            seen = told._observe(KEY, state, spec.parse(state.body, 0.0), time.time())
            assert seen.pod(uid).deleting
            assert seen.node_notices(seen.pod(uid))

    run(scenario())


def test_at_rest_nothing_is_asked_and_nothing_is_written(cluster, monkeypatch):
    async def scenario():
        async with Operator(cluster) as operator:
            await operator.until(lambda: len(cluster.named("Pod")) == 2)
            await operator.rest()
            state, later = operator.controller._jobs[KEY], [0.0]
            monkeypatch.setattr(module.time, "time", lambda: real() + later[0])

            async def pass_time():
                later[0] += 60.0
                state.wrote_at = 0.0  # nothing is put off
                operator.controller.wake(KEY)
                await operator.rest()

            await pass_time()
            before = list(cluster.calls)
            for _ in range(20):
                await pass_time()
            assert cluster.calls == before

    real = time.time
    run(scenario())


def test_a_job_that_went_unseen_is_forgotten_with_its_children(cluster):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            await operator.rest()

            async def none(*_):
                return None

            cluster.job = none
            cluster.calls.clear()
            cluster.objects.pop(("Secret", "digits-rekindle"))
            operator.look()
            await operator.until(lambda: KEY not in operator.controller._jobs)
            assert not cluster.calls
            assert len(operator.controller.known_pods()) == 2, "until they go, too"

    run(scenario())


def test_no_agent_hears_of_a_round_that_is_not_in_the_status(cluster, monkeypatch):
    monkeypatch.setattr(operator_faults, "RETRY_LEAST", 0.01)

    async def scenario():
        async with Operator(cluster) as operator:
            await operator.until(lambda: len(cluster.named("Pod")) == 2)
            await operator.until(lambda: cluster.status)
            cluster.faults["status"] = [KubernetesError(500, "no")] * 2
            for name in cluster.named("Pod"):
                operator.agent(name)
            await operator.until(lambda: not cluster.faults["status"])
            assert operator.round is None or cluster.status["round"] >= operator.round.number
            await operator.until(lambda: operator.round is not None)
            assert cluster.status["round"] == operator.round.number

    run(scenario())


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", range(1, 8))
def test_an_operator_that_dies_in_any_call_is_followed_by_one_that_duplicates_nothing(
    cluster, call, after
):
    async def scenario():
        cluster.die_at, cluster.after = call, after
        step = Progress(step=1, round_steps=1)
        async with Operator(cluster) as first:
            task = first.controller._jobs[KEY].task

            def died():
                runs = {"phase": AgentPhase.RUNNING, "round": first.round, "progress": step}
                for name in cluster.named("Pod"):
                    first.agent(name, **(runs if first.round else {}))
                return task.done()

            await first.until(died)
        cluster.die_at = None
        async with Operator(cluster) as second:
            await started(second)
            assert sorted(cluster.named("Pod")) == ["digits-0", "digits-1"]
            assert cluster.uids == 4, "each child was made once"
            assert cluster.status["round"] == second.round.number
            assert cluster.status["restarts"]["total"] == 0

    run(scenario())


def test_a_quota_that_is_used_up_does_not_keep_the_others_from_training(cluster, monkeypatch):
    monkeypatch.setattr(operator_faults, "RETRY_LEAST", 0.02)
    cluster.body["spec"]["elastic"] = {"minReplicas": 1}
    denied = KubernetesError(403, "Forbidden", "exceeded quota: gpus")

    async def scenario():
        create, tries = cluster.create, []

        async def limited(manifest):
            name = manifest["metadata"]["name"]
            if name.startswith("digits-1") and limited.on:
                tries.append(time.monotonic())
                raise denied
            return await create(manifest)

        limited.on = True
        cluster.create = limited
        async with Operator(cluster) as operator:
            await operator.until(lambda: cluster.status.get("conditions"))
            operator.agent("digits-0")
            await operator.until(lambda: operator.round is not None)
            assert [m.pod for m in operator.round.members] == ["digits-0"]
            reasons = {c["reason"]: c["message"] for c in cluster.status["conditions"]}
            assert "exceeded quota: gpus" in reasons["QuotaExceeded"]
            await operator.until(lambda: len(tries) == 5)
            pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
            least = [operator_faults.RETRY_LEAST * 2**number for number in range(4)]
            assert all(map(ge, pauses, least)), "tried ever more rarely"
            limited.on = False
            await operator.until(lambda: len(cluster.named("Pod")) == 2)
            await operator.until(
                lambda: "QuotaExceeded" not in {c["reason"] for c in cluster.status["conditions"]}
            )

    run(scenario())


HINDRANCES = {
    "a quota": KubernetesError(403, "Forbidden", "exceeded quota: gpus"),
    "a priority class that is missing": KubernetesError(
        403, "Forbidden", "no PriorityClass with name p"
    ),
    "a webhook": KubernetesError(400, "BadRequest", 'admission webhook "x" denied the request: no'),
    "a server in trouble": KubernetesError(503, "ServiceUnavailable", "no"),
    "no answer": TimeoutError(),
}


@pytest.mark.parametrize("name", HINDRANCES)
@pytest.mark.parametrize("tries", [1, 3])
def test_a_create_that_is_hindered_uses_up_no_name(cluster, monkeypatch, name, tries):
    monkeypatch.setattr(operator_faults, "RETRY_LEAST", 0.01)

    async def scenario():
        create, left = cluster.create, [HINDRANCES[name]] * tries

        async def hindered(manifest):
            if manifest["metadata"]["name"] == "digits-1" and left:
                raise left.pop()
            return await create(manifest)

        cluster.create = hindered
        async with Operator(cluster) as operator:
            await operator.until(lambda: len(cluster.named("Pod")) == 2)
            await operator.rest()
            assert sorted(cluster.named("Pod")) == ["digits-0", "digits-1"]
            assert cluster.status["accounting"]["generations"] == {"0": 0, "1": 0}
            gone = cluster.objects.pop(("Pod", "digits-1"))
            operator.tell("DELETED", gone)
            await operator.until(lambda: "digits-1r1" in cluster.named("Pod"))

    run(scenario())


def test_a_pod_that_is_refused_fails_the_job(cluster):
    async def scenario():
        cluster.faults["create"] = [ObjectRefused("spec.containers[0].image: Required value")] * 4
        async with Operator(cluster) as operator:
            await operator.until(lambda: cluster.status.get("phase") == "Failed")
            failed = next(c for c in cluster.status["conditions"] if c["type"] == "Failed")
            assert failed["reason"] == "PodRefused"
            assert "spec.containers[0].image" in failed["message"]

    run(scenario())


def test_figures_are_written_at_a_bounded_rate_and_news_at_once(cluster):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            await operator.rest()
            before, began = len(cluster.calls), time.monotonic()
            for _ in range(30):
                operator.controller.wake(KEY)
                await operator.rest()
            rate = 1 + (time.monotonic() - began) / status_writer.STATUS_INTERVAL
            assert len(cluster.calls) - before <= rate

    run(scenario())


def test_a_burst_of_events_becomes_few_reconciles(cluster, monkeypatch):
    plans = []
    real = module.reconcile
    monkeypatch.setattr(module, "reconcile", lambda *a, **k: plans.append(1) or real(*a, **k))

    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            await operator.rest()
            before = len(plans)
            body = cluster.objects["Pod", "digits-0"]
            for number in range(500):
                body["status"] = {"phase": "Pending", "message": f"m{number}"}
                body["status"]["conditions"] = [
                    {"type": "Ready", "status": str(number % 2 == 0), "reason": f"r{number}"}
                ]
                operator.tell("MODIFIED", body)
            await operator.rest()
            assert 1 <= len(plans) - before <= 5

    run(scenario())


def test_a_heartbeat_of_a_node_wakes_up_nobody(cluster, monkeypatch):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            cluster.objects["Pod", "digits-0"]["spec"]["nodeName"] = "node-0"
            operator.tell("MODIFIED", cluster.objects["Pod", "digits-0"])
            node = {"metadata": {"name": "node-0"}, "spec": {}, "status": {}}
            operator.controller.node_event(None, node)
            await operator.rest()
            woken = []
            monkeypatch.setattr(operator.controller, "wake", lambda *a: woken.append(a))
            operator.controller.node_event("MODIFIED", node)
            assert not woken
            node["spec"] = {"taints": [{"key": "karpenter.sh/disrupted"}]}
            operator.controller.node_event("MODIFIED", node)
            assert woken

    run(scenario())


def test_a_node_that_is_deleted_is_remembered_as_gone_and_one_not_seen_is_not(cluster):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            state = operator.controller._jobs[KEY]
            job = spec.parse(state.body, 0.0)

            def observe():
                return operator.controller._observe(KEY, state, job, time.time())

            for name, node in (("digits-0", "node-0"), ("digits-1", "brand-new")):
                body = cluster.objects["Pod", name]
                body["spec"]["nodeName"] = node
                operator.tell("MODIFIED", body)
            pods = {pod.name: pod for pod in observe().pods}
            assert observe().node_of(pods["digits-1"]) is None
            operator.controller.node_event("DELETED", {"metadata": {"name": "node-0"}})
            assert observe().node_of(pods["digits-0"]).gone
            assert not observe().lost(pods["digits-0"]), "its agent speaks"
            assert set(operator.controller.known_nodes()) >= {"brand-new"}, "a list has to have it"

    run(scenario())


def test_a_secret_that_somebody_deletes_comes_back_with_another_token(cluster):
    """Which is how a token is replaced: pods that run show the old one until they see the new."""

    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            (before,) = await operator.controller._tokens_of(KEY)
            cluster.objects.pop(("Secret", "digits-rekindle"))
            operator.look()
            state = operator.controller._jobs[KEY]
            await operator.until(lambda: "digits-rekindle" in cluster.named("Secret"))
            fresh = await cluster.token("ml", "digits-rekindle", "job-uid")
            assert fresh != before
            assert await operator.controller._tokens_of(KEY) == (fresh, before)
            assert state.tokens(time.monotonic() + job_state.OVERLAP) == (fresh,)

    run(scenario())


def test_a_secret_that_somebody_edits_is_put_right_when_pods_show_what_they_read_there(cluster):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            (before,) = await operator.controller._tokens_of(KEY)
            secret = cluster.objects["Secret", "digits-rekindle"]
            secret["data"]["token"] = base64.b64encode(b"edited").decode()
            state = operator.controller._jobs[KEY]
            operator.controller._mistrusted(KEY)
            assert state.looked_at > 0, "anybody can show a token: not more often than now and then"
            state.looked_at -= module.MISTRUST
            operator.controller._mistrusted(KEY)
            operator.controller._mistrusted(("ml", "nobody"))
            await operator.until(
                lambda: token_in(cluster.objects["Secret", "digits-rekindle"]) == before
            )

    run(scenario())


def test_pods_are_told_where_an_operator_is_that_was_installed_elsewhere(cluster):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            (token,) = await operator.controller._tokens_of(KEY)
        pods = cluster.named("Pod")
        async with Operator(cluster, url="https://op.elsewhere:8430", authority="PEM") as operator:
            await started(operator)
            found = cluster.objects["Secret", "digits-rekindle"]["data"]
            told = {key: base64.b64decode(value).decode() for key, value in found.items()}
            assert told == {"token": token, "url": "https://op.elsewhere:8430", "ca.crt": "PEM"}
            assert cluster.named("Pod") == pods, "and none is made anew"

    run(scenario())


def test_all_pods_are_told_at_once_when_somebody_else_vouches_for_the_coordinator(cluster):
    async def scenario():
        async with Operator(cluster, url="https://op:8430", authority="PEM") as operator:
            await started(operator)
            data = cluster.objects["Secret", "digits-rekindle"]["data"]
            for authority in ("ANOTHER", ""):
                operator.authority = authority
                operator.controller.authority_changed()
                wanted = base64.b64encode(authority.encode()).decode() or None
                await operator.until(lambda wanted=wanted: told(cluster) == wanted)
            assert told(cluster) is None
            assert cluster.objects["Secret", "digits-rekindle"]["data"]["token"] == data["token"]

    def told(cluster):
        return cluster.objects["Secret", "digits-rekindle"]["data"].get("ca.crt")

    run(scenario())


def test_a_spec_that_cannot_be_read_is_told_and_tried_again_when_it_changes(cluster):
    good = copy.deepcopy(cluster.body["spec"])
    cluster.body["spec"]["deadlines"] = {"startup": "soon"}

    async def scenario():
        async with Operator(cluster) as operator:
            await operator.until(lambda: cluster.status.get("conditions"))
            told = {c["type"]: c for c in cluster.status["conditions"]}
            assert (told["Degraded"]["status"], told["Reconciled"]["status"]) == ("True", "False")
            for condition in told.values():
                assert condition["reason"] == "InvalidSpec"
                assert "spec.deadlines.startup is 'soon'" in condition["message"]
            assert cluster.status["phase"] == "Pending"
            assert not cluster.objects
            cluster.body["spec"] = good
            cluster.body["metadata"]["generation"] = 2
            operator.controller.job_event("MODIFIED", cluster.body)
            await operator.until(lambda: len(cluster.named("Pod")) == 2)
            await operator.until(lambda: reconciled(cluster)["status"] == "True")
            assert [
                c["status"] for c in cluster.status["conditions"] if c["type"] == "Degraded"
            ] == ["False"]

    run(scenario())


def reconciled(cluster):
    conditions = cluster.status.get("conditions") or ()
    return next((c for c in conditions if c["type"] == "Reconciled"), {"status": None})


def gauge(name="rekindle_jobs_not_reconciled"):
    return metrics.REGISTRY.get_sample_value(name)


FAULTS = {
    "a fault of ours": (KeyError("index"), "InternalError", "KeyError: 'index' (controller.py:"),
    "a refusal": (
        KubernetesError(403, "Forbidden", "pods is forbidden"),
        "ApiServerRefuses",
        "the API server answers 403 pods is forbidden",
    ),
    "a server in trouble": (KubernetesError(503), "ApiServerError", "the API server answers 503"),
    "no answer": (
        TimeoutError(),
        "ApiServerUnreachable",
        "the API server does not answer: TimeoutError",
    ),
    "a secret in the words": (
        ValueError("no Bearer abc.def for you" + "x" * 5000),
        "InternalError",
        "ValueError: no Bearer *** for you",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_whatever_a_reconcile_raises_reaches_the_job(cluster, monkeypatch, name):
    error, reason, words = FAULTS[name]
    monkeypatch.setattr(operator_faults, "RETRY_LEAST", 0.001)
    monkeypatch.setattr(operator_faults, "RETRY_MOST", 0.01)
    real, left = module.reconcile, [error] * 20

    def failing(*given, **more):
        if left:
            raise left.pop()
        return real(*given, **more)

    monkeypatch.setattr(module, "reconcile", failing)

    async def scenario():
        async with Operator(cluster) as operator:
            await operator.until(lambda: reconciled(cluster)["status"] == "False")
            told = reconciled(cluster)
            assert told["reason"] == reason
            assert told["message"].startswith(words)
            assert len(told["message"]) <= operator_faults.LENGTH
            assert "Traceback" not in str(cluster.status)
            assert cluster.status["phase"] == "Pending"
            assert gauge() == 1
            await operator.until(lambda: reconciled(cluster)["status"] == "True")
            await operator.until(lambda: len(cluster.named("Pod")) == 2)
            assert gauge() == 0
            failed = [e for e in cluster.posted if e.reason == "ReconcileFailed"]
            assert len(failed) == 1, "one event for one fault, however often it comes"
            assert failed[0].message == told["message"]
            statuses = [call for call in cluster.calls if call[0] == "status"]
            assert len(statuses) < 10, "and no write for each try"

    run(scenario())


def test_trouble_that_passes_at_once_is_not_told(cluster, monkeypatch):
    monkeypatch.setattr(operator_faults, "RETRY_LEAST", 0.001)
    real, left = module.reconcile, [TimeoutError()]

    def failing(*given, **more):
        if left:
            raise left.pop()
        return real(*given, **more)

    monkeypatch.setattr(module, "reconcile", failing)

    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            written = [call[1] for call in cluster.calls if call[0] == "status"]
            assert "ApiServerUnreachable" not in str(written)

    run(scenario())


def test_trouble_that_could_be_told_is_tried_again_at_once_and_then_more_rarely(
    cluster, monkeypatch
):
    monkeypatch.setattr(operator_faults, "RETRY_LEAST", 0.001)
    real, left = module.reconcile, [TimeoutError()] * 4
    pause, pauses = operator_faults.pause, []

    def failing(*given, **more):
        if left and cluster.status.get("phase"):
            raise left.pop()
        return real(*given, **more)

    def noted(*given, **more):
        pauses.append(pause(*given, **more))
        return pauses[-1]

    monkeypatch.setattr(module, "reconcile", failing)
    monkeypatch.setattr(operator_faults, "pause", noted)

    async def scenario():
        async with Operator(cluster) as operator:
            await operator.until(lambda: cluster.status.get("phase"))
            operator.controller.wake(KEY)
            await operator.until(lambda: len(pauses) == 4)
            await operator.until(lambda: reconciled(cluster)["status"] == "True")
            # The second one is the first that is told, and an API server that takes it answers.
            assert pauses == [operator_faults.RETRY_LEAST * factor for factor in (2, 1, 8, 16)]

    run(scenario())


@pytest.mark.parametrize("events", [0, 100], ids=["the event arrives", "nor does the event"])
def test_when_the_status_cannot_be_written_an_event_tells_and_else_the_metrics(
    cluster, monkeypatch, caplog, events
):
    monkeypatch.setattr(operator_faults, "RETRY_LEAST", 0.001)
    monkeypatch.setattr(operator_faults, "RETRY_MOST", 0.01)
    cluster.faults["status"] = [
        KubernetesError(422, "Invalid", "status.phase: Unsupported value")
    ] * 1000
    cluster.faults["post"] = [True] * events

    async def scenario():
        async with Operator(cluster) as operator:
            await operator.until(lambda: gauge() == 1)
            if events:
                await operator.until(lambda: "status cannot be written" in caplog.text)
            else:
                await operator.until(lambda: cluster.posted)
                assert "status.phase: Unsupported value" in cluster.posted[-1].message
            cluster.faults.clear()
            await operator.until(lambda: reconciled(cluster)["status"] == "True")
            assert gauge() == 0

    run(scenario())


@pytest.mark.parametrize("failures", [1, 2, 10, 5000])
@pytest.mark.parametrize("passes", [False, True])
def test_the_pause_before_another_try_grows_to_a_limit(failures, passes):
    fault = operator_faults.Fault(reason="R", message="m", passes=passes)
    pause = operator_faults.pause(failures, fault)
    assert operator_faults.RETRY_LEAST <= pause <= operator_faults.RETRY_MOST
    assert operator_faults.pause(failures + 1, fault) >= pause
    assert failures < 10 or pause == operator_faults.RETRY_MOST
    told = operator_faults.pause(failures, fault, arrived=True)
    assert told == (operator_faults.RETRY_LEAST if passes else pause)


def test_a_spec_that_is_mended_waits_for_no_pause(cluster, monkeypatch):
    monkeypatch.setattr(operator_faults, "RETRY_LEAST", 30.0)
    good = copy.deepcopy(cluster.body["spec"])
    cluster.body["spec"]["template"] = None

    async def scenario():
        async with Operator(cluster) as operator:
            await operator.until(lambda: reconciled(cluster)["status"] == "False")
            cluster.body["spec"] = good
            cluster.body["metadata"]["generation"] = 2
            operator.controller.job_event("MODIFIED", cluster.body)
            await operator.until(lambda: len(cluster.named("Pod")) == 2)

    run(scenario())


SPECS = [None, "word", [], {}, {"template": None, "checkpoint": None}, {"template": []}]
SPECS += [{"elastic": 3}, {"replicas": "many"}, {"deadlines": ["a"]}, {"restart": {"user": 1}}]
SPECS += [{"checkpoint": {"uri": "s3://b/r", "every": 3}}, {"capacity": {"notices": [{}]}}]


@pytest.mark.parametrize("odd", SPECS, ids=repr)
def test_a_spec_of_any_form_is_told_of(cluster, odd):
    good = cluster.body["spec"]
    partly = isinstance(odd, dict) and odd and "template" not in odd
    cluster.body["spec"] = {**good, **odd} if partly else odd

    async def scenario():
        async with Operator(cluster) as operator:
            await operator.until(lambda: reconciled(cluster)["status"] == "False")
            assert reconciled(cluster)["reason"] == "InvalidSpec"
            assert not cluster.objects

    run(scenario())


def odd_pod(body):
    body["status"] = {"phase": "Running", "conditions": ["a word"]}


def odd_node(body):
    body["spec"] = {"taints": ["a word"]}


@pytest.mark.parametrize("kind", ["pod", "node"])
def test_an_object_that_cannot_be_understood_is_told_by_the_job_it_concerns(cluster, kind):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            pod = cluster.objects["Pod", "digits-0"]
            pod["spec"]["nodeName"] = "node-0"
            operator.tell("MODIFIED", pod)
            good = pod if kind == "pod" else {"metadata": {"name": "node-0"}, "spec": {}}
            bad = copy.deepcopy(good)
            (odd_pod if kind == "pod" else odd_node)(bad)
            event = operator.tell if kind == "pod" else operator.controller.node_event
            event("MODIFIED", bad)
            await operator.until(lambda: reconciled(cluster)["status"] == "False")
            assert reconciled(cluster)["message"].startswith(f"{kind} {good['metadata']['name']}: ")
            assert gauge() == 1
            assert any(e.reason == "ReconcileFailed" for e in cluster.posted)
            assert operator.round is not None, "and the job goes on"
            event("MODIFIED", good)
            await operator.until(lambda: reconciled(cluster)["status"] == "True")
            assert gauge() == 0

    run(scenario())


def test_an_event_that_cannot_even_be_filed_is_told_by_its_job(cluster, bodies):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            before = gauge("rekindle_event_errors_total")
            (job,) = handlers.register(operator.controller)._watching.get_all_handlers()
            take = {
                one.kind: one.take
                for one in handlers.listeners(operator.controller, watch_nodes=True)
            }
            labels = {"rekindle.dev/job": "digits"}
            take["Pod"]("ADDED", {"metadata": {"namespace": "ml", "labels": labels}})
            await operator.until(lambda: reconciled(cluster)["status"] == "False")
            assert "KeyError: 'name'" in reconciled(cluster)["message"]
            for one in take.values():
                one("ADDED", {})
            await job.fn(type="ADDED", body={})
            assert gauge("rekindle_event_errors_total") == before + 2 + len(take)

    run(scenario())


def test_a_name_of_the_operators_in_a_template_is_told_and_no_pod_is_made(cluster):
    trainer = cluster.body["spec"]["template"]["spec"]["containers"][0]
    trainer["env"] = [{"name": "REKINDLE_POD_NAME", "value": "mine"}]

    async def scenario():
        async with Operator(cluster) as operator:
            await operator.until(lambda: reconciled(cluster)["status"] == "False")
            field = "spec.template.spec.containers[0].env[0].name: REKINDLE_POD_NAME is set by"
            assert reconciled(cluster)["message"].startswith(field)
            assert not cluster.objects
            del trainer["env"]
            cluster.body["metadata"]["generation"] = 2
            operator.controller.job_event("MODIFIED", cluster.body)
            await operator.until(lambda: len(cluster.named("Pod")) == 2)

    run(scenario())


def test_a_job_of_the_same_name_is_another_job(cluster):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            cluster.objects.clear()
            cluster.status = {}
            cluster.body["metadata"]["uid"] = "another-uid"
            operator.controller.job_event("ADDED", cluster.body)
            await operator.until(lambda: len(cluster.named("Pod")) == 2)
            assert operator.round is None
            owners = cluster.objects["Pod", "digits-0"]["metadata"]["ownerReferences"]
            assert owners[0]["uid"] == "another-uid"

    run(scenario())


def delete(cluster, operator, *finalizers):
    """As a deletion marks a job that a finalizer holds."""
    cluster.body["metadata"] |= {
        "deletionTimestamp": "2026-01-01T00:00:00Z",
        "finalizers": list(finalizers),
    }
    cluster.version += 1
    return cluster.job(*KEY)


@pytest.mark.parametrize("ended", [False, True], ids=["training", "at its end"])
def test_a_job_that_a_finalizer_holds_says_so_and_trains_no_more(cluster, ended):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            if ended:
                state = operator.controller._jobs[KEY]
                state.status = {**state.status, "phase": "Succeeded", "message": "done"}
            body = await delete(cluster, operator, "example.com/audit")
            operator.controller.job_event("MODIFIED", body)
            await operator.until(lambda: not cluster.named("Pod"))
            for pod in list(operator.controller._jobs[KEY].pods.values()):
                gone = pod["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z"}
                operator.tell("DELETED", {**pod, "metadata": gone})
            await operator.until(lambda: "no pods run" in cluster.status["message"])
            assert cluster.status["phase"] == ("Succeeded" if ended else "Deleting")
            assert "held by finalizers: example.com/audit" in cluster.status["message"]
            assert cluster.status["ready"] == "0/0"
            await operator.rest()
            assert operator.round is None
            assert not cluster.named("Pod")

    run(scenario())


def test_a_deletion_that_leaves_the_children_is_let_have_its_way(cluster):
    """The collector takes owners away, of which the watch may tell before it tells of the job."""

    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            await operator.rest()
            await delete(cluster, operator, "orphan")
            for (kind, _), body in cluster.objects.items():
                drop_owner(body)
                if kind == "Pod":
                    operator.tell("MODIFIED", body)
            operator.look()
            await operator.until(lambda: "its pods stay" in cluster.status["message"])
            await operator.rest()
            assert len(cluster.objects) == 4
            for body in cluster.objects.values():
                assert not body["metadata"]["ownerReferences"]

    run(scenario())


def test_closing_ends_even_when_something_wakes_up_a_job_at_that_moment(cluster):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            await operator.rest()
            operator.controller.wake(KEY, 30.0)
            await asyncio.wait_for(operator.controller.close(), 2)

    run(scenario())


def test_trouble_with_the_api_server_passes(cluster, monkeypatch):
    monkeypatch.setattr(operator_faults, "RETRY_LEAST", 0.01)

    async def scenario():
        cluster.faults["status"] = [TimeoutError(), KubernetesError(503), OSError("reset")]
        async with Operator(cluster) as operator:
            await started(operator)
            assert sorted(cluster.named("Pod")) == ["digits-0", "digits-1"]

    run(scenario())


def test_no_secret_reaches_status_events_or_logs(cluster, caplog):
    caplog.set_level("DEBUG")

    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            (token,) = await operator.controller._tokens_of(KEY)
            assert len(token) > 30
            for text in (str(cluster.status), str(cluster.posted), caplog.text):
                assert token not in text
            pods = [str(cluster.objects["Pod", name]) for name in cluster.named("Pod")]
            assert all(token not in pod for pod in pods)

    run(scenario())


EDITS = {
    "a phase": lambda status: status | {"phase": "Succeeded"},
    "no conditions": lambda status: status | {"conditions": []},
    "a field of its own": lambda status: status | {"message": "all is well", "extra": {"a": 1}},
    "nothing left": lambda status: {},
    "a smaller round": lambda status: status | {"round": 0},
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("during", [False, True], ids=["at rest", "while a write is under way"])
def test_a_status_that_somebody_edits_is_put_right(cluster, name, during):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            await operator.rest()
            good = copy.deepcopy(cluster.status)
            patch_status = cluster.patch_status

            async def edit():
                cluster.status = EDITS[name](copy.deepcopy(cluster.status))
                cluster.version += 1
                operator.controller.job_event("MODIFIED", await cluster.job(*KEY))

            async def edited_meanwhile(*given):
                cluster.patch_status = patch_status
                written = await patch_status(*given)
                await edit()
                return written

            if during:
                cluster.patch_status = edited_meanwhile
                step = Progress(step=1, round_steps=1)
                operator.agent("digits-0", AgentPhase.RUNNING, round=operator.round, progress=step)
                await operator.until(lambda: cluster.patch_status == patch_status)
            else:
                await edit()
            keep = ("phase", "round", "message", "conditions")
            await operator.until(lambda: all(cluster.status.get(k) for k in keep))
            await operator.until(lambda: cluster.status["phase"] != "Succeeded")
            await operator.until(lambda: "extra" not in cluster.status)
            await operator.rest()
            assert cluster.status["round"] == good["round"]
            assert cluster.status["message"] != "all is well"
            assert operator.round is not None

    run(scenario())


def test_what_the_api_server_drops_is_not_written_again_and_again(cluster):
    async def scenario():
        patch_status = cluster.patch_status

        async def pruned(namespace, name, patch):
            return await patch_status(
                namespace, name, {k: v for k, v in patch.items() if k != "selector"}
            )

        cluster.patch_status = pruned
        async with Operator(cluster) as operator:
            await started(operator)
            await operator.rest()
            before = len(cluster.calls)
            for _ in range(20):
                operator.controller.wake(KEY)
                await operator.rest()
            assert len(cluster.calls) - before <= 3

    run(scenario())


def test_a_write_of_our_own_wakes_up_nobody(cluster):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            await operator.rest()
            woken = []
            operator.controller.wake = lambda *given: woken.append(given)
            operator.controller.job_event("MODIFIED", await cluster.job(*KEY))
            assert not woken

    run(scenario())


def stranger(kind, name, **meta):
    return {"kind": kind, "metadata": {"name": name, "namespace": "ml", "uid": "theirs", **meta}}


def orphan(kind, name, **more):
    """As ``kubectl delete --cascade=orphan`` leaves a child."""
    return {**stranger(kind, name, labels=manifests.selector("digits")), **more}


def secret_of(token="of-before"):
    return {"data": {"token": base64.b64encode(token.encode()).decode()}}


OTHERS = [{"kind": "Deployment", "name": "web", "uid": "u", "controller": True}]
NAMES = [("Secret", "digits-rekindle"), ("Service", "digits-pods"), ("Pod", "digits-0")]


@pytest.mark.parametrize(("kind", "name"), NAMES)
@pytest.mark.parametrize("meta", [{}, {"ownerReferences": OTHERS}], ids=["alone", "owned"])
def test_a_name_that_is_taken_is_told_and_waited_for(cluster, monkeypatch, kind, name, meta):
    monkeypatch.setattr(operator_faults, "RETRY_LEAST", 0.01)
    cluster.objects[kind, name] = theirs = stranger(kind, name, **meta)

    async def scenario():
        async with Operator(cluster) as operator:
            await operator.until(lambda: "NameTaken" in str(cluster.status))
            told = next(c for c in cluster.status["conditions"] if c["type"] == "Degraded")
            assert (told["status"], told["reason"]) == ("True", "NameTaken")
            assert f"{kind.lower()} {name} exists and is not part of this job" in told["message"]
            assert cluster.status["phase"] in {"Pending", "Starting"}
            assert cluster.objects[kind, name] == theirs, "and is not touched"
            if kind == "Secret":
                assert not cluster.named("Pod"), "it may hold a token that is not ours"
            del cluster.objects[kind, name]
            await operator.until(lambda: sorted(cluster.named("Pod")) == ["digits-0", "digits-1"])
            await operator.until(lambda: "NameTaken" not in str(cluster.status["conditions"]))
            await operator.until(lambda: cluster.objects[kind, name] != theirs)

    run(scenario())


LEFT = {
    "a secret": orphan("Secret", "digits-rekindle", **secret_of()),
    "a secret without a token": orphan("Secret", "digits-rekindle", data={}),
    "a secret whose token is none": orphan("Secret", "digits-rekindle", data={"token": "//8="}),
    "a service": orphan("Service", "digits-pods", spec={"selector": {"a": "b"}, "ports": []}),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_an_earlier_job_has_left_over_is_taken_over(cluster, name):
    body = LEFT[name]
    kind, called = body["kind"], body["metadata"]["name"]
    cluster.objects[kind, called] = copy.deepcopy(body)

    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            found = cluster.objects[kind, called]
            assert found["metadata"]["uid"] == "theirs"
            assert [o["uid"] for o in found["metadata"]["ownerReferences"]] == ["job-uid"]
            (token,) = await operator.controller._tokens_of(KEY)
            assert await cluster.token("ml", "digits-rekindle", "job-uid") == token
            assert (token == "of-before") == (name == "a secret")
            if kind == "Service":
                assert found["spec"]["selector"] == manifests.selector("digits")
                assert found["spec"]["ports"][0]["port"] == 9430

    run(scenario())


@pytest.mark.parametrize(
    ("name", "seen"), [("digits-0", False), ("digits-7r3", False), ("digits-7r3", True)]
)
def test_pods_that_an_earlier_job_has_left_over_are_deleted(cluster, monkeypatch, name, seen):
    monkeypatch.setattr(operator_faults, "RETRY_LEAST", 0.01)
    labels = {"rekindle.dev/index": "0", "rekindle.dev/generation": "0"}
    left = orphan("Pod", name)
    left["metadata"]["labels"] |= labels

    async def scenario():
        if not seen:
            cluster.objects["Pod", name] = left
        async with Operator(cluster) as operator:
            if seen:
                await started(operator)
                cluster.objects["Pod", name] = left
                operator.tell("ADDED", left)
            await operator.until(lambda: cluster.objects.get(("Pod", name)) != left)
            await operator.until(lambda: sorted(cluster.named("Pod")) == ["digits-0", "digits-1"])
            await operator.rest()
            assert cluster.status["restarts"]["total"] == 0

    run(scenario())


def test_a_child_of_an_earlier_job_that_is_going_away_is_waited_for(cluster, monkeypatch):
    monkeypatch.setattr(operator_faults, "RETRY_LEAST", 0.01)
    owners = [{"kind": "TrainingJob", "name": "digits", "uid": "earlier"}]
    body = stranger("Secret", "digits-rekindle", ownerReferences=owners)
    cluster.objects["Secret", "digits-rekindle"] = body

    async def scenario():
        async with Operator(cluster) as operator:
            await operator.until(lambda: "of an earlier job of this name" in str(cluster.status))
            assert "it goes on as soon as that is gone" in str(cluster.status)
            del cluster.objects["Secret", "digits-rekindle"]
            await operator.until(lambda: len(cluster.named("Pod")) == 2)

    run(scenario())


def change_labels(body):
    body["metadata"]["labels"] = {"team": "vision"}


def change_slot(body):
    body["metadata"]["labels"]["rekindle.dev/index"] = "7"


def drop_owner(body):
    body["metadata"]["ownerReferences"] = []


def add_finalizer_and_drop_owner(body):
    body["metadata"] |= {"ownerReferences": [], "finalizers": ["example.com/f"]}


POD_EDITS = [change_labels, change_slot, drop_owner, add_finalizer_and_drop_owner]


@pytest.mark.parametrize("edit", POD_EDITS, ids=lambda edit: edit.__name__)
def test_a_pod_that_somebody_edits_is_put_right_and_trains_on(cluster, edit):
    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            first = operator.round
            for name in cluster.named("Pod"):
                operator.agent(name, AgentPhase.RUNNING, round=first)
            await operator.rest()
            before = copy.deepcopy(cluster.objects["Pod", "digits-1"])
            body = cluster.objects["Pod", "digits-1"]
            edit(body)
            # A watch by labels calls a pod deleted that has lost them, in its form of before.
            lost = edit is change_labels
            told = before if lost else copy.deepcopy(body)
            operator.tell("DELETED" if lost else "MODIFIED", told)

            def right():
                meta = cluster.objects["Pod", "digits-1"]["metadata"]
                labels = before["metadata"]["labels"].items() <= meta["labels"].items()
                return labels and meta["ownerReferences"] == before["metadata"]["ownerReferences"]

            await operator.until(right)
            operator.tell("MODIFIED", cluster.objects["Pod", "digits-1"])
            await operator.rest()
            assert operator.round is first
            assert sorted(cluster.named("Pod")) == ["digits-0", "digits-1"]
            assert cluster.status["restarts"]["total"] == 0

    run(scenario())


CHILD_EDITS = {
    "a selector": ("Service", lambda body: body["spec"].update(selector={"a": "b"})),
    "ports": ("Service", lambda body: body["spec"].update(ports=[{"name": "x", "port": 1}])),
    "an owner": ("Service", drop_owner),
    "labels": ("Secret", change_labels),
    "another token": ("Secret", lambda body: body.update(secret_of("another"))),
    "no token": ("Secret", lambda body: body.update(data={})),
    "the owner of a secret": ("Secret", drop_owner),
}


@pytest.mark.parametrize("name", CHILD_EDITS)
def test_a_secret_or_service_that_somebody_edits_is_put_right(cluster, monkeypatch, name):
    monkeypatch.setattr(operator_faults, "RETRY_LEAST", 0.01)
    kind, edit = CHILD_EDITS[name]
    key = (kind, {"Secret": "digits-rekindle", "Service": "digits-pods"}[kind])

    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            await operator.rest()
            before = copy.deepcopy(cluster.objects[key])
            body = cluster.objects[key]
            edit(body)
            if name == "labels":
                body["metadata"]["labels"] = {}
            assert body != before
            operator.look()
            await operator.until(lambda: cluster.objects[key] == before)

    run(scenario())


values = st.recursive(
    st.booleans() | st.integers(0, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=1), inner),
    max_leaves=8,
)
documents = st.dictionaries(st.text("abc", max_size=1), values, max_size=4)


@settings(max_examples=60)
@given(old=documents, new=documents)
def test_a_patch_turns_one_document_into_the_other(old, new):
    assert merged(old, merge_patch(old, new)) == new


@settings(max_examples=30)
@given(document=documents)
def test_nothing_is_written_when_nothing_has_changed(document):
    assert merge_patch(document, copy.deepcopy(document)) == {}


def test_a_change_of_the_spec_is_told_with_when_it_takes_effect(cluster, caplog):
    caplog.set_level("INFO")

    async def scenario():
        async with Operator(cluster) as operator:
            await started(operator)
            await operator.rest()
            body = await cluster.job(*KEY)
            body["metadata"]["generation"] += 1
            body["spec"]["hang"] = {"timeout": "5m"}
            operator.controller.job_event("MODIFIED", body)
            await operator.until(lambda: "SpecChanged" in [e.reason for e in cluster.posted])
            await operator.rest()
            (told,) = [e for e in cluster.posted if e.reason == "SpecChanged"]
            assert told.message == "spec.hang.timeout: a change takes effect with the next round"

    run(scenario())
    lines = [r for r in caplog.records if getattr(r, "reason", None)]
    assert [r.reason for r in lines] == ["Created", "RoundFormed", "SpecChanged"]
    assert all(r.getMessage().startswith("ml/digits: ") for r in lines)


def test_figures_about_all_jobs_are_made_when_somebody_looks(cluster):
    async def scenario():
        async with Operator(cluster) as operator:
            await operator.until(lambda: cluster.status.get("phase") == "Pending")
            operator.controller._jobs[KEY].status["accounting"]["pendingSince"] = time.time() - 500
            found = {
                (sample.name, sample.labels.get("phase")): sample.value
                for family in metrics.FLEET.collect()
                for sample in family.samples
            }
            assert 500 <= found["rekindle_job_waiting_seconds_max", "Pending"] < 600

    run(scenario())

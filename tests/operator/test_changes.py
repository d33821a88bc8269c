"""When a change of the spec takes effect: each row of the table, on a job that trains."""

import json

import pytest

from rekindle.api import changes, spec
from rekindle.api.changes import EFFECTS, Effect

POD = {"spec": {"containers": [{"name": "trainer", "image": "i", "args": ["t.py"]}]}}
OTHER = {"spec": {"containers": [{"name": "trainer", "image": "i2", "args": ["t.py"]}]}}


def checkpoint(**fields):
    return {"checkpoint": {"uri": "s3://bucket/run", "every": {"seconds": 120}, **fields}}


def keep(latest):
    return {"REKINDLE_CHECKPOINT_KEEP": json.dumps({**KEPT, "latest": latest}, sort_keys=True)}


KEPT = {"best": [], "every": None, "hourly": 0, "latest": 3}


def scaled(w):
    w.until(lambda: len(w.members) == 2 and w.training(), 30)


def waits_for_all(w):
    w.nodes = {name: w.nodes[name] for name in [p.node for p in w.alive]}
    w.kill("digits-1").lose_node("digits-1").run(30)
    assert (w.phase, len(w.rounds)) == ("Recovering", 1)


def bounds_only(w):
    w.run(20)
    assert (len(w.rounds), len(w.created)) == (1, 3)


def has_spare(w):
    w.until(lambda: w.status["spares"] == 1, 30)
    assert len(w.rounds) == 1


def fails_at_the_next_error(w):
    w.fail("digits-0").run(10)
    assert w.phase == "Failed"


def moves_the_slow_pod(w):
    w.slow("digits-1").until(lambda: "digits-1r1" in w.members and w.training(), 120)


def heeds_the_taint(w):
    w.taint("digits-1", "example.com/going").until(lambda: "digits-1r1" in w.members, 30)


def runs_out_of_time(w):
    w.run(31)
    assert w.phase == "Failed"


def is_suspended(w):
    w.until(lambda: w.phase == "Suspended" and not w.pods, 40)


def ended(w):
    w.total_steps = w.group()[0].step + 2
    w.until(lambda: w.phase == "Succeeded", 30)


def is_deleted(w):
    ended(w)
    w.run(11)
    assert w.removed


def has_no_pods(w):
    ended(w)
    w.run(30)
    assert not w.pods


AT_ONCE = {
    # row: start from, change to, what comes of it
    "replicas": ({}, {"replicas": 2}, scaled),
    "elastic.minReplicas": ({}, {"elastic": {"minReplicas": 3}}, waits_for_all),
    "elastic.maxReplicas": ({}, {"elastic": {"minReplicas": 1, "maxReplicas": 3}}, bounds_only),
    "elastic.spares": ({}, {"elastic": {"minReplicas": 1, "spares": 1}}, has_spare),
    "restart": ({}, {"restart": {"user": {"max": 0}}}, fails_at_the_next_error),
    "capacity.slowNodes": ({}, {"capacity": {"slowNodes": "avoid"}}, moves_the_slow_pod),
    "capacity.notices": (
        {},
        {"capacity": {"notices": [{"sign": "example.com/going", "seconds": 60}]}},
        heeds_the_taint,
    ),
    "deadlines": ({}, {"deadlines": {"startup": None, "active": "30s"}}, runs_out_of_time),
    "suspend": ({}, {"suspend": True}, is_suspended),
    "ttlSecondsAfterFinished": ({}, {"ttlSecondsAfterFinished": 10}, is_deleted),
    "cleanPods": ({}, {"cleanPods": "All"}, has_no_pods),
}
NEXT_ROUND = {
    # row: change to, what workers of the next round find in their environment
    "checkpoint.every": (
        checkpoint(every={"steps": 7}),
        {"REKINDLE_CHECKPOINT_EVERY_STEPS": "7", "REKINDLE_CHECKPOINT_EVERY_SECONDS": ""},
    ),
    "checkpoint.keep": (checkpoint(keep={"latest": 9}), keep(9)),
    "hang.timeout": ({"hang": {"timeout": "5m"}}, {"REKINDLE_HANG_TIMEOUT": "300"}),
}
NEW_PODS = {
    "procPerNode": {"procPerNode": 2},
    "template": {"template": OTHER},
    "launcher": {"launcher": {"inject": True}},
    "checkpoint.secretRef": checkpoint(secretRef={"name": "s"}),
    "checkpoint.endpointUrl": checkpoint(endpointUrl="http://minio:9000"),
    "checkpoint.region": checkpoint(region="eu-central-1"),
    "checkpoint.addressing": checkpoint(addressing="path"),
    "checkpoint.commit": checkpoint(commit="lease"),
}


LATER_PODS = {
    # row: change to, what pods find in their environment that are created from then on
    "progress": ({"progress": {"file": "/steps"}}, {"REKINDLE_PROGRESS": '{"file": "/steps"}'}),
}


def rows(effect):
    return [path for path, its in EFFECTS.items() if its is effect]


def test_each_row_is_tried():
    assert rows(Effect.AT_ONCE) == list(AT_ONCE)
    assert rows(Effect.NEXT_ROUND) == list(NEXT_ROUND)
    assert rows(Effect.NEW_PODS) == list(NEW_PODS)
    assert rows(Effect.LATER_PODS) == list(LATER_PODS)
    assert rows(Effect.NEVER) == ["checkpoint.uri"], "test_crd has it"


@pytest.mark.parametrize("row", AT_ONCE)
def test_a_change_takes_effect_at_once_and_replaces_no_pod(world, row):
    start, change, expected = AT_ONCE[row]
    w = world(template=POD, **start).start().train(3)
    first = {pod.name for pod in w.alive}
    w.change(**change).settle()
    assert not first & set(w.deleted) or row in {"replicas", "suspend"}
    expected(w)


@pytest.mark.parametrize("row", NEXT_ROUND)
def test_a_change_takes_effect_with_the_next_round_and_replaces_no_pod(world, row):
    change, wanted = NEXT_ROUND[row]
    w = world(template=POD, **checkpoint(), hang={"timeout": "auto"}).start().train(3)
    w.change(**change).run(30)
    assert (len(w.rounds), w.deleted, len(w.created)) == (1, [], 3), "nobody stops for it"
    w.kill("digits-1").until(lambda: len(w.rounds) == 2)
    before, after = (current.variables for current in w.rounds)
    assert {name: after[name] for name in before if before[name] != after[name]} | wanted == {
        **wanted,
        "REKINDLE_MTBF_SECONDS": after["REKINDLE_MTBF_SECONDS"],
    }
    assert all(before[name] != value for name, value in wanted.items())


@pytest.mark.parametrize("row", LATER_PODS)
def test_a_change_holds_for_pods_that_are_created_from_then_on(world, row):
    change, wanted = LATER_PODS[row]
    w = world(template=POD).start().train(3)
    w.change(**change).run(30)
    assert (len(w.rounds), w.deleted, len(w.created)) == (1, [], 3)
    w.kill("digits-1").until(lambda: "digits-1r1" in w.created)
    (trainer,) = w.pod("digits-1r1").body["spec"]["containers"]
    found = {entry["name"]: entry.get("value") for entry in trainer["env"]}
    assert wanted.items() <= found.items()


@pytest.mark.parametrize("row", NEW_PODS)
def test_a_change_replaces_the_pods_after_a_save(world, row):
    w = world(template=POD, **checkpoint()).start().train(7)
    step = w.group()[0].step
    w.change(**NEW_PODS[row])
    w.until(lambda: len(w.members) == 3 and w.training(), 120)
    assert set(w.deleted) >= {"digits-0", "digits-1", "digits-2"}
    assert not {"digits-0", "digits-1", "digits-2"} & set(w.members)
    assert w.committed.step >= step
    assert w.restarts[:2] == (0, 0)
    w.run(30)
    assert len(w.alive) == 3


def test_a_variable_that_the_template_sets_stays_the_users(world):
    env = [{"name": "REKINDLE_HANG_TIMEOUT", "value": "7"}]
    template = {"spec": {"containers": [{"name": "trainer", "image": "i", "env": env}]}}
    w = world(template=template).start()
    assert "REKINDLE_HANG_TIMEOUT" not in w.rounds[0].variables
    assert "REKINDLE_CHECKPOINT_KEEP" in w.rounds[0].variables


def as_the_first_operators_labelled(w):
    """The pods are of an operator whose label is made from all of the checkpoint."""
    w.status["accounting"].pop("template")
    w.status["accounting"].pop("templateAlias")
    for pod in w.pods.values():
        pod.body["metadata"]["labels"]["rekindle.dev/template"] = w.job.earlier_hash
    return w


def test_a_new_operator_replaces_no_pod_of_an_unchanged_job(world):
    w = as_the_first_operators_labelled(world(template=POD, **checkpoint()).start().train(3))
    w.restart_operator().run(60)
    assert (w.deleted, len(w.rounds)) == ([], 1)
    # The label stands for the template from then on, whatever else changes.
    w.change(**checkpoint(keep={"latest": 9})).run(30)
    w.restart_operator().run(30)
    assert not w.deleted
    w.change(template=OTHER).until(lambda: "digits-0r1" in w.members and w.training(), 120)
    assert set(w.deleted) >= {"digits-0", "digits-1", "digits-2"}


def test_what_the_first_operators_labelled_pods_with_is_what_they_labelled_them_with():
    """Values of the release before the one in which the rhythm of saving left the label."""
    body = {
        "metadata": {"name": "digits", "namespace": "ml", "uid": "5f1c"},
        "spec": {
            "template": {
                "spec": {
                    "containers": [
                        {
                            "name": "trainer",
                            "image": "rekindle/runtime:0.1",
                            "args": ["train.py", "--epochs", "10"],
                        }
                    ]
                }
            },
            "checkpoint": {"uri": "s3://training/team/digits"},
        },
    }
    assert spec.parse(body, 0.0).earlier_hash == "0c7f86135f"


def test_differences_are_told_with_their_effect():
    old = {"replicas": 3, "template": POD, **checkpoint()}
    new = {"replicas": 2, "template": OTHER, **checkpoint(keep={"latest": 9}), "suspend": True}
    found = changes.between(old, new)
    assert changes.told(found) == (
        "spec.replicas, spec.suspend: a change takes effect at once; "
        "spec.checkpoint.keep: a change takes effect with the next round; "
        "spec.template: a change replaces the pods, after a save"
    )
    assert changes.told(changes.between(new, new)) == ""

"""More pods than have something to do: they are spares, people are told, and nothing ends a job."""

import pytest

from rekindle.api import AgentPhase, AgentReport, Member, Round
from rekindle_operator.observed.observations import AgentState, Observed
from rekindle_operator.rounds import sizing


def report(name, useful, nproc=1, current=None):
    return AgentReport(
        pod=name,
        uid=name,
        address="10.0.0.1",
        store_port=1,
        nproc=nproc,
        phase=AgentPhase.WAITING,
        useful_world=useful,
        round=current,
    )


def seen(told, *, nproc=1, members=()):
    inside = tuple(
        Member(pod=uid, uid=uid, address="10.0.0.1", store_port=1, nproc=nproc) for uid in members
    )
    current = Round(number=1, members=inside, reason="", formed_at=0.0) if inside else None
    agents = {
        uid: AgentState(report=report(uid, useful, nproc), seen_at=0.0, phase_since=0.0)
        for uid, useful in told.items()
    }
    return Observed(agents=agents, round=current)


@pytest.mark.parametrize(
    ("told", "nproc", "members", "pods"),
    [
        ({"a": None}, 1, ["a"], 4),
        ({}, 1, [], 4),
        ({"a": 2, "b": None}, 1, ["a", "b"], 2),
        ({"a": 9}, 1, ["a"], 4),
        ({"a": 3}, 2, ["a"], 2),
        ({"a": 1}, 8, ["a"], 1),
        ({"a": 3, "old": 1}, 1, ["a"], 3),
        ({"a": None, "old": 1}, 1, ["a"], 1),
        ({"old": 2}, 1, [], 2),
    ],
)
def test_a_pod_is_of_use_when_one_of_its_workers_is(bodies, told, nproc, members, pods):
    job = parsed(bodies, replicas=4)
    assert sizing.useful_pods(job, seen(told, nproc=nproc, members=members)) == pods
    fewer = sizing.in_use(job, seen(told, nproc=nproc, members=members))
    assert (fewer.replicas, fewer.pods) == (pods, job.pods)


def parsed(bodies, **spec):
    from rekindle.api.spec import parse

    return parse(bodies(**spec), 0.0)


@pytest.mark.parametrize(
    ("replicas", "nproc", "wanted"), [(2, [1], 2), (4, [8, 8], 32), (2, [1, 1], 2), (3, [2, 4], 10)]
)
def test_workers_are_told_how_many_the_job_wants_not_how_many_came(bodies, replicas, nproc, wanted):
    members = [
        Member(pod=str(n), uid=str(n), address="a", store_port=1, nproc=each)
        for n, each in enumerate(nproc)
    ]
    assert sizing.wanted_workers(parsed(bodies, replicas=replicas), members) == wanted


def test_a_round_of_fewer_pods_says_how_many_are_wanted(world):
    w = world(nodes=1, replicas=3, elastic={"minReplicas": 1})
    w.until(w.training)
    assert [current.variables["REKINDLE_WORKERS"] for current in w.rounds] == ["3"]


def test_pods_without_work_become_spares_and_people_are_told(world):
    w = world(replicas=2, elastic={"minReplicas": 2})
    w.start().train(3)
    assert w.condition("ReplicasUnused")["status"] == "False"
    w.useful = 3
    w.change(replicas=5).until(lambda: len(w.rounds) == 3 and w.training())
    assert w.members == ["digits-0", "digits-1", "digits-2"]
    assert w.rounds[2].reason == "without digits-3, digits-4"
    told = w.condition("ReplicasUnused")
    assert (told["status"], told["reason"]) == ("True", "BatchTooSmall")
    assert told["message"] == (
        "the global batch is work for 3 workers, so 3 of 5 pods train and the others are spares; "
        "set spec.replicas to 3, or give the script a larger global_batch_size or a smaller "
        "batch_size"
    )
    assert [e.message for e in w.events if e.reason == "ReplicasUnused"] == [told["message"]]
    assert w.condition("Degraded")["status"] == "False"
    w.run(60)
    assert len(w.rounds) == 3, "a number that stays must not make rounds again and again"
    w.kill("digits-1").settle()
    assert len(w.members) == 3, "one that had nothing to do takes over at once"
    w.until(w.training).change(replicas=2)
    w.until(lambda: w.condition("ReplicasUnused")["status"] == "False" and len(w.members) == 2)
    assert w.phase == "Running"
    assert w.restarts == (0, 1, 0)


def test_a_new_operator_does_not_forget_that_pods_have_no_work(world):
    w = world(replicas=3)
    w.useful = 1
    w.start().until(lambda: w.members == ["digits-0"] and w.training())
    before = w.condition("ReplicasUnused")
    w.restart_operator(quiet=[p.name for p in w.alive]).run(3)
    assert w.condition("ReplicasUnused") == before
    assert w.members in ([], ["digits-0"])


@pytest.mark.parametrize("least", [1, 2, 3])
@pytest.mark.parametrize("useful", [1, 2, 3])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_scaling_to_and_fro_never_ends_a_job(world, replicas, useful, least):
    w = world(replicas=replicas, elastic={"minReplicas": min(replicas, least)})
    w.useful = useful
    w.start().train(2)
    for wanted in (1, 2, 1, 3, 2, 3, 1, replicas):
        w.change(replicas=wanted, elastic={"minReplicas": min(wanted, least)})
        w.until(lambda n=wanted: len(w.members) == min(n, useful) and w.training())
        w.train(1)
    w.total_steps = w.step + 3
    w.until(lambda: w.phase in {"Succeeded", "Failed"})
    assert w.phase == "Succeeded"
    assert not w.losses


@pytest.mark.parametrize("begun", [1, 2])
def test_a_script_of_a_fixed_number_of_workers_never_gets_another(world, begun):
    """A script of Lightning, say."""
    w = world(replicas=2, nodes=begun, elastic={"minReplicas": 1})
    w.exact = True
    w.until(w.training)
    assert len(w.members) == begun
    w.nodes |= {f"more-{n}": {"spec": {}, "status": {}} for n in range(4)}
    w.run(60).kill(w.members[0]).until(w.training)
    w.change(replicas=3).run(60)
    assert len(w.members) == begun
    told = w.condition("ReplicasUnused")
    assert told["message"].endswith(
        f"{begun} of 3 pods train and the others are spares; set spec.replicas to {begun}"
    )
    w.change(replicas=1).run(60)
    if begun == 2:
        assert w.phase == "Pending"
        assert "spec.replicas of at least 2 (it is 1)" in w.status["message"]
    w.change(replicas=2).until(w.training)
    assert not w.turned_away
    w.total_steps = w.step + 3
    w.until(lambda: w.phase in {"Succeeded", "Failed"})
    assert w.phase == "Succeeded"


def test_a_script_of_a_fixed_number_of_workers_waits_when_nobody_is_left_who_knows_it(world):
    w = world(replicas=2, nodes=2, elastic={"minReplicas": 1})
    w.exact = True
    w.start().train(3)
    w.nodes.pop("node-1")
    for pod in list(w.alive):
        w.kill(pod.name)
    w.restart_operator().run(200)
    assert w.turned_away == 1, "once, to learn the number"
    assert w.phase in {"Recovering", "Pending"}
    assert "no node can take pod digits-1r1" in w.status["message"]
    w.nodes["node-2"] = {"spec": {}, "status": {}}
    w.until(lambda: len(w.members) == 2 and w.training())
    assert w.turned_away == 1

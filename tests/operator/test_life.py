"""The life of a job: phases, deadlines, suspension, its end, and what is left afterwards."""

import math

import pytest

from rekindle.api import Progress, RestoredFrom
from rekindle_operator.reconcile.reconcile import END_SECONDS


def test_phases_and_conditions_tell_where_a_job_is(world):
    w = world(nodes=0)
    w.settle()
    assert (w.phase, w.condition("Ready")["status"]) == ("Pending", "False")
    w.nodes = {f"n{n}": {"spec": {}, "status": {}} for n in range(3)}
    w.trains = False
    w.settle()
    assert (w.phase, w.condition("Progressing")["status"]) == ("Starting", "True")
    w.trains = True
    w.until(w.training)
    assert (w.phase, w.condition("Ready")["status"]) == ("Running", "True")
    assert w.condition("Ready")["message"] == "training on 3 pods, 3 workers"
    w.kill("digits-1").settle()
    assert (w.phase, w.condition("Ready")["status"]) == ("Recovering", "False")
    assert "PodLost" in w.condition("Ready")["message"]
    w.until(w.training)
    assert w.phase == "Running"


def test_conditions_keep_the_time_of_their_last_transition(world):
    w = world().start()
    since = w.condition("Ready")["lastTransitionTime"]
    w.run(20)
    assert w.condition("Ready")["lastTransitionTime"] == since


def test_success_needs_all_members(world):
    w = world().start().train(3).finish("digits-0").finish("digits-1")
    w.run(30)
    assert w.phase == "Running"
    w.finish("digits-2").settle()
    assert w.phase == "Succeeded"
    assert w.condition("Complete")["status"] == "True"


def test_agents_are_told_to_stop_and_all_pods_succeed(world):
    w = world(total_steps=20).start()
    w.until(lambda: w.phase == "Succeeded").run(5)
    assert {p.terminated["exitCode"] for p in w.pods.values()} == {0}
    assert not w.deleted


def test_a_deadline_does_not_fail_a_job_that_is_complete(world):
    w = world(deadlines={"startup": None, "active": "30s"}).start().run(28)
    for name in list(w.members):
        w.finish(name)
    w.now += 5
    w.settle()
    assert w.phase == "Succeeded"


@pytest.mark.parametrize(
    ("policy", "left"), [("All", 0), ("Running", 3), ("None", 3)], ids=["All", "Running", "None"]
)
def test_clean_pods(world, policy, left):
    w = world(total_steps=10, cleanPods=policy).start()
    w.until(lambda: w.phase == "Succeeded").run(60)
    assert len(w.pods) == left


@pytest.mark.parametrize(("policy", "left"), [("All", 0), ("Running", 2), ("None", 3)])
def test_clean_pods_with_an_agent_that_does_not_listen(world, policy, left):
    w = world(cleanPods=policy).start()
    w.pod("digits-2").agent.quiet = True
    w.fail("digits-0", cause="Configuration").run(4)
    assert w.phase == "Failed"
    assert not w.deleted, "agents end by themselves first"
    w.run(END_SECONDS + 60)
    assert len(w.pods) == left


def alone(w, name, code):
    """The trainer of a pod is through, and its sidecar goes on for ever."""
    w.end_trainer_only(name, code)


def finished(w, name, code):
    w.exit(w.pod(name), code)


@pytest.mark.parametrize("code", [0, 1], ids=["succeeded", "failed"])
@pytest.mark.parametrize("sidecar", [False, True], ids=["alone", "with sidecar"])
@pytest.mark.parametrize("policy", ["All", "Running", "None"])
def test_pods_that_have_finished_are_kept_as_the_policy_says(world, policy, sidecar, code):
    w = world(cleanPods=policy, restart={"user": {"max": 0}}).start().train(3)
    for name in list(w.members):
        if code == 0:
            w.finish(name)
            w.pod(name).agent.outcome = None
        (alone if sidecar else finished)(w, name, code)
    w.run(END_SECONDS + 60)
    assert w.phase == ("Succeeded" if code == 0 else "Failed")
    names = sorted(p.name for p in w.pods.values())
    assert names == ([] if policy == "All" else ["digits-0", "digits-1", "digits-2"])
    ended = names if policy == "Running" and sidecar else []
    assert sorted(w.ended) == ended, "told to end once, and no pod is deleted"
    assert w.deleted == [] or policy == "All"
    lingers = policy == "None" and sidecar
    assert all(p.over != lingers for p in w.pods.values())


def test_a_pod_that_is_done_before_the_others_keeps_its_place_under_a_living_sidecar(world):
    w = world().start().train(3)
    w.finish("digits-1")
    w.pod("digits-1").agent.outcome = None
    w.end_trainer_only("digits-1", 0)
    w.run(5)
    assert w.created == ["digits-0", "digits-1", "digits-2"]
    assert w.ended == ["digits-1"]
    assert not w.deleted
    assert w.restarts == (0, 0, 0)


def test_the_pods_of_a_finished_job_on_dead_nodes_are_removed_by_force(world):
    w = world().start()
    w.pod("digits-2").agent.quiet = True
    w.fail("digits-0", cause="Configuration").run(4)
    w.taint("digits-2", "node.kubernetes.io/unreachable").run(30)
    assert "digits-2" not in [p.name for p in w.pods.values()]


def test_a_finished_job_expires(world):
    w = world(total_steps=10, ttlSecondsAfterFinished=100).start()
    w.until(lambda: w.phase == "Succeeded")
    w.run(90, pace=10)
    assert not w.removed
    w.run(20, pace=10)
    assert w.removed


def test_a_finished_job_without_ttl_stays(world):
    w = world(total_steps=10).start().run(10_000, pace=500)
    assert not w.removed


@pytest.mark.parametrize("field", [{"replicas": 5}, {"suspend": True}])
def test_an_edit_does_not_wake_up_a_finished_job(world, field):
    w = world(total_steps=10).start()
    w.until(lambda: w.phase == "Succeeded")
    made = len(w.created)
    w.change(**field).run(100, pace=5)
    assert w.phase == "Succeeded"
    assert len(w.created) == made


def test_an_image_that_cannot_be_pulled_ends_in_the_startup_deadline(world):
    w = world(deadlines={"startup": "2m"})
    w.broken_image = {"*"}
    w.run(130, pace=5)
    assert w.condition("Failed")["reason"] == "ErrImagePull"
    assert "no such image" in w.condition("Failed")["message"]


def test_startup_deadline_is_no_matter_once_training_has_begun(world):
    w = world(deadlines={"startup": "1m"}).start().run(300, pace=10)
    assert w.phase == "Running"


def test_active_deadline_leaves_suspensions_out(world):
    w = world(deadlines={"active": "100s", "startup": None}).start().run(40, pace=5)
    w.change(suspend=True).run(500, pace=20)
    w.change(suspend=False).start()
    w.run(40, pace=5)
    assert w.phase == "Running"
    w.run(30, pace=5)
    assert w.phase == "Failed"
    assert w.condition("Failed")["reason"] == "DeadlineExceeded"


def test_a_pod_that_the_api_server_refuses_fails_the_job_with_its_words(world):
    w = world()
    w.refuses = "spec.containers[0].resources.limits: Invalid value"
    w.settle()
    assert w.condition("Failed")["reason"] == "PodRefused"
    assert "spec.containers[0].resources.limits" in w.condition("Failed")["message"]


def test_a_quota_that_is_used_up_is_told_and_does_not_stop_the_others(world):
    w = world()
    w.hindered = "pod digits-3 cannot be created: API server: 403 exceeded quota"
    w.start()
    assert w.phase == "Running"
    assert w.condition("Degraded")["reason"] == "QuotaExceeded"
    assert "exceeded quota" in w.condition("Degraded")["message"]


def test_suspending_saves_removes_the_pods_and_keeps_counters(world):
    w = world().start().train(3)
    w.kill("digits-1").until(lambda: len(w.members) == 3)
    w.train(4)
    w.change(suspend=True).run(5)
    assert w.phase == "Suspended"
    assert not w.pods
    assert w.condition("Suspended")["status"] == "True"
    saved = w.status["checkpoint"]["step"]
    w.change(suspend=False).start()
    assert w.restarts == (0, 1, 0)
    assert w.phase == "Running"
    assert w.group()[0].restored.step == saved
    assert len(set(w.created)) == len(w.created)


def test_resuming_before_the_pods_have_gone_is_no_incident(world):
    w = world().start().train(3)
    w.trains = False
    for pod in w.alive:
        pod.agent.quiet = True
    w.hold_saves = True
    w.change(suspend=True)
    w.settle()
    w.change(suspend=False)
    w.settle()
    assert w.phase == "Suspended"
    w.restart_operator()
    w.hold_saves, w.trains = False, True
    w.until(w.training)
    assert w.restarts == (0, 0, 0)


def test_suspending_during_a_recovery_closes_the_incident(world):
    w = world(elastic={"minReplicas": 3}, nodes=3).start().lose_node("digits-1").run(8)
    w.change(suspend=True).run(5)
    assert w.phase == "Suspended"
    assert w.last["secondsLost"] >= 5
    w.nodes["spare"] = {"spec": {}, "status": {}}
    w.change(suspend=False).start()
    assert w.restarts == (0, 1, 0)


def test_a_job_created_suspended_starts_its_clocks_when_it_is_resumed(world):
    w = world(suspend=True).run(500, pace=50)
    assert w.phase == "Suspended"
    assert not w.created
    assert "startTime" not in w.status
    w.change(suspend=False).start().run(10)
    assert w.status["goodput"]["lost"]["pending"] <= 1.0
    assert w.status["goodput"]["ratio"] > 0.9


def test_pods_of_a_suspended_job_on_dead_nodes_do_not_hold_up_its_resumption(world):
    w = world().start()
    w.nodes[w.pod("digits-1").node]["spec"]["taints"] = [
        {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}
    ]
    w.change(suspend=True).run(40)
    assert not w.pods


def test_every_second_is_booked_once(world):
    w = world(save_every=10)
    began = w.now
    w.run(3)
    w.start().train(13).kill("digits-1").until(lambda: len(w.members) == 3)
    w.train(10).change(suspend=True).run(40, pace=5)
    w.change(suspend=False).start().train(5)
    figures = w.status["goodput"]
    booked = figures["productiveSeconds"] + sum(figures["lost"].values())
    assert booked == pytest.approx(w.now - began - 40, abs=1.0)
    assert figures["lost"]["rework"] > 0
    assert figures["lost"]["pending"] > 0


def test_pending_after_a_suspension_is_pending_again(world):
    w = world(nodes=3).start().train(5).change(suspend=True).run(5)
    nodes, w.nodes = w.nodes, {}
    w.change(suspend=False).run(50, pace=5)
    w.nodes = nodes
    w.start()
    assert w.status["goodput"]["lost"]["pending"] >= 50


def test_a_loss_that_is_no_number_does_not_break_the_status(world):
    w = world().start()
    agent = w.pod(w.members[0]).agent
    report = agent.report(w)
    broken = Progress(step=9, loss=math.nan, metrics={"val/loss": math.inf}, round_steps=3)
    agent.report = lambda _: report_with(report, progress=broken)
    w.run(2)
    assert "loss" not in w.status["progress"]
    assert "metrics" not in w.status["progress"]
    assert w.condition("Degraded")["reason"] == "LossNotFinite"
    assert "step 9" in w.condition("Degraded")["message"]


def report_with(report, **changes):
    return type(report)(**{**vars(report), **changes})


def test_a_damaged_newest_checkpoint_is_told_and_progress_goes_back(world):
    w = world(save_every=10, nodes=3).start().train(25)
    older = type(w.committed)(step=10, committed_at=w.now - 15, uri="s3://bucket/run/10")
    w.lose_node("digits-1")
    w.committed = older
    w.skipped = ("step 20 is damaged: CRC of chunk 3",)
    w.until(lambda: len(w.rounds) > 1 and w.training())
    assert w.step < 20
    assert w.status["checkpoint"]["step"] == 10
    lost, damage = w.losses
    assert lost["resumedFrom"] == 10
    assert lost["stepsLost"] > 10
    assert (damage["cause"], damage["stepsLost"]) == ("CheckpointDamaged", 0)
    assert "CRC of chunk 3" in w.condition("Degraded")["message"]
    w.run(60, pace=5)
    assert w.condition("Degraded")["reason"] == "Unschedulable"
    assert "CRC of chunk 3" in w.condition("Degraded")["message"], "one trouble hides no other"


def test_a_newcomer_in_front_does_not_turn_the_checkpoint_back(world):
    w = world(save_every=10).start().train(25)
    known = w.status["checkpoint"]["step"]
    agent = w.pod("digits-0").agent
    agent.checkpoint = type(agent.checkpoint)(step=1, committed_at=w.now - 900, uri="s3://b/r/1")
    agent.restored = RestoredFrom(step=known, source="s3://b/r")
    w.settle()
    assert w.status["checkpoint"]["step"] >= known

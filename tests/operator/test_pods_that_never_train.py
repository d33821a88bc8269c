"""Pods that end for what their template says, over and over: told, backed off from, and ended."""

INIT = {
    "spec": {
        "initContainers": [{"name": "get-data", "image": "i"}],
        "containers": [{"name": "trainer", "image": "i", "args": ["t.py"]}],
    }
}


def all_fail(w, **how):
    """Every pod that there is fails in its init container; gives how many did."""
    alive = [pod.name for pod in w.alive]
    for name in alive:
        w.fail_init(name, **how)
    w.settle()
    return len(alive)


def test_an_init_container_that_keeps_failing_spends_the_users_budget_and_ends_the_job(world):
    w = world(template=INIT)
    w.broken_image = {"*"}
    w.settle()
    waves = []
    for _ in range(10):
        w.until(lambda: w.phase == "Failed" or bool(w.alive), 400)
        if w.phase == "Failed":
            break
        waves.append((w.now, all_fail(w)))
    assert w.phase == "Failed"
    assert len(waves) == 4, "three tries after the first one"
    assert w.restarts == (4, 0, 0), "pods of one template that fail alike are one event"
    pauses = [b - a for (a, _), (b, _) in zip(waves, waves[1:], strict=False)]
    assert pauses == sorted(pauses)
    told = w.condition("Failed")
    assert told["reason"] == "InitFailed"
    for word in ("init container get-data", "exit code 3", "no such bucket", "spec.restart.user"):
        assert word in told["message"]
    assert len(w.last["victims"]) == 3


def test_pods_of_one_template_that_fail_one_after_another_are_one_incident(world):
    w = world(template=INIT)
    w.broken_image = {"*"}
    w.settle()
    for name in ("digits-0", "digits-1", "digits-2"):
        w.fail_init(name).run(2)
    assert w.restarts[0] == 1
    assert w.losses[0]["victims"] == ["digits-0", "digits-1", "digits-2"]


def test_an_init_container_that_fails_once_does_not_end_a_job(world):
    w = world(template=INIT)
    w.broken_image = {"digits-1"}
    w.settle().fail_init("digits-1").settle()
    assert w.phase != "Failed"
    w.until(w.training)
    assert w.restarts == (1, 0, 0)
    assert "digits-1r1" in w.members


def test_an_init_container_that_fails_beside_a_training_job_costs_no_try(world):
    w = world(template=INIT, restart={"user": {"max": 0}}).start()
    w.broken_image = {"digits-1r1"}
    w.kill("digits-1").until(lambda: "digits-1r1" in w.created)
    w.fail_init("digits-1r1").run(5)
    assert w.phase == "Running"
    assert w.last["cause"] == "InitFailed"


def test_a_pods_own_deadline_ends_the_job_and_names_the_jobs(world):
    template = {"spec": {"activeDeadlineSeconds": 60, **INIT["spec"]}}
    w = world(template=template).start().train(5)
    for pod in w.alive:
        pod.beside["reason"] = "DeadlineExceeded"
        w.kill(pod.name, 143)
    w.run(5)
    assert w.phase == "Failed"
    assert w.condition("Failed")["reason"] == "PodDeadline"
    assert "spec.deadlines.active" in w.condition("Failed")["message"]
    assert w.restarts == (1, 0, 0)


def test_a_node_that_is_not_there_is_tried_a_few_times_and_named(world):
    template = {"spec": {"nodeName": "gpu-7", **INIT["spec"]}}
    w = world(template=template)
    w.broken_image = {"*"}
    w.settle()
    for _ in range(200):
        if w.phase == "Failed":
            break
        for pod in w.alive:
            pod.node = "gpu-7"
        w.run(5, pace=5)
    assert w.phase == "Failed"
    assert w.condition("Failed")["reason"] == "NoSuchNode"
    assert "node gpu-7, which is not there" in w.condition("Failed")["message"]
    assert w.restarts[0] == 4
    assert len(w.created) <= 3 * 4


def test_a_sidecar_that_fails_does_not_undo_a_training_that_is_complete(world):
    w = world().start()
    for name in list(w.members):
        w.finish(name)
        w.exit(w.pod(name), 0)
        w.pod(name).phase = "Failed"
    w.run(10)
    assert w.phase == "Succeeded"


def test_what_other_classes_pay_for_is_tried_within_theirs(world):
    w = world().start()
    pod = w.pod("digits-1")
    pod.beside.update(reason="Evicted", message="The node was low on resource: memory.")
    w.kill("digits-1").until(lambda: len(w.members) == 3)
    assert w.last["cause"] == "Evicted"
    assert w.restarts == (0, 1, 0)

"""Whatever a user can get wrong ends in a condition that says what to do, never in a loop.

All jobs of a kind are submitted at once and waited for together: starting processes is what costs.
"""

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


def test_configuration_errors_end_before_training_with_the_fix(submit, site):
    wrong_secret = submit("wrong-secret", checkpoint={"secretRef": {"name": "wrong"}})
    site.secret(wrong_secret.namespace, "wrong", site.credentials[0], "not-the-secret")
    jobs = {
        "wrong-secret": (wrong_secret, ["R5", "SignatureDoesNotMatch|credentials|secret"]),
        "forbidden": (
            submit("forbidden", checkpoint={"uri": "s3://forbidden/x/y"}),
            ["R5", "AccessDenied|denied"],
        ),
        "no-bucket": (
            submit("no-bucket", checkpoint={"uri": "s3://nobody-made-this/x"}),
            ["R5", "nobody-made-this"],
        ),
    }
    for name, (job, words) in jobs.items():
        failed = job.failed()
        assert failed["reason"] == "Store:R5", (name, failed)
        for alternatives in words:
            assert any(w in failed["message"] for w in alternatives.split("|")), (name, failed)
        assert job.status["restarts"]["total"] == 1
        assert site.credentials[1] not in str(job.get())


def test_a_store_that_gives_no_answer_is_tried_again_and_named(submit):
    job = submit("unreachable", checkpoint={"endpointUrl": "http://127.0.0.1:9"})
    tried = job.wait(
        lambda s: [i for i in s.get("incidents", ()) if i["cause"] == "StoreLost"][1:],
        "a second try",
    )
    for words in ("R5", "127.0.0.1:9", "Check the endpoint URL"):
        assert words in tried[-1]["evidence"]
    assert job.wait_phase("Recovering")["restarts"]["user"] == 0


def test_programs_that_raise_are_told_apart_from_everything_else(submit, site):
    at_once = submit("at-once", "--exit-at-once")
    no_script = submit("no-script", container={"args": ["/scripts/no-such-file.py"]})
    at_50 = submit("at-50", "--raise-at=50", "--steps=100")

    failed = at_once.failed()
    assert "before the first step" in failed["message"]
    assert at_once.status["restarts"] == {
        "user": 1, "infrastructure": 0, "preemption": 0, "total": 1
    }  # fmt: skip
    failed = no_script.failed()
    assert "no-such-file.py" in failed["message"]
    failed = at_50.failed()
    assert "the data of step 50 is cursed" in failed["message"]
    assert "twice at step 50" in failed["message"]
    assert at_50.status["checkpoint"]["step"] == 50
    assert at_50.status["restarts"]["user"] == 2
    assert "cursed" in at_50.why()


def test_containers_that_cannot_start_end_with_the_start_deadline_or_at_once(submit, site):
    # A kubelet of a real cluster looks for a secret several times before it says which is missing.
    deadline = {"deadlines": {"startup": "6s" if site.embedded else "30s"}}
    image = submit("no-image", container={"image": "registry.invalid/nobody/nothing:1"}, **deadline)
    secret = submit("no-secret", checkpoint={"secretRef": {"name": "nobody-made-this"}}, **deadline)
    command = submit("no-command", container={"command": ["/no/such/command"]})

    message = image.failed()["message"]
    assert "registry.invalid/nobody/nothing:1" in message
    assert "spec.deadlines.startup" in message
    assert "nobody-made-this" in secret.failed()["message"]
    assert "/no/such/command" in command.failed()["message"]


def test_a_template_that_no_pod_can_be_made_from_is_refused_with_the_servers_words(submit, site):
    job = submit("bad-template", container={"imagePullPolicy": "Sometimes"})
    failed = job.failed()
    assert failed["reason"] == "PodRefused"
    assert "imagePullPolicy" in failed["message"]


def damage(job, commits) -> None:
    """Change bytes in the middle of every data object of these commits."""
    store = job.store()
    for ref in commits:
        prefix = f"data/{ref}/"
        for entry in store.objects.list(prefix):
            body = bytearray(store.objects.get(entry.key))
            body[len(body) // 2] ^= 0xFF
            store.objects.put(entry.key, bytes(body))


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(submit, eventually):
    first = submit("whole", "--steps=30")
    first.wait_phase("Succeeded")
    uri = first.get()["spec"]["checkpoint"]["uri"]
    newest, before, *_ = first.store().commits()
    damage(first, [newest])

    second = submit("second", "--steps=40", "--delay=0.3", checkpoint={"uri": uri})
    degraded = second.wait(
        lambda s: next(
            (c for c in s.get("conditions", ()) if c["reason"] == "CheckpointDamaged"), None
        ),
        "the damage to be reported",
    )
    assert "R16" in degraded["message"]
    assert str(newest.step) in degraded["message"]
    second.wait_phase("Succeeded")
    assert second.status["progress"]["step"] == 40
    assert before.step < newest.step == 30
    told = [i for i in second.status["incidents"] if i["cause"] == "CheckpointDamaged"]
    assert [i["resumedFrom"] for i in told] == [before.step], "it stays when the round is over"

    commits = second.store().commits()
    damage(second, commits)
    third = submit("third", "--steps=50", checkpoint={"uri": uri})
    failed = third.failed()
    assert "R16" in failed["message"]
    assert third.status["incidents"][-1]["cause"] == "Integrity"
    ended = eventually(
        lambda: third.pods()[0].status.container_statuses[0].state.terminated, "the pod to end"
    )
    assert ended.exit_code == 70

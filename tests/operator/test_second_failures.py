"""What goes wrong while something else is being put right: during recoveries, saves and starts."""

import pytest

LOSSES = {
    "kill": lambda w, name: w.kill(name),
    "node": lambda w, name: w.lose_node(name),
    "vanish": lambda w, name: w.vanish(name),
    "notice": lambda w, name: w.delete(name, grace=5),
}
WHEN = {
    "waiting for the first step": lambda w: w.kill("digits-1").settle(),
    "while the replacement warms up": lambda w: w.kill("digits-1").run(3),
    "during the save for the replacement": lambda w: stopped_for(
        w.kill("digits-1").kill("digits-2")
    ),
    "during the save of a handover": lambda w: stopped_for(w.delete("digits-1")),
    "while a handover waits": lambda w: w.delete("digits-1").run(2),
}


def stopped_for(w):
    """Bring the world to where members have been asked to save and cannot yet."""
    w.hold_saves = True
    w.until(lambda: any(d.kind == "save" for d in w.directives.values()), 60)
    return w


def job(world, **more):
    w = world(replicas=4, **more)
    w.warms_for = 5.0
    return w.start().train(5)


def whole(w):
    return len(w.members) == w.job.replicas and w.training()


@pytest.mark.parametrize("spares", [0, 1])
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_second_loss_at_any_moment_of_a_recovery_is_survived(world, loss, when, spares):
    w = job(world, elastic={"spares": spares})
    WHEN[when](w)
    victim = next(p.name for p in w.alive if p.name in w.members and p.name != "digits-1")
    LOSSES[loss](w, victim)
    w.hold_saves = False
    w.until(lambda: whole(w) and victim not in w.members, 120)
    assert 1 <= sum(w.restarts) <= 2
    assert len(w.created) == len(set(w.created))
    assert w.restarts[0] == 0
    w.run(60, pace=5)
    assert len(w.alive) == 4 + spares


@pytest.mark.parametrize("where", ["children", "status"])
@pytest.mark.parametrize("when", WHEN)
def test_a_second_loss_and_the_operators_own_end_are_survived_together(world, when, where):
    w = job(world)
    WHEN[when](w)
    victim = next(p.name for p in w.alive if p.name in w.members and p.name != "digits-1")
    w.kill(victim)
    w.tick(die_after=where)
    w.hold_saves = False
    w.until(lambda: whole(w) and victim not in w.members, 120)
    assert 1 <= sum(w.restarts) <= 2


@pytest.mark.parametrize("loss", LOSSES)
def test_a_pod_lost_during_the_start_is_replaced_before_the_first_round(world, loss):
    w = world()
    w.warms_for = 5.0
    w.run(2)
    LOSSES[loss](w, "digits-1")
    w.until(lambda: whole(w), 60)
    assert w.members == ["digits-0", "digits-1r1", "digits-2"]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_pod_lost_before_the_first_step_ends_a_round_that_has_lost_nothing(world, loss):
    w = world()
    w.trains = False
    w.settle()
    LOSSES[loss](w, "digits-1")
    w.run(20)
    w.trains = True
    w.until(lambda: whole(w), 60)
    assert w.restarts[0] == 0


@pytest.mark.parametrize("spares", [0, 2])
def test_ten_losses_in_a_row_are_survived(world, spares):
    w = job(world, elastic={"spares": spares})
    for number in range(10):
        w.kill(w.members[number % len(w.members)]).run(1)
    w.until(lambda: whole(w), 900)
    assert w.phase == "Running"
    assert sum(w.restarts) == w.restarts[1]
    assert 1 <= w.restarts[1] <= 10
    assert len(w.created) == len(set(w.created))


def test_ten_losses_each_before_a_step_could_be_made_are_paced_and_survived(world):
    w = job(world)
    w.trains = False
    for _ in range(10):
        w.kill(w.members[-1]).until(w.group, 600)
    w.trains = True
    w.until(lambda: whole(w), 900)
    assert w.restarts[1] == 10


def test_notices_in_a_row_follow_each_other_without_a_step_lost(world):
    w = job(world, nodes=12)
    for index in range(4):
        w.delete(f"digits-{index}").run(2)
    w.until(lambda: whole(w) and not set(w.members) & {f"digits-{s}" for s in range(4)}, 120)
    assert sum(i["stepsLost"] or 0 for i in w.losses) == 0
    assert w.restarts[:2] == (0, 0)

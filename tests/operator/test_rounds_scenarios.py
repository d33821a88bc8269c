def test_first(world):
    w = world().start()
    assert w.members == ["digits-0", "digits-1", "digits-2"]
    w.train(5)
    assert w.phase == "Running"
    w.delete("digits-0")
    w.until(lambda: len(w.rounds) == 3 and w.training())
    print(w.status["incidents"], w.created, w.restarts, [r.reason for r in w.rounds])
    w.kill("digits-1")
    w.until(lambda: len(w.rounds) == 5 and w.training())
    print(w.status["incidents"], w.created, w.restarts, [r.reason for r in w.rounds])
    w.total_steps = 60
    w.until(lambda: w.phase == "Succeeded")
    w.run(60)
    print(w.status)
    print(w.plans)

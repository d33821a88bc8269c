"""Which run a fit is: every case of `decide`, and the record that tells a restart from a start."""

import json

import pytest

import rekindle as rk
from rekindle.checkpoint import Store
from rekindle.persistence import run_identity

OWN = run_identity.Identity(script="a", model="Net", hyperparameters={"lr": "0.1"})


def meta(script="a", *, finished=False, lr="0.1", world=1, model="Net"):
    run = {"script": script, "model": model, "hyperparameters": {"lr": lr}}
    return {"step": 7, "finished": finished, "world_size": world, "run": run}


def decide(saved, resume="auto", job=False):
    return run_identity.decide(OWN, saved, place="/runs", resume=resume, job=job, world_size=1)


@pytest.mark.parametrize(
    ("saved", "resume", "job", "goes_on", "again", "new"),
    [
        (None, "auto", False, True, False, False),  # nothing is found, or refused with "must"
        (None, "must", False, True, False, False),
        (meta(), "never", False, False, False, False),
        # Interrupted: goes on, whoever has begun it.
        (meta(), "auto", False, True, False, False),
        (meta("b"), "auto", False, True, False, False),
        (meta("b"), "auto", True, True, False, False),
        # At its end: the result of a fit of this script; anything else begins anew.
        (meta(finished=True), "auto", False, True, False, False),
        (meta("b", finished=True), "auto", False, False, False, False),
        (meta(finished=True, lr="0.2"), "auto", False, False, False, True),
        (meta("b", finished=True, lr="0.2"), "auto", False, False, False, False),
        (meta("b", finished=True), "must", False, True, True, False),
        # A job never throws away what is there; with another number of pods values may differ.
        (meta(finished=True), "auto", True, True, False, False),
        (meta("b", finished=True), "auto", True, True, True, False),
        (meta(lr="0.2", world=4), "auto", True, True, False, False),
        (meta(lr="0.2"), "must", True, True, False, False),
        # Commits of releases that wrote no identity.
        ({"step": 7, "finished": True}, "auto", False, True, False, False),
    ],
)
def test_what_a_fit_goes_on_from(saved, resume, job, goes_on, again, new):
    found = decide(saved, resume, job)
    assert (found.goes_on, found.again, found.new_script) == (goes_on, again, new)
    # Whatever is thrown away, or kept against what the script says, is said.
    surprising = saved is not None and resume != "never" and (not goes_on or "0.2" in str(saved))
    surprising = surprising or (job and again)
    assert (found.line is not None) == surprising


@pytest.mark.parametrize(
    ("saved", "job"),
    [
        (meta(lr="0.2"), False),
        (meta("b", lr="0.2"), False),
        (meta(lr="0.2"), True),
        (meta(finished=True, lr="0.2"), True),
    ],
)
def test_other_hyperparameters_are_named_with_both_values(saved, job):
    with pytest.raises(
        rk.RequirementError,
        match=r"R11 /runs holds step 7 of another run: lr was 0.2 and is 0.1. .* resume='must'; .* "
        r"resume='never'",
    ):
        decide(saved, job=job)


def test_the_model_and_what_is_gone_or_new_are_named_as_well():
    saved = {"model": "Other", "hyperparameters": {"depth": "3"}}
    assert run_identity.changed(saved, OWN) == [
        "the model was Other and is Net",
        "depth was 3 and is absent",
        "lr was absent and is 0.1",
    ]


def test_secrets_are_compared_and_not_shown():
    class Net(rk.Module):
        def __init__(self, api_key, lr, layers, code):
            super().__init__()

    found = run_identity.identity(Net("hush", 0.1, [1, 2], code=print)).hyperparameters
    other = run_identity.identity(Net("hash", 0.1, [1, 2], code=print)).hyperparameters
    assert "hush" not in str(found)
    assert found["api_key"] != other.pop("api_key")
    assert other == {"lr": "0.1", "layers": "[1, 2]"}


def test_what_is_saved_as_hyperparameter_counts_and_nothing_else():
    class Net(rk.Module):
        def __init__(self, lr, started):
            super().__init__()
            self.save_hyperparameters(ignore=["started"])

    assert run_identity.identity(Net(0.1, 12.5)).hyperparameters == {"lr": "0.1"}


def test_long_values_differ_at_their_end():
    class Net(rk.Module):
        def __init__(self, names):
            super().__init__()

    one, other = (run_identity.identity(Net(["x"] * 999 + [last])).hyperparameters for last in "ab")
    assert one != other
    assert len(one["names"]) < 300


def test_each_fit_of_a_root_has_a_place_of_its_own(monkeypatch):
    monkeypatch.undo()
    numbers = [run_identity.next_number("s3://b/run/"), run_identity.next_number("s3://b/run/")]
    assert numbers == [1, 2]
    assert run_identity.next_number("/other") == 1
    places = [run_identity.place_of("s3://b/run/", number) for number in (1, 2, 10)]
    assert places == ["s3://b/run/", "s3://b/run/fits/2", "s3://b/run/fits/10"]
    assert run_identity.places_before("/r", 3) == ["/r/fits/2", "/r"]


def test_a_script_that_has_not_come_to_its_end_is_found_again(tmp_path, monkeypatch):
    objects = Store.open(str(tmp_path)).objects
    first = run_identity.enter(objects, "root")
    assert run_identity.enter(objects, "root") == first == run_identity.peek(objects)
    run_identity._end(run_identity.os.getpid())
    assert run_identity.peek(objects) == ""
    second = run_identity.enter(objects, "root")
    assert second != first
    assert run_identity.enter(objects, "root", anew=True) != second
    # A launcher that starts its workers again knows better.
    run_identity._end(run_identity.os.getpid())
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run_identity.enter(objects, "root") == json.loads(objects.get("script.json"))["script"]


@pytest.mark.parametrize("why", ["failed", "forked"])
def test_a_script_that_ends_otherwise_is_not_marked(why, tmp_path):
    objects = Store.open(str(tmp_path)).objects
    script = run_identity.enter(objects, "root")
    if why == "failed":
        run_identity.failed()
    run_identity._end(run_identity.os.getpid() + (why == "forked"))
    assert run_identity.peek(objects) == script


def test_a_record_that_cannot_be_read_is_none(tmp_path):
    objects = Store.open(str(tmp_path)).objects
    objects.put("script.json", b"{")
    assert run_identity.peek(objects) == ""
    objects.put("script.json", b"[1]")
    assert run_identity.peek(objects) == ""

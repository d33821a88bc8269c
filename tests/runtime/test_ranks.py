"""Several ranks are one run: same samples, same metrics, weights equal up to rounding.

Each test starts ranks once and lets them do several tasks; ranks stay in their group meanwhile.
"""

import pytest
import torch

from rekindle import audit
from rekindle.checkpoint import Store

pytestmark = pytest.mark.processes

FLAGS = {"global_batch_size": 24, "gradient_clip_val": 0.5, "max_epochs": 2}


def task(root, **more):
    return {"root": root, "n": 103, "flags": FLAGS, "steps": 4, **more}


def newest(path):
    store = Store.open(str(path))
    return store.read(store.commits()[0])


def close(one, other):
    pairs = zip(one["parameters"], other["parameters"], strict=True)
    return all(torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-5) for a, b in pairs)


def once_per_epoch(results, n):
    """Every sample once in each epoch, over all given results."""
    by_epoch = {}
    for result in results:
        for epoch, _, sample in result["used"]:
            by_epoch.setdefault(epoch, []).append(sample)
    return all(sorted(used) == list(range(n)) for used in by_epoch.values())


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_train_what_one_process_trains_and_resume_bit_equal(fit, ranks, tmp_path, world_size):
    alone = fit(**task("alone", tensors=True))
    results = ranks(
        world_size,
        # Without noise in the data, dropout shows whether every lane draws what it should.
        task("whole", tensors=True),
        task("stopped", tensors=True, stop_at=3, notified=world_size - 1),
        task("stopped", tensors=True),
        task("normed", net={"norm": True}),
        task("normed and stopped", net={"norm": True}, stop_in_validation=5),
        task("normed and stopped", net={"norm": True}),
    )
    whole, stopped, resumed, normed, cut, again = zip(*results, strict=True)
    assert len({result["weights"] for result in whole}) == 1
    assert close(whole[0], alone)
    assert once_per_epoch(whole, 103)
    assert whole[0]["metrics"] == pytest.approx(alone["metrics"], abs=1e-5)
    assert whole[0]["accuracies"] == alone["accuracies"], "counts are exact"
    # All ranks agree one poll after one of them got the notice.
    assert {(r["exit"], r["step"]) for r in stopped} == {(75, 4)}
    assert [r["weights"] for r in resumed] == [r["weights"] for r in whole]
    assert once_per_epoch([*stopped, *resumed], 103)
    assert {(r["exit"], r["step"]) for r in cut} == {(75, 5)}
    assert again[0]["weights"] == normed[0]["weights"]
    for root in ("whole", "stopped", "normed and stopped"):
        assert audit(newest(tmp_path / root).meta).exact


def test_a_run_moves_over_world_sizes_and_sees_1003_samples_once_per_epoch(ranks, fit, tmp_path):
    def moved(root, **more):
        flags = {**FLAGS, "global_batch_size": 96}
        return {**task(root, n=1003, batch_size=16, **more), "flags": flags}

    fit(**moved("whole"))
    four = ranks(4, moved("to two", stop_at=3), moved("to three", stop_at=15))
    two = ranks(2, moved("to two"), moved("to four", stop_at=7))
    three = ranks(3, moved("to three"))
    last = ranks(4, moved("to four"))
    runs = {
        "to two": [r[0] for r in four] + [r[0] for r in two],
        "to three": [r[1] for r in four] + [r[0] for r in three],
        "to four": [r[1] for r in two] + [r[0] for r in last],
    }
    for root, parts in runs.items():
        assert once_per_epoch(parts, 1003), root
        commit = newest(tmp_path / root)
        assert audit(commit.meta).exact
        assert commit.meta["ledger"] == newest(tmp_path / "whole").meta["ledger"]


def test_a_run_of_one_micro_batch_moves_over_any_number_of_ranks(ranks, fit, tmp_path):
    """`kubectl scale` from 1 to 2, to 1 and to 3, with README's script: a batch of 16."""

    def moved(root, *, net=None, **more):
        flags = {"max_epochs": 2, "data": {"guarantee": "bitwise" if "bits" in root else "order"}}
        return {"root": root, "n": 103, "batch_size": 16, "flags": flags, "net": net or {}, **more}

    def several(**more):
        return [
            moved("run", wanted=2, **more),  # what was wanted first counts, and that was one
            moved("bits", **more),
            moved("normed", net={"norm": True}, **more),
        ]

    whole = fit(**moved("whole bits"))
    parts = [[fit(**one) for one in several(stop_at=3)[1:]]]
    parts[0].insert(0, fit(**moved("run", stop_at=3)))
    parts += [[rank[n] for n in range(3)] for rank in ranks(2, *several(stop_at=6))]
    parts += [[fit(**one) for one in several(stop_at=9)]]
    parts += [[rank[n] for n in range(3)] for rank in ranks(3, *several())]
    assert [[result["error"] for result in part] for part in parts] == [[None] * 3] * 7
    for number, root in enumerate(("run", "bits", "normed")):
        assert once_per_epoch([part[number] for part in parts], 103), root
        commit = newest(tmp_path / root)
        assert audit(commit.meta).exact
        assert (commit.meta["step"], commit.meta["cursor"]["G"]) == (14, 16)
        assert "cut" not in commit.meta["cursor"]
    assert {part[1]["weights"] for part in parts[-3:]} == {whole["weights"]}
    sizes = {root: [] for root in ("run", "bits", "normed")}
    for root, found in sizes.items():
        for each in newest(tmp_path / root).meta["history"]:
            found.append((each["world_size"], each["G"], each["m"]))
    assert sizes["run"] == [(1, 16, 16), (2, 16, 8), (1, 16, 16), (3, 16, 6)]
    # What is computed per micro-batch is left as it is; ranks without one change nothing.
    assert sizes["bits"] == sizes["normed"]
    assert sizes["bits"] == [(1, 16, 16), (2, 16, 16), (1, 16, 16), (3, 16, 16)]


def test_whoever_came_first_does_not_decide_the_batch(ranks, fit, tmp_path):
    """Two pods are wanted, and one comes late: the run begins with the batch of two."""
    late = {"root": "late", "n": 103, "flags": {"max_epochs": 2}, "wanted": 2}
    begun = fit(**late, stop_at=2)
    joined = ranks(2, late, {**late, "root": "whole"})
    whole = newest(tmp_path / "whole").meta
    assert newest(tmp_path / "late").meta["ledger"] == whole["ledger"]
    assert [each["G"] for each in newest(tmp_path / "late").meta["history"]] == [8, 8]
    assert once_per_epoch([begun, *(rank[0] for rank in joined)], 103)
    assert close(joined[0][0], joined[0][1])


def test_a_rank_that_fails_ends_the_others_too(ranks):
    results = ranks(2, task("failing", fail_at=3, failing=1), fails=True)
    errors = sorted(result[0]["error"] for result in results)
    assert "ValueError: made to fail at step 3" in errors
    assert len(errors) == 2
    assert all(errors)


def test_ranks_agree_on_saves_by_the_clock_of_one_of_them(ranks, tmp_path):
    timed = {"root": "run", "flags": FLAGS, "seconds": 0.1, "slow": 0.05}
    for (result,) in ranks(2, timed):
        assert result["error"] is None
    commits = sorted((tmp_path / "run" / "commit").iterdir())
    assert len(commits) == 3  # as many as are kept
    assert int(commits[-1].name[:12]) == 10


def test_a_refusal_is_the_same_on_all_ranks(ranks, tmp_path):
    uneven = {**task("uneven"), "flags": {**FLAGS, "global_batch_size": 10}}
    nowhere = task("../" * 30 + "proc/nowhere")
    expected = [
        "R9 training dataset differs between ranks: rank 0 has 103 samples, rank 2 has 9 (path "
        "missing?).",
        "R9 training dataset differs between ranks: rank 0 has 103 samples, rank 1 has 99 (path "
        "missing?).",
        "global_batch_size=10 is not a multiple of the micro-batch 4 (the loader's batch_size)",
        "R5 cannot write checkpoints to file:///proc/nowhere: ",
    ]
    results = ranks(3, task("a", short={2: 9}), task("b", short={1: 99, 2: 98}), uneven, nowhere)
    for found, message in zip(zip(*results, strict=True), expected, strict=True):
        messages = {result["error"].partition(": ")[2] for result in found}
        assert len(messages) == 1
        assert messages.pop().startswith(message)
        assert all(result["step"] == 0 for result in found)


def test_ranks_leave_the_same_windows_out_with_and_without_going_back(ranks):
    """One rank has the sample that cannot be learnt; all ranks refuse the step it is in."""
    flags = {policy: {**FLAGS, "nonfinite": policy} for policy in ("skip", "rollback")}
    results = ranks(
        2,
        task("whole"),
        task("skip", flags=flags["skip"], bad_sample=17),
        task("rollback", flags=flags["rollback"], bad_sample=17, steps=2),
        task("stop", bad_sample=17),
    )
    whole, skip, rollback, stop = zip(*results, strict=True)
    assert {r["step"] for r in (*skip, *rollback)} == {whole[0]["step"] - 2}
    assert len({r["weights"] for r in (*skip, *rollback)}) == 1
    assert skip[0]["weights"] != whole[0]["weights"]
    assert all("R20 non-finite" in r["error"] for r in stop)

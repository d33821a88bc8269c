"""A run whose process is killed at a random place ends as one that was left alone, bit for bit.

The processes come out of a forkserver that has imported everything once. One process does all the
undisturbed runs; then each case is begun in a process that ends by a real SIGKILL, and finished in
another one. Compared is all that the last checkpoints hold: weights, optimizers, schedulers,
scaler, averages, generators.
"""

import random
import runpy
import signal
import time
from pathlib import Path

import pytest
import torch

from rekindle import audit
from rekindle.checkpoint import Store

pytestmark = pytest.mark.processes

PROGRAM = Path(__file__).parent / "program" / "kills.py"
CASES = list(runpy.run_path(str(PROGRAM))["CASES"])
HOOKS = [
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_after_optimizer_step",
    "on_train_batch_end",
    "on_save_checkpoint",
]
CLOCKS = {"productive_seconds", "stall_seconds", "elapsed_seconds"}


@pytest.fixture(scope="module")
def begin(_forkserver):
    """Start a process that does these runs."""

    def start(*tasks):
        process = _forkserver.Process(
            target=runpy.run_path,
            args=(str(PROGRAM),),
            kwargs={"init_globals": {"TASKS": tasks}, "run_name": "__main__"},
        )
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def whole(begin, tmp_path_factory):
    """The last checkpoints of undisturbed runs, by case."""
    root = tmp_path_factory.mktemp("whole")
    roots = {case: root / str(number) for number, case in enumerate(CASES)}
    ended(begin(*({"case": c, "root": str(r), "every": 0} for c, r in roots.items())), 0)
    return {case: newest(root) for case, root in roots.items()}


def ended(process, code):
    process.join(60)
    assert process.exitcode == code
    process.close()


def newest(root):
    store = Store.open(str(root))
    return store.load(store.read(store.commits()[0]))


def flat(value, path=""):
    """Leaves by path, without what clocks say."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {
            name: leaf
            for key, item in items
            if key not in CLOCKS
            for name, leaf in flat(item, f"{path}.{key}").items()
        }
    if isinstance(value, torch.Tensor):
        return {path: (value.dtype, tuple(value.shape), value.numpy().tobytes())}
    return {path: value}


def assert_equal(one, other):
    for tree in ("state", "rank_state"):
        assert flat(getattr(one, tree)) == flat(getattr(other, tree))
    assert one.meta["ledger"] == other.meta["ledger"]
    assert one.meta["metrics"] == other.meta["metrics"]
    found = audit(one.meta)
    assert (found.samples_repeated, found.samples_missed) == (0, 0)
    assert found.digest_ok is not False


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_bit_equal(begin, whole, tmp_path, case):
    draw = random.Random(case)
    steps = whole[case].meta["step"]
    # An average over epochs has nothing to lose before the second one has ended.
    kill = (draw.choice(HOOKS), draw.randrange(28 if case == "SWA" else 4, steps))
    if case == "mid-validation":
        kill = ("on_validation_batch_start", 26)
    elif kill[0] == "on_save_checkpoint":
        kill = (kill[0], kill[1] // 3 * 3 + 3)
    task = {"case": case, "root": str(tmp_path / "run")}
    ended(begin({**task, "kill": kill}), -signal.SIGKILL)
    assert 0 < newest(tmp_path / "run").meta["step"] <= kill[1]
    ended(begin(task), 0)
    assert_equal(newest(tmp_path / "run"), whole[case])


def test_kills_at_any_moment_do_not_show_in_the_result(begin, whole, tmp_path):
    draw = random.Random(1)
    task = {"case": "EMA", "root": str(tmp_path / "run"), "every": 1}
    codes = []
    for goal in (4, 9, 15, 22, 30):
        process = begin({**task, "slow": 0.005})
        limit = time.monotonic() + 30
        while process.is_alive() and not committed(tmp_path / "run", goal):
            assert time.monotonic() < limit, "no progress"
            time.sleep(0.001)
        process.join(draw.uniform(0, 0.01))
        process.kill()
        process.join()
        codes.append(process.exitcode)
        process.close()
    assert -signal.SIGKILL in codes
    ended(begin(task), 0)
    assert_equal(newest(tmp_path / "run"), whole["EMA"])


def committed(root, step):
    return any(int(path.name[:12]) >= step for path in root.glob("commit/*"))

"""Workers die, their pods' memory does not: what comes after them is what was, bit for bit.

A round is one process per pod. When one dies the others are killed as well, as their launchers do
it, and the next round finds what lies in the memory of those pods that are left.
"""

import json
import os
import runpy
import signal
import time
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from rekindle import audit
from rekindle.checkpoint import Store
from rekindle.peer_memory import store as hostcopy
from rekindle.peer_memory.store import HostMemory
from rekindle.ranks.control_page import ControlPage
from rekindle_cli.local.stack import free_ports

pytestmark = pytest.mark.processes

PROGRAM = Path(__file__).parent / "program" / "pod.py"
FLAGS = {"global_batch_size": 24, "gradient_clip_val": 0.5, "max_epochs": 2}
TASK = {"n": 103, "flags": FLAGS, "net": {"norm": True}, "tensors": True}


class Pod:
    """A name, and memory that lasts as long as this object."""

    def __init__(self, name, memory=True):
        self.name = name
        self.memory = HostMemory.create() if memory else None

    @property
    def paths(self):
        if self.memory is None:
            return []
        return [f"/proc/{os.getpid()}/fd/{fd}" for fd in self.memory._fds]

    @property
    def steps(self):
        """Of the copies that it holds, newest first."""
        return [copy.label.step for copy in self.memory.copies(self.whose)]

    @property
    def newest(self):
        return self.memory.copies(self.whose)[0]


class Jobs:
    """Rounds of one job."""

    def __init__(self, forkserver, folder):
        self.forkserver, self.folder, self.number = forkserver, folder, 0
        Pod.whose = hostcopy.identity(str(folder / "run"), "test/job")

    def start(self, pods, **task):
        self.number += 1
        (port,) = free_ports(1)
        self.pages, self.outs, self.processes = [], [], []
        for rank, pod in enumerate(pods):
            # The same pod twice is a pod with two workers.
            local_rank = rank - pods.index(pod)
            directory = self.folder / f"round-{self.number}-{pod.name}-{pods.index(pod)}"
            if not local_rank:
                directory.mkdir()
                self.pages.append(ControlPage(directory, create=True))
            self.outs.append(directory / f"result-{local_rank}.json")
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(local_rank),
                "WORLD_SIZE": str(len(pods)),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "REKINDLE_RUN_DIR": str(directory),
                "REKINDLE_POD_NAME": pod.name,
                "REKINDLE_JOB_NAME": "job",
                "REKINDLE_JOB_NAMESPACE": "test",
            }
            names = {
                "ENVIRONMENT": environment,
                "MEMORY": pod.paths,
                "TASK": {"root": str(self.folder / "run"), **TASK, **task},
                "OUT": str(self.outs[-1]),
            }
            process = self.forkserver.Process(
                target=runpy.run_path, args=(str(PROGRAM),), kwargs={"init_globals": names}
            )
            process.start()
            self.processes.append(process)

    def run(self, *pods, **task):
        """A round that ends by itself; the results of all ranks."""
        self.start(pods, **task)
        self.end(200)
        return [json.loads(out.read_text()) for out in self.outs]

    def kill(self, *pods, **task):
        """A round in which somebody dies, and then all do."""
        self.start(pods, **task)
        left = list(self.processes)
        # Who was killed may be seen to be gone after those that have noticed it.
        while left and not any(process.exitcode == -signal.SIGKILL for process in self.processes):
            gone = wait([process.sentinel for process in left], 200)
            assert gone, "nobody died"
            left = [process for process in left if process.sentinel not in gone]
        assert -signal.SIGKILL in [process.exitcode for process in self.processes], [
            out.read_text() for out in self.outs if out.exists()
        ]
        self.end(0)

    def end(self, seconds):
        limit = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, limit - time.monotonic()))
        late = [process for process in self.processes if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        assert not (late and seconds), "ranks hang"

    @property
    def sources(self):
        """Where the pods of the last round say that they began, and at which step."""
        found = [page.restored() for page in self.pages]
        return [(one.step, one.source) for one in found]

    @property
    def said(self):
        """What rank 0 has printed in the last round."""
        return self.outs[0].with_suffix(".txt").read_text()

    def newest(self):
        store = Store.open(str(self.folder / "run"))
        return store.read(store.commits()[0])


@pytest.fixture
def jobs(_forkserver, tmp_path):
    return Jobs(_forkserver, tmp_path)


@pytest.fixture(scope="module")
def whole(_forkserver, tmp_path_factory):
    """Results of undisturbed runs on so many ranks, without memory."""
    known = {}

    def run(size):
        if size not in known:
            jobs = Jobs(_forkserver, tmp_path_factory.mktemp("whole"))
            pods = [Pod(str(rank), memory=False) for rank in range(size)]
            known[size] = (jobs.run(*pods), jobs.newest())
        return known[size]

    return run


def same(jobs, results, expected):
    """Bit for bit the undisturbed run, and every sample once."""
    (ranks, commit), found = expected, jobs.newest()
    assert [r["weights"] for r in results] == [r["weights"] for r in ranks]
    assert results[0]["metrics"] == ranks[0]["metrics"]
    assert found.meta["ledger"] == commit.meta["ledger"]
    assert audit(found.meta).exact


def test_workers_that_are_killed_leave_the_state_to_the_next_ones(jobs, whole):
    pods = [Pod("a"), Pod("b")]
    jobs.kill(*pods, kill=[1, 7], slow=0.02)
    assert pods[0].steps == [6, 5]
    unsaved = pods[0].newest.meta["unsaved_seconds"]
    jobs.kill(*pods, kill=[0, 9])
    assert jobs.sources == [(6, "memory"), (6, "memory")]
    # Lives shorter than the time between two saves add up to one.
    assert pods[0].newest.meta["unsaved_seconds"] > unsaved
    results = jobs.run(*pods)
    assert jobs.sources == [(8, "memory"), (8, "memory")]
    same(jobs, results, whole(2))


def test_a_newcomer_gets_the_state_from_a_pod_that_has_it_and_a_rank_its_own_wherever_it_runs(
    jobs, whole
):
    a, b, c, d = (Pod(name) for name in "abcd")
    jobs.kill(a, b, kill=[1, 7])
    # Rank 0's pod is the new one, and the state travels in many pieces.
    jobs.kill(c, a, kill=[1, 9], piece=1000)
    assert jobs.sources == [(6, "memory of a"), (6, "memory")]
    assert c.steps == [8, 7]
    # Nobody is left of those who began.
    results = jobs.run(c, d)
    assert jobs.sources == [(8, "memory"), (8, "memory of c")]
    same(jobs, results, whole(2))


def test_several_workers_of_a_pod_share_its_memory(jobs, whole):
    a, b, c = (Pod(name) for name in "abc")
    jobs.kill(a, a, b, kill=[1, 7])
    assert (a.steps, b.steps) == ([6, 5], [6, 5])
    results = jobs.run(b, c, c)
    assert jobs.sources == [(6, "memory"), (6, "memory of b")]
    same(jobs, results, whole(3))


def test_pods_without_memory_take_part_and_get_the_state_as_well(jobs, whole):
    a, b = Pod("a"), Pod("b", memory=False)
    jobs.kill(a, b, kill=[1, 7])
    results = jobs.run(b, a)
    assert jobs.sources == [(6, "memory of a"), (6, "memory")]
    same(jobs, results, whole(2))


def test_the_world_may_grow_and_shrink_and_every_sample_is_used_once(jobs, whole):
    pods = [Pod(name) for name in "abc"]
    jobs.kill(*pods[:2], kill=[1, 4])
    jobs.kill(pods[0], kill=[0, 6])
    assert jobs.sources == [(3, "memory")]
    results = jobs.run(pods[2], pods[0], pods[1])
    # b has been away, and what it holds is older.
    assert jobs.sources == [(5, "memory of a"), (5, "memory"), (5, "memory of a")]
    found = jobs.newest()
    assert found.meta["ledger"] == whole(2)[1].meta["ledger"]
    assert audit(found.meta).exact
    assert len({r["step"] for r in results}) == 1


def test_death_in_the_middle_of_a_copy_leaves_the_one_before(jobs, whole):
    pods = [Pod("a"), Pod("b")]
    # The fifth copy becomes whole on no pod, or on one of them.
    jobs.kill(*pods, die={"0": ["copy", 4], "1": ["copy", 4]})
    assert [pod.steps for pod in pods] == [[4], [4]]
    jobs.kill(*pods, die={"1": ["copy", 2]})
    assert jobs.sources == [(4, "memory")] * 2
    results = jobs.run(*pods)
    assert jobs.sources[0][0] in {6, 7}
    assert {step for step, _ in jobs.sources} == {jobs.sources[0][0]}
    same(jobs, results, whole(2))


@pytest.mark.parametrize("death", [{"0": ["give", 4]}, {"1": ["take", 4]}, {"1": ["recalled", 0]}])
def test_death_in_the_middle_of_a_transfer_costs_nothing(jobs, whole, death):
    a, b, c = (Pod(name) for name in "abc")
    jobs.kill(a, b, kill=[1, 7])
    jobs.kill(a, c, piece=1000, die=death)
    assert a.steps == [6, 5]
    assert c.steps in ([], [6])
    same(jobs, jobs.run(a, c), whole(2))


def test_a_run_that_died_in_its_last_save_is_complete_and_gets_its_commit(jobs, whole):
    pods = [Pod("a"), Pod("b")]
    jobs.kill(*pods, die={"0": ["save", 0]})
    assert not list((jobs.folder / "run").glob("commit/*"))
    results = jobs.run(*pods)
    assert jobs.sources == [(10, "memory")] * 2
    assert "training is complete already: step 10" in jobs.said
    same(jobs, results, whole(2))


def test_all_memory_gone_means_the_newest_commit(jobs, whole):
    jobs.kill(Pod("a"), Pod("b"), kill=[1, 7], steps=3, slow=0.05)
    results = jobs.run(Pod("c"), Pod("d"))
    assert [step for step, _ in jobs.sources] == [6, 6]
    assert jobs.sources[0][1].endswith("commit/000000000006-00000001.json")
    same(jobs, results, whole(2))


def test_copies_that_are_older_than_a_commit_are_passed_over(jobs, whole):
    pods = [Pod("a"), Pod("b")]
    jobs.kill(*pods, kill=[1, 7], steps=3, slow=0.05)
    for pod in pods:
        known = pod.memory.known(pod.whose)
        if known is not None:
            newer = hostcopy.KnownCommit(
                generation=known.generation, ref=hostcopy.CommitRef(step=7, fence=1)
            )
            pod.memory.note(pod.whose, newer)
    results = jobs.run(*pods)
    assert jobs.sources[0][1].endswith("commit/000000000006-00000001.json")
    same(jobs, results, whole(2))


def test_a_damaged_copy_is_left_out(jobs, whole):
    pods = [Pod("a"), Pod("b")]
    jobs.kill(*pods, kill=[1, 7])
    for pod in pods:
        (slot,) = [copy.slot for copy in pod.memory.copies(pod.whose) if copy.label.step == 6]
        fd = pod.memory._fds[slot]
        os.pwrite(fd, bytes([os.pread(fd, 1, 5000)[0] ^ 1]), 5000)
    results = jobs.run(*pods)
    assert jobs.sources == [(5, "memory")] * 2
    same(jobs, results, whole(2))


def blocked(folder):
    """A store that cannot be written to, until it is given back."""
    (folder / "run").rename(folder / "away")
    (folder / "run").write_text("in the way")


def given_back(folder):
    (folder / "run").unlink()
    (folder / "away").rename(folder / "run")


def test_training_goes_on_from_memory_while_the_store_is_down(jobs, whole, tmp_path):
    pods = [Pod("a"), Pod("b")]
    jobs.kill(*pods, kill=[1, 4], steps=3, slow=0.05)
    blocked(tmp_path)
    jobs.kill(*pods, kill=[1, 8], steps=2)
    assert jobs.sources == [(3, "memory")] * 2
    assert pods[0].steps == [7, 6]
    said = jobs.said
    assert "checkpoint of step 4 was not saved: R5 cannot write checkpoints to " in said
    assert "checkpoint of step 6 was not saved: R5 " in said
    assert "Training goes on from memory." in said
    given_back(tmp_path)
    results = jobs.run(*pods)
    assert jobs.sources == [(7, "memory")] * 2
    # The commits of all attempts are one line.
    store = Store.open(str(tmp_path / "run"))
    steps = [ref.step for ref in store.line()]
    assert steps == [10, 3]
    assert store.read(store.line()[0]).base == store.line()[1]
    same(jobs, results, whole(2))


def test_workers_that_leave_while_a_pod_stays_do_not_wait_for_the_store(jobs, whole, tmp_path):
    pods = [Pod("a"), Pod("b")]
    jobs.kill(*pods, kill=[1, 4])
    blocked(tmp_path)
    results = jobs.run(*pods, ask_at=4, staying=[1])
    assert {(r["exit"], r["step"]) for r in results} == {(75, 5)}
    assert "R17 step 5 is in the pods' memory, but not committed: R5" in jobs.said
    # Nobody stays: what is not committed is not saved.
    results = jobs.run(*pods, ask_at=6, staying=[])
    assert {(r["exit"], r["step"]) for r in results} == {(76, 7)}
    given_back(tmp_path)
    results = jobs.run(Pod("c"), pods[1], ask_at=8, staying=[])
    assert jobs.sources == [(7, "memory of b"), (7, "memory")]
    assert {(r["exit"], r["step"]) for r in results} == {(75, 9)}
    assert jobs.newest().meta["step"] == 9
    results = jobs.run(Pod("d"), Pod("e"))
    assert jobs.sources[0][1].endswith("commit/000000000009-00000002.json")
    same(jobs, results, whole(2))


def test_a_large_state_is_uploaded_beside_the_next_round(jobs, tmp_path):
    pods = [Pod("a"), Pod("b")]
    results = jobs.run(*pods, ask_at=3, staying=[0, 1], by_process=True)
    assert {(r["exit"], r["step"]) for r in results} == {(75, 4)}
    limit = time.monotonic() + 20
    while not list((tmp_path / "run").glob("commit/000000000004-*")):
        assert time.monotonic() < limit, "the upload did not go on"
        time.sleep(0.01)
    jobs.run(*pods)
    assert jobs.sources == [(4, "memory")] * 2
    store = Store.open(str(tmp_path / "run"))
    assert [ref.step for ref in store.line()] == [10, 4]


def test_a_pod_that_leaves_alone_waits_for_its_commit_however_large(jobs, tmp_path):
    (result,) = jobs.run(Pod("a"), ask_at=3, staying=[], by_process=True)
    assert result["exit"] == 75
    assert len(list((tmp_path / "run").glob(f"commit/{result['step']:012d}-*"))) == 1


def test_memory_counts_for_the_same_run_only(jobs, tmp_path):
    pods = [Pod("a"), Pod("b")]
    jobs.kill(*pods, kill=[1, 7])
    jobs.kill(*pods, kill=[1, 2], flags={**FLAGS, "resume": "never"})
    assert jobs.sources == [(0, "scratch")] * 2
    jobs.kill(*pods, kill=[1, 2], root=str(tmp_path / "other"))
    assert jobs.sources == [(0, "scratch")] * 2


def test_a_newcomer_has_to_show_that_it_has_the_same_data(jobs):
    a, b = Pod("a"), Pod("b")
    jobs.kill(a, kill=[0, 3])
    errors = [result["error"] for result in jobs.run(b, a, short={0: 99})]
    assert all("R9 training dataset differs between ranks" in error for error in errors)


def test_what_was_given_up_does_not_come_back_from_memory(jobs, whole):
    """Going back within a process makes its newer copies worthless, at whatever step they are."""
    pods = [Pod("a"), Pod("b")]
    flags = {**FLAGS, "nonfinite": "rollback"}
    task = {"flags": flags, "bad_sample": 17, "steps": 2, "slow": 0.02}
    (jobs.folder / "alone").mkdir()
    alone = Jobs(jobs.forkserver, jobs.folder / "alone").run(
        Pod("c", False), Pod("d", False), **task
    )
    Pod.whose = hostcopy.identity(str(jobs.folder / "run"), "test/job")
    jobs.kill(*pods, kill=[0, 8], **task)
    results = jobs.run(*pods, **task)
    assert jobs.sources == [(7, "memory")] * 2
    assert results[0]["weights"] == alone[0]["weights"]

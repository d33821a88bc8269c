"""What loggers hold and phases tell of runs in processes of their own: several ranks, SIGKILL."""

import csv
import json
import runpy
import signal
from pathlib import Path

import pytest
import torch

from rekindle_cli.local.stack import free_ports

pytestmark = pytest.mark.processes

PROGRAM = Path(__file__).parent / "program" / "observed.py"


@pytest.fixture
def observe(_forkserver, tmp_path):
    """Run the program on ranks of its own; gives their exit codes and what each has seen."""

    def run(world_size=1, **task):
        names = {"WORLD_SIZE": world_size, "PORT": free_ports(1)[0]}
        task["root"] = str(tmp_path / "run")
        outs = [tmp_path / f"{names['PORT']}-{rank}.json" for rank in range(world_size)]
        started = [
            _forkserver.Process(
                target=runpy.run_path,
                args=(str(PROGRAM),),
                kwargs={"init_globals": {**names, "TASK": task, "RANK": rank, "OUT": str(out)}},
            )
            for rank, out in enumerate(outs)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(60)
        codes = [process.exitcode for process in started]
        for process in started:
            process.close()
        return codes, [json.loads(out.read_text()) for out in outs if out.exists()]

    return run


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_only_rank_0_writes_the_mean_and_a_late_rank_shows_as_the_others_wait(observe, tmp_path):
    codes, seen = observe(2, late=1, seconds=0.05)
    assert codes == [0, 0]
    first, late = (rank["phases"] for rank in seen)
    assert first["comm_wait"][1] == first["steps"][1] == 8
    # The rank that is late finds the others waiting.
    assert first["comm_wait"][0] >= 8 * 0.02
    assert late["comm_wait"][0] < first["comm_wait"][0] / 2
    assert late["forward"][0] >= 8 * 0.05
    for phases in (first, late):
        steps = phases.pop("steps")[0]
        rare = sum(phases.get(name, (0.0,))[0] for name in ("validation", "checkpoint", "log"))
        parts = sum(seconds for seconds, _ in phases.values()) - rare
        assert parts == pytest.approx(steps, rel=0.05)
    assert seen[0]["log_dirs"] == seen[1]["log_dirs"]
    found = rows(tmp_path / "run/logs/version_0/metrics.jsonl")
    assert [row["step"] for row in found] == list(range(8))
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    assert found[0]["first"] == pytest.approx(float(x[0, 0] + x[4, 0]) / 2, rel=1e-5)
    assert not (tmp_path / "run/logs/version_1").exists()


def test_every_service_shows_each_step_once_after_a_sigkill_and_a_resume(observe, tmp_path):
    codes, _ = observe(services=True, kill_at=12)
    assert codes == [-signal.SIGKILL]
    codes, _ = observe(services=True)
    assert codes == [0]
    steps = list(range(16))
    assert [row["step"] for row in rows(tmp_path / "run/logs/version_0/metrics.jsonl")] == steps
    with (tmp_path / "run/table/version_0/metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == steps
    assert sorted({*board(tmp_path / "run/lightning_logs/version_0")}) == steps
    # A run that is killed before the server has answered is not known to its checkpoint.
    assert server(tmp_path / "mlruns")[-1] == steps


def board(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path))
    events.Reload()
    return [event.step for event in events.Scalars("first")]


def server(path):
    """Steps of each run in MLflow's file store, which has a line per value."""
    found = []
    for metric in sorted(path.glob("*/*/metrics/first")):
        found.append([int(line.split()[2]) for line in metric.read_text().splitlines()])
    return sorted(found, key=len)

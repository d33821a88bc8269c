"""What it costs per step that all ranks agree on when to stop.

Run it alone: `python tests/bench/consensus.py [--ranks 2] [--steps 400] [--rounds 5]`. Each rank
does so many steps of a little work and one gradient-like all-reduce, and after each of them asks,
in five ways, whether to stop. The last line is JSON; values are medians of the wall time per step
in microseconds, on top of the same loop that asks nobody (`alone_us`), for each length of a step:

- ours       `rekindle.ranks.consensus.Consensus.poll`, as the trainer calls it
- word       an asynchronous all-reduce in every step, whose result is read one step later
- blocking   an all-reduce in every step that is waited for, and read on the host
- gathered   an all-gather of Python objects in every step
- page       no collective at all: one word of shared memory is read, and one is written, in every
             step. That is what a way would cost in which launchers agree among themselves.
"""

import argparse
import json
import mmap
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "runtime"))

import torch
import torch.distributed as dist

from rekindle.randomness import EARLY
from rekindle.ranks.consensus import Consensus, StopNotice
from rekindle.ranks.distributed import World

LENGTHS = (0.0, 0.002, 0.01)
"""Seconds of work in a step."""
WAYS = ("alone", "ours", "word", "blocking", "gathered", "page")


def ways(rank: int, size: int) -> dict[str, Callable[[], Callable[[], None]]]:
    """For each way, what makes a fresh question."""
    control = dist.new_group(backend="gloo")

    def ours() -> Callable[[], None]:
        world = World(
            rank=rank, size=size, local_rank=rank, device=torch.device("cpu"), control=control
        )
        consensus = Consensus(world, StopNotice(None), lambda: False)
        return lambda: assert_false(consensus.poll(EARLY))

    def word() -> Callable[[], None]:
        sent: list[Any] = []

        def ask() -> None:
            tensor = torch.zeros(5, dtype=torch.int64)
            work = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=control, async_op=True)
            if sent:
                before, seen = sent.pop()
                before.wait()
                assert_false(seen.tolist()[0])
            sent.append((work, tensor))

        return ask

    def blocking() -> Callable[[], None]:
        def ask() -> None:
            tensor = torch.zeros(5, dtype=torch.int64)
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=control)
            assert_false(tensor.tolist()[0])

        return ask

    def gathered() -> Callable[[], None]:
        def ask() -> None:
            found: list[Any] = [None] * size
            dist.all_gather_object(found, False, group=control)
            assert_false(any(found))

        return ask

    def page() -> Callable[[], None]:
        words = memoryview(mmap.mmap(-1, 4096)).cast("q")

        def ask() -> None:
            words[1] += 1
            assert_false(words[0])

        return ask

    def alone() -> Callable[[], None]:
        return lambda: None

    return {
        "alone": alone,
        "ours": ours,
        "word": word,
        "blocking": blocking,
        "gathered": gathered,
        "page": page,
    }


def assert_false(stop: object) -> None:
    """Nobody asks to stop here; the answer has to be looked at all the same."""
    assert not stop


def work(seconds: float) -> None:
    """Keep this core busy, as forward and backward would."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def steps(ask: Callable[[], None], length: float, number: int) -> float:
    """Microseconds per step."""
    gradient = torch.ones(1000)
    dist.barrier()
    began = time.perf_counter()
    for _ in range(number):
        work(length)
        dist.all_reduce(gradient)
        ask()
    return (time.perf_counter() - began) / number * 1e6


def one_rank(rank: int, size: int, port: int, number: int, rounds: int, results: Any) -> None:
    """All measurements of one rank; rank 0 tells."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size
    )
    made = ways(rank, size)
    seen: dict[str, dict[str, list[float]]] = {}
    for length in LENGTHS:
        few = max(20, min(number, int(1.0 / max(length, 0.001))))
        table = seen.setdefault(f"{length * 1e3:g} ms", {name: [] for name in WAYS})
        for turn in range(rounds + 1):
            for name in WAYS:
                took = steps(made[name](), length, few)
                if turn:  # the first round warms up
                    table[name].append(took)
    if rank == 0:
        results.put(seen)
    dist.barrier()
    dist.destroy_process_group()


def summary(seen: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Medians: of the loop alone, and of what each way takes on top of it in the same round."""
    result: dict[str, dict[str, float]] = {}
    for length, table in seen.items():
        base = table["alone"]
        result[length] = {"alone_us": round(statistics.median(base), 1)}
        for name in WAYS[1:]:
            extra = [took - without for took, without in zip(table[name], base, strict=True)]
            result[length][f"{name}_us"] = round(statistics.median(extra), 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    arguments = (chosen.ranks, port, chosen.steps, chosen.rounds, results)
    started = [
        context.Process(target=one_rank, args=(rank, *arguments)) for rank in range(chosen.ranks)
    ]
    for process in started:
        process.start()
    seen = results.get()
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    print(json.dumps(summary(seen)))


if __name__ == "__main__":
    main()

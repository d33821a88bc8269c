"""Client CPU and throughput of the checkpoint store's S3 path, beside other clients.

Every client is a process of its own, warm, and takes its turn in every round against one lean sink
(`s3_sink`); figures are medians over the rounds, so a loaded machine slows all alike. CPU is user
and system time of the client's process over one transfer.

What is measured of Rekindle is what a save and a load do: CRC64NVME of every 8 MiB chunk and the
upload from the caller's memory; ranged reads into memory that exists already, every chunk verified
against its CRC. The others run with their defaults, through the call that their documentation
recommends for large objects:

- boto3: `upload_file` and `download_file` (files on tmpfs; default CRC32 of the upload);
- s3torchconnector: the writer and reader of its `S3Client` (default CRC32C of the upload);
- obstore: `put` in parts and `get_ranges`. It hashes bodies into its signatures; told not to, it
  protects an upload by nothing at all, and then needs less CPU for it than a copy and a CRC.

    python tests/bench/s3_throughput.py [--mib 256] [--rounds 7]

The last line is JSON: `rekindle` and `peers.{name}`, each with `up_cpu_s_per_gb`, `up_mb_s`,
`down_cpu_s_per_gb`, `down_mb_s`, and whether Rekindle is ahead in each.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from s3_sink import content

CHUNK = 8 * 2**20
BUCKET = "bench"
CLIENTS = ("rekindle", "boto3", "s3torchconnector", "obstore")
FIELDS = ("up_cpu_s_per_gb", "up_mb_s", "down_cpu_s_per_gb", "down_mb_s")

Transfer = Callable[[], object]


def rekindle(endpoint: str, size: int) -> tuple[Transfer, Transfer]:
    """A save's and a load's way to the store."""
    from rekindle.checkpoint.format.checksum import DEFAULT, crc
    from rekindle.checkpoint.objects.s3 import S3Objects

    objects = S3Objects(BUCKET, endpoint_url=endpoint)
    checksum = crc(DEFAULT)
    body = memoryview(bytearray(content(size)))
    target = memoryview(bytearray(content(size)))
    expected = [checksum(body[at : at + CHUNK]) for at in range(0, size, CHUNK)]
    reads = ThreadPoolExecutor(READS)
    stretch = 2 * CHUNK

    def up() -> object:
        crcs = [checksum(body[at : at + CHUNK]) for at in range(0, size, CHUNK)]
        assert crcs == expected
        return objects.put("data/up", body)

    def read(start: int) -> None:
        view = target[start : start + stretch]
        count = objects.get_into("data/down", view, start)
        if count != len(view):
            raise RuntimeError("short read")
        for at in range(start, start + count, CHUNK):
            if checksum(target[at : at + CHUNK]) != expected[at // CHUNK]:
                raise RuntimeError("wrong bytes")

    def down() -> object:
        return list(reads.map(read, range(0, size, stretch)))

    return up, down


READS = 4
"""Ranged reads at once, as a load does."""


def boto3(endpoint: str, size: int) -> tuple[Transfer, Transfer]:
    """The transfer manager of boto3."""
    import boto3 as sdk
    from botocore.config import Config

    client = sdk.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, max_pool_connections=16),
    )
    folder = tempfile.mkdtemp(dir="/dev/shm")
    source, target = f"{folder}/up", f"{folder}/down"
    Path(source).write_bytes(content(size))

    def up() -> object:
        return client.upload_file(source, BUCKET, "up")

    def down() -> object:
        return client.download_file(BUCKET, "down", target)

    return up, down


def s3torchconnector(endpoint: str, size: int) -> tuple[Transfer, Transfer]:
    """The client below the checkpoint classes of s3torchconnector."""
    from s3torchconnector._s3client import S3Client
    from s3torchconnector._s3client.s3client_config import S3ClientConfig

    client = S3Client(
        region="us-east-1",
        endpoint=endpoint,
        s3client_config=S3ClientConfig(force_path_style=True),
    )
    body = content(size)

    def up() -> object:
        writer = client.put_object(BUCKET, "up")
        writer.write(body)
        return writer.close()

    def down() -> object:
        found = client.get_object(BUCKET, "down").read()
        assert len(found) == size
        return found

    return up, down


def obstore(endpoint: str, size: int) -> tuple[Transfer, Transfer]:
    """The Rust client `object_store` from Python."""
    import obstore as sdk
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=endpoint,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    body = content(size)
    stretch = 2 * CHUNK
    starts = list(range(0, size, stretch))

    def up() -> object:
        return sdk.put(store, "up", body, use_multipart=True, chunk_size=32 * 2**20)

    def down() -> object:
        found = sdk.get_ranges(
            store,
            "down",
            starts=starts,
            lengths=[min(stretch, size - start) for start in starts],
            coalesce=0,
        )
        assert sum(len(part) for part in found) == size
        return found

    return up, down


def client(name: str, endpoint: str, size: int) -> None:
    """Transfer once per line of stdin, and say what it took."""
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "AKIDBENCHBENCHBENCH",
        "AWS_SECRET_ACCESS_KEY": "secretsecretsecret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REGION": "us-east-1",
    }
    ways = dict(zip(("up", "down"), globals()[name](endpoint, size), strict=True))
    for line in sys.stdin:
        before, begun = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        ways[line.strip()]()
        wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps([cpu, wall]), flush=True)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def measure(size: int, rounds: int, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Medians of every client, all against one sink."""
    here = Path(__file__)
    sink = start(str(here.parent / "s3_sink.py"), str(size))
    assert sink.stdout is not None
    endpoint = f"http://127.0.0.1:{sink.stdout.readline().strip()}"
    processes = {
        name: start(str(here), "--client", name, "--endpoint", endpoint, "--bytes", str(size))
        for name in names
    }
    seen: dict[tuple[str, str], list[tuple[float, float]]] = {}
    try:
        for number in range(rounds + 1):
            for way in ("up", "down"):
                for name, process in processes.items():
                    assert process.stdin is not None
                    assert process.stdout is not None
                    process.stdin.write(f"{way}\n")
                    process.stdin.flush()
                    answer = process.stdout.readline()
                    if not answer:
                        raise SystemExit(f"{name} failed on {way}, see above")
                    if number:  # the first round warms up
                        seen.setdefault((name, way), []).append(tuple(json.loads(answer)))
    finally:
        for process in (*processes.values(), sink):
            process.terminate()
            process.wait(10)
    gigabytes = size / 1e9
    return {
        name: {
            field: round(value, 3 if "cpu" in field else 0)
            for way in ("up", "down")
            for field, value in (
                (
                    f"{way}_cpu_s_per_gb",
                    statistics.median(c for c, _ in seen[name, way]) / gigabytes,
                ),
                (
                    f"{way}_mb_s",
                    1000 * gigabytes / statistics.median(w for _, w in seen[name, way]),
                ),
            )
        }
        for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=256, help="size of the object")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=list(CLIENTS), choices=CLIENTS)
    parser.add_argument("--client", choices=CLIENTS, help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        client(given.client, given.endpoint, given.bytes)
        return
    found = measure(given.mib * 2**20, given.rounds, tuple(given.only))
    for name, figures in found.items():
        print(f"{name:>18}  " + "  ".join(f"{key} {figures[key]:8.3f}" for key in FIELDS))
    ours = found.pop("rekindle", {})
    ahead = {
        f"{name}.{field}": (ours[field] < theirs[field]) == ("cpu" in field)
        for name, theirs in found.items()
        for field in FIELDS
        if ours
    }
    print(json.dumps({"rekindle": ours, "peers": found, "ahead": ahead}))


if __name__ == "__main__":
    main()

"""Samples per CPU-second of the loader beside stock webdataset, over the same latents; and its reads from
object storage.

    python -m benchmarks.loader [samples=2048] [passes=2] [rounds=3] [stored=2048]

Latents as of the big models: mean and deviation, float16 8 x 256 x 16 each, and an embedding of 512. Both
sides shuffle and give batches of 48 stacked arrays; ours checks every member's checksum and keeps its place
besides. `far`: the time to the first batch at position 10^9 over that at 0. `stored`: from moto on loopback,
beside a bare client of 8 threads that asks for the same ranges; then through a proxy with 20 ms latency and 5
% of answers 503, how long a training waits whose steps take what UNet-S's take on GPUs.
"""

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import botocore.session
import numpy as np
import pyarrow as pa
import webdataset
from botocore.config import Config

from benchmarks.machine import machine
from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from tests.fakes.servers import FaultyProxy, environment, moto, new_bucket
from training.data.catalogue import Catalogue
from training.data.loader import Batch, Loader
from training.data.mixture import Mixture
from training.data.npy import read_npy, to_npy
from training.data.order import Order
from training.pipeline.mel import MelConfig
from training.precompute import moments_of

MEMBERS = ("latent.npy", "image.npy")
LATENT_SHAPE, IMAGE_DIM = (2, 8, 256, 16), 512
BATCH, LANES, BLOCK_SIZE, WINDOW_SIZE = (
    48,
    8,
    64,
    128,
)  # fewer lanes than usual, because there are fewer samples
PER_TAR = 256
STEPS_PER_S = (2.0, 8.0)  # of 48 samples: one and four A100 at 40 % of their peak, 310 GFLOP a sample
FAR = 10**9


def make(uri: str, samples: int) -> Dataset:
    """Random latents in tars of 256, by the real commit protocol."""
    rng = np.random.default_rng(0)
    dataset = Dataset.create_or_open(uri, "latents", {"mel": asdict(MelConfig())}, [])
    dataset.worklist.append(((f"item{n}", {}) for n in range(samples // PER_TAR)), 1)
    columns = pa.schema([("split", pa.string())])
    for task in dataset.worklist.units():
        latents = rng.standard_normal((PER_TAR, *LATENT_SHAPE), np.float32).astype(np.float16)
        images = rng.standard_normal((PER_TAR, IMAGE_DIM), np.float32).astype(np.float16)
        members = [
            {"latent.npy": to_npy(latent), "image.npy": to_npy(image)}
            for latent, image in zip(latents, images, strict=True)
        ]
        item = task.items[0].item_id
        rows = [
            Row(item, f"{task.unit}_{n:04d}", columns={"split": "train"}, members=parts)
            for n, parts in enumerate(members)
        ]
        with tempfile.TemporaryDirectory() as folder:
            dataset.commit(task.unit, 0, write_shard(Path(folder), rows, columns), moments_of(rows))
    return dataset


def stacked(batch: Batch) -> tuple[np.ndarray, ...]:
    return tuple(np.stack([read_npy(sample[name]) for sample in batch.samples if sample]) for name in MEMBERS)


def ours(catalogue: Catalogue, passes: int) -> float:
    """Samples per CPU-second, of all threads together."""
    order = Order(len(catalogue), LANES, 0, BLOCK_SIZE, WINDOW_SIZE)
    count, started = 0, time.process_time()
    with Loader(Mixture.of([catalogue], order), BATCH, 0, 1) as loader:
        for batch in loader:
            count += len(stacked(batch)[0])
            if count >= passes * len(catalogue):
                break
    return count / (time.process_time() - started)


def stock(tars: list[str], passes: int) -> float:
    """The same of webdataset as its documentation reads: shuffled shards, a shuffle buffer of 1000, decode,
    batched.
    """
    count, started = 0, time.process_time()
    for _ in range(passes):
        dataset = (
            webdataset.WebDataset(tars, shardshuffle=100, seed=0)
            .shuffle(1000)
            .decode()
            .to_tuple(*MEMBERS)
            .batched(BATCH)
        )
        for batch in dataset:
            count += len(batch[0])
    return count / (time.process_time() - started)


def first_batch_s(catalogue: Catalogue, position: int) -> float:
    started = time.perf_counter()
    order = Order(len(catalogue), LANES, 0, BLOCK_SIZE, WINDOW_SIZE)
    with Loader(Mixture.of([catalogue], order), BATCH, 0, 1, position=position // BATCH * BATCH) as loader:
        stacked(next(iter(loader)))
        return time.perf_counter() - started


@contextmanager
def counted(catalogue: Catalogue) -> Iterator[list[tuple[str, int, int]]]:
    """The ranges that were read."""
    asked: list[tuple[str, int, int]] = []
    read_range = catalogue.store.read_range

    def count(name: str, start: int, end: int) -> bytes:
        data = read_range(name, start, end)
        asked.append((name, start, end))
        return data

    with patch.object(catalogue.store, "read_range", count):
        yield asked


def bare(uri: str, ranges: list[tuple[str, int, int]]) -> float:
    """Seconds of botocore in 8 threads for the ranges."""
    bucket, prefix = uri.removeprefix("s3://").split("/", 1)
    client = botocore.session.get_session().create_client("s3", config=Config(max_pool_connections=8))

    def get(name: str, start: int, end: int) -> int:
        answer = client.get_object(Bucket=bucket, Key=f"{prefix}/{name}", Range=f"bytes={start}-{end - 1}")
        return len(answer["Body"].read())

    started = time.perf_counter()
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(get, *zip(*ranges, strict=True))) == sum(
            end - start for _, start, end in ranges
        )
    return time.perf_counter() - started


def from_store(catalogue: Catalogue) -> dict[str, float]:
    """An epoch as fast as it goes, beside the bare client."""
    order = Order(len(catalogue), LANES, 0, BLOCK_SIZE, WINDOW_SIZE)
    used, size = 0, float(catalogue.sizes[0].sum())
    with counted(catalogue) as asked:
        started = time.perf_counter()
        with Loader(Mixture.of([catalogue], order), BATCH, 0, 1) as loader:
            while used < len(catalogue):
                used += sum(sample is not None for sample in loader.batch(used // BATCH).samples)
            seconds, ranges = (
                time.perf_counter() - started,
                list(asked),
            )  # those that are on their way count for nobody
    read = sum(end - start for _, start, end in ranges)
    bare_rate = read / bare(catalogue.store.uri, ranges)
    return {
        "mb_per_s": read / seconds / 1e6,
        "over_bare_client": read / seconds / bare_rate,
        "samples_per_request": read / size / len(ranges),
    }


def wait_share(catalogue: Catalogue, steps_per_s: float, steps: int) -> float:
    """Of the time of all steps but the first, which share the training waited; a step is a sleep."""
    order, waits = Order(len(catalogue), LANES, 0, BLOCK_SIZE, WINDOW_SIZE), []
    with Loader(Mixture.of([catalogue], order), BATCH, 0, 1) as loader:
        for _, batch in zip(range(steps), loader, strict=False):
            waits.append(batch.wait_s)
            time.sleep(1 / steps_per_s)
    return sum(waits[1:]) * steps_per_s / len(waits[1:])


def stored(samples: int) -> dict[str, object]:
    """What reads from object storage cost."""
    dice = random.Random(0)
    with (
        moto() as url,
        FaultyProxy(url, lambda *_: "503" if dice.random() < 0.05 else "", 0.02) as proxy,
        patch.dict(os.environ, environment(url)),
    ):
        dataset = make(f"{new_bucket()}/latents", samples)
        catalogue = Catalogue.of(dataset, dataset.snapshot(), "train", MEMBERS)
        rates = [from_store(catalogue) for _ in range(3)]
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        far = replace(catalogue, store=Dataset.open(dataset.uri).store)
        waits = {
            f"{rate * BATCH:g} samples/s": round(wait_share(far, rate, round(20 * rate)), 5)
            for rate in STEPS_PER_S
        }
    middle = {name: round(statistics.median(rate[name] for rate in rates), 2) for name in rates[0]}
    return {
        **middle,
        "wait_share_at_20_ms_and_5_percent_503": waits,
        "requests_through_the_proxy": len(proxy.requests),
    }


def measure(samples: int, passes: int, rounds: int, num_stored: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        dataset = make(f"{name}/latents", samples)
        catalogue = Catalogue.of(dataset, dataset.snapshot(), "train", MEMBERS)
        tars = [f"{name}/latents/{tar}" for tar in catalogue.tars]
        pairs = [(ours(catalogue, passes), stock(tars, passes)) for _ in range(rounds)]
        far, near = (
            statistics.median(first_batch_s(catalogue, position) for _ in range(5)) for position in (FAR, 0)
        )
        reads = stored(num_stored)
    return {
        "benchmark": "loader",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine("webdataset"),
        "samples": samples,
        "ours_samples_per_cpu_s": round(statistics.median(pair[0] for pair in pairs)),
        "webdataset_samples_per_cpu_s": round(statistics.median(pair[1] for pair in pairs)),
        "over_webdataset": [round(pair[0] / pair[1], 1) for pair in pairs],
        "far_over_near": round(far / near, 2),
        "stored": reads,
    }


if __name__ == "__main__":
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    numbers = (
        int(words.get(name, default))
        for name, default in (("samples", 2048), ("passes", 2), ("rounds", 3), ("stored", 2048))
    )
    print(json.dumps(measure(*numbers), indent=1))

"""How many samples the loader gives per CPU-second, beside stock webdataset, and what it reads from S3.

    python -m benchmarks.loader [samples=2048] [passes=2] [rounds=3] [stored=2048]

Measured, on latents as those of the big models: mean and deviation, float16 of 8 x 256 x 16 each, and an
embedding of 512:

- `ours_samples_per_cpu_s` and `webdataset_samples_per_cpu_s`, the baseline: both shuffle and give batches of
  48 stacked arrays. Ours also checks every member's checksum and can resume at any position. They take turns,
  `rounds` times, and `over_webdataset` has the ratio of each round.
- `far_over_near`: the time to the first batch at position 10^9 over that at 0, medians of five.
- `stored`: an epoch read from moto on loopback. The baseline is a bare client of 8 threads that reads the
  same ranges. Then, through a proxy with 20 ms latency and 5 % of responses 503, the share of time that a
  training waits whose steps are as long as UNet-S's on GPUs.
"""

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import botocore.session
import numpy as np
import pyarrow as pa
import webdataset
from botocore.config import Config

from benchmarks.command_line import parse_options
from benchmarks.machine import machine
from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from cluster.worklist import UnitTask
from tests.fakes.servers import FaultyProxy, environment, moto, new_bucket
from training.data.catalogue import Catalogue
from training.data.loader import Batch, Loader
from training.data.mixture import Mixture
from training.data.npy import read_npy, to_npy
from training.data.order import Order
from training.moments import moments_of
from training.pipeline.mel import MelConfig

MEMBERS = ("latent.npy", "image.npy")
LATENT_SHAPE = (2, 8, 256, 16)  # mean and deviation
IMAGE_DIM = 512
SAMPLES_PER_TAR = 256

BATCH = 48
LANES = 8  # fewer than usual, because there are fewer samples
BLOCK_SIZE = 64
WINDOW_SIZE = 128

FAR_POSITION = 10**9
CLIENT_THREADS = 8
STORE_ROUNDS = 3
STEPS_PER_S = (2.0, 8.0)  # of 48 samples: one and four A100 at 40 % of their peak, 310 GFLOP a sample


# --- Latents ------------------------------------------------------------------------------------------------


def make_random_latents(uri: str, samples: int) -> Dataset:
    """Random latents in tars of 256, by the real commit protocol."""
    rng = np.random.default_rng(0)
    dataset = Dataset.create_or_open(uri, "latents", {"mel": asdict(MelConfig())}, [])
    dataset.worklist.append(((f"item{n}", {}) for n in range(samples // SAMPLES_PER_TAR)), 1)
    columns = pa.schema([("split", pa.string())])
    for task in dataset.worklist.units():
        rows = random_rows(task, rng)
        with tempfile.TemporaryDirectory() as folder:
            dataset.commit(task.unit, 0, write_shard(Path(folder), rows, columns), moments_of(rows))
    return dataset


def random_rows(task: UnitTask, rng: np.random.Generator) -> list[Row]:
    latents = rng.standard_normal((SAMPLES_PER_TAR, *LATENT_SHAPE), np.float32).astype(np.float16)
    images = rng.standard_normal((SAMPLES_PER_TAR, IMAGE_DIM), np.float32).astype(np.float16)
    item_id = task.items[0].item_id
    rows = []
    for n in range(SAMPLES_PER_TAR):
        members = {"latent.npy": to_npy(latents[n]), "image.npy": to_npy(images[n])}
        rows.append(Row(item_id, f"{task.unit}_{n:04d}", columns={"split": "train"}, members=members))
    return rows


# --- Samples per CPU-second: both sides ---------------------------------------------------------------------


def open_loader(catalogue: Catalogue, position: int = 0) -> Loader:
    """Of the only rank of a training at this position."""
    order = Order(len(catalogue), LANES, 0, BLOCK_SIZE, WINDOW_SIZE)
    return Loader(Mixture.of([catalogue], order), BATCH, 0, 1, position=position)


def stack(batch: Batch) -> tuple[np.ndarray, ...]:
    samples = [sample for sample in batch.samples if sample]
    return tuple(np.stack([read_npy(sample[name]) for sample in samples]) for name in MEMBERS)


def our_samples_per_cpu_s(catalogue: Catalogue, passes: int) -> float:
    """Of all threads together."""
    count = 0
    started_s = time.process_time()
    with open_loader(catalogue) as loader:
        for batch in loader:
            latents, _ = stack(batch)
            count += len(latents)
            if count >= passes * len(catalogue):
                break
    return count / (time.process_time() - started_s)


def webdataset_samples_per_cpu_s(tars: list[str], passes: int) -> float:
    """As its documentation reads: shuffled shards, a shuffle buffer of 1000, decode, batched."""
    count = 0
    started_s = time.process_time()
    for _ in range(passes):
        dataset = webdataset.WebDataset(tars, shardshuffle=100, seed=0)
        dataset = dataset.shuffle(1000).decode().to_tuple(*MEMBERS).batched(BATCH)
        for latents, _ in dataset:
            count += len(latents)
    return count / (time.process_time() - started_s)


def first_batch_s(catalogue: Catalogue, position: int) -> float:
    started_s = time.perf_counter()
    with open_loader(catalogue, position // BATCH * BATCH) as loader:
        stack(next(iter(loader)))
        return time.perf_counter() - started_s


# --- Reads from object storage ------------------------------------------------------------------------------


class Range(NamedTuple):
    name: str
    start: int
    end: int


@contextmanager
def recorded_ranges(catalogue: Catalogue) -> Iterator[list[Range]]:
    """The ranges that are read from the store within the block, in the order in which they arrive."""
    ranges: list[Range] = []
    read_range = catalogue.store.read_range

    def read_and_record(name: str, start: int, end: int) -> bytes:
        data = read_range(name, start, end)
        ranges.append(Range(name, start, end))
        return data

    with patch.object(catalogue.store, "read_range", read_and_record):
        yield ranges


def bare_client_s(uri: str, ranges: list[Range]) -> float:
    """Seconds of botocore in 8 threads for the ranges."""
    bucket, prefix = uri.removeprefix("s3://").split("/", 1)
    config = Config(max_pool_connections=CLIENT_THREADS)
    client = botocore.session.get_session().create_client("s3", config=config)

    def read(part: Range) -> int:
        byte_range = f"bytes={part.start}-{part.end - 1}"
        response = client.get_object(Bucket=bucket, Key=f"{prefix}/{part.name}", Range=byte_range)
        return len(response["Body"].read())

    started_s = time.perf_counter()
    with ThreadPoolExecutor(CLIENT_THREADS) as threads:
        num_bytes = sum(threads.map(read, ranges))
    seconds = time.perf_counter() - started_s
    assert num_bytes == total_bytes(ranges)
    return seconds


def total_bytes(ranges: list[Range]) -> int:
    return sum(part.end - part.start for part in ranges)


def epoch_from_store(catalogue: Catalogue) -> dict[str, float]:
    """An epoch as fast as it goes, beside the bare client."""
    num_samples = 0
    with recorded_ranges(catalogue) as recorded:
        started_s = time.perf_counter()
        with open_loader(catalogue) as loader:
            while num_samples < len(catalogue):
                batch = loader.batch(num_samples // BATCH)
                num_samples += sum(sample is not None for sample in batch.samples)
            seconds = time.perf_counter() - started_s
            # copied before the loader closes: reads still in flight belong to the next epoch
            ranges = list(recorded)
    num_bytes = total_bytes(ranges)
    bytes_per_s = num_bytes / seconds
    bare_bytes_per_s = num_bytes / bare_client_s(catalogue.store.uri, ranges)
    bytes_per_sample = float(catalogue.sizes[0].sum())
    return {
        "mb_per_s": bytes_per_s / 1e6,
        "over_bare_client": bytes_per_s / bare_bytes_per_s,
        "samples_per_request": num_bytes / bytes_per_sample / len(ranges),
    }


def wait_share(catalogue: Catalogue, steps_per_s: float, steps: int) -> float:
    """The share of time that a training waits for data; its steps are sleeps. The first is left out: it
    fills the windows.
    """
    waits_s = []
    with open_loader(catalogue) as loader:
        for _, batch in zip(range(steps), loader, strict=False):
            waits_s.append(batch.wait_s)
            time.sleep(1 / steps_per_s)
    return sum(waits_s[1:]) * steps_per_s / len(waits_s[1:])


def measure_store(samples: int) -> dict[str, object]:
    rng = random.Random(0)

    def one_in_twenty(number: int, request: str) -> str:
        return "503" if rng.random() < 0.05 else ""

    with (
        moto() as url,
        FaultyProxy(url, one_in_twenty, latency_s=0.02) as proxy,
        patch.dict(os.environ, environment(url)),
    ):
        dataset = make_random_latents(f"{new_bucket()}/latents", samples)
        catalogue = Catalogue.of(dataset, dataset.snapshot(), "train", MEMBERS)
        epochs = [epoch_from_store(catalogue) for _ in range(STORE_ROUNDS)]
        # a store takes its endpoint when it is opened: this one goes through the proxy
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        remote = replace(catalogue, store=Dataset.open(dataset.uri).store)
        wait_shares = {}
        for rate in STEPS_PER_S:
            share = wait_share(remote, rate, round(20 * rate))
            wait_shares[f"{rate * BATCH:g} samples/s"] = round(share, 5)
    medians = {name: round(statistics.median(epoch[name] for epoch in epochs), 2) for name in epochs[0]}
    return {
        **medians,
        "wait_share_at_20_ms_and_5_percent_503": wait_shares,
        "requests_through_the_proxy": len(proxy.requests),
    }


# --- Result -------------------------------------------------------------------------------------------------


def measure(samples: int, passes: int, rounds: int, stored_samples: int) -> dict[str, object]:
    ours = []
    stock = []
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        dataset = make_random_latents(f"{name}/latents", samples)
        catalogue = Catalogue.of(dataset, dataset.snapshot(), "train", MEMBERS)
        tars = [f"{name}/latents/{tar}" for tar in catalogue.tars]
        for _ in range(rounds):
            ours.append(our_samples_per_cpu_s(catalogue, passes))
            stock.append(webdataset_samples_per_cpu_s(tars, passes))
        far_s = statistics.median(first_batch_s(catalogue, FAR_POSITION) for _ in range(5))
        near_s = statistics.median(first_batch_s(catalogue, 0) for _ in range(5))
        stored = measure_store(stored_samples)
    return {
        "benchmark": "loader",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine("webdataset"),
        "samples": samples,
        "ours_samples_per_cpu_s": round(statistics.median(ours)),
        "webdataset_samples_per_cpu_s": round(statistics.median(stock)),
        "over_webdataset": [round(our / their, 1) for our, their in zip(ours, stock, strict=True)],
        "far_over_near": round(far_s / near_s, 2),
        "stored": stored,
    }


def main() -> None:
    options = parse_options()
    samples = int(options.get("samples", 2048))
    passes = int(options.get("passes", 2))
    rounds = int(options.get("rounds", 3))
    stored_samples = int(options.get("stored", 2048))
    print(json.dumps(measure(samples, passes, rounds, stored_samples), indent=1))


if __name__ == "__main__":
    main()

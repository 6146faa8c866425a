"""What every test shares: a quiet environment, and one small local Ray for the tests that need real actors."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.servers import environment, new_bucket, s3_server

os.environ.update(
    {
        "DS_ACCELERATOR": "cpu",  # DeepSpeed compiles nothing at start-up
        "OMP_NUM_THREADS": "1",  # contended OpenMP threads are ten times slower
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "HF_HUB_OFFLINE": "1",
        "WDS_SECURE": "1",  # webdataset neither unpickles nor starts a shell
        "PYTHONWARNINGS": "ignore::FutureWarning:torch.distributed.c10d_logger",
    }
)
os.environ.setdefault(
    "RAY_AUTH_MODE", "disabled"
)  # explicit: a local Ray would write a token to the home folder; make test sets a token
os.environ.pop("RAY_ADDRESS", None)
SLOW = pytest.mark.skipif(
    os.environ.get("STILLSOUND_SLOW") != "1", reason="takes half a minute or more: make chaos"
)
ROOT = Path(__file__).parent.parent
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray of two CPUs for this session; ends with it.

    Its workers see the checkout through PYTHONPATH.
    """
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """An S3 server for this session; ends with it."""
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def bucket(s3_url: str) -> Iterator[str]:
    """The URI of an empty bucket; the environment points at its server."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(s3_url).items():
            patch.setenv(name, value)
        yield new_bucket()

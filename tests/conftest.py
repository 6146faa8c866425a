"""What every test shares: a quiet environment, a small local Ray for those that need real actors, markers.

The markers `ray`, `s3`, `server` and `training` are not written into the tests: they follow from what a test
uses, its fixtures and what its module imports, so that none is forgotten. `make quick` runs what has none.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from tests.fakes.servers import environment, new_bucket, s3_server

if TYPE_CHECKING:
    from tests.fakes.chain import Chain

os.environ.update(
    {
        "DS_ACCELERATOR": "cpu",  # DeepSpeed compiles nothing at start-up
        "OMP_NUM_THREADS": "1",  # contended OpenMP threads are ten times slower
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "HF_HUB_OFFLINE": "1",
        "WDS_SECURE": "1",  # webdataset neither unpickles nor starts a shell
        # a killed process leaves semaphores, which are cleaned up
        "PYTHONWARNINGS": "ignore::FutureWarning:torch.distributed.c10d_logger,"
        "ignore::UserWarning:multiprocessing.resource_tracker",
    }
)
# without a mode a local Ray would write a token to the home folder; `make test` names a token
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.pop("RAY_ADDRESS", None)  # no test joins a cluster that happens to run
ROOT = Path(__file__).parent.parent
# the workers that Ray starts import the checkout too
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))

# fixture -> the marker of the tests that use it
FIXTURES = {"ray_local": "ray", "s3_url": "s3", "bucket": "s3", "chain": "training"}
# module -> the marker of all tests in a module that imports it
MODULES = {
    "tests.fakes.servers": "server",
    "tests.fakes.tube": "server",
    "ingest.serve": "server",
    "ingest.fetch.fetcher": "server",
    "training.train": "training",
    "training.precompute": "training",
    "training.run.engine": "training",
    "training.run.loop": "training",
    "tests.fakes.latents": "training",
    "tests.fakes.runs": "training",
    "tests.fakes.ranks": "training",
    "subprocess": "server",
    "nbclient": "training",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        assert isinstance(item, pytest.Function)
        for fixture in item.fixturenames:
            if fixture in FIXTURES:
                item.add_marker(FIXTURES[fixture])
        for module in modules_used(item.module):
            if module in MODULES:
                item.add_marker(MODULES[module])


@functools.cache
def modules_used(module: ModuleType) -> frozenset[str]:
    """Names of the modules that `module` imports, or has imported a name from."""
    values = list(vars(module).values())
    imported = {value.__name__ for value in values if isinstance(value, ModuleType)}
    return frozenset(imported | {str(getattr(value, "__module__", "")) for value in values})


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray of two CPUs for this session; ends with it."""
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


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> "Chain":
    """The models of the whole chain, made once: a test that changes one copies it first."""
    from tests.fakes.chain import make_chain  # here: it imports torch, which most tests do without

    return make_chain(tmp_path_factory.mktemp("chain"))

"""Take-downs while a run trains: new tombstones become holes within seconds, at their indexes.

    with watch_tombstones([(dataset, [catalogue])]) as look:      # a thread looks again and again
        look()                                                          # and the loop, with every checkpoint

The order of all other samples stays. Samples that were fetched ahead are dropped too, when they are handed
out (training.data.loader).
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from cluster.dataset import Dataset
from cluster.objects import list_own
from training.data.catalogue import Catalogue

log = logging.getLogger(__name__)
# one listing of a local folder is cheap
POLL_S = 1.0
# every listing of a bucket is paid for, by each rank
POLL_REMOTE_S = 20.0
Watched = list[tuple[Dataset, list[Catalogue]]]


@contextlib.contextmanager
def watch_tombstones(watched: Watched) -> Iterator[Callable[[], None]]:
    """For the block, hides buried samples from the catalogues of each dataset.

    A dataset that cannot be read now is read at the next look.
    """
    seen = [set[str]() for _ in watched]
    ended = threading.Event()
    lock = threading.Lock()  # the loop and the thread may look at the same time
    remote = any("://" in dataset.uri for dataset, _ in watched)

    def look() -> None:
        with lock:
            for (dataset, catalogues), names in zip(watched, seen, strict=True):
                try:
                    _hide_new(dataset, catalogues, names)
                except OSError as error:
                    log.warning("%s: its tombstones cannot be read now: %s", dataset.uri, error)

    def poll() -> None:
        while not ended.wait(POLL_REMOTE_S if remote else POLL_S):
            look()

    thread = threading.Thread(target=poll, name="tombstones", daemon=True)
    thread.start()
    try:
        yield look
    finally:
        ended.set()
        thread.join()


def _hide_new(dataset: Dataset, catalogues: list[Catalogue], seen: set[str]) -> None:
    names = set(list_own(dataset.store, "tombstones"))
    if names <= seen:
        return
    buried = dataset.tombstones()
    for catalogue in catalogues:
        catalogue.hide(buried)
    seen |= names

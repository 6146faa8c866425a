"""Being asked to stop: SIGTERM to a worker (its machine will be taken away) or to the command (the user wants
it back).

    listen()                                       # in a process's main thread
    ASKED.is_set()                                 # SIGTERM came
    with watch_store(store, "STOP-1a2b"): ...      # the same for an object that the driver wrote

A worker looks at `ASKED` at every step, saves and ends. Knows nothing of training.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from cluster.storage import Store

ASKED = threading.Event()
POLL_S = 1.0
POLL_REMOTE_S = 10.0


def listen() -> None:
    """From now on SIGTERM sets `ASKED` instead of ending the process. To be called in the main thread.

    A pipe, for the main thread of a Ray worker waits outside Python, where no handler of ours would ever run.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGTERM, lambda *_: ASKED.set())
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def wait() -> None:
        while signal.SIGTERM not in os.read(reader, 64):
            pass
        ASKED.set()

    threading.Thread(target=wait, name="sigterm", daemon=True).start()


@contextlib.contextmanager
def watch_store(store: Store, name: str) -> Iterator[None]:
    """For the block, sets `ASKED` as soon as an object of that name is there."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(POLL_REMOTE_S if "://" in store.uri else POLL_S):
            if store.exists(name):
                ASKED.set()
                return

    thread = threading.Thread(target=look, name="stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

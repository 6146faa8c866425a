"""Preemption: SIGTERM means save, then stop. It comes to a worker whose machine is taken away, or to the
command, if the user wants the machine back.

    listen()                                       # in a process's main thread
    STOP_REQUESTED.is_set()                        # SIGTERM came
    with watch_store(store, "STOP-1a2b"): ...      # the same for an object that the driver wrote

A worker looks at `STOP_REQUESTED` at every step, saves and ends. Knows nothing of training.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from cluster.storage import Store

STOP_REQUESTED = threading.Event()
# a request to object storage costs money, and a stop may take some seconds
POLL_S = 1.0
POLL_REMOTE_S = 10.0


def listen() -> None:
    """From now on SIGTERM sets `STOP_REQUESTED` and does not end the process. For the main thread.

    A thread reads the signal from a pipe: the main thread of a Ray worker waits outside Python, where no
    Python handler would ever run.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGTERM, lambda *_: STOP_REQUESTED.set())
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def wait() -> None:
        while signal.SIGTERM not in os.read(reader, 64):
            pass
        STOP_REQUESTED.set()

    threading.Thread(target=wait, name="sigterm", daemon=True).start()


@contextlib.contextmanager
def watch_store(store: Store, name: str) -> Iterator[None]:
    """For the block, sets `STOP_REQUESTED` as soon as an object of that name exists."""
    ended = threading.Event()
    pause_s = POLL_REMOTE_S if "://" in store.uri else POLL_S

    def poll() -> None:
        while not ended.wait(pause_s):
            if store.exists(name):
                STOP_REQUESTED.set()
                return

    thread = threading.Thread(target=poll, name="stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

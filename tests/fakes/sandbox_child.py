"""A child for `ingest.child` that misbehaves in the way that each request names.

Started by tests/ingest/test_child.py, never by hand.
"""

import os
import signal
import socket
import sys
import time
from typing import IO, Any

from ingest.child import confine, reply, requests, take_stdout


def misbehave(request: dict[str, Any], replies: IO[bytes]) -> None:
    match request["do"]:
        case "spin":
            while True:
                pass
        case "drip":
            while True:
                replies.write(b" ")
                replies.flush()
                time.sleep(0.05)
        case "write":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if request["die"] else signal.SIG_IGN)
            with open(request["path"], "wb") as file:
                for _ in range(64):
                    file.write(bytes(1 << 16))
                    file.flush()
        case "allocate":
            bytearray(request["bytes"])
        case "open":
            for _ in range(request["files"]):
                os.open("/dev/null", os.O_RDONLY)
        case "connect":
            socket.create_connection(("127.0.0.1", request["port"]), 1).close()


def main() -> None:
    replies = take_stdout()
    incoming = requests()
    settings = next(incoming)
    confine(settings["max_memory_bytes"])
    reply(replies, {"ready": True})
    for request in incoming:
        try:
            misbehave(request, replies)
            reply(replies, {"did": request["do"]})
        except (OSError, MemoryError) as error:
            reply(replies, {"error": type(error).__name__, "number": getattr(error, "errno", None)})


if __name__ == "__main__":
    sys.exit(main())

"""S3 servers on loopback for tests and benchmarks, and a proxy before one that injects faults.

    with s3_server() as url, FaultyProxy(url) as proxy:   # moto, or the server that STILLSOUND_TEST_S3 names
        proxy.fault = lambda number, request: "503" if number == 7 else ""

All end with the block. Set the environment of `environment(url)` for the clients.
"""

import http.client
import os
import re
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import pytest

ROOT = Path(__file__).parents[2]
MOTO = ROOT / ".venv-moto/bin/python"
RADOSGW = ROOT / "tests/fakes/radosgw.sh"
FAULTS = ("503", "500", "409", "reset", "lost", "slow")
SLOW_S = 0.3
START_ATTEMPTS = 3
# radosgw.sh: its stderr says what to install
NOT_INSTALLED = 2
HOP_HEADERS = ("connection", "keep-alive", "transfer-encoding", "expect", "content-length")


def environment(url: str) -> dict[str, str]:
    """What a client of the server needs; keys that the caller has set win."""
    defaults = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "testtest",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    variables = {name: os.environ.get(name, value) for name, value in defaults.items()}
    return {**variables, "AWS_ENDPOINT_URL": url}


def has_s3_server() -> bool:
    return bool(os.environ.get("STILLSOUND_TEST_S3")) or MOTO.exists()


def new_bucket() -> str:
    """The URI of an empty bucket of the server that the environment names."""
    name = f"stillsound-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3", skip_instance_cache=True).call_s3("create_bucket", Bucket=name)
    return f"s3://{name}"


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of the server named by STILLSOUND_TEST_S3: a URL, `radosgw` to start one from Debian's
    packages, or unset for moto.
    """
    choice = os.environ.get("STILLSOUND_TEST_S3", "")
    if choice and choice != "radosgw":
        yield choice
        return
    with radosgw() if choice else moto() as url:
        yield url


@contextmanager
def moto() -> Iterator[str]:
    command = [str(MOTO), "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr
            match = None
            while match is None:
                line = server.stderr.readline()
                assert line, "the server did not start"
                match = re.search(r"http://127\.0\.0\.1:\d+", line)
            threading.Thread(target=server.stderr.read, daemon=True).start()  # its log must not fill the pipe
            yield match[0]
        finally:
            server.kill()


@contextmanager
def radosgw() -> Iterator[str]:
    """A real S3 server: ceph's gateway over an in-memory store. It is killed by the pids that it wrote."""
    with tempfile.TemporaryDirectory(prefix="stillsound-radosgw-") as name:
        for attempt in range(START_ATTEMPTS):  # now and then its OSD does not come up
            folder = Path(name, str(attempt))
            folder.mkdir()
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            try:
                command = [str(RADOSGW), str(folder), str(port)]
                log = Path(name, f"{attempt}.log")
                # a file: the daemons would keep a pipe open
                with log.open("w") as stderr:
                    code = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=stderr).returncode
                if code == NOT_INSTALLED:
                    # once, not as the error of every test
                    pytest.exit(log.read_text().strip(), returncode=code)
                if code == 0:
                    yield f"http://127.0.0.1:{port}"
                    return
            finally:
                for daemon in ("rgw", "osd", "mon"):
                    with suppress(FileNotFoundError, ProcessLookupError):
                        os.kill(int((folder / f"{daemon}.pid").read_text()), signal.SIGKILL)
        raise RuntimeError(f"{RADOSGW} did not start a server in {START_ATTEMPTS} attempts")


Fault = Callable[[int, str], str]


def no_fault(number: int, request: str) -> str:
    return ""


class FaultyProxy:
    """Forwards requests to an S3 server; `fault(number, request)` decides what befalls the n-th, from 1.

    "500", "503"  an error response, and the server never sees the request; "409" the same of a put
    "lost"        the server did it, but the connection is reset before the response
    "reset"       the connection is reset in the middle of the response
    "slow"        a pause in the middle of the response
    "stall"       no response
    ""            no fault

    `requests` lists the requests, and `latency_s` delays every response.
    """

    def __init__(self, upstream: str, fault: Fault = no_fault, latency_s: float = 0.0):
        self.upstream = urlsplit(upstream).netloc
        self.fault = fault
        self.latency_s = latency_s
        self.requests: list[str] = []
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "FaultyProxy":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def start(self, fault: Fault = no_fault) -> None:
        """Counts from 1 again."""
        with self.lock:
            self.requests = []
            self.fault = fault

    def record(self, request: str) -> str:
        """Its fault."""
        with self.lock:
            self.requests.append(request)
            return self.fault(len(self.requests), request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultyProxy
    upstream: http.client.HTTPConnection | None = None

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def forward(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunked()
        fault = self.proxy.record(f"{self.command} {self.path}")
        if self.proxy.latency_s:
            time.sleep(self.proxy.latency_s)
        if fault == "stall":
            self.proxy.closing.wait(60)
            self._reset()
        elif fault in ("500", "503") or (fault == "409" and self.command == "PUT"):
            self._respond(int(fault), [("Content-Type", "application/xml")], _error(fault))
        else:
            response, data = self._ask_upstream(body)
            if fault == "lost":
                self._reset()
            else:
                self._respond(response.status, response.getheaders(), data, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

    def _ask_upstream(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_HEADERS}
        self.upstream = self.upstream or http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        has_body = body or self.command in ("PUT", "POST")
        self.upstream.request(self.command, self.path, body if has_body else None, headers)
        response = self.upstream.getresponse()
        return response, response.read()

    def _respond(self, status: int, headers: list[tuple[str, str]], data: bytes, fault: str = "") -> None:
        self.send_response_only(status)
        fields = {name.lower(): value for name, value in headers}
        # a HEAD has no body, but says how long it would be
        if self.command != "HEAD":
            fields["content-length"] = str(len(data))
        fields.setdefault("content-length", "0")
        for name, value in fields.items():
            if name not in ("connection", "keep-alive", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        half = len(data) // 2 if fault in ("reset", "slow") and self.command != "HEAD" else len(data)
        self.wfile.write(data[:half])
        if fault == "reset":
            self.wfile.flush()
            self._reset()
        elif self.command != "HEAD":
            time.sleep(SLOW_S if fault == "slow" else 0)
            self.wfile.write(data[half:])

    def _reset(self) -> None:
        # with a linger of 0 s a close sends RST instead of FIN
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _chunked(self) -> bytes:
        chunks = []
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        return b"".join(chunks)


def _error(status: str) -> bytes:
    code = {"503": "SlowDown", "500": "InternalError", "409": "ConditionalRequestConflict"}[status]
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()

"""Object storage: one small `Store` over a folder or any fsspec URI (`s3://…`), with create-only writes.

`open_store(uri)` gives a `Store`; names are relative to its root. `put`/`put_file` publish an object whole or
not at all and never overwrite: an existing object with the same bytes counts as written (a lost response, a
unit done twice), one with other bytes raises `FileExistsError`. Listings are always fresh. This module is the
only owner of storage retries; it knows nothing of datasets, and it never appends.
"""

import errno
import hashlib
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import fsspec
from tenacity import (
    RetryError,
    Retrying,
    before_sleep_log,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from configs.load import StoppedError, UserError

log = logging.getLogger(__name__)
T = TypeVar("T")
# s3fs cuts a put into parts past its chunk size, and only a single put is conditional on every server
SINGLE_PUT_BYTES = 1 << 30
# as `FolderStore` names what it has not published yet
UNFINISHED = r"\.[0-9a-f]{32}\.partial|\.probe-[0-9a-f]{32}(-link)?"
# a file from this size on goes up in parts: a request that fails then costs one part
LARGE_BYTES = 128 << 20
PART_BYTES = 64 << 20
# parts in memory at once: 256 MB for each upload
PARTS_AT_ONCE = 4
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
# 8 tries with waits up to this outlast a minute of 503s
MAX_TRIES = 8
MAX_WAIT_S = 20
# what network file systems answer while a server restarts
TRANSIENT_ERRNO = frozenset(
    {errno.EBUSY, errno.EIO, errno.EREMOTEIO, errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE}
)


class StorageDownError(OSError, StoppedError):
    """Object storage did not answer, after all retries: the run should stop with this message."""


class Store(Protocol):
    """What all rooms use. `uri`: the root as the user wrote it, without a trailing slash."""

    uri: str

    def read(self, name: str) -> bytes: ...
    def read_range(self, name: str, start: int, end: int) -> bytes: ...
    def get_file(self, name: str, path: Path) -> None: ...
    def put(self, name: str, data: bytes) -> None: ...
    def put_file(self, name: str, path: Path) -> None: ...
    def replace(self, name: str, data: bytes) -> None: ...
    def list(self, prefix: str = "") -> list[str]: ...
    def exists(self, name: str) -> bool: ...
    def size(self, name: str) -> int: ...
    def modified(self, name: str) -> float: ...
    def delete(self, name: str) -> None: ...
    def unfinished(self) -> dict[str, float]: ...
    def discard(self, name: str) -> None: ...


def open_store(uri: str, writable: bool = False) -> Store:
    """The store at `uri` (a folder, `file://…`, `s3://bucket/prefix`, any fsspec URI).

    Errors: `UserError` where the scheme is unknown, credentials are missing, or (`writable`) the place cannot
    be written.
    """
    if not uri:
        raise UserError("output is empty: give a folder or an s3:// URI")
    uri = uri.rstrip("/") or "/"
    if "://" not in uri or uri.startswith("file://"):
        return _open_folder(uri, writable)
    scheme = _check_keyless(uri)
    unanswered: tuple[type[Exception], ...] = (OSError, *_client_errors(scheme))
    try:
        store = RemoteStore(uri)
        # only a busy server is retried: where nobody listens at all, the user should know at once
        _retrying(store.list_first, _is_busy)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"{uri}: no storage for scheme {scheme!r} ({error}); use a folder or s3://bucket/prefix"
        ) from error
    except PermissionError as error:
        raise UserError(
            f"{uri}: access denied ({error}); check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except FileNotFoundError as error:
        raise UserError(f"{uri}: no such bucket; create it first") from error
    except unanswered as error:
        if "credentials" in str(error).lower():
            hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
            raise UserError(f"{uri}: no credentials for object storage; {hint}") from error
        raise UserError(
            f"{uri}: object storage does not answer ({type(error).__name__}: {error}); check AWS_ENDPOINT_URL"
        ) from error
    return store


def _check_keyless(uri: str) -> str:
    """The scheme of a URI. `UserError` where keys are in it: datasets and logs would record them."""
    scheme, location = uri.split("://", 1)
    if "@" in location.split("/", 1)[0]:
        hint = "datasets and logs record it; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        raise UserError(f"{scheme}://…@…: keys do not belong into a URI: {hint}")
    return scheme


def absolute(uri: str) -> str:
    """A folder by its absolute path, so that workers elsewhere find it; other URIs as they are."""
    return uri if "://" in uri or not uri else os.path.abspath(uri)


def _client_errors(scheme: str) -> tuple[type[Exception], ...]:
    if scheme != "s3":
        return ()
    from botocore.exceptions import BotoCoreError, ClientError

    return (BotoCoreError, ClientError)


def _open_folder(uri: str, writable: bool) -> "FolderStore":
    store = FolderStore(uri)
    if writable:
        try:
            store.root.mkdir(parents=True, exist_ok=True)
            probe = store.root / f".probe-{uuid.uuid4().hex}"
            probe.write_bytes(b"")
            try:
                os.link(probe, probe.with_name(f"{probe.name}-link"))
                probe.with_name(f"{probe.name}-link").unlink()
            except OSError as error:
                hint = (
                    "which make a name appear whole and once; choose a disk with them, or s3://bucket/prefix"
                )
                problem = f"its file system has no hard links ({error.strerror})"
                raise UserError(f"{uri}: {problem}, {hint}") from error
            finally:
                probe.unlink()
        except OSError as error:
            raise UserError(f"{uri}: not writable ({error.strerror}); choose another output") from error
    return store


class FolderStore:
    """A folder: write beside, fsync, then `link` into place, which fails if the name exists."""

    def __init__(self, uri: str):
        self.uri = uri
        self.root = Path(uri.removeprefix("file://")).absolute()

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except NotADirectoryError as error:  # the root is below a file: then nothing exists there
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), error.filename) from None

    def read_range(self, name: str, start: int, end: int) -> bytes:
        with open(self.root / name, "rb") as file:
            return os.pread(file.fileno(), end - start, start)

    def get_file(self, name: str, path: Path) -> None:
        shutil.copyfile(self.root / name, path)

    def put(self, name: str, data: bytes) -> None:
        self._publish(name, lambda temporary: temporary.write_bytes(data))

    def put_file(self, name: str, path: Path) -> None:
        self._publish(name, lambda temporary: shutil.copyfile(path, temporary))

    def replace(self, name: str, data: bytes) -> None:
        temporary = self._beside(name)
        try:
            temporary.write_bytes(data)
            temporary.replace(self.root / name)
        finally:
            # on a full disk, what is half written must not take the remaining space
            temporary.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> list[str]:
        top = self.root / prefix
        files = (
            Path(folder) / name
            for folder, _, names in os.walk(top)
            for name in names
            if not name.startswith(".")
        )
        return sorted(str(file.relative_to(self.root)) for file in files)

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def size(self, name: str) -> int:
        return (self.root / name).stat().st_size

    def modified(self, name: str) -> float:
        """When the object was written, in seconds since 1970."""
        return (self.root / name).stat().st_mtime

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def unfinished(self) -> dict[str, float]:
        """Killed uploads, which no listing shows: a name for `discard` -> when it began, as `modified`."""
        hidden = (path for path in self.root.rglob(".*") if re.fullmatch(UNFINISHED, path.name))
        return {str(path.relative_to(self.root)): path.stat().st_mtime for path in hidden}

    def discard(self, name: str) -> None:
        """Deletes an upload that `unfinished` named; a writer that is still at work fails, and may retry."""
        self.delete(name)

    def _beside(self, name: str) -> Path:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.with_name(f".{uuid.uuid4().hex}.partial")

    def _publish(self, name: str, write: Callable[[Path], Any]) -> None:
        target = self.root / name
        temporary = self._beside(name)
        try:
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            try:
                os.link(temporary, target)
            except FileExistsError:
                if file_sha256(target) != file_sha256(temporary):
                    raise FileExistsError(f"{target} exists with other bytes") from None
            _sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


class RemoteStore:
    """Any fsspec filesystem whose `pipe_file(mode="create")` is conditional (s3fs: If-None-Match)."""

    def __init__(self, uri: str):
        self.uri = uri
        protocol = uri.split("://", 1)[0]
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if protocol == "s3":
            waits = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
            options["config_kwargs"] = {"retries": {"max_attempts": 1, "mode": "standard"}, **waits}
            for noisy in ("botocore", "aiobotocore"):
                logging.getLogger(noisy).setLevel(logging.WARNING)
        self.fs, self.root = fsspec.core.url_to_fs(uri, **options)
        if protocol == "s3":
            self.fs.retries = 1

    def list_first(self) -> None:
        """Requests something once, so that a missing credential or bucket is an error before any work."""
        bucket = self.root.split("/", 1)[0]
        if self.fs.protocol == "s3" or "s3" in self.fs.protocol:
            self.fs.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
        else:
            self.fs.exists(self.root)

    def read(self, name: str) -> bytes:
        return bytes(_retrying(lambda: self.fs.cat_file(self._path(name))))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """As of a file: fewer bytes, or none, where the object ends before `end`."""
        if start >= end:
            return b""  # an empty range would be a header that requests the whole object
        try:
            return bytes(_retrying(lambda: self.fs.cat_file(self._path(name), start=start, end=end)))
        except OSError as error:
            if _status(error) != 416:
                raise
            return b""

    def get_file(self, name: str, path: Path) -> None:
        _retrying(lambda: self.fs.get_file(self._path(name), str(path)))

    def put(self, name: str, data: bytes) -> None:
        try:
            _retrying(
                lambda: self.fs.pipe_file(self._path(name), data, mode="create", chunksize=SINGLE_PUT_BYTES)
            )
        except OSError as error:
            if not _is_conflict(error):
                raise
            if self.size(name) != len(data) or self.read(name) != data:
                raise FileExistsError(f"{self.uri}/{name} exists with other bytes") from error

    def put_file(self, name: str, path: Path) -> None:
        """In parts where it is large: never more than PARTS_AT_ONCE of them in memory."""
        if path.stat().st_size < LARGE_BYTES or "s3" not in self.fs.protocol:
            return self.put(name, path.read_bytes())
        limits = {"mode": "create", "chunksize": PART_BYTES, "max_concurrency": PARTS_AT_ONCE}
        try:
            # not every server heeds the condition where it completes an upload in parts
            if self.exists(name):
                raise FileExistsError(name)
            _retrying(lambda: self.fs.put_file(str(path), self._path(name), **limits))
        except OSError as error:
            if not _is_conflict(error):
                raise
            if not self._holds(name, path):
                raise FileExistsError(f"{self.uri}/{name} exists with other bytes") from error

    def _holds(self, name: str, path: Path) -> bool:
        size = path.stat().st_size
        with open(path, "rb") as file:
            pieces = ((file.read(PART_BYTES), start) for start in range(0, size, PART_BYTES))
            return self.size(name) == size and all(
                self.read_range(name, at, at + len(piece)) == piece for piece, at in pieces
            )

    def replace(self, name: str, data: bytes) -> None:
        _retrying(lambda: self.fs.pipe_file(self._path(name), data))

    def list(self, prefix: str = "") -> list[str]:
        top = self._path(prefix).rstrip("/")
        paths = _retrying(lambda: self.fs.find(top, refresh=True)) if self.fs.protocol else []
        # some consoles make an empty object to show a folder
        return sorted(path[len(self.root) + 1 :] for path in paths if not path.endswith("/"))

    def exists(self, name: str) -> bool:
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int:
        return int(_retrying(lambda: self.fs.info(self._path(name), refresh=True))["size"])

    def modified(self, name: str) -> float:
        return float(_retrying(lambda: self.fs.modified(self._path(name))).timestamp())

    def unfinished(self) -> dict[str, float]:
        if "s3" not in self.fs.protocol:
            return {}
        bucket, _, prefix = self.root.partition("/")
        prefix = f"{prefix}/" if prefix else ""
        started: dict[str, float] = {}
        marker: dict[str, str] = {}
        while True:
            query = {"Bucket": bucket, "Prefix": prefix, **marker}
            page = _retrying(lambda query=query: self.fs.call_s3("list_multipart_uploads", **query))  # type: ignore[misc]
            for upload in page.get("Uploads", []):
                name = f"{upload['Key'].removeprefix(prefix)}?{upload['UploadId']}"
                started[name] = upload["Initiated"].timestamp()
            if not page.get("IsTruncated"):
                return started
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def discard(self, name: str) -> None:
        name, _, upload = name.rpartition("?")
        bucket, _, key = self._path(name).partition("/")
        try:
            _retrying(
                lambda: self.fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)
            )
        except FileNotFoundError:
            pass

    def delete(self, name: str) -> None:
        try:
            _retrying(lambda: self.fs.rm_file(self._path(name)))
        except FileNotFoundError:
            pass

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


def _status(error: BaseException) -> int:
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _is_conflict(error: BaseException) -> bool:
    """An existing object: FileExistsError on AWS and moto, `OSError(22)` caused by a 412 on radosgw."""
    return isinstance(error, FileExistsError) or _status(error) == 412


def _is_transient(error: BaseException) -> bool:
    if (
        isinstance(error, (FileNotFoundError, FileExistsError, PermissionError, UserError))
        or _status(error) == 412
    ):
        return False
    if isinstance(error, (TimeoutError, ConnectionError)) or _status(error) == 409 or _is_busy(error):
        return True
    if isinstance(error, OSError) and error.errno in TRANSIENT_ERRNO:
        return True
    # the clients' own errors: cut connections, half answers. Missing credentials stay missing.
    is_client_error = type(error).__module__.split(".")[0] in ("aiohttp", "botocore", "aiobotocore")
    return is_client_error and "Credentials" not in type(error).__name__


def _is_busy(error: BaseException) -> bool:
    return _status(error) == 429 or _status(error) >= 500


def _retrying(call: Callable[[], T], when: Callable[[BaseException], bool] = _is_transient) -> T:
    """`call` with up to `MAX_TRIES` tries and full jitter; errors that are not transient are raised at once.

    `StorageDownError` after the last try.
    """
    tries = Retrying(
        stop=stop_after_attempt(MAX_TRIES),
        wait=wait_random_exponential(multiplier=0.2, max=MAX_WAIT_S),
        retry=retry_if_exception(when),
        before_sleep=before_sleep_log(log, logging.WARNING),
    )
    try:
        return tries(call)
    except RetryError as failed:
        error = failed.last_attempt.exception()
        raise StorageDownError(f"object storage does not answer ({type(error).__name__}: {error})") from error


def _sync_folder(folder: Path) -> None:
    """Makes a new name in `folder` outlive a power cut, so that no commit is there before its data."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """sha256 of a local file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

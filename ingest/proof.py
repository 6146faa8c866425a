"""The report of ingest prove-removed: what it says, its hash and its signature.

    data = sealed(proof, key)             # JSON with a sha256 over itself; an HMAC, too, where there is a key
    check_proof("proof.json", "key")      # UserError where a byte is not as it was written

The hash shows that nobody changed the report by mistake. Who could write another one could also hash it:
against that, the key.
"""

import hashlib
import hmac
import json
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from cluster.jsonl import JsonObject
from cluster.seals import FIELD, open_json, seal_json
from configs.load import UserError
from ingest.search import Found

MIN_KEY_BYTES = 16


class NotSearched(TypedDict):
    """A place where something may be, and why nobody looked."""

    place: str
    why: str


class Proof(TypedDict):
    """The report. `selection`: the setting that selected, or all that was taken down. `keys_sha256`: of the
    keys, sorted, a line each. `models`: those that may have learnt from it. `kept`: what stays by design,
    counted. `hmac_sha256`: with a key file. Stored, it has `sha256` over all the rest.
    """

    verb: str
    date: str
    dataset: str
    selection: dict[str, str]
    samples: int
    keys_sha256: str
    verdict: str
    found: list[Found]
    models: list[Found]
    not_searched: list[NotSearched]
    searched: JsonObject
    kept: dict[str, int]
    limits: list[str]
    report: NotRequired[str]
    hmac_sha256: NotRequired[str]


def sealed(proof: Proof, key: bytes = b"") -> bytes:
    """The report as JSON with a hash over its content, and an HMAC where there is a key."""
    body: JsonObject = {**proof}
    if key:
        body["hmac_sha256"] = _hmac(body, key)
    return seal_json(body)


def check_proof(path: str, key_file: str = "") -> Proof:
    """The report in a file. `UserError` where a byte was changed, or it was not signed with this key."""
    key = read_key(key_file)
    try:
        body = open_json(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"check={path}: no report as it was written: {reason}") from error
    signed = {name: value for name, value in body.items() if name not in ("hmac_sha256", FIELD)}
    if key and not hmac.compare_digest(str(body.get("hmac_sha256")), _hmac(signed, key)):
        raise UserError(f"check={path}: was not signed with key_file={key_file}")
    return cast(Proof, body)


def _hmac(body: JsonObject, key: bytes) -> str:
    return hmac.new(key, json.dumps(body, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def read_key(path: str) -> bytes:
    """`UserError` for a file that cannot be read, or is too short to be a secret."""
    if not path:
        return b""
    try:
        key = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"key_file={path}: cannot be read: {error.strerror}") from error
    if len(key) < MIN_KEY_BYTES:
        raise UserError(
            f"key_file={path}: has {len(key)} bytes, need 16 at least: make one of 32 random ones"
        )
    return key

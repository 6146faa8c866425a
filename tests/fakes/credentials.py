"""Files with C2PA manifests, signed by an untrusted certificate that is made here."""

import datetime
import io
import json
from functools import cache
from typing import Any

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

START = datetime.datetime(2026, 1, 1)


def with_assertion(data: bytes, mime: str, label: str, entries: dict[str, str]) -> bytes:
    """`data` with a manifest of one assertion: entry -> use, such as "notAllowed"."""
    key, chain = _signer()

    def sign(message: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    assertion = {"label": label, "data": {"entries": {name: {"use": use} for name, use in entries.items()}}}
    manifest = {
        "claim_generator_info": [{"name": "tests", "version": "1"}],
        "assertions": [assertion] if entries else [],
    }
    settings = c2pa.Settings.from_dict({"verify": {"verify_after_sign": False, "verify_trust": False}})
    signer = c2pa.Signer.from_callback(sign, c2pa.C2paSigningAlg.ES256, chain, None)
    out = io.BytesIO()
    c2pa.Builder(json.dumps(manifest), c2pa.Context(settings)).sign(signer, mime, io.BytesIO(data), out)
    return out.getvalue()


@cache
def _signer() -> tuple[Any, str]:
    """A private key, and its certificates in PEM."""
    root = ec.generate_private_key(ec.SECP256R1())
    leaf = ec.generate_private_key(ec.SECP256R1())
    certificates = [
        _certificate("leaf", leaf, root, authority=False),
        _certificate("root", root, root, authority=True),
    ]
    pems = [certificate.public_bytes(serialization.Encoding.PEM).decode() for certificate in certificates]
    return leaf, "".join(pems)


def _certificate(name: str, key: Any, issuer: Any, authority: bool) -> Any:
    serial = x509.random_serial_number()
    builder = x509.CertificateBuilder(_name("root"), _name(name), key.public_key(), serial)
    # valid for a century: no test starts to fail by the calendar
    builder = builder.not_valid_before(START).not_valid_after(START + datetime.timedelta(days=36500))
    builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False
    )
    uses = x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False)
    builder = builder.add_extension(uses, critical=True)
    if not authority:
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=True
        )
    return builder.sign(issuer, hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests"),
        ]
    )

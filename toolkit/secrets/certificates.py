"""Reads certificates and keys in PEM. Pure."""

from __future__ import annotations

import re

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from toolkit.errors import ConfigurationError

_KEY_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.+?-----END \1-----\n?", re.DOTALL)


def split_bundle(pem: bytes, where: str) -> tuple[bytes, bytes]:
    """Split a PEM bundle into its certificates, the leaf first, and its private key.

    Raises:
        ConfigurationError: It is not one key with the certificates that belong to it.
    """
    keys = [match.group(0) for match in _KEY_BLOCK.finditer(pem)]
    certificates = _load(pem)
    if len(keys) != 1 or not certificates:
        raise ConfigurationError(
            f"{where}: must hold one private key and its certificate, both as PEM"
        )
    chain = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
    key = keys[0] if keys[0].endswith(b"\n") else keys[0] + b"\n"
    check_pair(chain, key, where)
    return chain, key


def check_pair(certificate: bytes, key: bytes, where: str) -> None:
    """Check that a private key belongs to the first certificate of a chain.

    Raises:
        ConfigurationError: It does not, or one of them cannot be read.
    """
    certificates = _load(certificate)
    if not certificates:
        raise ConfigurationError(f"{where}: holds no readable certificate")
    try:
        public_key = load_pem_private_key(key, password=None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Not quoted: the parser's words may be about the key itself.
        public_key = None
    if public_key is None:
        raise ConfigurationError(
            f"{where}: the private key is not readable", hint="it must be PEM without a passphrase"
        )
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if public_key.public_bytes(*spki) != certificates[0].public_key().public_bytes(*spki):
        raise ConfigurationError(f"{where}: the private key does not belong to the certificate")


def expiry(certificate: bytes) -> float | None:
    """Return when the first certificate of a chain to expire does so, seconds since the epoch."""
    return min((each.not_valid_after_utc.timestamp() for each in _load(certificate)), default=None)


def _load(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        return []

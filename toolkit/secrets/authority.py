"""A certificate authority of one environment, for certificates that nobody outside must trust.

Its name constraints let clients refuse whatever it might sign for other names than those below
`.internal` and this host's own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from toolkit.errors import ConfigurationError

AUTHORITY_DAYS = 3650
LEAF_DAYS = 397
"""What browsers accept at most is 398 days."""

_SKEW = timedelta(hours=1)
"""Machines whose clock is a little late accept a certificate all the same."""

_DOMAINS = ("internal", "localhost")
_LOOPBACK = ipaddress.IPv4Network("127.0.0.0/8")


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority.

    Attributes:
        certificate: PEM; public.
    """

    certificate: bytes
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    def key_pem(self) -> bytes:
        """Return the private key. Call it only where the key is kept."""
        return _pem(self._key)


def create_authority(
    service: str, environment: str, *, now: float, key_pem: bytes | None = None
) -> Authority:
    """Make the authority of an environment.

    Args:
        service: Name of the service.
        environment: Name of the environment.
        now: Seconds since the epoch.
        key_pem: Its key; a new one by default. With the same key, what was signed stays good.

    Raises:
        ConfigurationError: The key is not readable.
    """
    key = ec.generate_private_key(ec.SECP256R1()) if key_pem is None else _load_key(key_pem)
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, service),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{service} {environment} authority"[:64]),
        ]
    )
    permitted: list[x509.GeneralName] = [x509.DNSName(domain) for domain in _DOMAINS]
    permitted.append(x509.IPAddress(_LOOPBACK))
    builder = (
        _builder(name, name, key.public_key(), now=now, days=AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(is_authority=True), critical=True)
        .add_extension(x509.NameConstraints(permitted, None), critical=True)
    )
    return Authority(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), key)


def load_authority(certificate: bytes, key_pem: bytes) -> Authority:
    """Return an authority that was made before.

    Raises:
        ConfigurationError: The key is not readable, or not that of the certificate.
    """
    key = _load_key(key_pem)
    try:
        loaded = x509.load_pem_x509_certificate(certificate)
    except ValueError:
        raise ConfigurationError("the authority's certificate is not readable") from None
    if loaded.public_key() != key.public_key():
        raise ConfigurationError("the authority's key does not belong to its certificate")
    return Authority(certificate, key)


def issue(authority: Authority, names: Sequence[str], *, now: float) -> tuple[bytes, bytes]:
    """Make a server's certificate and private key.

    Args:
        authority: Signs it.
        names: DNS names and IP addresses, at least one; see `outside_names`.
        now: Seconds since the epoch.

    Returns:
        Certificate and key as PEM.

    Raises:
        ConfigurationError: A name is none that the authority may sign for.
    """
    outside = outside_names(names)
    if outside or not names:
        raise ConfigurationError(
            f"the authority signs only for localhost and below .internal, not for "
            f"{', '.join(outside) or 'no name at all'}"
        )
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    certificate = (
        _builder(subject, issuer.subject, key.public_key(), now=now, days=LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(is_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority._key.public_key()),
            critical=False,
        )
        .sign(authority._key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM), _pem(key)


def outside_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return those of the names that no authority of ours may sign for."""
    return tuple(name for name in names if not _is_permitted(name))


def _is_permitted(name: str) -> bool:
    address = _address(name)
    if address is not None:
        return address in _LOOPBACK
    return name.isascii() and any(name == d or name.endswith(f".{d}") for d in _DOMAINS)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    *,
    now: float,
    days: int,
) -> x509.CertificateBuilder:
    moment = datetime.fromtimestamp(now, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - _SKEW)
        .not_valid_after(moment + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    address = _address(name)
    return x509.DNSName(name) if address is None else x509.IPAddress(address)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError("the authority's private key is not readable")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

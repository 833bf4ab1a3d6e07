"""Certificates, judged by a real TLS handshake."""

import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509

from toolkit.errors import ConfigurationError
from toolkit.secrets.authority import (
    Authority,
    create_authority,
    issue,
    load_authority,
    outside_names,
)
from toolkit.secrets.certificates import check_pair, expiry, split_bundle

NOW = time.time()
NAMES = ("localhost", "api_web.my_env.internal", "127.0.0.1")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return create_authority("shop", "development", now=NOW)


@pytest.fixture(scope="module")
def leaf(authority: Authority) -> tuple[bytes, bytes]:
    return issue(authority, NAMES, now=NOW)


def handshake(directory: Path, leaf: tuple[bytes, bytes], trusted: bytes, name: str) -> None:
    """Connect a client to a server in memory; raises what OpenSSL objects to."""
    bundle = directory / "bundle.pem"
    bundle.write_bytes(leaf[0] + leaf[1])
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(bundle)
    client_context = ssl.create_default_context(cadata=trusted.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
    assert client.getpeercert()


@pytest.mark.parametrize("name", NAMES)
def test_a_client_that_trusts_the_authority_accepts(
    tmp_path: Path, authority: Authority, leaf: tuple[bytes, bytes], name: str
) -> None:
    handshake(tmp_path, leaf, authority.certificate, name)


def test_other_names_and_other_authorities_are_refused(
    tmp_path: Path, authority: Authority, leaf: tuple[bytes, bytes]
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(tmp_path, leaf, authority.certificate, "app.development.internal")
    other = create_authority("shop", "development", now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"signature|issuer"):
        handshake(tmp_path, leaf, other.certificate, "localhost")


def test_clients_refuse_what_the_authority_must_not_sign(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outside_names(("www.example.com", "10.0.0.1", *NAMES, "internal.example")) == (
        "www.example.com",
        "10.0.0.1",
        "internal.example",
    )
    with pytest.raises(ConfigurationError, match=r"www\.example\.com"):
        issue(authority, ("www.example.com",), now=NOW)
    # Whoever steals the key is not stopped by our own check, but by the constraint.
    monkeypatch.setattr("toolkit.secrets.authority.outside_names", lambda _names: ())
    stolen = issue(authority, ("www.example.com",), now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
        handshake(tmp_path, stolen, authority.certificate, "www.example.com")


def test_names_are_the_wanted_ones(leaf: tuple[bytes, bytes]) -> None:
    [certificate] = x509.load_pem_x509_certificates(leaf[0])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = {str(one.value) for one in names}
    assert found == set(NAMES)


def test_the_end_of_validity_can_be_read(leaf: tuple[bytes, bytes]) -> None:
    end = expiry(leaf[0])
    assert end is not None and abs(end - NOW - 397 * 86400) < 2
    assert expiry(b"not a certificate") is None


def test_an_expired_certificate_is_refused_by_clients(tmp_path: Path, authority: Authority) -> None:
    old = issue(authority, NAMES, now=NOW - 398 * 86400)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(tmp_path, old, authority.certificate, "localhost")


def test_an_authority_made_again_from_its_key_vouches_for_older_leaves(
    tmp_path: Path, authority: Authority, leaf: tuple[bytes, bytes]
) -> None:
    again = create_authority("shop", "development", now=NOW, key_pem=authority.key_pem())
    assert again.certificate != authority.certificate
    handshake(tmp_path, leaf, again.certificate, "localhost")
    loaded = load_authority(again.certificate, authority.key_pem())
    assert (loaded.certificate, loaded.key_pem()) == (again.certificate, authority.key_pem())


def test_a_key_that_is_not_the_authoritys_is_refused(
    authority: Authority, leaf: tuple[bytes, bytes]
) -> None:
    with pytest.raises(ConfigurationError, match="does not belong"):
        load_authority(authority.certificate, leaf[1])
    with pytest.raises(ConfigurationError, match="not readable"):
        load_authority(authority.certificate, b"nonsense")


def test_a_bundle_is_split_whatever_its_order(
    authority: Authority, leaf: tuple[bytes, bytes]
) -> None:
    chain = leaf[0] + authority.certificate
    for bundle in (chain + leaf[1], leaf[1] + chain):
        assert split_bundle(bundle, "x") == (chain, leaf[1])


def test_a_bundle_that_does_not_fit_together_is_refused_without_quoting_it(
    authority: Authority, leaf: tuple[bytes, bytes]
) -> None:
    other = issue(authority, NAMES, now=NOW)
    cases = {
        leaf[0] + other[1]: "does not belong",
        leaf[0]: "one private key",
        leaf[1]: "one private key",
        leaf[0] + leaf[1] + other[1]: "one private key",
        leaf[0] + leaf[1].replace(b"M", b"N", 1): "not readable",
    }
    for bundle, reason in cases.items():
        with pytest.raises(ConfigurationError, match=reason) as caught:
            split_bundle(bundle, "bundle.pem")
        assert leaf[1].splitlines()[1].decode() not in str(caught.value)
    check_pair(*leaf, "x")


def test_a_key_never_shows_in_a_representation(authority: Authority) -> None:
    assert "PRIVATE" not in repr(authority) and "_key" not in repr(authority)

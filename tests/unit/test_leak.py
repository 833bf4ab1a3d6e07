"""The rules of the leak gate."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from toolkit.bake.leak import host_configuration, load_exceptions
from toolkit.bake.leak_rules import (
    RULES,
    check_file,
    check_host_configuration,
    check_path,
    find_keys,
)
from toolkit.errors import ConfigurationError


def keys() -> dict[str, bytes]:
    curve, edwards = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
    plain = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {
        "pkcs8": curve.private_bytes(*plain),
        "sec1": curve.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
        "openssh": edwards.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
        "ed25519": edwards.private_bytes(*plain),
        "rsa": rsa.generate_private_key(65537, 1024).private_bytes(*plain),
        "encrypted": curve.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass")
        ),
        "with headers": curve.private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"pass")
        ),
        "pgp": b"-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: X 1\n\n"
        + b"lQOYBF" * 20
        + b"\n-----END",
    }


def rules(path: str, content: bytes) -> set[str]:
    return {one.rule for one in check_file(path, content)}


@pytest.mark.parametrize("kind", keys())
def test_private_keys_are_found(kind):
    key = keys()[kind]
    text = key.decode()
    for content in (
        key,
        b"\x7fELF\0\0" + key + b"\0more",
        key.replace(b"\n", b"\r\n"),
        b"key: |\n    " + key.replace(b"\n", b"\n    "),
        key.replace(b"-----\n", b"----- \t\n", 1),
        b"KEY=" + key.replace(b"\n", b" "),
        b"KEY=" + key.replace(b"\n", b" " if b": " in key else b""),
        json.dumps({"key": text}).encode(),
        json.dumps(json.dumps({"key": text})).encode(),
        json.dumps(json.dumps(json.dumps({"key": text}))).encode(),
        ("KEY = (\n" + "\n".join(f'  "{line}\\n"' for line in text.splitlines()) + ")").encode(),
        base64.b64encode(key),
        base64.encodebytes(key),
    ):
        assert rules("opt/app/x", content) == {"private-key"}


@pytest.mark.parametrize("kind", ["pkcs8", "sec1", "ed25519", "rsa", "encrypted"])
def test_private_keys_in_der_are_found_and_are_the_same_as_in_pem(kind):
    pem = keys()[kind]
    der = base64.b64decode(b"".join(pem.splitlines()[1:-1]))
    (found,) = check_file("opt/app/key.der", der)
    assert (found.rule, found.detail) == ("private-key", "DER")
    assert [found.digest] == [one.digest for one in find_keys("x", pem)]


def test_other_der_and_text_that_begins_like_it_are_not_found():
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for content in (
        der,
        b"0",
        b"0\x00",
        b"0 files changed, nothing inserted, 3 lines\n",
        b"0" * 50,
    ):
        assert not list(check_file("opt/app/x", content))


@pytest.mark.parametrize(
    "content",
    [
        b"it is between -----BEGIN PRIVATE KEY----- and the line that says the end of the key and "
        b"then there are further words of a person who explains it without any other sign",
        b"\0-----BEGIN RSA PRIVATE KEY-----\0-----END RSA PRIVATE KEY-----\0",
        b"-----BEGIN PRIVATE KEY-----\n%s\n-----END PRIVATE KEY-----",
        b'if "-----BEGIN OPENSSH PRIVATE KEY-----" in text:\n    raise ValueError("a key")\n',
        b"-----BEGIN PRIVATE KEY-----\nMIIEvgIBADANBg...\n-----END PRIVATE KEY-----",
        b"-----BEGIN PUBLIC KEY-----\n" + b"A" * 64 + b"\n",
        b"-----BEGIN CERTIFICATE-----\n" + b"A" * 64 + b"\n",
    ],
)
def test_what_only_speaks_of_keys_is_not_found(content):
    assert not list(find_keys("x", content))


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("root/.ssh/authorized_keys", "authorized-keys"),
        ("home/me/.ssh/authorized_keys2", "authorized-keys"),
        ("etc/ssh/ssh_host_ed25519_key", "ssh-host-key"),
        ("etc/machine-id", "machine-id"),
        ("var/lib/systemd/random-seed", "random-seed"),
        ("root/.bash_history", "shell-history"),
        ("home/me/.python_history", "shell-history"),
        ("root/.netrc", "package-credentials"),
        ("etc/apt/auth.conf.d/mirror.conf", "package-credentials"),
        ("root/.docker/config.json", "package-credentials"),
        ("home/me/.aws/credentials", "package-credentials"),
        ("root/.git-credentials", "package-credentials"),
        ("etc/credstore/database_password", "credential-store"),
        ("usr/lib/credstore/x", "credential-store"),
        ("opt/app/store.p12", "key-store"),
        ("root/.ssh/id_rsa", "private-key"),
    ],
)
def test_paths(path, rule):
    assert check_path(path) == rule
    assert rules(path, b"anything") == {rule}
    assert rules(path, b"") == set()
    assert rule in RULES


@pytest.mark.parametrize(
    "path",
    [
        "etc/ssh/ssh_host_ed25519_key.pub",
        "root/.ssh/id_rsa.pub",
        "root/.bashrc",
        "usr/share/doc/netrc",
        "etc/apt/apt.conf.d/01autoremove",
        "opt/config.json",
    ],
)
def test_neighbours_of_those_paths(path):
    assert check_path(path) is None


def test_an_unset_machine_id_is_none():
    assert rules("etc/machine-id", b"uninitialized\n") == set()
    assert rules("etc/machine-id", b"0" * 32) == {"machine-id"}


def test_tokens_and_passwords_in_urls():
    assert rules("opt/x.py", b"key = 'AKIA" + b"Q" * 16 + b"'") == {"access-token"}
    assert rules("opt/x.py", b"AKIAIOSFODNN7EXAMPLE") == set()
    assert rules("opt/x.py", b"ghp_" + b"a" * 36) == {"access-token"}
    url = b"https://me:s3cret@host.invalid/simple"
    assert rules("etc/pip.conf", b"index-url = " + url) == {"url-credentials"}
    assert rules("opt/venv/pip.conf", b"index-url = " + url) == {"url-credentials"}
    assert rules("opt/app/readme.md", url) == set()
    assert rules("etc/x", b"https://${USER}:${PASSWORD}@host.invalid") == set()


@pytest.mark.parametrize(
    "url",
    [
        b"postgres://app:s3%40cret@db/x",
        b"postgres://app%2Bx:s3cret@db/x",
        b"redis://:s3cretpassw@cache:6379/0",
    ],
)
@pytest.mark.parametrize(
    "path",
    [
        "etc/app.conf",
        "opt/app/settings.toml",
        "opt/app/config/production.json",
        "var/lib/app/app.ini",
        "usr/share/app/.env",
        "app/.env.production",
    ],
)
def test_passwords_in_urls_of_settings_are_found(path, url):
    assert rules(path, b"URL=" + url + b"\n") == {"url-credentials"}


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("opt/app/.env.example", b"redis://:s3cretpassw@cache"),
        ("opt/venv/lib/python3.11/site-packages/x/y.toml", b"redis://:s3cretpassw@cache"),
        ("opt/app/readme.md", b"redis://:s3cretpassw@cache"),
        ("etc/app.conf", b"redis://:@cache"),
        ("etc/app.conf", b"redis://app:%(password)s@cache"),
        ("etc/app.conf", b"redis://app:{{ password }}@cache"),
        ("etc/app.conf", b"redis://cache:6379/0?mail=me@host"),
    ],
)
def test_what_only_looks_like_such_a_url_is_not_found(path, content):
    assert rules(path, content) == set()


def test_configuration_of_the_build_host(tmp_path):
    (tmp_path / "etc/apt/apt.conf.d").mkdir(parents=True)
    pip = b"[global]\nindex-url = https://pkgs.invalid/simple\n"
    (tmp_path / "etc/pip.conf").write_bytes(pip)
    (tmp_path / "etc/apt/apt.conf.d/01autoremove").write_bytes(b"APT { };\n")
    proxy = b'Acquire::http::Proxy "http://proxy.invalid:3142";\n'
    (tmp_path / "etc/apt/apt.conf.d/99proxy").write_bytes(proxy)
    host = host_configuration(
        tmp_path / "home", tmp_path, {"PIP_EXTRA_INDEX_URL": "https://more.invalid/x", "A": "b"}
    )
    assert host.copies == {pip, proxy}
    assert host.values == (
        b"http://proxy.invalid:3142", b"https://more.invalid/x", b"https://pkgs.invalid/simple",
    )  # fmt: skip

    def found(path: str, content: bytes) -> int:
        return len(
            list(check_host_configuration(path, content, copies=host.copies, values=host.values))
        )

    assert found("opt/venv/pip.conf", pip) == 1
    assert found("etc/apt/apt.conf.d/5proxy", proxy) == 1
    assert found("usr/lib/x.json", b'{"url": "https://more.invalid/x/y.whl"}') == 1
    assert found("etc/apt/apt.conf.d/01autoremove", b"APT { };\n") == 0
    assert found("etc/pip.conf", b"[global]\n") == 0


def test_exceptions_need_everything(tmp_path):
    path = tmp_path / "leak-exceptions.yml"
    assert load_exceptions(path) == ()
    # What looks like a date is a path all the same.
    path.write_text("exceptions: [{path: 2026-99-99, rule: private-key, reason: is a test key}]")
    assert [one.allowed for one in load_exceptions(path)] == ["sealed"]
    path.write_text("# None yet.\n")
    assert load_exceptions(path) == ()
    for wrong in (
        "exceptions: [{path: a, rule: private-key}]",
        "exceptions: [{path: a, rule: private-key, reason: is a test key}]\nexceptions: []",
        "exceptions: [{path: a, reason: is a test key}]",
        "exceptions: [{rule: private-key, reason: is a test key}]",
        "exceptions: [{path: a, rule: no-rule, reason: is a test key}]",
        "exceptions: [{path: a, rule: private-key, reason: no}]",
        "exceptions: {a: [",
    ):
        path.write_text(wrong)
        with pytest.raises(ConfigurationError, match=r"leak-exceptions\.yml"):
            load_exceptions(path)

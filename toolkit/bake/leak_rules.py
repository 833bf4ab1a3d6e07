"""What must not be in an image, recognised by a file's path and by its bytes. Pure.

The rules are few and exact: a gate that cries wolf is switched off. Only the standard library is
imported, since a part of this runs after every task of a bake.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be in an image.

    Attributes:
        path: Relative to the root of the layer; `@sealed` for the sealed file's raw bytes.
        rule: Name of the rule.
        detail: More about it, never a value.
        digest: Of the key material, for `private-key`: the same key found twice has the same.
    """

    path: str
    rule: str
    detail: str = ""
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.rule}" + (f" ({self.detail})" if self.detail else "")


SEALED = "@sealed"

RULES = {
    "private-key": "a private key: PEM, DER, OpenSSH or OpenPGP armour with key material in it",
    "key-store": "a file that holds private keys, by its name",
    "ssh-host-key": "every machine of the image would share it",
    "authorized-keys": "lets somebody in",
    "machine-id": "every machine of the image would share it",
    "random-seed": "every machine of the image would share it",
    "shell-history": "may hold anything that was ever typed",
    "package-credentials": "credentials of a package manager, registry or cloud",
    "credential-store": "would answer in place of a credential that was not delivered",
    "access-token": "an access token, by its prefix",
    "url-credentials": "a URL with a password in a configuration file",
    "build-host": "configuration of the build host",
    "known-secret": "a value from a vault, raw, as base64, hexadecimal or URL-quoted",
}
"""Rule name to what it means."""

_BY_NAME = {
    "authorized_keys": "authorized-keys",
    "authorized_keys2": "authorized-keys",
    ".ash_history": "shell-history",
    ".bash_history": "shell-history",
    ".history": "shell-history",
    ".lesshst": "shell-history",
    ".mysql_history": "shell-history",
    ".node_repl_history": "shell-history",
    ".psql_history": "shell-history",
    ".python_history": "shell-history",
    ".sh_history": "shell-history",
    ".sqlite_history": "shell-history",
    ".zsh_history": "shell-history",
    ".boto": "package-credentials",
    ".dockercfg": "package-credentials",
    ".git-credentials": "package-credentials",
    ".netrc": "package-credentials",
    ".pgpass": "package-credentials",
    ".pypirc": "package-credentials",
    ".s3cfg": "package-credentials",
    ".vault-token": "package-credentials",
    "_netrc": "package-credentials",
}

_BY_SUFFIX = {
    ".jks": "key-store",
    ".kdbx": "key-store",
    ".p12": "key-store",
    ".pfx": "key-store",
    ".ppk": "key-store",
}

_BY_PATH = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (r"etc/ssh/ssh_host_\w+_key", "ssh-host-key"),
        (r"etc/dropbear/dropbear_\w+_host_key", "ssh-host-key"),
        (r"etc/machine-id|var/lib/dbus/machine-id", "machine-id"),
        (
            r"var/lib/systemd/random-seed|var/lib/u?random/random-seed"
            r"|(boot|efi|boot/efi)/loader/random-seed|var/lib/systemd/credential\.secret",
            "random-seed",
        ),
        (r"(etc|usr/lib|usr/local/lib)/credstore(\.encrypted)?/.+", "credential-store"),
        (r"etc/apt/auth\.conf(\.d/.+)?", "package-credentials"),
        (
            r"(.+/)?(\.docker/config\.json|\.aws/(credentials|sso/cache/.+)|\.kube/config"
            r"|\.config/gh/hosts\.yml|\.config/containers/auth\.json|\.config/hub"
            r"|\.config/gcloud/(credentials\.db|access_tokens\.db|.*credentials\.json)"
            r"|\.azure/(accessTokens|msal_token_cache)\.json|\.cargo/credentials(\.toml)?"
            r"|\.gem/credentials|\.terraform\.d/credentials\.tfrc\.json)",
            "package-credentials",
        ),
        (r"(root|home/[^/]+)/\.ssh/id_[a-z0-9_]+", "private-key"),
    )
)

_HOST_CONFIGURATION = re.compile(
    r"(.+/)?pip\.conf|(.+/)?\.pydistutils\.cfg|(.+/)?uv\.toml|etc/apt/apt\.conf(\.d/.+)?"
)

_URL_PLACES = re.compile(
    r"(etc|root|home|srv)/.*|(.+/)?(pip\.conf|uv\.toml|\.npmrc|\.gitconfig|direct_url\.json)"
    r"|(.+/)?\.env(\.(?!dist|example|sample|template)[^/]+)?"
    # Libraries and programs show such URLs in their texts; settings are what is read at run time.
    r"|(opt|var/lib)/(?!.*/(site-packages|dist-packages|node_modules)/)"
    r".+\.(cfg|cnf|conf|config|env|ini|json|properties|service|sh|toml|xml|ya?ml)"
)
_USER_INFO = rb"(?:[^\s/:@'\"<>{}$%]|%[0-9A-Fa-f]{2})"
_URL = re.compile(rb"[a-z][a-z0-9+.-]{1,20}://%b*:%b+@[\w\[]" % (_USER_INFO, _USER_INFO))

_TOKENS = tuple(
    (literal, re.compile(pattern))
    for literal, pattern in (
        (b"AKIA", rb"(?<![A-Za-z0-9+/])AKIA[A-Z2-7]{16}(?![A-Za-z0-9+/=])"),
        (b"ghp_", rb"\bghp_[A-Za-z0-9]{36}\b"),
        (b"gho_", rb"\bgho_[A-Za-z0-9]{36}\b"),
        (b"ghs_", rb"\bghs_[A-Za-z0-9]{36}\b"),
        (b"github_pat_", rb"\bgithub_pat_[A-Za-z0-9_]{60,}"),
        (b"glpat-", rb"\bglpat-[A-Za-z0-9_-]{20}"),
        (b"xoxb-", rb"\bxoxb-[0-9]{10,}-[A-Za-z0-9-]{20,}"),
        (b"AGE-SECRET-KEY-1", rb"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
    )
)

_MARK = re.compile(rb"-----BEGIN ((?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?)-----")
_ENCODED_MARK = b"LS0tLS1CRUdJTi"
"""`-----BEGIN` in base64."""

_LINE_ENDS = re.compile(rb"(?:\\+[nrt]|[\r\n\"',()])+")
"""Keys are found inside of JSON, JSON within JSON, Python and shell, where lines end otherwise."""

_FLAT = re.compile(
    rb"[ \t]*(?:[A-Za-z][A-Za-z0-9-]*:[^\r\n]{1,80}?[ \t]+){0,3}?([A-Za-z0-9+/]{64,})"
)
"""A key whose lines were joined by spaces or nothing. The length tells a line from a word."""

_HEADER = re.compile(rb"[A-Za-z][A-Za-z0-9-]*:.*")
_CONTINUED_HEADER = re.compile(rb"ENCRYPTED|[0-9A-F]{16,64}")
_MATERIAL = re.compile(rb"[A-Za-z0-9+/=]+")
_DER_SEQUENCE = b"\x30"
_LONGEST_DER_BYTES = 16 * 1024

MATERIAL_BYTES = 64
"""Base64 characters that make a marker a key; the bare markers of a library have none."""

PUBLISHED_KEYS = frozenset(
    {
        # Self-tests of GnuTLS 3.7, in libgnutls.so of the Debian base, in lines and joined.
        "36d32468a4353827c6db9a9477736adf7bb980c50854d0b57257f5132ef32d39",
        "4a1e3b45fa80854157c959a2e3c0f598aab717ecd3b7a3b3f1271f43d966699e",
        "4b86104d3a39ae361925614ff33350c34aa8370b85a3b2e79ee407705a0af571",
        "8dd51545b81e4a0a285630cfc608921c2523171d5cf57a8123116658baa84558",
        "8e2145349f01ed8f5c3afa5ec9381b3b3ae43b7da9088b010c7c4f01593d0d77",
        "9c01da374f769ee2a92018e99081675d1ce48ba297c8e8641db80c21a4f4dc3b",
        "c50f38f5a25dad1abc4c3162635f014f05e857ae7e6b590f66b42793e27f9d37",
        "d76d8725f92d87288e0466d850892bf8dd7f487ad21d40f211612ebec68852a2",
        "e36ff64abc8431d1295824c32f55327df2af968b417a4073cc696a2332d3c370",
        "fe14d9ea324a30fd417e971fa264a34bcb0ef77fc505fe66ce09061a7f060a4d",
    }
)
"""Digests of key material that a library's published source contains: it opens nothing."""

_LOOK_AHEAD_BYTES = 4096


def check_path(path: str) -> str | None:
    """Return the rule that a file which is not empty breaks by its path alone."""
    name = path.rpartition("/")[2]
    rule = _BY_NAME.get(name)
    if rule is None and "." in name:
        rule = _BY_SUFFIX.get(name[name.rindex(".") :])
    if rule is not None:
        return rule
    return next((rule for pattern, rule in _BY_PATH if pattern.fullmatch(path)), None)


def check_file(path: str, content: bytes) -> Iterator[Finding]:
    """Yield what is wrong with a regular file.

    Args:
        path: Relative to the root.
        content: All of it.
    """
    if not content:
        return
    rule = check_path(path)
    is_unset = rule == "machine-id" and content.strip() == b"uninitialized"
    if rule is not None and not is_unset:
        yield Finding(path, rule, RULES[rule])
    yield from find_keys(path, content)
    for literal, pattern in _TOKENS:
        if literal in content:
            for found in pattern.finditer(content):
                if not found[0].endswith(b"EXAMPLE"):
                    yield Finding(path, "access-token", f"begins with {literal.decode()}")
    if b"://" in content and _URL_PLACES.fullmatch(path) and _URL.search(content):
        yield Finding(path, "url-credentials", RULES["url-credentials"])


def find_keys(path: str, content: bytes) -> Iterator[Finding]:
    """Yield every private key in some bytes; a key inside base64 too."""
    if content.startswith(_DER_SEQUENCE) and _is_der_key(content):
        # As in PEM: the same key in both forms has one digest.
        material = base64.b64encode(content)[:MATERIAL_BYTES]
        yield Finding(path, "private-key", "DER", hashlib.sha256(material).hexdigest())
    if b"PRIVATE KEY" in content:
        for mark in _MARK.finditer(content):
            material = _material(content[mark.end() : mark.end() + _LOOK_AHEAD_BYTES])
            if material:
                digest = hashlib.sha256(material).hexdigest()
                if digest not in PUBLISHED_KEYS:
                    yield Finding(path, "private-key", mark[1].decode(), digest)
    start = content.find(_ENCODED_MARK)
    while start >= 0:
        inner = _decode(content[start : start + _LOOK_AHEAD_BYTES])
        for found in find_keys(path, inner):
            yield Finding(path, found.rule, f"{found.detail} in base64", found.digest)
        start = content.find(_ENCODED_MARK, start + 1)


def check_host_configuration(
    path: str, content: bytes, *, copies: frozenset[bytes], values: tuple[bytes, ...]
) -> Iterator[Finding]:
    """Yield what a file has from the configuration of the build host.

    Args:
        path: Relative to the root.
        content: All of it.
        copies: Contents of the host's own pip and apt configuration files.
        values: URLs in them: package indexes and proxies.
    """
    if content in copies and _HOST_CONFIGURATION.fullmatch(path):
        yield Finding(path, "build-host", "the same as the build host's own file")
    # pip's own code names the public index, which the build host may name too.
    elif "/pip/_" not in path and any(value in content for value in values):
        yield Finding(path, "build-host", "a package index or proxy of the build host")


def _material(following: bytes) -> bytes:
    """Return the beginning of the key material that follows a marker; empty for none."""
    if flat := _FLAT.match(following):
        return flat[1][:MATERIAL_BYTES]
    following = following.lstrip(b" \t")
    if _LINE_ENDS.match(following) is None:
        return b""
    joined = b""
    for line in _LINE_ENDS.split(following):
        text = line.strip()
        if not text or (
            not joined and (_HEADER.fullmatch(text) or _CONTINUED_HEADER.fullmatch(text))
        ):
            continue
        if not _MATERIAL.fullmatch(text):
            break
        joined += text
    return joined[:MATERIAL_BYTES] if len(joined) >= MATERIAL_BYTES else b""


def _is_der_key(content: bytes) -> bool:
    """Whether a file is a private key in DER, with or without a passphrase."""
    if len(content) > _LONGEST_DER_BYTES or _der_size(content) != len(content):
        return False
    # Hardly a file gets here, and importing it takes longer than looking at most layers' files.
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_der_private_key  # noqa: PLC0415

    try:
        load_der_private_key(content, password=None)
    except ValueError:
        return False
    except (TypeError, UnsupportedAlgorithm):
        # It wants a passphrase, or is a key of a kind that is not known.
        return True
    return True


def _der_size(content: bytes) -> int:
    """Return how many bytes the value takes that some DER begins with; 0 for no DER."""
    length = content[1] if len(content) > 1 else 0
    if length < 0x80:
        return 2 + length
    count = length & 0x7F
    return 2 + count + int.from_bytes(content[2 : 2 + count], "big") if count in (1, 2, 3) else 0


def _decode(text: bytes) -> bytes:
    """Decode as much base64 as there is, with or without line ends."""
    digits = re.match(rb"(?:[A-Za-z0-9+/]|\\n|\s)+", text)
    joined = re.sub(rb"\\n|\s", b"", digits[0]) if digits else b""
    try:
        return base64.b64decode(joined[: len(joined) // 4 * 4])
    except (binascii.Error, ValueError):
        return b""

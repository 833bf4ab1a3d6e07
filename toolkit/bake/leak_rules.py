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
    "private-key": "a private key: PEM, OpenSSH or OpenPGP armour with key material in it",
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
)
_URL = re.compile(rb"[a-z][a-z0-9+.-]{1,20}://[^\s/:@'\"<>{}$%]+:([^\s/:@'\"<>{}$%]+)@[\w\[]")

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

_LINE_ENDS = re.compile(rb"(?:\\[nrt]|[\r\n\"',()])+")
"""Keys are found inside of JSON, Python and shell too, where lines end in other ways."""

_HEADER = re.compile(rb"[A-Za-z][A-Za-z0-9-]*:.*")
_CONTINUED_HEADER = re.compile(rb"ENCRYPTED|[0-9A-F]{16,64}")
_MATERIAL = re.compile(rb"[A-Za-z0-9+/=]+")
MATERIAL_BYTES = 64
"""Base64 characters that make a marker a key; the bare markers of a library have none."""

PUBLISHED_KEYS = frozenset(
    {
        # Self-tests of GnuTLS 3.7, in libgnutls.so of the Debian base: four kinds of key.
        "36d32468a4353827c6db9a9477736adf7bb980c50854d0b57257f5132ef32d39",
        "4b86104d3a39ae361925614ff33350c34aa8370b85a3b2e79ee407705a0af571",
        "8dd51545b81e4a0a285630cfc608921c2523171d5cf57a8123116658baa84558",
        "c50f38f5a25dad1abc4c3162635f014f05e857ae7e6b590f66b42793e27f9d37",
        "d76d8725f92d87288e0466d850892bf8dd7f487ad21d40f211612ebec68852a2",
        "e36ff64abc8431d1295824c32f55327df2af968b417a4073cc696a2332d3c370",
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


def _decode(text: bytes) -> bytes:
    """Decode as much base64 as there is, with or without line ends."""
    digits = re.match(rb"(?:[A-Za-z0-9+/]|\\n|\s)+", text)
    joined = re.sub(rb"\\n|\s", b"", digits[0]) if digits else b""
    try:
        return base64.b64decode(joined[: len(joined) // 4 * 4])
    except (binascii.Error, ValueError):
        return b""

"""What is seen of a vault file without its password."""

import re

import pytest

from toolkit.errors import ConfigurationError
from toolkit.secrets.vault import check_envelope

HEADER = b"$ANSIBLE_VAULT;1.2;AES256;development.web\n"
DIGITS = b"3" * (260 + 64 * 5)
VAULT = HEADER + re.sub(rb"(.{1,80})", rb"\1\n", DIGITS)


def reason(vaulttext: bytes, label: str = "development.web") -> str:
    with pytest.raises(ConfigurationError) as caught:
        check_envelope(vaulttext, label=label, where="vault.yml")
    assert caught.value.exit_code == 2
    return caught.value.message


def test_a_whole_vault_is_accepted() -> None:
    for blocks in range(1, 40):
        body = re.sub(rb"(.{1,80})", rb"\1\n", b"3" * (260 + 64 * blocks))
        check_envelope(HEADER + body, label="development.web", where="x")


def test_every_truncation_is_seen() -> None:
    for length in range(len(VAULT)):
        assert "cut off" in reason(VAULT[:length]), length


def test_every_full_line_less_is_seen_whatever_the_length() -> None:
    for blocks in range(1, 40):
        body = re.sub(rb"(.{1,80})", rb"\1\n", b"3" * (260 + 64 * blocks))
        for lines in range(body.count(b"\n")):
            cut = b"\n".join(body.split(b"\n")[:lines]) + b"\n"
            assert "cut off" in reason(HEADER + cut)


@pytest.mark.parametrize("label", ["development.app", "production.web"])
def test_a_vault_of_somebody_else_is_named(label: str) -> None:
    assert f"is the vault of 'development.web', not of '{label}'" in reason(VAULT, label)


def test_plaintext_and_unlabelled_vaults_are_refused() -> None:
    assert "is not encrypted" in reason(b"secrets:\n  token: canary-77\n")
    assert "canary-77" not in reason(b"secrets:\n  token: canary-77\n")
    unlabelled = VAULT.replace(b"1.2;AES256;development.web", b"1.1;AES256")
    with pytest.raises(ConfigurationError, match="without a label") as caught:
        check_envelope(unlabelled, label="development.web", where="vault.yml")
    assert "--new-vault-id development.web@NEW_KEY vault.yml" in (caught.value.hint or "")


def test_damage_is_seen() -> None:
    assert "damaged" in reason(VAULT.replace(b"333\n", b"3z3\n", 1))

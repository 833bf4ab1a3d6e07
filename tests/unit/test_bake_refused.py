"""What a bake refuses before it builds anything, and so also `bake --explain`."""

import subprocess
from pathlib import Path

import pytest

from toolkit import wiring
from toolkit.bake.run import Bake
from toolkit.errors import ConfigurationError
from toolkit.workplace import Workplace

FILES = {
    "service.yml": "name: shop\nsource: source\nroles: {web: {layers: [web], port: 80}}\n",
    "source/app.py": "",
    "roles/web/tasks/main.yml": "[]\n",
    "playbooks/bake.yml": "- hosts: all\n",
    "inventories/test/toolkit.yml": "plugin: toolkit\nroles: {web: {machines: 1}}\n",
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def git(directory: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    subprocess.run(["git", "-C", directory, *identity, *arguments], check=True, capture_output=True)


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message=change")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    write(root, FILES)
    git(root, "init", "--quiet", "--initial-branch=main")
    commit(root)
    return root


def make_bake(root: Path, *, is_dirty_allowed: bool = False) -> Bake:
    return wiring.make_bake(
        Workplace(root, root.parent / "state"),
        ref=None,
        is_dirty_allowed=is_dirty_allowed,
        is_refresh=False,
    )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "leak-exceptions.yml",
            "exceptions: [{path: a}]\n",
            "leak-exceptions.yml:exceptions.0.rule",
        ),
        ("inventories/test/toolkit.yml", "plugin: toolkit\n", "toolkit.yml:roles: is missing"),
        ("roles/web/meta/secrets.yml", "secrets: [{name: a}]\n", "secrets.yml:secrets.0.kind"),
    ],
)
def test_what_the_leak_gate_goes_by_is_read_first(
    root: Path, file: str, content: str, message: str
) -> None:
    make_bake(root)
    write(root, {file: content})
    commit(root)
    with pytest.raises(ConfigurationError, match=message):
        make_bake(root)


def test_what_a_link_of_a_role_leads_to_must_be_committed(root: Path) -> None:
    write(root, {"shared/motd": "hello\n", "roles/web/files/README": ""})
    (root / "roles" / "web" / "files" / "motd").symlink_to("../../../shared/motd")
    commit(root)
    make_bake(root)
    write(root, {"shared/motd": "changed\n"})
    with pytest.raises(ConfigurationError, match="changes that are not committed"):
        make_bake(root)


@pytest.mark.parametrize(
    ("file", "is_refused"),
    [
        ("roles/web/files/local.bin", True),
        ("roles/web/secret/deep/local.bin", True),
        ("playbooks/library/local.bin", True),
        ("roles/web/files/__pycache__/local.bin", False),
        ("roles/web/smoke/local.bin", False),
        ("roles/web/molecule/default/local.bin", False),
        ("inventories/test/local.bin", False),
    ],
)
@pytest.mark.parametrize("rule", ["*.bin", "secret/\n*.bin"])
def test_files_that_git_ignores_are_changes_where_they_are_baked(
    root: Path, rule: str, file: str, is_refused: bool
) -> None:
    write(root, {".gitignore": f"{rule}\n"})
    commit(root)
    write(root, {file: "x"})
    assert make_bake(root, is_dirty_allowed=True).is_dirty is is_refused
    if not is_refused:
        make_bake(root)
        return
    with pytest.raises(ConfigurationError, match="files that git ignores: ") as caught:
        make_bake(root)
    assert caught.value.message.endswith(file)

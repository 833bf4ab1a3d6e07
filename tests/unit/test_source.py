"""The service's source: which commit is meant, and what of it is exported."""

import os
import subprocess
import threading
from pathlib import Path

import pytest

from toolkit.cli import garbage
from toolkit.errors import ConfigurationError, NotFound
from toolkit.project.load import load_project
from toolkit.project.model import BaseSpec, Project
from toolkit.project.source import Checkout, checkout, digest_files
from toolkit.state import exclusive
from toolkit.workplace import Workplace

PATIENCE_S = 60


def git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    return subprocess.run(
        ["git", "-C", directory, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(directory: Path, files: dict[str, str] | None = None) -> str:
    for name, content in (files or {}).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--allow-empty", "--message=change")
    return git(directory, "rev-parse", "HEAD")


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    directory = tmp_path / "upstream"
    directory.mkdir()
    git(directory, "init", "--quiet", "--initial-branch=master")
    commit(directory, {"VERSION": "1\n", "src/app.py": "pass\n"})
    return directory


def fetched(upstream: Path, *, ref: str | None = None) -> Checkout:
    clones = upstream.parent / "sources"
    return checkout(upstream.as_uri(), ref, clones=clones, is_dirty_allowed=False)


def test_the_default_branch_of_a_url_is_what_it_is_now(upstream: Path) -> None:
    first = git(upstream, "rev-parse", "HEAD")
    assert fetched(upstream).commit == first
    git(upstream, "checkout", "--quiet", "-b", "main")
    second = commit(upstream)
    assert fetched(upstream).commit == second
    git(upstream, "branch", "--quiet", "--delete", "--force", "master")
    third = commit(upstream)
    assert fetched(upstream).commit == fetched(upstream, ref="HEAD").commit == third


def test_an_empty_ref_is_not_taken_for_none(upstream: Path) -> None:
    """A variable that is not set would bake whatever is checked out, changes unasked."""
    with pytest.raises(NotFound):
        checkout(str(upstream), "", clones=upstream.parent, is_dirty_allowed=False)


def test_a_url_may_be_on_no_branch(upstream: Path) -> None:
    fetched(upstream)
    git(upstream, "checkout", "--quiet", "--detach")
    alone = commit(upstream)
    assert fetched(upstream).commit == alone
    git(upstream, "checkout", "--quiet", "master")
    assert fetched(upstream).commit == git(upstream, "rev-parse", "master") != alone


def test_who_fetches_the_same_waits_and_removes_what_a_killed_one_left(upstream: Path) -> None:
    name = fetched(upstream).repository.name
    clones = upstream.parent / "again"
    (clones / f"{name}.partial-1").mkdir(parents=True)
    found: list[Checkout] = []

    def fetch() -> None:
        found.append(checkout(upstream.as_uri(), None, clones=clones, is_dirty_allowed=False))

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    with exclusive(clones / f"{name}.lock", doing="a test"):
        for thread in threads:
            thread.start()
        threads[0].join(1)
        assert found == []
        assert not (clones / name).exists()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [one.commit for one in found] == [git(upstream, "rev-parse", "HEAD")] * 2
    assert {path.name for path in clones.iterdir()} == {name, f"{name}.lock"}


def test_the_lock_of_the_store_says_what_is_done(tmp_path: Path) -> None:
    place = Workplace(tmp_path, tmp_path / "state")
    place.project = Project(tmp_path, "shop", str(tmp_path), BaseSpec("bookworm", None, ()), {})
    garbage.collect(place, keep_releases=1, keep_snapshots=1, is_dry_run=True)
    assert not (tmp_path / "state").exists()
    garbage.collect(place, keep_releases=1, keep_snapshots=1, is_dry_run=False)
    holder = (tmp_path / "state" / "bake.lock").read_text()
    assert holder.startswith("a garbage collection (process ")


def test_the_name_of_a_file_need_not_be_utf8(tmp_path: Path) -> None:
    names = [os.fsdecode(name) for name in (b"a-\xff", b"a-\xfe")]
    for name in names:
        (tmp_path / name).touch()
    one, other = (digest_files(tmp_path, [name]) for name in names)
    assert one != other


TOKEN = "s3cret-token"


@pytest.mark.parametrize(
    ("field", "url", "is_refused"),
    [
        ("source", f"https://me:{TOKEN}@git.example.com/shop.git", True),
        ("source", f"https://{TOKEN}:x-oauth-basic@git.example.com/shop.git", True),
        ("source", f"ssh://git:{TOKEN}@git.example.com:22/shop.git", True),
        ("source", f"https://:a@{TOKEN}@git.example.com", True),
        ("source", f"HTTPS://{TOKEN}@git.example.com/shop.git", True),
        ("base.mirror", f"deb http://{TOKEN}@mirror.example.com/debian bookworm main", True),
        ("base.mirror", f"deb http://me:{TOKEN}@mirror.example.com/debian bookworm main", True),
        ("source", "https://git.example.com:8443/a:b@c/shop.git", False),
        ("source", "ssh://git@git.example.com:22/shop.git", False),
        ("source", "git@git.example.com:shop.git", False),
        ("base.mirror", "http://[::1]:3142/debian", False),
    ],
)
def test_a_url_holds_no_password(tmp_path: Path, field: str, url: str, is_refused: bool) -> None:
    lines = {"source": "source: src", "base.mirror": "base: {}"}
    lines[field] = f"source: '{url}'" if field == "source" else f"base: {{mirror: '{url}'}}"
    (tmp_path / "roles" / "web").mkdir(parents=True)
    (tmp_path / "service.yml").write_text(
        "\n".join(["name: shop", *lines.values(), "roles: {web: {layers: [web], port: 80}}"])
    )
    if not is_refused:
        load_project(tmp_path)
        return
    with pytest.raises(
        ConfigurationError, match=f"service.yml:{field}: must hold no pass"
    ) as raised:
        load_project(tmp_path)
    assert "credential helper or an SSH agent" in raised.value.message
    assert TOKEN not in raised.value.message


@pytest.mark.parametrize("paths", [["."], [".", "VERSION"], ["VERSION", "./"], ["VERSION", "src"]])
@pytest.mark.parametrize("is_dirty", [False, True])
def test_every_path_is_exported(
    upstream: Path, tmp_path: Path, paths: list[str], is_dirty: bool
) -> None:
    if is_dirty:
        (upstream / "VERSION").write_text("2\n")
    source = checkout(str(upstream), None, clones=tmp_path, is_dirty_allowed=is_dirty)
    source.export(paths, tmp_path / "into")
    files = {str(p.relative_to(tmp_path / "into")) for p in (tmp_path / "into").rglob("*")}
    assert files == {"VERSION", "src", "src/app.py"}
    assert (tmp_path / "into" / "VERSION").read_text() == ("2\n" if is_dirty else "1\n")


@pytest.mark.parametrize("paths", [["."], ["libs"], ["libs/other"]])
@pytest.mark.parametrize("kind", ["submodule", "submodule, dirty", "untracked"])
def test_a_repository_within_the_source_is_refused(
    upstream: Path, tmp_path: Path, kind: str, paths: list[str]
) -> None:
    other = upstream / "libs" / "other"
    other.mkdir(parents=True)
    git(other, "init", "--quiet")
    commit(other, {"file": "x\n"})
    if kind != "untracked":
        commit(upstream)
    if kind != "submodule":
        (upstream / "VERSION").write_text("2\n")
    source = checkout(str(upstream), None, clones=tmp_path, is_dirty_allowed=True)
    assert source.is_dirty is (kind != "submodule")
    assert set(source.digests(["VERSION", "src"])) == {"VERSION", "src"}
    with pytest.raises(ConfigurationError, match="libs/other in the service's source is a repo"):
        source.digests(paths)

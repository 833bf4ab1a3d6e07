"""The service's source: a git repository, or a directory within one."""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from toolkit import shell
from toolkit.canonical import add_file
from toolkit.errors import ConfigurationError, LeaseHeld, NotFound
from toolkit.project.load import is_url
from toolkit.state import exclusive

GIT_TIMEOUT_S = 60.0
FETCH_TIMEOUT_S = 600.0
FETCH_POLL_S = 0.2

GITLINK = b"160000 "
"""The mode of a submodule in a tree: a commit, of which this repository has no files."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A source at one commit.

    Attributes:
        repository: Where git is run: a work tree or a bare clone.
        prefix: The source's directory within the repository, with a final `/`, or empty.
        commit: Full object name.
        is_dirty: Whether the work tree, with its uncommitted changes, is meant.
    """

    repository: Path
    prefix: str
    commit: str
    is_dirty: bool

    def digests(self, paths: Sequence[str]) -> dict[str, str]:
        """Return a digest of the content of each path: a file or a directory.

        Raises:
            ConfigurationError: A submodule, or another repository, is in one of them.
            NotFound: The source has no such path at this commit.
        """
        if self.is_dirty:
            return {path: self._work_tree_digest(path) for path in paths}
        return {path: self._committed_digest(path) for path in paths}

    def last_change(self, paths: Sequence[str]) -> str:
        """Return the newest commit, from this one backwards, that changed one of the paths."""
        inside = [self.prefix + ("" if path == "." else path) or "." for path in paths]
        log = _git(self.repository, "rev-list", "-1", self.commit, "--", *inside)
        return log.text.strip() or self.commit

    def export(self, paths: Sequence[str], into: Path) -> None:
        """Write the content of the paths below `into`, without anything of git's."""
        into.mkdir(parents=True, exist_ok=True)
        if self.is_dirty:
            listing = b"".join(os.fsencode(name) + b"\0" for p in paths for name in self._files(p))
            archive = _tar(
                "--create", "--null", "--files-from=-", cwd=self._directory, stdin=listing
            )
        else:
            # With any path, git exports no other; with "." it exports everything.
            inside = [] if "." in map(posixpath.normpath, paths) else paths
            archive = _git(
                self.repository,
                "archive",
                "--format=tar",
                f"{self.commit}:{self.prefix.rstrip('/')}",
                *inside,
            ).stdout
        _tar("--extract", "--no-same-owner", cwd=into, stdin=archive)

    @property
    def _directory(self) -> Path:
        return self.repository / self.prefix

    def _committed_digest(self, path: str) -> str:
        """Return the mode and the name of git's object; a program may lose its mode alone."""
        inside = posixpath.normpath(self.prefix + path)
        below = _git(
            self.repository, "ls-tree", "-r", "-z", "--full-tree", self.commit, "--", inside
        )
        for entry in below.stdout.split(b"\0"):
            if entry.startswith(GITLINK):
                raise _nested(os.fsdecode(entry.partition(b"\t")[2]))
        if inside == ".":
            return f"tree {_resolve(self.repository, self.commit, 'the source', kind='tree')}"
        listing = _git(self.repository, "ls-tree", "-z", "--full-tree", self.commit, "--", inside)
        if not listing.stdout:
            raise NotFound(f"the source has no {path!r} at commit {self.commit[:12]}")
        return listing.text.partition("\t")[0]

    def _files(self, path: str) -> list[str]:
        """Return the files that git tracks or would track, relative to the source."""
        listing = _git(
            self._directory,
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
            "--",
            path,
        )
        names = {os.fsdecode(name) for name in listing.stdout.split(b"\0") if name}
        return sorted(name for name in names if os.path.lexists(self._directory / name))

    def _work_tree_digest(self, path: str) -> str:
        names = self._files(path)
        for name in names:
            # Git lists a directory only where another repository begins.
            if (self._directory / name).is_dir() and not (self._directory / name).is_symlink():
                raise _nested(self.prefix + name.rstrip("/"))
        if not names:
            raise NotFound(f"the source has no {path!r} in its work tree")
        return digest_files(self._directory, names)


def checkout(source: str, ref: str | None, *, clones: Path, is_dirty_allowed: bool) -> Checkout:
    """Find a source at a commit.

    Args:
        source: Absolute path, or a URL that git can clone.
        ref: Branch, tag or commit; None for what is checked out (the default branch of a URL).
        clones: Where bare clones of URLs are kept.
        is_dirty_allowed: Whether uncommitted changes may be taken along.

    Raises:
        ConfigurationError: Not a git repository, or changes that are not committed.
        NotFound: No such ref.
        OutsideError: The URL cannot be fetched.
    """
    if is_url(source):
        repository, prefix = _fetch(source, clones), ""
    else:
        repository, prefix = _locate(source)
    commit = _resolve(repository, "HEAD" if ref is None else ref, source)
    is_dirty = False
    if ref is None and not is_url(source):
        is_dirty = has_changes(repository, [prefix or "."])
        if is_dirty and not is_dirty_allowed:
            raise ConfigurationError(
                f"{source} has changes that are not committed",
                hint="commit them, name a commit with --ref, or bake them with --allow-dirty",
            )
    return Checkout(repository, prefix, commit, is_dirty)


def project_commit(root: Path) -> str | None:
    """Return the commit of the project's own repository, or None when it is in none."""
    found = _git(root, "rev-parse", "--verify", "--quiet", "HEAD", is_checked=False)
    return found.text.strip() if found.exit_code == 0 else None


def has_changes(repository: Path, paths: Sequence[str]) -> bool:
    """Whether files at the paths differ from what is committed, or are not tracked."""
    existing = [path for path in paths if (repository / path).exists()]
    return bool(_git(repository, "status", "--porcelain", "--", *existing).text.strip())


def ignored_files(repository: Path, paths: Sequence[str]) -> list[str]:
    """Return files at the paths that git is told to ignore; a directory that is one ends in `/`."""
    listing = _git(
        repository, "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--", *paths
    )
    return sorted(os.fsdecode(name) for name in listing.stdout.split(b"\0") if name)


def digest_files(directory: Path, names: Sequence[str]) -> str:
    """Return a digest over names, modes that git knows, and content of files."""
    total = hashlib.sha256()
    for name in names:
        path = directory / name
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            kind, content = "link", os.fsencode(path.readlink())
        else:
            kind, content = ("exec" if mode & 0o100 else "file"), path.read_bytes()
        add_file(total, kind, name, content)
    return total.hexdigest()


def _nested(path: str) -> ConfigurationError:
    return ConfigurationError(
        f"{path} in the service's source is a repository of its own, whose files git does not have",
        hint="put the files themselves there, or let no 'source' of a layer in service.yml name it",
    )


def _locate(source: str) -> tuple[Path, str]:
    directory = Path(source)
    if not directory.is_dir():
        raise ConfigurationError(
            f"the service's source {source} is not a directory",
            hint="set 'source' in service.yml to a path or a git URL",
        )
    found = _git(directory, "rev-parse", "--show-toplevel", "--show-prefix", is_checked=False)
    if found.exit_code != 0:
        raise ConfigurationError(
            f"the service's source {source} is not in a git repository",
            hint="an image is traced back to a commit: run git init and commit the source",
        )
    top, _, prefix = found.text.rstrip("\n").partition("\n")
    return Path(top), prefix


def _fetch(url: str, clones: Path) -> Path:
    """Return a bare clone of what is at the URL now; others that fetch it wait for each other."""
    clone = clones / hashlib.sha256(url.encode()).hexdigest()[:16]
    with _alone(clone.with_name(f"{clone.name}.lock")):
        # Of one that was killed while it cloned.
        for path in clones.glob(f"{clone.name}.partial*"):
            shutil.rmtree(path)
        if clone.exists():
            _git(clone, "fetch", "--quiet", "--prune", "--tags", "--force", "origin",
                 "+refs/heads/*:refs/heads/*", timeout_s=FETCH_TIMEOUT_S)  # fmt: skip
            _follow_default_branch(clone)
        else:
            partial = clone.with_name(f"{clone.name}.partial")
            _git(clones, "clone", "--quiet", "--bare", "--", url, str(partial),
                 timeout_s=FETCH_TIMEOUT_S)  # fmt: skip
            partial.rename(clone)
    return clone


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    deadline = time.monotonic() + FETCH_TIMEOUT_S
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(exclusive(lock, doing="a fetch of the source"))
                break
            except LeaseHeld:
                if time.monotonic() > deadline:
                    raise
            time.sleep(FETCH_POLL_S)
        yield


def _follow_default_branch(clone: Path) -> None:
    """Let HEAD be what it is at the origin, which git sets in a clone only once."""
    listing = _git(clone, "ls-remote", "--symref", "origin", "HEAD", timeout_s=FETCH_TIMEOUT_S)
    found = [line.partition("\t") for line in listing.text.splitlines()]
    heads = [left for left, _, right in found if right == "HEAD"]
    branch = next((head[5:] for head in heads if head.startswith("ref: ")), None)
    if branch:
        _git(clone, "symbolic-ref", "HEAD", branch)
    elif heads:
        # On no branch there, so that no branch may have brought it.
        _git(clone, "fetch", "--quiet", "origin", "HEAD", timeout_s=FETCH_TIMEOUT_S)
        _git(clone, "update-ref", "--no-deref", "HEAD", "FETCH_HEAD")


def _resolve(repository: Path, ref: str, source: str, *, kind: str = "commit") -> str:
    if ref.startswith("-"):
        raise ConfigurationError(f"{ref!r} is not a branch, tag or commit")
    found = _git(
        repository, "rev-parse", "--verify", "--quiet", f"{ref}^{{{kind}}}", is_checked=False
    )
    if found.exit_code != 0:
        raise NotFound(
            f"{source} has no commit {ref!r}", hint="name a branch, a tag or a commit that exists"
        )
    return found.text.strip()


def _git(
    directory: Path, *arguments: str, timeout_s: float = GIT_TIMEOUT_S, is_checked: bool = True
) -> shell.Completed:
    """Run git; a clone may need the operator's own keys, hence HOME and the agent's socket."""
    passed = {
        n: os.environ[n] for n in ("HOME", "SSH_AUTH_SOCK", "GIT_SSL_CAINFO") if n in os.environ
    }
    return shell.run(
        # The operator may own the files while root runs the toolkit.
        ["git", "-c", "safe.directory=*", "-C", directory, *arguments],
        env=shell.environment(GIT_TERMINAL_PROMPT="0", GIT_OPTIONAL_LOCKS="0", **passed),
        timeout_s=timeout_s,
        is_checked=is_checked,
        max_output_bytes=None,
    )


def _tar(*arguments: str, cwd: Path, stdin: bytes) -> bytes:
    done = shell.run(
        ["tar", *arguments],
        env=shell.environment(),
        timeout_s=GIT_TIMEOUT_S,
        stdin=stdin,
        cwd=cwd,
        max_output_bytes=None,
    )
    return done.stdout

"""A project of its own, made out of this repository, with the example service in several versions.

    DIRECTORY/project/     service.yml, roles/, inventories/ and the like: a git repository
    DIRECTORY/guestbook/   the service's source: another one

Both have the tags `v1` and `v2`, and are left at `v2`. The source has three more tags, one for each
version that is broken on purpose. Commits are made with a fixed author and time: the same files
give the same commits, and therefore the same releases.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit import shell
from toolkit.errors import ConfigurationError

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT_PARTS = (
    "service.yml",
    "leak-exceptions.yml",
    "roles",
    "playbooks",
    "inventories",
    ".gitignore",
)
SOURCE = "examples/guestbook"

GENERATED = ("vault.yml", "authority.pem")
"""Made by `toolkit secrets init`; they belong to one state directory's keys."""

DOES_NOT_START = "v3-does-not-start"
ANSWERS_500 = "v3-answers-500"
NO_DATABASE = "v3-no-database"
BROKEN = (DOES_NOT_START, ANSWERS_500, NO_DATABASE)

GIT_TIMEOUT_S = 30.0
STAMP = "origin"


@dataclass(frozen=True, slots=True)
class Edit:
    """Replaces a text that occurs exactly once in a file."""

    file: str
    old: str
    new: str

    def apply(self, root: Path) -> None:
        """Change the file below `root`.

        Raises:
            ConfigurationError: The text is not there, or more than once.
        """
        path = root / self.file
        text = path.read_text() if path.is_file() else ""
        if text.count(self.old) != 1:
            raise ConfigurationError(
                f"{path}: {self.old.strip()!r} is there {text.count(self.old)} times, not once",
                hint=f"the example changed: mend its versions in {Path(__file__).name}",
            )
        path.write_text(text.replace(self.old, self.new))


_VERSION_3 = Edit("VERSION", "2\n", "3\n")

SOURCE_EDITS: Mapping[str, tuple[Edit, ...]] = {
    "v2": (
        Edit("VERSION", "1\n", "2\n"),
        Edit("guestbook/page.py", 'ACCENT = "#2563eb"', 'ACCENT = "#c2410c"'),
    ),
    DOES_NOT_START: (
        _VERSION_3,
        Edit(
            "guestbook/__main__.py", "import uvicorn\n", "import uvicorn_of_tomorrow as uvicorn\n"
        ),
    ),
    # Both of these answer the balancer's health check, as the good versions do.
    ANSWERS_500: (
        _VERSION_3,
        Edit("guestbook/page.py", "accent=ACCENT,", "accent=settings.accent,"),
    ),
    NO_DATABASE: (
        _VERSION_3,
        Edit("guestbook/settings.py", "database_port=int(port),", "database_port=int(port) + 1,"),
    ),
}
"""From v1 to v2, and from v2 to each of the others."""

PROJECT_EDITS = (
    Edit(
        "roles/web/templates/nginx.conf.j2",
        "        add_header X-Served-By @{machine} always;\n",
        "        add_header X-Served-By @{machine} always;\n"
        "        add_header X-Web-Version 2 always;\n",
    ),
)
"""From v1 to v2: web machines take nothing from the source, so it is their role that changes."""


@dataclass(frozen=True, slots=True)
class ScratchProject:
    """A project that may be changed at will.

    Attributes:
        root: Its directory.
        source: The service's source.
    """

    root: Path
    source: Path

    def check_out(self, version: str) -> None:
        """Set the project, not the source, to a version: `v1`, or anything else for `v2`."""
        git(self.root, "checkout", "--quiet", "v1" if version == "v1" else "main")

    def commit(self, message: str) -> str:
        """Commit everything in the project and return the commit."""
        return commit_all(self.root, message)

    def environment_file(self, environment: str) -> Path:
        """Return the definition of an environment."""
        return self.root / "inventories" / environment / "toolkit.yml"

    def authority(self, environment: str) -> Path:
        """Return the certificate that clients of an environment trust."""
        return self.root / "inventories" / environment / "authority.pem"

    def public(self, environment: str) -> str:
        """Return `address:port` where the outside world reaches an environment.

        Raises:
            ConfigurationError: It is not said in the definition.
        """
        file = self.environment_file(environment)
        found = re.search(r'public"?: "([^"]+)"', file.read_text())
        if not found:
            raise ConfigurationError(f"{file}: no role is public")
        return found[1]


def make_project(directory: Path, *, ports: Mapping[str, int] | None = None) -> ScratchProject:
    """Make the project and the source below a directory, which must not have them yet.

    Args:
        directory: Where; made when missing.
        ports: Environment to its public port on 127.0.0.1; as in this repository when left out.

    Raises:
        ConfigurationError: What a version changes is no longer in the example.
    """
    project, source = directory / "project", directory / "guestbook"
    project.mkdir(parents=True)
    for part in PROJECT_PARTS:
        _copy(REPOSITORY / part, project / part)
    Edit("service.yml", f"source: {SOURCE}\n", "source: ../guestbook\n").apply(project)
    made = ScratchProject(project, source)
    for environment, port in (ports or {}).items():
        Edit(
            str(made.environment_file(environment).relative_to(project)),
            f'"{made.public(environment)}"',
            f'"127.0.0.1:{port}"',
        ).apply(project)
    initialise(project)
    commit_all(project, "Version 1", tag="v1")
    for edit in PROJECT_EDITS:
        edit.apply(project)
    commit_all(project, "Version 2", tag="v2")
    _copy(REPOSITORY / SOURCE, source)
    initialise(source)
    commit_all(source, "Version 1", tag="v1")
    for version, edits in SOURCE_EDITS.items():
        git(source, "checkout", "--quiet", "main" if version == "v2" else "v2")
        for edit in edits:
            edit.apply(source)
        commit_all(source, f"Version {version[1:]}", tag=version)
    git(source, "checkout", "--quiet", "main")
    (directory / STAMP).write_text(_origin())
    return made


def ensure_project(
    directory: Path, *, ports: Mapping[str, int]
) -> tuple[ScratchProject, Path | None]:
    """Return the project below a directory, made anew when this repository has changed since.

    An older one that somebody worked on is kept beside it; secrets and ports move to the new one.

    Args:
        directory: Where.
        ports: As for `make_project`; for environments of a project that was not there before.

    Returns:
        The project, and where an older one is kept.
    """
    project = ScratchProject(directory / "project", directory / "guestbook")
    stamp = directory / STAMP
    if stamp.is_file() and stamp.read_text() == _origin():
        return project, None
    if not project.root.exists():
        shutil.rmtree(directory, ignore_errors=True)
        return make_project(directory, ports=ports), None
    kept = {name: int(project.public(name).rpartition(":")[2]) for name in ports}
    aside = next(
        path
        for number in range(1, 1000)
        if not (path := directory.with_name(f"{directory.name}-{number}")).exists()
    )
    directory.rename(aside)
    made = make_project(directory, ports=kept)
    for name in GENERATED:
        for file in (aside / "project" / "inventories").rglob(name):
            target = made.root / file.relative_to(aside / "project")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
    if all(_is_untouched(aside / name) for name in ("project", "guestbook")):
        shutil.rmtree(aside)
        return made, None
    return made, aside


def free_port(preferred: int | None = None) -> int:
    """Return a port on 127.0.0.1 that nobody listens on: the preferred one where possible."""
    for port in (preferred, 0) if preferred else (0,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            number: int = probe.getsockname()[1]
            return number
    raise ConfigurationError("there is no free port on 127.0.0.1")


def git(directory: Path, *arguments: str) -> str:
    """Run git in a directory, as an author and at a time that never change; return its output."""
    return shell.run(
        ["git", "-c", "safe.directory=*", "-C", directory, *arguments],
        env=shell.environment(
            GIT_CONFIG_GLOBAL="/dev/null",
            GIT_CONFIG_SYSTEM="/dev/null",
            GIT_AUTHOR_NAME="Example",
            GIT_AUTHOR_EMAIL="example@localhost",
            GIT_AUTHOR_DATE="2024-01-01T00:00:00Z",
            GIT_COMMITTER_NAME="Example",
            GIT_COMMITTER_EMAIL="example@localhost",
            GIT_COMMITTER_DATE="2024-01-01T00:00:00Z",
        ),
        timeout_s=GIT_TIMEOUT_S,
    ).text.strip()


def initialise(directory: Path) -> None:
    """Make a directory a git repository."""
    git(directory, "init", "--quiet", "--initial-branch=main")
    # For whoever goes on from here on a machine where git does not know them.
    git(directory, "config", "user.name", "Example")
    git(directory, "config", "user.email", "example@localhost")


def commit_all(directory: Path, message: str, *, tag: str | None = None) -> str:
    """Commit everything in a repository, tag it, and return the commit."""
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message", message)
    if tag:
        git(directory, "tag", tag)
    return git(directory, "rev-parse", "HEAD")


def _is_untouched(directory: Path) -> bool:
    """Whether nobody worked on a repository since it was made."""
    tips = {git(directory, "rev-parse", name) for name in ("main", "v2")}
    return len(tips) == 1 and not git(directory, "status", "--porcelain")


def _copy(origin: Path, target: Path) -> None:
    if origin.is_dir():
        ignored = shutil.ignore_patterns("__pycache__", *GENERATED)
        shutil.copytree(origin, target, ignore=ignored)
    else:
        shutil.copy2(origin, target)


def _origin() -> str:
    """Return a digest of everything that a project is made from."""
    total = hashlib.sha256(Path(__file__).read_bytes())
    for path in _files():
        total.update(f"{path.relative_to(REPOSITORY)} {path.stat().st_mode & 0o100}\n".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def _files() -> Iterator[Path]:
    for part in (*PROJECT_PARTS, SOURCE):
        path = REPOSITORY / part
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (
            one
            for one in found
            if one.is_file() and one.name not in GENERATED and "__pycache__" not in one.parts
        )

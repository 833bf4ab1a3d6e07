"""Bad input: exit code 2, a message that names file and field, and nothing changed."""

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.command import Answer, Toolkit
from examples.versions import git
from tests.support.site import Site
from tests.support.traces import leftovers, namespaces

pytestmark = pytest.mark.host

NOBODY = 65534
ENVIRONMENT = "development"


@pytest.fixture(scope="module")
def site(new_site: Callable[..., Site]) -> Site:
    """Images and secrets, but an environment that is not up."""
    site = new_site()
    site.bake("v1")
    site.toolkit.result("secrets", "init", ENVIRONMENT)
    site.toolkit.result("status", ENVIRONMENT)
    return site


@pytest.fixture
def project(site: Site, tmp_path: Path) -> Path:
    """A copy of the project, to be spoiled."""
    copy = tmp_path / "project"
    shutil.copytree(site.project.root, copy)
    return copy


def listing(site: Site) -> dict[str, tuple[int, int]]:
    """Return what is in the state directory; the ledger counts by its entries."""
    with contextlib.closing(sqlite3.connect(site.state / "ledger.db")) as ledger:
        (entries,) = ledger.execute("SELECT count(*) FROM entries").fetchone()
    found = {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in site.state.rglob("*")
        if path.is_file() and not path.name.startswith(("ledger.db", "bake.lock"))
    }
    return found | {"ledger": (entries, 0)}


def refused(site: Site, *words: str | Path, project: Path | None = None) -> str:
    """Run a command that must be refused; return the message."""
    before = listing(site)
    toolkit = Toolkit(project or site.project.root, site.state)
    answer = toolkit.run(*words)
    assert answer.exit_code == 2, (answer.stdout, answer.stderr)
    assert answer.stdout == ""
    assert list(answer.error) == ["error", "hint", "exit_code"]
    assert answer.error["exit_code"] == 2
    assert "Traceback" not in answer.stderr
    assert listing(site) == before
    assert leftovers(site.state, site.state_id, [], ENVIRONMENT) == []
    message: str = answer.error["error"]
    return message


SPOILED_SERVICE = {
    "malformed": ("roles:\n", "roles: [\n", [":", "not YAML"]),
    "unknown key": ("name: guestbook\n", "name: guestbook\ncolour: red\n",
                    [":colour: unknown key"]),
    "unknown key in a role": ("    port: 5432\n", "    port: 5432\n    prot: tcp\n",
                              [":roles.database.prot: unknown key"]),
    "wrong type": ("    port: 5432\n", "    port: many\n", [":roles.database.port: "]),
    "missing key": ("name: guestbook\n", "", [":name: is missing"]),
    "missing role directory": ("layers: [base, database]", "layers: [base, absent]",
                               [":roles.database.layers.1.role: ", "roles/absent"]),
    "unknown role used": ("uses: [database]", "uses: [archive]", [":roles.app.uses: ", "archive"]),
    "missing source": ("source: ../guestbook", "source: ../absent", ["absent"]),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED_SERVICE)
def test_a_spoiled_service_file(case, site, project):
    old, new, named = SPOILED_SERVICE[case]
    file = project / "service.yml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    # Unless the file itself is refused, its being changed must not be.
    message = refused(site, "bake", "--allow-dirty", project=project)
    if case != "missing source":
        assert f"{file}:" in message
    for part in named:
        assert part in message, message


def test_an_error_for_people(site, project):
    (project / "service.yml").write_text("name: [\n")
    answer = Toolkit(project, site.state).run("bake", is_json=False)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert answer.stderr.startswith(f"error: {project / 'service.yml'}:")
    assert "Traceback" not in answer.stderr


def test_everything_wrong_with_a_file_is_said_at_once(site, project):
    file = project / "service.yml"
    text = file.read_text().replace("port: 5432", "port: many")
    file.write_text(f"colour: red\n{text}")
    message = refused(site, "bake", project=project)
    assert f"{file}:colour: unknown key" in message
    assert f"{file}:roles.database.port: " in message
    assert "many" not in message, "what was written may be a secret"


SPOILED_ENVIRONMENT = {
    "malformed": ("roles:\n", "roles: {\n", ["not YAML"]),
    "unknown key": ("machines: 1}", "machines: 1, colour: red}",
                    [":roles.database.colour: unknown key"]),
    "too many machines": ("database: {machines: 1}", "database: {machines: 2}",
                          [":roles.database.machines: "]),
    "unknown role": ("roles:\n", "roles:\n  archive: {machines: 1}\n", [":roles.archive: "]),
    "not IPv4": ('public: "127.0.0.1:', 'public: "::1:', [":roles.web.public: "]),
    "not loopback": ('public: "127.0.0.1:', 'public: "192.0.2.1:', [":roles.web.public: "]),
    "bad network": ("network: 10.90.0.0/24", "network: 10.90.0.0/30", [":network: "]),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED_ENVIRONMENT)
def test_a_spoiled_environment(case, site, project):
    old, new, named = SPOILED_ENVIRONMENT[case]
    file = project / "inventories" / ENVIRONMENT / "toolkit.yml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    message = refused(site, "up", ENVIRONMENT, project=project)
    for part in [f"{file}:", *named]:
        assert part in message, message


UNKNOWN = {
    "role to bake": (["bake", "archive"], "archive"),
    "ref": (["bake", "--ref", "no-such-branch"], "no-such-branch"),
    "image": (["images", "show", "123456789abc"], "123456789abc"),
    "image by too few digits": (["images", "show", "12345"], "give 6 digits or more"),
    "image to assemble": (["images", "disk", "123456789abc", "/nowhere/disk.raw"], "123456789abc"),
    "environment to start": (["up", "moon"], "moon"),
    "environment to roll": (["roll", "moon"], "moon"),
    "environment to observe": (["status", "moon"], "moon"),
    "role to roll": (["roll", ENVIRONMENT, "archive"], "archive"),
    "role to plan": (["plan", ENVIRONMENT, "archive"], "archive"),
    "digest": (["roll", ENVIRONMENT, "app", "--image", "f" * 64], "f" * 64),
    "release": (["roll", ENVIRONMENT, "--release", "r-123456789abc"], "r-123456789abc"),
    "option": (["bake", "--fast"], "--fast"),
    "command": (["cook"], "cook"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_does_not_exist(case, site):
    words, named = UNKNOWN[case]
    assert named in refused(site, *words)


@pytest.mark.parametrize("command", ["roll", "plan", "smoke"])
def test_an_environment_that_is_not_up(command, site):
    message = refused(site, command, ENVIRONMENT)
    assert ENVIRONMENT in message
    assert "not up" in message


@pytest.mark.parametrize("words", [[], ["images"], ["secrets"]])
def test_too_few_words_get_the_help(words):
    program = Path(sys.executable).with_name("toolkit")
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: toolkit")


def test_history_of_an_environment_tells_of_its_secrets(site):
    (entry,) = site.toolkit.result("history", ENVIRONMENT, "--limit", "1")
    assert (entry["kind"], entry["environment"]) == ("secrets-made", ENVIRONMENT)
    text = site.toolkit.run("history", ENVIRONMENT, "--limit", "1", is_json=False).stdout
    assert "app database_password (version 1)" in text


def test_an_image_needs_a_role(site):
    assert "ROLE" in refused(site, "roll", ENVIRONMENT, "--image", "123456789abc")


def test_a_directory_that_is_no_project(site, tmp_path):
    assert f"{tmp_path / 'service.yml'}" in refused(site, "bake", project=tmp_path)


def test_a_public_port_that_is_taken(site):
    address, _, port = site.project.public(ENVIRONMENT).rpartition(":")
    with socket.create_server((address, int(port))):
        answer = site.toolkit.run("up", ENVIRONMENT)
    assert answer.exit_code == 2
    file = site.project.environment_file(ENVIRONMENT)
    expected = f"{file}:roles.web.public: port {port} on {address} is already taken"
    assert answer.error["error"] == expected
    assert leftovers(site.state, site.state_id, [], ENVIRONMENT) == []
    assert namespaces(site.state_id) == set()
    assert "not up" in refused(site, "roll", ENVIRONMENT)


def test_a_dirty_tree_is_refused_or_recorded(site):
    page = site.project.source / "guestbook" / "page.py"
    text = page.read_text()
    page.write_text(text.replace("#c2410c", "#15803d"))
    try:
        message = refused(site, "bake", "app")
        assert str(site.project.source) in message
        assert "not committed" in message
        explained = site.toolkit.result("bake", "--explain", "app", "--allow-dirty")
        assert not explained["app"][-1]["reused"]
        # A role whose layers take nothing from the source, and are there: the record is the point.
        baked = site.toolkit.result("bake", "database", "--allow-dirty")
    finally:
        git(site.project.source, "checkout", "--quiet", ".")
    assert baked["dirty"] is True
    assert baked["commit"] == git(site.project.source, "rev-parse", "HEAD")
    shown = site.toolkit.result("images", "show", baked["images"]["database"])
    assert shown["manifest"]["source"]["dirty"] is True
    assert shown["digest"] != site.image("v1", "database")
    (entry,) = site.toolkit.result("history", "--limit", "1")
    assert (entry["kind"], entry["data"]["dirty"]) == ("release.baked", True)


def test_a_dirty_role_is_refused(site, project):
    defaults = project / "roles" / "app" / "defaults" / "main.yml"
    defaults.write_text(f"{defaults.read_text()}# changed\n")
    (project.parent / "guestbook").symlink_to(site.project.source)
    message = refused(site, "bake", "app", project=project)
    assert str(project) in message
    assert "not committed" in message


@pytest.fixture
def readable_project(site: Site):
    """A copy of the project and a state directory that nobody in particular may use."""
    directory = Path(tempfile.mkdtemp(prefix="toolkit-nobody-"))
    try:
        shutil.copytree(site.project.root, directory / "project", ignore=ignored_by_nobody)
        shutil.copytree(site.project.source, directory / "guestbook")
        for path in (directory, *directory.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (directory / "state").mkdir()
        os.chown(directory / "state", NOBODY, NOBODY)
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    "words",
    [["bake"], ["up", ENVIRONMENT], ["roll", ENVIRONMENT], ["down", ENVIRONMENT], ["status"],
     ["secrets", "init", ENVIRONMENT], ["gc"]],
)  # fmt: skip
def test_a_state_directory_of_another_service(words, site, project):
    """Its machines, images and passwords would pass for this one's: roles have the same names."""
    service = project / "service.yml"
    service.write_text(service.read_text().replace("name: guestbook", "name: other", 1))
    message = refused(site, *words, project=project)
    assert message.endswith("belongs to the service guestbook, and this project is other")


def ignored_by_nobody(_directory: str, names: list[str]) -> set[str]:
    return {name for name in names if name in {"vault.yml", "authority.pem"}}


@pytest.mark.parametrize(
    "words",
    [["bake"], ["up", ENVIRONMENT], ["roll", ENVIRONMENT], ["down", ENVIRONMENT], ["status"]],
)
def test_not_root(words, readable_project):
    answer = as_nobody(readable_project, *words)
    assert answer.exit_code == 2, answer.stderr
    assert "root" in answer.error["error"]
    assert answer.error["hint"]
    assert list((readable_project / "state").iterdir()) == []


def as_nobody(directory: Path, *words: str) -> Answer:
    prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return Toolkit(directory / "project", directory / "state", prefix=prefix).run(*words)


@pytest.mark.parametrize(
    "words",
    [["images", "list"], ["history"], ["bake", "--explain"], ["secrets", "list", ENVIRONMENT]],
)
def test_state_directory_of_another_user(words, readable_project):
    """Not even that it is empty is said of what cannot be read."""
    os.chown(readable_project / "state", 0, 0)
    (readable_project / "state").chmod(0o700)
    answer = as_nobody(readable_project, *words)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert str(readable_project / "state") in answer.error["error"]
    assert "sudo" in answer.error["hint"]


def test_doctor_and_help_need_no_state_directory(readable_project):
    os.chown(readable_project / "state", 0, 0)
    (readable_project / "state").chmod(0o700)
    answer = as_nobody(readable_project, "doctor")
    found = {one["id"]: one["status"] for one in answer.data["checks"]}
    assert answer.exit_code == 3
    assert found["root"] == "missing"
    assert as_nobody(readable_project, "bake", "--help").exit_code == 0

"""What `toolkit doctor` makes of what it finds, and that it finds it on this very host."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from toolkit.cli.main import cli
from toolkit.doctor import checks, needs, probe
from toolkit.doctor.checks import Check, Status
from toolkit.doctor.needs import Tool

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("mkfs.erofs 1.5\nusage: [options] FILE", (1, 5)),
        ("mkfs.erofs (erofs-utils) 1.8.6", (1, 8, 6)),
        ("systemd 252 (252.39-1~deb12u2)\n+PAM", (252,)),
        ("HAProxy version 2.6.12-1+deb12u4 2026/10/17", (2, 6, 12)),
        ("ip utility, iproute2-6.1.0, libbpf 1.1.2", (6, 1, 0)),
        ("tar (GNU tar) 1.34", (1, 34)),
        ("mmdebstrap v1.5.7", (1, 5, 7)),
        ("6.1.0-38-amd64", (6, 1, 0)),
        ("no number here, x86_64 aside", None),
    ],
)
def test_version_is_found_in_what_programs_print(text, version):
    assert checks.parse_version(text) == version


@pytest.mark.parametrize(
    ("output", "is_met", "found"),
    [
        ("tool 1.10", True, "1.10"),
        ("tool 1.5", True, "1.5"),
        ("tool 1.4.9", False, "1.4.9, but 1.5 is needed"),
        ("Usage: tool", False, "does not tell its version; 1.5 is needed"),
        (None, False, "not installed"),
    ],
)
def test_tool_is_judged_by_its_version(output, is_met, found):
    check = checks.judge_tool(Tool("tool", "tool-package", minimum=(1, 5)), output)
    assert (check.is_met, check.found) == (is_met, found)
    assert check.status is (Status.OK if is_met else Status.MISSING)
    assert check.packages == (() if is_met else ("tool-package",))
    assert bool(check.hint) is not is_met


def test_lack_of_an_optional_tool_is_a_warning_that_says_what_it_is_for():
    check = checks.judge_tool(Tool("tool", "tool-package", "'toolkit images disk'"), None)
    assert check.status is Status.WARNING
    assert check.hint == "install tool-package, for 'toolkit images disk'"
    assert checks.is_fit([check])


def test_empty_file_is_as_good_as_none():
    file = needs.HostFile("ca", "CA", "/etc/ca.crt", "ca-certificates")
    assert [checks.judge_file(file, size).is_met for size in (None, 0, 1)] == [False, False, True]


@pytest.mark.parametrize(
    ("release", "is_met"),
    [("5.13.19-2-pve", False), ("5.14.0", True), ("6.1.0-38-amd64", True), ("unknown", False)],
)
def test_kernel_is_judged_by_its_release(release, is_met):
    assert checks.judge_kernel(release).is_met is is_met


@pytest.mark.parametrize(
    ("is_registered", "is_module", "has_kmod", "is_met", "packages"),
    [
        (True, False, False, True, ()),
        (False, True, True, True, ()),
        (False, True, False, False, ("kmod",)),
        (False, False, True, False, ()),
    ],
)
def test_file_system_may_be_a_module(is_registered, is_module, has_kmod, is_met, packages):
    check = checks.judge_file_system(
        "erofs", is_registered=is_registered, is_module=is_module, has_kmod=has_kmod
    )
    assert (check.is_met, check.packages, bool(check.hint)) == (is_met, packages, not is_met)


@pytest.mark.parametrize(
    ("is_unified", "is_hybrid", "is_writable", "is_met"),
    [
        (True, False, True, True),
        (False, True, True, True),
        (False, False, True, False),
        (True, False, False, False),
    ],
)
def test_control_groups_are_unified_or_hybrid_and_writable(
    is_unified, is_hybrid, is_writable, is_met
):
    check = checks.judge_cgroups(
        is_unified=is_unified, is_hybrid=is_hybrid, is_writable=is_writable
    )
    assert (check.is_met, bool(check.hint)) == (is_met, not is_met)


@pytest.mark.parametrize(
    ("limit", "status", "found"),
    [(128, Status.OK, "128, enough for 32 machines"), (64, Status.WARNING, "64, enough for 16")],
)
def test_inotify_bounds_how_many_machines_a_host_has(limit, status, found):
    check = checks.judge_inotify(limit)
    assert check.status is status
    assert check.found.startswith(found)
    assert bool(check.hint) is (status is not Status.OK)


@pytest.mark.parametrize(
    ("gib", "status"), [(2.9, Status.MISSING), (3, Status.WARNING), (9.9, "warning"), (10, "ok")]
)
def test_room_has_a_bound_that_is_needed_and_one_that_is_advised(gib, status):
    check = checks.judge_room(
        "disk",
        "disk",
        int(gib * needs.GIB),
        needed_bytes=needs.DISK_NEEDED_BYTES,
        advised_bytes=needs.DISK_ADVISED_BYTES,
        hint="make room",
    )
    assert check.status == status
    assert check.hint == (None if status == "ok" else "make room")


@pytest.mark.parametrize(
    ("version", "is_met"),
    [((3, 10, 9), False), ((3, 11, 0), True), ((3, 13, 5), True), ((3, 14, 0), False)],
)
def test_python_is_judged_by_its_minor_version(version, is_met):
    assert checks.judge_python(version).is_met is is_met


def test_one_command_installs_everything_that_is_missing():
    def check(name, *packages, is_met=False):
        return Check(name, name, True, is_met, found="", packages=packages)

    lacks = [check("a", "zlib", "binutils"), check("b", "binutils"), check("c", "x", is_met=True)]
    assert checks.install_command(lacks) == "apt-get install binutils zlib"
    assert checks.install_command(lacks[2:]) is None
    assert not checks.is_fit(lacks)


def test_program_that_is_not_on_the_host_is_not_found():
    assert not probe._tool(Tool("no-such-program-of-any-package", "none")).is_met


@pytest.mark.parametrize(
    ("place", "status"), [("/proc/version", "ok"), ("/proc/no-such-file", "missing")]
)
def test_files_are_looked_for_on_the_disk(place, status):
    size = probe._size_bytes(Path(place))
    # Files of /proc have no size: what counts here is whether they are there.
    assert (size is not None) is (status == "ok")


def test_this_host_is_examined_without_leaving_anything(tmp_path):
    started = time.monotonic()
    found = probe.examine(tmp_path / "state")
    seconds = time.monotonic() - started
    assert seconds < probe.TOOL_TIMEOUT_S, "a check hangs"
    assert [one.id for one in found if one.is_met and one.hint] == []
    assert [one.id for one in found if not one.is_met and not one.hint] == []
    assert len({one.id for one in found}) == len(found)
    assert {one.id for one in found} >= {tool.program for tool in needs.TOOLS}
    by_id = {one.id: one for one in found}
    assert by_id["python"].found == ".".join(map(str, sys.version_info[:3]))
    assert by_id["root"].is_met is (os.geteuid() == 0)
    assert not list(tmp_path.iterdir())
    assert not list(Path("/run/netns").glob(f"tkdoctor-{os.getpid()}-*"))


def test_packages_of_the_table_are_those_that_setup_installs():
    listed = (ROOT / ".ci/host-packages").read_text().splitlines()
    installed = {line.partition("#")[0].strip() for line in listed}
    essential = {"dpkg", "tar", "util-linux", "mount"}  # part of every Debian
    wanted = {one.package for one in (*needs.TOOLS, *needs.FILES)}
    assert wanted - essential <= installed


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root, so needs it first")
def test_without_root_it_reports_instead_of_failing(tmp_path):
    program = (
        "import json, os, sys; from pathlib import Path; from toolkit.doctor import probe;"
        # The first look imports what it needs while the interpreter's own files can be read.
        "probe.examine(Path(sys.argv[1]));"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "print(json.dumps({c.id: c.status for c in probe.examine(Path(sys.argv[1]))}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "not" / "mine"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    statuses = json.loads(done.stdout)
    assert (statuses["root"], statuses["network"]) == ("missing", "warning")


def test_command_prints_every_check_and_its_exit_code_says_whether_the_host_is_fit(tmp_path):
    def run(*arguments):
        order = ["--state", str(tmp_path), "doctor", *arguments]
        return CliRunner().invoke(cli, order, standalone_mode=False)

    as_json = run("--json")
    data = json.loads(as_json.stdout)
    assert data["fit"] is all(one["status"] != "missing" for one in data["checks"])
    assert as_json.return_value == (0 if data["fit"] else 3)
    text = run()
    assert text.return_value == as_json.return_value
    marks = [line[0] for line in text.stdout.splitlines() if line[:1] in {"✓", "!", "✗"}]
    assert len(marks) == len(data["checks"])
    assert not list(tmp_path.iterdir()), "looking must not make a state directory"

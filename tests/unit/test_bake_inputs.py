"""What of a project and its source makes a layer be built again, and under which name."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.bake import inputs
from toolkit.errors import ConfigurationError
from toolkit.project.model import BaseSpec, LayerSpec, Project, RoleSpec
from toolkit.project.source import Checkout, checkout

PLAYBOOK = """\
- hosts: all
  roles:
    - role: "{{ toolkit_role }}"
"""


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root = tmp_path / "project"
    write(
        root,
        {
            "playbooks/bake.yml": PLAYBOOK,
            "playbooks/migrate.yml": "- hosts: all\n",
            "roles/web/tasks/main.yml": "- ansible.builtin.debug: {msg: hello}\n",
            "roles/web/smoke/test_it.py": "",
            "roles/common/tasks/main.yml": "- ansible.builtin.debug: {msg: common}\n",
            "roles/deep/tasks/main.yml": "- ansible.builtin.debug: {msg: deep}\n",
            "roles/other/tasks/main.yml": "- ansible.builtin.debug: {msg: other}\n",
            "shared/motd": "hello\n",
        },
    )
    spec = RoleSpec(
        "web", (LayerSpec("web", (), {}),), 80, "http", "/", (), {}, "migrate.yml", None
    )
    return Project(root, "shop", str(root), BaseSpec("bookworm", None, ()), {"web": spec})


def digests(project: Project) -> dict[str, str]:
    inputs.digest_directory.cache_clear()
    inputs._closure.cache_clear()
    return {**inputs.role_digests(project, "web"), "playbooks": inputs.playbooks_digest(project)}


def changed(project: Project, change: Callable[[], object]) -> set[str]:
    before = digests(project)
    change()
    after = digests(project)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("roles/web/tasks/main.yml", {"role files"}),
        ("roles/web/smoke/test_it.py", set()),
        ("roles/common/tasks/main.yml", set()),
        ("playbooks/bake.yml", {"playbooks"}),
        ("playbooks/group_vars/all.yml", {"playbooks"}),
        ("playbooks/library/thing.py", {"playbooks"}),
        ("playbooks/migrate.yml", set()),
    ],
)
def test_what_a_bake_reads_is_an_input(project: Project, file: str, names: set[str]) -> None:
    extra = {file: f"# changed\n{PLAYBOOK if file == 'playbooks/bake.yml' else ''}"}
    assert changed(project, lambda: write(project.root, extra)) == names


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"roles/web/meta/main.yml": "dependencies: [common]\n"}, id="dependency"),
        pytest.param(
            {"roles/web/meta/main.yml": "dependencies: [{role: common, vars: {a: 1}}]\n"},
            id="dependency with variables",
        ),
        pytest.param(
            {"roles/web/tasks/main.yml": "- block:\n  - include_role: {name: common}\n"},
            id="included in a block",
        ),
        pytest.param(
            {"roles/web/handlers/main.yml": "- ansible.builtin.import_role: name=common\n"},
            id="imported by a handler, in one line",
        ),
        pytest.param(
            {"roles/web/handlers/main": "- include_role: {name: common}\n"},
            id="in a file without a suffix",
        ),
        pytest.param(
            {"playbooks/bake.yml": PLAYBOOK.replace("roles:", "roles:\n    - common")},
            id="beside it in the playbook",
        ),
    ],
)
def test_roles_that_a_role_brings_in_are_inputs(project: Project, files: dict[str, str]) -> None:
    write(project.root, files)
    write(project.root, {"roles/common/meta/main.yml": "dependencies: [deep, ns.some.role]\n"})
    assert set(digests(project)) == {"role files", "role common", "role deep", "playbooks"}
    change = {"roles/deep/tasks/main.yml": "[]\n"}
    assert changed(project, lambda: write(project.root, change)) == {"role deep"}


@pytest.mark.parametrize(
    "tasks",
    [
        "- include_role: {name: '{{ item }}'}\n  loop: [common]\n",
        "- include_role: '{{ arguments }}'\n",
        "- action: {module: include_role, name: common}\n",
        "- not: [yaml\n",
    ],
)
def test_where_a_role_is_known_only_later_all_are_inputs(project: Project, tasks: str) -> None:
    write(project.root, {"roles/web/tasks/main.yml": tasks})
    assert {"role common", "role deep", "role other"} < set(digests(project))


def test_a_file_with_ansibles_tags_is_read(project: Project) -> None:
    write(project.root, {"roles/web/vars/main.yml": "a: !unsafe '{{ b }}'\nc: !vault |\n  x\n"})
    assert set(digests(project)) == {"role files", "playbooks"}


@pytest.mark.parametrize("directory", ["files", "templates"])
def test_what_a_role_installs_is_not_read_as_its_tasks(project: Project, directory: str) -> None:
    write(project.root, {f"roles/web/{directory}/play.yml": "- include_role: {name: common}\n"})
    assert set(digests(project)) == {"role files", "playbooks"}


def test_a_name_that_is_not_utf8_is_an_input(project: Project) -> None:
    file = os.fsencode(project.root / "roles/web/files") + b"-\xff"
    assert changed(project, lambda: Path(os.fsdecode(file)).touch()) == {"role files"}


def test_what_python_compiles_is_no_input(project: Project) -> None:
    write(project.root, {"roles/web/library/thing.py": ""})
    compiled = {"roles/web/library/__pycache__/thing.cpython-311.pyc": "x"}
    assert changed(project, lambda: write(project.root, compiled)) == set()


def test_modes_links_and_where_a_file_ends_are_inputs(project: Project) -> None:
    files = project.root / "roles" / "web" / "files"
    write(files, {"start": "a", "ab": "c", "one/text": "same\n", "two/text": "same\n"})
    (files / "link").symlink_to("one")
    assert changed(project, lambda: (files / "start").chmod(0o755)) == {"role files"}
    assert changed(project, lambda: (files / "start").chmod(0o700)) == set()

    def point_elsewhere() -> None:
        (files / "link").unlink()
        (files / "link").symlink_to("two")

    assert changed(project, point_elsewhere) == {"role files"}

    def move_a_letter_into_the_name() -> None:
        (files / "ab").unlink()
        write(files, {"abc": ""})

    assert changed(project, move_a_letter_into_the_name) == {"role files"}


@pytest.mark.parametrize("target", ["../../../shared/motd", "../../../shared"])
def test_what_a_link_leads_to_is_an_input(project: Project, target: str) -> None:
    write(project.root, {"roles/web/files/README": ""})
    link = project.root / "roles" / "web" / "files" / "link"
    link.symlink_to(target)
    change = {"shared/motd": "changed\n"}
    assert changed(project, lambda: write(project.root, change)) == {"role files"}
    assert inputs.linked_places(project.root, ("roles",)) == [link.resolve()]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/etc/hostname", "links to /etc/hostname, outside of the project"),
        ("../../../../elsewhere", "outside of the project"),
        ("..", "a directory that it is in"),
    ],
)
def test_a_link_out_of_the_project_or_to_itself_is_refused(
    project: Project, target: str, message: str
) -> None:
    write(project.root, {"roles/web/files/README": ""})
    link = project.root / "roles" / "web" / "files" / "link"
    link.symlink_to(target)
    with pytest.raises(ConfigurationError, match=message) as caught:
        digests(project)
    assert caught.value.message.startswith(f"{link}: ")


def test_a_role_that_is_a_link_out_of_the_project_is_refused(
    project: Project, tmp_path: Path
) -> None:
    write(tmp_path / "elsewhere", {"tasks/main.yml": "[]\n"})
    (project.root / "roles" / "far").symlink_to(tmp_path / "elsewhere")
    write(project.root, {"roles/web/meta/main.yml": "dependencies: [far]\n"})
    with pytest.raises(ConfigurationError, match=r"roles/far: links to .*, outside of the project"):
        digests(project)


def git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    return subprocess.run(
        ["git", "-C", directory, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(directory: Path) -> Checkout:
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message=change")
    return checkout(str(directory), None, clones=directory / "none", is_dirty_allowed=False)


def test_the_mode_of_a_source_that_is_one_file_is_an_input(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    write(tmp_path, {"start": "#!/bin/sh\n", "src/a": ""})
    paths = ["start", "src", "./src/", "."]
    before = commit(tmp_path).digests(paths)
    (tmp_path / "start").chmod(0o755)
    after = commit(tmp_path).digests(paths)
    assert {path for path in paths if before[path] != after[path]} == {"start", "."}
    assert before["src"] == before["./src/"]

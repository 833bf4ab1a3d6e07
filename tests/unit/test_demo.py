"""What `make demo` does before the first machine: its project, inside the state directory."""

from rich.console import Console

from examples.demo import ENVIRONMENT, Demo
from examples.versions import BROKEN


def test_a_state_directory_that_is_new_is_one_to_the_commands_too(tmp_path):
    demo = Demo(tmp_path / "state", Console(quiet=True))
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
    demo._toolkit.result("secrets", "init", ENVIRONMENT)
    assert demo.project.authority(ENVIRONMENT).exists()


def test_run_again_it_takes_the_project_that_is_there(tmp_path):
    first = Demo(tmp_path / "state", Console(quiet=True)).project
    (first.root / "notes.txt").write_text("somebody works on it")
    again = Demo(tmp_path / "state", Console(quiet=True)).project
    assert (again.root / "notes.txt").exists()
    for version in ("v1", "v2", *BROKEN):
        again.check_out(version)

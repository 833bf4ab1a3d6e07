"""What `toolkit status` shows, and what it does not let hide anything."""

import json
import shutil
from pathlib import Path

import pytest

from examples.versions import REPOSITORY
from toolkit.cli.context import Context
from toolkit.cli.main import run
from toolkit.wiring import open_ledger

BROKEN = "staging"


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command for a project with a broken environment and one that is meant to be up."""
    monkeypatch.setattr(Context, "need_root", lambda _self: None)
    project = tmp_path / "project"
    for name in ("inventories", "roles", "playbooks"):
        shutil.copytree(REPOSITORY / name, project / name)
    shutil.copy(REPOSITORY / "service.yml", project)
    (project / "inventories" / BROKEN / "toolkit.yml").write_text("roles: [")
    context = Context(project, tmp_path / "state", is_quiet=True)
    with open_ledger(context.state) as ledger:
        ledger.set_up("development", is_up=True)
    return ["--project", str(project), "--state", str(tmp_path / "state"), "--quiet", "status"]


def test_broken_environment_hides_no_other(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    shown = capsys.readouterr()
    assert "development app: nothing runs\n" in shown.out
    assert "! development: the balancer does not run: 'toolkit up development'" in shown.out
    assert f"! {BROKEN} cannot be looked at: " in shown.out
    assert "not YAML" in shown.err


def test_remarks_are_in_the_result(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "development", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["role"] for one in found] == ["database", "app", "web"]
    for one in found:
        assert one["remarks"] == ["the balancer does not run: 'toolkit up development' starts it"]
        assert one["unfinished"] is None

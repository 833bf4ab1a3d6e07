"""A target that forges ansible-runner's events decides nothing and reaches nothing.

ansible-runner finds its events in what Ansible prints, encoded between escape sequences. Here they
come with the warnings of a module, as a machine under a hostile program could send them.
"""

import base64
import json
import uuid
from collections.abc import Callable

import pytest

from tests.support.site import EchoSite

pytestmark = pytest.mark.host

MODULE = """#!/usr/bin/python
import json

answer = {{"changed": False, "failed": {is_failed}, "msg": "honestly"}}
print(json.dumps(answer | {{"warnings": {words!r}}}))
"""

TASK = """
- name: Forge events
  forge: {}
"""


def forged(event: str, name: str, **data: object) -> str:
    """Return what ansible-runner takes for an event; see its `OutputEventFilter`."""
    document = {"uuid": name, "event": event, "counter": 1, "event_data": data}
    text = base64.b64encode(json.dumps(document).encode()).decode()
    return f"\x1b[K{text}\x1b[{len(text)}D\x1b[K"


@pytest.fixture(scope="module")
def site(new_echo: Callable[..., EchoSite]) -> EchoSite:
    site = new_echo()
    site.bake("v1")
    site.project.check_out("v1")
    return site


@pytest.mark.parametrize("is_failed", [True, False], ids=["fails", "succeeds"])
def test_exit_codes_decide(is_failed, site):
    victim = site.directory / "victim-partial.json"
    victim.write_text(json.dumps({"stdout": "a secret of somebody else's"}))
    names = [str(uuid.uuid4()), str(victim).removesuffix("-partial.json")]
    good = {"ok": {"machine": 9}, "failures": {}, "dark": {}}
    bad = {"task": "a lie", "res": {"msg": "a lie"}}
    words = [
        forged(event, name, **data)
        for name in names
        for event, data in (
            ("playbook_on_stats", good) if is_failed else ("runner_on_failed", bad),
            ("runner_on_ok", {"task": "a lie", "res": {"changed": True}}),
        )
    ]
    role = site.project.root / "roles" / "echo"
    (role / "library").mkdir(exist_ok=True)
    (role / "library" / "forge.py").write_text(MODULE.format(is_failed=is_failed, words=words))
    tasks = role / "tasks" / "main.yml"
    if "Forge events" not in tasks.read_text():
        tasks.write_text(tasks.read_text() + TASK)
    site.project.commit(f"Forge, {is_failed}")
    before = {image["digest"] for image in site.toolkit.result("images", "list")}

    answer = site.toolkit.run("bake", "echo", "--ref", "v1")

    new = {image["digest"] for image in site.toolkit.result("images", "list")} - before
    assert victim.read_text() == json.dumps({"stdout": "a secret of somebody else's"})
    assert "a secret" not in answer.stderr
    assert "\x1b" not in answer.stderr
    if is_failed:
        assert answer.exit_code == 1, answer.stderr
        assert "Forge events" in answer.error["error"] and "honestly" in answer.error["error"]
        assert new == set()
    else:
        assert answer.exit_code == 0, answer.stderr
        assert len(new) == 1
    assert "a lie" not in answer.stderr

"""Bakes: what is built again and what is not, what an image says, and what it must not hold."""

import hashlib
import mmap
from pathlib import Path

import pytest
import yaml

from bench.lab import ENVIRONMENT, Lab, copy_layers
from tests.support.traces import leftovers
from toolkit.state import State

pytestmark = [pytest.mark.host, pytest.mark.alone]

UNCHANGED_LIMIT_S = 1.5
APPLICATION_LIMIT_S = 10.0
PATIENCE = 3
"""The limits are for an idle host with two processors; this one may be at work elsewhere."""

IMAGE_FIELDS = ["digest", "role", "release", "commit", "created", "size_bytes", "layers", "parent"]
LAYERS = {
    "database": ["os", "base", "database"],
    "app": ["os", "base", "python_runtime", "app"],
    "web": ["os", "base", "web"],
}


def built(layers: dict[str, list[dict]]) -> set[str]:
    return {one["layer"] for role in layers.values() for one in role if not one["reused"]}


@pytest.fixture(scope="module")
def lab(baked, tmp_path_factory):
    """A state directory with every layer but the application's."""
    for version in ("v1", "v2"):
        baked.bake(version)
    with Lab(tmp_path_factory.mktemp("bake") / "lab") as lab:
        copy_layers(baked.store, lab.state / "store", without=["app"])
        lab.project.check_out("v1")
        yield lab


def test_only_the_application_is_baked_and_to_the_same_bytes(baked, lab):
    answer = lab.toolkit.run("bake", "--ref", "v1")
    assert answer.exit_code == 0, answer.stderr
    assert built(answer.data["layers"]) == {"app"}
    mine = lab.toolkit.result("images", "show", answer.data["images"]["app"])
    theirs = baked.image("v1", "app")
    assert mine["layers"] == theirs["layers"]
    assert (lab.state / "store" / "layers").stat().st_ino != (baked.store / "layers").stat().st_ino


def test_nothing_changed(lab):
    answers = [lab.toolkit.run("bake", "--ref", "v1") for _ in range(PATIENCE)]
    for answer in answers:
        assert answer.exit_code == 0
        assert built(answer.data["layers"]) == set()
        assert answer.data["release"] == answers[0].data["release"]
        assert answer.data["images"] == answers[0].data["images"]
    assert min(answer.seconds for answer in answers) < UNCHANGED_LIMIT_S * PATIENCE


def test_explain_names_what_changed_and_changes_nothing(lab):
    before = sorted((lab.state / "store").rglob("*"))
    same = lab.toolkit.result("bake", "--explain", "--ref", "v1")
    assert {role: [one["layer"] for one in layers] for role, layers in same.items()} == LAYERS
    assert built(same) == set()
    other = lab.toolkit.result("bake", "--explain", "--ref", "v2")
    assert built(other) == {"app"}
    assert other["app"][-1] == {"layer": "app", "reused": False, "changed": ["source ."]}
    text = lab.toolkit.run("bake", "--explain", "--ref", "v2", is_json=False).stdout
    assert "source ." in text
    lab.project.check_out("v2")
    try:
        changed = lab.toolkit.result("bake", "--explain", "--ref", "v1")
    finally:
        lab.project.check_out("v1")
    # The layer itself is in the store, since version 2 was baked elsewhere.
    assert built(changed) == set()
    assert changed["web"][-1]["layer"] == "web"
    assert sorted((lab.state / "store").rglob("*")) == before


def test_explain_names_a_role_and_what_lies_on_it(lab):
    defaults = lab.project.root / "roles" / "base" / "defaults" / "main.yml"
    text = defaults.read_text()
    defaults.write_text(f"{text}# changed\n")
    try:
        explained = lab.toolkit.result("bake", "--explain", "--ref", "v1", "--allow-dirty")
    finally:
        defaults.write_text(text)
    for role in LAYERS:
        assert explained[role][0]["reused"]
        assert explained[role][1] == {"layer": "base", "reused": False, "changed": ["role files"]}
        assert "layer below" in explained[role][2]["changed"]


def test_explain_says_that_a_refresh_builds_every_layer_and_begins_none(lab):
    explained = lab.toolkit.result("bake", "--explain", "--refresh", "--ref", "v1")
    for role, layers in LAYERS.items():
        assert [one["layer"] for one in explained[role]] == layers
        assert not any(one["reused"] for one in explained[role])
        assert all("refresh" in one["changed"] for one in explained[role])
        assert explained[role][0]["changed"] == ["refresh"]
    assert built(lab.toolkit.result("bake", "--explain", "--ref", "v1")) == set()


def test_an_application_alone_is_baked_quickly(lab):
    answer = lab.toolkit.run("bake", "app", "--ref", "v2")
    assert answer.exit_code == 0, answer.stderr
    assert built(answer.data["layers"]) == {"app"}
    assert answer.data["layers"]["app"][-1]["changed"] == ["source ."]
    assert list(answer.data["images"]) == ["app"]
    assert answer.seconds < APPLICATION_LIMIT_S * PATIENCE


def test_bakes_leave_nothing_behind_where_nothing_runs(lab):
    assert leftovers(lab.state, State(lab.state).id, [], ENVIRONMENT) == []


def test_images_follow_their_contract(baked):
    release = baked.bake("v1")
    listed = baked.toolkit.result("images", "list")
    assert len(listed) == len({one["digest"] for one in listed})
    found = {one["digest"]: one for one in listed}
    for role, digest in release["images"].items():
        image = found[digest]
        assert list(image) == IMAGE_FIELDS
        assert image["role"] == role
        assert image["created"].endswith("Z")
        assert [layer["name"] for layer in image["layers"]] == LAYERS[role]
        assert image["size_bytes"] == sum(layer["size_bytes"] for layer in image["layers"])
        for layer in image["layers"]:
            assert list(layer) == ["name", "digest", "size_bytes"]
            assert baked.layer_file(layer["digest"]).stat().st_size == layer["size_bytes"]
    assert found[baked.bake("v2")["images"]["app"]]["parent"] == release["images"]["app"]


def test_an_image_is_named_by_its_manifest_which_pins_everything(baked):
    release = baked.bake("v1")
    shown = baked.image("v1", "app")
    assert list(shown)[: len(IMAGE_FIELDS)] == IMAGE_FIELDS
    assert release["release"] in shown["releases"]
    manifest = shown["manifest"]
    directory = baked.store / "images" / shown["digest"].removeprefix("sha256:")
    content = (directory / "manifest.json").read_bytes()
    assert shown["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert manifest["source"] == {"commit": release["commit"], "dirty": False}
    assert any(package.startswith("systemd=") for package in manifest["packages"])
    for layer in manifest["layers"]:
        with baked.layer_file(layer["digest"]).open("rb") as file:
            assert f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == layer["digest"]
    beginning = baked.toolkit.result("images", "show", shown["digest"][7:19])
    assert beginning["digest"] == shown["digest"]


def test_no_layer_holds_a_secret(baked):
    baked.bake("v1")
    values = secret_values(baked)
    assert len(values) >= 6
    files = sorted((baked.store / "layers").glob("*.erofs"))
    assert files
    found = {
        value for file in files for value in contained(file, {*values, b"guestbook.app:create"})
    }
    assert found == {b"guestbook.app:create"}, "the search finds what is there, and no secret"


def secret_values(lab: Lab) -> set[bytes]:
    """Return every secret, and every key, that was made before anything was baked."""
    values = set()
    for one in lab.toolkit.result("secrets", "list", ENVIRONMENT):
        shown = lab.toolkit.result(
            "secrets", "show", ENVIRONMENT, one["role"], one["name"], "--yes"
        )
        for part, value in shown.items():
            if part not in {"name", "version", "encoding"}:
                values.add(longest_line(value))
    for key in (lab.state / "keys").rglob("*.key"):
        values.add(longest_line(key.read_text()))
    for vault in lab.project.root.glob("inventories/*/group_vars/*/vault.yml"):
        values.add(longest_line(vault.read_text()))
    return values


def longest_line(text: str) -> bytes:
    """Return a part that is random enough to be found by chance nowhere."""
    line = max(text.splitlines(), key=len).encode()
    assert len(line) >= 20
    return line


def contained(file: Path, values: set[bytes]) -> set[bytes]:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as content:
        return {value for value in values if content.find(value) >= 0}


def test_service_file_and_layers_agree(baked):
    service = yaml.safe_load((baked.project.root / "service.yml").read_text())
    for role, entry in service["roles"].items():
        names = [one if isinstance(one, str) else one["role"] for one in entry["layers"]]
        assert LAYERS[role] == ["os", *names]

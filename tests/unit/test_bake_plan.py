"""Which inputs a layer has, why it is built, and what of that an image is named by."""

import json

import pytest

from toolkit.bake import plan
from toolkit.bake.manifest import SealedLayer, image_manifest
from toolkit.model import Layer
from toolkit.project.model import BaseSpec

BASE = plan.base_inputs(
    BaseSpec("bookworm", None, ("less",)), tools="mmdebstrap=1", toolkit_files="t"
)
ROLE = plan.layer_inputs(
    below="sha256:1", roles={"role files": "r", "role common": "c"}, playbooks="p",
    variables={"a": 1}, source={".": "s"}, tools="erofs=1", toolkit_files="t",
)  # fmt: skip
MONDAY, TUESDAY = "2026-11-23T04:00:00Z", "2026-11-24T04:00:00Z"


def sealed(inputs: dict[str, str], *, name: str = "web", digest: str = "sha256:a") -> SealedLayer:
    layer = Layer(name, digest, 4096)
    return SealedLayer(plan.layer_key(name, inputs), layer, inputs, ("nginx=1",))


@pytest.mark.parametrize(
    ("inputs", "name"), [(inputs, name) for inputs in (BASE, ROLE) for name in inputs]
)
def test_every_input_decides_about_a_layer_and_is_named(inputs: dict, name: str) -> None:
    changed = {**inputs, name: "other"}
    decision = plan.decide("web", changed, found=None, previous=sealed(inputs))
    assert decision.changed == (name,)
    assert decision.reason == f"changed: {name}"
    assert decision.key != plan.layer_key("web", inputs)


def test_the_tools_that_make_the_operating_system_are_inputs() -> None:
    assert BASE["tools"] == "mmdebstrap=1"


@pytest.mark.parametrize("inputs", [BASE, ROLE], ids=["operating system", "role"])
@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        pytest.param("", "", (), id="never"),
        pytest.param("", MONDAY, ("refresh",), id="for the first time"),
        pytest.param(MONDAY, MONDAY, (), id="not since"),
        pytest.param(MONDAY, TUESDAY, ("refresh",), id="again"),
    ],
)
def test_a_refresh_builds_every_layer_and_is_named(
    inputs: dict, before: str, after: str, changed: tuple
) -> None:
    then, now = plan.refreshed(inputs, before), plan.refreshed(inputs, after)
    assert (plan.layer_key("web", now) != plan.layer_key("web", then)) is bool(changed)
    assert plan.decide("web", now, found=None, previous=sealed(then)).changed == changed


def test_a_layer_that_the_store_has_is_not_built() -> None:
    decision = plan.decide("web", ROLE, found=sealed(ROLE), previous=sealed({}))
    assert (decision.is_reused, decision.changed, decision.reason) == (True, (), "unchanged")


def test_a_layer_that_never_was_is_said_to_be_new() -> None:
    assert plan.decide("web", ROLE, found=None, previous=None).reason == "never baked before"


def manifest(layer: SealedLayer, commit: str | None = "c") -> bytes:
    return image_manifest(role="web", sealed=[layer], commit=commit, is_dirty=False)


def test_a_refresh_that_brings_the_same_bytes_gives_the_same_image() -> None:
    first = sealed(plan.refreshed(ROLE, MONDAY))
    again = sealed(plan.refreshed(ROLE, TUESDAY))
    assert first.key != again.key
    assert manifest(first) == manifest(again) == manifest(sealed(ROLE))


def test_other_bytes_other_inputs_and_another_commit_give_another_image() -> None:
    base = manifest(sealed(ROLE))
    assert manifest(sealed(ROLE, digest="sha256:b")) != base
    assert manifest(sealed({**ROLE, "tools": "erofs=2"})) != base
    assert manifest(sealed(ROLE), commit="d") != base
    assert json.loads(base)["layers"][0]["inputs"] == ROLE

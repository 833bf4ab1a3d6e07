"""Which inputs a layer has, and why it must be built. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.bake.manifest import REFRESH, SealedLayer
from toolkit.canonical import canonical_json
from toolkit.project.model import BaseSpec

BASE_PACKAGES = (
    "ca-certificates",
    "dbus",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "linux-image-cloud-amd64",
    "python3",
    "python3-apt",
    "systemd",
    "systemd-sysv",
    "udev",
    "zstd",
)
"""What every machine needs: an init, a kernel to boot as a virtual machine, and a Python for
Ansible (`python3-minimal` is not enough for its modules)."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one layer.

    Attributes:
        name: The layer's name.
        key: Digest over the inputs.
        inputs: Input name to digest or text.
        is_reused: Whether the store has it.
        changed: Names of the inputs that differ from the layer of the previous image; empty for
            one that is reused or was never baked before.
    """

    name: str
    key: str
    inputs: Mapping[str, str]
    is_reused: bool
    changed: tuple[str, ...]

    @property
    def reason(self) -> str:
        """Why it is built or not, for people."""
        if self.is_reused:
            return "unchanged"
        if self.changed:
            return f"changed: {', '.join(self.changed)}"
        return "never baked before"


def base_inputs(base: BaseSpec, *, tools: str, toolkit_files: str) -> dict[str, str]:
    """Return the inputs of the operating system's layer.

    Args:
        base: The project's choice.
        tools: Versions of the tools that make and seal it.
        toolkit_files: Digest of the toolkit's own files that go into it or decide about it.
    """
    return {
        "suite": base.suite,
        "mirror": base.mirror or "default",
        "packages": " ".join(sorted({*BASE_PACKAGES, *base.packages})),
        "tools": tools,
        "toolkit": toolkit_files,
    }


def layer_inputs(
    *,
    below: str,
    roles: Mapping[str, str],
    playbooks: str,
    variables: Mapping[str, object],
    source: Mapping[str, str],
    tools: str,
    toolkit_files: str,
) -> dict[str, str]:
    """Return the inputs of a role's layer.

    Args:
        below: Digest of the sealed layer below.
        roles: Input name to the digest of an Ansible role, without its tests: the layer's own, and
            those that it brings in.
        playbooks: Digest of the playbook that applies it, and of what lies beside it.
        variables: Extra variables.
        source: Path of the service's source to the digest of its content.
        tools: Versions of the tools that build and seal.
        toolkit_files: Digest of the toolkit's own files that decide about a layer.
    """
    inputs = {
        "layer below": below,
        **roles,
        "playbooks": playbooks,
        "variables": hashlib.sha256(canonical_json(dict(variables))).hexdigest(),
        "tools": tools,
        "toolkit": toolkit_files,
    }
    return inputs | {f"source {path}": digest for path, digest in source.items()}


def refreshed(inputs: Mapping[str, str], refresh: str) -> dict[str, str]:
    """Return a layer's inputs with the last deliberate refresh, which every layer has as one.

    What apt and pip fetch in a role is in no other input, so only this has it fetched anew.

    Args:
        inputs: All others.
        refresh: A text that changes with every refresh; empty when there never was one.
    """
    return {**inputs, REFRESH: refresh} if refresh else dict(inputs)


def layer_key(name: str, inputs: Mapping[str, str]) -> str:
    """Return the key under which the store finds a layer again."""
    return hashlib.sha256(canonical_json({"name": name, "inputs": dict(inputs)})).hexdigest()


def decide(
    name: str,
    inputs: Mapping[str, str],
    *,
    found: SealedLayer | None,
    previous: SealedLayer | None,
) -> Decision:
    """Decide about one layer.

    Args:
        name: The layer's name.
        inputs: Its inputs now.
        found: The layer that the store has under these inputs.
        previous: The layer of this name in the role's previous image.
    """
    changed: tuple[str, ...] = ()
    if found is None and previous is not None:
        names = [*inputs, *(old for old in previous.inputs if old not in inputs)]
        changed = tuple(n for n in names if inputs.get(n) != previous.inputs.get(n))
    return Decision(name, layer_key(name, inputs), inputs, found is not None, changed)

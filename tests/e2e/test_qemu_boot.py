"""A disk boots as a UEFI virtual machine, and its root is what its layers say."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import socket
import stat
import time
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from toolkit import shell
from toolkit.bake import gpt
from toolkit.bake.disk import assemble_disk, extract_boot_files
from toolkit.errors import DeadlineExceeded, OutsideError
from toolkit.machines.qemu import QemuMachine, firmware_runs, probe_kvm
from toolkit.model import Secret

pytestmark = [pytest.mark.slow, pytest.mark.host]

MIB = 1024 * 1024

# What the machine asks itself: name and shell condition.
QUESTIONS = {
    "os-file": "[ -s /usr/lib/os-release ]",
    "middle-file": '[ "$(cat /srv/test/middle)" = middle ]',
    "top-file": '[ "$(cat /srv/test/top)" = top ]',
    "top-wins": '[ "$(cat /srv/test/both)" = top ]',
    "deleted-from-os": "[ ! -e /etc/debian_version ]",
    "deleted-from-middle": "[ ! -e /srv/test/deleted ]",
    "opaque": '[ "$(ls /srv/test/replaced)" = new ]',
    "root-is-stacked": (
        "grep -q ' / overlay rw,.*lowerdir=/layers/2:/layers/1:/layers/0,' /proc/self/mounts"
    ),
    "root-in-ram": "touch /written && rm /usr/lib/os-release && [ ! -e /usr/lib/os-release ]",
    "layers-out-of-reach": "! grep -q erofs /proc/self/mounts",
    "disk-is-read-only": '[ "$(cat /sys/block/vda/ro)" = 1 ]',
    "other-disk-attached": "grep -q PARTNAME=layer-02-of-03 /sys/block/vdb/vdb3/uevent",
    "other-disk-ignored": "[ ! -e /srv/intruder ]",
    "credential": '[ "$(sha256sum <"$CREDENTIALS_DIRECTORY/marker")" = "@DIGEST@  -" ]',
    "host-out-of-reach": """! python3 -c 'import socket
socket.create_connection(("10.0.2.2", @PORT@), 5)' 2>/dev/null""",
    "credential-name": '[ "$(ls "$CREDENTIALS_DIRECTORY")" = marker ]',
}

UNIT = """\
[Unit]
DefaultDependencies=no
After=local-fs.target

[Service]
Type=simple
ExecStart=/bin/sh /srv/test/questions
LoadCredential=marker
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
"""

# QEMU's own network gives its guest this address, and forwards to it.
NETWORK = """\
until device=$(udevadm settle && ls /sys/class/net | grep -v lo) && ip link set "$device" up &&
    ip address add 10.0.2.15/24 dev "$device"; do sleep 0.2; done
"""
SERVER = "exec python3 -m http.server --bind 10.0.2.15 --directory /srv/test 8080\n"


def run(*argv: str | Path) -> str:
    return shell.run(argv, env=shell.environment(), timeout_s=120.0).text


def seal(tree: Path) -> Path:
    layer = tree.with_suffix(".erofs")
    run("mkfs.erofs", "-T0", "-U", "00000000-0000-0000-0000-000000000001", layer, tree)
    return layer


def write(tree: Path, name: str, content: str) -> None:
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).write_text(content)


def delete(tree: Path, name: str) -> None:
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    os.mknod(tree / name, stat.S_IFCHR, os.makedev(0, 0))


def middle_layer(tmp_path: Path) -> Path:
    tree = tmp_path / "middle"
    for name in ("middle", "deleted", "both", "replaced/old"):
        write(tree, f"srv/test/{name}", "middle")
    return seal(tree)


def top_layer(tmp_path: Path, credential: bytes, host_port: int) -> Path:
    tree = tmp_path / "top"
    digest = hashlib.sha256(credential).hexdigest()
    script = "".join(
        f"if {condition}; then echo question {name} yes; else echo question {name} no; fi\n"
        for name, condition in QUESTIONS.items()
    )
    script = script.replace("@DIGEST@", digest).replace("@PORT@", str(host_port))
    write(tree, "srv/test/questions", f"{NETWORK}{script}echo questions over\n{SERVER}")
    for name in ("top", "both", "replaced/new"):
        write(tree, f"srv/test/{name}", "top")
    os.setxattr(tree / "srv/test/replaced", "trusted.overlay.opaque", b"y")
    delete(tree, "srv/test/deleted")
    delete(tree, "etc/debian_version")
    write(tree, "etc/systemd/system/questions.service", UNIT)
    (tree / "etc/systemd/system/basic.target.wants").mkdir()
    (tree / "etc/systemd/system/basic.target.wants/questions.service").symlink_to(
        "/etc/systemd/system/questions.service"
    )
    return seal(tree)


def intruding_volume(tmp_path: Path) -> Path:
    """Make a data volume whose partitions have the names of an image's layers."""
    write(tmp_path / "intruder", "srv/intruder", "intruder")
    layer = seal(tmp_path / "intruder").read_bytes()
    partitions = [
        gpt.Partition(f"layer-{index:02d}-of-03", gpt.LINUX_DATA, UUID(int=index + 1), at, MIB)
        for index, at in enumerate(gpt.place([MIB] * 3))
    ]
    size = gpt.disk_size(partitions)
    primary, backup = gpt.tables(UUID(int=99), partitions, size)
    content = bytearray(size)
    content[: len(primary)] = primary
    content[-len(backup) :] = backup
    for partition in partitions:
        content[partition.offset_bytes : partition.offset_bytes + len(layer)] = layer
    volume = tmp_path / "volume.raw"
    volume.write_bytes(content)
    return volume


def process_arguments() -> str:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(found)


def fetch(url: str, deadline_s: float) -> str:
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            return httpx.get(url, timeout=5.0, trust_env=False).raise_for_status().text
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def make_disk(os_layer: Path, above: list[Path], tmp_path: Path, *, has_os: bool = True) -> Path:
    boot = extract_boot_files(os_layer, tmp_path / "boot")
    disk = tmp_path / "disk.raw"
    assemble_disk(
        [os_layer, *above] if has_os else above,
        kernel=boot.kernel,
        initrd=boot.initrd,
        os_release=boot.os_release,
        digest="sha256:" + os.urandom(32).hex(),
        output=disk,
    )
    return disk


def test_a_machine_boots_from_its_layers(os_layer: Path, tmp_path: Path):
    credential = os.urandom(48)
    with socket.create_server(("127.0.0.1", 0)) as of_the_host:
        top = top_layer(tmp_path, credential, of_the_host.getsockname()[1])
        disk = make_disk(os_layer, [middle_layer(tmp_path), top], tmp_path)
        with QemuMachine(
            disk,
            console=tmp_path / "console",
            volumes=[intruding_volume(tmp_path)],
            credentials=[Secret("marker", 1, credential)],
            forward=[8080],
        ) as machine:
            # Right after the start /proc may still show no arguments at all.
            machine.wait_for_console(rb"BdsDxe: ", deadline_s=60.0)
            running = process_arguments()
            assert str(disk) in running
            assert base64.b64encode(credential).decode() not in running
            machine.wait_for_console(rb"questions over", deadline_s=180.0)
            printed = (tmp_path / "console").read_text(errors="replace")
            assert fetch(f"http://127.0.0.1:{machine.ports[8080]}/top", deadline_s=60.0) == "top"
            assert machine.is_running
    assert not machine.is_running
    assert str(disk) not in process_arguments()
    answers = dict(re.findall(r"question (\S+) (yes|no)", printed))
    assert answers == dict.fromkeys(QUESTIONS, "yes")


@pytest.mark.parametrize(
    ("is_attached_twice", "reason"),
    [(False, rb"toolkit: /dev/vda2 is damaged"), (True, rb"toolkit: .* is there twice")],
)
def test_a_machine_that_cannot_find_its_root_offers_no_shell(
    is_attached_twice, reason, os_layer: Path, tmp_path: Path
):
    (tmp_path / "zeros.erofs").write_bytes(bytes(MIB))
    disk = make_disk(os_layer, [tmp_path / "zeros.erofs"], tmp_path, has_os=False)
    copy = tmp_path / "copy.raw"
    shutil.copyfile(disk, copy)
    with QemuMachine(
        disk, console=tmp_path / "console", volumes=[copy] if is_attached_twice else []
    ) as machine:
        machine.wait_for_console(reason, deadline_s=120.0)
        machine.wait_for_console(rb"Rebooting automatically", deadline_s=10.0)


REBUILD = """
mount -t tmpfs tmpfs "$2"
mkdir "$2/os" "$2/upper" "$2/work" "$2/root"
mount -t erofs -o ro,loop "$1" "$2/os"
mount -t overlay -o "lowerdir=$2/os,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
SOURCE_DATE_EPOCH=1700000000 chroot "$2/root" mkinitramfs -o /boot/again "$3"
chroot "$2/root" sha256sum /boot/again
chroot "$2/root" lsinitramfs /boot/again
"""


def test_the_initial_ram_file_system_is_reproducible(os_layer: Path, tmp_path: Path):
    kernel = extract_boot_files(os_layer, tmp_path / "boot").kernel
    version = kernel.name.removeprefix("vmlinuz-")
    (tmp_path / "work").mkdir()
    private = ("unshare", "--mount", "--propagation", "private", "sh", "-euc", REBUILD, "sh")
    first, second = (run(*private, os_layer, tmp_path / "work", version) for _ in range(2))
    assert first == second
    files = {Path(line).name for line in first.splitlines()}
    modules = {"virtio_pci", "virtio_blk", "virtio_scsi", "ena", "xen-blkfront", "erofs", "overlay"}
    assert {f"{module}.ko" for module in modules} <= files
    # nvme is built into Debian's kernel for clouds.
    assert "systemd-udevd" not in files


def test_the_firmware_runs_under_plain_emulation():
    assert firmware_runs(has_kvm=False, deadline_s=60.0)


def test_a_machine_that_does_not_start_in_time_is_not_waited_for():
    assert not firmware_runs(has_kvm=False, deadline_s=0.2)


def test_the_probe_keeps_its_deadline():
    assert probe_kvm(20.0) in {True, False}
    assert not probe_kvm(0.0)


def test_a_machine_that_cannot_run_says_why(tmp_path: Path):
    with (
        QemuMachine(tmp_path / "missing.raw", console=tmp_path / "console") as machine,
        pytest.raises(OutsideError, match=r"missing\.raw") as raised,
    ):
        machine.wait_for_console(rb"anything", deadline_s=10.0)
    assert not isinstance(raised.value, DeadlineExceeded)

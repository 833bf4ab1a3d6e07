"""Disks made with the real host tools, and read back with other ones."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import stat
import time
from pathlib import Path

import pytest

from toolkit import shell
from toolkit.bake.disk import COMMAND_LINE, BootFiles, assemble_disk, extract_boot_files
from toolkit.bake.initramfs import install_initramfs_support
from toolkit.errors import BakeFailed, ConfigurationError, OutsideError

pytestmark = pytest.mark.host

MIB = 1024 * 1024
TABLES_BYTES = 34 * 512
DIGEST = "sha256:" + "a" * 64


def run(*argv: str | Path) -> str:
    return shell.run(argv, env=shell.environment(), timeout_s=60.0).text


def seal(tree: Path) -> Path:
    layer = tree.with_suffix(".erofs")
    run("mkfs.erofs", "-T0", "-U", "00000000-0000-0000-0000-000000000001", layer, tree)
    return layer


def write(tree: Path, name: str, content: bytes) -> None:
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).write_bytes(content)


@pytest.fixture
def os_tree(tmp_path):
    tree = tmp_path / "os"
    write(tree, "boot/vmlinuz-6.1.0-test", os.urandom(3 * MIB + 5))
    write(tree, "boot/initrd.img-6.1.0-test", os.urandom(2 * MIB + 7))
    write(tree, "usr/lib/os-release", b'ID=debian\nVERSION_ID="12"\n')
    write(tree, "etc/kept", b"os\n")
    write(tree, "etc/deleted", b"os\n")
    write(tree, "srv/replaced/old", b"os\n")
    return tree


@pytest.fixture
def application_tree(tmp_path):
    tree = tmp_path / "application"
    write(tree, "etc/added", b"application\n")
    os.mknod(tree / "etc/deleted", stat.S_IFCHR, os.makedev(0, 0))
    write(tree, "srv/replaced/new", b"application\n")
    os.setxattr(tree / "srv/replaced", "trusted.overlay.opaque", b"y")
    return tree


@pytest.fixture
def boot(os_tree, tmp_path) -> BootFiles:
    return extract_boot_files(seal(os_tree), tmp_path / "boot")


@pytest.fixture
def layers(os_tree, application_tree):
    return [seal(os_tree), seal(application_tree)]


def assemble(layers: list[Path], boot: BootFiles, output: Path, digest: str = DIGEST) -> bytes:
    assemble_disk(
        layers,
        kernel=boot.kernel,
        initrd=boot.initrd,
        os_release=boot.os_release,
        digest=digest,
        output=output,
    )
    return output.read_bytes()


def partitions(disk: Path) -> list[dict]:
    return json.loads(run("sfdisk", "--json", disk))["partitiontable"]["partitions"]


def test_the_partition_tables_are_valid(layers, boot, tmp_path):
    disk = tmp_path / "disk.raw"
    assemble(layers, boot, disk)
    assert "No problems found" in run("sgdisk", "--verify", disk)
    assert "No errors detected" in run("sfdisk", "--verify", disk)
    esp, *rest = partitions(disk)
    assert esp["type"] == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
    assert esp["name"] == esp["uuid"].lower()
    assert [each["name"] for each in rest] == ["layer-00-of-02", "layer-01-of-02"]
    assert all(each["start"] % 2048 == 0 for each in (esp, *rest))


def test_every_layer_is_on_the_disk_as_it_is(layers, boot, tmp_path):
    disk = tmp_path / "disk.raw"
    content = assemble(layers, boot, disk)
    for layer, partition in zip(layers, partitions(disk)[1:], strict=True):
        start = partition["start"] * 512
        assert partition["size"] * 512 == layer.stat().st_size
        assert content[start : start + layer.stat().st_size] == layer.read_bytes()


def test_the_same_inputs_give_the_same_bytes(layers, boot, tmp_path):
    first = assemble(layers, boot, tmp_path / "first.raw")
    # The clock of FAT counts in two seconds.
    time.sleep(2.1)
    for file in (*layers, boot.kernel, boot.initrd):
        os.utime(file)
    (tmp_path / "elsewhere").mkdir()
    second = assemble(layers, boot, tmp_path / "elsewhere/second.raw")
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()


def test_a_new_application_leaves_every_earlier_block(layers, boot, application_tree, tmp_path):
    first = assemble(layers, boot, tmp_path / "first.raw")
    start = partitions(tmp_path / "first.raw")[2]["start"] * 512
    write(application_tree, "srv/more", os.urandom(5 * MIB))
    layers[1] = seal(application_tree)
    second = assemble(layers, boot, tmp_path / "second.raw", digest="sha256:" + "b" * 64)
    assert len(second) > len(first)
    assert first[TABLES_BYTES:start] == second[TABLES_BYTES:start]
    assert first[:TABLES_BYTES] != second[:TABLES_BYTES]


def test_another_layer_on_top_leaves_every_earlier_block(layers, boot, tmp_path):
    one = assemble(layers[:1], boot, tmp_path / "one.raw")
    two = assemble(layers, boot, tmp_path / "two.raw")
    start = partitions(tmp_path / "two.raw")[2]["start"] * 512
    end = min(start, len(one) - TABLES_BYTES)
    assert one[TABLES_BYTES:end] == two[TABLES_BYTES:end]


def test_the_kernel_image_holds_its_parts_apart(layers, boot, tmp_path):
    disk = tmp_path / "disk.raw"
    assemble(layers, boot, disk)
    uki = tmp_path / "uki.efi"
    run("mcopy", "-i", f"{disk}@@1M", "::/EFI/BOOT/BOOTX64.EFI", uki)
    expected = {
        ".linux": boot.kernel.read_bytes(),
        ".initrd": boot.initrd.read_bytes(),
        ".osrel": boot.os_release,
        ".cmdline": COMMAND_LINE.encode() + b"\0",
    }
    for section, content in expected.items():
        dumped = tmp_path / f"section{section}"
        run("objcopy", "--dump-section", f"{section}={dumped}", uki, tmp_path / "ignored")
        assert dumped.read_bytes()[: len(content)] == content
        assert not dumped.read_bytes()[len(content) :].strip(b"\0")
    ranges = sorted(
        (int(address, 16), int(size, 16))
        for size, address in re.findall(
            r"^ +\d+ \.\S+ +([0-9a-f]{8}) +([0-9a-f]{16})", run("objdump", "-h", uki), re.MULTILINE
        )
    )
    assert len(ranges) == 12
    for (address, size), (following, _) in itertools.pairwise(ranges):
        assert address + size <= following


def test_the_boot_partition_is_a_sound_file_system(layers, boot, tmp_path):
    disk = tmp_path / "disk.raw"
    content = assemble(layers, boot, disk)
    esp = partitions(disk)[0]
    (tmp_path / "esp").write_bytes(content[esp["start"] * 512 :][: esp["size"] * 512])
    run("fsck.vfat", "-n", tmp_path / "esp")
    assert disk.stat().st_blocks * 512 < len(content) - 32 * MIB


STACK = """
disk=$1; shift; work=$1; shift
mount -t tmpfs tmpfs "$work"
index=0; lower=
while [ $# -gt 0 ]; do
    mkdir "$work/$index"
    mount -t erofs -o "ro,loop,offset=$1,sizelimit=$2" "$disk" "$work/$index"
    lower=$work/$index${lower:+:$lower}
    index=$((index + 1)); shift 2
done
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay -o "lowerdir=$lower,upperdir=$work/upper,workdir=$work/work" o "$work/root"
cd "$work/root"
find . -mindepth 1 -not -path './boot*' -not -path './usr*' -printf '%P %y\\n' | sort
"""


def test_deletions_survive_the_stacked_mount(layers, boot, tmp_path):
    disk = tmp_path / "disk.raw"
    assemble(layers, boot, disk)
    (tmp_path / "work").mkdir()
    ranges: list[str] = []
    for partition in partitions(disk)[1:]:
        ranges += [str(partition["start"] * 512), str(partition["size"] * 512)]
    private = ("unshare", "--mount", "--propagation", "private", "sh", "-euc", STACK, "sh")
    listing = run(*private, disk, tmp_path / "work", *ranges)
    assert listing.splitlines() == [
        "etc d",
        "etc/added f",
        "etc/kept f",
        "srv d",
        "srv/replaced d",
        "srv/replaced/new f",
    ]


def test_boot_files_come_out_of_the_layer(os_tree, boot, tmp_path):
    assert boot.kernel.read_bytes() == (os_tree / "boot/vmlinuz-6.1.0-test").read_bytes()
    assert boot.initrd.read_bytes() == (os_tree / "boot/initrd.img-6.1.0-test").read_bytes()
    assert boot.os_release == b'ID=debian\nVERSION_ID="12"\n'
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert str(tmp_path) not in run("losetup", "--list", "--output", "BACK-FILE")


def test_a_layer_with_two_kernels_is_refused(os_tree, tmp_path):
    write(os_tree, "boot/vmlinuz-6.2.0-test", b"another")
    with pytest.raises(BakeFailed, match=r"found vmlinuz-6\.1\.0-test, vmlinuz-6\.2\.0-test"):
        extract_boot_files(seal(os_tree), tmp_path / "boot")


def test_a_link_in_the_layer_does_not_lead_to_the_host(os_tree, tmp_path):
    (tmp_path / "of-the-host").write_bytes(b"of the host")
    (os_tree / "usr/lib/os-release").unlink()
    (os_tree / "usr/lib/os-release").symlink_to(tmp_path / "of-the-host")
    with pytest.raises(BakeFailed, match="os-release is missing"):
        extract_boot_files(seal(os_tree), tmp_path / "boot")


def test_what_is_not_a_layer_is_refused(tmp_path):
    (tmp_path / "noise.erofs").write_bytes(bytes(MIB))
    with pytest.raises(OutsideError, match="mount"):
        extract_boot_files(tmp_path / "noise.erofs", tmp_path / "boot")
    assert str(tmp_path) not in run("losetup", "--list", "--output", "BACK-FILE")


def test_a_failure_leaves_the_disk_that_was_there(layers, boot, tmp_path):
    target = tmp_path / "disks"
    target.mkdir()
    (target / "disk.raw").write_bytes(b"as before")
    with pytest.raises(OSError, match=r"missing\.erofs"):
        assemble([*layers, tmp_path / "missing.erofs"], boot, target / "disk.raw")
    assert [file.name for file in target.iterdir()] == ["disk.raw"]
    assert (target / "disk.raw").read_bytes() == b"as before"


def test_a_disk_needs_layers(boot, tmp_path):
    with pytest.raises(ConfigurationError, match="this has 0"):
        assemble([], boot, tmp_path / "disk.raw")


def test_boot_support_is_installed_into_a_tree(tmp_path):
    for _ in range(2):
        install_initramfs_support(tmp_path)
    etc = tmp_path / "etc/initramfs-tools"
    assert os.access(etc / "hooks/toolkit", os.X_OK)
    assert "boot=toolkit" in COMMAND_LINE.split()
    for script in (etc / "hooks/toolkit", etc / "scripts/toolkit", etc / "conf.d/toolkit"):
        run("dash", "-n", script)

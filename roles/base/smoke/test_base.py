"""What must hold on every machine, whatever its role."""

import json


def test_configuration_is_for_this_machine(host, machine):
    """The credential arrived, and it is this machine's own."""
    config = json.loads(host.file("/run/credentials/@system/config").content_string)
    assert config["machine"] == machine.name
    assert config["environment"] == machine.environment
    assert config["role"] == machine.role


def test_nothing_failed(host):
    """Every unit that should have started did; what one that did not says is in the message."""
    failed = host.check_output("systemctl list-units --failed --plain --no-legend")
    status = "systemctl status --state=failed --no-pager --lines=10"
    assert failed == "", host.run(status).stdout


def test_journal_is_in_memory(host):
    """A machine leaves nothing behind on a disk."""
    assert host.file("/run/log/journal").is_directory

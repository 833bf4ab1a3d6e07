"""The ledger's tables."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, Float, Integer, MetaData, String, Table

SCHEMA_VERSION = 2

MIGRATIONS = {
    2: "ALTER TABLE rolls ADD COLUMN is_rollback BOOLEAN NOT NULL DEFAULT 0",
}
"""Version to the statement that makes it of the one before."""

metadata = MetaData()

entries = Table(
    "entries",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("time", Float, nullable=False),
    Column("kind", String, nullable=False, index=True),
    Column("by", String, nullable=False),
    Column("environment", String, index=True),
    Column("role", String),
    Column("roll", String, index=True),
    Column("data", JSON, nullable=False),
    Column("previous", String, nullable=False),
    Column("hash", String, nullable=False),
    comment="Append-only and hash-chained: what was meant to be done and what was observed.",
)

environments = Table(
    "environments",
    metadata,
    Column("name", String, primary_key=True),
    Column("since", Float, nullable=False),
    comment="Environments that are meant to be up.",
)

machines = Table(
    "machines",
    metadata,
    Column("name", String, primary_key=True),
    Column("environment", String, nullable=False, index=True),
    Column("role", String, nullable=False),
    Column("image", String, nullable=False),
    Column("release", String),
    Column("address", String, nullable=False),
    Column("standing", String, nullable=False),
    Column("inputs", String, nullable=False),
    Column("since", Float, nullable=False),
    Column("warm_until", Float),
    comment="Machines that are meant to exist.",
)

rolls = Table(
    "rolls",
    metadata,
    Column("id", String, primary_key=True),
    Column("environment", String, nullable=False, index=True),
    Column("role", String, nullable=False),
    Column("image", String, nullable=False),
    Column("release", String),
    Column("previous", String),
    Column("outcome", String, nullable=False),
    Column("by", String, nullable=False),
    Column("started", Float, nullable=False),
    Column("ended", Float),
    Column("order", JSON, nullable=False),
    Column("is_rollback", Boolean, nullable=False),
    comment="The order is what resuming or undoing the roll needs.",
)

leases = Table(
    "leases",
    metadata,
    Column("environment", String, primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("owner", String, nullable=False),
    Column("process", String, nullable=False),
    Column("host", String, nullable=False),
    Column("doing", String, nullable=False),
    Column("since", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("expires_uptime", Float, nullable=False),
    comment="The right to change one environment. The row stays when it is free, for its epoch.",
)

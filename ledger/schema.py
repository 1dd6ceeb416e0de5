"""The journal's tables. `journal_id` leads every key: a database can be distributed by it."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
)

from ledger.sqltypes import OFFSET, UtcTimestamp, name_type

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    }
)
"""All tables of this project, also the read models, are declared in this one MetaData."""

journals = Table(
    "journals",
    metadata,
    Column("journal_id", OFFSET, Identity(always=True), primary_key=True),
    Column("name", name_type(100), nullable=False, unique=True),
    Column("size", OFFSET, nullable=False, server_default="0"),
    Column("last_recorded_at", UtcTimestamp()),
    Column("created_at", UtcTimestamp(), nullable=False),
    CheckConstraint("size >= 0", name="size"),
)

# No foreign key to journals: it would be checked row by row, and only the append function, which
# holds the journal's row, may insert here.
events = Table(
    "events",
    metadata,
    Column("journal_id", OFFSET, primary_key=True),
    Column("offset", OFFSET, primary_key=True),
    Column("event_id", Uuid(), nullable=False),
    Column("stream", name_type(255), nullable=False),
    Column("version", OFFSET, nullable=False),
    Column("type", name_type(100), nullable=False),
    Column("schema_version", SmallInteger, nullable=False),
    Column("occurred_at", UtcTimestamp(), nullable=False),
    Column("recorded_at", UtcTimestamp(), nullable=False),
    Column("metadata", LargeBinary),
    Column("body", LargeBinary, nullable=False),
    Index("uq_events_stream_version", "journal_id", "stream", "version", unique=True),
    Index("uq_events_event_id", "journal_id", "event_id", unique=True),
    sqlite_with_rowid=False,
)

TAG, CLAIM, RELEASE = 0, 1, 2
"""Kinds of event_tags rows: plain tags, and names that are taken and given back."""

event_tags = Table(
    "event_tags",
    metadata,
    Column("journal_id", OFFSET, primary_key=True),
    Column("tag", name_type(255), primary_key=True),
    Column("offset", OFFSET, primary_key=True),
    Column("kind", SmallInteger, primary_key=True),
    Column("type", name_type(100), nullable=False),
    Column("stream", name_type(255), nullable=False),
    CheckConstraint("kind IN (0, 1, 2)", name="kind"),
    sqlite_with_rowid=False,
)

hash_tiles = Table(
    "hash_tiles",
    metadata,
    Column("journal_id", OFFSET, primary_key=True),
    Column("level", SmallInteger, primary_key=True),
    Column("tile_index", OFFSET, primary_key=True),
    Column("hashes", LargeBinary, nullable=False),
    CheckConstraint("level >= 0 AND level <= 7", name="level"),
    CheckConstraint("tile_index >= 0", name="tile_index"),
    CheckConstraint("length(hashes) >= 32 AND length(hashes) <= 8192", name="hashes"),
    sqlite_with_rowid=False,
)
"""The Merkle tree of each journal in tiles of up to 256 hashes; a tile only grows."""

seals = Table(
    "seals",
    metadata,
    Column("journal_id", OFFSET, primary_key=True, autoincrement=False),
    Column("origin", name_type(255), nullable=False),
    Column("size", OFFSET, nullable=False),
    Column("root", LargeBinary, nullable=False),
    Column("sealed_at", UtcTimestamp(), nullable=False),
    CheckConstraint("size >= 0", name="size"),
    CheckConstraint("length(root) = 32", name="root"),
    sqlite_with_rowid=False,
)
"""How far each journal is sealed, and with what root."""

signed_checkpoints = Table(
    "signed_checkpoints",
    metadata,
    Column("journal_id", OFFSET, primary_key=True),
    Column("origin", name_type(255), primary_key=True),
    Column("size", OFFSET, primary_key=True),
    Column("note", Text, nullable=False),
    Column("made_at", UtcTimestamp(), nullable=False),
    CheckConstraint("size >= 0", name="size"),
    sqlite_with_rowid=False,
)
"""The newest signed note of each log, and the first one of each minute."""

subject_keys = Table(
    "subject_keys",
    metadata,
    Column("journal", name_type(100), primary_key=True),
    Column("subject", name_type(255), primary_key=True),
    Column("key_id", name_type(32), nullable=False),
    Column("wrapped", Text),
    Column("created_at", UtcTimestamp(), nullable=False),
    Column("destroyed_at", UtcTimestamp()),
    CheckConstraint("(wrapped IS NULL) = (destroyed_at IS NOT NULL)", name="destroyed"),
    Index("uq_subject_keys_key_id", "journal", "key_id", unique=True),
    Index("ix_subject_keys_journal_destroyed_at", "journal", "destroyed_at"),
    sqlite_with_rowid=False,
)
"""The data key of each subject of personal data, wrapped; it may lie in another database."""

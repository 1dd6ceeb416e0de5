"""Alembic migrations: all durable DDL."""

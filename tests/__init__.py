"""Tests of the ledger, its read models and its tools."""

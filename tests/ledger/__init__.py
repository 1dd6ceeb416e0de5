"""Tests of the write side: the journal, its stores, and the command `ledger`."""

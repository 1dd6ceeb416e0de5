"""Tests of the pure domain: no database, no clock."""

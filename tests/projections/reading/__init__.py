"""Tests of reading the tables, live or as of a point."""

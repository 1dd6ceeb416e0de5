"""Tests of what services call."""

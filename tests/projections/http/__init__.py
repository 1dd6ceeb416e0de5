"""Tests of the service that reads."""

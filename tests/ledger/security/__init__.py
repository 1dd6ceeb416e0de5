"""Tests of password hashes and of the form of API keys."""

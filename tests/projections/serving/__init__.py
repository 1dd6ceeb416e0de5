"""Tests of the HTTP service as a program."""

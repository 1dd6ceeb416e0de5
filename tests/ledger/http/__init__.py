"""Tests of the service that commands are sent to."""

"""Tests of sealing, publishing and proving."""

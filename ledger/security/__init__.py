"""Secrets: how passwords are hashed, and what an API key looks like."""

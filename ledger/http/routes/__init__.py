"""The routes of the write side, one module for each kind of thing."""

"""The commands of `replay.py` that show tables at points of a journal: as-of, diff, history."""

"""Reading the tables, live or as of any point: pages, rows, histories, differences and files."""

from projections.reading.reading import NotCaughtUp, PointUnknown, Reading

__all__ = ["NotCaughtUp", "PointUnknown", "Reading"]

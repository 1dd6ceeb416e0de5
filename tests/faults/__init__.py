"""Faults: everything that can break is broken, and afterwards nothing may be lost or done twice."""

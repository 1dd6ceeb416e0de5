"""The whole HTTP service, run as a process of its own."""

"""The adapters in `examples/`, run as programs over the real files."""

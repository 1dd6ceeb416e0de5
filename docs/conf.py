"""How Sphinx builds these pages; `make docs` runs it."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "Trading ledger"
version = release = version_of("trading-ledger")

extensions = ["myst_parser", "reference"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
suppress_warnings = ["misc.highlighting_failure"]  # shortened code, with an ellipsis in it

smartquotes = False  # it makes dashes of the hyphens of options

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_last_updated_fmt = None

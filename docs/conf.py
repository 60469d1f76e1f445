"""Sphinx configuration: `make docs`."""

from msocks import __version__

project = "MSOCKS"
author = "the MSOCKS authors"
copyright = "the MSOCKS authors, Apache-2.0"
version = release = __version__

extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "MSOCKS"
html_copy_source = False

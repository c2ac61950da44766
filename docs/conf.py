"""How Sphinx builds this documentation: `make docs`."""

from __future__ import annotations

from importlib.metadata import version as _version_of

project = "trio-spanbatch"
version = release = _version_of("trio-spanbatch")
copyright = "the trio-spanbatch contributors"  # noqa: A001 - the name is Sphinx's
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "examples"]
html_theme = "furo"
html_title = "trio-spanbatch"
html_static_path = ["_static"]
html_css_files = ["tables.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# The docstrings are Markdown-like: `name` is a piece of code, not a cross-reference.
default_role = "code"
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"

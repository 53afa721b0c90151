"""Sphinx: the documents of this folder as a site. `make docs` builds it, and every warning is an error there.

Links between documents and their anchors are checked by the build, and by tests/arch/test_links.py without it. What an
annotation of a library outside this project means is not looked up: that needs a network.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "tools"))

from api_pages import as_rst, link_public_name, skip_names_of_the_core
from root_pages import read_from_the_root

project = "bam"
html_title = "bam"
html_theme = "furo"
highlight_language = "text"
maximum_signature_line_length = 80
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
exclude_patterns = ["performance/*.md", "_static", "tools"]

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 4

nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!bam\.|bam_core\.).*"),
    ("py:.*", r"bam_core\.\w+\..*"),
    ("py:.*", r"bam\.[a-z].*"),
]
"""Other libraries' names, and names of ours that are no part of the interface."""
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "imported-members": True, "undoc-members": True}
python_use_unqualified_type_names = True


def setup(app):
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("autodoc-skip-member", skip_names_of_the_core)
    app.connect("missing-reference", link_public_name)
    app.connect("source-read", read_from_the_root)

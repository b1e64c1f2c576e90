"""Sphinx' settings. `make docs` builds docs/_build/html; docs/references.py writes pages from the code."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from docs import references  # noqa: E402 - the path above leads to it
from shared import __version__  # noqa: E402

project = "Osteon"
author = "The Osteon authors"
release = version = __version__
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "fieldlist"]
myst_heading_anchors = 4
nitpicky = True
html_theme = "furo"
html_title = f"Osteon {__version__}"
html_theme_options = {"source_directory": "docs/"}
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sourcelink = False
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Write the generated pages before Sphinx looks for its sources; links out of docs lead to pages of the site."""
    app.connect("config-inited", lambda *_: references.write(HERE / references.GENERATED))
    app.connect("source-read", _link)


def _link(app: Sphinx, name: str, source: list[str]) -> None:
    folder = Path(app.srcdir, name).parent
    source[0] = references.linked(source[0], folder, folder)

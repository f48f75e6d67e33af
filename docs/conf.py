"""Settings of the site: ``make site``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import xent


def mathjax() -> Path:
    """The one file of MathJax that draws formulas as SVG, and so needs no fonts and no network."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "static" / "mathjax" / "tex-svg.js"


project = "xent"
author = "the developers of xent"
version = release = xent.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
source_suffix = {".md": "myst-nb", ".rst": "restructuredtext"}
exclude_patterns = ["experiments/*.txt"]

# Pages written in Markdown; a block of {code-cell} is run when the site is built.
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"  # a page runs again only if its cells have changed
nb_execution_raise_on_error = True
nb_execution_timeout = 60
nb_merge_streams = True
copybutton_exclude = ".linenos, .gp, .go"

bibtex_bibfiles = ["references.bib"]

html_theme = "pydata_sphinx_theme"
html_title = "xent"
html_static_path = ["_static", str(mathjax())]
mathjax_path = "tex-svg.js"

html_css_files = ["site.css"]

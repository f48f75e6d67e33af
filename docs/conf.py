"""Settings of the site: ``make site``."""

from __future__ import annotations

import gc
import importlib.util
import sys
from pathlib import Path

from jupyter_cache.cache.db import create_db
from sphinx.application import Sphinx

import xent

sys.path[:0] = [str(Path(__file__).parent / "site"), str(Path(__file__).parents[1])]
# Pages are millions of small objects that stay until the end. Without visits of the collector a
# build whose notebooks are stored takes 53 s instead of 84, and 1.05 GB of memory instead of 0.9.
gc.disable()


def mathjax() -> Path:
    """The one file of MathJax that draws formulas as SVG, and so needs no fonts and no network."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    assert spec is not None
    return Path(str(spec.origin)).parent / "static" / "mathjax" / "tex-svg.js"


project = "xent"
author = copyright = "The xent maintainers"
version = release = xent.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "loss_pages",
    "loss_tables",
    "api_pages",
    "pairs_directive",
    "playground_page",
    "reading_order",
    "start_picture",
    "cost_picture",
]
source_suffix = {".md": "myst-nb", ".rst": "restructuredtext"}
exclude_patterns = ["experiments/*.txt", "jupyter_execute", ".jupyter_cache", "site"]
templates_path = ["_templates"]

# Pages written in Markdown; a block of {code-cell} is run when the site is built.
myst_enable_extensions = [
    "amsmath",
    "attrs_inline",
    "colon_fence",
    "deflist",
    "dollarmath",
    "substitution",
]
myst_substitutions = {"losses": len(xent.losses.CATALOG)}
myst_heading_anchors = 3
nb_execution_mode = "cache"  # a page runs again only if its cells have changed
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # of a cell, on a machine that is busy
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
copybutton_exclude = ".linenos, .gp, .go"
bibtex_bibfiles = ["references.bib"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the lists of arguments tell the types in words
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Use", "Call", "Shape", ("On request", "params_style")]
napoleon_use_ivar = True
# Names of other libraries, whose pages this site does not ask.
nitpick_ignore_regex = [
    ("py:.*", r"(collections|functools|matplotlib|numpy|sklearn|torch|transformers)\..*")
]
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = "xent"
html_static_path = ["_static", str(mathjax())]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_favicon = "_static/mark.svg"
html_show_sourcelink = html_copy_source = html_show_sphinx = False
html_show_search_summary = False  # a page opened as a file may not fetch the others
mathjax_path = "tex-svg.js"
html_context = {
    "sections": [
        ("Learn", "learn/index"),
        ("Which loss?", "which-loss"),
        ("Losses", "losses/index"),
        ("Playground", "playground.html"),
        ("Coming from", "coming-from/index"),
        ("API", "api/index"),
        ("More", "more"),
    ],
    "default_mode": "auto",
}
html_theme_options = {
    "logo": {"text": "xent", "image_light": "_static/mark.svg", "image_dark": "_static/mark.svg"},
    "navbar_center": ["site-nav"],
    "navbar_end": ["theme-switcher"],
    "show_toc_level": 2,
    "navigation_depth": 2,
    "collapse_navigation": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"index": [], "which-loss": []}


def make_cache(app: Sphinx, *_: object) -> None:
    """Make the tables in which outputs are stored; two readers that make them at once fail."""
    folder = Path(app.env.mystnb_config.execution_cache_path)
    folder.mkdir(parents=True, exist_ok=True)
    create_db(folder)


def setup(app: Sphinx) -> None:
    """Make what the readers of pages share, before Sphinx starts them."""
    app.connect("env-before-read-docs", make_cache)

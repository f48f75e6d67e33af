"""The Sphinx directive ``{pair}``: theirs beside xent's, and the number below."""

from __future__ import annotations

from typing import Any, ClassVar

from docutils import nodes
from pairs import LIBRARIES, Library, Pair, pair
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

SIDE = """
::::{{grid-item}}
```{{code-block}} {language}
:caption: {title}

{code}
```
::::
"""

GRID = """
:::::{{grid}} 1 1 2 2
:gutter: 2
:margin: 3 2 0 0
:class-container: pair
{sides}
:::::

{sentence}
"""


class PairDirective(SphinxDirective):
    """Two blocks of code side by side; the argument is the page of the other library."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"formula": str}

    def run(self) -> list[nodes.Node]:
        """Return the blocks and the sentence below them."""
        library = LIBRARIES[self.arguments[0]]
        read = pair("\n".join(self.content), self.options.get("formula"))
        sides = (library.language, library.title, read.theirs), ("python", "xent", read.ours)
        grid = "".join(SIDE.format(language=a, title=b, code=c) for a, b, c in sides)
        text = GRID.format(sides=grid, sentence=sentence(library, read))
        return self.parse_text_to_nodes(text)


def sentence(library: Library, read: Pair) -> str:
    """Say which number comes out."""
    if not read.told:
        return ""
    theirs, ours = read.told
    source = f"`{read.formula}`, the formula of {library.title}," if read.formula else library.title
    if theirs == ours:
        return f"{source} and xent give **{ours}**."
    return f"{source} gives **{theirs}**, xent gives **{ours}**."


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx of the directive."""
    app.add_directive("pair", PairDirective)
    return {"parallel_read_safe": True}

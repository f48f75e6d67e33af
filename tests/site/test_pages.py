"""The built pages as files: links and anchors lead somewhere, and nothing comes from elsewhere."""

import re
from functools import cache
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

from . import SITE, needs_site

# What a page loads, by tag and attribute; whatever a reader may follow is in <a>.
LOADED = {
    ("link", "href"), ("script", "src"), ("img", "src"), ("img", "srcset"), ("source", "src"),
    ("source", "srcset"), ("iframe", "src"), ("object", "data"), ("embed", "src"),
    ("video", "src"), ("audio", "src"),
}  # fmt: skip


class Page(HTMLParser):
    """Anchors and links of a page, what the page loads, and its pictures without words."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loaded, self.silent = {"", "top"}, [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        self.loaded += [value for key, value in attrs if (tag, key) in LOADED and value]
        if tag == "img" and given.get("alt") is None:
            self.silent.append(given.get("src"))


@cache
def pages():
    """Return the pages by their paths within the site."""
    files = sorted(SITE.rglob("*.html"))
    inside = [file for file in files if "_static" not in file.relative_to(SITE).parts]
    return {f.relative_to(SITE).as_posix(): Page(f.read_text("utf-8")) for f in inside}


def target_of(path, link):
    """Return the file and the anchor of a link within the site, or None for other links."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    file = (SITE / path).parent / unquote(parts.path) if parts.path else SITE / path
    return file.resolve(), unquote(parts.fragment)


@needs_site
def test_links_and_anchors_lead_somewhere():
    broken = []
    for path, page in pages().items():
        for link in page.links:
            target = target_of(path, link)
            if target is None:
                continue
            file, anchor = target
            name = file.relative_to(SITE.resolve()).as_posix() if file.exists() else None
            is_state = name == "playground.html"  # its address holds logits, not an anchor
            if name is None or not (
                is_state or name not in pages() or anchor in pages()[name].anchors
            ):
                broken.append(f"{path}: {link}")
    assert not broken, "\n".join(broken[:40])


@needs_site
def test_no_page_loads_anything_from_elsewhere():
    for path, page in pages().items():
        for source in page.loaded:
            target = None if source.startswith("data:") else target_of(path, source)
            assert source.startswith("data:") or (target and target[0].exists()), (path, source)


@needs_site
def test_styles_and_scripts_name_no_other_host():
    """Comments may name where a file comes from; addresses in url() and import are loaded."""
    for file in SITE.rglob("*.css"):
        text = file.read_text("utf-8").replace(" ", "")
        assert "url(http" not in text, file
        assert "url(//" not in text, file
        assert not re.search(r"@import(url\()?[\"']?(https?:)?//", text), file


@needs_site
def test_every_picture_has_words():
    assert not {path: page.silent for path, page in pages().items() if page.silent}


@needs_site
def test_the_playground_is_there_and_linked():
    assert "playground.html" in pages()
    linked = [p for p, page in pages().items() if any("playground.html" in x for x in page.links)]
    assert len(linked) > 100

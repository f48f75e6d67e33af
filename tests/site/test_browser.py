"""The pages in a browser, opened from the folder: formulas, search, access, narrow screens."""

import pytest

from . import SITE, needs_site
from .test_pages import pages

PARTS = 8  # of all pages, so that several processes share them
TEN = (
    "index.html", "learn/index.html", "learn/01-softmax.html", "learn/02-cross-entropy.html",
    "which-loss.html", "losses/index.html", "losses/focal_loss.html", "api/xent.html",
    "language-models.html", "gallery/index.html",
)  # fmt: skip
# Words that people look for, and a page that must be among the answers.
SEARCHED = {
    "softmax": "learn/01-softmax.html",
    "focal": "losses/focal_loss.html",
    "perplexity": "api/xent.information.html",
    "calibration": "learn/12-calibration.html",
    "jacobian": "learn/01-softmax.html",
    "hinge": "losses/crammer_singer_loss.html",
    "REINFORCE": "learn/17-reinforce.html",
    "LinearLogits": "language-models.html",
    "smoothing": "losses/smoothed_cross_entropy.html",
    "Lightning": "frameworks.html",
}
FORMULAS = """() => {
    const bad = [];
    for (const formula of document.querySelectorAll('.math')) {
        if (!formula.querySelector('mjx-container')) bad.push(formula.textContent.slice(0, 80));
        if (formula.querySelector('mjx-merror, [data-mml-node="merror"]'))
            bad.push('error in ' + formula.innerHTML.slice(0, 80));
    }
    const words = document.querySelector('article') || document.body;
    const raw = words.innerText.match(/\\\\[([]/);
    const code = [...document.querySelectorAll('pre, code')];
    if (raw && !code.some(x => x.textContent.includes(raw[0]))) bad.push('raw ' + raw[0]);
    return bad;
}"""


@pytest.fixture
def opened(browser):
    """Return a function that opens a page and notes what is wrong there."""
    tabs, complaints = [], []

    def note(where, text):
        if not text.startswith("[PST]"):  # the theme tells which colours it took
            complaints.append(f"{where}: {text}")

    def open_page(path, **options):
        tab = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **options})
        tab.set_default_timeout(300_000)  # on a machine that is busy
        tab.on("console", lambda message: note(path, message.text))
        tab.on("pageerror", lambda error: note(path, str(error)))
        allowed = ("file:", "data:", "blob:")
        tab.on("request", lambda r: r.url.startswith(allowed) or note(path, r.url))
        tab.goto(f"{SITE.as_uri()}/{path}")
        tab.evaluate("() => window.MathJax?.startup?.promise")
        tabs.append(tab)
        return tab

    yield open_page
    for tab in tabs:
        tab.close()
    assert not complaints, "\n".join(complaints[:20])


@needs_site
@pytest.mark.parametrize("part", range(PARTS))
def test_pages_show_their_formulas_and_fit_a_narrow_screen(opened, part):
    bad = []
    for path in list(pages())[part::PARTS]:
        tab = opened(path)
        bad += [f"{path}: {formula}" for formula in tab.evaluate(FORMULAS)]
        tab.set_viewport_size({"width": 390, "height": 844})
        width = tab.evaluate("document.documentElement.scrollWidth")
        bad += [f"{path}: {width} pixels wide"] * (width > 390)
        tab.close()
    assert not bad, "\n".join(bad[:40])


@needs_site
@pytest.mark.parametrize("word", SEARCHED)
def test_the_search_finds(opened, word):
    tab = opened(f"search.html?q={word}")
    tab.wait_for_selector("#search-results li a")
    tab.wait_for_function("!document.querySelector('#search-results .search-summary')?"
                          ".textContent.includes('...')")  # fmt: skip
    tab.wait_for_timeout(1000)
    links = tab.locator("#search-results li a")
    found = [link.get_attribute("href") for link in links.all()]
    assert any(SEARCHED[word] in link for link in found), found[:20]


@needs_site
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", [*TEN, "playground.html"])
def test_everybody_can_use_a_page(opened, path, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tab = opened(path, color_scheme=scheme)
    found = axe.run(tab, options={"preload": False}).response["violations"]  # it may not fetch
    grave = [rule for rule in found if rule["impact"] in ("serious", "critical")]
    told = [f"{rule['id']}: {node['html'][:160]}" for rule in grave for node in rule["nodes"][:4]]
    assert not told, "\n".join(told)

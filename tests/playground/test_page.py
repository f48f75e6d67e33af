"""The page in a browser: mouse, touch, keys, addresses, and the Python that it gives."""

import contextlib
import io
import re

import pytest

import xent
from xent.losses import CATALOG
from xent.playground import page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "play.html"
    file.write_text(page([(CATALOG["cross_entropy"], {}), (CATALOG["focal_loss"], {"gamma": 2})]))
    return file.as_uri()


@pytest.fixture
def opened(browser, address):
    """Return a function that opens the page; at the end nothing was wrong, or asked of a host."""
    complaints, pages = [], []

    def open_at(hash="", **options):
        options = {"viewport": {"width": 1200, "height": 900}, **options}
        tab = browser.new_page(**options)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on(
            "request", lambda r: r.url.startswith(("file:", "data:")) or complaints.append(r.url)
        )
        tab.goto(address + hash)
        pages.append(tab)
        return tab

    yield open_at
    for tab in pages:
        tab.close()
    assert complaints == []


def logit(tab, j):
    return tab.get_by_role("slider", name=f"logit of class {j}", exact=True)


def now(tab, j):
    return float(logit(tab, j).get_attribute("aria-valuenow"))


def result(tab, side="a"):
    """Return the loss with all digits."""
    return float(tab.locator(f"#tile-{side} .value").get_attribute("title"))


def hash_of(tab):
    tab.wait_for_function("location.hash.length > 1")
    tab.wait_for_timeout(400)  # the address follows a moment later
    return tab.evaluate("location.hash")


def test_dragging_moves_a_logit(opened):
    tab = opened("#z=2,0,-1&y=0")
    before, box = result(tab), logit(tab, 0).bounding_box()
    x, middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.mouse.move(x, middle)
    tab.mouse.down()
    tab.mouse.move(x, middle + box["height"] / 4, steps=4)
    tab.mouse.up()
    assert now(tab, 0) == pytest.approx(-5, abs=0.2)
    assert result(tab) > before
    tab.mouse.move(x, middle)  # the button is up
    assert now(tab, 0) == pytest.approx(-5, abs=0.2)


def test_touch_moves_a_logit(opened):
    tab = opened("#z=2,0,-1&y=0", has_touch=True, viewport={"width": 390, "height": 844})
    box = logit(tab, 1).bounding_box()
    tab.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.1)
    assert now(tab, 1) == pytest.approx(8, abs=0.3)


def test_keys_move_a_logit(opened):
    tab = opened("#z=2,0,-1&y=0")
    logit(tab, 1).focus()
    steps = {
        "ArrowUp": 0.1, "ArrowRight": 0.2, "PageUp": 1.2, "ArrowDown": 1.1, "End": 10, "Home": -10,
        "0": 0,
    }  # fmt: skip
    for key, value in steps.items():
        tab.keyboard.press(key)
        assert now(tab, 1) == value
    assert tab.locator("#curve-title").inner_text() == "The loss as the logit of class 1 moves"


def test_a_typed_logit_stretches_the_bars(opened):
    tab = opened("#z=2,0,-1&y=0&a=cross_entropy&b=none")
    tab.get_by_label("logit of class 2, typed").fill("34.5")
    tab.keyboard.press("Enter")
    assert now(tab, 2) == 34.5
    assert result(tab) == pytest.approx(32.5)
    logit(tab, 2).focus()
    tab.keyboard.press("End")
    assert now(tab, 2) == 40


def test_the_number_of_classes(opened):
    tab = opened("#z=0,0,0&q=0.5,0.5,0&a=cross_entropy&b=none")
    tab.locator("#more").click()
    assert result(tab) == pytest.approx(1.3862943611198906)  # log(4)
    for _ in range(3):
        tab.locator("#fewer").click(force=True)  # the last click finds the button disabled
    assert hash_of(tab) == "#z=0,0&q=0.5,0.5&a=cross_entropy&b=none"


def test_the_numbers_of_rows(opened):
    tab = opened("#z=0,0&y=1&n=90,10&a=logit_adjusted_loss&b=none")
    assert result(tab) == pytest.approx(2.302585092994046)  # log(10)
    tab.get_by_label("rows of class 0", exact=True).fill("10")
    tab.keyboard.press("Enter")
    assert result(tab) == pytest.approx(0.6931471805599453)  # log(2)
    tab.get_by_label("rows of class 0", exact=True).fill("-5")  # is refused
    tab.keyboard.press("Enter")
    assert hash_of(tab) == "#z=0,0&y=1&n=10,10&a=logit_adjusted_loss&b=none"
    tab.locator("#more").click()
    assert hash_of(tab) == "#z=0,0,0&y=1&n=10,10,25&a=logit_adjusted_loss&b=none"
    tab.get_by_label("loss A", exact=True).select_option("cross_entropy")
    assert tab.get_by_label("rows of class 0", exact=True).count() == 0


def test_the_state_is_in_the_address(opened):
    tab = opened("#z=1,2,3&y=2&t=2&a=focal_loss:gamma=5&b=none")
    assert hash_of(tab) == "#z=1,2,3&y=2&t=2&a=focal_loss:gamma=5&b=none"
    logit(tab, 0).focus()
    tab.keyboard.press("PageUp")
    tab.get_by_label("class 1 is the target").check()
    tab.get_by_label("loss B", exact=True).select_option("mae_loss")
    changed = hash_of(tab)
    assert changed == "#z=2,2,3&y=1&t=2&a=focal_loss:gamma=5&b=mae_loss"
    again = opened(changed)
    assert (result(again), result(again, "b")) == (result(tab), result(tab, "b"))


@pytest.mark.parametrize(
    "hash", ["#z=nan,1&y=9&a=nothing&t=0", "#q=1&z=1", "#a=focal_loss:gamma=-3,x=1&b=__proto__"]
)
def test_a_wrong_address_shows_a_page_all_the_same(opened, hash):
    assert result(opened(hash)) >= 0


SITUATIONS = [
    "#z=2,0.5,-1&y=0&a=cross_entropy:label_smoothing=0.1&b=focal_loss:gamma=0.5",
    "#z=2,0.5,-1&y=1&t=0.5&a=binary_cross_entropy_with_logits&b=energy_loss:outliers=true",
    "#z=2,0.5,-1&q=0.5,0.25,0.25&a=cross_entropy&b=asymmetric_loss:clip=0.1",
    "#z=0.5,0.2,-0.1&y=0&a=arcface_loss:scale=16&b=evidential_loss:form=expected",
    "#z=1,2&y=0&a=forward_corrected_symmetric_noise_loss&b=none",
    "#z=2,0.5,-1&y=2&n=90,9,1&a=logit_adjusted_loss:tau=0.5&b=vs_loss",
]


@pytest.mark.parametrize("hash", SITUATIONS)
def test_python_gives_the_numbers_of_the_page(opened, hash):
    tab = opened(hash)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(tab.locator("#python").inner_text(), {})
    told = [float(line) for line in printed.getvalue().split()]
    shown = [result(tab)] + ([] if hash.endswith("none") else [result(tab, "b")])
    assert told == pytest.approx(shown, rel=1e-12)


def test_copying(opened):
    tab = opened("#z=1,2&y=0&a=cross_entropy&b=none")
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.locator("#copy-python").click()
    assert "xent.cross_entropy(logits, target)" in tab.evaluate("navigator.clipboard.readText()")
    tab.locator("#copy-link").click()
    tab.wait_for_function("document.querySelector('#copy-link').textContent === 'Copied'")
    assert tab.evaluate("navigator.clipboard.readText()").endswith(
        "#z=1,2&y=0&a=cross_entropy&b=none"
    )


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(opened, width, scheme):
    names = "binary_cross_entropy_with_logits", "backward_corrected_symmetric_noise_loss"
    tab = opened(
        f"#z=20,-20,1,2,3,4,5,6&y=7&a={names[0]}&b={names[1]}",
        viewport={"width": width, "height": 844}, color_scheme=scheme,
    )  # fmt: skip
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    last = tab.locator(".column").last.bounding_box()
    board = tab.locator(".board").bounding_box()
    assert last["x"] + last["width"] <= board["x"] + board["width"]
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (min(map(int, re.findall(r"\d+", ground))) > 128) == (scheme == "light")


def test_the_theme_changes(opened):
    tab = opened(color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = tab.evaluate(ground)
    tab.locator("#theme").click()
    assert tab.evaluate(ground) != before
    tab.locator("#theme").click()
    assert tab.evaluate(ground) == before


# ---- messages ----------------------------------------------------------------------------------


def test_findings_have_the_names_of_diagnose(opened):
    import torch

    z, q = [0.7, 0.2, 0.1], [1.0, 1.0, 0.0]
    found = xent.diagnose(torch.tensor([z]).double(), torch.tensor([q]).double())
    names = {finding.name for finding in found}
    assert {"softmax-as-logits", "soft-target-sum"} <= names
    tab = opened(f"#z={','.join(map(str, z))}&q=1,1,0&a=cross_entropy&b=mae_loss")
    assert set(tab.locator(".finding b").all_inner_texts()) == names | {"refused"}
    assert "mae_loss takes one class per row" in tab.locator("#findings").inner_text()
    assert tab.locator("#tile-b .value").inner_text() == "NaN"


def test_float32_by_hand_loses_a_sure_row(opened):
    tab = opened("#z=20,-4,-6&y=0&a=cross_entropy&b=none")
    assert tab.locator("#tile-a .by-hand").inner_text() == "float32 by hand: 0"
    assert result(tab) == pytest.approx(4.2860e-11, rel=1e-4)  # e^-24 + e^-26
    assert tab.locator(".finding b").all_inner_texts() == ["float32"]


def test_the_classic_mistakes(opened):
    tab = opened("#z=0,0,0,0&y=3&a=cross_entropy&b=none")
    cards = tab.locator("#mistakes .card").all_inner_texts()
    assert [card.split("\n")[0] for card in cards] == [
        "Softmax first", "Labels from 1", "Mean over N \N{MULTIPLICATION SIGN} K"
    ]  # fmt: skip
    assert "costs 0.7437" in cards[0]  # log(1 + 3 / e)
    assert "labels go from 0 to 3" in cards[1]
    assert "0.3466" in cards[2]  # log(4) / 4


def test_every_situation_opens(opened):
    tab = opened()
    for link in tab.locator("#situations a").all():
        link.click()
        hash = link.get_attribute("href")
        tab.wait_for_function("hash => writeState(state) === hash", arg=hash)
    assert tab.locator("#situations a").count() >= 8


def test_every_loss_can_be_chosen(opened):
    tab = opened("#z=0.6,0.2,-0.1&y=0")
    names = tab.locator("#loss-a .which option").all_inner_texts()
    assert len(names) >= 40
    for name in names:
        tab.get_by_label("loss A", exact=True).select_option(name)
        assert result(tab) == result(tab)  # no NaN
        assert tab.locator("#curve path.a").get_attribute("d")

"""The losses of the playground: their JavaScript agrees with xent in float64."""

import json
import re
import shutil
import subprocess

import pytest
import torch

import xent
from xent.losses import CATALOG
from xent.losses.catalog import Member
from xent.playground import Untraceable, page
from xent.playground.losses import of_catalog, of_function
from xent.playground.page import SCRIPTS, asset, data
from xent.playground.trace import OPERATIONS, javascript

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")


def test_at_least_forty_losses_are_there():
    losses, left_out = of_catalog()
    assert len(losses) >= 40
    assert losses.keys() | left_out.keys() == CATALOG.keys()
    assert not any("`" in loss["summary"] for loss in losses.values())  # marks of code


# A loss leaves this list when the playground can show it; no loss may come in unnoticed.
LEFT_OUT = {
    "its body sees more than the numbers of a row or of an element": {
        "bi_tempered_loss", "circle_loss", "continuation_loss", "cosent_loss", "cox_loss",
        "cumulative_link_loss", "cumulative_loss", "decoupled_contrastive_loss",
        "decoupled_distillation_loss", "distillation_loss", "dual_focal_loss", "entmax_loss",
        "forward_corrected_cross_entropy", "hardest_loss", "kl_div", "logit_norm_loss",
        "margin_smoothing_loss", "mixup_cross_entropy", "multi_similarity_loss",
        "multilabel_cross_entropy", "nca_loss", "ngl_loss", "nll_loss", "pairwise_logistic_loss",
        "plackett_luce_loss", "seesaw_loss", "set_cross_entropy", "siglip_loss",
        "sparse_cross_entropy", "sparsemax_loss", "supcon_loss", "weston_watkins_loss",
        "wordtree_cross_entropy", "yolo_loss", "zlpr_loss",
    },
    "it needs `matrix`, which is no number": {"backward_corrected_cross_entropy"},
    "it needs `table`, which is no number": {"structured_cross_entropy"},
    "it compares the rows of a batch": {"recall_loss"},
    "it takes probabilities, not logits": {"binary_cross_entropy"},
}  # fmt: skip


def test_what_is_left_out_has_a_reason():
    told = {name: reason for reason, names in LEFT_OUT.items() for name in names}
    assert of_catalog()[1] == told


# ---- JavaScript against xent -----------------------------------------------------------------


def run(script):
    """Return what a script that follows those of the page gives, from node."""
    scripts = "\n".join(asset(name) for name in ("numbers.js", "statistics.js"))
    losses = data(*of_catalog(), ("cross_entropy", "focal_loss"))
    text = f"{scripts}\n{losses}\n{script}"
    done = subprocess.run([NODE, "-"], input=text, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def states(name, count, seed):
    """Return random states of a loss: hyperparameters, logits, and a class or numbers in [0, 1]."""
    loss, g = of_catalog()[0][name], torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        classes, size = (int(torch.randint(*x, (), generator=g)) for x in ((2, 9), (0, 3)))
        z = torch.randn(classes, dtype=torch.float64, generator=g) * (1.0, 3.0, 10.0)[size]
        z = z.tanh() if "logit_scale" in loss else z  # cosines
        options = {key: option_of(option, classes, g) for key, option in loss["options"].items()}
        target = int(torch.randint(classes, (), generator=g))
        if loss["elements"] and torch.rand((), generator=g) < 0.5:
            target = torch.rand(classes, dtype=torch.float64, generator=g).tolist()
        elif "soft" in loss and torch.rand((), generator=g) < 0.5:
            noise = torch.randn(classes, dtype=torch.float64, generator=g)
            target = noise.softmax(0).tolist()
        made.append((name, options, z.tolist(), target))
    return made


def option_of(option, classes, g):
    """Return a random hyperparameter of those that the page offers."""
    if "counts" in option:
        return (torch.rand(classes, generator=g) * 100 + 1).round().tolist()
    if "choices" in option:
        return option["choices"][int(torch.randint(len(option["choices"]), (), generator=g))]
    share = float(torch.rand((), generator=g))
    if share < 0.2:
        return option["value"]
    low, high = option["low"] or 0.0, option["high"]
    if option["value"] == 0.2 and option["default"] is None:  # a rate of noise, below chance
        return share * (1 - 1 / classes) / 2
    return low + (1e-3 + share) * ((high - low) / 1.01 if high else max(option["value"], 1))


def by_xent(name, options, z, target):
    """Return loss and gradient of the library; the reduction is the mean."""
    logits = torch.tensor([z], dtype=torch.float64, requires_grad=True)
    if of_catalog()[0][name]["elements"] and not isinstance(target, list):
        target = [float(j == target) for j in range(len(z))]
    soft = isinstance(target, list)
    goal = torch.tensor([target], dtype=torch.float64 if soft else torch.int64)
    loss = getattr(xent.losses, name)(logits, goal, **options)
    return loss.item(), torch.autograd.grad(loss, logits)[0][0].tolist()


def compare(name, count, seed):
    cases = states(name, count, seed)
    found = run(
        f"const cases = {json.dumps(cases)};"
        "console.log(JSON.stringify(cases.map(([n, h, z, y]) => evaluate(LOSSES[n], h, z, y))))"
    )
    for case, result in zip(cases, found, strict=True):
        value, gradient = by_xent(*case)
        assert result["value"] == pytest.approx(value, rel=1e-12, abs=0), case
        # A gradient that is tiny beside its loss may be a difference of larger parts.
        size = max(*map(abs, gradient), abs(value))
        for ours, theirs in zip(result["gradient"], gradient, strict=True):
            assert abs(ours - theirs) <= 1e-12 * size, case


QUICK = (
    "cross_entropy", "focal_loss", "arcface_loss", "large_margin_loss", "evidential_loss",
    "taylorglo_loss", "asymmetric_loss", "ldam_loss", "vs_loss",
)  # fmt: skip


@needs_node
@pytest.mark.parametrize("name", QUICK)
def test_values_and_gradients(name):
    compare(name, 12, seed=1)


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize("name", sorted(of_catalog()[0]))
def test_two_hundred_states(name):
    compare(name, 200, seed=2)


@needs_node
def test_temperature_divides_the_logits():
    z, y = [2.0, -1.0, 0.5], 1
    call = f"focal_loss, {{gamma: 1.5}}, {z}, {y}, 4"
    found = run(f"console.log(JSON.stringify(evaluate(LOSSES.{call})))")
    logits = torch.tensor([z], dtype=torch.float64, requires_grad=True)
    loss = xent.losses.focal_loss(logits / 4, torch.tensor([y]), gamma=1.5)
    loss.backward()
    assert found["value"] == pytest.approx(loss.item(), rel=1e-12)
    assert found["gradient"] == pytest.approx(logits.grad[0].tolist(), rel=1e-12)


@needs_node
@pytest.mark.parametrize(("z", "shown"), [([20.0, -4.0], 0), ([95.0, 90.0], None), ([2.0, 1.0], 1)])
def test_float32_by_hand(z, shown):
    """Softmax, then log, in float32: 0 for a sure row, NaN beyond exp(88), else six digits."""
    by_hand = run(
        f"console.log(JSON.stringify(valueByHand(LOSSES.cross_entropy, "
        f"{{label_smoothing: 0, z_loss: 0}}, {z}, 0)))"
    )
    x = torch.tensor(z)
    power = x.exp()
    oracle = -(power / power.sum()).log()[0].item()
    assert by_hand == pytest.approx(oracle, abs=3e-7) if shown is not None else by_hand is None
    assert (oracle == 0) == (shown == 0)


# ---- losses of a user ------------------------------------------------------------------------


@xent.row_loss
def with_a_question(s, power: float = 2.0):
    """Adds a power of the miss. </script>"""
    return s.miss**power - s.log_prob if power > 1 else -s.log_prob


@xent.row_loss
def sorted_rows(s):
    return s.log_prob.sort().values


@xent.row_loss
def asks_without_end(s):
    x, count = s.prob, 0
    while x < 2:
        x, count = x + 1, count + 1
    return x


def test_a_question_becomes_one_of_javascript():
    code = of_function(with_a_question)["index"]
    assert code.count("return") == 2
    assert "if (o.truth(" in code


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (sorted_rows, "`sort` has no form in JavaScript"),
        (asks_without_end, "too many questions"),
        (torch.nn.functional.cross_entropy, "sees more than"),
    ],
)
def test_what_is_no_formula_is_refused(loss, reason):
    with pytest.raises(Untraceable, match=reason):
        page([(loss, {})])


def test_bad_hyperparameters_are_refused():
    with pytest.raises(ValueError, match="at least 0"):
        page([(CATALOG["focal_loss"], {"gamma": -1})])
    with pytest.raises(ValueError, match="unexpected keyword argument 'powr'"):
        page([(with_a_question, {"powr": 1})])
    with pytest.raises(ValueError, match="one or two losses"):
        page([(CATALOG["focal_loss"], {})] * 3)


def test_the_page_begins_with_the_losses_named():
    html = page(
        [(with_a_question, {"power": 3.0}), (CATALOG["taylorglo_loss"], {"theta": [1.0] * 8})]
    )
    assert 'START = ["with_a_question:power=3.0", "taylorglo_loss"]' in html
    assert f'fixed: {{"theta": {[1.0] * 8}}}' in html
    assert html.count("</script>") == 1  # text of a docstring ends no script
    assert f"from {__name__} import with_a_question" in html


def test_the_page_asks_no_other_host():
    html = page()
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)
    assert "default-src 'none'" in html
    assert set(re.findall(r"https?://[^\"'\s]*", html)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"/\*(?:style|script)\*/", html)
    assert all(asset(name) in html for name in SCRIPTS)


def test_operations_are_known_by_the_names_of_pytorch():
    assert {"log_sigmoid", "where", "clamp", "pow", "truediv"} <= OPERATIONS
    assert javascript(lambda given: given("s.a") * 2) == "const mul = o.mul(s.a, 2); return mul; "


def test_a_member_of_the_catalog_needs_no_import():
    assert isinstance(CATALOG["focal_loss"], Member)
    assert "from" not in of_catalog()[0]["focal_loss"]

"""Docstrings as the terminal shows them; the expected formulas are written by hand."""

import inspect
import re

import pytest

from xent.commands.formulas import as_unicode, readable
from xent.losses import CATALOG


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\ell = -(1 - p)^\gamma \log p", "ℓ = -(1 - p)^γ log p"),
        (r"-w_+ \, t \log\sigma(-z_{n, j})", "-w₊ t log σ(-z_{n, j})"),
        (r"\sum_{k=1}^t \theta_2^{-1} w_{y_n} \hat p_j", "Σ_{k=1..t} θ₂⁻¹ w_{y_n} p̂_j"),
        (r"\log\bigl(1 + e^{-d_n}\bigr), \qquad d_n = \bar z", "log(1 + exp(-d_n))\nd_n = z̄"),
        (
            r"\frac{1 - p^q}{q} = -\frac1C \sum_j p_j + \tfrac12",
            "(1 - p^q) / q = -(1/C) Σ_j p_j + ½",
        ),
        (r"-\log \frac{\pi_y^\tau}{\sum_j \pi_j}", "-log (π_y^τ / (Σ_j π_j))"),
        (r"\frac{1}{\alpha (\alpha - 1)}", "1 / (α (α - 1))"),
        (r"m \, (n_j / n_{\min})^{-1/4}", "m (n_j / n_min)^(-1/4)"),
        (r"W^\top z, \quad \|x\| \le \infty", "Wᵀ z,   ‖x‖ ≤ ∞"),
        (
            r"\begin{cases} -\log p & p > 1 / \tau \\ 1 - p & \text{else} \end{cases}",
            "{ -log p if p > 1 / τ; 1 - p else }",
        ),
        (r"\begin{aligned} a &= 1 \\ b &= 2 \end{aligned}", "a = 1\nb = 2"),
        (r"\lambda_{\text{obj}} \sum_{\overline{R \cup I}} 1", "λ_obj Σ_{(R ∪ I)ᶜ} 1"),
    ],
)
def test_a_formula_as_text(latex, text):
    assert as_unicode(latex) == text


def test_parts_that_are_long_together_lie_below_each_other():
    part = " + ".join("abcdefghij" * 2)
    assert as_unicode(rf"{part}, \quad {part}") == f"{part}\n{part}"


def test_the_text_about_a_formula():
    doc = """The loss of :func:`~xent.losses.focal_loss`, :math:`p^2`, and :class:`xent.Head`.

    .. math:: \\ell = p,
        \\qquad p = 1

    With ``gamma``.
    """
    assert readable(doc) == (
        "The loss of `focal_loss`, p², and `xent.Head`.\n\n"
        "        ℓ = p\n        p = 1\n\n    With `gamma`.\n    "
    )


@pytest.mark.parametrize("name", CATALOG)
def test_nothing_of_latex_is_left(name):
    text = readable(inspect.getdoc(CATALOG[name].function) or "")
    prose = text.partition("Example:")[0]  # what follows is code
    assert not re.search(r"\\|\$|``|:\w+:`|\.\. \w+::", prose)
    about = prose.partition("Args:")[0].splitlines()
    formulas = "".join(line for line in about if line.startswith("    "))
    assert all(formulas.count(left) == formulas.count(right) for left, right in ("()", "{}", "[]"))

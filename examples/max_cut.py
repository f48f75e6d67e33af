"""Max-cut: the heaviest cut of a graph by the cross-entropy method, beside the optimum.

    python examples/max_cut.py [--small] [--seeds 10] [--seed 0] [--picture runs/max_cut.png]

Needs matplotlib for the picture. Takes about half a minute.

A cut puts each node on one of two sides, so it is a vector of bits. Its weight is the weight of the
edges between the sides. For small random graphs the optimum is found by trying all cuts. For large
graphs it is planted: two groups with lighter edges inside and heavier edges between them. Every
seed is another graph. The method is compared with as many random cuts, and with climbing: from a
hundred random starts, move the best node as long as the cut gains. Climbing is the better way here.
The point is that the method comes near it from the weights of cuts alone, without knowing what a
node is.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from _experiment import hold, options, over_seeds, save
from xent.learn import Bernoulli, CrossEntropyMethod
from xent.learn.search.cross_entropy_method import SearchResult

TRIED = 18  # nodes of the small graphs, of which all cuts are tried
SHARE = 0.45  # share of the nodes of a planted graph that stand on the first side
INSIDE, BETWEEN = 4.0, 5.0  # weights within a group are uniform up to INSIDE, between them BETWEEN


class Found(NamedTuple):
    """Result for one graph."""

    optimum: float
    search: SearchResult
    random: float
    climbing: float


def cut_weights(weights: Tensor, sides: Tensor) -> Tensor:
    """Return the weight of each cut: (d, d) symmetric weights, (n, d) sides 0 or 1 -> (n,)."""
    return ((sides @ weights) * (1 - sides)).sum(1)


def heaviest(weights: Tensor) -> float:
    """Return the weight of the best of all cuts of a small graph."""
    nodes = len(weights)
    numbers = torch.arange(2 ** (nodes - 1))  # the last node stands on side 0
    every = (numbers[:, None] >> torch.arange(nodes)) & 1
    return cut_weights(weights, every.double()).max().item()


def random_graph(generator: torch.Generator) -> tuple[Tensor, float]:
    """Return a graph of half of all edges with random weights, and its best cut."""
    shape = (2, TRIED, TRIED)
    weight, there = torch.rand(shape, generator=generator, dtype=torch.float64)
    upper = torch.where(there < 0.5, weight, 0.0).triu(1)
    weights = upper + upper.T
    return weights, heaviest(weights)


def planted_graph(generator: torch.Generator, nodes: int) -> tuple[Tensor, float]:
    """Return two hidden groups, and the weight of all edges between them, the heaviest cut.

    Moving ``a`` of the ``m`` nodes of one group and ``b`` of the ``n`` of the other loses
    ``a (n - b) + b (m - a)`` edges of weight BETWEEN, and gains ``a (m - a) + b (n - b)`` of weight
    INSIDE at most.
    """
    group = round(SHARE * nodes)
    upper = INSIDE * torch.rand(nodes, nodes, generator=generator, dtype=torch.float64).triu(1)
    side = (torch.randperm(nodes, generator=generator) < group).double()
    weights = torch.where(side[:, None] != side, BETWEEN, upper + upper.T)
    return weights, BETWEEN * group * (nodes - group)


def planted_is_best(seeds: range) -> bool:
    """Return True if no cut of small planted graphs is heavier than the planted cut."""
    graphs = [planted_graph(torch.Generator().manual_seed(seed), TRIED) for seed in seeds]
    return all(heaviest(weights) <= planted * (1 + 1e-12) for weights, planted in graphs)


def search_cut(weights: Tensor, seed: int) -> SearchResult:
    """Run the cross-entropy method; the first node stands on side 0."""
    start = torch.full((len(weights),), 0.5)
    start[0] = 0.0
    search = CrossEntropyMethod(
        Bernoulli(start), population=500, elite=0.05, smoothing=0.7, seed=seed
    )
    return search.run(lambda sides: cut_weights(weights, sides), 60, quiet=True)


def climb(weights: Tensor, sides: Tensor) -> float:
    """Return the best cut that moving single nodes leads to from any of the starts."""
    sides = sides.clone()
    for _ in range(10 * len(weights)):
        signs = 1 - 2 * sides
        gains = signs * (signs @ weights)  # of moving each node
        best, node = gains.max(1)
        moves = best > 1e-9
        if not moves.any():
            break
        rows = moves.nonzero().squeeze(1)
        sides[rows, node[rows]] = 1 - sides[rows, node[rows]]
    return cut_weights(weights, sides).max().item()


def experiment(seeds: range, nodes: int) -> dict[str, list[Found]]:
    """Run all graphs; the planted graphs have ``nodes`` nodes."""
    kinds = {
        f"random, {TRIED} nodes": random_graph,
        f"planted, {nodes} nodes": partial(planted_graph, nodes=nodes),
    }
    found: dict[str, list[Found]] = {}
    with tqdm(total=2 * len(seeds), unit="graph") as bar:
        for name, make in kinds.items():
            found[name] = []
            for seed in seeds:
                generator = torch.Generator().manual_seed(seed)
                weights, optimum = make(generator)
                search = search_cut(weights, seed)
                shape = (search.evaluations, len(weights))
                sides = torch.randint(2, shape, generator=generator).double()
                best = cut_weights(weights, sides).max().item()
                found[name].append(Found(optimum, search, best, climb(weights, sides[:100])))
                bar.update()
    return found


def show(found: dict[str, list[Found]]) -> str:
    """Return the table: shares of the optimum."""
    lines = [
        f"{'percent of the optimum':22}  {'method':>15}  {'random cuts':>15}  {'climbing':>15}"
    ]
    for name, each in found.items():
        shares = torch.tensor([[f.search.score, f.random, f.climbing] for f in each])
        shares = 100 * shares / torch.tensor([f.optimum for f in each])[:, None]
        cells = (over_seeds(c, 2) for c in shares.unbind(1))
        lines.append(f"{name:22}  " + "  ".join(f"{cell:>15}" for cell in cells))
    for name, each in found.items():
        points = sum(f.search.evaluations for f in each) / len(each)
        iterations = sum(len(f.search.history) for f in each) / len(each)
        hits = sum(reached(f) for f in each)
        lines.append(
            f"{name}: optimum in {hits} of {len(each)} graphs; {iterations:.0f} iterations, "
            f"{points:,.0f} cuts out of {2.0 ** len(each[0].search.centre) / 2:.1e}"
        )
    return "\n".join(lines)


def reached(found: Found) -> bool:
    """Return True if the search found the optimum."""
    return found.search.score >= found.optimum * (1 - 1e-12)


def claims(found: dict[str, list[Found]], seeds: range) -> dict[str, bool]:
    """Return each claim with True if the claim holds."""
    small, large = found.values()
    return {
        f"planted graphs of {TRIED} nodes have no heavier cut than the planted one": (
            planted_is_best(seeds)
        ),
        "in large ones the method comes to 98 % of it every time, and finds it in half or more": (
            all(f.search.score >= 0.98 * f.optimum for f in large)
            and sum(map(reached, large)) >= len(large) / 2
        ),
        "in every random graph the method finds 90 % of the optimum or more": all(
            f.search.score > 0.9 * f.optimum for f in small
        ),
        "as many random cuts find less than 90 % of the planted optimum": all(
            f.random < 0.9 * f.optimum for f in large
        ),
    }


def draw(found: dict[str, list[Found]], path: Path) -> None:
    """Draw the best and the mean cut of each iteration."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for panel, (name, each) in zip(panels, found.items(), strict=True):
        for k, f in enumerate(each):
            for field, colour in (("best", "C0"), ("mean", "C1")):
                values = [100 * getattr(i, field) / f.optimum for i in f.search.history]
                label = f"{field} cut of the iteration" if k == 0 else None
                panel.plot(values, color=colour, linewidth=1, alpha=0.7, label=label)
        panel.axhline(100, color="black", linewidth=0.8, label="the heaviest cut there is")
        panel.set(title=f"{name}: {len(each)} graphs", xlabel="iteration")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("weight of the cut, % of the heaviest")
    panels[0].legend(loc="lower right")
    save(figure, path, dpi=130)


def main() -> None:
    """Run the experiment; print, check and draw."""
    chosen = options(__file__, __doc__, seeds=(10, 2), nodes=(200, 80))
    torch.set_num_threads(1)
    found = experiment(chosen.seeds, chosen.nodes)
    print(show(found), "\n")
    hold(claims(found, chosen.seeds))
    draw(found, chosen.picture)


if __name__ == "__main__":
    main()

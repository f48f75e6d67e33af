"""Tetris by the cross-entropy method: noise added to the variance keeps the search alive.

    python examples/tetris.py [--small] [--seeds 3] [--seed 0] [--picture runs/tetris.png]

Needs numba, and matplotlib for the picture. Takes about 4 minutes on two cores; ``--small``, on a
board of half the height and without the claim on noise, a few seconds.

A player is 22 weights of the features of Bertsekas and Tsitsiklis; it puts each piece where the
board is worth the most afterwards (``games/tetris.py`` has the rules). Of 100 players drawn from a
Gaussian, each plays one game, and the Gaussian moves to the best ten. Without noise its variance is
gone before the players are good. Three schedules of the variance that is added after each fit are
compared: none, always 4, and max(5 - t / 10, 0) in iteration t. The player in the centre of the
Gaussian is judged on fresh games. Now and then a search without noise is lucky, or one with noise
is not; so each seed stands for three searches and their mean. Games are cut after a number of
lines, as good players go on for long; in the last judgement this can only lessen the gain by noise.

References:
    Szita and Lorincz, *Learning Tetris using the noisy cross-entropy method*, Neural Computation,
    2006. Their players cleared 21,252, 72,705 and 348,895 lines. Such numbers move by a factor
    with details of the rules, and with more iterations; the claim here is a ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice, product
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from _experiment import hold, options, save
from games.tetris import PIECES, placements, play, shapes
from xent.learn import CrossEntropyMethod, Gaussian

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Noise = float | Callable[[int], float]
NOISE: dict[str, Noise] = {
    "no noise": 0.0,
    "constant noise": 4.0,
    "decreasing noise": lambda iteration: max(5 - iteration / 10, 0.0),
}
COLORS = {"no noise": "#0072B2", "constant noise": "#E69F00", "decreasing noise": "#D55E00"}
# The usual colours of I, O, T, S, Z, J and L.
PIECE_COLORS = ("#3EC1D3", "#F2C230", "#A65FC0", "#5BB450", "#E0483E", "#3F6FD1", "#EE8A2C")


class Scale(NamedTuple):
    """How large the experiment is; ``cut`` is for games of the search and of its curve."""

    rows: int = 20
    columns: int = 10
    population: int = 100
    iterations: int = 50
    searches: int = 3  # per seed
    cut: int = 3_000
    games_of_curve: int = 10
    games_at_end: int = 20
    cut_at_end: int = 100_000


SMALL = Scale(rows=10, iterations=10, searches=1, cut=500, cut_at_end=500)


class Course(NamedTuple):
    """Course of a search: its player is the centre of the Gaussian, lines are means over games."""

    at_first: float  # lines of the first players drawn
    curve: list[float]  # of its player after each iteration, on fresh games
    weights: np.ndarray  # of its last player
    lines: float  # of its last player, on fresh games


# For each schedule, seed and search.
Courses = dict[str, list[list[Course]]]


def learn(scale: Scale, seed: int, schedule: str) -> Course:
    """Run one search."""
    of_search, of_judge = np.random.default_rng(seed).spawn(2)
    start = Gaussian(torch.zeros(2 * scale.columns + 2), 100.0)
    search = CrossEntropyMethod(
        start, population=scale.population, noise=NOISE[schedule], seed=seed
    )

    def judge(games: int, cut: int) -> float:
        players = search.distribution.centre.expand(games, -1).numpy()
        return play(players, of_judge, rows=scale.rows, most=cut).mean().item()

    curve = []
    for _ in range(scale.iterations):
        players = search.ask()
        lines = play(players.numpy(), of_search, rows=scale.rows, most=scale.cut)
        search.tell(players, torch.from_numpy(lines))
        curve.append(judge(scale.games_of_curve, scale.cut))
    lines = judge(scale.games_at_end, scale.cut_at_end)
    return Course(search.history[0].mean, curve, search.distribution.centre.numpy(), lines)


def experiment(scale: Scale, seeds: range, processes: int) -> Courses:
    """Run all searches, each with another seed."""
    numbers = np.arange(seeds.start * scale.searches, seeds.stop * scale.searches)
    jobs = list(product(numbers.tolist(), NOISE))
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        several = pool.map if processes > 1 else map
        done = several(partial(learn, scale), *zip(*jobs, strict=True))
        courses = dict(zip(jobs, tqdm(done, total=len(jobs), unit="search"), strict=True))
    of_seeds = numbers.reshape(len(seeds), scale.searches).tolist()
    return {name: [[courses[k, name] for k in of_seed] for of_seed in of_seeds] for name in NOISE}


def lines_of(courses: Courses) -> np.ndarray:
    """Return lines of the last players, by schedule, seed and search."""
    return np.array([[[c.lines for c in some] for some in seeds] for seeds in courses.values()])


def show(courses: Courses) -> str:
    """Return the table: mean lines, the range of the searches, and the gain by noise."""
    lines = [f"{'seed':>4}" + "".join(f"{name:>36}" for name in courses)]
    for seed, of_seed in enumerate(lines_of(courses).swapaxes(0, 1)):
        cells = [f"{x.mean():,.0f} ({x.min():,.0f} to {x.max():,.0f})" for x in of_seed]
        gains = ["", *(f"{x.mean() / of_seed[0].mean():7.1f}x" for x in of_seed[1:])]
        row = (f"{cell + gain:>36}" for cell, gain in zip(cells, gains, strict=True))
        lines.append(f"{seed:4}" + "".join(row))
    plain, *noisy = lines_of(courses)
    gains = np.stack(noisy) / plain
    lines.append(f"search by search, {(gains >= 5).sum()} of {gains.size} gain 5.0x or more")
    return "\n".join(lines)


def claims(courses: Courses, small: bool) -> dict[str, bool]:
    """Return each claim with True if the claim holds."""
    every = [c for seeds in courses.values() for searches in seeds for c in searches]
    plain, *noisy = lines_of(courses).mean(-1)
    of_players = {
        "every player learnt clears 10 times as many lines as those drawn at first, or more": all(
            c.lines >= 10 * c.at_first for c in every
        )
    }
    if small:
        return of_players
    return of_players | {
        "with each seed, either noise clears 5 times as many lines as none, or more": all(
            (lines >= 5 * plain).all() for lines in noisy
        )
    }


def fullest_board(
    weights: np.ndarray, scale: Scale, pieces: int = 3000
) -> tuple[np.ndarray, int, int]:
    """Return the fullest board early in a game: pieces (-1: empty), their number, lines."""
    board = np.full((scale.rows, scale.columns), -1)
    fullest, at, lines_then, lines = board.copy(), 0, 0, 0
    game = placements(weights, np.random.default_rng(0), rows=scale.rows)
    for number, (piece, turn, left, row, cleared) in enumerate(islice(game, pieces), 1):
        shape = shapes(PIECES[piece])[turn]
        tall, wide = shape.shape
        board[row : row + tall, left : left + wide][shape] = piece
        kept = board[(board < 0).any(1)]
        board = np.vstack([kept, np.full((cleared, scale.columns), -1)])
        lines += cleared
        if (board >= 0).sum() > (fullest >= 0).sum():
            fullest, at, lines_then = board.copy(), number, lines
    return fullest, at, lines_then


def draw_curves(axes: Axes, courses: Courses, scale: Scale) -> None:
    """Draw lines by iteration."""
    x = range(1, scale.iterations + 1)
    for name, seeds in courses.items():
        curves = np.array([course.curve for searches in seeds for course in searches])
        axes.plot(x, curves.T, color=COLORS[name], linewidth=0.8, alpha=0.45)
        middle = np.median(curves, axis=0)
        axes.plot(x, middle, color=COLORS[name], linewidth=2.4, label=f"{name}, median")
    axes.axhline(scale.cut, color="0.5", linestyle="--", linewidth=1)
    axes.annotate(
        f"games are cut at {scale.cut:,} lines", (1, scale.cut), (0, 4),
        textcoords="offset points", color="0.35",
    )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("iteration")
    axes.set_ylabel(f"lines per game, mean of {scale.games_of_curve} fresh games")
    axes.set_title("The player in the centre of the Gaussian; a thin line per search")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)


def draw_board(axes: Axes, weights: np.ndarray, scale: Scale) -> None:
    """Draw the player with these weights at work."""
    from matplotlib.patches import BoxStyle, FancyBboxPatch

    board, pieces, lines = fullest_board(weights, scale)
    rounded = BoxStyle("Round", pad=0.04, rounding_size=0.1)
    for row, column in np.argwhere(board >= 0):
        box = FancyBboxPatch((column + 0.1, row + 0.1), 0.8, 0.8, boxstyle=rounded, linewidth=0)
        box.set_facecolor(PIECE_COLORS[board[row, column]])
        axes.add_patch(box)
    axes.set(xlim=(0, scale.columns), ylim=(0, scale.rows), aspect="equal", facecolor="#171A21")
    axes.set_xticks(range(scale.columns + 1), [])
    axes.set_yticks(range(scale.rows + 1), [])
    axes.tick_params(length=0)
    axes.grid(color="#262B36", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(f"The best player's tightest spot:\npiece {pieces:,}, {lines:,} lines cleared")


def draw(courses: Courses, scale: Scale, path: Path) -> None:
    """Draw the curves, and the best player of all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2.2, 1])
    draw_curves(left, courses, scale)
    every = [c for seeds in courses.values() for searches in seeds for c in searches]
    best = max(every, key=lambda course: course.lines)
    draw_board(right, best.weights, scale)
    save(figure, path, dpi=130)


def main() -> None:
    """Run the experiment; print, check and draw."""
    chosen = options(__file__, __doc__, seeds=(3, 1))
    scale = SMALL if chosen.small else Scale()
    courses = experiment(scale, chosen.seeds, processes=1 if chosen.small else 2)
    print(
        f"Lines per game on {scale.rows} x {scale.columns} after {scale.iterations} iterations: "
        f"mean of {scale.games_at_end} games, cut at {scale.cut_at_end:,}.\n"
        f"Searches per seed: {scale.searches}, in brackets worst and best; then the gain by noise\n"
    )
    print(show(courses), "\n")
    hold(claims(courses, chosen.small))
    draw(courses, scale, chosen.picture)


if __name__ == "__main__":
    main()

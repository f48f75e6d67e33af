"""Tetris on a bitboard: about a million pieces per second on one core. Needs numba.

The rules, where readings differ: each of the seven pieces comes with equal probability, independent
of those before. A controller chooses how it is turned and its leftmost column; it falls straight
down from above and cannot be moved any more. Full rows vanish, and what lies above them sinks by
as many rows, in one block. A placement is legal if all four cells come to rest on the board, before
rows vanish. The game is over when the piece at hand has no legal placement.

A board is an array of one integer per column, whose bit k is the cell in row k from below. So the
height of a column is the length of its integer, its holes are the zeros below that, a piece is put
with `or`, and the full rows are the bits that all columns have.

The player is greedy: of all legal placements it takes the one after which the features of the
board, times its weights, are the largest; of equal ones the first.

References:
    Bertsekas and Tsitsiklis, *Neuro-Dynamic Programming*, 1996: the features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

try:
    from numba import njit, types
    from numba.extending import intrinsic
except ImportError as error:
    raise ImportError("Tetris needs numba: pip install numba", name="numba") from error

PIECES = "IOTSZJL"
_DRAWN = {
    "I": ["####"],
    "O": ["##", "##"],
    "T": [".#.", "###"],
    "S": [".##", "##."],
    "Z": ["##.", ".##"],
    "J": ["#..", "###"],
    "L": ["..#", "###"],
}
MOST_ROWS = 63  # the last of the 64 bits of a column is its sign

Board = np.ndarray[Any, np.dtype[np.int64]]


def shapes(piece: str) -> list[np.ndarray]:
    """Return the different ways a piece can lie, as arrays of cells with the lowest row first."""
    drawn = np.array([[cell == "#" for cell in row] for row in reversed(_DRAWN[piece])])
    turned = [np.rot90(drawn, k) for k in range(4)]
    different = {(shape.shape, shape.tobytes()): shape for shape in turned}
    return list(different.values())


def _tables() -> tuple[np.ndarray, ...]:
    """For each piece and turn: its width (0: no such turn), height, and by column mask and gap.

    The mask has the cells of the column as bits, counted from the lowest row of the piece; the gap
    is the number of empty ones below them.
    """
    width, height = np.zeros((2, 7, 4), np.int64)
    mask, gap = np.zeros((2, 7, 4, 4), np.int64)
    for p, piece in enumerate(PIECES):
        for t, shape in enumerate(shapes(piece)):
            height[p, t], width[p, t] = shape.shape
            mask[p, t, : shape.shape[1]] = (shape << np.arange(len(shape))[:, None]).sum(0)
            gap[p, t, : shape.shape[1]] = shape.argmax(0)
    return width, height, mask, gap


_WIDTH, _HEIGHT, _MASK, _GAP = _tables()


# ---- bits ---------------------------------------------------------------------------------------


@intrinsic
def bit_count(typing_context: Any, x: Any) -> Any:
    """Return the number of ones of an integer: one instruction."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.ctpop(values[0])

    return x(x), code


@intrinsic
def leading_zeros(typing_context: Any, x: Any) -> Any:
    """Return the number of zeros before the first one of an integer."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.ctlz(values[0], context.get_constant(types.boolean, False))

    return x(x), code


# Inlined by numba, the small functions make games 1.6 times as fast.
small = njit(inline="always", cache=True)


@small
def height_of(column: int) -> int:
    """Return the number of rows up to the highest cell of a column."""
    return 64 - leading_zeros(column)


# ---- the board ----------------------------------------------------------------------------------


@small
def landing_row(board: Board, piece: int, turn: int, left: int) -> int:
    """Return the row in which the lowest cells of a piece come to rest."""
    row = 0
    for k in range(_WIDTH[piece, turn]):
        row = max(row, height_of(board[left + k]) - _GAP[piece, turn, k])
    return row


@small
def clear_rows(board: Board) -> int:
    """Take the full rows off the board; return the number of full rows."""
    full = board[0]
    for k in range(1, len(board)):
        full &= board[k]
    cleared = bit_count(full)
    while full:
        below = (full & -full) - 1  # the rows below the lowest full one
        for k in range(len(board)):
            board[k] = board[k] & below | board[k] >> 1 & ~below
        full = full >> 1 & ~below
    return cleared


@small
def put(board: Board, piece: int, turn: int, left: int, row: int) -> int:
    """Put a piece where it comes to rest; return the number of rows that vanish."""
    for k in range(_WIDTH[piece, turn]):
        board[left + k] |= _MASK[piece, turn, k] << row
    return clear_rows(board)


# ---- the player ---------------------------------------------------------------------------------


@njit(cache=True)
def features(board: Board) -> np.ndarray:
    """Return the features of Bertsekas and Tsitsiklis, 2 C + 2 of a board of C columns.

    Height of each column, absolute difference of each two neighbours, height of the highest column,
    number of holes (empty cells below a full one of their column), and 1, which makes no difference
    to a greedy player.
    """
    columns = len(board)
    of_board = np.zeros(2 * columns + 2)
    for k in range(columns):
        height = height_of(board[k])
        of_board[k] = height
        if k > 0:
            of_board[columns + k - 1] = abs(height - of_board[k - 1])
        of_board[2 * columns - 1] = max(of_board[2 * columns - 1], height)
        of_board[2 * columns] += height - bit_count(board[k])
    of_board[2 * columns + 1] = 1.0
    return of_board


@small
def value(board: Board, weights: np.ndarray) -> float:
    """Return features times weights, without an array of features: half the time."""
    columns = len(board)
    total, highest, holes, left = weights[2 * columns + 1], 0, 0, 0
    for k in range(columns):
        height = height_of(board[k])
        total += weights[k] * height
        if k > 0:
            total += weights[columns + k - 1] * abs(height - left)
        highest = max(highest, height)
        holes += height - bit_count(board[k])
        left = height
    return total + weights[2 * columns - 1] * highest + weights[2 * columns] * holes


@njit(cache=True)
def choose(board: Board, rows: int, piece: int, weights: np.ndarray) -> tuple[int, int, int]:
    """Return turn, left column and row of the best legal placement; turn -1 if there is none."""
    best, chosen = -np.inf, (-1, -1, -1)
    after = np.empty_like(board)
    for turn in range(4):
        width = _WIDTH[piece, turn]
        for left in range(len(board) - width + 1 if width else 0):
            row = landing_row(board, piece, turn, left)
            if row + _HEIGHT[piece, turn] > rows:
                continue
            after[:] = board
            put(after, piece, turn, left, row)
            worth = value(after, weights)
            if chosen[0] < 0 or worth > best:
                best, chosen = worth, (turn, left, row)
    return chosen


@njit(cache=True)
def _games(weights: np.ndarray, rng: np.random.Generator, rows: int, most: int) -> np.ndarray:
    lines = np.zeros(len(weights), np.int64)
    board = np.zeros((weights.shape[1] - 2) // 2, np.int64)
    for k in range(len(weights)):
        board[:] = 0
        while lines[k] < most:
            piece = rng.integers(0, 7)
            turn, left, row = choose(board, rows, piece, weights[k])
            if turn < 0:
                break
            lines[k] += put(board, piece, turn, left, row)
    return lines


# ---- games --------------------------------------------------------------------------------------


class Placement(NamedTuple):
    """A piece that came to rest.

    Attributes:
        piece: its number in :data:`PIECES`.
        turn: its number in :func:`shapes`.
        left: its leftmost column.
        row: its lowest row, counted from below.
        cleared: how many rows vanished.
    """

    piece: int
    turn: int
    left: int
    row: int
    cleared: int


def play(
    weights: np.ndarray, rng: np.random.Generator, *, rows: int = 20, most: int = 1_000_000
) -> np.ndarray:
    """Play one game for each player.

    Args:
        weights: of the :func:`features`, ``(n, 2 C + 2)`` for a board of ``C`` columns.
        rng: draws the pieces, of one game after the other.
        rows: of the board.
        most: a game ends once this many lines are cleared (the last piece may clear more).

    Returns:
        Lines cleared, ``(n,)``.

    Raises:
        ValueError: for weights that fit no board, that are not finite, or too many rows.
    """
    return _games(_players(weights, rows), rng, rows, most)


def placements(
    weights: np.ndarray, rng: np.random.Generator, *, rows: int = 20
) -> Iterator[Placement]:
    """Play one game with these weights, ``(2 C + 2,)``; yield the placement of each piece."""
    (player,) = _players(weights[None], rows)
    board = np.zeros((len(player) - 2) // 2, np.int64)
    while True:
        piece = int(rng.integers(0, 7))
        turn, left, row = choose(board, rows, piece, player)
        if turn < 0:
            return
        yield Placement(piece, turn, left, row, put(board, piece, turn, left, row))


def _players(weights: np.ndarray, rows: int) -> np.ndarray:
    """Return the weights as compiled code expects them."""
    players = np.ascontiguousarray(weights, dtype=np.float64)
    if players.ndim != 2 or players.shape[1] % 2 or players.shape[1] < 2 * 4 + 2:
        raise ValueError(
            "`weights` must have shape (n, 2 C + 2) for a board of C columns, 4 or more; "
            f"got {np.shape(weights)}"
        )
    if not np.isfinite(players).all():
        raise ValueError("`weights` must be finite")
    if not 4 <= rows <= MOST_ROWS:
        raise ValueError(f"`rows` must be from 4 to {MOST_ROWS}, got {rows}")
    return players

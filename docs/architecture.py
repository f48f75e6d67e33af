"""Draws the rooms of the library from its imports: ``python docs/architecture.py``.

The picture is ``docs/architecture.svg``. Its rooms are those of
``tests/house/test_structure.py``, where a test keeps imports running downwards; rooms of one folder
are drawn as one where that makes no circle. A room is a folder or a module of ``src/xent``. An
arrow is an import; an arrow that a longer way of arrows implies is left out. The numbers are the
rooms that a loss enters, found by running a loss. A test compares the picture on disk with what
this script draws.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from html import escape
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

import xent  # noqa: E402
from tests.house.test_structure import DOORS, HOUSE, imports_of, room_of  # noqa: E402

PICTURE = Path(__file__).with_name("architecture.svg")

# Rooms, and of each the rooms that it imports.
Graph = dict[str, set[str]]

# ---- rooms and arrows ----------------------------------------------------------------------------


def rooms() -> Graph:
    """Return every room with the rooms that its files import."""
    graph: Graph = {"_core": set()}  # a library, no file of Python
    for file in sorted(HOUSE.rglob("*.py")):
        others = {module if module in graph else room_of(module) for module in imports_of(file)}
        graph.setdefault(home(file), set()).update(others - {home(file)})
    return graph


def home(file: Path) -> str:
    """Return the room that a file of the library lies in."""
    parts = file.relative_to(HOUSE).with_suffix("").parts
    return room_of(".".join(part for part in parts if part != "__init__"))


def tools(graph: Graph) -> set[str]:
    """Return the rooms that all others may use: names with an underscore, and their imports."""
    private = {room for room in graph if room.startswith("_") and room != "_core"}
    private -= DOORS
    return private.union(*(graph[room] for room in private))


def within(graph: Graph, kept: set[str]) -> Graph:
    """Return the graph of the rooms that are kept, and of the arrows between them."""
    return {room: graph[room] & kept for room in sorted(kept)}


def folders(graph: Graph) -> dict[str, str]:
    """Return the room that each room is drawn in: its folder, unless that makes a circle."""
    drawn = {room: room for room in graph}
    for room in sorted(graph, key=lambda room: (-depth(graph, room), room)):
        trial = {**drawn, room: room.partition(".")[0]}
        try:
            TopologicalSorter(joined(graph, trial)).prepare()
        except CycleError:
            continue
        drawn = trial
    return drawn


def joined(graph: Graph, drawn: dict[str, str]) -> Graph:
    """Return the graph after each room is replaced by the room that it is drawn in."""
    found: Graph = {}
    for room, others in graph.items():
        found.setdefault(drawn[room], set()).update(drawn[other] for other in others)
    return {room: found[room] - {room} for room in sorted(found)}


def reduced(graph: Graph) -> Graph:
    """Leave out each arrow that a longer way of arrows implies."""
    return {
        room: {x for x in others if not any(x in reached(graph, other) for other in others)}
        for room, others in graph.items()
    }


def reached(graph: Graph, room: str) -> set[str]:
    """Return every room that arrows lead to from this room."""
    return graph[room].union(*(reached(graph, other) for other in graph[room]))


def depth(graph: Graph, room: str) -> int:
    """Return the number of arrows on the longest way down from a room."""
    return 1 + max((depth(graph, other) for other in graph[room]), default=-1)


def floors(graph: Graph) -> dict[str, int]:
    """Return the floor of each room, as low as imports allow, or higher for shorter arrows."""
    floor = {room: depth(graph, room) for room in graph}
    for room in sorted(graph, key=floor.__getitem__, reverse=True):
        users = [other for other in graph if room in graph[other]]
        if len(users) > len(graph[room]):
            floor[room] = min(floor[other] for other in users) - 1
    return floor


def entered_rooms() -> list[str]:
    """Return the rooms that a loss enters on the way from logits to its values, in that order.

    A loss with ``reduction="none"`` goes this way, with any option. A sum or mean may go a shorter
    way: from the frame into one call of an engine, which runs the loss as a recorded program.
    """
    logits, target = torch.zeros(2, 3), torch.tensor([0, 1])
    entered: list[str] = []

    def note(frame: Any, event: str, _: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(HOUSE):
            entered.append(home(file))

    for profile in (None, note):  # the first call fills the caches
        sys.setprofile(profile)
        xent.losses.focal_loss(logits, target, reduction="none", engine="reference")
        sys.setprofile(None)
    return list(dict.fromkeys(entered))


def told(room: str) -> tuple[str, str]:
    """Return the name of a room with its suffix, and the first line of its docstring."""
    if room == "_core":
        return "csrc/", "The kernels for CPUs in C++, compiled once per instruction set."
    place = HOUSE / room.replace(".", "/")
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    line = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
    name = f"{room.replace('.', '/')}{'/' if place.is_dir() else '.py'}"
    return name if room else "import xent", line.replace("`", "")


def files_of(folder: Path) -> list[str]:
    """Return the files of a folder, each after those that it imports."""
    names = {file.stem for file in folder.glob("*.py") if file.stem != "__init__"}
    prefix = ".".join(folder.relative_to(HOUSE).parts)
    graph = {
        name: {other for other in names if f"{prefix}.{other}" in modules_of(folder / f"{name}.py")}
        for name in names
    }
    return sorted(names, key=lambda name: (depth(graph, name), name))


def modules_of(file: Path) -> set[str]:
    """Return the modules that a file imports, or from which it imports a name."""
    found = imports_of(file)
    return found | {module.rpartition(".")[0] for module in found}


# ---- places --------------------------------------------------------------------------------------

BOX, HEIGHT = 214, 64  # width and height of a room
GAP, FLOOR = 16, 108  # between rooms, and from floor to floor
WIDTH = 4 * BOX + 10 * GAP  # of the picture, if no floor needs more


class Spot(NamedTuple):
    """A place on a floor (all rooms of one depth): a room, or a point of an arrow between rooms."""

    floor: int
    room: str
    way: tuple[str, str] = ("", "")  # the two ends of the arrow, if the spot is a point of an arrow

    @property
    def width(self) -> int:
        """Width that the spot needs."""
        return BOX if self.room else 0


def ways(graph: Graph, floor: dict[str, int]) -> Iterator[list[Spot]]:
    """Yield each arrow as the spots that it passes, from the upper room to the lower."""
    for room, others in graph.items():
        for other in sorted(others):
            between = range(floor[room] - 1, floor[other], -1)
            points = [Spot(k, "", (room, other)) for k in between]
            yield [Spot(floor[room], room), *points, Spot(floor[other], other)]


def places(spots: list[Spot], arrows: list[list[Spot]]) -> tuple[dict[Spot, float], int]:
    """Return the x of the middle of each spot, and the width of the picture.

    Spots lie near to their neighbours. Sweeps up and down the floors order the spots by the mean
    place of their neighbours, as layered drawings of graphs do (Sugiyama, Tagawa and Toda 1981).
    """
    near: dict[Spot, list[Spot]] = {spot: [] for spot in spots}
    for way in arrows:
        for upper, lower in pairwise(way):
            near.setdefault(upper, []).append(lower)
            near.setdefault(lower, []).append(upper)
    storeys = [[s for s in near if s.floor == k] for k in range(1 + max(s.floor for s in near))]
    width = max(WIDTH, *(sum(s.width + GAP for s in row) + GAP for row in storeys))
    place = {s: width * (k + 1) / (len(row) + 1) for row in storeys for k, s in enumerate(row)}
    for sweep in range(60):
        for row in storeys if sweep % 2 else reversed(storeys):
            wish = {s: fmean(place[n] for n in near[s]) if near[s] else place[s] for s in row}
            order = sorted(row, key=lambda s: (wish[s], s))
            found = spread([s.width for s in order], [wish[s] for s in order], width)
            place.update(zip(order, found, strict=True))
    return place, width


def spread(widths: list[int], wish: list[float], width: int) -> list[float]:
    """Return places in this order, with gaps, as near as possible to ``wish`` (least squares)."""
    offset = list(accumulate([0.0, *((a + b) / 2 + GAP for a, b in pairwise(widths))]))
    blocks: list[list[float]] = []  # spots that touch move together to their mean wish
    for w, o in zip(wish, offset, strict=True):
        blocks.append([w - o])
        while len(blocks) > 1 and fmean(blocks[-2]) >= fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    low, high = GAP + widths[0] / 2, width - GAP - widths[-1] / 2 - offset[-1]
    means = [min(max(fmean(block), low), high) for block in blocks for _ in block]
    return [mean + o for mean, o in zip(means, offset, strict=True)]


# ---- the picture ---------------------------------------------------------------------------------

BOLD = 'font-weight="bold"'
INK, PALE, RED, OTHER = "#24292f", "#8c959f", "#cf222e", "#e4f1fb"
FILL = {
    "engines": "#ffefd9", "_core": "#ffefd9", "heads": "#f1e8ff", "losses": "#dcf7e3",
    "frames": "#dcf7e3",
}  # fmt: skip
START = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" \
height="{height}" font-family="Helvetica, Arial, sans-serif" fill="{ink}">
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" \
orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{pale}"/></marker></defs>
<rect width="{width}" height="{height}" fill="white"/>"""
LEGEND = (
    "An arrow is an import: a room uses rooms below it. Arrows that others imply are left out.",
    "Red: the rooms that a loss enters on the way from logits to one value per row. A sum or mean",
    "of plain logits goes from the frame straight into one call of an engine.",
)


def label(x: float, y: float, text: str, size: float = 11, style: str = "") -> str:
    """Write a line of text."""
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" {style}>{escape(text)}</text>'


def rectangle(x: float, y: float, wide: float, high: float, fill: str, stroke: str = PALE) -> str:
    """Draw a box."""
    size = f'x="{x:.0f}" y="{y:.0f}" width="{wide:.0f}" height="{high:.0f}"'
    thick = 2 if stroke == RED else 1
    return f'<rect {size} rx="6" fill="{fill}" stroke="{stroke}" stroke-width="{thick}"/>'


def box(x: float, y: float, room: str, number: int = 0) -> Iterator[str]:
    """Draw a room around a middle: its name, its docstring, and its number if a loss enters it."""
    name, text = told(room)
    left = x - BOX / 2
    fill = FILL.get(room.partition(".")[0], OTHER)
    yield rectangle(left, y, BOX, HEIGHT, fill, RED if number else PALE)
    yield label(left + 10, y + 19, name, 14, BOLD)
    for k, line in enumerate(textwrap.wrap(text, 35, max_lines=3, placeholder=" ...")):
        yield label(left + 10, y + 34 + 12 * k, line, 10.5)
    if number:
        yield f'<circle cx="{left + BOX - 3:.0f}" cy="{y + 3:.0f}" r="11" fill="{RED}"/>'
        style = f'{BOLD} fill="white" text-anchor="middle"'
        yield label(left + BOX - 3, y + 7, str(number), 12, style)


def line(points: list[tuple[float, float]]) -> str:
    """Draw a smooth arrow through points, vertical at each point."""
    path = "M{:.0f},{:.0f}".format(*points[0])
    for (x, y), (to_x, to_y) in pairwise(points):
        half = (y + to_y) / 2
        path += f" C{x:.0f},{half:.0f} {to_x:.0f},{half:.0f} {to_x:.0f},{to_y:.0f}"
    style = f'fill="none" stroke="{PALE}" stroke-width="1.4" marker-end="url(#head)"'
    return f'<path d="{path}" {style}/>'


def port(place: dict[Spot, float], room: Spot, spot: Spot, spots: list[Spot]) -> float:
    """Return the x where the arrow from or to a spot meets its room; arrows stand side by side."""
    order = sorted(spots, key=place.__getitem__)
    return place[room] + 18 * (order.index(spot) - (len(order) - 1) / 2)


def lines(arrows: list[list[Spot]], place: dict[Spot, float], roof: int) -> Iterator[str]:
    """Draw all arrows."""
    for start, *between, end in arrows:
        first, last = (between or [end])[0], (between or [start])[-1]
        x = port(place, start, first, [way[1] for way in arrows if way[0] == start])
        to_x = port(place, end, last, [way[-2] for way in arrows if way[-1] == end])
        points = [(x, roof - FLOOR * start.floor + HEIGHT)]
        for spot in between:
            y = roof - FLOOR * spot.floor
            points += [(place[spot], y - 4), (place[spot], y + HEIGHT + 4)]
        yield line([*points, (to_x, roof - FLOOR * end.floor - 2)])


def strip(
    y: int, title: str, names: list[str], fill: str = OTHER, places: int = 7
) -> Iterator[str]:
    """Draw a line of small boxes without arrows, with a title; ``places`` boxes fill the width."""
    yield label(GAP, y + 17, title, 12)
    wide = (WIDTH - 130 - GAP) // max(places, len(names))
    for k, name in enumerate(names):
        yield rectangle(130 + wide * k, y, wide - 6, 26, fill)
        size = 11 if len(name) < wide // 8 else 9.5
        yield label(127 + wide * (k + 0.5), y + 17, name, size, f'{BOLD} text-anchor="middle"')


def engines(y: int) -> Iterator[str]:
    """Draw the files of the engines; files of the same name stand in one column."""
    place = HOUSE / "engines"
    grid = [files_of(place / folder) for folder in ("rows", "elements")]
    both = [name for name in grid[0] if name in grid[1]]
    yield label(GAP, y, "Inside engines/: the same files for rows and for elements", 14, BOLD)
    lists = {"engines/": files_of(place), "engines/triton/": files_of(place / "triton")}
    for folder, files in zip(("rows", "elements"), grid, strict=True):
        own = [name for name in files if name not in both]
        lists[f"engines/{folder}/"] = [*both, *own]
    most = max(map(len, lists.values()))
    for k, folder in enumerate(sorted(lists)):
        yield from strip(y + 14 + 34 * k, folder, lists[folder], FILL["engines"], most)


def picture() -> str:
    """Return the whole drawing: doors (rooms that import all others), floors, tools, engines."""
    graph = rooms()
    tool = tools(graph)
    graph = within(graph, graph.keys() - tool - DOORS)
    drawn = folders(graph)
    passed = list(dict.fromkeys(drawn[room] for room in entered_rooms() if room in drawn))
    number = {room: k for k, room in enumerate(passed, 1)}
    graph = reduced(joined(graph, drawn))
    floor = floors(graph)
    arrows = list(ways(graph, floor))
    place, width = places([Spot(floor[room], room) for room in graph], arrows)
    roof = 166 + FLOOR * max(floor.values())
    below = roof + HEIGHT + 34
    height = below + 34 + 40 + 4 * 34 + GAP
    parts = [
        START.format(width=width, height=height, ink=INK, pale=PALE),
        label(GAP, 30, "The rooms of xent: folders and modules of src/xent", 20, BOLD),
        *(label(GAP, 50 + 15 * k, text, 12) for k, text in enumerate(LEGEND)),
        label(GAP, 100, " \u2192 ".join(number), 13, f'{BOLD} fill="{RED}"'),
        *strip(116, "import all rooms", [told(door)[0] for door in sorted(DOORS)]),
        *lines(arrows, place, roof),
    ]
    for spot, x in place.items():
        if spot.room:
            parts += box(x, roof - FLOOR * spot.floor, spot.room, number.get(spot.room, 0))
    parts += strip(below, "tools for all rooms", [told(room)[0] for room in sorted(tool)])
    parts += engines(below + 60)
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")

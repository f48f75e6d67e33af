"""The compiled core.

Addresses are integers; matrices are (address, type, outer step, inner count, inner step, class
step) with steps in elements; tables hold one float64 per field and row.
"""

Matrix = tuple[int, int, int, int, int, int]
Labels = tuple[int, int, int, bool]
Transform = tuple[int, bool, float, int, int]
Weights = tuple[int, int]

# A loss of rows: (operation, a, b, c, constant), the operation as its place in OPERATIONS;
# (0 sum, 1 number, 2 weight or 3 count; the number; whether 1 takes the place of 0).
Instruction = tuple[int, int, int, int, float]
Divisor = tuple[int, float, bool]

# Element-wise: (address or 0 for ones, type, repeat, period), (address or 0, type), and
# the settings of csrc/elements.h.
Operand = tuple[int, int, int, int]
Output = tuple[int, int]
Form = tuple[float, float, float, float, float, float, float, float, float]

OPERATIONS: list[str]

class Program:
    def __init__(self, instructions: list[Instruction]) -> None: ...

def fused() -> bool: ...
def isa() -> str: ...
def isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def products() -> list[str]: ...
def set_parallel_for(address: int) -> None: ...
def prefer_huge_pages(address: int, bytes: int) -> None: ...
def row_statistics(
    logits: Matrix,
    rows: int,
    classes: int,
    labels: Labels,
    soft: Matrix,
    transform: Transform,
    weights: Weights,
    statistics: int,
    fields: int,
) -> tuple[int, bool, int]: ...
def row_gradient(
    logits: Matrix,
    rows: int,
    classes: int,
    labels: Labels,
    soft: Matrix,
    transform: Transform,
    weights: Weights,
    statistics: int,
    fields: int,
    partials: list[tuple[int, int]],
    gradient: Matrix,
) -> None: ...
def loss(
    program: Program,
    logits: Matrix,
    rows: int,
    classes: int,
    labels: Labels,
    soft: Matrix,
    transform: Transform,
    weights: Weights,
    fields: int,
    inputs: list[tuple[int, int]],
    row_weight: int,
    divisor: Divisor,
    slope: float,
    result: int,
    result_type: int,
    gradient: Matrix,
) -> tuple[int, bool, int, float]: ...
def scale_exactly(address: int, type: int, count: int, slope: float) -> bool: ...
def element_sweep(
    count: int,
    logits: Operand,
    target: Operand,
    weight: Operand,
    pos_weight: Operand,
    form: Form,
    ignored: float,
    smoothing: float,
    loss: Output,
    values: Output,
    gradient: Output,
    upstream: Operand,
    slope: float,
    divisor: float,
) -> tuple[bool, float]: ...
def dense(
    kind: tuple[int, float, float, float, float],
    logits: Matrix,
    teacher: Matrix,
    rows: int,
    classes: int,
    labels: tuple[int, int],
    row_weight: int,
    factors: tuple[float, float],
    divisor: Divisor,
    values: int,
    result: int,
    result_type: int,
    gradient: Matrix,
    teacher_gradient: Matrix,
) -> tuple[bool, int]: ...

"""A loss in bits is a size in bits: real text, coded by models that learn while they read.

    python examples/coding.py [--small] [--seed 0] [--picture runs/coding.png]

Needs matplotlib for the picture. Takes a minute or two.

Two modules of Python's standard library, 200 kB, go through an arithmetic coder and come back to
the last byte. The model counts which bytes followed the last bytes (order 0, 1, 2), or mixes
several orders with weights that follow the cross-entropy. The code is as long as the sum of -log2
q, to 2 bits. At the end a network that was trained on other modules codes a part of the text. The
size of the code is the loss of the network by ``xent.cross_entropy``, with one exception: the coder
gives each byte a probability of at least 2^-31, so for rarer bytes the code is shorter than the
loss.
"""

from __future__ import annotations

import bz2
import lzma
import math
import sysconfig
import zlib
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import xent
from _experiment import hold, options, save
from xent.learn import (
    MixtureModel,
    OrderModel,
    decode,
    encode,
    fit_mixture_weights,
    quantize,
)

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
CODED, LEARNT_FROM = ("argparse.py", "typing.py"), ("ast.py", "inspect.py", "tarfile.py", "uuid.py")
MODELS: dict[str, Callable[[], Any]] = {
    "order 0": lambda: OrderModel(0),
    "order 1": lambda: OrderModel(1),
    "order 2": lambda: OrderModel(2),
    "orders 0 to 2, mixed": lambda: MixtureModel([OrderModel(k) for k in range(3)]),
    "orders 0 to 5, mixed": lambda: MixtureModel([OrderModel(k) for k in range(6)]),
}
OTHERS = {
    "gzip": lambda data: zlib.compress(data, 9),
    "bzip2": bz2.compress,
    "lzma": lambda data: lzma.compress(data, preset=9),
}
CONTEXT, WIDTH, HIDDEN, BATCH = 8, 16, 128, 512
RARE = 20  # bits; up to this cost the coder's whole numbers are accurate to 1e-3 bits


class Watched:
    """A model that records the cost of each symbol, in bits."""

    def __init__(self, model: Any) -> None:
        self.model, self.bits = model, []

    def frequencies(self) -> Any:
        """Return the frequencies of the wrapped model."""
        self.now = self.model.frequencies()
        return self.now

    def update(self, symbol: int) -> None:
        """Record the cost of the symbol, and pass the symbol on to the model."""
        self.bits.append(math.log2(self.now.sum() / self.now[symbol]))
        self.model.update(symbol)


class Network(nn.Module):
    """A network that predicts the next byte from the last bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)
        self.layers = nn.Sequential(
            nn.Linear(CONTEXT * WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 256)
        )

    def forward(self, contexts: Tensor) -> Tensor:
        """Return logits (N, 256) from bytes (N, CONTEXT)."""
        return self.layers(self.embedding(contexts).flatten(1))


class Reader:
    """A model of symbols from a network; both coders go byte by byte, so that both round alike."""

    def __init__(self, network: Network) -> None:
        self.network, self.last = network, torch.zeros(1, CONTEXT, dtype=torch.long)
        self.bits, self.spared, self.rare = 0.0, 0.0, 0

    @torch.no_grad()
    def frequencies(self) -> Any:
        """Return the probabilities as whole numbers."""
        self.logits = self.network(self.last).double()
        self.now = quantize(xent.softmax(self.logits)[0])
        return self.now

    def update(self, symbol: int) -> None:
        """Add the loss of the byte, and move on by one byte."""
        bits = xent.cross_entropy(self.logits, torch.tensor([symbol])).item() / math.log(2)
        self.bits += bits
        if bits > RARE:
            self.rare += 1
            self.spared += bits - math.log2(self.now.sum() / self.now[symbol])
        self.last = torch.cat([self.last[:, 1:], torch.tensor([[symbol]])], 1)


def read(names: tuple[str, ...]) -> bytes:
    """Return modules of the standard library, one after the other."""
    return b"".join((LIBRARY / name).read_bytes() for name in names)


def train(steps: int, seed: int) -> Network:
    """Train a network on other modules of the standard library."""
    torch.manual_seed(seed)
    text = torch.tensor(list(bytes(CONTEXT) + read(LEARNT_FROM)))
    contexts, after = text.unfold(0, CONTEXT, 1)[:-1], text[CONTEXT:]
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in tqdm(range(steps), "training", unit="step", leave=False):
        rows = torch.randint(len(after), (BATCH,))
        optimizer.zero_grad()
        xent.cross_entropy(network(contexts[rows]), after[rows]).backward()
        optimizer.step()
    return network.eval()


def there_and_back(name: str, data: bytes, make: Callable[[], Any]) -> tuple[Tensor, float]:
    """Code and decode; print a line; return bits of each byte, and bits beyond their sum."""
    watched, start = Watched(make()), process_time()
    code = encode(tqdm(data, name, unit="B", unit_scale=True, leave=False), watched)
    middle = process_time()
    assert bytes(decode(code.data, make(), len(data))) == data
    end = process_time()
    excess = code.bits - code.information
    print(
        f"{name:22}{code.bits / len(data):10.4f}{code.information:14.1f}{code.bits:10,}"
        f"{excess:8.2f}{middle - start:9.1f}{end - middle:8.1f}"
    )
    return torch.tensor(watched.bits, dtype=torch.float64), excess


def draw(bits: dict[str, Tensor], sizes: dict[str, float], path: Path) -> None:
    """Draw bits per byte along the text, and of the whole text."""
    from xent.plot.canvas import COLORS, new_axes

    along, whole = new_axes(12, 4.6, columns=2)
    window = 4000
    for (name, cost), colour in zip(bits.items(), COLORS, strict=False):
        total = torch.cat([torch.zeros(1, dtype=cost.dtype), cost.cumsum(0)])
        mean = (total[window:] - total[:-window])[::200] / window
        along.plot(torch.arange(len(mean)) * 0.2 + window / 2000, mean, color=colour, label=name)
    border = len((LIBRARY / CODED[0]).read_bytes()) / 1000
    along.axvline(border, color="0.6", linestyle=":")
    along.text(border, 0.1, f" {CODED[1]}", color="0.4")
    along.text(border, 0.1, f"{CODED[0]} ", color="0.4", ha="right")
    along.set(
        xlabel="place in the text, kB", ylabel=f"bits per byte, mean of {window:,} bytes",
        ylim=(0, 8), title="Each model learns while it reads; a new file sets it back",
    )  # fmt: skip
    along.legend(title="order k: what followed the last k bytes", ncols=2, loc="upper center")
    along.grid(alpha=0.3)
    places = range(len(sizes), 0, -1)
    colours = [*COLORS[: len(bits)], *["0.7"] * (len(sizes) - len(bits))]
    bars = whole.barh(places, list(sizes.values()), color=colours)
    whole.bar_label(bars, fmt="%.3f", padding=3)
    whole.set_yticks(list(places), list(sizes))
    whole.set(
        xlabel="bits per byte, the whole text", xlim=(0, 1.12 * max(sizes.values())),
        title="Longer contexts need fewer bits (grey: compressors)",
    )  # fmt: skip
    save(along.figure, path, dpi=120)


def main() -> None:
    """Code with every model; print, check and draw."""
    chosen = options(
        __file__, __doc__, bytes=(1_000_000, 30_000), part=(20_000, 2000), steps=(1200, 200),
        seed=(0, 0),
    )  # fmt: skip
    torch.set_num_threads(1)
    data = read(CODED)[: chosen.bytes]
    print(f"{', '.join(CODED)}: {len(data):,} bytes\n")
    print(
        f"{'':22}{'bits/byte':>10}{'sum -log2 q':>14}{'bits':>10}{'excess':>8}"
        f"{'coded, s':>9}{'back, s':>8}"
    )
    done = {name: there_and_back(name, data, make) for name, make in MODELS.items()}
    bits = {name: cost for name, (cost, _) in done.items()}
    sizes = {name: cost.mean().item() for name, cost in bits.items()}
    for name, compress in OTHERS.items():
        sizes[name] = 8 * len(compress(data)) / len(data)
        print(f"{name:22}{sizes[name]:10.4f}")

    members = torch.stack([bits[f"order {k}"] for k in range(3)], 1)
    fit = fit_mixture_weights(-members * math.log(2))
    fixed, shares = fit.cross_entropy / math.log(2), ", ".join(f"{w:.3f}" for w in fit.weights)
    print(
        f"\nthe best fixed weights of orders 0 to 2, in hindsight: {shares}: {fixed:.4f} bits/byte"
    )

    network, part = train(chosen.steps, chosen.seed), data[: chosen.part]
    reader = Reader(network)
    code = encode(part, reader)
    assert bytes(decode(code.data, Reader(network), len(part))) == part
    known, n = bits["orders 0 to 5, mixed"][: len(part)].sum(), len(part)
    print(
        f"\na network that has read {', '.join(LEARNT_FROM)}, on the first {n:,} bytes:\n"
        f"its cross-entropy is {reader.bits:.2f} bits, the code has {code.bits} "
        f"({code.bits / n:.3f} per byte; orders 0 to 5 needed {known / n:.3f} there);\n"
        f"{reader.spared:.2f} bits spared on {reader.rare} bytes that it held for rarer than "
        f"2^-{RARE}\n"
    )
    mixed = sizes["orders 0 to 5, mixed"]
    claims = {
        "every message comes back, at most 2 bits longer than its cross-entropy": all(
            0 <= excess + 0.05 < 2.05 for _, excess in done.values()
        ),
        "that of the network, too, and shorter only by what the coder spares on rare bytes": (
            -0.1 < code.bits - (reader.bits - reader.spared) < 2.1
        ),
        "weights that follow the text beat the best fixed ones": (
            sizes["orders 0 to 2, mixed"] < fixed
        ),
        "every mixture is shorter than its members": mixed
        < sizes["orders 0 to 2, mixed"]
        < min(sizes[f"order {k}"] for k in range(3)),
        "orders 0 to 5 take less than gzip": mixed < sizes["gzip"],
    }
    hold(claims)
    draw(bits, sizes, chosen.picture)


if __name__ == "__main__":
    main()

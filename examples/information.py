"""What entropy is for: a coin, a table of counts, the length of a message, a loss in words.

    python examples/information.py [--small] [--picture runs/information.png]

Needs numpy, and matplotlib for the picture. Takes a second. The message is coded for real, by an
arithmetic coder: its length is the cross-entropy, to two bits. `examples/coding.py` has more of it.
With ``--small`` it is the same: a second is small.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from _experiment import hold, options, save
from xent import information as info
from xent.learn import FixedModel, decode, encode

TEXT = b"she sells sea shells by the sea shore; the shells she sells are sea shells for sure. " * 12


def heading(text: str) -> None:
    """Print a line above a section."""
    print(f"\n{text}\n{'-' * len(text)}")


def coin() -> dict[str, bool]:
    """Print what heads and tails of a coin tell that nearly always shows heads; return claims."""
    heading("A coin")
    print("heads    information of heads, of tails    entropy (bits)")
    for heads in (0.5, 0.75, 0.9, 0.99, 1.0):
        p = torch.tensor([heads, 1 - heads], dtype=torch.float64)
        of_heads, of_tails = info.information_content(p, unit="bit").tolist()
        entropy = info.entropy(p, unit="bit").item()
        print(f"{heads:5.2f} {of_heads:15.4f} {of_tails:15.4f} {entropy:20.10f}")

    print("\nn tosses, 3 in 10 of them heads: bits per toss to say which")
    tosses = {n: info.combinatorial_entropy(n, 3 * n // 10) for n in (10, 100, 10**4, 10**6)}
    for n, bits in tosses.items():
        print(f"{n:9,d} {bits:10.6f}")
    limit = info.entropy(torch.tensor([0.3, 0.7], dtype=torch.float64), unit="bit").item()
    print(f"    limit {limit:10.6f}, the entropy of the coin")
    gaps = [limit - bits for bits in tosses.values()]
    return {
        "the bits per toss rise to the entropy of the coin": gaps == sorted(gaps, reverse=True)
        and 0 < gaps[-1] < 1e-4
    }


def table() -> dict[str, bool]:
    """Print how much two columns tell, alone and about each other; return the claims."""
    heading("A table of counts")
    counts = torch.tensor([[30, 5], [10, 15], [2, 18]])
    print("         umbrella  no umbrella")
    for sky, row in zip(("rain", "clouds", "sun"), counts.tolist(), strict=True):
        print(f"{sky:8} {row[0]:8d} {row[1]:12d}")
    sky = info.entropy_from_counts(counts.sum(1), unit="bit").item()
    umbrella = info.entropy_from_counts(counts.sum(0), unit="bit").item()
    both = info.entropy_from_counts(counts.flatten(), unit="bit").item()
    adjusted = info.entropy_from_counts(
        counts.flatten(), estimator="miller-madow", unit="bit"
    ).item()
    print(f"H(sky) {sky:.4f}   H(umbrella) {umbrella:.4f}   H(both) {both:.4f} bits")
    print(f"H(both) as an estimate of where the counts came from: {adjusted:.4f} (Miller-Madow)")
    mutual = sky + umbrella - both
    print(f"what an umbrella says about the sky: {mutual:.4f} bits")
    rows = counts / counts.sum(1, keepdim=True)
    far = info.jensen_shannon(rows[0], rows[2], unit="bit").item()
    print(f"Jensen-Shannon divergence of rainy and sunny habits: {far:.4f} of at most 1 bit")
    joint = counts.double() / counts.sum()
    apart = joint.sum(1, keepdim=True) * joint.sum(0)
    known = info.kl_divergence(joint.flatten(), apart.flatten(), unit="bit").item()
    return {
        "what columns share is the divergence of the table from independent ones, to 1e-12 bits": (
            abs(mutual - known) < 1e-12
        )
    }


def message_length() -> dict[str, bool]:
    """Code a text for its own frequencies, and for flat ones."""
    heading("The length of a message")
    text = torch.tensor(list(TEXT))
    own = torch.bincount(text, minlength=128)
    flat = torch.ones_like(own)
    p = own.double() / own.sum()
    print(f"{len(TEXT)} characters; entropy {info.entropy_from_samples(text, unit='bit'):.4f} bits")
    print("coded for     cross-entropy    expected length     coded   perplexity")
    lengths = []
    for name, frequency in (("itself", own), ("any ASCII", flat)):
        q = frequency.double() / frequency.sum()
        bits = info.cross_entropy_of(p, q, unit="bit").item()
        model = FixedModel(frequency.tolist())
        code = encode(TEXT, model)
        assert bytes(decode(code.data, model, len(TEXT))) == TEXT
        lengths.append((code.bits, bits * len(TEXT)))
        print(
            f"{name:12} {bits:10.4f} bits {bits * len(TEXT):13.1f} bits {code.bits:9d}"
            f" {info.perplexity(p, q).item():12.2f}"
        )
    waste = info.kl_divergence(p, flat.double() / flat.sum(), unit="bit").item()
    print(f"the difference is the Kullback-Leibler divergence, {waste:.4f} bits per character")
    (_, shortest), (_, longer) = lengths
    return {
        "a coded message is as long as its cross-entropy, and less than 2 bits longer": all(
            0 <= coded - expected + 1e-3 < 2 for coded, expected in lengths
        ),
        "coded for other frequencies it is longer by the Kullback-Leibler divergence": (
            abs(longer - shortest - waste * len(TEXT)) < 1e-6 * longer
        ),
    }


def in_words() -> dict[str, bool]:
    """Print the same loss in several units and words; return the claims."""
    heading("A loss of 0.25 nats on 1000 rows of three classes")
    print(info.report(0.25, counts=[500, 300, 200]))
    surprise = info.information_content(torch.tensor(0.012, dtype=torch.float64)).item()
    print(f"\na target that was given 1.2 %: a loss of {surprise:.9f} nats")
    per_byte = info.bits_per_byte(2.9, tokens=1_000_000, bytes=4_300_000)
    print(f"2.9 nats per token of 4.3 bytes: {per_byte:.4f} bits per byte,", end=" ")
    print(f"a perplexity of {math.exp(2.9):.2f} per token")
    return {
        "a loss is minus the logarithm of what the target was given": (
            abs(math.exp(-surprise) - 0.012) < 1e-15
        ),
        "bits per byte are nats over log 2, tokens over bytes": (
            abs(per_byte - 2.9 / math.log(2) / 4.3) < 1e-12
        ),
    }


def draw(path: Path) -> None:
    """Draw the entropy of a coin, and how the bits of a message add up, coded well and badly."""
    from matplotlib.figure import Figure

    left, right = Figure(figsize=(11, 4.2), layout="constrained").subplots(1, 2)
    heads = torch.linspace(0, 1, 401, dtype=torch.float64)
    coins = torch.stack([heads, 1 - heads], -1)
    left.plot(heads, info.entropy(coins, unit="bit"), color="black", label="entropy of a toss")
    for name, p in (("heads", heads[1:-1]), ("tails", 1 - heads[1:-1])):
        left.plot(
            heads[1:-1], info.information_content(p, unit="bit"), "--", label=f"if it is {name}"
        )
    left.set(
        xlabel="probability of heads", ylabel="information, bits", ylim=(0, 5),
        title="A fair coin tells most: one bit",
    )  # fmt: skip

    text = torch.tensor(list(TEXT[:85]))
    own = torch.bincount(torch.tensor(list(TEXT)), minlength=128).double()
    for name, p in (
        ("its own frequencies", own / own.sum()),
        ("any ASCII", torch.full((128,), 1 / 128)),
    ):
        bits = info.information_content(p.double()[text], unit="bit")
        right.step(range(1, len(text) + 1), bits.cumsum(0), where="mid", label=f"coded for {name}")
    right.set_xticks(range(1, len(text) + 1), [chr(c) for c in text], fontsize=6)
    right.set(
        xlabel="the message, character by character", ylabel="bits so far",
        title="Coded for the wrong frequencies a message takes twice as long",
    )  # fmt: skip
    for ax in (left, right):
        ax.grid(axis="y", alpha=0.3)
        ax.legend()
    save(left.figure, path, dpi=120)


def main() -> None:
    """Print, check and draw."""
    chosen = options(__file__, __doc__)
    claims = coin() | table() | message_length() | in_words()
    print()
    hold(claims)
    draw(chosen.picture)


if __name__ == "__main__":
    main()

"""A Hugging Face model with the vocabulary of Llama 3, trained with and without its logits.

    python examples/huggingface.py [--small] [--tokens 1024] [--steps 3]

Needs transformers; downloads nothing. Takes about half a minute on two cores.

A small random Llama takes a few steps in processes of their own: unchanged, and after one call of
``xent.integrations.transformers.lean``. The losses are the same, with less memory and less time.
Where the package cut-cross-entropy is installed, its fall-back for CPUs takes part, too, which is
code that torch.compile makes. Liger has none for CPUs.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _experiment import hold, options

VOCABULARY = 128_256


def train(way: str, tokens: int, steps: int) -> dict[str, object]:
    """Return losses, seconds per step and the peak memory of this process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from xent.commands.trainer import peak_memory

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=384, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=tokens,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    loss_of = {"plain": of_model, "lean": of_lean_model, "cce": of_cce}[way](model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ids = torch.randint(VOCABULARY, (1, tokens))
    losses, seconds = [], []
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = loss_of(ids)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    peak = (peak_memory() or math.nan) / 2**20  # in MiB
    return {"losses": losses, "seconds": min(seconds[1:]), "peak": peak}  # the first warms up


def of_model(model: Any) -> Callable[[Any], Any]:
    return lambda ids: model(ids, labels=ids).loss


def of_lean_model(model: Any) -> Callable[[Any], Any]:
    from xent.integrations.transformers import lean

    return of_model(lean(model).model)


def of_cce(model: Any) -> Callable[[Any], Any]:
    from cut_cross_entropy import linear_cross_entropy

    def loss(ids: Any) -> Any:
        hidden = model.model(ids).last_hidden_state
        return linear_cross_entropy(
            hidden, model.lm_head.weight, ids, shift=1, impl="torch_compile"
        )

    return loss


def main() -> None:
    given = options(__file__, __doc__, picture=False, tokens=(1024, 512), steps=(3, 2))
    ways = {"plain": "as it is", "lean": "lean"}
    if importlib.util.find_spec("cut_cross_entropy") is not None:
        ways["cce"] = "CCE"
    found = {}
    for way in ways:  # each in a new process, to measure its peak memory
        call = f"print(json.dumps(train({way!r}, {given.tokens}, {given.steps})))"
        command = [sys.executable, "-c", f"import json; from huggingface import train; {call}"]
        here = Path(__file__).parent
        done = subprocess.run(command, cwd=here, stdout=subprocess.PIPE, text=True, check=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    print(f"{given.tokens} tokens, {VOCABULARY:,} classes, {given.steps} steps\n")
    rows = {
        "": [f"{title:>12}" for title in ways.values()],
        "seconds per step": [f"{one['seconds']:12.2f}" for one in found.values()],
        "peak memory, MiB": [f"{one['peak']:12.0f}" for one in found.values()],
        "first loss, nats": [f"{one['losses'][0]:12.6f}" for one in found.values()],
        "last loss, nats": [f"{one['losses'][-1]:12.6f}" for one in found.values()],
    }
    print("\n".join(f"{name:24}" + "".join(row) for name, row in rows.items()))
    plain, ours = found["plain"], found["lean"]
    apart = max(abs(a - b) for a, b in zip(plain["losses"], ours["losses"], strict=True))
    print(f"\nlargest difference of a loss of the lean model: {apart:.1e} nats\n")
    logits = given.tokens * VOCABULARY * 4 / 2**20
    times = 1 if given.small else 2  # a small model has more other memory
    claims = {
        "the losses agree to 1e-5, ten units in the last place": apart < 1e-5,
        f"{times} times the {logits:.0f} MiB of the logits are saved, or more": (
            plain["peak"] - ours["peak"] > times * logits
        ),
    }
    hold(claims)


if __name__ == "__main__":
    main()

"""A Hugging Face model with the vocabulary of Llama 3, trained with and without its logits.

    python examples/huggingface.py [--small] [--tokens 1024] [--steps 3]

Needs transformers; downloads nothing. Takes about half a minute on two cores.

A small random Llama takes a few steps in two processes: unchanged, and after one call of
``xent.integrations.transformers.lean``. The losses are the same, with less memory and less time.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from _experiment import hold, options

VOCABULARY = 128_256


def train(is_lean: bool, tokens: int, steps: int) -> dict[str, object]:
    """Return losses, seconds per step and the peak memory of this process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from xent.integrations.transformers import lean

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=384, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=tokens,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    if is_lean:
        lean(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ids = torch.randint(VOCABULARY, (1, tokens))
    losses, seconds = [], []
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    # The first step warms up. Linux counts the peak in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return {"losses": losses, "seconds": min(seconds[1:]), "peak": peak}


def main() -> None:
    given = options(__file__, __doc__, picture=False, tokens=(1024, 512), steps=(3, 2))
    found = {}
    for child in ("plain", "lean"):  # each in a new process, to measure its peak memory
        call = f"print(json.dumps(train({child == 'lean'}, {given.tokens}, {given.steps})))"
        command = [sys.executable, "-c", f"import json; from huggingface import train; {call}"]
        here = Path(__file__).parent
        done = subprocess.run(command, cwd=here, stdout=subprocess.PIPE, text=True, check=True)
        found[child] = json.loads(done.stdout.splitlines()[-1])
    plain, ours = found["plain"], found["lean"]
    pairs = list(zip(plain["losses"], ours["losses"], strict=True))
    apart = max(abs(a - b) for a, b in pairs)
    print(f"{given.tokens} tokens, {VOCABULARY:,} classes, {given.steps} steps\n")
    print(f"{'':24}{'as it is':>12}{'lean':>12}")
    print(f"{'seconds per step':24}{plain['seconds']:12.2f}{ours['seconds']:12.2f}")
    print(f"{'peak memory, MiB':24}{plain['peak']:12.0f}{ours['peak']:12.0f}")
    for name, step in (("first", 0), ("last", -1)):
        print(f"{name + ' loss, nats':24}" + "".join(f"{z:12.6f}" for z in pairs[step]))
    print(f"\nlargest difference of a loss: {apart:.1e} nats\n")
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

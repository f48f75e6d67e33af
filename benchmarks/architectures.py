"""Every language model of Transformers, lean or not: ``python benchmarks/architectures.py``.

    --only llama bert     models whose class names contain one of these texts
    --folder FOLDER       where the table goes; benchmarks/results unless given

Each class of the causal, masked, sequence to sequence and multimodal models that the installed
Transformers has is built from a small configuration with random weights, and makes a loss and its
gradients twice: as it is, and after ``xent.integrations.transformers.lean``. The table says for
each class whether a lean model made no tensor of all logits, and if not, why; and how far loss and
gradients are from those of the untouched model. Each class has a process of its own and a minute.
Run it with OMP_NUM_THREADS=1; it takes minutes. Multimodal models see text only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.auto import modeling_auto

import xent
from xent.integrations.transformers import lean, unlean

RESULTS = Path(__file__).with_name("results")
KINDS = {
    "causal": "CAUSAL_LM",
    "masked": "MASKED_LM",
    "sequence to sequence": "SEQ_TO_SEQ_CAUSAL_LM",
    "multimodal": "MULTIMODAL_LM",
}
SECONDS = 60  # for a class
CLASSES, ROWS, LENGTH = 1031, 2, 25  # a prime number, which no other axis has
CHUNK = 8  # rows of logits at once
LARGEST = 120_000_000  # parameters of a model


class Row(NamedTuple):
    """Result for a class. Errors are relative to the largest number of the untouched model."""

    name: str
    kind: str
    result: str  # lean, whole, refused, different, or not run
    loss_error: str = ""
    gradient_error: str = ""
    note: str = ""


# ---- small models -------------------------------------------------------------------------------

# The largest value of a size, by parts of its name; the first part that fits counts.
SIZES = [
    ("vocab_size", CLASSES), ("max_position", 512), ("n_positions", 512),
    ("num_key_value", 2), ("kv_heads", 2), ("num_kv", 2), ("heads", 4), ("n_head", 4),
    ("experts_per_tok", 2), ("top_k", 2), ("moe_k", 2), ("topk_group", 1), ("n_group", 1),
    ("experts", 4), ("qk_head_dim", 16), ("head_dim", 8), ("d_kv", 8), ("rank", 8),
    ("rotary_dim", 4), ("layers", 2), ("n_layer", 2), ("depth", 2),
    ("bottleneck", 32), ("intermediate", 64), ("ffn", 64), ("d_ff", 64), ("inner", 64),
    ("hidden_size", 32), ("hidden_dim", 32), ("d_model", 32), ("n_embd", 32), ("embed_dim", 32),
    ("embedding_size", 32), ("model_dim", 32), ("emb_dim", 32), ("proj_dim", 32), ("dim", 32),
    ("image_size", 32), ("patch_size", 8), ("state_size", 8), ("width", 32),
]  # fmt: skip
# Other values to try if a model does not work with these. A list stands for axes of positions.
VARIANTS: list[dict[str, Any]] = [
    {}, {"num_key_value": 4}, {"layers": 8}, {"head_dim": 16}, {"mrope_section": [2, 1, 1]},
    {"mrope_section": [2, 1, 1], "head_dim": 16}, {"num_key_value": 4, "layers": 8},
]  # fmt: skip
# Sizes that are None.
UNSET = {
    "head_dim": 8, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}  # fmt: skip
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
# What a kind of model needs besides.
BESIDES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_offset": 0, "attn_layer_period": 2},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [5, 5]},
    "xmod": {"default_language": "en_XX"},
}


def small(config: Any, variant: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a configuration of the same class, but of small sizes."""
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, transformers.PreTrainedConfig):
            found[name] = small(value, variant) | {"model_type": value.model_type}
        elif name == "vocab_size":
            found[name] = CLASSES
        elif type(value) is int and value > 0:
            part, most = next(((p, n) for p, n in SIZES if p in name), ("", 0))
            if part:
                found[name] = min(value, variant.get(part, most))
        elif name in UNSET and value is None:
            found[name] = variant.get(name, UNSET[name])
        elif name == "rope_parameters" and isinstance(value, dict) and "mrope_section" in variant:
            found[name] = value | {"mrope_section": variant["mrope_section"]}
        elif isinstance(value, list) and len(value) == getattr(config, "num_hidden_layers", 0):
            found[name] = value[: variant.get("layers", 2)]
    start = {"decoder_start_token_id": 1} if config.is_encoder_decoder else {}
    found |= {name: n for name, n in TOKENS.items() if hasattr(config, name)} | start
    return found | BESIDES.get(config.model_type, {})


def build(name: str, variant: dict[str, Any]) -> torch.nn.Module:
    """Return a small model of a class, in training mode, its weights drawn with a fixed seed."""
    kind = getattr(transformers, name)
    config = kind.config_class(**small(kind.config_class(), variant))
    config.use_cache = False
    config.is_decoder = "CausalLM" in name or "LMHead" in name
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters with a small configuration")
    torch.manual_seed(1)
    return kind(config).float().train()


# ---- a step -------------------------------------------------------------------------------------


class Logits(TorchDispatchMode):
    """A mode that counts tensors of the logits of all rows, which no parameter resembles."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.count = 0
        self.parameters = {tuple(p.shape) for p in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and look at the shapes of its results."""
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and CLASSES in x.shape:
                parameter = {tuple(x.shape), tuple(x.shape[::-1])} & self.parameters
                self.count += not parameter and x.numel() >= ROWS * (LENGTH - 1) * CLASSES
        return out


class Step(NamedTuple):
    """Results of a step, and how often it had all logits."""

    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]
    whole: int


def step(model: torch.nn.Module) -> Step:
    """Compute the loss of a batch, and its gradients."""
    ids = torch.randint(3, CLASSES, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[0, :5] = -100
    model.zero_grad()
    transformers.set_seed(3)  # of dropout, and of random attention
    with Logits(model) as made:
        loss = model(input_ids=ids, labels=labels).loss
        if loss is None:
            raise ValueError("no loss for labels")
        loss.backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return Step(loss.detach(), gradients, made.count)


def first_that_works(name: str) -> tuple[torch.nn.Module, Step]:
    """Return a small model and its step; raise what the last of the variants raised."""
    error: Exception | None = None
    for variant in VARIANTS:
        try:
            model = build(name, variant)
            step(model)  # in which some decide for a kind of attention
            return model, step(model)
        except Exception as raised:
            error = error or raised
    assert error is not None
    raise error


def compared(name: str, kind: str) -> Row:
    """Train a class as it is and lean, and compare."""
    try:
        model, plain = first_that_works(name)
    except Exception as error:
        return Row(name, kind, "not run", note=told(error))
    try:
        lean(model, max_workspace=CHUNK * CLASSES * 4)
    except Exception as error:
        return Row(name, kind, "refused", note=told(error))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            ours = step(model)
        except Exception as error:
            return Row(name, kind, "different", note=told(error))
    said = next((str(w.message) for w in caught if "lean" in str(w.message).lower()), "")
    said = next((str(w.message) for w in caught if "needs all" in str(w.message)), said)
    loss, gradient = errors(ours, plain)
    result = "whole" if ours.whole else "lean"
    if not same(ours, plain):
        unlean(model)
        if not same(step(model), plain):
            return Row(name, kind, "not run", note="two steps of the untouched model differ")
        result = "different"
    if result == "whole" and not said:
        said = "another part of the model makes logits of its own"
    if not plain.whole:
        said = f"the untouched model makes no tensor of all logits, either; {said}"
    return Row(name, kind, result, f"{loss:.1e}", f"{gradient:.1e}", one_line(said))


def errors(ours: Step, plain: Step) -> tuple[float, float]:
    """Return the errors of loss and gradients, relative to the largest of the untouched model."""
    loss = (ours.loss - plain.loss).abs().item() / max(1.0, plain.loss.abs().item())
    if ours.gradients.keys() != plain.gradients.keys():
        return loss, float("inf")
    pairs = [(ours.gradients[k], g) for k, g in plain.gradients.items() if g.numel()]
    largest = max(g.abs().max().item() for _, g in pairs)
    return loss, max((mine - g).abs().max().item() for mine, g in pairs) / largest


def same(ours: Step, plain: Step) -> bool:
    """Return True if loss and gradients agree as well as the roundings of float32 allow."""
    loss, gradient = errors(ours, plain)
    return loss <= 1e-6 and gradient <= 1e-5


def told(error: Exception) -> str:
    """Return an error in one line."""
    return one_line(f"{type(error).__name__}: {error}")


def one_line(text: str) -> str:
    """Return a text without line ends and tabs, and not too long for a table."""
    return " ".join(text.split())[:200].strip("; ")


# ---- the sweep ----------------------------------------------------------------------------------


def classes() -> Iterator[tuple[str, str]]:
    """Yield the name and the kind of each class that this Transformers has."""
    seen: set[str] = set()
    for kind, mapping in KINDS.items():
        names = getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").values()
        for found in names:
            for name in (found,) if isinstance(found, str) else found:
                if name not in seen and hasattr(transformers, name):
                    seen.add(name)
                    yield name, kind


def alone(work: Callable[[str, str], Row], name: str, kind: str) -> Row:
    """Run the comparison of a class in a process of its own, with a limit of time."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_send, args=(sender, work, name, kind))
    process.start()
    sender.close()
    try:
        row = receiver.recv() if receiver.poll(SECONDS) else None
    except EOFError:
        process.join()
        return Row(name, kind, "not run", note=f"the process ended with code {process.exitcode}")
    finally:
        process.kill()
        process.join()
    return row or Row(name, kind, "not run", note=f"not ready after {SECONDS} seconds")


def _send(sender: Connection, work: Callable[[str, str], Row], name: str, kind: str) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # models print about packages that are not installed
    sender.send(work(name, kind))


def summary(rows: list[Row]) -> str:
    """Return the counts of the results, the largest errors, and the classes that are not lean."""
    counts = Counter(row.result for row in rows)
    ran = [row for row in rows if row.loss_error]
    lines = [
        f"{len(rows)} classes of transformers {transformers.__version__}, torch "
        f"{torch.__version__}, xent {xent.__version__}: "
        + ", ".join(f"{n} {result}" for result, n in counts.most_common()),
        f"largest error of a loss {max((float(r.loss_error) for r in ran), default=0):.1e}, of a "
        f"gradient {max((float(r.gradient_error) for r in ran), default=0):.1e}",
    ]
    for result in ("different", "whole", "refused", "not run"):
        lines += [f"{result}: {r.name}: {r.note}" for r in rows if r.result == result]
    return "\n".join(lines)


def main() -> int:
    """Sweep, write table and summary; return 1 if a lean model differs from the untouched one."""
    parser = argparse.ArgumentParser(description="every language model of Transformers, lean")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # a fork has no threads of its parent
    transformers.logging.set_verbosity_error()
    chosen = [
        (name, kind)
        for name, kind in classes()
        if any(text.lower() in name.lower() for text in args.only)
    ]
    rows, start = [], time.perf_counter()
    for name, kind in chosen:
        rows.append(alone(compared, name, kind))
        print(f"{len(rows)}/{len(chosen)}  {'  '.join(filter(None, rows[-1]))}", flush=True)
    lines = ["\t".join(row) for row in (Row._fields, *rows)]
    (args.folder / "architectures.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = summary(rows)
    (args.folder / "architectures.txt").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n{time.perf_counter() - start:.0f} s")
    return int(any(row.result == "different" for row in rows))


if __name__ == "__main__":
    sys.exit(main())

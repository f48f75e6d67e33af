"""``xent eval``: perplexity, accuracy and calibration of a language model over text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import Evaluation, evaluate
from .._package import not_installed
from ..integrations.transformers import lean
from .console import UserError, as_options, note, progress_bar, say, say_json
from .model import LanguageModel
from .plot import require_matplotlib, save_figure
from .report import SPELLING
from .run_folder import CHECKPOINT, load_checkpoint
from .text import UNKNOWN, bits_per_byte, classify, each_text, find_files, read_corpus
from .trainer import check_state

USAGE = "xent eval RUN [TEXT ...] [options]\n       xent eval --hf MODEL TEXT [TEXT ...] [options]"
EPILOG = """\
RUN is a folder that xent train wrote; without a TEXT its validation text is taken, in windows that
each start anew, where the training goes on from what came before. MODEL is a causal language model
of Hugging Face, a folder or a name, with its own tokens."""
LENGTH, IGNORED = 1024, -100


class Subject(NamedTuple):
    """A model to evaluate, and texts in the tokens of the model.

    Attributes:
        model: maps ids, ``(B, T)``, to logits.
        texts: the tokens of each text, ``(T,)``.
        prefix: a token that each text starts with, for the model; None for none.
        length: the most tokens that the model can see at once, or None.
        total_bytes: bytes of text that are predicted; None if tokens may be unknown.
        sizes: bytes that each token of the only text stands for; None if no token is unknown.
    """

    model: Callable[[Tensor], Any]
    texts: list[Tensor]
    prefix: int | None = None
    length: int | None = None
    total_bytes: int | None = None
    sizes: Tensor | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``xent eval``."""
    parser.usage, parser.epilog = USAGE, EPILOG
    parser.add_argument("words", nargs="*", metavar="RUN, TEXT", help=argparse.SUPPRESS)
    parser.add_argument("--hf", metavar="MODEL", help="a model of Hugging Face instead of a run")
    parser.add_argument(
        "--length", type=int, metavar="T",
        help=f"tokens that the model sees at once (default {LENGTH}, or what it can)",
    )  # fmt: skip
    parser.add_argument(
        "--stride", type=int, metavar="T",
        help="tokens that each further window adds (default: half of --length)",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=int, default=8, metavar="B", help="windows side by side (default 8)"
    )
    parser.add_argument("--device", help="where the model runs (default: cpu)", default="cpu")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a reliability diagram")
    parser.add_argument("--quiet", action="store_true", help="no progress, only the result")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print, and draw if asked."""
    if args.plot:
        require_matplotlib()
    show = not args.quiet and sys.stderr.isatty()
    subject = _hugging_face(args) if args.hf else _run(args, partial(progress_bar, not show))
    longest = subject.length or LENGTH
    if subject.length and (args.length or 0) > longest:
        raise UserError(f"--length {args.length}: the model sees {longest} tokens at most")
    if all(len(text) + (subject.prefix is not None) < 2 for text in subject.texts):
        raise UserError(f"{', '.join(args.words)}: there is no text to predict")
    try:
        found = evaluate(
            subject.model, subject.texts, prefix=subject.prefix, batch=args.batch,
            length=min(LENGTH, longest) if args.length is None else args.length,
            stride=args.stride, total_bytes=subject.total_bytes,
            device=args.device, progress=show and find_spec("tqdm") is not None,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(as_options(str(error), vars(args))) from None
    _report(found, _with_unknown(found, subject), args)
    return 0


def _report(found: Evaluation, unknown: dict[str, float], args: argparse.Namespace) -> None:
    if args.json:
        say_json(found.to_dict() | unknown)
    else:
        say(str(found))
        if unknown:
            say(f"bits per byte *           {unknown['bits_per_byte']:.4f}")
            say(f"unknown tokens *          {unknown['unknown_share']:.1%}\n\n{SPELLING}")
    if args.plot:
        from ..plot import reliability

        save_figure(reliability(found.reliability).figure, args.plot, "--plot")


def _with_unknown(found: Evaluation, subject: Subject) -> dict[str, float]:
    """Return bits per byte with the spelling of unknown tokens, and the share of such tokens."""
    if subject.sizes is None:
        return {}
    classes, sizes = subject.texts[0][1:], subject.sizes[1:]
    return {
        "bits_per_byte": bits_per_byte(found.nats, classes, sizes),
        "unknown_share": (classes == UNKNOWN).double().mean().item(),
    }


# -- A run of xent train ---------------------------------------------------------------------------


def _run(args: argparse.Namespace, bar: Callable[..., Any]) -> Subject:
    if not args.words:
        raise UserError("name the folder of a run, or a model with --hf")
    folder, *paths = args.words
    saved = load_checkpoint(folder, "RUN")
    check_state(saved, f"RUN: {Path(folder, CHECKPOINT)}")
    if paths:
        tokens, sizes = classify(_texts(paths), saved["vocabulary"])
    else:
        settings = saved["settings"]
        corpus = read_corpus(saved["paths"], settings["seed"], settings["vocab"], bar)
        if corpus.fingerprint != saved["text"]:
            raise UserError(f"RUN: the text of {folder} has changed since; name a TEXT")
        tokens, sizes = corpus.valid, corpus.valid_bytes
    model = _language_model(saved, args.device)
    return Subject(model, [tokens], sizes=sizes)


def _language_model(saved: dict[str, Any], device: str) -> Callable[[Tensor], Any]:
    counts = torch.ones(len(saved["vocabulary"]))  # any number: the bias that they make is loaded
    model = LanguageModel(counts, saved["settings"]["dim"])
    model.load_state_dict(saved["model"])
    _move(model, device)

    def logits(ids: Tensor) -> Any:
        features, _ = model(ids.t(), model.blank(len(ids)).to(ids.device))  # (T, B, dim)
        return model.logits(features.transpose(0, 1))  # (B, T, classes)

    return logits


def _texts(paths: Sequence[str]) -> list[bytes]:
    texts = [data for data in each_text(find_files(paths), frozenset(map(Path, paths)), []) if data]
    if not texts:
        raise UserError(f"no text in {', '.join(paths)}")
    return texts


def _move(model: torch.nn.Module, device: str) -> None:
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"--device {device}: {reason}") from None


# -- A model of Hugging Face -----------------------------------------------------------------------


def _hugging_face(args: argparse.Namespace) -> Subject:
    if not args.words:
        raise UserError("--hf needs text: name one or more files or folders")
    texts = _texts(args.words)
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise UserError(f"--hf: {not_installed('transformers', 'transformers')}") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.hf)
        model = AutoModelForCausalLM.from_pretrained(args.hf)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"--hf {args.hf}: {reason}") from None
    _move(model.eval(), args.device)
    tokens, start, total_bytes = _tokenise(texts, tokenizer)
    length = getattr(model.config, "max_position_embeddings", None)
    return Subject(_lean(model), tokens, start, length, total_bytes)


def _tokenise(texts: list[bytes], tokenizer: Any) -> tuple[list[Tensor], int | None, int]:
    """Return the tokens of each text, the token that starts a text, and the bytes to predict.

    If the tokenizer has no such token, the first token of each text takes its place: it is given
    and not predicted.
    """
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    tokens, total_bytes = [], 0
    for text in texts:
        ids = tokenizer(text.decode(), add_special_tokens=False, verbose=False).input_ids
        tokens.append(torch.tensor(ids, dtype=torch.int64))
        total_bytes += len(text)
        if start is None:
            total_bytes -= len(tokenizer.decode(ids[:1]).encode())
    return tokens, start, total_bytes


def _lean(model: Any) -> Callable[[Tensor], Any]:
    """Return the model as a function of tokens, if possible without all logits in memory."""
    try:
        lean(model)
    except TypeError as error:  # a head that is not linear, or quantised
        note(f"all logits of a batch at once, because {error}")
        return lambda ids: model(input_ids=ids, use_cache=False)
    # With labels the model is lean. All labels are ignored, so their loss costs nothing.
    return lambda ids: model(input_ids=ids, labels=torch.full_like(ids, IGNORED), use_cache=False)

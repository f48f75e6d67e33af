"""The training loop: one step, evaluation, and a state that can be saved and continued exactly."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from .._files import fits
from .console import UserError
from .model import HEADS, OF_CLASSES, LanguageModel, make_lanes
from .ranks import Ranks
from .text import UNKNOWN, Corpus, bits_per_byte

DEFAULT_MINUTES = 2.0
WARMUP = 0.05  # share of the budget over which the learning rate rises
CLIP = 1.0  # largest norm of the gradient
HISTORY = {
    "loss": [float], "progress": [float], "seconds": [float],
    "validation": [{"step": int, "seconds": float, "nats": float}],
}  # fmt: skip
CHECKS = 10  # evaluations on the way
CHECK_SIZE, FINAL_SIZE = 8, 64  # validation text on the way and at the end, in sizes of a step


@dataclass(frozen=True)
class Settings:
    """Settings of a run; together with the text, these decide its outcome.

    Attributes:
        head: how the logits become a loss, one of :data:`~xent.commands.model.HEADS`.
        minutes: budget of time; None if ``steps`` is the budget.
        steps: number of steps.
        seed: for the split of the files and the initial weights.
        dim: width of the embedding.
        batch: lanes of text read side by side.
        length: tokens per lane and step.
        vocab: largest number of classes.
        lr: largest learning rate.
        like: folder of a run whose schedule is followed step by step.
    """

    head: str = "lean"
    minutes: float | None = None
    steps: int | None = None
    seed: int = 0
    dim: int = 128
    batch: int = 32
    length: int = 32
    vocab: int = 50_000
    lr: float = 0.015
    like: str | None = None


# What every checkpoint holds; the shapes of its tensors depend on the settings.
STATE = {
    "settings": {
        "head": str, "minutes": (float, NoneType), "steps": (int, NoneType), "seed": int,
        "dim": int, "batch": int, "length": int, "vocab": int, "lr": float, "like": (str, NoneType),
    },
    "text": str,
    "vocabulary": [str],
    "model": dict,
    "optimizer": dict,
    "history": HISTORY,
    "times": {"elapsed": float, "steps": float},
    "results": dict,
    "paths": [str],
}  # fmt: skip


RESULTS = {
    "steps": int, "training_tokens": int, "nats_per_token": float, "bits_per_token": float,
    "perplexity": float, "bits_per_byte": float, "unknown_share": float,
    "tokens_per_second": float, "seconds": float, "peak_memory_bytes": (int, NoneType),
}  # fmt: skip


def check_state(state: dict[str, Any], source: object) -> None:
    """Raise unless a checkpoint is one of ``xent train`` with the model of its settings.

    Args:
        state: the content of the checkpoint.
        source: the file, for the message.

    Raises:
        UserError: if the state is something else.
    """
    settings: dict[str, Any] = state.get("settings", {})
    if (
        fits(state, STATE)
        and settings.keys() == STATE["settings"].keys()
        and settings["head"] in HEADS
        and min(settings["dim"], settings["batch"], settings["length"]) > 0
        and (not state["results"] or fits(state["results"], RESULTS))
    ):
        with suppress(RuntimeError, OverflowError), torch.device("meta"):  # takes no memory
            model = LanguageModel(torch.ones(len(state["vocabulary"])), settings["dim"])
            if fits(state["model"], model.state_dict()):
                return
    raise UserError(f"{source} is not a checkpoint of xent train, or is damaged")


class Trainer:
    """A run in progress.

    Args:
        settings: of the run.
        corpus: the text.
        schedule: the share of the budget that another run had used before each step, to follow it.
        ranks: the processes that train together, each with a trainer; this one alone by default.
    """

    def __init__(
        self, settings: Settings, corpus: Corpus, schedule: list[float] | None = None,
        ranks: Ranks | None = None,
    ) -> None:  # fmt: skip
        torch.manual_seed(settings.seed)
        self.settings, self.corpus, self.schedule = settings, corpus, schedule
        self.ranks = ranks or Ranks()
        self.model = LanguageModel(corpus.counts, settings.dim, self.ranks.classes)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=0.0, fused=True)
        self.lanes = self._own_lanes(corpus.train)
        self.memory = self._blank()
        self.history: dict[str, list] = {name: [] for name in HISTORY}
        self.times = {"elapsed": 0.0, "steps": 0.0, "head": 0.0}
        self.results: dict[str, Any] = {}

    @property
    def step(self) -> int:
        """Number of steps done."""
        return len(self.history["loss"])

    @property
    def tokens(self) -> int:
        """Number of tokens trained on."""
        return self.step * self.settings.batch * self.settings.length

    def progress(self) -> float:
        """The share of the budget that is used; the run is over at 1."""
        if self.schedule is not None:
            return self.schedule[self.step] if self.step < len(self.schedule) else 1.0
        if self.settings.minutes is None:
            return self.step / (self.settings.steps or 1)
        return min(1.0, self.times["elapsed"] / (60 * self.settings.minutes))

    def advance(self) -> float:
        """Take one step of training, with an evaluation if one is due; return the loss."""
        started, before = perf_counter(), self.times["elapsed"]
        progress = self.progress()
        loss = self._train(progress)
        taken = perf_counter() - started
        self.times["steps"] += taken
        self.times["elapsed"] = self.ranks.of_first(before + taken)
        self.history["loss"].append(loss)
        self.history["progress"].append(progress)
        self.history["seconds"].append(round(self.times["elapsed"], 3))
        if int(CHECKS * self.progress()) > int(CHECKS * progress):
            self._check()
            self.times["elapsed"] = self.ranks.of_first(before + perf_counter() - started)
        return loss

    def just_checked(self) -> bool:
        """True if the last step ended with an evaluation."""
        checks = self.history["validation"]
        return bool(checks) and checks[-1]["step"] == self.step

    def finish(self) -> dict[str, Any]:
        """Evaluate on more text and sum up."""
        nats, bits_per_byte, unknown = self.evaluate(FINAL_SIZE)
        share, memory = self.times["head"] / self.times["steps"], peak_memory()
        self.results = {
            "steps": self.step,
            "training_tokens": self.tokens,
            "nats_per_token": nats,
            "bits_per_token": nats / math.log(2),
            "perplexity": math.exp(min(nats, 700.0)),
            "bits_per_byte": bits_per_byte,
            "unknown_share": unknown,
            "tokens_per_second": self.tokens / self.times["steps"],
            "head_share_of_time": None if math.isnan(share) else share,
            "seconds": round(self.times["elapsed"], 3),
            "peak_memory_bytes": memory and int(self.ranks.most(memory)),
        }
        return self.results

    @torch.no_grad()
    def evaluate(self, size: int) -> tuple[float, float, float]:
        """Loss in nats per token, bits per byte and the share of unknown tokens.

        Args:
            size: how much validation text to use at most, in steps; at most ``FINAL_SIZE``.
        """
        batch, length = self.settings.batch, self.settings.length
        most = FINAL_SIZE * length * batch + batch  # no prediction of the first token of a lane
        lanes = self._own_lanes(self.corpus.valid[:most])
        memory, total = self._blank(), torch.zeros((), dtype=torch.float64, device="cpu")
        end = min(len(lanes) - 1, size * length)
        for start in range(0, end, length):
            piece = lanes[start : min(start + length, end) + 1]
            features, memory = self.model(piece[:-1], memory)  # (length, batch, dim)
            logits, target = self.model.logits(features.flatten(0, 1)), piece[1:].flatten().long()
            total += HEADS[self.settings.head](logits, target, 1.0)
        self.ranks.lanes.add_up(total)
        target = make_lanes(self.corpus.valid[:most], batch)[1 : end + 1]  # of all ranks
        sizes = make_lanes(self.corpus.valid_bytes[:most], batch)[1 : end + 1]
        count = target.numel()
        unknown = (target == UNKNOWN).sum().item() / count
        nats = total.item()
        return nats / count, bits_per_byte(nats, target, sizes), unknown

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on: tensors and plain types.

        All ranks call it; the tensors are whole on the first one.
        """
        ranks, batch, classes = self.ranks, self.settings.batch, self.model.classes
        model, optimizer = self._with_classes(
            self.model.state_dict(), self.optimizer.state_dict(),
            lambda own: ranks.classes.whole(own, classes),
        )  # fmt: skip
        return {
            "settings": asdict(self.settings),
            "text": self.corpus.fingerprint,
            "vocabulary": self.corpus.vocabulary,
            "model": model,
            "optimizer": optimizer,
            "memory": ranks.lanes.whole(self.memory, batch, dim=1),
            "random": torch.get_rng_state(),
            "history": self.history,
            "times": self.times,
            "results": self.results,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state`."""
        if state["text"] != self.corpus.fingerprint:
            raise UserError("--resume: the text is not the one that the checkpoint was trained on")
        if state["vocabulary"] != self.corpus.vocabulary:
            raise UserError("--resume: an earlier version began this run, with other tokens")
        ranks, batch, classes = self.ranks, self.settings.batch, self.model.classes
        try:
            model, optimizer = self._with_classes(
                state["model"], state["optimizer"], lambda x: ranks.classes.own(x, classes).clone()
            )
            self.model.load_state_dict(model)
            self.optimizer.load_state_dict(optimizer)
            memory = ranks.lanes.own(state["memory"], batch, dim=1)
            self._check_restored(memory)
            torch.set_rng_state(state["random"])
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError):
            raise UserError("--resume: the checkpoint is damaged; begin anew") from None
        self.memory, self.history = memory, state["history"]
        # Earlier versions did not time head and loss together; such a time is not known.
        self.times, self.results = {"head": math.nan} | state["times"], state["results"]

    def _check_restored(self, memory: Any) -> None:
        """Raise :class:`ValueError` unless the next step can be taken."""
        if not fits(memory, self.memory):
            raise ValueError("the memory is of another model")
        for parameter, kept in self.optimizer.state.items():
            form = {"step": torch.tensor(0.0), "exp_avg": parameter, "exp_avg_sq": parameter}
            if not fits(kept, form):
                raise ValueError("the optimizer is of other parameters")

    def _with_classes(
        self, model: dict[str, Any], optimizer: dict[str, Any], change: Callable[[Tensor], Tensor]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the states of model and optimizer with each tensor of all classes changed."""
        names = [name for name, _ in self.model.named_parameters()]
        return (
            {k: change(x) if k in OF_CLASSES else x for k, x in model.items()},
            optimizer | {"state": {
                k: {m: change(x) if x.ndim else x for m, x in kept.items()}
                if names[k] in OF_CLASSES else kept
                for k, kept in optimizer["state"].items()
            }},
        )  # fmt: skip

    def _train(self, progress: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * min(1.0, 0.1 + progress / WARMUP) * (1 - progress)
        input, target = self._next_batch()
        features, self.memory = self.model(input, self.memory)
        # Backward runs in two parts, first to features and head, then on from the features. So the
        # time of head and loss alone is known.
        leaf = features.detach().flatten(0, 1).requires_grad_()  # (length * batch, dim)
        started = perf_counter()
        rows = self.settings.batch * self.settings.length  # of all ranks
        loss = HEADS[self.settings.head](self.model.logits(leaf), target, rows)
        loss.backward()
        self.times["head"] += perf_counter() - started
        assert leaf.grad is not None
        features.backward(leaf.grad.view_as(features))
        gradients = {
            name: p.grad for name, p in self.model.named_parameters() if p.grad is not None
        }
        loss = loss.detach()
        self.ranks.lanes.add_up(loss, *gradients.values())
        self._clip(gradients)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def _clip(self, gradients: dict[str, Tensor]) -> None:
        """Make the gradient at most ``CLIP`` long, over the classes of all ranks."""
        split = [grad for name, grad in gradients.items() if name in OF_CLASSES]
        shared = [grad for name, grad in gradients.items() if name not in OF_CLASSES]
        squares = nn.utils.get_total_norm(split).square()
        self.ranks.classes.add_up(squares)
        norm = (squares + nn.utils.get_total_norm(shared).square()).sqrt()
        nn.utils.clip_grads_with_norm_(self.model.parameters(), CLIP, norm)

    def _own_lanes(self, stream: Tensor) -> Tensor:
        """Return the lanes of this rank, ``(length, lanes)``."""
        batch = self.settings.batch
        return self.ranks.lanes.own(make_lanes(stream, batch), batch, dim=1)

    def _blank(self) -> Tensor:
        """Return the state of this rank's lanes before any text."""
        start, stop = self.ranks.lanes.ends(self.settings.batch)
        return self.model.blank(stop - start)

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        """Return the next tokens of each lane and their targets; the text repeats at its end."""
        length = self.settings.length
        position = self.step % ((len(self.lanes) - 1) // length)
        if position == 0:
            self.memory = self._blank()
        piece = self.lanes[position * length :][: length + 1]
        return piece[:-1], piece[1:].flatten().long()

    def _check(self) -> None:
        nats, bits_per_byte, _ = self.evaluate(CHECK_SIZE)
        point = {"step": self.step, "seconds": self.history["seconds"][-1]}
        self.history["validation"].append({**point, "nats": nats, "bits_per_byte": bits_per_byte})


def peak_memory() -> int | None:
    """The most memory that this process had, in bytes; None where the system does not say.

    Linux starts ``ru_maxrss`` of a new process at the peak of its parent, so ``VmHWM`` comes first.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # other systems count in KiB


def require_enough(settings: Settings, corpus: Corpus) -> None:
    """Raise :class:`UserError` unless a text fills a step of training and one of validation."""
    training, validation = settings.batch * (settings.length + 1), 2 * settings.batch
    if len(corpus.train) < training or len(corpus.valid) < validation:
        raise UserError(
            f"too little text: {len(corpus.train)} tokens for training and {len(corpus.valid)} for "
            f"validation, but --batch {settings.batch} --length {settings.length} need at least "
            f"{training} and {validation}"
        )

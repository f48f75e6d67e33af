"""Trainers of TRL train and evaluate a lean model as they do the untouched one, without its logits.

TRL is no dependency of the tests: ``make test-trl`` runs this file in environments of its own.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.helpers import Largest
from xent.integrations.transformers import lean

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
peft = pytest.importorskip("peft")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

VERSION = tuple(int(part) for part in trl.__version__.split(".")[:2])
FUSED = VERSION >= (1, 16)  # from here on TRL computes its losses by chunks of its own
CLASSES, WIDTH, STEPS = 1009, 16, 3
ROWS, LONG = 4, 24  # of a batch: sequences, and tokens of each, or more
WHOLE = ROWS * LONG * CLASSES  # numbers: the logits of a batch
CHUNK = 8  # rows of logits at once
RANK = 4  # of an adapter


def tokenizer():
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{k}": k for k in range(3, CLASSES)}}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def llama():
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=CLASSES, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def texts(count, length=LONG + 6, seed=0):
    """Texts of ``length`` words, some a little shorter, so that there is padding."""
    draw = random.Random(seed)
    lengths = [length - k % 3 for k in range(count)]
    return [" ".join(f"w{draw.randrange(3, CLASSES)}" for _ in range(n)) for n in lengths]


class Gradients(transformers.TrainerCallback):
    """The gradients of each step, as they are before the optimizer takes them."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        named = model.named_parameters()
        self.steps.append({k: p.grad.clone() for k, p in named if p.grad is not None})


def options(folder, **more):
    return {
        "output_dir": str(folder), "report_to": "none", "use_cpu": True, "max_steps": STEPS,
        "seed": 0, "per_device_train_batch_size": ROWS, "per_device_eval_batch_size": ROWS,
        "learning_rate": 0.5, "optim": "sgd", "lr_scheduler_type": "constant", "bf16": False,
        "max_grad_norm": 0.0, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1,
        "dataloader_pin_memory": False, "gradient_checkpointing": False, **more,
    }  # fmt: skip


def adapter(layers):
    """LoRA on layers of these names; None for no layers."""
    config = {"r": RANK, "target_modules": list(layers), "task_type": "CAUSAL_LM"}
    return peft.LoraConfig(**config) if layers else None


# ---- the trainers -------------------------------------------------------------------------------


def sft(model, folder, data="text", adapted=(), **more):
    columns = {"text": texts(16)}
    if data == "completion":
        columns = {"prompt": texts(16, 8), "completion": texts(16, LONG, seed=1)}
    return trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(**options(folder, **more)),
        train_dataset=datasets.Dataset.from_dict(columns),
        eval_dataset=datasets.Dataset.from_dict({k: v[:ROWS] for k, v in columns.items()}),
        processing_class=tokenizer(),
        peft_config=adapter(adapted),
    )


def dpo(model, folder, adapted=(), **more):
    sizes = {f"per_device_{kind}_batch_size": ROWS // 2 for kind in ("train", "eval")}
    columns = {"prompt": texts(16, 6), "chosen": texts(16, LONG, 1), "rejected": texts(16, LONG, 2)}
    return trl.DPOTrainer(
        model=model,
        args=trl.DPOConfig(**options(folder, **sizes, **more)),
        train_dataset=datasets.Dataset.from_dict(columns),
        eval_dataset=datasets.Dataset.from_dict({k: v[:ROWS] for k, v in columns.items()}),
        processing_class=tokenizer(),
        peft_config=adapter(adapted),
    )


def even(completions=None, completion_ids=None, **_):
    """The reward of a completion: its share of even tokens."""
    return [sum(k % 2 == 0 for k in ids) / max(1, len(ids)) for ids in completion_ids]


def grpo(model, folder, adapted=(), **more):
    more = {"num_generations": 2, "max_completion_length": LONG, "beta": 0.1, "temperature": 0.8,
            "num_iterations": 2, **more}  # fmt: skip
    data = datasets.Dataset.from_dict({"prompt": texts(16, 6)})
    return trl.GRPOTrainer(
        model=model,
        reward_funcs=even,
        args=trl.GRPOConfig(**options(folder, **more)),
        train_dataset=data,
        eval_dataset=data.select(range(ROWS // 2)),
        processing_class=tokenizer(),
        peft_config=adapter(adapted),
    )


# ---- with and without lean ----------------------------------------------------------------------


class Run(NamedTuple):
    """Results of a training and an evaluation."""

    logs: list[dict[str, float]]
    gradients: list[dict[str, torch.Tensor]]
    parameters: dict[str, torch.Tensor]
    trained: int  # the largest number of elements of a tensor in training, and in evaluation
    evaluated: int


def run(make, folder, is_lean, **more):
    """Train and evaluate the model of a folder, from which TRL also loads its reference."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)  # of an adapter
    if is_lean:
        make_lean(model)
    trainer, gradients = make(model, folder / "out", **more), Gradients()
    trainer.add_callback(gradients)
    if is_lean:  # the trainer may have put an adapter on the head, and loaded a reference
        make_lean(trainer.model)
        if getattr(trainer, "ref_model", None) is not None:
            make_lean(trainer.ref_model)
    with Largest() as trained:
        trainer.train()
    with Largest() as evaluated:
        trainer.evaluate()
    parameters = {k: p.detach().clone() for k, p in trainer.model.named_parameters()}
    logs = [{k: v for k, v in entry.items() if not timed(k)} for entry in trainer.state.log_history]
    return Run(logs, gradients.steps, parameters, trained.numel, evaluated.numel)


def make_lean(model):
    lean(model, max_workspace=CHUNK * CLASSES * 4, when="always")


def timed(name):
    return name.endswith(("runtime", "per_second", "time")) or "profiling" in name


def assert_close(ours, theirs, tolerance):
    """Assert that tensors by name differ by no more than a part of the largest number in them."""
    assert ours.keys() == theirs.keys()
    largest = max(x.abs().max().item() for x in theirs.values())
    for key, x in theirs.items():
        assert (ours[key] - x).abs().max().item() <= tolerance * largest, key


RUNS = {
    "SFT": (sft, {}),
    "SFT, completions": (sft, {"data": "completion"}),
    "SFT, accumulated": (sft, {"gradient_accumulation_steps": 2}),
    "SFT, checkpointing": (sft, {"gradient_checkpointing": True}),
    "SFT, adapted head": (sft, {"adapted": ("q_proj", "lm_head")}),
    "DPO": (dpo, {}),
    "DPO, adapter": (
        dpo,
        {"adapted": ("q_proj", "v_proj")},
    ),  # without it the reference
    "DPO, reference first": (dpo, {"precompute_ref_log_probs": True}),
    "DPO, two losses": (dpo, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
    "DPO, weighted": (dpo, {"use_weighting": True}),
    "GRPO": (grpo, {}),
    "GRPO, adapted head": (grpo, {"adapted": ("q_proj", "lm_head")}),
    "GRPO, hook on the head": (grpo, {"cast_lm_head_to_fp32": True}),
    "GRPO, DAPO": (grpo, {"loss_type": "dapo", "beta": 0.0, "epsilon_high": 0.28}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_trainer(name, tmp_path):
    make, more = RUNS[name]
    if FUSED and "lm_head" in more.get("adapted", ()):
        pytest.skip("this TRL takes no adapter on the head")
    llama().save_pretrained(tmp_path)
    theirs, ours = (run(make, tmp_path, is_lean, **more) for is_lean in (False, True))
    assert len(ours.logs) == len(theirs.logs)
    for mine, true in zip(ours.logs, theirs.logs, strict=True):
        assert mine.keys() == true.keys()
        for key, value in true.items():  # rewards are differences of log-probabilities near -170
            margin = true.get(key.replace("accuracies", "margins"), 1.0)
            if key.endswith("rewards/accuracies") and abs(margin) < 1e-4:
                continue  # of equal policies: the share of rounding errors that are positive
            tolerance = 1e-6 if key.endswith("loss") else 1e-5
            assert mine[key] == pytest.approx(value, rel=tolerance, abs=tolerance), key
    assert len(ours.gradients) == STEPS
    for mine, true in zip(ours.gradients, theirs.gradients, strict=True):
        assert_close(mine, true, 1e-5)
    assert_close(ours.parameters, theirs.parameters, 1e-5)
    for mine, true in ((ours.trained, theirs.trained), (ours.evaluated, theirs.evaluated)):
        if FUSED:  # blocks of more classes than there are here
            assert mine == true
        else:
            assert mine <= CLASSES * (WIDTH + RANK)  # as large as the head and its adapter
            assert true >= WHOLE  # so the count can fail


def test_the_page_on_language_models(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "language-models.md").read_text(encoding="utf-8")
    (code,) = [block for block in page.split("```")[1::2] if "SFTTrainer(" in block]
    monkeypatch.chdir(tmp_path)
    given = {"rows": datasets.Dataset.from_dict({"text": texts(16)}), "model": llama()}
    given["tokenizer"] = tokenizer()
    exec(code.replace("max_steps=100", "max_steps=2, use_cpu=True"), given)
    assert given["trainer"].state.global_step == 2

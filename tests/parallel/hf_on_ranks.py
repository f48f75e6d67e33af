"""Models of Transformers on the ranks of a test, beside the same model in one process."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import xent
from xent.integrations.transformers import lean, unlean

from .on_ranks import heard
from .pool import RANKS

VOCABULARY, ROWS, LENGTH = 97, 8, 12
RATE = 1024.0  # of a step whose change of a weight is its gradient but for rounding


class Batch(NamedTuple):
    """Tokens and labels; the ranks have different numbers of labels."""

    ids: Tensor
    labels: Tensor

    @property
    def tokens(self) -> Tensor:
        """Number of labels."""
        return (self.labels[:, 1:] != -100).sum()

    def part(self, rank: int, ranks: int) -> Batch:
        """The rows of one rank."""
        return Batch(*(x.chunk(ranks)[rank] for x in self))


class Step(NamedTuple):
    """Errors of a step over ranks, relative to one process, and what the logits were."""

    loss: float
    gradient: float
    logits: str


def batch() -> Batch:
    """The rows of all ranks."""
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :9] = labels[1, :5] = labels[5, :3] = -100
    return Batch(ids, labels)


def llama(tied: bool = False) -> Any:
    """A small model, the same on all ranks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=tied, **sizes, **heads)
    ).train()


@functools.cache
def of_one_process(tied: bool) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the model in one process, not lean."""
    model, (ids, labels) = llama(tied), batch()
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def whole(x: Any) -> Tensor:
    """All numbers of a DTensor."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def worst(found: dict[str, Tensor], tied: bool) -> float:
    """The largest error of a gradient, relative to the largest number of that gradient."""
    truths = of_one_process(tied)[1]
    errors = [(whole(found[n]) - g).abs().max() / g.abs().max() for n, g in truths.items()]
    return max(x.item() for x in errors)


def unsynchronised(model: Any, last: bool) -> contextlib.AbstractContextManager[Any]:
    """A context in which gradients stay on their rank unless this is the last micro-batch."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    wait = isinstance(model, DistributedDataParallel) and not last
    return model.no_sync() if wait else contextlib.nullcontext()


def loss_of(output: Any, labels: Tensor, tokens: Tensor) -> Tensor:
    """The loss of a model; outside of the model, if that was given no labels."""
    if output.loss is not None:
        return output.loss
    rows = F.pad(labels, (0, 1), value=-100)[:, 1:].reshape(-1)
    logits = output.logits.float().view(-1, output.logits.shape[-1])
    return F.cross_entropy(logits, rows, reduction="sum") / tokens


def step(
    rows: Any, prepare: Callable[[Any], Any], tied: bool = False, micro_batches: int = 1,
    outside: bool = False,
) -> Step:  # fmt: skip
    """Loss and gradients of a step of a prepared model on the rows of this rank.

    ``rows`` is the group of the ranks with different rows; None if all have the same. ``outside``
    tells that the model is given no labels.
    """
    ranks = 1 if rows is None else dist.get_world_size(rows)
    own = batch().part(0 if rows is None else dist.get_rank(rows), ranks)
    tokens = batch().tokens / ranks  # since gradients are averaged over the ranks
    model, total = prepare(llama(tied)), torch.zeros((), dtype=torch.float64)
    for k in range(micro_batches):
        ids, labels = own.part(k, micro_batches)
        with unsynchronised(model, k == micro_batches - 1):
            given = {} if outside else {"labels": labels, "num_items_in_batch": tokens}
            output = model(input_ids=ids, **given)
            loss = loss_of(output, labels, tokens)
            loss.backward()
        total += whole(loss.detach())
    if rows is not None:
        dist.all_reduce(total, group=rows)
    gradients = {n.removeprefix("module."): p.grad for n, p in model.named_parameters()}
    truth = of_one_process(tied)[0]
    return Step(
        abs(total.item() / ranks / truth - 1), worst(gradients, tied), type(output.logits).__name__
    )


# ---- data parallel -------------------------------------------------------------------------------


def mesh_of(group: Any) -> DeviceMesh:
    """The ranks of a group as a device mesh."""
    return DeviceMesh.from_group(group, "cpu")


def fully_sharded(mesh: DeviceMesh, model: Any, units: tuple[str, ...], **options: Any) -> Any:
    """A model under FSDP2; ``units`` names what is a unit of its own beside the root."""
    body, head = model.model, model.lm_head
    parts = {
        "layers": [*body.layers], "head": [head], "embedding, head": [[body.embed_tokens, head]],
        "norm, head": [[body.norm, head]],
    }  # fmt: skip
    for unit in (unit for name in units for unit in parts[name]):
        fully_shard(unit, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def data_parallel(
    group: Any, units: tuple[str, ...] | None, lean_before: bool | None = True,
    tied: bool = False, micro_batches: int = 1, outside: bool = False, bfloat16: bool = False,
) -> Step:  # fmt: skip
    """A step under DDP or, with units, under FSDP2; lean before or after, or with None never."""
    options = {"mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32)} if bfloat16 else {}

    def prepare(model: Any) -> Any:
        if lean_before:
            lean(model)
        if units is None:
            wrapped = DistributedDataParallel(model, process_group=group)
        else:
            wrapped = fully_sharded(mesh_of(group), model, units, **options)
        if lean_before is False:
            lean(wrapped)
        return wrapped

    return step(group, prepare, tied, micro_batches, outside)


def with_adapters(group: Any, when: str) -> Step:
    """A step of a model of PEFT that is one unit, which frees the weights after its forward.

    ``when`` tells what is made lean: the wrapper before or after it becomes a unit; the model, and
    the wrapper once more; or nothing.
    """
    import peft

    def adapted(model: Any) -> Any:
        options = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False}
        torch.manual_seed(0)
        return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))

    inner = llama()
    if when == "inside":
        lean(inner)
    model = adapted(inner)
    if when == "before":
        lean(model)
    fully_shard(model, mesh=mesh_of(group), reshard_after_forward=True)
    if when in ("inside", "after"):
        lean(model)
    truth, steps = adapted(llama()), []
    for one, rows in ((model, batch().part(dist.get_rank(group), 2)), (truth, batch())):
        tokens = batch().tokens / (1 if one is truth else 2)
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        for _ in range(2):  # gathers the weights anew for the second step
            optimizer.step()
            optimizer.zero_grad()
            output = one(input_ids=rows.ids)
            loss = loss_of(output, rows.labels, tokens)  # after the forward that frees the weights
            loss.backward()
        steps.append((loss.detach().double(), output.logits))
    (loss, logits), (expected, _) = steps
    dist.all_reduce(loss, group=group)
    pairs = zip(model.parameters(), truth.parameters(), strict=True)
    errors = [
        (whole(p.grad) - q.grad).abs().max() / q.grad.abs().max()
        for p, q in pairs
        if q.grad is not None
    ]
    return Step(abs(loss / 2 / expected - 1).item(), max(errors).item(), type(logits).__name__)


def kept_weights(group: Any, sizes: bool) -> list[Any]:
    """Settings by which a unit frees its head: before lean, while lean, and after unlean."""
    mesh, model, found = mesh_of(group), llama(), []
    how = dist.get_world_size(group) // 2 if sizes else True
    fully_shard(model.lm_head, mesh=mesh, reshard_after_forward=how)
    fully_shard(model, mesh=mesh)
    (weights,) = model.lm_head._get_fsdp_state()._fsdp_param_groups
    for switch in (unlean, lean, unlean):
        switch(model)
        loss_of(model(input_ids=batch().ids), batch().labels, batch().tokens).backward()
        freed = weights.post_forward_mesh_info
        found.append(freed and freed.shard_mesh_size)
    return found


def misused(group: Any) -> list[str]:
    """The errors of logits whose weight was freed, or was gathered again after a step."""
    model = lean(llama()).model
    fully_sharded(mesh_of(group), model, ("head",))
    optimizer, (ids, labels) = torch.optim.SGD(model.parameters(), lr=1.0), batch()
    early = model(input_ids=ids).logits
    model.lm_head.reshard()
    errors = [heard(lambda: xent.cross_entropy(early, labels))]
    early = model(input_ids=ids).logits
    xent.cross_entropy(early, labels).backward()
    optimizer.step()
    model(input_ids=ids)
    return [*errors, heard(lambda: xent.cross_entropy(early, labels))]


@functools.cache
def two_by_two() -> DeviceMesh:
    """Four ranks: pairs of the same rows, and pairs of the same classes."""
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "classes"))


def by_transformers(group: Any, folder: str, tied: bool, sizes: dict[str, Any]) -> Step:
    """A step of a model that Transformers loads onto all ranks by a configuration."""
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    def prepare(_: Any) -> Any:
        with as_torchrun(group):
            model = AutoModelForCausalLM.from_pretrained(
                folder, distributed_config=DistributedConfig(**sizes)
            )
        return lean(model.train()).model

    assert dist.get_world_size(group) == RANKS
    by_rows = {1: None, 2: two_by_two().get_group("rows"), RANKS: group}
    return step(by_rows[sizes.get("fsdp_size", 1)], prepare, tied)


@contextlib.contextmanager
def as_torchrun(group: Any) -> Iterator[None]:
    """The variables that torchrun sets, which accelerate reads."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    os.environ |= {name: str(value) for name, value in here.items()}
    try:
        yield
    finally:
        for name in here:
            del os.environ[name]


def example(group: Any, code: str, folder: str) -> float:
    """The worst gradient, or step of an optimizer, of code with these names, on all ranks."""
    import transformers
    from transformers.distributed import DistributedConfig

    rank, ranks, (ids, labels), model = dist.get_rank(group), RANKS, batch(), llama()
    own, before = batch().part(rank, ranks), {n: p.detach() for n, p in llama().named_parameters()}
    rows = [{"input_ids": x, "labels": y} for x, y in zip(ids, labels, strict=True)]
    with as_torchrun(group):
        arguments = transformers.TrainingArguments(
            folder, max_steps=1, per_device_train_batch_size=ROWS // ranks // 2,
            gradient_accumulation_steps=2, optim="sgd", learning_rate=RATE,
            lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True, report_to="none",
            disable_tqdm=True, logging_strategy="no", save_strategy="no", ddp_backend="gloo",
            dataloader_pin_memory=False,
        )  # fmt: skip
        names: dict[str, Any] = {
            "lean": lean, "fully_shard": fully_shard, "DistributedConfig": DistributedConfig,
            "AutoModelForCausalLM": transformers.AutoModelForCausalLM, "rows": rows,
            "Trainer": quiet_trainer, "path": folder, "model": model, "ids": ids, "labels": labels,
            "own_ids": own.ids, "own_labels": own.labels, "tokens": batch().tokens / ranks,
            "arguments": arguments,
        }  # fmt: skip
        exec(compile(code, "README.md", "exec"), names)
    parameters = dict(names["model"].named_parameters())
    if "trainer" not in names:
        return worst({name: p.grad for name, p in parameters.items()}, False)
    assert isinstance(names["trainer"].model_wrapped, DistributedDataParallel)
    return worst({n: (before[n] - p.detach()) / RATE for n, p in parameters.items()}, False)


def quiet_trainer(*args: Any, **options: Any) -> Any:
    """A Trainer that prints nothing."""
    from transformers import PrinterCallback, Trainer

    trainer = Trainer(*args, **options)
    trainer.remove_callback(PrinterCallback)
    return trainer


# ---- tensor parallel -----------------------------------------------------------------------------


def tensor_parallel(mesh: DeviceMesh, model: Any, plan: str) -> Any:
    """A model whose head has its classes on several ranks, by a plan of PyTorch."""
    late = {"output_layouts": Shard(-1), "use_local_output": False}
    layers: dict[str, Any] = {
        "DTensor": {"lm_head": ColwiseParallel(**late)},
        "all logits": {"lm_head": ColwiseParallel(output_layouts=Replicate())},
        "own logits": {"lm_head": ColwiseParallel()},
        "tied": {
            "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
            "lm_head": ColwiseParallel(**late),
        },
        "sequence": {
            "model.norm": SequenceParallel(),
            "lm_head": ColwiseParallel(input_layouts=Shard(1), **late),
        },
    }[plan]
    if plan == "sequence":
        model.model.norm.register_forward_pre_hook(
            lambda _, args: (DTensor.from_local(args[0], mesh, [Replicate()], run_check=False),)
        )
    return parallelize_module(model, mesh, layers)


def class_parallel(
    group: Any, plan: str, lean_before: bool = True, micro_batches: int = 1, outside: bool = False
) -> Step:
    """A step with the classes of the head over the ranks; all have the same rows."""

    def prepare(model: Any) -> Any:
        if lean_before:
            lean(model)
        tensor_parallel(mesh_of(group), model, plan)
        if plan == "tied":
            model.tie_weights()
        return lean(model).model

    return step(None, prepare, plan == "tied", micro_batches, outside)


def both_parallel(group: Any, units: tuple[str, ...], lean_before: bool) -> Step:
    """A step on a mesh of two by two: FSDP2 over the rows, and the classes of the head over two."""
    mesh = two_by_two()

    def prepare(model: Any) -> Any:
        if lean_before:
            lean(model)
        tensor_parallel(mesh["classes"], model, "DTensor")
        return lean(fully_sharded(mesh["rows"], model, units)).model

    return step(mesh.get_group("rows"), prepare)


def torn(group: Any, lean_before: bool) -> list[str]:
    """The warnings of two steps of a model whose tie a plan has torn."""
    model = llama(tied=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if lean_before:
            lean(model)
        tensor_parallel(mesh_of(group), model, "tied")
        lean(model)
        for _ in range(2):
            model(input_ids=batch().ids)
    return [str(w.message) for w in said if "weight" in str(w.message)]


def evaluated(group: Any, plan: str, folder: str) -> list[Tensor]:
    """Loss, all logits and generated tokens without gradients: of one process, and of ranks."""
    from transformers import AutoModelForCausalLM

    one = llama().eval()
    if plan == "Transformers":
        with as_torchrun(group):
            model = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto")
    else:
        model = tensor_parallel(mesh_of(group), lean(llama()).model, plan)
    model, found, features = lean(model.eval()).model, [], torch.randn(1, 2, 16)
    ids, labels = batch()
    for m in (one, model):
        with torch.no_grad():
            output, alone = m(input_ids=ids, labels=labels), m.lm_head(features)
        found.append([whole(output.loss), whole(output.logits + 0), whole(alone + 0)])
        if plan != "DTensor":  # of which generate() takes none
            options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
            found[-1].append(m.generate(ids[:, :4], **options))
    return found


def counted(group: Any, plan: str) -> dict[str, int]:
    """The collectives of a step of a model whose head has its classes on several ranks."""
    model = lean(tensor_parallel(mesh_of(group), llama(), plan)).model
    ids, labels = batch()
    with CommDebugMode() as calls:
        model(input_ids=ids, labels=labels).loss.backward()
    return {str(name).removesuffix(".default"): n for name, n in calls.get_comm_counts().items()}

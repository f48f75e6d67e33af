"""A lean model among the hooks, wrappers and adapters of others."""

import copy
import io
import pickle
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import xent
from xent.heads import chunks
from xent.heads.late import Late
from xent.integrations.transformers import lean, unlean

from .test_transformers import (
    F32_EPS,
    VOCABULARY,
    Largest,
    assert_same,
    batch,
    loss_and_gradients,
    make,
)

torch.manual_seed(0)


def llama(**options):
    return make("LlamaForCausalLM", **options)


def evaluated(model, ids):
    with torch.no_grad():
        return model(ids).logits


# ---- late tensors --------------------------------------------------------------------------------

VOCABULARY_OF_LATE = 997


@pytest.fixture
def late():
    """Return logits of an evaluation, late, and the same as a tensor."""
    model, ids = llama(vocab_size=VOCABULARY_OF_LATE).eval(), batch(3, 20)["input_ids"]
    truth = evaluated(model, ids)
    lean(model)
    found = evaluated(model, ids)
    assert type(found) is Late
    return found, truth


WITHOUT_NUMBERS = {
    "argmax": lambda z: z.argmax(-1),
    "cross_entropy": lambda z: F.cross_entropy(
        z[:, :-1].reshape(-1, z.shape[-1]).float(), torch.arange(57)
    ),
    "log_softmax": lambda z: -F.log_softmax(z, -1).gather(-1, torch.ones(3, 20, 1).long()),
    "focal_loss": lambda z: xent.losses.focal_loss(z, torch.arange(60).view(3, 20))
    if isinstance(z, Late)
    else xent.losses.focal_loss(z.movedim(-1, 1), torch.arange(60).view(3, 20)),
    "token_log_probs": lambda z: xent.token_log_probs(z, torch.arange(60).view(3, 20)),
    "detach": lambda z: z.detach()[..., 0, :].argmax(-1),
    "outline": lambda z: torch.tensor([*z.shape, z.dim(), z.numel(), len(z), z.size(1)]),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_NUMBERS)
def test_what_an_evaluation_does_without_the_numbers(name, late, monkeypatch):
    call, (found, truth) = WITHOUT_NUMBERS[name], late
    expected = call(truth)
    monkeypatch.setattr(xent.LinearLogits, "materialize", None)
    torch.testing.assert_close(call(found), expected, rtol=1e-5, atol=1e-6)


def in_place(z):
    z[0] = 0
    z /= 2
    return z


def saved(z):
    file = io.BytesIO()
    torch.save(z, file)
    file.seek(0)
    return torch.load(file)


WITH_NUMBERS = {
    "sum": lambda z: z + 0,
    "softmax": lambda z: z.softmax(-1),
    "transposed": lambda z: z.mT.contiguous(),
    "data": lambda z: z.data,
    "in place": in_place,
    "numpy": lambda z: torch.from_numpy(z.numpy()),
    "list": lambda z: torch.tensor(z.tolist()),
    "saved": saved,
    "pickled": lambda z: pickle.loads(pickle.dumps(z)),
    "dlpack": lambda z: torch.from_dlpack(torch.utils.dlpack.to_dlpack(z)),
    "from_dlpack": torch.from_dlpack,
    "shared": lambda z: z.share_memory_(),
    "flat": lambda z: z.view(-1),
    "bits": lambda z: z.view(torch.int32),
    "softmax of this library": lambda z: xent.softmax(z),
    "joined": lambda z: torch.cat([z, z]),
    "an operator": lambda z: torch.ops.aten.mul.Tensor(z, z),
    "pairs": lambda z: torch.stack(torch.broadcast_tensors(z, torch.zeros(()))),
}


@pytest.mark.parametrize("name", WITH_NUMBERS)
def test_what_reads_the_numbers_gets_them(name, late):
    call, (found, truth) = WITH_NUMBERS[name], late
    torch.testing.assert_close(call(found) + 0, call(truth), rtol=1e-5, atol=1e-6)


def test_the_numbers_are_computed_once(late, monkeypatch):
    found, truth = late
    made, materialize = [], xent.LinearLogits.materialize
    monkeypatch.setattr(
        xent.LinearLogits, "materialize", lambda z: (made.append(z), materialize(z))[1]
    )
    for _ in range(2):
        torch.testing.assert_close(found + 1, truth + 1, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.exp(), truth.exp(), rtol=1e-5, atol=1e-6)
    assert len(made) == 1


@pytest.mark.parametrize("read", [False, True])
def test_logits_kept_over_a_step_are_those_of_their_forward(read):
    model, ids = llama().eval(), batch()["input_ids"]
    truth = evaluated(model, ids)
    lean(model)
    found, in_training = evaluated(model, ids), model.train()(ids).logits
    if read:
        found + 0
    with torch.no_grad():
        model.lm_head.weight.add_(0.1)
    if read:
        torch.testing.assert_close(found + 0, truth)
        return
    for use in (
        lambda: found + 0,
        lambda: xent.token_log_probs(found, ids),
        lambda: xent.token_log_probs(in_training, ids),
        lambda: in_training.materialize(),
        lambda: in_training.gather(-1, ids[..., None]),
        lambda: xent.cross_entropy(in_training.reshape(-1, VOCABULARY), ids.flatten()),
        lambda: xent.cross_entropy(in_training[..., :50], ids % 50),
        lambda: xent.losses.focal_loss(in_training, ids),
        lambda: in_training.argmax(-1),
    ):
        with pytest.raises(RuntimeError, match=r"weight behind .* was changed after these logits"):
            use()


def test_a_sampling_loop_changes_the_last_rows(late):
    found, truth = late
    last, plain = found[:, -1], truth[:, -1].clone()
    for x in (last, plain):
        x /= 0.7
        x[x < torch.topk(x, 5).values[:, [-1]]] = -torch.inf
    torch.testing.assert_close(last.softmax(-1) + 0, plain.softmax(-1))
    with pytest.raises(RuntimeError, match="changed in place through other logits"):
        found.argmax(-1)


@pytest.mark.parametrize("way", ["modules_to_save", "copied head"])
def test_a_copied_head_is_lean_while_its_model_is(way):
    model, ids = lean(llama().train()).model, batch(2, 5)["input_ids"]
    if way == "copied head":
        model.lm_head = copy.deepcopy(model.lm_head)
    else:
        peft = pytest.importorskip("peft")
        options = peft.LoraConfig(
            target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(model, options).train()
    assert isinstance(model(ids).logits, xent.LinearLogits)
    unlean(model)
    assert type(model(ids).logits) is torch.Tensor
    assert type(evaluated(model, ids)) is torch.Tensor


def test_an_interrupted_head_leaves_no_mode_behind():
    model, ids = llama(), batch()["input_ids"]
    lean(model)
    forward = model.lm_head.forward

    def interrupted(hidden):
        raise KeyboardInterrupt

    model.lm_head.forward = interrupted
    with pytest.raises(KeyboardInterrupt):
        model(ids)
    model.lm_head.forward = forward
    assert isinstance(model(ids).logits, xent.LinearLogits)
    unlean(model)
    assert type(model(ids).logits) is torch.Tensor


# ---- hooks, casts and other heads ----------------------------------------------------------------


def hook_that_casts(model):
    model.lm_head.register_forward_pre_hook(lambda _, args: (args[0].to(torch.float64),))
    model.lm_head.double()


def hook_that_reads(model):
    model.lm_head.register_forward_pre_hook(lambda _, args: (args[0] * args[0].abs().mean(),))


def own_forward(model):
    head = model.lm_head
    head.forward = lambda z: F.linear(z.double(), head.weight.double())


def matmul(model):
    head = model.lm_head
    head.forward = lambda z: torch.matmul(2 * z, head.weight.t())


def own_class(model):
    class Scaled(nn.Linear):
        def forward(self, input):
            return super().forward(input.tanh()) / 2

    model.lm_head.__class__ = Scaled


def hook_on_the_result(model):
    model.lm_head.register_forward_hook(lambda _, args, out: out * 0.5)


each_change = pytest.mark.parametrize(
    "change",
    [hook_that_casts, hook_that_reads, own_forward, matmul, own_class, hook_on_the_result],
    ids=lambda f: f.__name__,
)


@each_change
@pytest.mark.parametrize("order", ["before", "after"])
def test_what_comes_before_and_after_the_product(change, order, monkeypatch):
    monkeypatch.setattr(chunks, "MAX_ROWS", 8)
    model, inputs = llama(vocab_size=997), batch(8, 60)
    change(model)
    truth = loss_and_gradients(model, inputs)
    model = llama(vocab_size=997)
    if order == "after":
        lean(model)
    change(model)
    lean(model)
    with Largest() as made:
        ours = loss_and_gradients(model, inputs)
    assert made.numel < 8 * 60 * 997
    assert_same(ours, truth, F32_EPS)
    unlean(model)
    assert type(model(**inputs).logits) is torch.Tensor


def test_generation_of_others_stays():
    model, ids = llama().eval(), batch()["input_ids"][:, :4]
    tokens = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    model.generate = (given := lambda *a, **k: tokens)
    with lean(model):
        assert model.generate(ids) is tokens
        assert model.generate is not given
    assert model.generate is given


# ---- messages ------------------------------------------------------------------------------------


def test_a_head_that_is_not_called():
    model, inputs = llama(), batch()
    head = model.lm_head
    truth = loss_and_gradients(model, inputs)
    lean(model)
    model.lm_head = None  # as in models that multiply by the weight themselves
    body = model.forward

    def forward(input_ids, labels=None):
        model.lm_head = lambda h: F.linear(h, head.weight)
        try:
            return body(input_ids=input_ids, labels=labels)
        finally:
            model.lm_head = None

    del model.lm_head
    model.forward, model.get_output_embeddings = forward, lambda: head
    with pytest.warns(UserWarning, match="by the weight of its head without calling the head"):
        loss = model(**inputs).loss
    torch.testing.assert_close(loss.detach(), truth[0])


def test_an_embedding_is_no_head():
    model = llama()
    model.get_output_embeddings = lambda: model.model.embed_tokens
    with pytest.raises(TypeError, match="multiplies by the weight of its output head, Embedding"):
        lean(model)


def test_no_warning_where_the_model_returns_no_logits():
    model, inputs = llama(), batch()
    lean(model)
    model.forward = lambda **_: {"loss": torch.zeros(()), "logits": None}  # another fused loss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs)


# ---- several processes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_rank():
    """Return nothing; a group of one process exists meanwhile."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def loss_outside(model, inputs):
    logits, ids = model(inputs["input_ids"]).logits, inputs["input_ids"]
    loss = F.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1))
    loss.backward()
    return loss.detach(), {
        key.removeprefix("module."): getattr(p.grad, "full_tensor", lambda g=p.grad: g)()
        for key, p in model.named_parameters()
        if p.grad is not None
    }


@pytest.mark.parametrize("tied", [False, True])
def test_data_parallel_looks_for_unused_parameters(one_rank, tied):
    def wrapped(model):
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)

    inputs = batch()
    truth = loss_outside(wrapped(llama(tie_word_embeddings=tied)), inputs)
    model = llama(tie_word_embeddings=tied)
    lean(wrapped(model))
    assert_same(loss_outside(wrapped(model), inputs), truth, F32_EPS)


@pytest.mark.filterwarnings("ignore:.*_register_pre_backward_hook")
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("unit", ["root", "own"])
def test_fully_sharded(one_rank, unit, order):
    from torch.distributed.fsdp import fully_shard

    inputs = batch()
    truth, model = loss_outside(llama(), inputs), llama()
    if order == "before":
        lean(model)
    for layer in model.model.layers:
        fully_shard(layer)
    if unit == "own":
        fully_shard(model.lm_head)
    fully_shard(model)
    if order == "after":
        lean(model)
    for _ in range(2):
        model.zero_grad()
        ours = loss_outside(model, inputs)
        assert_same(ours, truth, F32_EPS)


def test_a_plan_of_tensor_parallelism(one_rank):
    from torch.distributed.tensor import Replicate, init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    inputs = batch()
    truth = loss_outside(llama(), inputs)
    plan = {"lm_head": ColwiseParallel(output_layouts=Replicate())}
    model = parallelize_module(llama(), init_device_mesh("cpu", (1,)), plan)
    with lean(model):
        assert_same(loss_outside(model, inputs), truth, F32_EPS)
        assert "nothing so far" in str(xent.explain(model))
    assert type(model(inputs["input_ids"]).logits) is torch.Tensor


# ---- adapters on the head ------------------------------------------------------------------------

HEAD = {"task_type": "CAUSAL_LM", "target_modules": ["lm_head"]}
ADAPTERS = {
    "LoRA with a bias": ("LoraConfig", {"r": 4, "lora_bias": True, **HEAD}),
    "DoRA": ("LoraConfig", {"r": 4, "use_dora": True, "lora_dropout": 0.3, **HEAD}),
    "IA3": ("IA3Config", {"feedforward_modules": [], **HEAD}),
    "IA3 of features": ("IA3Config", {"feedforward_modules": ["lm_head"], **HEAD}),
    "VeRA": ("VeraConfig", {"r": 4, **HEAD}),
    "LoHa": ("LoHaConfig", {"r": 4, **HEAD}),
    "LoKr": ("LoKrConfig", {"r": 4, **HEAD}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 1, **HEAD}),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 50, **HEAD}),
    "AdaLoRA": ("AdaLoraConfig", {"init_r": 6, "target_r": 4, "total_step": 10, **HEAD}),
    "tokens": (
        "LoraConfig",
        {
            "r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM",
            "trainable_token_indices": {"lm_head": [3, 4], "embed_tokens": [5]},
        },
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_on_the_head(name, monkeypatch):
    peft = pytest.importorskip("peft")
    monkeypatch.setattr(chunks, "MAX_ROWS", 8)
    kind, options = ADAPTERS[name]
    model, inputs = peft.get_peft_model(llama(), getattr(peft, kind)(**options)), batch(8, 30)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:  # an adapter that does nothing yet would hide what it adds
                p.add_(0.1 * torch.randn_like(p))

    def run():
        torch.manual_seed(2)  # of the dropout
        return loss_and_gradients(model.train(), inputs)

    truth = run()
    with lean(model), Largest() as made:
        ours = run()
    assert made.numel < 8 * 30 * VOCABULARY
    assert_same(ours, truth, F32_EPS)

    ids = inputs["input_ids"]
    truth = evaluated(model.eval(), ids).argmax(-1)
    with lean(model), Largest() as made:
        assert torch.equal(evaluated(model, ids).argmax(-1), truth)
    assert made.numel < 8 * 30 * VOCABULARY


@pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore:.*needs all")
def test_an_adapter_for_each_example():
    peft = pytest.importorskip("peft")
    options = peft.LoraConfig(r=4, init_lora_weights=False, **HEAD)
    model, ids = peft.get_peft_model(llama(), options, "a"), batch(4, 6)["input_ids"]
    model.add_adapter("b", options)
    names = ["a", "b", "__base__", "a"]
    with torch.no_grad():
        truth = model.eval()(ids, adapter_names=names).logits
        with lean(model):
            found = model(ids, adapter_names=names).logits
            torch.testing.assert_close(found + 0, truth)
            torch.testing.assert_close(found.log_softmax(-1) + 0, truth.log_softmax(-1))


# ---- threads -------------------------------------------------------------------------------------


def test_a_call_in_one_thread_knows_nothing_of_others():
    model, ids = lean(llama().eval()).model, batch(2, 5)["input_ids"]
    met = []

    def look(*_):
        if threading.current_thread() is not threading.main_thread():
            return
        if not met:  # within `generate` of this thread
            met.append(None)
            other = threading.Thread(target=lambda: met.append(type(evaluated(model, ids))))
            other.start()
            other.join()
            met.append(type(evaluated(model, ids)))

    model.model.register_forward_hook(look)
    model.generate(ids, max_new_tokens=1, do_sample=False)
    assert met[1:] == [Late, torch.Tensor]
    assert copy.deepcopy(model)(ids).logits.shape == (2, 5, VOCABULARY)

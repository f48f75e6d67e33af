"""Hugging Face models without their logits: losses, gradients and tokens stay the same."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import xent
from tests.helpers import Largest
from xent.heads import chunks as heads
from xent.heads.late import Late
from xent.integrations.transformers import lean, unlean

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated")

F32 = torch.float32
F32_EPS = torch.finfo(F32).eps
VOCABULARY = 97
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PLAIN = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
LLAMA = {**PLAIN, "num_key_value_heads": 2, "head_dim": 8}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
BERT = {**PLAIN, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DROPOUTS = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "dropout": 0.0,
    "max_position_embeddings": 64,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
MOE["experts_implementation"] = "eager"  # the other one has no float64

# A comment says what is special about the head of a model, if anything.
MODELS = {
    "LlamaForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": {**LLAMA, "tie_word_embeddings": True},
    "MistralForCausalLM": LLAMA,
    "MixtralForCausalLM": {**LLAMA, **MOE},  # adds the loss of its router
    "OlmoForCausalLM": LLAMA,
    "GemmaForCausalLM": LLAMA,  # tied
    "Gemma2ForCausalLM": {**LLAMA, "final_logit_softcapping": 2.0},  # softcap
    "CohereForCausalLM": {**LLAMA, "logit_scale": 0.25},  # scale
    "GraniteForCausalLM": {**LLAMA, "logits_scaling": 3.0},  # scale
    "PhiForCausalLM": {**PLAIN, "num_key_value_heads": 4, "resid_pdrop": 0.0},  # bias
    "FalconForCausalLM": PLAIN,
    "GPTNeoXForCausalLM": PLAIN,
    "GPT2LMHeadModel": {**GPT, **DROPOUTS},  # tied
    "GPTJForCausalLM": {**GPT, **DROPOUTS, "rotary_dim": 4},  # bias
    "CodeGenForCausalLM": {**GPT, **DROPOUTS, "rotary_dim": 4},  # bias
    "BloomForCausalLM": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "OPTForCausalLM": {**PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    "BertForMaskedLM": BERT,  # a transform before the head, and a bias
    "RobertaForMaskedLM": BERT,
    "T5ForConditionalGeneration": T5 | {"decoder_start_token_id": 0},
    "BartForConditionalGeneration": BART,  # a buffer that is added to the logits
    "ProphetNetForConditionalGeneration": {
        "hidden_size": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_encoder_layers": 2,
        "num_decoder_layers": 2, "num_encoder_attention_heads": 4, "dropout": 0.0,
        "num_decoder_attention_heads": 4, "attention_dropout": 0.0, "activation_dropout": 0.0,
    },
}  # fmt: skip
IN_FLOAT32 = ("ProphetNetForConditionalGeneration",)  # asks for log-probabilities in float32
every_model = pytest.mark.parametrize("name", MODELS)


def make(name, dtype=F32, **more):
    torch.manual_seed(1)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**COMMON | MODELS[name] | more)).to(dtype).train()
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    return model


def batch(rows=2, length=12):
    ids = torch.randint(3, VOCABULARY, (rows, length))
    labels = ids.clone()
    labels[0, :5] = -100
    return {"input_ids": ids, "labels": labels}


def loss_and_gradients(model, inputs, call=None):
    model.zero_grad()
    loss = (model if call is None else call)(**inputs).loss
    loss.backward()
    return loss.detach(), {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def assert_same(ours, theirs, eps, ulps=32):
    """Assert that losses agree to a few ulps, gradients to some ulps of their largest entry."""
    (loss, gradients), (true_loss, true_gradients) = ours, theirs
    torch.testing.assert_close(loss, true_loss, rtol=4 * eps, atol=0)
    assert gradients.keys() == true_gradients.keys()
    largest = max(g.abs().max() for g in true_gradients.values())
    for key, g in true_gradients.items():
        # Some gradients are zero but for rounding: the keys' bias, say.
        scale = max(g.abs().max().item(), 1e-3 * largest.item())
        torch.testing.assert_close(gradients[key], g, rtol=0, atol=ulps * eps * scale, msg=key)


# ---- every architecture ----------------------------------------------------------------------


@every_model
def test_loss_and_gradients(name):
    model, inputs = make(name), batch()
    theirs = loss_and_gradients(model, inputs)
    with lean(model):
        assert isinstance(model(**inputs).logits, xent.LinearLogits)
        ours = loss_and_gradients(model, inputs)
    assert_same(ours, theirs, F32_EPS)
    again = loss_and_gradients(model, inputs)  # undone, bit for bit
    assert torch.equal(again[0], theirs[0])
    assert all(torch.equal(again[1][k], g) for k, g in theirs[1].items())


@pytest.mark.parametrize("name", [name for name in MODELS if name not in IN_FLOAT32])
def test_in_float64(name, monkeypatch):
    # The models round their logits to float32 before the loss; the truth does not.
    for kind in (torch.Tensor, xent.LinearLogits):
        monkeypatch.setattr(kind, "float", lambda x: x.to(torch.promote_types(x.dtype, F32)))
    model, inputs = make(name, torch.float64), batch()
    theirs = loss_and_gradients(model, inputs)
    with lean(model):
        ours = loss_and_gradients(model, inputs)
    assert_same(ours, theirs, torch.finfo(torch.float64).eps)


@every_model
def test_evaluation_and_generation(name):
    model, inputs = make(name), batch()
    model.eval()
    ids, prompt = inputs["input_ids"], {"input_ids": inputs["input_ids"][:, :4]}
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    able = name not in ("BertForMaskedLM", "RobertaForMaskedLM")
    with torch.no_grad():
        truth = model(**inputs)
    tokens = model.generate(**prompt, **options) if able else None
    with lean(model):
        with torch.no_grad():
            out = model(**inputs)
        torch.testing.assert_close(out.loss, truth.loss, rtol=5e-7, atol=0)
        assert isinstance(out.logits, torch.Tensor)  # as Trainer demands
        torch.testing.assert_close(out.logits.detach(), truth.logits, rtol=1e-5, atol=1e-6)
        assert out.logits.shape == truth.logits.shape
        assert isinstance(model(**inputs).logits, xent.LinearLogits)
        if not model.config.is_encoder_decoder:
            assert isinstance(model(ids).logits, xent.LinearLogits)
        if able:
            assert torch.equal(model.generate(**prompt, **options), tokens)
            model.train()
            assert torch.equal(model.generate(**prompt, **options), tokens)


def test_what_needs_the_logits_gets_them():
    model, inputs = make("LlamaForCausalLM"), batch()
    model.lm_head.register_forward_hook(lambda *given: given[-1].sinh())
    theirs = loss_and_gradients(model, inputs)
    with lean(model), pytest.warns(UserWarning, match="sinh needs all"):
        ours = loss_and_gradients(model, inputs)
    assert_same(ours, theirs, F32_EPS)


# ---- ways to train -----------------------------------------------------------------------------


def test_no_tensor_of_the_size_of_the_logits(monkeypatch):
    monkeypatch.setattr(heads, "MAX_ROWS", 8)
    model, inputs = make("LlamaForCausalLM", vocab_size=997), batch(8, 60)
    largest_parameter = max(p.numel() for p in model.parameters())
    for context in (torch.enable_grad, torch.no_grad):
        model.train(context is torch.enable_grad)
        for is_lean in (False, True):
            with context(), Largest() as made, lean(model) if is_lean else made:
                loss = model(**inputs).loss
                if loss.requires_grad:
                    loss.backward()
            assert (made.numel >= 8 * 60 * 997) is not is_lean
        assert made.numel == max(largest_parameter, 8 * 997)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    """The error is that of logits in 16 bits."""
    model, inputs = make("PhiForCausalLM"), batch()
    with torch.autocast("cpu", dtype):
        theirs = loss_and_gradients(model, inputs)
        with lean(model):
            logits = model(**inputs).logits
            ours = loss_and_gradients(model, inputs)
    assert logits.dtype == dtype
    assert ours[0].dtype == F32
    eps = torch.finfo(dtype).eps
    assert_same(ours, theirs, eps, ulps=4)
    assert ours[1]["lm_head.weight"].dtype == F32


def test_autocast_adds_a_bias_of_another_dtype():
    model, inputs = make("BartForConditionalGeneration"), batch()
    with torch.autocast("cpu", torch.bfloat16):
        theirs = loss_and_gradients(model, inputs)
        with lean(model):
            ours = loss_and_gradients(model, inputs)
    assert_same(ours, theirs, torch.finfo(torch.bfloat16).eps, ulps=4)


def test_a_16_bit_model():
    model, inputs = make("LlamaForCausalLM", torch.bfloat16), batch()
    theirs = loss_and_gradients(model, inputs)
    with lean(model):
        ours = loss_and_gradients(model, inputs)
    assert_same(ours, theirs, torch.finfo(torch.bfloat16).eps, ulps=4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    model, inputs = make("LlamaForCausalLM"), batch()
    theirs = loss_and_gradients(model, inputs)
    options = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    model.gradient_checkpointing_enable(**options)
    with lean(model):
        ours = loss_and_gradients(model, inputs)
    assert_same(ours, theirs, F32_EPS)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["model", "body"])
def test_compiled(part):
    model, inputs = make("Gemma2ForCausalLM", attn_implementation="eager"), batch()
    theirs = loss_and_gradients(model, inputs)
    with lean(model):
        if part == "body":
            model.model.compile(backend="aot_eager")
        call = torch.compile(model, backend="aot_eager") if part == "model" else model
        ours = loss_and_gradients(model, inputs, call)
        model.eval()
        expected = torch.Tensor if part == "model" else xent.LinearLogits
        assert type(call(inputs["input_ids"]).logits) is expected
    assert_same(ours, theirs, F32_EPS)


def test_some_of_the_logits():
    model, inputs = make("LlamaForCausalLM"), batch()
    ids, keep = inputs["input_ids"], torch.tensor([2, 5, 7])
    truth = model(ids, logits_to_keep=keep).logits
    with lean(model):
        logits = model(ids, logits_to_keep=keep).logits
        assert logits.shape == (2, 3, VOCABULARY)
        ours = F.cross_entropy(logits.view(-1, VOCABULARY), ids[:, keep + 1].view(-1))
    theirs = F.cross_entropy(truth.view(-1, VOCABULARY), ids[:, keep + 1].view(-1))
    torch.testing.assert_close(ours, theirs, rtol=5e-7, atol=0)


def test_counted_tokens():
    model, inputs = make("LlamaForCausalLM"), batch()
    inputs["num_items_in_batch"] = torch.tensor(31)
    theirs = loss_and_gradients(model, inputs)
    with lean(model):
        ours = loss_and_gradients(model, inputs)
    assert_same(ours, theirs, F32_EPS)


# ---- PEFT --------------------------------------------------------------------------------------


def adapted(**options):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(make("LlamaForCausalLM", vocab_size=997), config).train()
    for key, p in model.named_parameters():
        if "lora_B" in key:  # zeros would hide what they add
            nn.init.normal_(p, std=0.1)
    return model


each_adapter = pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
    ids=["frozen head", "copied head", "adapted head"],
)


@each_adapter
def test_peft(options, monkeypatch):
    monkeypatch.setattr(heads, "MAX_ROWS", 8)
    model, inputs = adapted(**options), batch(8, 60)
    theirs = loss_and_gradients(model, inputs)
    prompt = {"input_ids": inputs["input_ids"][:2, :4], "max_new_tokens": 3, "do_sample": False}
    tokens = model.generate(**prompt)
    with lean(model) as same:
        assert same is model
        with Largest() as made:
            ours = loss_and_gradients(model, inputs)
        assert made.numel < 8 * 60 * 997 / 8
        assert torch.equal(model.generate(**prompt), tokens)
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).loss, ours[0], rtol=5e-7, atol=0)
        assert torch.equal(model.generate(**prompt), tokens)
    assert_same(ours, theirs, F32_EPS)


@each_adapter
def test_a_switched_off_adapter_leaves_the_head_that_was_there(options):
    """As for the reference policy of a training on preferences."""
    model, inputs = adapted(**options), batch()
    with torch.no_grad():  # as a training moves it away from the original
        for key, p in model.named_parameters():
            if "modules_to_save" in key:
                p.add_(0.1)
    base = make("LlamaForCausalLM", vocab_size=997)
    theirs = loss_and_gradients(base, inputs)[0]
    with lean(model), model.disable_adapter():
        out = model(**inputs)
        assert isinstance(out.logits, xent.LinearLogits)
        torch.testing.assert_close(out.loss.detach(), theirs, rtol=4 * F32_EPS, atol=0)
    assert loss_and_gradients(model, inputs)[0] != theirs


def test_a_frozen_head_costs_no_gradient(monkeypatch):
    made = []
    add = heads.Head.add
    monkeypatch.setattr(heads.Head, "add", lambda g, *a: (made.append(g), add(g, *a)))
    model = adapted(target_modules=["q_proj"])
    with lean(model):
        loss_and_gradients(model, batch())
    assert made
    assert all(g.gradients[0] is not None and g.gradients[1] is None for g in made)
    assert model.get_output_embeddings().weight.grad is None


def test_an_adapter_that_comes_later():
    peft = pytest.importorskip("peft")
    model, inputs = make("LlamaForCausalLM"), batch()
    lean(model)
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj"])
    model = peft.get_peft_model(model, config).train()
    assert isinstance(model(**inputs).logits, xent.LinearLogits)
    unlean(model)
    assert type(model(**inputs).logits) is torch.Tensor


# ---- Trainer -----------------------------------------------------------------------------------


def trainer(model, folder, **options):
    pytest.importorskip("accelerate")
    compute_metrics = options.pop("compute_metrics", None)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), report_to="none", use_cpu=True, max_steps=3, seed=0,
        per_device_train_batch_size=2, per_device_eval_batch_size=3, optim="sgd",
        learning_rate=0.1, disable_tqdm=True, save_strategy="no", logging_strategy="no",
        dataloader_pin_memory=False, **options,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCABULARY, (12, 10), generator=generator)
    rows = [{"input_ids": x, "labels": x.clone()} for x in ids]
    for k, row in enumerate(rows):
        row["labels"][: k % 5] = -100
    return transformers.Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows, compute_metrics=compute_metrics
    )


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "BertForMaskedLM"])
@pytest.mark.parametrize(
    "options",
    [{"gradient_accumulation_steps": 2}, {"label_smoothing_factor": 0.1}, {"bf16": True}],
    ids=["accumulation", "smoothing", "bf16"],
)
def test_trainer(name, options, tmp_path):
    plain, ours, start = make(name), make(name), make(name).parameters()
    trainer(plain, tmp_path, **options).train()
    lean(ours)
    trainer(ours, tmp_path, **options).train()
    steps = [(p - q).abs().max().item() for p, q in zip(plain.parameters(), start, strict=True)]
    error = 4 * torch.finfo(torch.bfloat16).eps if "bf16" in options else 32 * F32_EPS
    for (key, p), q in zip(plain.named_parameters(), ours.parameters(), strict=True):
        atol = error * max(steps)
        torch.testing.assert_close(q, p, rtol=4 * F32_EPS, atol=atol, msg=key)


def test_trainer_evaluates(tmp_path):
    def metrics(prediction):
        kept = prediction.label_ids != -100
        right = prediction.predictions.argmax(-1) == prediction.label_ids
        return {"accuracy": (right & kept).sum() / kept.sum()}

    model = make("LlamaForCausalLM")
    truth = trainer(model, tmp_path, compute_metrics=metrics).evaluate()
    with lean(model):
        ours = trainer(model, tmp_path, compute_metrics=metrics).evaluate()
        loss_only = trainer(model, tmp_path).evaluate()
    assert ours["eval_accuracy"] == truth["eval_accuracy"]
    assert ours["eval_loss"] == pytest.approx(truth["eval_loss"], rel=5e-7)
    assert loss_only["eval_loss"] == ours["eval_loss"]


@pytest.mark.parametrize(
    "options", [{"label_smoothing_factor": 0.1}, {}], ids=["smoothed", "plain"]
)
def test_trainer_evaluates_without_the_logits(options, tmp_path, monkeypatch):
    monkeypatch.setattr(heads, "MAX_ROWS", 4)

    def accuracy(prediction):
        return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}

    found = []
    for is_lean in (False, True):
        model = make("LlamaForCausalLM", vocab_size=997, hidden_size=16, head_dim=4)
        if is_lean:
            lean(model)
        evaluated = trainer(model, tmp_path, compute_metrics=accuracy, **options)
        evaluated.preprocess_logits_for_metrics = lambda logits, labels: logits.argmax(-1)
        with Largest() as made:
            found.append(evaluated.evaluate())
        assert (made.numel < 3 * 10 * 997) == is_lean
    plain, ours = found
    assert ours["eval_accuracy"] == plain["eval_accuracy"]
    assert ours["eval_loss"] == pytest.approx(plain["eval_loss"], rel=1e-6)


def test_late_logits_pass_for_a_tensor():
    model = make("LlamaForCausalLM").eval()
    ids = torch.randint(97, (2, 5))
    with torch.no_grad():
        truth = model(ids, labels=ids).logits
        with lean(model):
            late = model(ids, labels=ids).logits
    for found in (
        late + 0,
        torch.tensor(late.tolist()),
        torch.from_numpy(late.cpu().numpy().copy()),
    ):
        torch.testing.assert_close(found, truth)
    torch.testing.assert_close(copy.deepcopy(late), truth)
    assert torch.equal(late.argmax(-1), truth.argmax(-1))
    assert (late.shape, late.dtype, late.device) == (truth.shape, truth.dtype, truth.device)


# ---- on and off --------------------------------------------------------------------------------


def test_on_and_off():
    model, inputs = make("LlamaForCausalLM"), batch()

    def is_lean():
        return isinstance(model(**inputs).logits, xent.LinearLogits)

    untouched = set(vars(model))
    assert lean(model).model is model
    assert is_lean()
    with lean(model):  # the inner `with` did not switch lean on, and so does not switch it off
        assert is_lean()
    assert is_lean()
    with pytest.raises(ValueError, match="lean already, with another `max_workspace`"):
        lean(model, max_workspace=1)
    with pytest.raises(ValueError, match="lean already, with another `products`"):
        lean(model, products="float32")
    with pytest.raises(ValueError, match="`products` must be one of"):
        lean(model, products="bfloat16")
    unlean(model)
    unlean(model)
    assert not is_lean()
    assert set(vars(model)) == untouched
    hooked = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooked
    with lean(model, max_workspace=12345, products="input"):
        logits = model(**inputs).logits
        assert (logits.max_workspace, logits.products) == (12345, "input")


def test_labels_by_position_and_after_an_exception():
    model, inputs = make("LlamaForCausalLM").eval(), batch()
    ids, labels = inputs["input_ids"], inputs["labels"]
    lean(model)
    assert isinstance(model(ids, None, None, None, None, labels).logits, xent.LinearLogits)
    with pytest.raises(IndexError):
        model(ids + VOCABULARY, labels=labels)
    assert type(model.lm_head(torch.ones(1, 32))) is torch.Tensor


def test_only_in_training():
    model, inputs = make("LlamaForCausalLM"), batch()
    ids = inputs["input_ids"]
    with lean(model, when="training"):
        assert isinstance(model(ids).logits, xent.LinearLogits)
        with torch.no_grad():
            assert type(model(ids).logits) is torch.Tensor
            assert isinstance(model(**inputs).logits, Late)
        model.eval()
        assert type(model(ids).logits) is torch.Tensor
        assert isinstance(model(**inputs).logits, xent.LinearLogits)


def test_tuples():
    model, inputs = make("LlamaForCausalLM").eval(), batch()
    truth = model(**inputs, return_dict=False)
    with lean(model), torch.no_grad():
        loss, logits = model(**inputs, return_dict=False)[:2]
    torch.testing.assert_close(loss, truth[0].detach(), rtol=5e-7, atol=0)
    torch.testing.assert_close(logits + 0, truth[1].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_lean_of_their_own(copied):
    model, inputs = make("LlamaForCausalLM"), batch()
    lean(model)
    other = copied(model)
    assert isinstance(other(**inputs).logits, xent.LinearLogits)
    unlean(model)
    other.eval()
    assert isinstance(other(**inputs).logits, xent.LinearLogits)
    unlean(other)
    assert type(other(**inputs).logits) is torch.Tensor


def test_nothing_is_saved(tmp_path):
    model = make("LlamaForCausalLM")
    keys = list(model.state_dict())
    with lean(model):
        assert list(model.state_dict()) == keys
        model.save_pretrained(tmp_path)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert type(again.train()(**batch()).logits) is torch.Tensor
    assert list(again.state_dict()) == keys
    assert "xent" not in (tmp_path / "config.json").read_text()


def test_a_new_head_is_followed():
    model, inputs = make("LlamaForCausalLM"), batch()
    lean(model)
    model.resize_token_embeddings(101, mean_resizing=False)
    assert isinstance(model(**inputs).logits, xent.LinearLogits)
    unlean(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---- what is refused ---------------------------------------------------------------------------


class Linear8bit(nn.Linear):
    """A linear layer that computes its product itself, as those of bitsandbytes do."""

    def forward(self, input):
        return torch.einsum("...d,vd->...v", input, self.weight)


def test_a_quantised_head():
    model = make("LlamaForCausalLM")
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"LlamaForCausalLM .* torch\.int8.*llm_int8_skip_modules"):
        lean(model)


def test_a_head_that_computes_its_product_itself_is_told_once():
    model, inputs = make("LlamaForCausalLM"), batch()
    truth = loss_and_gradients(model, inputs)
    model.lm_head = (own := Linear8bit(32, VOCABULARY, bias=False))
    own.weight = nn.Parameter(make("LlamaForCausalLM").lm_head.weight.detach())
    lean(model)
    with pytest.warns(UserWarning, match="all its logits: its head, Linear8bit, computes"):
        model(**inputs)
    assert_same(loss_and_gradients(model, inputs), truth, F32_EPS)  # warnings would be errors


def test_a_head_that_is_not_linear():
    model = make("LlamaForCausalLM")
    model.lm_head = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, VOCABULARY))
    with pytest.raises(TypeError, match=r"got Sequential(?s:.*)xent\.LinearLogits"):
        lean(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_is_told():
    model = make("LlamaForCausalLM")
    with pytest.warns(UserWarning, match=r"compile its body instead: model\.model\.compile"):
        lean(torch.compile(model))
    assert "_xent_hooks" in vars(model)


@pytest.mark.parametrize("kind", ["LlamaModel", "LlamaForSequenceClassification"])
def test_no_head_over_a_vocabulary(kind):
    model = getattr(transformers, kind)(transformers.LlamaConfig(**COMMON, **LLAMA))
    with pytest.raises(TypeError, match=f"{kind} has no output head"):
        lean(model)


def test_not_a_model_of_transformers():
    with pytest.raises(TypeError, match=r"Transformers, or of PEFT around one; got Linear"):
        lean(nn.Linear(3, 4))

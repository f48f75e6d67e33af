"""Nested tensors and DTensors: losses equal those of plain tensors, or the call is refused."""

import warnings

import pytest
import torch
from torch import Tensor

import xent
from tests.registry.calls import Call, close, gradient_of

# ---- nested tensors ------------------------------------------------------------------------------


def jagged(values: Tensor, lengths: list[int]) -> Tensor:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.nested.nested_tensor_from_jagged(values, offsets=offsets)


@pytest.fixture
def sequences():
    """Return logits of sequences of different lengths, classes last, and labels likewise."""
    z, y, lengths = torch.randn(8, 5), torch.randint(5, (8,)), [3, 1, 4]
    y[2] = -100
    nested = jagged(z, lengths)
    return nested, torch.nested.nested_tensor_from_jagged(y, offsets=nested.offsets()), z, y


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["cross_entropy", "focal_loss", "sparsemax_loss", "recall_loss"])
def test_nested_tensors_of_rows(sequences, name, reduction):
    nested, labels, z, y = sequences
    loss = getattr(xent.losses, name)
    weight = torch.rand(5)
    nested.requires_grad_()
    value = loss(nested.transpose(1, 2), labels, weight, reduction=reduction)
    expected, grad = z.requires_grad_(), None
    expected = loss(z, y, weight, reduction=reduction)
    if reduction == "none":
        assert value.shape == labels.shape
        value = value.values()
    close(value, expected)
    (grad,) = torch.autograd.grad(expected.sum(), z)
    value.sum().backward()
    close(nested.grad.values(), grad)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_axis_of_the_classes_of_nested_tensors(sequences):
    nested, labels, z, y = sequences
    q = torch.softmax(torch.randn(8, 5), 1)
    soft = torch.nested.nested_tensor_from_jagged(q, offsets=nested.offsets())
    for class_dim in (-1, 2):
        value = xent.losses.focal_loss(nested, labels, class_dim=class_dim)
        close(value, xent.losses.focal_loss(z, y))
        close(
            xent.losses.sparsemax_loss(nested, soft, class_dim=-1), xent.losses.sparsemax_loss(z, q)
        )
    # The axis of different lengths is never that of the classes.
    turned = nested.transpose(1, 2), soft.transpose(1, 2)
    close(xent.losses.sparsemax_loss(*turned), xent.losses.sparsemax_loss(z, q))
    with pytest.raises(ValueError, match="axis of the sequences"):
        xent.cross_entropy(nested, labels, class_dim=0)
    pixels = torch.nested.nested_tensor_from_jagged(
        torch.randn(8, 3, 5, requires_grad=True), offsets=nested.offsets()
    )
    of_pixels = torch.nested.nested_tensor_from_jagged(
        torch.randint(5, (8, 3)), offsets=nested.offsets()
    )
    value = xent.cross_entropy(pixels, of_pixels, class_dim=-1, reduction="none")
    plain = xent.cross_entropy(
        pixels.values().flatten(0, 1), of_pixels.values().flatten(), reduction="none"
    )
    close(value.values().flatten(), plain)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nested_tensors_of_elements(sequences, reduction):
    nested, _, z, _ = sequences
    t, w = torch.rand(8, 5), torch.rand(5)
    target = torch.nested.nested_tensor_from_jagged(t, offsets=nested.offsets())
    value = xent.binary_cross_entropy_with_logits(nested, target, pos_weight=w, reduction=reduction)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        z, t, pos_weight=w, reduction=reduction
    )
    if reduction == "none":
        assert value.shape == nested.shape
        value = value.values()
    close(value, expected)
    turned = xent.binary_cross_entropy_with_logits(
        nested.transpose(1, 2), target.transpose(1, 2), reduction="none"
    )
    plain = torch.nn.functional.binary_cross_entropy_with_logits(z, t, reduction="none")
    close(turned.transpose(1, 2).values(), plain)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_that_make_no_sense_are_refused(sequences):
    nested, labels, z, y = sequences
    with pytest.raises(ValueError, match=r"different lengths.*class_dim=-1"):
        xent.cross_entropy(nested, labels)
    with pytest.raises(TypeError, match="`target` must be one, too"):
        xent.cross_entropy(nested.transpose(1, 2), y)
    with pytest.raises(TypeError, match="`logit_scale` must be one, too"):
        xent.cross_entropy(nested.transpose(1, 2), labels, logit_scale=torch.ones(3, 4))
    with pytest.raises(ValueError, match="sequences of the same lengths"):
        xent.cross_entropy(nested.transpose(1, 2), jagged(y, [4, 1, 3]))
    with pytest.raises(TypeError, match=r"layout=torch\.jagged"):
        xent.cross_entropy(torch.nested.nested_tensor([z, z]), labels)
    for call in (xent.token_log_probs, xent.statistics):
        with pytest.raises(TypeError, match=r"`input` is a nested tensor.*values\(\)"):
            call(nested, labels)


# ---- DTensors ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh():
    """Return a mesh of two dimensions with one rank each, so that no other process is needed."""
    import torch.distributed as dist
    from torch.distributed.tensor import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield init_device_mesh("cpu", (1, 1))
    dist.destroy_process_group()


def test_dtensors(mesh):
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    z, y, b = torch.randn(6, 4, 3), torch.randint(4, (6, 3)), torch.rand(6, 4, 3)
    for rows in (Replicate(), Shard(0), Shard(2)):
        of_labels = Shard(1) if rows == Shard(2) else rows
        x = distribute_tensor(z, mesh, [rows, Replicate()]).requires_grad_()
        target = distribute_tensor(y, mesh, [of_labels, Replicate()])
        for reduction in ("mean", "sum", "none"):
            value = xent.cross_entropy(x, target, reduction=reduction)
            close(value.full_tensor(), xent.cross_entropy(z, y, reduction=reduction))
        (grad,) = torch.autograd.grad(xent.losses.focal_loss(x, target), x)
        close(grad.full_tensor(), gradient_of(Call("", xent.losses.focal_loss, tuple), (z, y))[1])
        soft = distribute_tensor(b, mesh, [rows, Replicate()])
        value = xent.binary_cross_entropy_with_logits(x, soft)
        close(value.full_tensor(), xent.binary_cross_entropy_with_logits(z, b))
    by_class = distribute_tensor(z, mesh, [Shard(1), Replicate()])
    close(xent.cross_entropy(by_class, target).full_tensor(), xent.cross_entropy(z, y))
    with pytest.raises(ValueError, match="classes are split over ranks, on 1"):
        xent.losses.sparsemax_loss(by_class, target)
    twice = distribute_tensor(z, mesh, [Shard(1), Shard(1)])
    with pytest.raises(ValueError, match="classes are split over ranks, on 2"):
        xent.cross_entropy(twice, target)
    with pytest.raises(TypeError, match="`target` must be one, too"):
        xent.cross_entropy(x, y)
    with pytest.raises(ValueError, match="looks at all rows"):
        xent.losses.recall_loss(x, target)
    with pytest.raises(TypeError, match="is a DTensor"):
        xent.token_log_probs(x.movedim(1, -1), target)
    local = torch.distributed.tensor.DTensor.from_local(z, mesh, [Partial(), Replicate()])
    with pytest.raises(ValueError, match="still to be added"):
        xent.cross_entropy(local, target)


def test_the_axis_of_the_classes_of_dtensors(mesh):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    z, y, b = torch.randn(6, 4, 3), torch.randint(4, (6, 3)), torch.rand(6, 4, 3)
    for rows in (Replicate(), Shard(0), Shard(1)):  # of (B, T, V)
        x = distribute_tensor(z.mT.contiguous(), mesh, [rows, Replicate()]).requires_grad_()
        target = distribute_tensor(y, mesh, [rows, Replicate()])
        for reduction in ("mean", "none"):
            options = {"reduction": reduction}
            value = xent.losses.focal_loss(x, target, class_dim=-1, **options)
            close(value.full_tensor(), xent.losses.focal_loss(z, y, **options))
        soft = distribute_tensor(b.mT.contiguous(), mesh, [rows, Replicate()])
        with pytest.raises(ValueError, match="class_dim=-1"):
            xent.losses.bootstrap_loss(x, soft)
        value = xent.losses.bootstrap_loss(x, soft, class_dim=-1)
        close(value.full_tensor(), xent.losses.bootstrap_loss(z, b, class_dim=1))


def on_two_ranks(rank: int, address: str) -> None:
    import torch.distributed as dist
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
    from torch.distributed.tensor.debug import CommDebugMode

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    z, y, w = torch.randn(5, 7, 3), torch.randint(7, (5, 3)), torch.rand(7)  # 3 rows and 2 rows
    y[1] = -100
    for place in (0, 2):
        rows = Shard(min(place, 1))
        for loss in (xent.cross_entropy, xent.losses.focal_loss, xent.losses.sparsemax_loss):
            for reduction in ("mean", "sum", "none"):
                x = distribute_tensor(z, mesh, [Shard(place)]).requires_grad_()
                target = distribute_tensor(y, mesh, [rows])
                weight = distribute_tensor(w, mesh, [Replicate()])
                with CommDebugMode() as spoken:
                    value = loss(x, target, weight, reduction=reduction)
                counts = {op.__name__: n for op, n in spoken.get_comm_counts().items()}
                assert sum(counts.values()) == (reduction == "mean"), counts
                assert not any("gather" in op for op in counts), counts
                (grad,) = torch.autograd.grad(value.sum(), x)
                one = z.clone().requires_grad_()
                expected = loss(one, y, w, reduction=reduction)
                close(value.full_tensor(), expected)
                close(grad.full_tensor(), torch.autograd.grad(expected.sum(), one)[0])
    dist.destroy_process_group()


@pytest.mark.slow
def test_dtensors_over_two_ranks(tmp_path):
    torch.multiprocessing.spawn(on_two_ranks, (f"file://{tmp_path}/store",), nprocs=2)

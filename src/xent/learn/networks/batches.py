"""Batches of rows on a device, from tensors, datasets and loaders alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

__all__ = ["Batches"]

Data = tuple[Tensor, ...] | Dataset | DataLoader


class Batches:
    """Batches ``(x, y, ...)`` of the data, for any number of loops.

    Args:
        name: what the data are called in messages.
        data: tensors with as many rows, a dataset, or a loader, which has a batch size and an order
            of its own.
        batch_size: rows per batch.
        device: where the batches go.
        order: shuffles the rows anew each time; None leaves them in order.

    Raises:
        ValueError: if there is no row, or if the tensors differ in length.
        TypeError: for anything else.

    Example:
        >>> import torch
        >>> from xent.learn.networks.batches import Batches
        >>> for x, y in Batches("data", (torch.arange(3.0), torch.arange(3)), batch_size=2):
        ...     print(x, y)
        tensor([0., 1.]) tensor([0, 1])
        tensor([2.]) tensor([2])
    """

    def __init__(
        self,
        name: str,
        data: Data,
        batch_size: int,
        device: torch.device | str = "cpu",
        order: torch.Generator | None = None,
    ) -> None:
        if isinstance(data, TensorDataset):
            data = data.tensors
        if isinstance(data, (tuple, list)):
            _check_tensors(name, data)
        elif isinstance(data, IterableDataset):
            data = DataLoader(data, batch_size)  # keeps the order of the data set
        elif isinstance(data, Dataset):
            if not len(data):  # pyright: ignore[reportArgumentType]
                raise ValueError(f"`{name}` holds no row")
            data = DataLoader(data, batch_size, shuffle=order is not None, generator=order)
        elif not isinstance(data, DataLoader):
            raise TypeError(
                f"`{name}` must be a pair of tensors (x, y), a torch Dataset or a DataLoader, got "
                f"{type(data).__name__}"
            )
        self.name, self.data, self.batch_size = name, data, batch_size
        self.device, self.order = device, order

    def __iter__(self) -> Iterator[list[Tensor]]:
        batches = self.data if isinstance(self.data, DataLoader) else self._of_tensors(self.data)
        for batch in batches:
            if not isinstance(batch, (tuple, list)) or len(batch) < 2:
                raise TypeError(
                    f"`{self.name}` must give batches (x, y), got {type(batch).__name__}; an "
                    f"autoencoder learns from (x, x)"
                )
            if not all(isinstance(part, Tensor) for part in batch):
                kinds = ", ".join(type(part).__name__ for part in batch)
                raise TypeError(f"`{self.name}` must give batches of tensors, got ({kinds})")
            yield [part.to(self.device, non_blocking=True) for part in batch]

    def _of_tensors(self, tensors: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
        # A DataLoader takes rows one by one. For small networks that is most of the time.
        rows = len(tensors[0])
        if self.order is None:
            yield from zip(*(tensor.split(self.batch_size) for tensor in tensors), strict=True)
            return
        for some in torch.randperm(rows, generator=self.order, device="cpu").split(self.batch_size):
            yield [tensor[some.to(tensor.device)] for tensor in tensors]


def _check_tensors(name: str, data: Sequence[Tensor]) -> None:
    kinds = ", ".join(type(part).__name__ for part in data)
    if len(data) < 2 or not all(isinstance(part, Tensor) for part in data):
        raise TypeError(f"`{name}` must be tensors (x, y), got ({kinds}); see torch.as_tensor")
    shapes = ", ".join(str(tuple(part.shape)) for part in data)
    if any(part.ndim == 0 for part in data) or len({len(part) for part in data}) > 1:
        raise ValueError(f"`{name}` must have as many rows in each tensor, got shapes {shapes}")
    if len(data[0]) == 0:
        raise ValueError(f"`{name}` holds no row: shapes {shapes}")

"""Several processes training one network: each has some rows of a batch; together they do what one process would."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
)  # gloo's messages; NCCL has an exception type
_apart = False


def count() -> int:
    """How many processes train together."""
    together = dist.is_available() and dist.is_initialized() and not _apart
    return dist.get_world_size() if together else 1


def is_loss_of_process(error: BaseException) -> bool:
    """Whether an exception says that another process of the run has ended."""
    return isinstance(error, dist.DistError) or (count() > 1 and any(sign in str(error) for sign in LOST))


@contextmanager
def apart() -> Iterator[None]:
    """While the body runs, this process counts as the only one: for what it does while the others wait."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def mean_over(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes; no gradient.

    If a process's loss is the sum over its rows divided by the mean count over the processes, then the mean over the
    processes, which DistributedDataParallel takes of gradients, is the loss of the whole batch.
    """
    processes = count()
    if processes == 1:
        return values
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed / processes


def least(number: int, device: torch.device) -> int:
    """The least number that one of the processes has, in all of them. Args: `device` of this process."""
    found = torch.tensor(number, device=device)
    if count() > 1:
        dist.all_reduce(found, dist.ReduceOp.MIN)
    return int(found)


class _Sum(torch.autograd.Function):
    """The sum over processes; its gradient is the sum of the gradients over processes."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: object) -> None:
        pass

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed


def sum_over(values: Tensor) -> Tensor:
    """The sum of a tensor over the processes, with its gradient."""
    summed: Tensor = _Sum.apply(values) if count() > 1 else values
    return summed


@dataclass(frozen=True)
class Share:
    """A generator that draws for a whole batch, from which each process takes its rows.

    Attributes:
        generator: the same in all processes.
        rows: this process's rows of the batch.
        total: rows of the whole batch.
    """

    generator: torch.Generator
    rows: slice
    total: int


Source = torch.Generator | Share


def rand(source: Source, batch: int, *shape: int) -> Tensor:
    """Numbers from 0 to 1, float32 [batch, *shape] on the source's device; no row depends on the processes."""
    if isinstance(source, torch.Generator):
        return torch.rand(batch, *shape, generator=source, device=source.device)
    whole = torch.rand(source.total, *shape, generator=source.generator, device=source.generator.device)
    return whole[source.rows]

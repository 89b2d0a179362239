"""Two processes with half a batch each do what one does with the whole batch."""

import multiprocessing
import socket
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from qmimic import processes
from qmimic.data.targets import PADDING, Targets
from qmimic.detectors.batch_norm import BatchNorm2d
from tiny_detectors import one_stage, some_images


def _joined(rank: int, port: int, work: Callable[[int], None]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    work(rank)
    dist.destroy_process_group()


def two_processes(work: Callable[[int], None]) -> None:
    """Run `work(rank)` in two processes that know each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_joined, args=(rank, port, work)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0


def a_batch() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, 6, 4, generator=generator) * torch.tensor([1.0, 30.0, 0.1]).view(3, 1, 1) + 7


def norm_of(x: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Output, and gradient to the input of a loss that differs from place to place."""
    x = x.clone().requires_grad_()
    out = norm(x)
    (out * torch.linspace(-1, 1, out[0].numel()).view(out[0].shape)).square().sum().backward()
    assert x.grad is not None
    return out.detach(), x.grad


def _batch_norm(rank: int) -> None:
    rows = slice(rank, None, 2)  # three images and two
    whole, part = nn.BatchNorm2d(3), BatchNorm2d(3)
    with torch.no_grad():
        for norm in (whole, part):
            norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.0, 3.0]))
    wanted, found = norm_of(a_batch(), whole), norm_of(a_batch()[rows], part)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other[rows], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(part.running_mean, whole.running_mean)
    torch.testing.assert_close(part.running_var, whole.running_var, rtol=1e-4, atol=1e-6)
    for parameter, other in zip(part.parameters(), whole.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(processes.mean_over(parameter.grad) * 2, other.grad, rtol=1e-4, atol=1e-3)


def test_batch_norm_has_the_statistics_of_the_whole_batch() -> None:
    two_processes(_batch_norm)


def _one_stage(rank: int) -> None:
    """Its losses weigh classes by their frequency in the whole batch, and objects by their number there."""
    detector, images = one_stage(1, softmax_weight=0.5).train(), some_images(0)
    boxes = torch.tensor([[[8.0, 8, 24, 30], [50, 40, 92, 90]], [[60, 10, 90, 26], [0, 0, 0, 0]]])
    labels = torch.tensor([[2, 2], [1, PADDING]])
    with torch.no_grad(), processes.apart():
        whole = detector.losses(detector.features(images), Targets(boxes, labels), torch.Generator()).losses
    rows = slice(rank, rank + 1)
    with torch.no_grad():
        part = detector.losses(
            detector.features(images[rows]), Targets(boxes[rows], labels[rows]), torch.Generator()
        ).losses
    assert set(part) == {"cls", "box", "softmax"}
    for name, own in part.items():
        torch.testing.assert_close(processes.mean_over(own), whole[name], rtol=1e-4, atol=1e-5)


def test_one_stage_s_losses_are_those_of_the_whole_batch() -> None:
    two_processes(_one_stage)


def _counts(rank: int) -> None:
    assert processes.least(7 - rank, torch.device("cpu")) == 6
    assert processes.count() == 2
    assert float(processes.mean_over(torch.tensor(2.0 + 4 * rank))) == 4
    with processes.apart():
        assert processes.count() == 1
        assert float(processes.mean_over(torch.tensor(float(rank)))) == rank
    assert processes.count() == 2


def test_processes_count_together_and_apart() -> None:
    assert processes.count() == 1
    assert float(processes.mean_over(torch.tensor(3.0))) == 3
    two_processes(_counts)
    with pytest.raises(ZeroDivisionError), processes.apart():
        _ = 1 / 0
    assert processes.count() == 1


@pytest.mark.parametrize("batch", [4, 5])
def test_a_row_s_chance_does_not_depend_on_the_processes(batch: int) -> None:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    whole = processes.rand(generator(), batch, 7)
    for rank in (0, 1):
        rows = slice(rank, None, 2)
        size = len(whole[rows])
        assert torch.equal(processes.rand(processes.Share(generator(), rows, batch), size, 7), whole[rows])

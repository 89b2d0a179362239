"""The grid of anchors over a map."""

import torch
from torch import Tensor


def anchor_grid(sizes: tuple[tuple[float, float], ...], size: tuple[int, int], stride: int) -> Tensor:
    """All anchors of an image.

    Args:
        sizes: widths and heights in pixels.
        size: height and width of the image in pixels.
        stride: output stride of the map.

    Returns:
        float32 [A * H/stride * W/stride, 4], xyxy in pixels; ordered by anchor, row, column, like the RPN's output.
        Each centre is the middle of a cell.
    """
    height, width = size[0] // stride, size[1] // stride
    if torch.get_default_device().type == "meta":  # values do not matter, and sums would load torch's compiler: seconds
        return torch.empty(len(sizes) * height * width, 4)
    rows = (torch.arange(height) + 0.5) * stride
    columns = (torch.arange(width) + 0.5) * stride
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    centres = torch.stack([x, y, x, y], -1)
    half = torch.tensor(sizes) / 2
    return (centres[None] + torch.cat([-half, half], -1)[:, None, None]).reshape(-1, 4)

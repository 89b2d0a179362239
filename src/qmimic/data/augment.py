"""Random views of a whole batch: one affine map (flip, scale, crop) and one colour map for each image."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qmimic.boxes import area, clip
from qmimic.config import AugmentConfig
from qmimic.data.letterbox import FILL
from qmimic.data.targets import IGNORED, PADDING, Targets
from qmimic.processes import Source, rand

MIN_VISIBLE = 0.3  # a box of which less is left is ignored
LUMA = (0.299, 0.587, 0.114)
STILL = AugmentConfig(flip=0, flip_vertical=0, scale=(1, 1), shift=0, colour=0)


@dataclass(frozen=True)
class Views:
    """Random views of a batch.

    Attributes:
        images: [B, 3, H, W] in 0..255, uint8 if no view needs more, else float32, padded where a view leaves the image.
        targets: moved along; boxes that have mostly left the view are ignored.
        kinds: int64 [B], which of the `exact_views` each is; None if they are not so few.
    """

    images: Tensor
    targets: Targets
    kinds: Tensor | None


def exact_views(config: AugmentConfig) -> int | None:
    """How many views an image has, if flips alone make them; None if scale, shift or colour make each a new one."""
    if config.scale != (1, 1) or config.shift or config.colour or config.mosaic:
        return None
    return 1 << sum(ways_to_flip(config))


def ways_to_flip(config: AugmentConfig) -> tuple[bool, bool, bool]:
    """Whether pictures are flipped left to right, flipped upside down, transposed."""
    return bool(config.flip), bool(config.flip_vertical), bool(config.transpose)


def closing(config: AugmentConfig) -> AugmentConfig:
    """The views of a schedule's closing steps: exact ones alone."""
    return config.model_copy(update={"mosaic": 0.0, "scale": (1.0, 1.0), "shift": 0.0, "colour": 0.0})


def augment(images: Tensor, targets: Targets, config: AugmentConfig, source: Source) -> Views:
    """A random view of every image.

    Args:
        images: uint8 [B, 3, H, W].
        targets: boxes in pixels of these images.
        config: how far views may go.
        source: of all chance.
    """
    if config == STILL:
        return Views(images, targets, torch.zeros(len(images), dtype=torch.int64, device=images.device))
    # In bf16, where a network may be computed, places would be off by a pixel and colours by several levels.
    with torch.autocast(images.device.type, enabled=False):
        return _augment(images, targets, config, source)


def _augment(images: Tensor, targets: Targets, config: AugmentConfig, source: Source) -> Views:
    """The same, of views that are not all still. Args as `augment`."""
    batch, _, height, width = images.shape
    drawn = rand(source, batch, 8)
    low, high = config.scale
    scale = low * (high / low) ** drawn[:, 0]
    mirror_x = 1 - 2 * (drawn[:, 1] < config.flip).float()
    mirror_y = 1 - 2 * (drawn[:, 2] < config.flip_vertical).float()
    shift = (2 * drawn[:, 3:5] - 1) * 2 * config.shift  # in the -1..1 coordinates of the view
    kinds = None
    if exact_views(config):
        across, down = (mirror_x < 0).long(), (mirror_y < 0).long()
        kinds = across + down * (2 if config.flip else 1)
    if config.mosaic:
        images, targets = _mosaic(images, targets, rand(source, batch) < config.mosaic)
    if config.transpose:
        turned = rand(source, batch) < config.transpose
        images, targets = _transposed(images, targets, turned)
        kinds = None if kinds is None else 2 * kinds + turned
    if low == high == 1 and config.shift == 0:
        # Flips alone stay in uint8: a quarter of the memory traffic.
        pixels = torch.where((mirror_x < 0).view(-1, 1, 1, 1), images.flip(3), images) if config.flip else images
        pixels = (
            torch.where((mirror_y < 0).view(-1, 1, 1, 1), pixels.flip(2), pixels) if config.flip_vertical else pixels
        )
        pixels = _recolour(pixels, drawn[:, 5:8], config.colour)
    else:
        # Output position p shows input position (p - shift) / (scale * mirror).
        inverse = torch.stack([mirror_x / scale, mirror_y / scale], 1)
        theta = torch.cat([torch.diag_embed(inverse), (-shift * inverse)[..., None]], 2)
        grid = F.affine_grid(theta, [batch, 3, height, width], align_corners=False)
        fill = drawn.new_tensor(FILL).view(1, 3, 1, 1)
        moved = F.grid_sample(images - fill, grid, padding_mode="zeros", align_corners=False).add_(fill)
        pixels = _recolour(moved, drawn[:, 5:8], config.colour)

    half = drawn.new_tensor([width, height]) / 2
    gain = torch.stack([scale * mirror_x, scale * mirror_y], 1)[:, None]
    corners = (targets.boxes.unflatten(2, (2, 2)) - half) * gain[:, None] + (half * (1 + shift))[:, None, None]
    boxes = torch.cat([corners.amin(2), corners.amax(2)], -1)
    seen = clip(boxes, (height, width))
    hidden = (area(seen) < MIN_VISIBLE * area(boxes)) & (targets.labels >= 0)
    return Views(pixels, Targets(seen, targets.labels.masked_fill(hidden, IGNORED)), kinds)


def _transposed(images: Tensor, targets: Targets, chosen: Tensor) -> tuple[Tensor, Targets]:
    """Rows as columns and columns as rows, in the images of the batch that are chosen, bool [B]."""
    pixels = torch.where(chosen.view(-1, 1, 1, 1), images.transpose(2, 3), images)
    boxes = torch.where(chosen.view(-1, 1, 1), targets.boxes[..., [1, 0, 3, 2]], targets.boxes)
    return pixels, Targets(boxes, targets.labels)


def _mosaic(images: Tensor, targets: Targets, chosen: Tensor) -> tuple[Tensor, Targets]:
    """Four images in one, halved: each of those chosen (bool [B]) with the three that follow it in the batch.

    The others keep their boxes in the first places, so that all have four times as many.
    """
    batch, _, height, width = images.shape
    small = F.avg_pool2d(images.float(), 2).round_().to(images.dtype)
    four = [small.roll(-n, 0) for n in range(4)]
    joined = torch.cat([torch.cat(four[:2], 3), torch.cat(four[2:], 3)], 2)
    corners = targets.boxes.new_tensor([[0, 0], [width, 0], [0, height], [width, height]]).repeat(1, 2)
    boxes = torch.cat([(targets.boxes.roll(-n, 0) + corners[n]) / 2 for n in range(4)], 1)
    labels = torch.cat([targets.labels.roll(-n, 0) for n in range(4)], 1)
    own = torch.cat([targets.labels, labels.new_full((batch, 3 * targets.labels.shape[1]), PADDING)], 1)
    return (
        torch.where(chosen.view(-1, 1, 1, 1), joined, images),
        Targets(
            torch.where(chosen.view(-1, 1, 1), boxes, F.pad(targets.boxes, (0, 0, 0, 3 * targets.boxes.shape[1]))),
            torch.where(chosen.view(-1, 1), labels, own),
        ),
    )


def _recolour(pixels: Tensor, drawn: Tensor, strength: float) -> Tensor:
    """Brightness, contrast and saturation as one 3x3 matrix and one offset an image, from chances [B, 3]."""
    if strength == 0:
        return pixels
    pixels = pixels.float()
    brightness, contrast, saturation = (1 + strength * (2 * drawn - 1)).unbind(1)
    grey = drawn.new_tensor(LUMA).expand(3, 3)
    mix = saturation.view(-1, 1, 1) * torch.eye(3, device=drawn.device) + (1 - saturation).view(-1, 1, 1) * grey
    mix = mix * (brightness * contrast).view(-1, 1, 1)
    # Contrast stretches about the image's own mean.
    mean = pixels.mean((1, 2, 3)) * brightness
    offset = (mean * (1 - contrast)).view(-1, 1, 1)
    return torch.baddbmm(offset, mix, pixels.flatten(2)).clamp_(0, 255).view_as(pixels)

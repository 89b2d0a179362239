"""A teacher that is an ONNX file, whoever trained it and with whatever: its outputs are named in the recipe.

Nothing of it is trained or shipped, and so nothing of its licence comes near the student's file.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qmimic.config import TeacherConfig
from qmimic.contracts import Features, Proposals
from qmimic.distill.distiller import Heads, TeacherView
from qmimic.errors import InputError
from qmimic.runtime.formats import Input
from qmimic.runtime.onnx_engine import open_file
from qmimic.tables import near


class OnnxTeacher:
    """An ONNX detector by ONNX Runtime: its maps are the levels, its boxes the regions.

    It takes one picture tensor, [B, 3, H, W] or [B, H, W, 3], B free or 1, float32 or uint8. Its maps are [B, C, h, w];
    its boxes [B, N, 4] or [N, 4], xyxy in pixels of its input; its scores [B, N], [B, N, K] or [N].

    Args:
        config: the recipe's `teacher`: file, outputs and how pixels are made into its input.
        size: height and width of the pictures that it will see, pixels.

    Raises:
        InputError: the file cannot be read, lacks an output that is named, or takes other pictures.
    """

    def __init__(self, config: TeacherConfig, size: tuple[int, int]) -> None:
        if not config.file or not config.maps:
            raise InputError("teacher.kind=onnx needs teacher.file, and the output with its map in teacher.maps.")
        self.config, self.size = config, size
        self.path = Path(config.file)
        self.engine = open_file(self.path, torch.get_num_threads(), spin=False)
        if len(self.engine.inputs) != 1:
            listed = ", ".join(self.engine.inputs)
            raise InputError(
                f"{self.path} takes {len(self.engine.inputs)} inputs ({listed}); a teacher takes one picture."
            )
        ((self.name, self.input),) = self.engine.inputs.items()
        if self.input.dtype is None or self.input.dtype.kind not in "uf":
            raise InputError(f"{self.path} takes {self.input.dtype}; a teacher takes uint8 or float pictures.")
        self.channels_last = self._layout(self.input)
        seen = self._run(np.zeros((1, 3, *size), np.float32))
        for output in (*config.maps, *filter(None, (config.boxes, config.scores))):
            if output not in seen:
                meant = near(output, seen)
                hint = f"did you mean {meant}? " if meant else ""
                raise InputError(f"{self.path} has no output {output!r}; {hint}It has: {', '.join(seen)}.")
        self._channels, self._strides = zip(*(self._level(name, seen[name]) for name in config.maps), strict=True)
        if list(self._strides) != sorted(set(self._strides)):
            raise InputError(f"teacher.maps must be in growing order of stride; these have {self._strides}.")

    place_strides: tuple[int, ...] = ()
    heads = Heads()

    @property
    def has_regions(self) -> bool:
        """See `Teacher`: where its boxes are named."""
        return bool(self.config.boxes)

    @property
    def channels(self) -> tuple[int, ...]:
        """See `Teacher`."""
        return self._channels

    @property
    def strides(self) -> tuple[int, ...]:
        """See `Teacher`."""
        return self._strides

    def look(self, images: Tensor, regions: bool) -> TeacherView:
        """See `Teacher.look`.

        Raises:
            InputError: regions are wanted, and no output with boxes was named.
        """
        if regions and not self.config.boxes:
            raise InputError(
                "mimic.regions=teacher needs the teacher's boxes: name its output in teacher.boxes, or set "
                "mimic.regions=ground_truth or student."
            )
        pixels = images.detach().float().cpu().numpy()
        one_by_one = self.input.shape[0] == 1
        parts = [self._run(part) for part in (np.split(pixels, len(pixels)) if one_by_one else [pixels])]
        maps = [
            torch.from_numpy(np.concatenate([part[name] for part in parts]).astype(np.float32)).to(images.device)
            for name in self.config.maps
        ]
        found = self._regions(parts, len(images)) if regions else None
        if found is not None:
            found = Proposals(found.boxes.to(images.device), found.valid.to(images.device))
        return TeacherView(Features.of(maps, self._strides), found)

    def _run(self, pixels: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
        config = self.config
        pixels = pixels[:, ::-1] if config.bgr else pixels
        if self.input.dtype == np.uint8:
            fed = np.ascontiguousarray(pixels.round().clip(0, 255).astype(np.uint8))
        else:
            mean, std = (np.array(one, np.float32).reshape(1, 3, 1, 1) for one in (config.mean, config.std))
            fed = np.ascontiguousarray((pixels - mean) / std).astype(self.input.dtype)
        if self.channels_last:
            fed = np.ascontiguousarray(fed.transpose(0, 2, 3, 1))
        try:
            return dict(self.engine.run({self.name: fed}))
        except Exception as error:  # ONNX Runtime's exceptions have no common type but this
            raise InputError(f"{self.path} cannot be run on pictures of {self.size}: {str(error)[:200]}") from error

    def _layout(self, taken: Input) -> bool:
        """Whether pictures are [B, H, W, 3]."""
        shape = taken.shape
        last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
        if len(shape) != 4 or (not last and shape[1] not in (3, None)):
            raise InputError(f"{self.path} takes {shape}, which is not [B, 3, H, W] or [B, H, W, 3].")
        height, width = shape[1:3] if last else shape[2:]
        if (height or self.size[0], width or self.size[1]) != self.size:
            raise InputError(
                f"{self.path} takes pictures of {height} x {width} pixels; set data.size=[{height},{width}] "
                f"(it is {list(self.size)})."
            )
        return last

    def _level(self, name: str, seen: NDArray[np.generic]) -> tuple[int, int]:
        """Channels and stride of a map."""
        height, width = self.size
        stride = height // seen.shape[2] if seen.ndim == 4 and seen.shape[2] else 0
        if not stride or (stride * seen.shape[2], stride * seen.shape[3]) != (height, width):
            raise InputError(
                f"The output {name!r} of {self.path} has shape {list(seen.shape)}; a map is [B, C, H/stride, W/stride] "
                f"of pictures of {height} x {width} pixels."
            )
        return int(seen.shape[1]), stride

    def _regions(self, parts: list[dict[str, NDArray[np.generic]]], batch: int) -> Proposals:
        """Regions of a batch that was looked at in parts."""

        def joined(name: str, last: int) -> Tensor:
            rows = [part[name].astype(np.float32) for part in parts]
            every = torch.from_numpy(np.concatenate([one.reshape(-1, count, last) for one in rows]))
            if len(every) != batch:
                raise InputError(f"The output {name!r} of {self.path} is of {len(every)} pictures, not of {batch}.")
            return every

        assert self.config.boxes is not None
        count = parts[0][self.config.boxes].shape[-2]
        boxes = joined(self.config.boxes, 4)
        height, width = self.size
        boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        valid = boxes.isfinite().all(2) & (boxes[..., 2:] > boxes[..., :2]).all(2)
        if self.config.scores:
            scores = joined(self.config.scores, parts[0][self.config.scores].size // count // (batch // len(parts)))
            order = scores.amax(2).masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
            boxes, valid = boxes.gather(1, order[..., None].expand(-1, -1, 4)), valid.gather(1, order)
        return Proposals(torch.where(valid[..., None], boxes, 0.0), valid)

"""A teacher that is an ONNX file, whoever trained it and with whatever: its outputs are named in the recipe.

Nothing of it is trained or shipped, and so nothing of its licence comes near the student's file.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qmimic.config import TeacherConfig
from qmimic.config.teacher_file import names_of
from qmimic.contracts import Features, Proposals
from qmimic.detections import Detections
from qmimic.distill.distiller import Heads, TeacherView
from qmimic.distill.file_boxes import detections
from qmimic.distill.file_boxes import regions as file_regions
from qmimic.distill.file_outputs import Found, found_in
from qmimic.distill.file_scores import class_places
from qmimic.distill.inner_maps import advice_on_map, branching_maps, lies_in_a_branch, open_giving, stride_of
from qmimic.errors import InputError
from qmimic.runtime.formats import Input
from qmimic.tables import near
from qmimic.zoo import DEPLOYED, located

MULTIPLE = 32  # pixels; what most detectors want of an input's sides
MOST_AT_ONCE = 1 << 26  # pixels that a file may demand: some 160 pictures of 640 x 640
MOST_LOOKED_AT = 1 << 21  # pixels of a call where the file takes any number: five pictures of 640 x 640
MOST_SAID = 200  # characters of an engine's message, whose end says what is wrong
MOST_NUMBERS = 1 << 24  # a picture, of an input beside it: more than the largest picture has

Outputs = dict[str, NDArray[np.generic]]


class OnnxTeacher:
    """An ONNX detector by ONNX Runtime: its maps are the levels, its boxes the regions, and labels of pictures.

    It takes pictures [B, 3, H, W] or [B, H, W, 3], B free, a number or not there, float32 or uint8, and beside them
    what the recipe says (`teacher.inputs`). Its maps are [B, C, h, w]; how its boxes lie is declared in the recipe, see
    `file_outputs`.

    Args:
        config: the recipe's `teacher`: file, outputs and how pixels are made into its input.
        size: height and width of the pictures that it will see, pixels, where the recipe gives it no size of its own.

    Attributes:
        size: height and width of its pictures, pixels.

    Raises:
        InputError: the file cannot be read, lacks an output that is named, or takes other pictures.
    """

    def __init__(self, config: TeacherConfig, size: tuple[int, int]) -> None:
        if not config.file or not (config.maps or config.outputs):
            raise InputError(
                "teacher.kind=onnx needs teacher.file, and the output with its map in teacher.maps, or those with its "
                "boxes."
            )
        self.config, self.size = config, config.size or size
        self.path = located(config.file, DEPLOYED)
        if self.path.is_dir():
            raise InputError(f"teacher.file names the folder {self.path}; name the .onnx file in it.")
        try:
            self.engine = open_giving(self.path, config.maps, torch.get_num_threads())
        except InputError as error:
            raise InputError(f"teacher.file: {error}") from error
        self.name, self.input = self._picture()
        whole = self.input.dtype == np.uint8
        if self.input.dtype is None or not (whole or self.input.dtype.kind == "f"):
            kind = self.input.dtype or "numbers of a type that is not read, such as bfloat16"
            raise InputError(f"{self.path} takes {kind}; a teacher takes uint8 or float pictures.")
        if whole and (config.mean, config.std) != ((0, 0, 0), (255, 255, 255)):
            raise InputError(f"{self.path} takes uint8 pixels as they are; leave out teacher.mean and teacher.std.")
        self.single = len(self.input.shape) == 3  # as torchvision's detectors
        self.channels_last = self._layout((1, *self.input.shape) if self.single else self.input.shape)
        at_once = self.input.shape[0] if len(self.input.shape) == 4 else None
        if at_once and at_once * math.prod(self.size) > MOST_AT_ONCE:
            raise InputError(f"{self.path} takes {at_once:,} pictures at once; export it for 1, or for any number.")
        self._at_once = 1 if self.single else at_once  # pictures of a call; None: any number
        # Two pictures, where it takes them, show what belongs to a picture; of many greys, because there are files that
        # divide by a picture's contrast.
        greys = np.linspace(0, 255, math.prod(self.size), dtype=np.float32).reshape(self.size)
        self._probe = np.tile(greys, (self._at_once or 2, 3, 1, 1))
        try:
            seen = self._run(self._probe)
        except InputError:
            if self._at_once:
                raise
            # Exporters often say that any number goes, and have one in a shape within.
            self._at_once, self._probe = 1, self._probe[:1]
            seen = self._run(self._probe)
        for name in (*config.maps, *config.outputs):
            if name not in seen:
                raise InputError(self._lacks(name, seen))
        for name in config.outputs:
            self._require_numbers(name, seen[name])
        levels = [self._level(name, seen[name]) for name in config.maps]
        self._channels, self._strides = tuple(one[0] for one in levels), tuple(one[1] for one in levels)
        if list(self._strides) != sorted(set(self._strides)):
            have = ", ".join(f"{name} has {stride}" for name, stride in zip(config.maps, self._strides, strict=True))
            raise InputError(f"teacher.maps must be in growing order of stride, one map of each: {have}.")
        self._columns = self._columns_of(seen) if config.outputs else None
        if config.activation == "softmax" and self._columns and not (config.classes or config.has_objectness):
            raise InputError(
                f"The teacher's boxes have {self._columns} scores that go through a softmax, where one is usually for "
                "no object: write in teacher.classes the data's name of each, null for no object."
            )

    def _columns_of(self, seen: Outputs) -> int | None:
        """For how many classes the probe's boxes have scores, see `Found.columns`. Raises: as `_found`."""
        try:
            return self._found([(len(self._probe), seen)]).columns
        except InputError as error:
            if self._at_once:
                raise
            # Some put the boxes of all pictures into one list, or find them in the first picture alone.
            try:
                columns = self._found([(1, self._run(self._probe[:1]))]).columns
            except InputError:
                raise error from None
            self._at_once = 1
            return columns

    place_strides: tuple[int, ...] = ()
    heads = Heads()

    @property
    def has_regions(self) -> bool:
        """See `Teacher`: where its boxes are named."""
        return bool(self.config.outputs)

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
        if regions and not self.config.outputs:
            raise InputError(
                "mimic.regions=teacher needs the teacher's boxes: name its output in teacher.boxes or teacher.rows, or "
                "set mimic.regions=ground_truth or student."
            )
        parts = self._seen(images)
        maps = [
            torch.from_numpy(np.concatenate([part[name] for _, part in parts])[: len(images)].astype(np.float32)).to(
                images.device
            )
            for name in self.config.maps
        ]
        found = file_regions(self._found(parts).first(len(images)), self.config, self.size) if regions else None
        if found is not None:
            found = Proposals(found.boxes.to(images.device), found.valid.to(images.device))
        return TeacherView(Features.of(maps, self._strides), found)

    def exact(self) -> "OnnxTeacher":
        """See `Teacher.exact`."""
        return self

    def labeller(self, classes: Sequence[str]) -> Callable[[Tensor], list[Detections]]:
        """See `Labeller`.

        Raises:
            InputError: the recipe does not say what its boxes are, or it has classes that these are not.
        """
        config = self.config
        if not (config.rows or config.scores):
            raise InputError(
                f"{self.path} labels pictures by boxes with scores: name the outputs in teacher.boxes and scores, or "
                "in teacher.rows."
            )
        places = class_places(config, self._columns, classes)

        def find(images: Tensor) -> list[Detections]:
            return detections(self._found(self._seen(images)).first(len(images)), config, places, self.size)

        return find

    def _seen(self, images: Tensor) -> list[tuple[int, Outputs]]:
        """A batch in parts, each its number of pictures and the outputs on them.

        Where the file takes a number of pictures, the last part is filled up; where it takes any, parts are small
        enough for large networks.
        """
        pixels = images.detach().float().cpu().numpy()
        count = self._at_once or max(1, MOST_LOOKED_AT // math.prod(self.size))
        if self._at_once:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], -len(pixels) % count, 0)])
        parts = [pixels[first : first + count] for first in range(0, len(pixels), count)]
        return [(len(part), self._run(part)) for part in parts]

    def _run(self, pixels: NDArray[np.float32]) -> Outputs:
        config = self.config
        pixels = pixels[:, ::-1] if config.bgr else pixels
        if self.input.dtype == np.uint8:
            fed = np.ascontiguousarray(pixels.round().clip(0, 255).astype(np.uint8))
        else:
            mean, std = (np.array(one, np.float32).reshape(1, 3, 1, 1) for one in (config.mean, config.std))
            fed = np.ascontiguousarray((pixels - mean) / std).astype(self.input.dtype)
        if self.channels_last:
            fed = np.ascontiguousarray(fed.transpose(0, 2, 3, 1))
        fed = fed[0] if self.single else fed
        others = {name: self._other(name, value, len(pixels)) for name, value in config.inputs.items()}
        try:
            return dict(self.engine.run({self.name: fed, **others}))
        except Exception as error:  # ONNX Runtime's exceptions have no common type but this
            reason = " ".join(str(error).split())
            sides = [MULTIPLE * max(1, round(side / MULTIPLE)) for side in self.size]
            advice = f"; try sides that are multiples of {MULTIPLE}, as {sides}" if sides != list(self.size) else ""
            raise InputError(
                f"{self.path} cannot be run on pictures of {list(self.size)}{advice} ({_end_of(reason)})."
            ) from error

    def _picture(self) -> tuple[str, Input]:
        """The input that takes the picture: the one that the recipe says nothing of."""
        inputs = self.engine.inputs
        if strange := [name for name in self.config.inputs if name not in inputs]:
            raise InputError(f"{self.path} has no input {strange[0]!r}; it has: {', '.join(inputs)}.")
        pictures = [(name, one) for name, one in inputs.items() if name not in self.config.inputs]
        if len(pictures) != 1:
            if not inputs:
                raise InputError(f"{self.path} takes no input; name a detector's file.")
            if not pictures:
                raise InputError(
                    f"teacher.inputs names every input of {self.path} ({', '.join(inputs)}); leave out the picture's."
                )
            raise InputError(
                f"{self.path} takes {len(inputs)} inputs ({', '.join(inputs)}); say in teacher.inputs what all but the "
                "picture take, such as {orig_target_sizes: [640, 640]}."
            )
        return pictures[0]

    def _other(self, name: str, value: object, batch: int) -> NDArray[np.generic]:
        """What another input takes for `batch` pictures: the numbers for each of them, or one number everywhere.

        Where an input leaves its shape open, its first side is the batch. Others are as long as what is given; of one
        number everywhere they are the pictures' height and width.
        """
        kind = self.engine.inputs[name]
        shape = self._shape_of(value, kind.shape, batch)
        if math.prod(shape) > batch * MOST_NUMBERS:
            raise InputError(
                f"{name} of {self.path} takes {list(shape)} numbers, more than {MOST_NUMBERS:,} a picture; take "
                "another file."
            )
        try:
            raw = np.array(value)
            given = raw.astype(kind.dtype)
            if given.dtype.kind != "f" and not np.array_equal(given, raw):
                raise ValueError("a fraction where whole numbers are taken")
            return np.ascontiguousarray(np.broadcast_to(given, shape))
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(
                f"teacher.inputs gives {name} of {self.path} {str(value)[:60]}; it takes {kind.dtype} of shape "
                f"{[side or 'any' for side in kind.shape]}."
            ) from error

    def _shape_of(self, value: object, sides: tuple[int | None, ...], batch: int) -> tuple[int, ...]:
        """The shape of another input, whose open sides follow from what is given for it."""
        try:
            given = np.array(value).shape
        except ValueError:  # lists of different lengths, which are refused as numbers
            given = ()
        own = [None] * (len(sides) - len(given)) + list(given)
        size = iter(self.size)
        return tuple(side or (batch if not axis else own[axis] or next(size, 1)) for axis, side in enumerate(sides))

    def _layout(self, shape: tuple[int | None, ...]) -> bool:
        """Whether pictures are [B, H, W, 3]."""
        shape = shape or (None,) * 4  # the file says nothing of it
        said = self.config.layout
        if not said and len(shape) == 4 and shape[1] != 3 and shape[3] is None:
            raise InputError(
                f"The shape of {self.path}'s input does not say how its pictures lie; set teacher.layout=nchw for "
                "[B, 3, H, W], or nhwc for [B, H, W, 3]."
            )
        last = said == "nhwc" if said else len(shape) == 4 and shape[3] == 3 and shape[1] != 3
        if len(shape) != 4 or shape[3 if last else 1] not in (3, None):
            sides = ", ".join("?" if side is None else str(side) for side in shape)
            grey = " Export it so that it takes three colours." if 1 in shape[1:] else ""
            wanted = "[B, H, W, 3]" if last else "[B, 3, H, W]" if said else "[B, 3, H, W] or [B, H, W, 3]"
            blame = f", as teacher.layout={said} says" if said else ""
            raise InputError(f"{self.path} takes [{sides}], which is not {wanted}{blame}.{grey}")
        height, width = shape[1:3] if last else shape[2:]
        if (height or self.size[0], width or self.size[1]) != self.size:
            if self.config.size:
                advice = f"set teacher.size=[{height},{width}] (it is {list(self.size)})"
            else:
                advice = (
                    f"set data.size=[{height},{width}] (data.size times teacher.scale is {list(self.size)}), or "
                    "without a map teacher.size"
                )
            raise InputError(f"{self.path} takes pictures of {height} x {width} pixels; {advice}.")
        return last

    def _lacks(self, name: str, seen: Mapping[str, NDArray[np.generic]]) -> str:
        """The message about a name that the file does not have: its outputs, and for a map those inside it."""
        computed: Mapping[str, NDArray[np.generic]] = {}
        if name in self.config.maps:
            self.engine = open_giving(self.path, None, torch.get_num_threads())
            computed = self._run(self._probe)
        if lies_in_a_branch(self.path, name):
            return (
                f"{name!r} lies in a branch or a loop of {self.path}, from where it cannot be given; name another map."
            )
        meant = near(name, {**seen, **computed})
        hint = f"did you mean {meant}? It" if meant else "it"
        said = f"{self.path} has no output {name!r}; {hint} has: {', '.join(seen)}."
        inside = branching_maps(self.path, computed, self.size, len(self._probe)) if computed else {}
        maps = [f"{own} (stride {stride}, {channels} channels)" for stride, (own, channels) in inside.items()]
        return said + (f" Maps inside it can be named too: {', '.join(maps)}." if maps else "")

    def _level(self, name: str, seen: NDArray[np.generic]) -> tuple[int, int]:
        """Channels and stride of a map."""
        height, width = self.size
        if not isinstance(seen, np.ndarray) or seen.dtype.kind != "f":
            kind = seen.dtype if isinstance(seen, np.ndarray) else "a sequence"
            raise InputError(f"The output {name!r} of {self.path} is {kind}; a map has numbers of a float type.")
        if seen.ndim == 4 and seen.shape[0] != len(self._probe):
            raise InputError(
                f"The output {name!r} of {self.path} has {seen.shape[0]} entries for {len(self._probe)} pictures; a "
                "map is [B, C, H/stride, W/stride] of B pictures."
            )
        stride = stride_of(seen, self.size)
        if stride is None:
            raise InputError(
                f"The output {name!r} of {self.path} has shape {list(seen.shape)}; a map is [B, C, H/stride, W/stride] "
                f"of pictures of {height} x {width} pixels{advice_on_map(seen, self.size)}."
            )
        return int(seen.shape[1]), stride

    def _require_numbers(self, name: str, seen: object) -> None:
        """Check that an output of boxes, scores or labels is a tensor of numbers."""
        if isinstance(seen, np.ndarray) and seen.dtype.kind in "fiub":
            return
        kind = "strings" if isinstance(seen, np.ndarray) else "a sequence"
        raise InputError(
            f"The output {name!r} of {self.path} is {kind}; boxes, scores and labels are numbers, so export it with "
            "these."
        )

    def _found(self, parts: list[tuple[int, Outputs]]) -> Found:
        """Boxes of a batch that was looked at in parts, see `_seen`."""
        names, transposed = self.config.outputs, self._transposed()
        tensors = [
            (count, {name: torch.from_numpy(part[name].astype(np.float32)) for name in names}) for count, part in parts
        ]
        try:
            return Found.joined([found_in(self.config, one, count, self.size, transposed) for count, one in tensors])
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error

    def _transposed(self) -> list[str]:
        """Outputs of boxes and scores apart that are [B, K, N] for any number N of boxes, as the file says.

        What is not said is seen by the numbers (`file_outputs`); where N is free, it may be K in some pictures.
        """
        config, shapes = self.config, self.engine.shapes
        apart = (*names_of(config.boxes), *names_of(config.scores)) if not config.grid_strides else ()
        said = {name: shapes[name] for name in apart if len(shapes.get(name, ())) == 3}
        return [name for name, (_, columns, boxes) in said.items() if columns is not None and boxes is None]


def _end_of(reason: str) -> str:
    """The last words of an engine's message, which say what is wrong."""
    return reason if len(reason) <= MOST_SAID else f".. {reason[-MOST_SAID:].partition(' ')[2]}"

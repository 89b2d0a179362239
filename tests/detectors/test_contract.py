"""The contracts hold for a detector unlike those that there are, and what a structure does not declare is refused."""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from anchor_free import AnchorFree, AnchorFreeSpec, Pyramid
from numpy.typing import NDArray
from torch import Tensor, nn

from qmimic.compress.cost import Cost, equal_share
from qmimic.compress.integer_grids import calibrate, map_grids, prepare_qat
from qmimic.config import DetectorConfig, QuantizerConfig
from qmimic.contracts import Backbone, ChannelGroup, Features, FusedPair, QuantizationPoint
from qmimic.detectors.architectures import Architecture, fitted_to, map_strides, parse_spec, with_anchors
from qmimic.detectors.batch_norm import BatchNorm2d
from qmimic.detectors.build import at_size, build, fold_batch_norm, mac_count
from qmimic.detectors.channels import channel_groups, keep_channels, widths
from qmimic.detectors.files import load_detector, save_detector
from qmimic.detectors.quantize import Quantizer
from qmimic.detectors.spec import DetectorSpec, TwoStageSpec
from qmimic.errors import InputError
from qmimic.run.candidates import Candidate
from qmimic.ship.onnx_file import Exported, build_graph
from qmimic.tables import ARCHITECTURES, BACKBONES
from tiny_detectors import as_targets, some_images, some_truth, tiny_spec

SETTINGS = {
    "architecture": "anchor_free",
    "backbone": "pyramid",
    "classes": ("cat", "dog", "ox"),
    "size": (96, 96),
    "max_detections": 20,
}


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line in one table."""
    monkeypatch.setitem(ARCHITECTURES, "anchor_free", Architecture(AnchorFreeSpec, AnchorFree))


def toy(seed: int = 0) -> AnchorFree:
    """The toy with statistics in its batch norms and outputs that differ from place to place."""
    detector = build(parse_spec(SETTINGS), seed)
    assert isinstance(detector, AnchorFree)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(seed))
            module.momentum = 1.0
    with torch.no_grad():
        detector.raw_features(some_images(seed + 1, 4))
        detector.head.conv.weight *= 3
        detector.head.out.weight *= 6
    return detector


def test_it_is_built_from_its_own_description_and_looked_up_in_the_table() -> None:
    detector = toy()
    assert "anchors" not in detector.spec.model_dump()
    assert [level.stride for level in detector.features(some_images(0)).levels] == [8, 16, 32]
    assert [level.channels for level in detector.features(some_images(0)).levels] == [8, 8, 8]
    assert [tuple(one.shape[2:]) for one in detector.features(some_images(0)).maps] == [(12, 12), (6, 6), (3, 3)]
    with pytest.raises(InputError, match="levels of strides 8, 16, 32"):
        _ = detector.features(some_images(0)).map
    with pytest.raises(InputError, match="did you mean anchor_free"):
        parse_spec({**SETTINGS, "architecture": "anchor_fre"})
    with pytest.raises(InputError, match="did you mean rfcn"):
        parse_spec({**SETTINGS, "architecture": "rfcm"})
    with pytest.raises(ValueError, match="anchors"):
        parse_spec({**SETTINGS, "anchors": [[3, 4]]})


def of_one_map(config: DetectorConfig, boxes: NDArray[np.float32], size: tuple[int, int]) -> DetectorConfig:
    """Chooses a stride where none is given."""
    return config if config.output_stride else config.model_copy(update={"output_stride": 8})


@pytest.mark.parametrize("by_places", [False, True])
def test_a_detector_of_one_stage_and_one_map_chooses_its_own_stride(
    by_places: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the number of stages nor what it says at its places tells which settings a detector reads."""

    class OfOneMap(DetectorSpec):
        output_stride: int = 16

    kind = Architecture(OfOneMap, AnchorFree, of_one_map, by_places=by_places)
    monkeypatch.setitem(ARCHITECTURES, "of_one_map", kind)
    config, boxes = DetectorConfig(architecture="of_one_map"), np.full((9, 2), 20, np.float32)
    assert fitted_to(config, None, boxes, (96, 96)).output_stride == 8
    assert map_strides(config, None, boxes, (96, 96)) == (8,)
    beside = DetectorConfig(architecture="one_stage")
    fitted = fitted_to(beside, "of_one_map", boxes, (96, 96))
    assert fitted.output_stride == 8
    assert fitted.levels is not None
    assert 8 in fitted.levels
    assert Candidate("resnet18/16", "of_one_map", (96, 96), (8,)).maps == {"detector.output_stride": 8}
    # One that inherits a setting that it does not read, and does not say so, is of one map all the same.
    monkeypatch.setitem(ARCHITECTURES, "z_rcnn", Architecture(TwoStageSpec, AnchorFree, with_anchors))
    own, known = (
        map_strides(DetectorConfig(architecture=name), "one_stage", boxes, (96, 96))
        for name in ("z_rcnn", "faster_rcnn")
    )
    assert own == known
    assert len(own) == 1
    assert Candidate("resnet18/16", "z_rcnn", (96, 96), (16,)).maps == {"detector.output_stride": 16}


def test_it_learns_and_detects_in_fixed_shapes() -> None:
    detector = toy().train()
    images, targets = some_images(5), as_targets(some_truth())
    optimizer = torch.optim.Adam(detector.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        output = detector.losses(detector.features(images), targets, torch.Generator())
        assert output.proposals is None
        loss = torch.stack(list(output.losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    found = detector.eval().detect(images)
    assert found.boxes.shape == (2, 20, 4)
    proposals = detector.propose(detector.features(images))
    assert torch.equal(proposals.boxes, found.boxes)
    assert proposals.boxes.shape[1] == detector.region_count


def test_it_goes_through_its_file_and_to_other_sizes(tmp_path: Path) -> None:
    detector = toy().eval()
    detector.quantizer = Quantizer(QuantizerConfig(), torch.tensor([0.1]))
    save_detector(detector, tmp_path / "toy.safetensors", {"map": 0.5})
    again, notes = load_detector(tmp_path / "toy.safetensors")
    assert notes == {"map": 0.5}
    assert again.spec == detector.spec
    ours, theirs = detector.detect(some_images(3)), again.detect(some_images(3))
    assert torch.equal(ours.scores, theirs.scores)
    assert at_size(detector, (64, 128)).detect(some_images(3, size=(64, 128))).boxes.shape == (2, 20, 4)


def test_its_levels_are_pruned_together() -> None:
    detector = toy().eval()
    groups = channel_groups(detector)
    (shared,) = (group for group in groups.values() if group.levels)
    assert shared.levels == (0, 1, 2)
    assert shared.consumers == ("backbone.steps.3.0", "backbone.steps.4.0", "head.conv")
    count = widths(detector, groups)
    assert Cost(detector).of({}) == mac_count(detector)
    left = equal_share(detector, 0.5 * mac_count(detector))
    cost = Cost(detector).of(left)
    silent = copy.deepcopy(detector)
    for name, group in groups.items():  # the channels that go, at zero
        for producer in group.producers:
            module = silent.get_submodule(producer)
            with torch.no_grad():
                for value in (module.weight, module.bias):
                    if isinstance(value, nn.Parameter):
                        value[left[name] :] = 0
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean[left[name] :] = 0
    keep_channels(detector, {name: torch.arange(left[name]) for name in count})
    assert mac_count(detector) == cost
    assert detector.channels == (left[shared.name],) * 3
    ours, theirs = detector.detect(some_images(2)), silent.detect(some_images(2))
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-5)


def test_it_lies_on_grids_one_for_each_level() -> None:
    detector = toy().eval()
    detector.quantizer = Quantizer(QuantizerConfig(upper=99), torch.tensor([0.05]))
    found = prepare_qat(detector)
    calibrate(found, [some_images(7, 4)])
    assert [grid.scale.item() for grid in map_grids(found)] == pytest.approx([0.05] * 3)
    for one in found.features(some_images(1)).maps:
        levels = one / 0.05
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
        assert levels.max() > 3


@pytest.mark.parametrize("suppression", [True, False])
def test_its_file_computes_what_it_computes(suppression: bool) -> None:
    detector = toy().eval()
    model = build_graph(Exported(detector, suppression=suppression))
    onnx.checker.check_model(model)
    images = some_images(4, 1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    boxes, scores, *_ = session.run(None, {name: images.permute(0, 2, 3, 1).contiguous().numpy()})
    if suppression:
        wanted = detector.detect(images)
        np.testing.assert_allclose(scores, wanted.scores.numpy(), atol=1e-3)
    else:
        wanted_boxes, wanted_scores = detector.score_boxes(detector.features(images))
        np.testing.assert_allclose(scores, wanted_scores.numpy(), atol=1e-3)
        np.testing.assert_allclose(boxes, wanted_boxes.numpy(), atol=2e-2)


class Forgetful(Backbone):
    """A backbone of two convolutions that declares what a test gives it."""

    pixel_layers = ("first",)
    pairs: tuple[FusedPair, ...] = (FusedPair("first", "norm"), FusedPair("second", "last"))
    groups: tuple[ChannelGroup, ...] = (
        ChannelGroup(("first", "norm"), ("second",)),
        ChannelGroup(("second", "last"), (), levels=(0,)),
    )
    points: tuple[QuantizationPoint, ...] = (QuantizationPoint("between"), QuantizationPoint("end", level=0))

    def __init__(self, width_divisor: float, output_stride: int) -> None:
        super().__init__()
        self.first, self.norm, self.between = nn.Conv2d(3, 4, 3, 4, 1), BatchNorm2d(4), nn.ReLU()
        self.second, self.last, self.end = nn.Conv2d(4, 6, 3, 4, 1), BatchNorm2d(6), nn.ReLU()
        self.channels, self.strides, self.width_divisor = (6,), (16,), width_divisor

    def forward(self, images: Tensor) -> Features:
        x = self.between(self.norm(self.first(images)))
        return Features.of([self.end(self.last(self.second(x)))], self.strides)

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        return self.groups

    def fused_pairs(self) -> tuple[FusedPair, ...]:
        return self.pairs

    def quantization_points(self) -> tuple[QuantizationPoint, ...]:
        return self.points


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> type[Forgetful]:
    """The backbone's class, to spoil."""

    class Own(Forgetful):
        pass

    monkeypatch.setitem(BACKBONES, "own", Own)
    return Own


def test_a_backbone_that_declares_all_is_folded_pruned_and_quantized(forgetful: type[Forgetful]) -> None:
    detector = build(tiny_spec(backbone="own")).eval()
    folded = fold_batch_norm(detector)
    torch.testing.assert_close(folded.features(some_images(1)).map, detector.features(some_images(1)).map)
    assert set(channel_groups(detector)) >= {"backbone.first", "backbone.second"}
    calibrate(prepare_qat(detector), [some_images(1)])


def test_a_batch_norm_without_a_fold_is_refused(forgetful: type[Forgetful]) -> None:
    forgetful.pairs = Forgetful.pairs[:1]
    with pytest.raises(InputError, match=r"backbone\.last"):
        fold_batch_norm(build(tiny_spec(backbone="own")))
    forgetful.pairs = (FusedPair("first", "between"),)
    with pytest.raises(InputError, match="are not a convolution and a batch norm"):
        fold_batch_norm(build(tiny_spec(backbone="own")))


def test_a_layer_without_a_channel_group_is_refused(forgetful: type[Forgetful]) -> None:
    forgetful.groups = (ChannelGroup(("second", "last"), (), levels=(0,)),)
    with pytest.raises(InputError, match=r"backbone\.(norm|second)"):
        channel_groups(build(tiny_spec(backbone="own")))


def test_a_map_without_a_grid_is_refused(forgetful: type[Forgetful]) -> None:
    forgetful.points = Forgetful.points[1:]
    found = prepare_qat(build(tiny_spec(backbone="own")).eval())
    with pytest.raises(InputError, match=r"backbone\.second"):
        calibrate(found, [some_images(1, 4)])
    forgetful.points = (QuantizationPoint("middle"),)
    with pytest.raises(InputError, match=r"no module backbone\.middle"):
        prepare_qat(build(tiny_spec(backbone="own")).eval())


@pytest.mark.parametrize(
    ("method", "use"),
    [("channel_groups", channel_groups), ("quantization_points", prepare_qat)],
    ids=["channel groups", "quantization points"],
)
def test_a_backbone_that_declares_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, method: str, use: object) -> None:
    monkeypatch.delattr(Pyramid, method)
    with pytest.raises(InputError, match=rf"Pyramid .* {method}\(\)"):
        use(toy())  # type: ignore[operator]

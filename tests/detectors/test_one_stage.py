"""The one-stage detector: what it learns and finds, what its graph is made of, and what cannot be."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision.ops import batched_nms

from qmimic.compress.cost import Cost, equal_share
from qmimic.compress.integer_grids import calibrate, map_grids, prepare_qat
from qmimic.config import DetectorConfig, QuantizerConfig
from qmimic.data.targets import IGNORED, PADDING, Targets
from qmimic.detectors.alignment import align
from qmimic.detectors.architectures import map_strides, parse_spec, spec_for
from qmimic.detectors.build import at_size, build, fold_batch_norm, mac_count, parameter_count
from qmimic.detectors.channels import channel_groups, keep_channels, widths
from qmimic.detectors.files import load_detector, save_detector
from qmimic.detectors.fitted import choose_levels, choose_output_stride
from qmimic.detectors.one_stage import OneStage, boxes_at, enlarged, place_grid, quotient
from qmimic.detectors.quantize import Quantizer
from qmimic.runtime import Detector as ShippedDetector
from qmimic.runtime.formats import FORMATS
from qmimic.ship.onnx_file import Exported, build_graph
from qmimic.ship.parity import compare
from qmimic.ship.write import describe, ship
from qmimic.tables import ARCHITECTURES
from tiny_detectors import one_stage, some_images

BACKBONES = ("resnet18/16", "repvgg/16", "yunet/32", "vgg16/32")
ELEMENTWISE = {"Add", "Sub", "Mul", "Exp", "Sigmoid", "Clip", "Relu", "Cast"}
RESHAPES = {"Reshape", "Transpose", "Concat", "Slice", "Unsqueeze"}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("levels", [(8,), (32,), (8, 32), (16, 32), (8, 16, 32)])
def test_levels_of_every_backbone(backbone: str, levels: tuple[int, ...]) -> None:
    detector = one_stage(backbone=backbone, levels=levels).eval()
    maps = detector.features(some_images(0)).maps
    assert detector.strides == levels
    assert [tuple(one.shape[1:]) for one in maps] == [
        (channels, 96 // stride, 96 // stride) for channels, stride in zip(detector.channels, levels, strict=True)
    ]
    assert all((one >= 0).all() and one.std() > 0 for one in maps)
    assert len(detector.places) == sum((96 // stride) ** 2 for stride in levels)
    assert detector.detect(some_images(0)).boxes.shape == (2, detector.region_count, 4)
    assert detector.region_count == min(100, 3 * len(detector.places))


def test_places_lie_where_the_heads_say() -> None:
    # A map that is 1 in one cell: the output that differs from all others has that cell's place.
    detector = one_stage().eval()
    for level, (channels, stride) in enumerate(zip(detector.channels, detector.strides, strict=True)):
        blank = [torch.zeros(1, n, 96 // s, 96 // s) for n, s in zip(detector.channels, detector.strides, strict=True)]
        lit = [one.clone() for one in blank]
        lit[level][0, :, 1, 2] = 5
        detector.head.conv[level].weight.data[:, :, :, :] = 0
        detector.head.conv[level].weight.data[:, :, 1, 1] = torch.randn(16, 16)
        detector.head.lateral[level].weight.data = torch.randn(16, channels, 1, 1)
        change = (detector.head(tuple(lit)) - detector.head(tuple(blank))).abs().sum(1)[0]
        own = change * (detector.places[:, 2] == stride)
        assert detector.places[own.argmax()].tolist() == [2.5 * stride, 1.5 * stride, stride]


def test_enlarging_repeats_every_entry() -> None:
    x = torch.randn(2, 3, 4, 5)
    for times in (2, 4):
        assert torch.equal(enlarged(x, times), x.repeat_interleave(times, 2).repeat_interleave(times, 3))


def test_boxes_by_hand() -> None:
    places = place_grid((32, 64), (16,))
    assert places.tolist()[:2] == [[8.0, 8.0, 16.0], [24.0, 8.0, 16.0]]
    sides = torch.log(torch.tensor([[0.5, 1.0, 2.0, 4.0]])).expand(8, 4)
    assert boxes_at(places, sides)[1].tolist() == pytest.approx([16.0, -8.0, 56.0, 72.0], abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"classes": ("face",)}, {"score_threshold": 0.05}, {"max_detections": 7}])
@pytest.mark.parametrize("seed", range(2))
def test_detections_are_those_of_all_boxes_suppressed_one_by_one(seed: int, settings: dict[str, object]) -> None:
    detector = one_stage(seed, **settings).eval()
    features = detector.features(some_images(seed + 10))
    found = detector.detect_on(features)
    boxes, scores = detector.score_boxes(features)
    spec = detector.spec
    for image in range(2):
        place, label = (scores[image] > spec.score_threshold).nonzero().T
        own = boxes[image, place, 0].clamp(0, 96)
        keep = batched_nms(own, scores[image, place, label], label, spec.nms_threshold)[: spec.max_detections]
        valid = found.valid[image]
        assert int(valid.sum()) == len(keep) > 0
        torch.testing.assert_close(found.scores[image][valid], scores[image, place, label][keep])
        torch.testing.assert_close(found.boxes[image][valid], own[keep])
        assert found.labels[image][valid].tolist() == label[keep].tolist()


def learns(detector: OneStage, images: Tensor, targets: Targets, steps: int = 150) -> list[float]:
    optimizer = torch.optim.AdamW(detector.train().parameters(), 5e-3)
    losses = []
    for _ in range(steps):
        output = detector.losses(detector.features(images), targets, torch.Generator())
        loss = torch.stack(list(output.losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def drawn(boxes: Tensor, size: int = 96) -> Tensor:
    """Images of boxes [B, M, 4] in white on grey, uint8."""
    images = torch.full((len(boxes), 3, size, size), 60, dtype=torch.uint8)
    for image, own in zip(images, boxes.long().tolist(), strict=True):
        for left, top, right, bottom in own:
            image[:, top:bottom, left:right] = 250
    return images


def overfitted(boxes: Tensor, labels: Tensor, count: int, **settings: object) -> OneStage:
    """A detector that has learnt two images by heart."""
    detector = build(
        parse_spec(
            {"architecture": "one_stage", "backbone": "resnet18/8", "size": (96, 96), "levels": (8, 16, 32)}
            | {"classes": tuple(f"c{n}" for n in range(count))}
            | settings
        )
    )
    assert isinstance(detector, OneStage)
    losses = learns(detector, drawn(boxes), Targets(boxes, labels))
    assert losses[-1] < 0.3 * losses[0]
    for module in detector.modules():  # by heart means with these images' statistics
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        detector.head(detector.features(drawn(boxes)).maps)
    return detector.eval()


@pytest.mark.parametrize(("backbone", "classes"), [("resnet18/8", 1), ("repvgg/16", 40), ("yunet/16", 1)])
def test_it_learns_two_images_by_heart(backbone: str, classes: int) -> None:
    boxes = torch.tensor([[[8.0, 8, 24, 30], [50, 40, 92, 90]], [[60, 10, 90, 26], [10, 50, 14, 54]]])
    labels = torch.tensor([[0, classes - 1], [0, classes // 2]])
    detector = overfitted(boxes, labels, classes, backbone=backbone)
    found = detector.detect(drawn(boxes))
    for image in range(2):
        assert set(found.labels[image, :2].tolist()) == set(labels[image].tolist())
        for box, label in zip(boxes[image], labels[image], strict=True):
            near = ((found.boxes[image] - box).abs().amax(1) < 4) & (found.labels[image] == label)
            assert (near & (found.scores[image] > 0.2)).any()  # the smallest has 4 pixels


def test_what_is_ignored_is_neither_learnt_nor_learnt_against() -> None:
    detector = one_stage().train()
    features = detector.features(some_images(0))
    box = torch.tensor([[[0.0, 0.0, 96.0, 96.0]]]).expand(2, 1, 4)

    def loss(label: int) -> dict[str, Tensor]:
        return detector.losses(features, Targets(box, torch.full((2, 1), label)), torch.Generator()).losses

    assert float(loss(IGNORED)["cls"].detach()) == 0
    assert float(loss(PADDING)["cls"].detach()) > 0
    assert float(loss(IGNORED)["box"].detach()) == 0


@torch.no_grad()
@pytest.mark.parametrize(
    ("weight", "labels", "frequency"),
    [
        (0.5, [[0, 2], [1, PADDING]], [2 / 6, 2 / 6, 2 / 6]),  # of each class one object, and one more
        (2.0, [[2, 2], [1, IGNORED]], [1 / 6, 2 / 6, 3 / 6]),
    ],
)
def test_the_classes_of_an_object_are_told_apart(
    weight: float, labels: list[list[int]], frequency: list[float]
) -> None:
    """Cross entropy at the places of objects, the logits adjusted by frequency: by hand in float64."""
    detector = one_stage(3, softmax_weight=weight).train()
    features = detector.features(some_images(0))
    boxes = torch.tensor([[[8.0, 8, 24, 30], [50, 40, 92, 90]], [[60, 10, 90, 26], [0, 0, 9, 9]]])
    targets = Targets(boxes, torch.tensor(labels))
    outputs = detector.place_outputs(features).transpose(1, 2)
    places = align(outputs[..., :3].sigmoid(), boxes_at(detector.places, outputs[..., 3:]), detector.places, targets)
    total, objects = 0.0, 0.0
    for image, logits in enumerate(outputs[..., :3].double().numpy() + np.log(frequency)):
        for place in places.share[image].nonzero()[:, 0].tolist():
            share = float(places.share[image, place])
            label = labels[image][places.index[image, place]]
            total += share * (math.log(sum(math.exp(one) for one in logits[place])) - logits[place][label])
            objects += share
    losses = detector.losses(features, targets, torch.Generator()).losses
    assert objects > 0
    assert float(losses["softmax"]) == pytest.approx(weight * total / objects, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{"softmax_weight": 0.0}, {"classes": ("face",)}])
def test_without_rivals_no_softmax_is_learnt(settings: dict[str, object]) -> None:
    detector = one_stage(**settings).train()
    targets = Targets(torch.tensor([[[8.0, 8, 24, 30]]] * 2), torch.zeros(2, 1, dtype=torch.int64))
    assert set(detector.losses(detector.features(some_images(0)), targets, torch.Generator()).losses) == {"cls", "box"}


def test_a_description_that_does_not_name_the_loss_has_none() -> None:
    """A file from before it is trained on (int8, quantized, pruned) as it was trained."""
    old = {
        "architecture": "one_stage",
        "backbone": "resnet18/16",
        "classes": ("a", "b"),
        "size": (96, 96),
        "levels": (8,),
    }
    assert parse_spec(old).softmax_weight == 0
    assert spec_for(
        DetectorConfig(architecture="one_stage", levels=(8,)), "resnet18/16", ("a", "b"), (96, 96)
    ).softmax_weight


@pytest.mark.parametrize(("backbone", "suppression"), list(zip(BACKBONES, [True, False] * 2, strict=True)))
def test_its_file_detects_as_it_does(backbone: str, suppression: bool, tmp_path: Path) -> None:
    detector = one_stage(backbone=backbone).eval()
    exported = Exported(detector, None, suppression)
    path = ship(exported, describe(detector, {}), FORMATS["onnx"], tmp_path / "a", lambda *_: {})
    images = some_images(7, 5).permute(0, 2, 3, 1).contiguous().numpy()
    parity = compare(detector, ShippedDetector(path), images)
    assert parity.detections > 20
    assert not parity.unmatched
    assert parity.score_difference < 5e-4
    assert parity.box_difference < 0.05


@pytest.mark.parametrize(
    ("kind", "integers"),
    [("openvino", False), ("openvino", True), ("ncnn", False), ("ncnn", True), ("executorch", False)],
)
def test_other_formats_detect_as_it_does(kind: str, integers: bool, tmp_path: Path) -> None:
    pytest.importorskip(kind)
    detector = one_stage(backbone="repvgg/16").eval()
    if integers:
        detector = prepare_qat(detector)
        calibrate(detector, [some_images(7, 4)])
    path = ship(Exported(detector, 1), describe(detector, {}), FORMATS[kind], tmp_path / "a", lambda *_: {})
    images = some_images(7, 5).permute(0, 2, 3, 1).contiguous().numpy()
    boxes, scores, _ = ShippedDetector(path).raw(images[:1])
    if integers:  # its engine rounds in its own way
        wanted = detector.detect(torch.from_numpy(images[:1]).permute(0, 3, 1, 2))
        assert abs(float(wanted.scores[0, 0]) - float(scores[0, 0])) < 0.1
        assert boxes.shape == wanted.boxes.shape
        return
    parity = compare(detector, ShippedDetector(path), images)
    assert parity.detections > 20
    assert not parity.unmatched
    assert parity.score_difference < 5e-4
    assert parity.box_difference < 0.05


@pytest.mark.parametrize("backbone", ["repvgg/16", "yunet/32"])
def test_up_to_suppression_every_engine_knows_the_graph(backbone: str) -> None:
    graph = build_graph(Exported(one_stage(backbone=backbone).eval(), suppression=False)).graph
    assert {node.op_type for node in graph.node} <= {"Conv", *ELEMENTWISE, *RESHAPES, "Constant"}
    shapes = onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph)).graph.value_info
    assert max(len(value.type.tensor_type.shape.dim) for value in shapes) == 4


@pytest.mark.parametrize(("classes", "most"), [(1, 100), (40, 300), (90, 1000)])
def test_its_file_is_little_more_than_its_weights(classes: int, most: int) -> None:
    detector = one_stage(
        classes=tuple(map(str, range(classes))), size=(320, 320), levels=(8, 16, 32), max_detections=most
    ).eval()
    size = len(build_graph(Exported(detector)).SerializeToString())
    assert size <= 4 * parameter_count(fold_batch_norm(detector)) + 33_000


@given(st.integers(1, 4000), st.data())
def test_the_quotient_is_that_of_whole_numbers_in_every_engine(by: int, data: st.DataObject) -> None:
    index = torch.tensor(data.draw(st.lists(st.integers(0, 4_000_000), min_size=1)))
    near = torch.cat([index // by * by + off for off in (-1, 0, 1)]).clamp(0, 4_000_000)  # where rounding would show
    assert torch.equal(quotient(near, by), near // by)
    by_reciprocal = ((near + 0.5) * torch.tensor(1 / by)).long()  # as OpenVINO divides by a constant
    assert torch.equal(by_reciprocal, near // by)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_it_lies_on_grids(backbone: str) -> None:
    detector = one_stage(backbone=backbone).eval()
    found = prepare_qat(detector)
    calibrate(found, [some_images(7, 4)])
    assert [grid.level for grid in map_grids(found)] == [0, 1, 2]
    for grid, one in zip(map_grids(found), found.features(some_images(1)).maps, strict=True):
        levels = one / grid.scale
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    ours, theirs = (
        found.score_boxes(found.features(some_images(1))),
        detector.score_boxes(detector.features(some_images(1))),
    )
    assert np.corrcoef(ours[1].flatten(), theirs[1].flatten())[0, 1] > 0.8


def test_a_quantizer_is_the_grid_of_every_level() -> None:
    detector = one_stage().eval()
    detector.quantizer = Quantizer(QuantizerConfig(upper=99), torch.tensor([0.05]))
    found = prepare_qat(detector)
    calibrate(found, [some_images(7, 4)])
    assert [grid.scale.item() for grid in map_grids(found)] == pytest.approx([0.05] * 3)


@pytest.mark.parametrize("backbone", ["resnet18/16", "repvgg/32", "vgg16/32"])
def test_pruned_channels_are_as_good_as_silent(backbone: str) -> None:
    detector = one_stage(backbone=backbone).eval()
    groups = channel_groups(detector)
    count = widths(detector, groups)
    assert Cost(detector).of({}) == mac_count(detector)
    left = equal_share(detector, 0.5 * mac_count(detector))
    cost = Cost(detector).of(left)
    silent = one_stage(backbone=backbone).eval()
    with torch.no_grad():
        for name, group in groups.items():
            for producer in group.producers:
                module = silent.get_submodule(producer)
                values = [module.weight, module.bias]
                if isinstance(module, nn.BatchNorm2d):
                    values.append(module.running_mean)
                for value in values:
                    if value is not None:
                        value[left[name] :] = 0
    keep_channels(detector, {name: torch.arange(left[name]) for name in count})
    assert mac_count(detector) == pytest.approx(cost)
    ours, theirs = (one.score_boxes(one.features(some_images(2))) for one in (detector, silent))
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-4)


def test_it_goes_through_its_file_and_to_other_sizes(tmp_path: Path) -> None:
    detector = one_stage(backbone="repvgg/16").eval()
    save_detector(detector, tmp_path / "a.safetensors", {})
    again, _ = load_detector(tmp_path / "a.safetensors")
    assert again.spec == detector.spec
    assert torch.equal(detector.detect(some_images(3)).scores, again.detect(some_images(3)).scores)
    assert at_size(detector, (64, 128)).detect(some_images(3, size=(64, 128))).boxes.shape == (2, 100, 4)


def test_folded_it_is_plain_convolutions() -> None:
    detector = one_stage(backbone="repvgg/16").eval()
    folded = fold_batch_norm(detector)
    assert not any("pointwise" in name for name, _ in folded.named_parameters())
    ours, theirs = (one.score_boxes(one.features(some_images(2)))[1] for one in (detector, folded))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    kinds = Counter(type(module).__name__ for module in folded.modules())
    assert kinds["Reparameterised"] == 0


@pytest.mark.parametrize(
    ("sides", "size", "levels"),
    [
        ([20] + [400] * 9, (320, 320), (8, 16, 32)),
        ([20] + [400] * 20, (320, 320), (32,)),
        ([20] + [80] * 20, (320, 320), (16, 32)),
        ([20] * 99 + [300], (320, 320), (8, 16, 32)),
        ([300] * 10, (336, 320), (16,)),  # 336 is not a multiple of 32
        ([20] * 10, (336, 320), (8, 16)),
    ],
)
def test_levels_are_chosen_by_the_boxes(sides: list[int], size: tuple[int, int], levels: tuple[int, ...]) -> None:
    boxes = np.repeat(np.array(sides, np.float32)[:, None], 2, 1)
    assert choose_levels(boxes, size) == levels


def test_a_level_that_does_not_fit_the_size_is_refused() -> None:
    config = DetectorConfig(architecture="one_stage", levels=(8, 32))
    with pytest.raises(ValidationError, match="multiples of 32, and the size is 80 x 96"):
        spec_for(config, "resnet18/16", ("a",), (80, 96))
    for levels in ((), (8, 8), (16, 8), (4,)):
        with pytest.raises(ValidationError, match="needs one to three of the strides 8, 16 and 32"):
            DetectorConfig(levels=levels)


@given(st.lists(st.floats(1, 300, width=32), max_size=40))
def test_the_output_stride_is_8_from_a_tenth_of_small_boxes_on(sides: list[float]) -> None:
    sizes = np.array([(side, side) for side in sides], np.float32).reshape(-1, 2)
    small = sum(side < 16 for side in sides)
    assert choose_output_stride(sizes) == (8 if sides and 10 * small >= len(sides) else 16)


def test_what_is_set_is_kept_and_what_is_open_is_chosen() -> None:
    small = np.full((10, 2), 12, np.float32)
    for given_stride, chosen in ((None, 8), (16, 16), (8, 8)):
        config = DetectorConfig(output_stride=given_stride)
        assert ARCHITECTURES["faster_rcnn"].fitted(config, small, (96, 96)).output_stride == chosen
        assert map_strides(config, None, small, (96, 96)) == (chosen,)
    one = DetectorConfig(architecture="one_stage")
    assert map_strides(one, None, small, (96, 96)) == (8, 16, 32)
    assert map_strides(one, None, 20 * small, (96, 96)) == (32,)
    alone = one.model_copy(update={"output_stride": 16})  # which one stage does not read
    assert map_strides(alone, None, 20 * small, (96, 96)) == (32,)
    assert map_strides(one, "faster_rcnn", 20 * small, (96, 96)) == (16, 32)  # so that there is a stride in common

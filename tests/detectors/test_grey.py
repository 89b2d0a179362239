"""Networks that see brightness alone: in training, in their files, and from weights for colour."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from qmimic.compress.integer_grids import calibrate, prepare_qat
from qmimic.detectors.build import build, mac_count
from qmimic.detectors.channels import channel_groups, keep_channels, widths
from qmimic.detectors.detector import Detector, _brightness
from qmimic.detectors.files import load_detector, save_detector
from qmimic.detectors.pretrained import load_backbone
from qmimic.errors import InputError
from qmimic.ship.onnx_file import Exported, build_graph
from tiny_detectors import as_targets, lively, some_images, some_truth, tiny_spec

BACKBONES = ["resnet18/16", "vgg16/32", "timm:resnet10t"]


def greyed(images: torch.Tensor) -> torch.Tensor:
    """Pillow's opinion of the same images in grey, in three equal channels."""
    rows = [Image.fromarray(one.permute(1, 2, 0).numpy()).convert("L") for one in images]
    return torch.stack([torch.from_numpy(np.array(row))[None].expand(3, -1, -1) for row in rows]).contiguous()


def grey(backbone: str = "resnet18/16", **settings: object) -> Detector:
    detector = build(tiny_spec(backbone=backbone, grey=True, **settings))
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.momentum = 1.0
    with torch.no_grad():
        detector.train().raw_features(some_images(1, 4))
    return detector.eval()


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES)
def test_it_sees_the_brightness_and_nothing_else(backbone: str) -> None:
    detector = grey(backbone)
    layer = detector.backbone.get_submodule(detector.backbone.pixel_layers[0])
    assert layer.weight.shape[1] == layer.in_channels == 1
    images = some_images(2)
    seen = detector.centred(images.permute(0, 2, 3, 1))
    brightness = seen * detector.std + detector.mean
    # Pillow rounds to whole numbers.
    torch.testing.assert_close(brightness, greyed(images)[:, :1].float(), rtol=0, atol=0.51)
    ours = detector.raw_features(images).map
    torch.testing.assert_close(detector.backbone(seen).map, ours, rtol=1e-3, atol=1e-3 * float(ours.max()))
    assert ours.std() > 0.01
    assert mac_count(detector) < mac_count(build(tiny_spec(backbone=backbone)))


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["resnet18", "timm:resnet10t"])
def test_weights_for_colour_see_a_grey_picture_as_they_did(tmp_path: Path, backbone: str) -> None:
    colour = build(tiny_spec(backbone=backbone)).eval()
    colour.mean.fill_(110.0)  # one brightness, whatever the channel
    colour.std.fill_(50.0)
    own = colour.backbone.state_dict()
    held = {name.removeprefix("body."): value for name, value in own.items() if not name.startswith("neck.")}
    if backbone.startswith("timm:"):
        held |= {"fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)}
    save_file({name: value.contiguous() for name, value in held.items()}, str(tmp_path / "a.safetensors"))
    other = build(tiny_spec(backbone=backbone, grey=True)).eval()
    load_backbone(other, tmp_path / "a.safetensors")
    if backbone.startswith("timm:"):
        other.backbone.neck.load_state_dict(colour.backbone.neck.state_dict())
    other.mean.fill_(110.0)
    other.std.fill_(50.0)
    images = greyed(some_images(3))
    wanted = colour.raw_features(images).map
    torch.testing.assert_close(other.raw_features(images).map, wanted, rtol=1e-3, atol=1e-3 * float(wanted.max()))


def test_it_learns_goes_through_its_file_and_is_pruned(tmp_path: Path) -> None:
    detector = grey().train()
    images, targets = some_images(5), as_targets(some_truth())
    losses = detector.losses(detector.features(images), targets, torch.Generator()).losses
    torch.stack(list(losses.values())).sum().backward()
    assert detector.backbone.conv1.weight.grad.abs().sum() > 0
    save_detector(detector.eval(), tmp_path / "grey.safetensors", {})
    again, _ = load_detector(tmp_path / "grey.safetensors")
    assert again.spec.grey
    assert torch.equal(again.detect(images).scores, detector.detect(images).scores)
    count = widths(detector, channel_groups(detector))
    keep_channels(detector, {name: torch.arange(max(1, number // 2)) for name, number in count.items()})
    assert detector.detect(images).boxes.shape == again.detect(images).boxes.shape


@torch.no_grad()
@pytest.mark.parametrize("integers", [False, True])
def test_its_onnx_file_takes_colour_and_computes_what_it_computes(integers: bool) -> None:
    detector = lively(tiny_spec(grey=True)).eval()
    if integers:
        detector = prepare_qat(detector).eval()
        calibrate(detector, [some_images(7, 4)])
    model = build_graph(Exported(detector, suppression=False))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = some_images(4, 1)
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    boxes, scores = session.run(None, {session.get_inputs()[0].name: pixels})[:2]
    wanted_boxes, wanted = detector.score_boxes(detector.features(images))
    assert wanted.std() > 0.01
    # On integers, regions of nearly the same objectness change places.
    ours, theirs = (np.sort(one, 1) if integers else one for one in (scores, wanted.numpy()))
    np.testing.assert_allclose(ours, theirs, atol=0.1 if integers else 2e-3)
    assert boxes.shape == tuple(wanted_boxes.shape)


def test_a_backbone_that_reads_pixels_otherwise_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.grey needs"):
        build(tiny_spec(backbone="timm:tresnet_m", grey=True))


def test_brightness_is_not_rounded_in_bf16() -> None:
    colours = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = _brightness(colours)
    torch.testing.assert_close(found, _brightness(colours), rtol=0, atol=0)

"""Channels are taken out of every layer that makes or uses them, and nothing else changes."""

from pathlib import Path

import pytest
import torch
from torch import nn

from qmimic.detectors.build import build, mac_count
from qmimic.detectors.channels import channel_groups, keep_channels, layer, widths
from qmimic.detectors.files import load_detector, save_detector
from qmimic.errors import InputError
from tiny_detectors import lively, some_images, tiny_spec

DETECTORS = [
    {"backbone": "resnet18/16"},
    {"backbone": "resnet34/16", "architecture": "rfcn", "roi_size": 3},
    {"backbone": "resnet50/16", "output_stride": 8},
    {"backbone": "vgg16/16", "roi_pooling": "pool"},
    {"backbone": "resnet18_separable/16"},
    {"backbone": "vgg16_separable/16"},
    {"backbone": "repvgg/16"},
    {"backbone": "yunet/16"},
]


@pytest.mark.parametrize("settings", DETECTORS)
def test_a_detector_without_channels_computes_what_it_did_with_their_outputs_at_zero(
    settings: dict[str, object],
) -> None:
    detector = lively(tiny_spec(**settings)).eval()
    groups = channel_groups(detector)
    generator = torch.Generator().manual_seed(3)
    kept = {}
    for name, count in widths(detector, groups).items():
        kept[name] = torch.randperm(count, generator=generator)[: max(1, count * 2 // 3)].sort().values
        gone = torch.ones(count, dtype=torch.bool)
        gone[kept[name]] = False
        for producer in groups[name].producers:  # weight and bias of the last one at zero silence a channel
            module = detector.get_submodule(producer)
            with torch.no_grad():
                for value in (module.weight, module.bias):
                    if isinstance(value, nn.Parameter):
                        value[gone] = 0
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean[gone] = 0
    images = some_images(5)
    features = detector.features(images).map
    wanted = (detector.rpn(features), detector.head(features, rois(images)))
    parameters = sum(value.numel() for value in detector.parameters())

    keep_channels(detector, kept)

    features = detector.features(images).map
    found = (detector.rpn(features), detector.head(features, rois(images)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert widths(detector, groups) == {name: len(index) for name, index in kept.items()} == detector.spec.channels
    assert sum(value.numel() for value in detector.parameters()) < parameters
    assert detector.channels == (features.shape[1],)


def rois(images: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[4.0, 8.0, 60.0, 50.0], [30.0, 30.0, 90.0, 80.0]]).expand(len(images), 2, 4)


@pytest.mark.parametrize("settings", DETECTORS)
def test_every_convolution_and_linear_layer_is_in_the_groups(settings: dict[str, object]) -> None:
    detector = build(tiny_spec(**settings))
    groups = channel_groups(detector)
    layers = {name for name, module in detector.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    ends = {"rpn.objectness", "rpn.deltas", "head.scores", "head.deltas"}
    reads_pixels = {f"backbone.{name}" for name in detector.backbone.pixel_layers}
    depthwise = {name for name in layers if getattr(layer(detector, name), "groups", 1) > 1}
    makers = [name for group in groups.values() for name in group.producers if name in layers]
    users = [name for group in groups.values() for name in group.consumers]
    assert sorted(makers) == sorted(layers - ends)
    assert sorted(users) == sorted(layers - reads_pixels - depthwise)
    for group in groups.values():  # what is made has the number of channels that is used
        assert len({len(detector.get_submodule(name).weight) for name in group.producers}) == 1
        for user in group.consumers:
            assert layer(detector, user).weight.shape[1] % len(layer(detector, group.name).weight) == 0


def test_a_pruned_detector_goes_through_its_file_and_costs_what_its_width_costs(tmp_path: Path) -> None:
    detector = build(tiny_spec(backbone="resnet18/8", head_width=None))
    slim = build(tiny_spec(backbone="resnet18/16", head_width=None))
    wanted = widths(slim, channel_groups(slim))
    keep_channels(detector, {name: torch.arange(count) for name, count in wanted.items()})
    assert mac_count(detector) == mac_count(slim)
    save_detector(detector.eval(), tmp_path / "pruned.safetensors", {})
    again, _ = load_detector(tmp_path / "pruned.safetensors")
    images = some_images(1)
    torch.testing.assert_close(vars(again.detect(images)), vars(detector.detect(images)))


def test_pruning_what_cannot_be_pruned_is_refused() -> None:
    with pytest.raises(InputError, match="resnet18_grouped/16 has grouped convolutions"):
        channel_groups(build(tiny_spec(backbone="resnet18_grouped/16")))
    detector = build(tiny_spec())
    with pytest.raises(InputError, match=r"no channel group 'head\.scores'"):
        keep_channels(detector, {"head.scores": torch.arange(2)})
    with pytest.raises(InputError, match=r"cannot keep 5 of the 4 channels backbone\.conv1"):
        build(tiny_spec(channels={"backbone.conv1": 5}))
    with pytest.raises(InputError, match="cannot keep 0"):
        keep_channels(detector, {"rpn.conv": torch.arange(0)})

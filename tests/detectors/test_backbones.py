"""Backbones against torchvision's, at full width with the same weights; and what width and stride do to them."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34, resnet50
from torchvision.models.vgg import cfgs, make_layers

from qmimic.detectors.backbones import build_backbone
from qmimic.detectors.convolution import Conv2d, Reparameterised
from qmimic.errors import InputError
from qmimic.tables import BACKBONES, parse_backbone

TORCHVISION = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}
# Of the last map at full width, where it is not 512.
CHANNELS = {("resnet50", stride): 2048 for stride in (8, 16)} | {("yunet", stride): 1024 for stride in (8, 16)}
CHANNELS |= {("repvgg", 8): 384}
IMAGE = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))


def torchvision_backbone(name: str, **options: object) -> nn.Module:
    """torchvision's network without its classifier and without memory for its weights, their names kept."""
    with torch.device("meta"):
        if name == "vgg16":
            model = nn.Module()
            model.features = make_layers(cfgs["D"], batch_norm=True)[:-1]
            return model
        model = TORCHVISION[name](**options)
        del model.fc
        return model


def torchvision_map(model: nn.Module, x: Tensor) -> Tensor:
    if hasattr(model, "features"):
        return model.features(x)
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    return model.layer4(model.layer3(model.layer2(model.layer1(x))))


@functools.cache
def settled_weights(name: str) -> dict[str, Tensor]:
    """Fresh weights, with statistics of batch norm that keep the map's scale; the same for both output strides."""
    torch.manual_seed(1)
    backbone = build_backbone(name, 16)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        backbone(torch.randn(2, 3, 32, 32))
    return backbone.state_dict()


def with_settled_weights(model: nn.Module, name: str) -> nn.Module:
    model.load_state_dict(settled_weights(name), assign=True)
    return model.eval()


def settled(name: str, output_stride: int) -> nn.Module:
    with torch.device("meta"):
        backbone = build_backbone(name, output_stride)
    return with_settled_weights(backbone, name)


def check_same_map(ours: Tensor, torchvisions: Tensor) -> None:
    assert ours.shape == torchvisions.shape
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, torchvisions, atol=1e-4 * float(torchvisions.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("name", [*TORCHVISION, "vgg16"])
def test_weights_at_full_width_have_torchvisions_names_and_shapes(name: str) -> None:
    with torch.device("meta"):
        ours = build_backbone(name, 16)
    shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (ours, torchvision_backbone(name))]
    assert shapes[0] == shapes[1]


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "output_stride"), [("resnet18", 16), ("resnet34", 16), ("resnet50", 16), ("resnet18", 8)]
)
def test_dilated_map_holds_torchvisions_strided_map(name: str, output_stride: int) -> None:
    # A stage that is dilated instead of strided computes the strided map, and the places between.
    ours, torchvisions = settled(name, output_stride), with_settled_weights(torchvision_backbone(name), name)
    between = 32 // output_stride
    check_same_map(ours(IMAGE).map[:, :, ::between, ::between], torchvision_map(torchvisions, IMAGE))


@torch.no_grad()
@pytest.mark.parametrize(("output_stride", "dilated"), [(16, [False, False, True]), (8, [False, True, True])])
def test_resnet50_equals_torchvision_with_dilation(output_stride: int, dilated: list[bool]) -> None:
    ours = settled("resnet50", output_stride)
    torchvisions = torchvision_backbone("resnet50", replace_stride_with_dilation=dilated)
    with_settled_weights(torchvisions, "resnet50")
    check_same_map(ours(IMAGE).map, torchvision_map(torchvisions, IMAGE))


@torch.no_grad()
@pytest.mark.parametrize("output_stride", [16, 8])
def test_vgg16_equals_torchvision_without_its_last_poolings(output_stride: int) -> None:
    ours, torchvisions = settled("vgg16", output_stride), with_settled_weights(torchvision_backbone("vgg16"), "vgg16")
    if output_stride == 8:
        pools = [place for place, layer in enumerate(torchvisions.features) if isinstance(layer, nn.MaxPool2d)]
        torchvisions.features[pools[3]] = nn.Identity()
        for layer in torchvisions.features[pools[3] :]:
            if isinstance(layer, nn.Conv2d):
                layer.padding = layer.dilation = (2, 2)
    check_same_map(ours(IMAGE).map, torchvision_map(torchvisions, IMAGE))


@torch.no_grad()
@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("family", BACKBONES)
def test_the_map_has_the_stride_and_the_channels_that_the_backbone_names(family: str, output_stride: int) -> None:
    backbone = build_backbone(f"{family}/32", output_stride).eval()
    features = backbone(torch.randn(2, 3, 64, 96)).map
    assert backbone.strides == (output_stride,)
    assert features.shape == (2, backbone.channels[0], 64 // output_stride, 96 // output_stride)
    assert backbone.channels == (CHANNELS.get((family, output_stride), 512) // 32,)
    assert (features >= 0).all()


@torch.no_grad()
@pytest.mark.parametrize("name", TORCHVISION)
def test_levels_of_resnets_are_torchvisions_stages(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, 32, (8, 16, 32))
    ours, torchvisions = with_settled_weights(backbone, name), with_settled_weights(torchvision_backbone(name), name)
    x = torchvisions.layer1(torchvisions.maxpool(torchvisions.relu(torchvisions.bn1(torchvisions.conv1(IMAGE)))))
    for one, stage in zip(ours(IMAGE).maps, ("layer2", "layer3", "layer4"), strict=True):
        x = torchvisions.get_submodule(stage)(x)
        check_same_map(one, x)


@torch.no_grad()
def test_levels_of_vgg16_are_what_torchvisions_poolings_get() -> None:
    with torch.device("meta"):
        backbone = build_backbone("vgg16", 32, (8, 16, 32))
    ours, torchvisions = (
        with_settled_weights(backbone, "vgg16"),
        with_settled_weights(torchvision_backbone("vgg16"), "vgg16"),
    )
    pools = [place for place, layer in enumerate(torchvisions.features) if isinstance(layer, nn.MaxPool2d)]
    finest, middle, coarsest = ours(IMAGE).maps
    check_same_map(finest, torchvisions.features[: pools[3]](IMAGE))
    check_same_map(middle, torchvisions.features(IMAGE))
    check_same_map(coarsest, F.max_pool2d(torchvisions.features(IMAGE), 2))


def test_a_level_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="no map of stride 32"):
        build_backbone("resnet18/16", 16, (16, 32))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("few", [2, 12])
def test_a_reparameterised_convolution_is_the_sum_of_two(stride: int, few: int) -> None:
    torch.manual_seed(0)
    conv = Reparameterised(few, few, stride, 1, True)
    x = torch.randn(2, few, 10, 12)
    wanted = F.conv2d(x, conv.weight, conv.bias, stride, 1) + conv.pointwise(x[:, :, ::stride, ::stride])
    torch.testing.assert_close(conv(x), wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(conv.plain()(x), wanted, atol=1e-5, rtol=1e-4)
    conv.start()
    if stride == 1:
        torch.testing.assert_close(conv.pointwise(x), x)


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("resnet18", [64, 128, 256, 512]),
        ("resnet18/16", [4, 8, 16, 32]),
        ("resnet18/3", [22, 43, 86, 171]),
        ("resnet34/100", [1, 2, 3, 6]),
        ("resnet50/4096", [1, 1, 1, 1]),
        ("resnet18/2.5", [26, 52, 103, 205]),
    ],
)
def test_channels_are_divided_and_rounded_up(name: str, widths: list[int]) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, 16)
    found = [backbone.get_submodule(f"layer{stage}.0.conv1").out_channels for stage in (1, 2, 3, 4)]
    assert found == widths
    assert backbone.conv1.out_channels == widths[0]


@pytest.mark.parametrize(
    ("name", "widths"), [("vgg16/32", [2, 4, 8, 16, 16]), ("vgg16/60", [2, 3, 5, 9, 9]), ("vgg16/4096", [1] * 5)]
)
def test_channels_of_vgg_are_divided_and_rounded_up(name: str, widths: list[int]) -> None:
    convolutions = [layer for layer in build_backbone(name, 16).features if isinstance(layer, nn.Conv2d)]
    depths = (2, 2, 3, 3, 3)
    expected = [width for width, depth in zip(widths, depths, strict=True) for _ in range(depth)]
    assert [layer.out_channels for layer in convolutions] == expected


@pytest.mark.parametrize(
    ("name", "widths", "groups"),
    [
        ("resnet18_grouped/16", [4, 8, 16, 32], [2, 2, 2, 2]),
        ("resnet18_grouped/13", [4, 10, 20, 40], [2, 2, 2, 2]),
        ("resnet18_grouped/4096", [2, 2, 2, 2], [2, 2, 2, 2]),
        ("resnet18_separable/13", [5, 10, 20, 40], [5, 10, 20, 40]),
    ],
)
def test_groups_of_the_second_convolutions(name: str, widths: list[int], groups: list[int]) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, 16)
    for stage, width, count in zip((1, 2, 3, 4), widths, groups, strict=True):
        conv = backbone.get_submodule(f"layer{stage}.0.conv2")
        first = conv[0] if isinstance(conv, nn.Sequential) else conv
        assert (first.in_channels, first.groups, first.kernel_size) == (width, count, (3, 3))
        if isinstance(conv, nn.Sequential):
            assert (conv[-1].kernel_size, conv[-1].groups, conv[-1].out_channels) == ((1, 1), 1, width)


@pytest.mark.parametrize("family", BACKBONES)
def test_the_narrowest_backbones_learn(family: str) -> None:
    backbone = build_backbone(f"{family}/4096", 16)
    backbone(torch.randn(2, 3, 32, 32)).map.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in backbone.parameters())


@pytest.mark.parametrize("channels", [1, 4, 7, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_the_strided_pointwise_convolution_equals_torchs(channels: int, bias: bool) -> None:
    torch.manual_seed(0)
    conv = Conv2d(channels, 5, 1, 2, bias=bias)
    x = torch.randn(2, channels, 9, 12, requires_grad=True)
    weights = torch.randn(2, 5, 5, 6)
    ours = conv(x)
    torchs = F.conv2d(x, conv.weight, conv.bias, 2)
    torch.testing.assert_close(ours, torchs)
    inputs = [x, *conv.parameters()]
    mine = torch.autograd.grad((ours * weights).sum(), inputs)
    theirs = torch.autograd.grad((torchs * weights).sum(), inputs)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "parsed"),
    [("resnet18/16", ("resnet18", 16.0)), ("vgg16", ("vgg16", 1.0)), ("resnet50/1.5", ("resnet50", 1.5))],
)
def test_names_are_family_and_divisor(name: str, parsed: tuple[str, float]) -> None:
    assert parse_backbone(name) == parsed


@pytest.mark.parametrize(("name", "near"), [("resnet19/16", "resnet18"), ("vgg", "vgg16"), ("resnet-50", "resnet50")])
def test_an_unknown_family_is_refused_with_the_nearest_known_one(name: str, near: str) -> None:
    with pytest.raises(InputError, match=f"{name.split('/')[0]}.*did you mean {near}"):
        build_backbone(name, 16)


@pytest.mark.parametrize("name", ["", "/", "/16", "ResNet18/16 ", "../resnet18", "resnet18\n"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        build_backbone(name, 16)


@pytest.mark.parametrize("divisor", ["0", "0.5", "-4", "x", "", "5000", "9" * 400, "16/2", "1e3", "nan"])
def test_a_senseless_divisor_is_refused(divisor: str) -> None:
    with pytest.raises(InputError, match="width divisor"):
        build_backbone(f"resnet18/{divisor}", 16)

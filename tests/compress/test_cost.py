"""The cost of fewer channels, against networks that were built with them."""

import pytest
import torch

from qmimic.compress.cost import Cost, equal_share
from qmimic.detectors.build import build, mac_count
from qmimic.detectors.channels import channel_groups, keep_channels, widths
from tiny_detectors import tiny_spec


@pytest.mark.parametrize("settings", [{}, {"backbone": "vgg16/16", "architecture": "rfcn"}, {"backbone": "resnet50/8"}])
def test_cost_is_that_of_the_network_with_so_many_channels(settings: dict[str, object]) -> None:
    detector = build(tiny_spec(**settings))
    cost = Cost(detector)
    assert cost.of({}) == pytest.approx(mac_count(detector))
    generator = torch.Generator().manual_seed(0)
    left = {
        name: int(torch.randint(1, count + 1, (), generator=generator))
        for name, count in widths(detector, channel_groups(detector)).items()
    }
    wanted = cost.of(left)
    keep_channels(detector, {name: torch.arange(count) for name, count in left.items()})
    assert mac_count(detector) == pytest.approx(wanted)


def test_equal_share_of_a_wide_network_is_the_narrow_one() -> None:
    wide, narrow = (build(tiny_spec(backbone=f"resnet18/{n}", head_width=None)) for n in (4, 16))
    assert equal_share(wide, mac_count(narrow)) == widths(narrow, channel_groups(narrow))

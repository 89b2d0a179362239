"""Li et al.'s two-stage mimic (CVPR 2017, section 3.4): the map, and what the teacher's second stage says of regions.

    L_m + 1/(2N) sum_i ( |z_t^i - z_s^i|^2 + |b_t^i - b_s^i|^2 )

L_m: the mimic loss of the same N regions, see `Mimic`; z^i, b^i: logits and regressed box of region i, as the heads give
them. The paper prints no weights between the terms: here they are 1.
"""

import torch
from pydantic import Field
from torch import Tensor

from qmimic.config import MimicConfig, Section
from qmimic.contracts import Features, Proposals
from qmimic.data.targets import Targets
from qmimic.distill.distiller import Heads, Sides, StudentView, Target, TeacherView
from qmimic.distill.mimic import Mimic, mean_of_regions
from qmimic.distill.regions import with_truth
from qmimic.errors import InputError


class Terms(Section):
    """Settings of `TwoStageMimic`: the weights of its terms."""

    features: float = Field(1.0, ge=0, description="of the mimic loss on the map; 0: what the heads say alone")
    logits: float = Field(1.0, ge=0, description="of the squared distance of logits")
    boxes: float = Field(1.0, ge=0, description="of the squared distance of regressed boxes")


def answers(heads: Heads, features: Features, regions: Proposals) -> Target:
    """What a teacher's second stage says of regions: `logits` [B, P, 1 + K] and `deltas` [B, P, K or 1, 4]; no gradient."""
    assert heads.regions is not None
    with torch.no_grad():
        logits, deltas = heads.regions(features, regions.boxes)
    return {"logits": logits, "deltas": deltas}

"""torchvision's Faster R-CNN around one of our backbones: the peer of the benchmark, the referee of the tests."""

import copy

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign, roi_align

from qmimic.detectors.detector import Detector


class AlignedRoIPool(nn.Module):
    """torchvision's `roi_align` with aligned corners, in the place of its MultiScaleRoIAlign, which has them not."""

    def __init__(self, size: int, stride: int) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]) -> Tensor:
        return roi_align(features["0"], boxes, self.size, 1 / self.stride, sampling_ratio=2, aligned=True)


class CentredAnchors(AnchorGenerator):
    """Our anchors: given widths and heights, centred in the cells of the map."""

    def __init__(self, sizes: tuple[tuple[float, float], ...], stride: int) -> None:
        super().__init__(((1,) * len(sizes),), ((1.0,),))
        half = torch.tensor(sizes) / 2
        self.cell_anchors = [torch.cat([-half, half], 1) + stride / 2]


class OneMap(nn.Module):
    """A backbone of one level as torchvision takes it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        (self.out_channels,) = backbone.channels

    def forward(self, x: Tensor) -> Tensor:
        """Its map."""
        return self.backbone(x).map


def plain(backbone: nn.Module) -> nn.Module:
    """A copy of a backbone made of torch's own layers, in torch's default memory layout."""
    copied = copy.deepcopy(backbone)
    for parent in list(copied.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                own = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum)
            elif isinstance(layer, nn.Conv2d):
                bias = layer.bias is not None
                shape = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
                own = nn.Conv2d(*shape, layer.dilation, bias=bias)
            else:
                continue
            own.load_state_dict(layer.state_dict())
            setattr(parent, name, own)
    return copied.to(memory_format=torch.contiguous_format)


def channel_by_channel(weight: Tensor, roi_size: int) -> Tensor:
    """Weights [units, k k C] of our head's first layer in the order of torchvision's, [units, C k k]."""
    return weight.unflatten(1, (roi_size**2, -1)).transpose(1, 2).flatten(1)


def twin(detector: Detector) -> TorchvisionFasterRCNN:
    """torchvision's detector with the architecture, sampling and (copied) weights of ours.

    Args:
        detector: of a square input size, without a quantizer.
    """
    spec = detector.spec
    # A network of timm consists of timm's own layers.
    own = detector.backbone
    backbone = OneMap(plain(own) if own.published_name is None else copy.deepcopy(own))
    roi_head = TwoMLPHead(detector.head.fc1.in_features, detector.head.fc1.out_features)
    model = TorchvisionFasterRCNN(
        backbone,
        min_size=min(spec.size),
        max_size=max(spec.size),
        image_mean=(detector.mean / 255).flatten().tolist(),
        image_std=(detector.std / 255).flatten().tolist(),
        rpn_anchor_generator=CentredAnchors(spec.anchors, spec.output_stride),
        rpn_head=RPNHead(backbone.out_channels, len(spec.anchors)),
        rpn_pre_nms_top_n_train=spec.pre_nms,
        rpn_pre_nms_top_n_test=spec.pre_nms,
        rpn_post_nms_top_n_train=spec.post_nms,
        rpn_post_nms_top_n_test=spec.post_nms,
        rpn_batch_size_per_image=spec.rpn_samples,
        box_roi_pool=MultiScaleRoIAlign(["0"], spec.roi_size, 2),  # replaced below: the constructor is strict
        box_head=roi_head,
        box_predictor=FastRCNNPredictor(detector.head.fc2.out_features, len(spec.classes) + 1),
        box_score_thresh=spec.score_threshold,
        box_nms_thresh=spec.nms_threshold,
        box_detections_per_img=spec.max_detections,
        box_batch_size_per_image=spec.roi_samples,
    )
    model.roi_heads.box_roi_pool = AlignedRoIPool(spec.roi_size, spec.output_stride)
    rpn_head = model.rpn.head
    rpn_head.conv[0][0].load_state_dict(detector.rpn.conv.state_dict())
    rpn_head.cls_logits.load_state_dict(detector.rpn.objectness.state_dict())
    rpn_head.bbox_pred.load_state_dict(detector.rpn.deltas.state_dict())
    with torch.no_grad():
        roi_head.fc6.weight.copy_(channel_by_channel(detector.head.fc1.weight, spec.roi_size))
        roi_head.fc6.bias.copy_(detector.head.fc1.bias)
    roi_head.fc7.load_state_dict(detector.head.fc2.state_dict())
    predictor = model.roi_heads.box_predictor
    predictor.cls_score.load_state_dict(detector.head.scores.state_dict())
    with torch.no_grad():  # torchvision also regresses a box for the background
        predictor.bbox_pred.weight[4:] = detector.head.deltas.weight
        predictor.bbox_pred.bias[4:] = detector.head.deltas.bias
    return model

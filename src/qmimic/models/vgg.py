"""VGG16 with batch norm (Simonyan & Zisserman, ICLR 2015) at any width divisor.

Layers are numbered as in torchvision's `vgg16_bn().features`, so its weights at full width load as they stand.
"""

import math

from torch import Tensor, nn

from qmimic.models.batch_norm import BatchNorm2d
from qmimic.models.convolution import Conv2d

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG(nn.Module):
    """The thirteen convolutions of VGG16; the fifth pooling is left out, at output stride 8 the fourth as well.

    Attributes:
        channels: channels of the map.
        stride: output stride in pixels.
        width_divisor: n of `vgg16/n`.
    """

    def __init__(self, width_divisor: float, output_stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, stride, dilation = 3, 1, 1
        for stage, (channels, depth) in enumerate(STAGES, start=1):
            outputs = max(1, math.ceil(channels / width_divisor))
            for _ in range(depth):
                conv = Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)
                layers += [conv, BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            if stage == len(STAGES):
                break
            if stride < output_stride:
                layers.append(nn.MaxPool2d(2))
                stride *= 2
            else:
                layers.append(nn.Identity())  # keeps torchvision's numbers of the layers that follow
                dilation *= 2
        self.features = nn.Sequential(*layers)
        self.channels, self.stride, self.width_divisor = inputs, stride, width_divisor

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] to a map [B, channels, H/stride, W/stride], after ReLU."""
        out: Tensor = self.features(x)
        return out


def vgg16(width_divisor: float, output_stride: int) -> VGG:
    """VGG16 at 1/width_divisor of its channels."""
    return VGG(width_divisor, output_stride)

"""Which networks are computed in bf16 by default."""

import torch

from qmimic.tables import parse_backbone

MAX_DIVISOR = 4  # narrower networks gain nothing: matrix products are not where their time goes


def bf16_by_default(backbone: str, device: torch.device) -> bool:
    """Whether a network is computed in bf16 (and so in channels-last memory) on this device.

    Args:
        backbone: its name, such as `resnet18/4`.
        device: where it runs.
    """
    if parse_backbone(backbone)[1] > MAX_DIVISOR:
        return False
    if device.type == "cpu":
        return bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))

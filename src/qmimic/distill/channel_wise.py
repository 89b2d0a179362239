"""Channel-wise knowledge distillation (CWD; Shu et al., ICCV 2021): where in the map is each channel active?"""

import torch.nn.functional as F
from torch import Tensor

from qmimic.data.targets import Targets
from qmimic.distill.map_distiller import MapDistiller

TEMPERATURE = 4.0  # the paper's choice for dense prediction (section 4.1)


class ChannelWise(MapDistiller):
    """T^2 / C sum_c KL(softmax(f_t / T) || softmax(f_s / T)), the softmax over the places of a channel (eq. 3, 4)."""

    def map_loss(self, teacher: Tensor, student: Tensor, truth: Targets, place: int) -> Tensor:
        """See `MapDistiller.map_loss`; the mean over images."""
        wanted = F.log_softmax(teacher.flatten(2) / TEMPERATURE, dim=2)
        own = F.log_softmax(student.flatten(2) / TEMPERATURE, dim=2)
        distance = F.kl_div(own, wanted, reduction="sum", log_target=True)
        batch, channels = teacher.shape[:2]
        return TEMPERATURE**2 * distance / (batch * channels)

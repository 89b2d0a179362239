"""Channel-wise knowledge distillation (CWD; Shu et al., ICCV 2021): where in the map is each channel active?"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from qmimic.config import Section
from qmimic.data.targets import Targets
from qmimic.distill.map_distiller import MapDistiller


class Temperature(Section):
    """Settings of `ChannelWise`."""

    temperature: float = Field(4.0, gt=0, description="T; the paper's choice for dense prediction (section 4.1)")


class ChannelWise(MapDistiller):
    """T^2 / C sum_c KL(softmax(f_t / T) || softmax(f_s / T)), the softmax over the places of a channel (eq. 3, 4)."""

    Settings = Temperature
    settings: Temperature

    def map_loss(self, teacher: Tensor, student: Tensor, truth: Targets, place: int) -> Tensor:
        """See `MapDistiller.map_loss`; the mean over images."""
        temperature = self.settings.temperature
        wanted = F.log_softmax(teacher.flatten(2) / temperature, dim=2)
        own = F.log_softmax(student.flatten(2) / temperature, dim=2)
        distance = F.kl_div(own, wanted, reduction="sum", log_target=True)
        batch, channels = teacher.shape[:2]
        return temperature**2 * distance / (batch * channels)

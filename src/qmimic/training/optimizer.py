"""Optimizers and learning rates of a schedule."""

import math

import torch
from torch import nn

from qmimic.config import ScheduleConfig

MOMENTUM = 0.9  # of SGD
GAMMA = 0.1  # of decay=step: factor of the learning rate at each milestone


def build_optimizer(module: nn.Module, schedule: ScheduleConfig) -> torch.optim.Optimizer:
    """AdamW or SGD, fused. Biases and batch norms have no weight decay, as is usual for small networks."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=schedule.learning_rate, momentum=MOMENTUM, fused=True)
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, fused=True)


def learning_rate(schedule: ScheduleConfig, step: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then the schedule's decay."""
    peak = schedule.learning_rate
    if step < schedule.warmup_steps:
        return peak * (step + 1) / (schedule.warmup_steps + 1)
    if schedule.decay == "constant":
        return peak
    if schedule.decay == "step":
        return float(peak * GAMMA ** sum(step >= share * schedule.steps for share in schedule.milestones))
    left = max(1, schedule.steps - schedule.warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - schedule.warmup_steps) / left))

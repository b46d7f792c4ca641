"""Absorb fine-tuned models: each model's answers teach a side network, which then stands in for the model."""

from training.absorbing.absorb import Absorbed, AbsorbPlan, absorb, teacher_spec
from training.absorbing.savings import Savings

__all__ = ["AbsorbPlan", "Absorbed", "Savings", "absorb", "teacher_spec"]

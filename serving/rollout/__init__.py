"""Progressive delivery: shadows, comparison of versions, automatic rollback."""

from serving.rollout.auto_rollback import AutoRollback
from serving.rollout.comparison import Compared, Comparison, Comparisons, Disagreement, RolledBack, routed_of
from serving.rollout.shadow import ShadowRunner

__all__ = [
    "AutoRollback",
    "Compared",
    "Comparison",
    "Comparisons",
    "Disagreement",
    "RolledBack",
    "ShadowRunner",
    "routed_of",
]

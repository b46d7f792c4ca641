"""Operators' verbs: gc, verify, export, import. No server needs them."""

from side_registry.maintenance.gc import GRACE, Collected, collect
from side_registry.maintenance.transfer import export_task, import_task
from side_registry.maintenance.verify import Verified, verify

__all__ = [
    "GRACE",
    "Collected",
    "Verified",
    "collect",
    "export_task",
    "import_task",
    "verify",
]

"""Operators' verbs: gc, verify, export, import, webhooks. No server needs them."""

from side_registry.maintenance.gc import GRACE, Collected, collect
from side_registry.maintenance.transfer import export_task, import_task
from side_registry.maintenance.verify import Verified, verify
from side_registry.maintenance.webhooks import Webhooks, read_secrets

__all__ = [
    "GRACE",
    "Collected",
    "Verified",
    "Webhooks",
    "collect",
    "export_task",
    "import_task",
    "read_secrets",
    "verify",
]

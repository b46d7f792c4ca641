"""Decides which side networks are resident: watches the registry, loads, verifies, places and swaps versions."""

from serving.versions.arrivals import Arrivals
from serving.versions.loader import Loader
from serving.versions.pool import PoolState, SidePool
from serving.versions.presence import Presence, address_of
from serving.versions.recent_use import RecentUse
from serving.versions.reconciler import Progress, Reconciler
from serving.versions.visual import ImageEncoder

__all__ = [
    "Arrivals",
    "ImageEncoder",
    "Loader",
    "PoolState",
    "Presence",
    "Progress",
    "RecentUse",
    "Reconciler",
    "SidePool",
    "address_of",
]

"""Decides which side networks are resident: watches the registry, loads, verifies, places and swaps versions."""

from serving.versions.loader import Loader
from serving.versions.pool import PoolState, SidePool
from serving.versions.presence import Presence, address_of
from serving.versions.reconciler import Progress, Reconciler
from serving.versions.visual import ImageEncoder

__all__ = [
    "ImageEncoder",
    "Loader",
    "PoolState",
    "Presence",
    "Progress",
    "Reconciler",
    "SidePool",
    "address_of",
]

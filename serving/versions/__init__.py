"""Decides which side networks are resident: watch the registry, load, verify, place, swap."""

from serving.versions.loader import Loader
from serving.versions.pool import PoolState, SidePool
from serving.versions.presence import Presence, address_of
from serving.versions.reconciler import Progress, Reconciler

__all__ = [
    "Loader",
    "PoolState",
    "Presence",
    "Progress",
    "Reconciler",
    "SidePool",
    "address_of",
]

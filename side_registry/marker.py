"""`registry.json`: what makes a place a registry. Finds it, or makes it where nothing else is."""

import uuid

from pydantic import ValidationError

from side_registry.documents import SCHEMA_VERSION, Document, explain, newer_schema
from side_registry.errors import NotARegistry, RegistryNotFound
from side_registry.store import Store, TooLarge

MARKER = "registry.json"
MAX_MARKER_BYTES = 1 << 16


class Marker(Document):
    schema_version: int = SCHEMA_VERSION
    id: str


def find_marker(store: Store, *, create: bool) -> Marker:
    """The store's marker; with `create` an empty store gets one.

    Raises:
        RegistryNotFound: the store is empty.
        NotARegistry: it holds something else, a marker that cannot be read, or has no put-if-absent.
    """
    if marker := _read(store):
        return marker
    if store.is_empty():
        if not create:
            raise RegistryNotFound(store.url)
        return _make(store)
    if marker := _read(store):  # somebody made it between our two looks
        return marker
    raise NotARegistry(store.url, f"it holds other files and no {MARKER}")


def _make(store: Store) -> Marker:
    ours = Marker(id=uuid.uuid4().hex)
    data = ours.to_json(indent=2)
    if not store.put_new(MARKER, data):
        return _read(store) or ours
    if store.put_new(MARKER, data):  # some stores only look like S3
        store.remove(MARKER)  # else the next to look would take it for a registry
        raise NotARegistry(store.url, "this store overwrites what it was told not to, so writers would lose commits")
    return ours


def _read(store: Store) -> Marker | None:
    try:
        data = store.read(MARKER, MAX_MARKER_BYTES)
        marker = None if data is None else Marker.model_validate_json(data)
    except TooLarge as error:
        raise NotARegistry(store.url, f"{MARKER}: {error}") from None
    except ValidationError as error:
        raise NotARegistry(store.url, f"{MARKER}: {explain(error)}") from None
    if marker and (fault := newer_schema(marker.schema_version)):
        raise NotARegistry(store.url, f"{MARKER}: {fault}")
    return marker

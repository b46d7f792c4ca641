"""`registry.json`: the file that makes a store a registry. Reads it, or writes it into an empty store."""

import uuid

from pydantic import ValidationError

from side_registry.documents import SCHEMA_VERSION, Document, explain, newer_schema
from side_registry.errors import NotARegistry, RegistryNotFound
from side_registry.store import BadObject, Store

MARKER = "registry.json"
MAX_MARKER_BYTES = 1 << 16


class Marker(Document):
    """The marker: `id` is random and names the registry for ever."""

    schema_version: int = SCHEMA_VERSION
    id: str


def find_marker(store: Store, *, create: bool) -> Marker:
    """The store's marker; with `create` an empty store gets one.

    Raises:
        RegistryNotFound: the store is empty.
        NotARegistry: it holds something else, a marker that cannot be read, or has no put-if-absent.
    """
    if marker := read_marker(store):
        return marker
    if store.is_empty():
        if not create:
            raise RegistryNotFound(store.url)
        return _make(store)
    if marker := read_marker(store):  # another process made it between the two reads
        return marker
    raise NotARegistry(store.url, f"it holds other files and no {MARKER}")


def _make(store: Store) -> Marker:
    marker = Marker(id=uuid.uuid4().hex)
    data = marker.to_json(indent=2)
    if not store.put_new(MARKER, data):
        return read_marker(store) or marker
    if store.put_new(MARKER, data):  # a store with S3's API and without put-if-absent
        store.remove(MARKER)  # so that the next open does not take it for a registry
        raise NotARegistry(store.url, "this store overwrites what it was told not to, so writers would lose commits")
    return marker


def read_marker(store: Store) -> Marker | None:
    """The store's marker; None when there is none. Raises NotARegistry: it cannot be read."""
    try:
        data = store.read(MARKER, MAX_MARKER_BYTES)
        marker = None if data is None else Marker.model_validate_json(data)
    except BadObject as error:
        raise NotARegistry(store.url, f"{MARKER}: {error}") from None
    except ValidationError as error:
        raise NotARegistry(store.url, f"{MARKER}: {explain(error)}") from None
    if marker and (fault := newer_schema(marker.schema_version)):
        raise NotARegistry(store.url, f"{MARKER}: {fault}")
    return marker

"""Features of images, bounded in bytes; the least recently used go first. Not for several threads at once.

It belongs to one encoder. If several shared it, the key would need their fingerprint.
"""

from collections import OrderedDict

from serving.engine import EncodedImage

ENTRY_BYTES = 1024
"""What an entry takes besides its features: names, a tensor's header, places in tables."""

Key = tuple[str, str]
"""(tenant, digest of the image's bytes)."""


class FeatureCache:
    """Encoded images by key, in at most `limit` bytes; 0 keeps none."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        """Of all entries."""
        self._entries: OrderedDict[Key, EncodedImage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Key) -> EncodedImage | None:
        """Return an image, which is then the last to be evicted."""
        image = self._entries.get(key)
        if image is not None:
            self._entries.move_to_end(key)
        return image

    def keep(self, key: Key, image: EncodedImage) -> int:
        """Keep an image, and evict others to make room; returns how many. One larger than the limit is not kept."""
        if (size := bytes_of(image)) > self.limit:
            return 0
        if (before := self._entries.pop(key, None)) is not None:
            self.bytes -= bytes_of(before)
        self._entries[key] = image
        self.bytes += size
        evicted = 0
        while self.bytes > self.limit:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= bytes_of(oldest)
            evicted += 1
        return evicted


def bytes_of(image: EncodedImage) -> int:
    """What an entry counts: the memory that its features keep allocated, for a view all of its storage."""
    return image.features.untyped_storage().nbytes() + ENTRY_BYTES

"""One artifact that arrives in pieces: a manifest, then the bytes of its files, in a folder of its own.

Bounded by what the manifest announces. Digests are the registry's to check, when all is there.
"""

from pathlib import Path

from protos import sidecast_pb2 as pb
from serving.errors import InvalidInput
from side_registry.errors import ArtifactError
from side_registry.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, need_side_network, parse_manifest

UPLOADED = "the uploaded run"


class Upload:
    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.header: pb.PublishRequest.Header | None = None
        self._folder, self._max_bytes = folder, max_bytes
        self._left: dict[str, int] = {}

    def take(self, request: pb.PublishRequest) -> None:
        """Blocks on the disk.

        Raises:
            InvalidInput, ArtifactError: the pieces are no artifact.
        """
        if request.WhichOneof("part") == "header":
            self._begin(request.header)
        elif request.WhichOneof("part") == "chunk":
            self._append(request.chunk)

    def finish(self) -> pb.PublishRequest.Header:
        """The header, once all bytes are there."""
        if self.header is None:
            raise InvalidInput("header", "is missing; send it first")
        for name, left in self._left.items():
            if left:
                raise ArtifactError(UPLOADED, f"the upload ended {left} bytes before the end of {name}")
        return self.header

    def _begin(self, header: pb.PublishRequest.Header) -> None:
        if self.header is not None:
            raise InvalidInput("header", "came twice; publish one run at a time")
        if len(header.manifest) > MAX_MANIFEST_BYTES:
            raise ArtifactError(UPLOADED, f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
        manifest = parse_manifest(header.manifest, UPLOADED)
        self._check_size(manifest)
        need_side_network(manifest, UPLOADED)
        self._left = {name: blob.size for name, blob in manifest.files.items()}
        for name in self._left:
            (self._folder / name).touch()
        (self._folder / MANIFEST).write_bytes(header.manifest)
        self.header = header

    def _check_size(self, manifest: Manifest) -> None:
        total = sum(blob.size for blob in manifest.files.values())
        if total > self._max_bytes:
            raise ArtifactError(UPLOADED, f"its files are {total} bytes, this server takes {self._max_bytes}")

    def _append(self, chunk: pb.PublishRequest.Chunk) -> None:
        if self.header is None:
            raise InvalidInput("header", "must come before the files' bytes")
        if chunk.file not in self._left:
            raise InvalidInput("chunk.file", f"is none of the manifest's files ({', '.join(self._left)})")
        if len(chunk.data) > self._left[chunk.file]:
            raise ArtifactError(UPLOADED, f"{chunk.file} has more bytes than its manifest says")
        with (self._folder / chunk.file).open("ab") as file:
            file.write(chunk.data)
        self._left[chunk.file] -= len(chunk.data)

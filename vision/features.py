"""Features that were extracted before, by image id: safetensors and HDF5 files, read image by image.

safetensors: one tensor (tokens, width) an image, named by its id. HDF5: a data set of that shape named by the id, or a
group of that name with a data set `features`, as the authors of CLIP-T5 write them.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vision.errors import FeaturesError

HDF5_SUFFIXES = (".h5", ".hdf5")
GROUP_MEMBER = "features"


class FeatureFile(Mapping[str, Tensor]):
    """Features by image id; each is read from the file when it is asked for. Safe to use from several threads.

    The file is opened again in a process that was forked or that got the object by pickle.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._is_hdf5 = self.path.suffix.lower() in HDF5_SUFFIXES
        self._lock = threading.Lock()
        self._opened: Any = None
        self._process = 0
        if not self._is_hdf5 and self.path.suffix.lower() != ".safetensors":
            kinds = ", ".join((".safetensors", *HDF5_SUFFIXES))
            raise FeaturesError(f"{self.path} is no file of features; their names end in {kinds}")
        self._ids: frozenset[str] | None = None
        with self._lock:
            opened = self._open()
            if not self._is_hdf5:
                self._ids = frozenset(opened.keys())

    def __getitem__(self, image_id: str) -> Tensor:
        """Read an image's features: (tokens, width) float32.

        Raises:
            KeyError: the file has no such image.
            FeaturesError: what it has is no such tensor, or is NaN or infinite somewhere.
        """
        with self._lock:
            features = self._read(image_id)
        if features.ndim != 2 or not features.is_floating_point():
            shape = f"{tuple(features.shape)} {features.dtype}"
            raise FeaturesError(f"{self.path}: {image_id} is {shape}; features are (tokens, width), of floats")
        features = features.float()
        if not torch.isfinite(features).all():
            raise FeaturesError(f"{self.path}: {image_id} has values that are NaN or infinite; extract it again")
        return features

    def __iter__(self) -> Iterator[str]:
        return iter(self._all_ids())

    def __len__(self) -> int:
        return len(self._all_ids())

    def __contains__(self, image_id: object) -> bool:
        if not isinstance(image_id, str):
            return False
        with self._lock:
            return image_id in self._ids if self._ids is not None else self._data_set(image_id) is not None

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        with self._lock:
            if self._is_hdf5 and self._opened is not None and self._process == os.getpid():
                self._opened.close()
            self._opened = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def _open(self) -> Any:
        if self._opened is None or self._process != os.getpid():
            self._opened = _open_hdf5(self.path) if self._is_hdf5 else _open_safetensors(self.path)
            self._process = os.getpid()
        return self._opened

    def _all_ids(self) -> frozenset[str]:
        """All images; an HDF5 file is walked once, when somebody asks."""
        with self._lock:
            if self._ids is None:
                ids: list[str] = []

                def note(name: str, entry: Any) -> None:
                    if _is_data_set(entry):
                        ids.append(name.removesuffix(f"/{GROUP_MEMBER}"))

                self._open().visititems(note)
                self._ids = frozenset(ids)
            return self._ids

    def _data_set(self, image_id: str) -> Any:
        """The data set of an image in an HDF5 file; None if there is none."""
        opened = self._open()
        for name in (f"{image_id}/{GROUP_MEMBER}", image_id):
            if _is_data_set(entry := opened.get(name)):
                return entry
        return None

    def _read(self, image_id: str) -> Tensor:
        try:
            if self._ids is not None and image_id not in self._ids:
                raise KeyError(image_id)
            if not self._is_hdf5:
                return self._open().get_tensor(image_id)
            if (data_set := self._data_set(image_id)) is None:
                raise KeyError(image_id)
            return torch.from_numpy(data_set[()])
        except (SafetensorError, OSError, TypeError, ValueError) as error:
            raise FeaturesError(f"{self.path}: {image_id} does not read: {error}; extract it again") from None


def _is_data_set(entry: Any) -> bool:
    return hasattr(entry, "dtype")


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise FeaturesError(f"{path} does not open as a safetensors file: {error}") from None


def _open_hdf5(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise FeaturesError(f"{path} is an HDF5 file; install sidecast[hdf5] to read it") from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise FeaturesError(f"{path} does not open as an HDF5 file: {error}") from None

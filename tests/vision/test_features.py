"""Features that were extracted before, by image id."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vision import FeatureFile, FeaturesError

Write = Callable[[Path, dict[str, torch.Tensor]], Path]
STORED = {f"train/{number}": torch.randn(4, 3, generator=torch.Generator().manual_seed(number)) for number in range(5)}


def write_safetensors(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, folder / "features.safetensors")
    return folder / "features.safetensors"


def write_hdf5(folder: Path, tensors: dict[str, torch.Tensor], member: str = "") -> Path:
    h5py = pytest.importorskip("h5py", reason="needs h5py: pip install 'sidecast[hdf5]'")
    with h5py.File(folder / "features.h5", "w") as file:
        for name, tensor in tensors.items():
            file[f"{name}{member}"] = tensor.numpy()
    return folder / "features.h5"


def write_hdf5_groups(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """As CLIP-T5's authors: <image>/features."""
    return write_hdf5(folder, tensors, "/features")


WRITERS = [write_safetensors, write_hdf5, write_hdf5_groups]


@pytest.mark.parametrize("write", WRITERS)
def test_features_come_back_by_image(write: Write, tmp_path: Path) -> None:
    features = FeatureFile(write(tmp_path, STORED))
    assert torch.equal(features["train/3"], STORED["train/3"])
    assert "train/3" in features
    assert "train" not in features
    assert "train/9" not in features
    assert 3 not in features
    assert set(features) == set(STORED)
    assert len(features) == 5
    with pytest.raises(KeyError, match="train/9"):
        features["train/9"]


@pytest.mark.parametrize("write", WRITERS)
def test_a_closed_or_pickled_file_opens_again(write: Write, tmp_path: Path) -> None:
    features = FeatureFile(write(tmp_path, STORED))
    features.close()
    assert torch.equal(features["train/1"], STORED["train/1"])
    copy = pickle.loads(pickle.dumps(features))
    assert torch.equal(copy["train/1"], STORED["train/1"])


@pytest.mark.parametrize("write", WRITERS)
def test_threads_read_at_the_same_time(write: Write, tmp_path: Path) -> None:
    features = FeatureFile(write(tmp_path, STORED))
    names = list(STORED) * 20
    with ThreadPoolExecutor(4) as pool:
        for name, found in zip(names, pool.map(features.__getitem__, names), strict=True):
            assert torch.equal(found, STORED[name])


@pytest.mark.parametrize("write", WRITERS)
def test_half_precision_becomes_float32(write: Write, tmp_path: Path) -> None:
    stored = {"a": STORED["train/0"].half()}
    found = FeatureFile(write(tmp_path, stored))["a"]
    assert found.dtype == torch.float32
    assert torch.equal(found, stored["a"].float())


@pytest.mark.parametrize("write", WRITERS)
def test_what_are_no_features_is_refused(write: Write, tmp_path: Path) -> None:
    stored = {"flat": torch.zeros(3), "ints": torch.zeros(2, 3, dtype=torch.int64), "nan": torch.full((2, 3), np.nan)}
    features = FeatureFile(write(tmp_path, stored))
    for name, says in (("flat", r"\(3,\)"), ("ints", "int64"), ("nan", "NaN")):
        with pytest.raises(FeaturesError, match=says):
            features[name]


@pytest.mark.parametrize("write", [write_safetensors, write_hdf5])
def test_a_damaged_file_does_not_open(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path, STORED)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FeaturesError, match="does not open"):
        FeatureFile(path)


def test_another_kind_of_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FeaturesError, match="names end in"):
        FeatureFile(tmp_path / "features.npz")
    with pytest.raises(FeaturesError, match="does not open"):
        FeatureFile(tmp_path / "features.safetensors")


def test_hdf5_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(FeaturesError, match=r"install sidecast\[hdf5\]"):
        FeatureFile(tmp_path / "features.h5")

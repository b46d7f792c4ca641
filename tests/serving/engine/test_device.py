"""Which device serves, and whether a backbone fits it."""

from pathlib import Path

import pytest

from serving.config import ServeConfig
from serving.engine import device as fitting
from serving.engine.device import BackboneTooLarge, NoDevice, check_fits, free_bytes, pick_device


def config(backbone: Path, **settings: str) -> ServeConfig:
    return ServeConfig.from_values({"backbone": str(backbone), "registry": "memory://", **settings})


def test_a_backbone_that_is_larger_than_what_is_free_is_refused(tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "free_bytes", lambda device: 10_000)
    with pytest.raises(BackboneTooLarge, match=r"needs .* GiB on cpu, .* 0.0 GiB free; .*--quantize int8") as caught:
        check_fits(config(tiny_t5, dtype="float32"), "cpu")
    whole = caught.value.needed
    for settings, share in (({"dtype": "bfloat16"}, 2), ({"quantize": "int8"}, 4), ({"quantize": "int4"}, 8)):
        with pytest.raises(BackboneTooLarge) as caught:
            check_fits(config(tiny_t5, **settings), "cpu")
        assert caught.value.needed == whole // share
    monkeypatch.setattr(fitting, "free_bytes", lambda device: whole)
    check_fits(config(tiny_t5, dtype="float32"), "cpu")


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "CGROUP", tmp_path)
    whole = free_bytes("cpu")
    assert whole > 10_000
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes("cpu") > 10_000
    (tmp_path / "memory.max").write_text("5000\n")
    assert free_bytes("cpu") == 4000


def test_files_that_idle_in_memory_are_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4500\n")
    (tmp_path / "memory.stat").write_text("anon 500\nfile 4000\ninactive_file 3000\nactive_file 1000\n")
    assert free_bytes("cpu") == 3500
    for damaged in ("anon 500\n", "inactive_file many\n", "?\n"):
        (tmp_path / "memory.stat").write_text(damaged)
        assert free_bytes("cpu") == 500


def test_a_device_that_is_not_there_is_named() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in ("cpu", "cuda")
    for name in ("cuda:99", "abacus"):
        with pytest.raises(NoDevice, match=f"device {name} cannot be used here: .*; choose cpu"):
            pick_device(name)

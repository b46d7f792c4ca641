"""Which device serves, whether a backbone fits it, and work on other threads."""

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from serving.config import ServeConfig
from serving.engine import device
from serving.engine.device import (
    BackboneTooLarge,
    NoDevice,
    check_fits,
    free_bytes,
    pick_device,
    run_apart,
    run_aside,
    run_steps_aside,
    running_aside,
)
from tests.vision.folders import make_model, save
from vision import EncoderError, count_weights


def config(backbone: Path, **settings: str) -> ServeConfig:
    return ServeConfig.from_values({"backbone": str(backbone), "registry": "memory://", **settings})


def test_a_backbone_larger_than_the_free_memory_is_refused(tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "free_bytes", lambda name: 10_000)
    with pytest.raises(BackboneTooLarge, match=r"needs .* GiB on cpu, .* 0.0 GiB free; .*--quantize int8") as caught:
        check_fits(config(tiny_t5, dtype="float32"), "cpu")
    whole = caught.value.needed
    for settings, share in (({"dtype": "bfloat16"}, 2), ({"quantize": "int8"}, 4), ({"quantize": "int4"}, 8)):
        with pytest.raises(BackboneTooLarge) as caught:
            check_fits(config(tiny_t5, **settings), "cpu")
        assert caught.value.needed == whole // share
    monkeypatch.setattr(device, "free_bytes", lambda name: whole)
    check_fits(config(tiny_t5, dtype="float32"), "cpu")


def test_a_vision_encoder_must_fit_too(tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("clip")
    folder = save(tmp_path / "clip", "clip", model)
    count = count_weights(folder)
    assert 0 < count <= model.vision_model.num_parameters(), "the text tower is not loaded"
    monkeypatch.setattr(device, "free_bytes", lambda name: 0)
    with pytest.raises(BackboneTooLarge) as alone:
        check_fits(config(tiny_t5, dtype="float32"), "cpu")
    with pytest.raises(BackboneTooLarge, match=r"with vision encoder .*clip needs") as both:
        check_fits(config(tiny_t5, dtype="float32", vision=str(folder)), "cpu")
    assert both.value.needed - alone.value.needed == 4 * count
    with pytest.raises(EncoderError, match=r"has no config\.json"):
        check_fits(config(tiny_t5, vision=str(tmp_path / "gone")), "cpu")


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    whole = free_bytes("cpu")
    assert whole > 10_000
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes("cpu") > 10_000
    (tmp_path / "memory.max").write_text("5000\n")
    assert free_bytes("cpu") == 4000


def test_memory_of_the_file_cache_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "CGROUP", tmp_path)
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


class Load:
    """Something large."""


def fail(held: "list[weakref.ref[Load]]") -> None:
    load = Load()
    held.append(weakref.ref(load))
    raise KeyError("boom")


def test_the_thread_is_a_daemon_and_ends_with_its_work() -> None:
    thread = run_apart(threading.current_thread)
    assert thread is not threading.current_thread()
    assert thread.daemon
    assert not thread.is_alive()
    assert run_apart(max, 1, 2) == 2


def test_what_it_raises_is_raised_and_holds_nothing_afterwards() -> None:
    held: list[weakref.ref[Load]] = []
    gc.disable()
    try:
        with pytest.raises(KeyError, match="boom"):
            run_apart(fail, held)
        assert held[0]() is None
    finally:
        gc.enable()


def test_what_runs_aside_takes_one_core_and_leaves_the_others_as_they_were() -> None:
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert run_aside(torch.get_num_threads) == 1
        assert (run_aside(running_aside), running_aside()) == (1, 0)
        with pytest.raises(KeyError):
            run_aside(fail, [])
        assert (torch.get_num_threads(), run_apart(torch.get_num_threads)) == (3, 3)
    finally:
        torch.set_num_threads(usual)


def test_steps_run_aside_one_by_one_and_their_error_is_raised() -> None:
    cores: list[int] = []

    def steps() -> Iterator[None]:
        for _ in range(2):
            cores.append(torch.get_num_threads())
            yield
        raise KeyError

    made = run_steps_aside(steps())
    next(made)
    assert cores == [1]
    next(made)
    with pytest.raises(KeyError):
        next(made)
    assert cores == [1, 1]
    assert list(run_steps_aside(iter([None, None]))) == [None, None]

"""Versions that read images: which of them a server loads, and the replay of golden examples with images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ladder import Backbone, Tokenizer
from serving.config import LoadConfig
from serving.engine import EncodedImage
from serving.errors import CorruptSide, GoldenMismatch, IncompatibleSide, LoadError, LoadFailed, OutOfMemory
from serving.versions.loader import Loader
from side_registry import Manifest, Registry, TaskSpec
from side_registry.manifest import VisionRef
from tests.serving.versions.kit import refusal
from tests.serving.visual_kit import BROKEN, FakeEncoder, make_visual_run, visual_spec

Publish = Callable[..., None]


@pytest.fixture
def publish_visual(registry: Registry, backbone: Backbone, tokenizer: Tokenizer, tmp_path: Path) -> Publish:
    """A function that publishes a random side network that reads images, as sst2."""

    def make(spec: TaskSpec | None = None, **how: Any) -> None:
        registry.publish(make_visual_run(tmp_path / "run", backbone, tokenizer, spec or visual_spec("sst2"), **how))

    return make


@pytest.fixture
def load(registry: Registry, backbone: Backbone, tokenizer: Tokenizer) -> Callable[[FakeEncoder | None], Loader]:
    return lambda encoder: Loader(registry, backbone, tokenizer, LoadConfig(), images=encoder)


@pytest.mark.parametrize(
    ("spec", "head"),
    [
        (visual_spec("sst2"), "linear"),
        (visual_spec("sst2", images=("left", "right")), "text"),
        (visual_spec("sst2", "text", max_new_tokens=3), "text"),
    ],
)
def test_a_visual_version_loads_and_its_golden_images_are_encoded_once(
    publish_visual: Publish, load, spec: TaskSpec, head: str
) -> None:
    publish_visual(spec, head=head)
    encoder = FakeEncoder()
    resident = load(encoder).load("sst2", 1)
    assert resident.side.config.visual is not None
    assert sorted(encoder.encoded) == [b"blue", b"green", b"red"]


def test_without_a_replay_no_image_is_read(
    publish_visual: Publish, registry: Registry, backbone: Backbone, tokenizer: Tokenizer
) -> None:
    publish_visual(files=(b"red",))
    blob = registry.manifest("sst2", 1).files["golden-0.png"].sha256
    (Path(registry.url) / "blobs" / "sha256" / blob).unlink()
    encoder = FakeEncoder()
    assert Loader(registry, backbone, tokenizer, LoadConfig(replay_examples=False), images=encoder).load("sst2", 1)
    assert encoder.encoded == []


def other_image(manifest: Manifest) -> Manifest:
    """The first example has the second one's image."""
    first, second, *others = manifest.examples
    return manifest.model_copy(
        update={"examples": (first.model_copy(update={"images": second.images}), second, *others)}
    )


def test_an_example_whose_image_is_another_one_is_named(publish_visual: Publish, load) -> None:
    publish_visual(head="linear", edit=other_image)
    assert "golden example 0" in str(refusal(load(FakeEncoder()), GoldenMismatch))


def trained_with(vision: VisionRef | None) -> dict[str, Any]:
    return {"edit": lambda manifest: manifest.model_copy(update={"vision": vision})}


OTHER = VisionRef(name="clip-b", fingerprint="sha256:other")


@pytest.mark.parametrize(
    ("how", "encoder", "error", "words"),
    [
        ({}, None, IncompatibleSide, ("tiny-vit (sha256:eyes)", "no vision encoder", "serve with --vision FOLDER")),
        (trained_with(OTHER), FakeEncoder(), IncompatibleSide, ("clip-b (sha256:other)", "tiny-vit (sha256:eyes)")),
        (trained_with(None), FakeEncoder(), IncompatibleSide, ("does not name", "tiny-vit (sha256:eyes)")),
        (trained_with(None), None, IncompatibleSide, ("does not name", "serve with --vision FOLDER")),
        ({}, FakeEncoder(width=7), IncompatibleSide, ("6 features", "tiny-vit (sha256:eyes) with 7")),
        (
            {"spec": visual_spec("sst2", images=("left", "right")), "visual": {"images": 1}},
            FakeEncoder(),
            CorruptSide,
            ("has 2 images", "at most 1"),
        ),
        ({"visual": None}, FakeEncoder(), CorruptSide, ("has the images image", "reads none")),
        ({"files": (b"red", BROKEN)}, FakeEncoder(), CorruptSide, ("golden-1.png", "no known format")),
    ],
    ids=lambda value: "",
)
def test_a_visual_version_that_does_not_fit_is_refused(
    publish_visual: Publish, load, how: dict[str, Any], encoder, error: type[LoadError], words: tuple[str, ...]
) -> None:
    changes = how.copy()
    if "visual" in changes:
        visual = changes.pop("visual")
        changes["edit"] = lambda manifest: manifest.model_copy(update={"side": _with_visual(manifest.side, visual)})
    publish_visual(**changes)
    text = str(refusal(load(encoder), error))
    assert all(word in text for word in words), text


def _with_visual(side: dict[str, Any], visual: dict[str, Any] | None) -> dict[str, Any]:
    """A side network's settings with other ones of its images; None: it reads none."""
    return side | {"visual": None if visual is None else side["visual"] | visual}


def test_a_golden_image_that_the_store_has_lost_is_a_transient_failure(
    publish_visual: Publish, registry: Registry, load
) -> None:
    publish_visual()
    blob = registry.manifest("sst2", 1).files["golden-1.png"].sha256
    (Path(registry.url) / "blobs" / "sha256" / blob).unlink()
    error = refusal(load(FakeEncoder()), CorruptSide)
    assert error.transient
    assert blob in str(error)


def test_an_encoder_that_cannot_encode_now_is_a_transient_failure(publish_visual: Publish, load) -> None:
    class Busy(FakeEncoder):
        def encode_now(self, images) -> list[EncodedImage]:
            raise OutOfMemory(1)

    publish_visual()
    assert refusal(load(Busy()), LoadFailed).transient

"""A server's components with a real, tiny vision encoder and a side network that reads images."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import torch

from ladder import Backbone, ClassAnswer, Images, Row, Tokenizer, VisualConfig, answer
from ladder.side.checkpoint import save_side
from serving.components import assemble
from serving.config import EngineConfig, ImageConfig, ServeConfig
from serving.engine import Resident
from serving.metrics import Metrics
from serving.pipeline import Prediction
from side_registry import SIDE_NETWORK, Registry, TaskRef, UnknownTask, write_manifest
from side_registry.manifest import VisionRef
from tests.serving.kit import ids_of, make_resident, make_run, make_spec, predict, predict_tasks
from tests.vision.folders import make_model, save
from tests.vision.images import noise, saved
from vision import VisionEncoder, decode_image, load_encoder

VQA = make_spec("vqa", template="vqa: {question}", images=("image",))
CAT, DOG = saved(noise(40, 50)), saved(noise(64, 32, seed=1), "JPEG")


def publish(registry: Registry, folder: Path, resident: Resident, encoder: VisionEncoder) -> None:
    folder.mkdir()
    save_side(folder / SIDE_NETWORK, resident.side)  # type: ignore[arg-type]
    vision = VisionRef(name=encoder.name, fingerprint=encoder.fingerprint)
    write_manifest(folder, resident.manifest.model_copy(update={"vision": vision, "provenance": {"seed": 0}}))
    registry.publish(folder)


def expected(
    backbone: Backbone, tokenizer: Tokenizer, resident: Resident, encoder: VisionEncoder, question: str, image: bytes
) -> tuple[float, ...]:
    """The scores of one row alone, by the library."""
    pixels = encoder.preprocess([decode_image(image, edge=encoder.edge)])

    def encode(names: Sequence[tuple[str, str]]) -> Images:
        return Images(features=encoder(pixels), rows=[(0,)] * len(names))

    ids = ids_of(tokenizer, f"vqa: {question}")
    row = Row(ids=ids, side=resident.side, answerer=resident.answerer, images=("image",))
    [outcome] = answer(backbone, [row], encode_images=encode)
    assert isinstance(outcome, ClassAnswer), outcome
    return outcome.scores


def scores(prediction: Prediction | Exception) -> list[tuple[float, ...]]:
    assert isinstance(prediction, Prediction), prediction
    return [found.scores for found in prediction.answers if isinstance(found, ClassAnswer)]


async def test_questions_about_images_are_answered_as_the_library_answers_them(
    tmp_path: Path, tiny_t5: Path, backbone: Backbone, tokenizer: Tokenizer
) -> None:
    folder = save(tmp_path / "dino", "dinov2", make_model("dinov2"))
    encoder = load_encoder(folder, layer=2)
    registry = Registry.open(tmp_path / "registry", create=True)
    resident = make_resident(backbone, tokenizer, VQA, visual=VisualConfig(features=encoder.width, tokens=4))
    publish(registry, tmp_path / "run", resident, encoder)
    registry.publish(make_run(tmp_path / "text", backbone, tokenizer, make_spec("sst2")))
    config = ServeConfig(
        backbone=str(tiny_t5),
        registry=str(tmp_path / "registry"),
        dtype="float32",
        threads=1,
        engine=EngineConfig(warmup_s=0),
        images=ImageConfig(vision=str(folder), vision_layer=2),
    )
    metrics = Metrics()
    parts = await asyncio.to_thread(assemble, config, metrics)
    try:
        asked = [("is it a cat?", CAT), ("is it a cat?", DOG), ("or a dog?", DOG)]
        rows = [{"question": question, "image": image, "sentence": question} for question, image in asked]
        alone = [expected(backbone, tokenizer, resident, encoder, *row) for row in asked]
        assert len({round(first, 4) for first, *_ in alone}) == 3, "question and image both matter"
        for _ in range(2):
            found = scores(await predict(parts.service, "vqa", rows))
            torch.testing.assert_close(torch.tensor(found), torch.tensor(alone), atol=1e-4, rtol=0)
        both = await predict_tasks(parts.service, [TaskRef("vqa"), TaskRef("sst2")], rows)
        torch.testing.assert_close(torch.tensor(scores(both[0])), torch.tensor(alone), atol=1e-4, rtol=0)
        assert len(scores(both[1])) == 3
        [unknown] = await predict_tasks(parts.service, [TaskRef("nobody")], rows)
        assert isinstance(unknown, UnknownTask), "not that an image is read by no task"
        assert metrics.registry.get_sample_value("sidecast_images_encoded_total") == 2
        assert metrics.registry.get_sample_value("sidecast_image_cache_hits_total") == 4
    finally:
        await parts.service.close()
        await asyncio.to_thread(parts.stop)

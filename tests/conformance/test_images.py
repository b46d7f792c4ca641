"""Tasks that read images: their answers, their caches, their versions and their mistakes, by every service."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ladder.answers import Answer, ClassAnswer, TextAnswer
from protos import open_inference_pb2 as oip
from protos import sidecast_pb2 as pb
from serving.client.client import Client
from serving.client.errors import SidecastError
from side_registry import Manifest
from tests.conformance.targets import Target, World, outcome
from tests.conformance.test_changes import ACKNOWLEDGED_S, acknowledged
from tests.sidecast.cli_kit import callers, done, sidecast, wait_until
from tests.training import pictures
from tests.vision.images import noise, png, saved
from tests.visual_runs import BLUE, COLOURS, EQUAL, MAX_IMAGE_BYTES, RED, SAYS

pytestmark = pytest.mark.timeout(300)

ROWS = [{"question": "what", "image": RED}, {"question": "red", "image": BLUE}, {"question": "what", "image": BLUE}]
ENCODED, IMAGE_HITS = "sidecast_images_encoded_total", "sidecast_image_cache_hits_total"
PAIRS = [{"left": RED, "right": BLUE}, {"left": BLUE, "right": BLUE}]


def wire(row: dict[str, Any]) -> pb.Row:
    texts = {name: value for name, value in row.items() if isinstance(value, str)}
    images = {name: value for name, value in row.items() if isinstance(value, bytes)}
    return pb.Row(fields=texts, images=images)


def infer(task: str, rows: list[dict[str, Any]], **how: Any) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=task, **how)
    for name in rows[0]:
        values = [row[name] if isinstance(row[name], bytes) else row[name].encode() for row in rows]
        request.inputs.add(name=name, datatype="BYTES", shape=[len(rows)]).contents.bytes_contents.extend(values)
    return request


def scores(answers: Any) -> list[list[float]]:
    """Each answer's scores, of the client's classifications."""
    return [list(answer.scores.values()) for answer in answers]


def check(scores: Any, expected: list[Answer]) -> None:
    """Compare the scores of rows with the model's."""
    assert len(scores) == len(expected)
    for row, answer in zip(scores, expected, strict=True):
        assert isinstance(answer, ClassAnswer)
        assert list(row) == pytest.approx(answer.scores, abs=1e-4)


def test_the_client_sends_bytes_files_and_pil_images(target: Target, world: World, tmp_path: Path) -> None:
    file = tmp_path / "blue.png"
    file.write_bytes(BLUE)
    sent = [{"question": "what", "image": RED}, {"question": "red", "image": file}]
    sent.append({"question": "what", "image": Image.open(io.BytesIO(BLUE))})
    answers = target.client.predict("colours", sent)
    expected = world.visual.local(COLOURS, ROWS)
    check(scores(answers), expected)
    with pytest.raises(AssertionError):  # the image matters
        check(scores(answers[:1]), expected[2:])
    check(scores(target.client.predict("equal", PAIRS)), world.visual.local(EQUAL, PAIRS))


def test_the_command_line_sends_files(target: Target, world: World, tmp_path: Path) -> None:
    files = {"red": tmp_path / "red.png", "blue": tmp_path / "blue.png"}
    files["red"].write_bytes(RED)
    files["blue"].write_bytes(BLUE)
    server = ("--server", target.address)
    ran = done(
        "predict", "colours", "what", "--image", files["red"], "--image", f"image={files['blue']}", *server, "--json"
    )
    expected = world.visual.local(COLOURS, [ROWS[0], ROWS[2]])
    check([answer["scores"].values() for answer in ran.document["answers"]], expected)
    both = ("--image", f"right={files['blue']}", "--image", f"left={files['red']}")
    ran = done("predict", "equal", *both, *server, "--json")
    check([answer["scores"].values() for answer in ran.document["answers"]], world.visual.local(EQUAL, PAIRS[:1]))
    assert (
        "one.png cannot be read"
        in sidecast("predict", "colours", "what", "--image", "http://a/one.png", *server).mistake
    )


def test_open_inference_answers_what_the_model_does(target: Target, world: World) -> None:
    described = target.oip.ModelMetadata(oip.ModelMetadataRequest(name="colours"))
    assert [(tensor.name, tensor.datatype) for tensor in described.inputs] == [
        ("question", "BYTES"),
        ("image", "BYTES"),
    ]
    response = target.oip.ModelInfer(infer("colours", ROWS))
    outputs = {tensor.name: tensor.contents for tensor in response.outputs}
    flat = list(outputs["scores"].fp32_contents)
    width = len(COLOURS.labels)
    check([flat[width * row : width * (row + 1)] for row in range(len(ROWS))], world.visual.local(COLOURS, ROWS))


def test_one_call_asks_text_tasks_and_image_tasks(target: Target, world: World) -> None:
    row = ROWS[0] | PAIRS[0] | {"sentence": "a gripping film"}
    refs = [pb.TaskRef(task=task) for task in ("sst2", "colours", "equal", "titles", "says")]
    results = target.native.PredictTasks(pb.PredictTasksRequest(tasks=refs, rows=[wire(row)])).results
    assert [result.WhichOneof("outcome") for result in results] == ["prediction"] * len(refs), results
    by_task = {result.task.task: result.prediction.answers for result in results}
    expected = world.expected("sst2")[0].expected["scores"]
    assert list(by_task["sst2"][0].classification.scores) == pytest.approx(expected, abs=1e-5)
    check([by_task["colours"][0].classification.scores], world.visual.local(COLOURS, ROWS[:1]))
    check([by_task["equal"][0].classification.scores], world.visual.local(EQUAL, PAIRS[:1]))
    assert [by_task["says"][0].text.text] == _texts(world.visual.local(SAYS, ROWS[:1]))
    assert by_task["titles"][0].text.text == world.expected("titles")[0].expected["text"]


def _texts(answers: list[Answer]) -> list[str]:
    assert all(isinstance(answer, TextAnswer) for answer in answers)
    return [answer.text for answer in answers if isinstance(answer, TextAnswer)]


def test_a_text_about_an_image_is_streamed(target: Target, world: World) -> None:
    [expected] = _texts(world.visual.local(SAYS, ROWS[:1]))
    *pieces, last = target.native.Generate(pb.GenerateRequest(task="says", row=wire(ROWS[0])))
    assert "".join(piece.text for piece in pieces) == last.generated.text == expected
    stream = target.client.stream("says", ROWS[0])
    assert "".join(piece.text for piece in stream) == expected
    parts = list(target.oip.ModelStreamInfer(iter([infer("says", ROWS[:1])])))
    assert "".join(part.infer_response.outputs[0].contents.bytes_contents[0].decode() for part in parts) == expected


def test_the_second_question_on_an_image_finds_its_features(target: Target, world: World) -> None:
    image = pictures.png("red", 777)
    encoded, hits = (sum(target.counted(name)) for name in (ENCODED, IMAGE_HITS))
    questions = ["what", "red", "blue", "a question that no one asked"]
    for question in questions:
        rows = [{"question": question, "image": image}]
        check(scores(target.client.predict("colours", rows)), world.visual.local(COLOURS, rows))
    encoded = sum(target.counted(ENCODED)) - encoded
    assert 1 <= encoded <= target.followers
    assert sum(target.counted(IMAGE_HITS)) - hits == len(questions) - encoded


def test_a_question_about_other_images_finds_its_activations(target: Target, world: World) -> None:
    misses = sum(target.counted("sidecast_cache_misses_total"))
    for seed in range(5):
        rows = [{"question": "a question about many images", "image": pictures.png("blue", 800 + seed)}]
        check(scores(target.client.predict("colours", rows)), world.visual.local(COLOURS, rows))
    assert 1 <= sum(target.counted("sidecast_cache_misses_total")) - misses <= target.followers


def asked(target: Target, task: str, row: dict[str, Any] = ROWS[0], **how: Any) -> Any:
    with Client(target.address, retry=False) as client:
        return client.predict(task, [row], **how)


def test_swaps_of_a_visual_version_fail_no_call(target: Target, world: World) -> None:
    spec = target.own_visual("eyes-swapped")
    acknowledged(target, target.client.publish(world.visual.run(spec, 1)).generation)
    with (
        Client(target.address, retry=False) as client,
        callers(3, lambda: client.predict(spec.name, ROWS)) as answers,
    ):
        acknowledged(target, target.client.publish(world.visual.run(spec, 2), alias="production").generation)
        assert asked(target, spec.name).version == 2
        acknowledged(target, target.client.rollback(spec.name).generation)
        assert asked(target, spec.name).version == 1
    expected = {seed: world.visual.local(spec, ROWS, seed) for seed in (1, 2)}
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    assert {predictions.version for predictions in answers} == {1, 2}
    for predictions in answers:
        check(scores(predictions), expected[predictions.version])


def test_a_shadow_of_a_visual_version_is_compared(target: Target, world: World) -> None:
    spec = target.own_visual("eyes-shadow")
    client = target.client
    for seed in (1, 2):
        published = client.publish(world.visual.run(spec, seed), alias="production" if seed == 1 else "other")
    acknowledged(target, client.set_route(spec.name, shadows=[published.version]).generation)
    seeds = iter(range(1000))

    def compared() -> bool:
        """Whether the server that answered has compared rows. Sends more rows."""
        row = {"question": "what", "image": pictures.png("red", next(seeds))}
        assert client.predict(spec.name, [row]).version == 1
        shadows = [version for version in client.comparison(spec.name).versions if not version.answers]
        return bool(shadows and shadows[0].compared)

    wait_until(compared, ACKNOWLEDGED_S)


def test_golden_examples_with_images_are_replayed_at_load(target: Target, world: World) -> None:
    spec = target.own_visual("eyes-golden")
    acknowledged(target, target.client.publish(world.visual.run(spec, 1)).generation)
    wrong = world.visual.run(spec, 2, edit=_of_other_answers)
    acknowledged(target, target.client.publish(wrong, alias="production").generation)
    assert asked(target, spec.name).version == 1
    with pytest.raises(SidecastError, match="golden example"):
        asked(target, f"{spec.name}:2")


def _of_other_answers(manifest: Manifest) -> Manifest:
    assert all(example.images for example in manifest.examples)
    examples = [
        example.model_copy(update={"expected": example.expected | {"scores": example.expected["scores"][::-1]}})
        for example in manifest.examples
    ]
    return manifest.model_copy(update={"examples": tuple(examples)})


def test_a_version_of_another_encoder_is_refused_and_the_old_one_serves(target: Target, world: World) -> None:
    spec = target.own_visual("eyes-encoder")
    acknowledged(target, target.client.publish(world.visual.run(spec, 1)).generation)
    other = world.visual.run(spec, 2, edit=_of_another_encoder)
    acknowledged(target, target.client.publish(other, alias="production").generation)
    assert asked(target, spec.name).version == 1
    with pytest.raises(SidecastError, match="serve with --vision FOLDER"):
        asked(target, f"{spec.name}:2")


def _of_another_encoder(manifest: Manifest) -> Manifest:
    assert manifest.vision is not None
    other = manifest.vision.model_copy(update={"fingerprint": "sha256:" + "0" * 64})
    return manifest.model_copy(update={"vision": other})


TOO_LARGE = RED + bytes(MAX_IMAGE_BYTES)
FRAMES = [Image.fromarray(noise(16, 16, seed=seed)) for seed in (0, 1)]
WHAT = {"question": "what"}
MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    # the name: the task, the row, what the error says
    "not an image": ("colours", WHAT | {"image": bytes(range(64))}, r"rows\[1\].image: not an image"),
    "truncated": ("colours", WHAT | {"image": RED[: len(RED) // 2]}, r"rows\[1\].image: a damaged or truncated PNG"),
    "animated": (
        "colours",
        WHAT | {"image": saved(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:])},
        r"rows\[1\].image: an animated image",
    ),
    "a URL": ("colours", WHAT | {"image": b"https://example.com/a.png"}, r"rows\[1\].image: .*URL"),
    "a text where the image belongs": (
        "colours",
        WHAT | {"image": "https://example.com/a.png"},
        r"rows\[1\].image: must be the bytes of an image",
    ),
    "an image where a text belongs": ("colours", {"question": RED, "image": RED}, r"rows\[1\].question: must be text"),
    "no image": ("colours", WHAT, r"rows\[1\].image: is missing"),
    "no second image": ("equal", {"left": RED}, r"rows\[1\].right: is missing"),
    "an image to a text task": ("sst2", {"sentence": RED}, r"rows\[1\].sentence: is an image"),
    "too many bytes": ("colours", WHAT | {"image": TOO_LARGE}, r"rows\[1\].image: .* at most 100,000 are taken"),
    "too many pixels": (
        "colours",
        WHAT | {"image": png(30_000, 30_000)},
        r"rows\[1\].image: an image of 30,000 x 30,000 pixels",
    ),
}
GOOD = {"colours": ROWS[0], "equal": PAIRS[0], "sst2": {"sentence": "dull"}}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_and_others_are_answered(target: Target, mistake: str) -> None:
    task, row, says = MISTAKES[mistake]
    bad = pb.PredictRequest(task=task, rows=[wire(GOOD[task]), wire(row)])
    beside = target.native.Predict.future(pb.PredictRequest(task="colours", rows=[wire(ROWS[0])]))
    refused = outcome(lambda: target.native.Predict(bad))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "INVALID_INPUT")
    assert re.match(says, refused.details), refused.details
    assert len(beside.result().answers) == 1

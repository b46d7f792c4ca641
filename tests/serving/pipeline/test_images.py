"""Images of requests: which rows get which, what is encoded once, and what is wrong with a row's images."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ladder.answering.answerers import Generate
from ladder.answers import ClassAnswer, TextAnswer
from serving.config import BatchConfig
from serving.engine import EncodedImage, EngineRow, Resident
from serving.errors import DeadlineExpired, InvalidInput, NotLoaded, Overloaded
from serving.images import name_of
from serving.metrics import Metrics
from serving.pipeline import Generated, Observation, PredictService, Prompt
from serving.pipeline.preprocessing import read_images, render_rows
from serving.scheduler.batcher import Batcher
from serving.versions.placement import add
from serving.versions.pool import PoolState, SidePool
from side_registry import TaskRef
from side_registry.route import Route
from tests.serving.images.kit import colour_of, make_pool, picture
from tests.serving.kit import empty_resident, make_spec, predict, predict_tasks, stream
from tests.serving.versions.test_pool import task_state

VQA = make_spec("vqa", template="vqa: {question}", images=("image",), max_rows=8)
PAIR = make_spec("nlvr", template="{sentence}", images=("left", "right"))
CAPTION = make_spec("caption", "text", template="caption:", images=("image",))
SPECS = (VQA, PAIR, CAPTION, make_spec("sst2"), *[VQA.model_copy(update={"name": f"vqa{n}"}) for n in range(16)])
ONE, TWO = picture(1), picture(2)


class Bytes:
    def encode_cut(self, texts: Sequence[str], max_tokens: int | None = None) -> tuple[list[list[int]], list[bool]]:
        return [list(text.encode()) for text in texts], [False] * len(texts)


class Worker:
    """Answers each row at once with its prompt and the colours of its images."""

    def __init__(self) -> None:
        self.rows: list[EngineRow] = []

    def step(self, rows: Sequence[EngineRow], cancelled: Sequence[EngineRow], deliver: Any) -> bool:
        self.rows += rows
        for row in rows:
            said = f"{bytes(row.ids).decode()} {[colour_of(image) for image in row.images]}"
            text = TextAnswer(text=said, tokens=(1,))
            label = ClassAnswer(label=said, score=1.0, scores=(1.0,))
            deliver([(row, text if row.resident.spec.kind == "text" else label)])
        return False


class Recorder:
    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def observe(self, seen: Observation) -> None:
        self.seen.append(seen)


class House:
    def __init__(self, *, sees: bool = True) -> None:
        self.worker, self.pool, self.recorder = Worker(), SidePool(), Recorder()
        self.images, self.tower, metrics = make_pool(max_queued_images=4)
        batcher = Batcher(self.worker, BatchConfig(max_wait_s=0), Metrics())
        images = self.images if sees else None
        self.service = PredictService(self.pool, batcher, Bytes(), None, metrics, self.recorder, images)
        state = PoolState(generation=1, wanted=1)
        for spec in SPECS:
            routes = {"production": Route(shares={2: 1})} if spec is VQA else {}
            task = task_state(2, {"production": (1,)}, name=spec.name, routes=routes)
            state = add(replace(state, tasks={**state.tasks, spec.name: task}), resident(spec))
            if routes:
                state = add(state, replace(resident(spec), version=2))
        self.pool.replace(state)

    async def ask(self, task: str, *rows: Any, **options: Any) -> list[str]:
        return said(await predict(self.service, task, rows, **options))


def resident(spec: Any) -> Resident:
    found = empty_resident(spec.name, spec=spec)
    return replace(found, answerer=Generate(max_new_tokens=9, decode=str)) if spec.kind == "text" else found


def said(prediction: Any) -> list[str]:
    assert not isinstance(prediction, Exception), prediction
    return [getattr(answer, "label", "") or answer.text for answer in prediction.answers]


@pytest.fixture
async def house():
    house = House()
    yield house
    await house.service.close()


def vqa(question: str, image: Any = ONE) -> dict[str, Any]:
    return {"question": question, "image": image}


async def test_rows_get_their_images_in_the_specs_order(house: House) -> None:
    assert await house.ask("vqa", vqa("a"), vqa("b", TWO)) == ["vqa: a [1]", "vqa: b [2]"]
    pair = {"right": TWO, "sentence": "s", "left": ONE}
    assert await house.ask("nlvr", pair, {**pair, "right": ONE}) == ["s [1, 2]", "s [1, 1]"]
    assert await house.ask("caption", {"image": TWO}) == ["caption: [2]"]
    assert await house.ask("vqa", Prompt("as it is", {"image": TWO})) == ["as it is [2]"]
    assert await house.ask("caption", Prompt("caption: a red", {"image": TWO})) == ["caption: a red [2]"]


async def test_rows_with_equal_texts_and_images_are_one_row(house: House) -> None:
    rows = [vqa("a"), vqa("a", TWO), vqa("a", bytes(bytearray(ONE)))]
    assert await house.ask("vqa", *rows) == ["vqa: a [1]", "vqa: a [2]", "vqa: a [1]"]
    assert [[image.name for image in row.images] for row in house.worker.rows] == [[name_of(ONE)], [name_of(TWO)]]
    assert sum(house.tower.passes) == 2


async def test_many_tasks_share_an_image_that_is_encoded_once(house: House) -> None:
    refs = [TaskRef(f"vqa{n}") for n in range(16)] + [TaskRef("sst2")]
    outcomes = await predict_tasks(house.service, refs, [{**vqa("a"), "sentence": "s"}])
    assert [said(outcome) for outcome in outcomes] == [["vqa: a [1]"]] * 16 + [["s []"]]
    assert house.tower.passes == [1]
    assert len({id(row.images[0]) for row in house.worker.rows if row.images}) == 1


async def test_a_tenants_rows_and_features_are_its_own(house: House) -> None:
    await house.ask("vqa", vqa("a"), tenant="x")
    await house.ask("vqa", vqa("a"), tenant="y")
    assert house.tower.passes == [1, 1]


async def test_a_text_is_streamed_of_an_image(house: House) -> None:
    [whole] = [
        event async for event in stream(house.service, "caption", {"image": TWO}) if isinstance(event, Generated)
    ]
    assert said(whole.prediction) == ["caption: [2]"]
    with pytest.raises(InvalidInput, match=r"^row\.image: is empty"):
        _ = [event async for event in stream(house.service, "caption", {"image": b""})]
    with pytest.raises(InvalidInput, match=r"^row\.image: .*; send"):
        _ = [event async for event in stream(house.service, "caption", {"image": b"http://x/y.png"})]


@pytest.mark.parametrize(
    ("task", "row", "says"),
    [
        ("vqa", {"question": "a"}, r"rows\[1\]\.image: is missing; task 'vqa' needs question, image"),
        ("nlvr", {"sentence": "a", "left": ONE}, r"rows\[1\]\.right: is missing"),
        ("vqa", vqa("a", "cat.png"), r"rows\[1\]\.image: .*a path or URL is never opened"),
        ("vqa", vqa("a", b""), r"rows\[1\]\.image: is empty"),
        ("vqa", vqa("a", b"no image"), r"rows\[1\]\.image: .*; send"),
        ("vqa", vqa("a", ONE[:40]), r"rows\[1\]\.image: .*damaged"),
        ("vqa", {"question": ONE, "image": ONE}, r"rows\[1\]\.question: must be text, got bytes"),
        ("vqa", "a", r"rows\[1\]: task 'vqa' needs the fields question, image, got one text"),
        ("caption", "a", r"rows\[1\]: task 'caption' needs the fields image, got one text"),
        ("vqa", Prompt("a"), r"rows\[1\]\.image: is missing"),
        ("sst2", {"sentence": "a", "image": ONE}, r"rows\[1\]\.image: is an image, and no task .* leave it out"),
        ("sst2", Prompt("a", {"image": ONE}), r"rows\[1\]\.image: is an image"),
    ],
)
async def test_what_is_wrong_with_a_rows_images_is_said_of_the_row(
    house: House, task: str, row: Any, says: str
) -> None:
    good: dict[str, Any] = {"vqa": vqa("a"), "nlvr": {"sentence": "a", "left": ONE, "right": ONE}, "sst2": "a"}
    with pytest.raises(InvalidInput, match=says):
        await house.ask(task, good.get(task, {"image": ONE}), row)


async def test_a_faulty_image_fails_the_tasks_that_read_it_alone(house: House) -> None:
    row = {"question": "q", "sentence": "s", "image": b"no image", "left": ONE, "right": TWO}
    asked, pair, text = await predict_tasks(house.service, [TaskRef("vqa"), TaskRef("nlvr"), TaskRef("sst2")], [row])
    assert isinstance(asked, InvalidInput)
    assert asked.field == "rows[0].image"
    assert (said(pair), said(text)) == (["s [1, 2]"], ["s []"])


async def test_what_concerns_all_images_fails_the_request(house: House) -> None:
    house.tower.open.clear()
    with pytest.raises(DeadlineExpired):
        await house.ask("vqa", vqa("a"), deadline=0.0)
    many = [vqa(f"{colour}", picture(colour)) for colour in range(20, 26)]
    running = asyncio.create_task(predict(house.service, "vqa", many))
    await asyncio.to_thread(house.tower.entered.wait, 10)
    with pytest.raises(Overloaded, match="images are waiting"):
        await house.ask("vqa", vqa("a"))
    house.tower.open.set()
    assert len(said(await running)) == 6
    assert await house.ask("sst2", "a") == ["a []"]


async def test_an_observation_keeps_features_and_no_bytes(house: House) -> None:
    await house.ask("vqa", vqa("a"), Prompt("b", {"image": TWO}))
    [seen] = house.recorder.seen
    fields, prompt = seen.inputs
    assert isinstance(fields, dict)
    assert isinstance(prompt, Prompt)
    assert fields == {"question": "a", "image": seen.rows[0].images[0]}
    assert prompt.images == {"image": seen.rows[1].images[0]}
    assert render_rows(VQA, seen.inputs) == ["vqa: a", "b"]
    assert read_images(VQA, seen.inputs) == [row.images for row in seen.rows]
    assert all(isinstance(image, EncodedImage) for row in seen.rows for image in row.images)


async def test_without_an_encoder_tasks_with_images_say_so() -> None:
    house = House(sees=False)
    asked, text = await predict_tasks(house.service, [TaskRef("vqa"), TaskRef("sst2")], [{**vqa("a"), "sentence": "s"}])
    assert isinstance(asked, NotLoaded)
    assert "--vision" in str(asked)
    assert said(text) == ["s []"]
    await house.service.close()
    house.images.close()

"""Runs over rows with images: in columns or named by id, bad ones, in few at a time, interrupted, and refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ladder import Backbone, ClassAnswer, TextAnswer, Tokenizer
from serving.engine import Engine
from serving.errors import IncompatibleSide
from serving.offline import tokenized
from serving.offline.errors import MissingColumn, OutputTaken, WrongTask
from serving.offline.images import TableEncoder
from serving.offline.placing import Replicas
from serving.offline.plan import Wanted
from serving.offline.run import run_batch
from serving.offline.table import PassLimits
from side_registry import Registry
from table_files import ImageSourceError
from tests.serving.kit import make_run, make_spec
from tests.serving.offline.kit import Ray, names, parts, refused, run
from tests.training import pictures
from tests.visual_runs import COLOURS, EQUAL, SAYS, VISUAL_SPECS, VisualRuns
from vision import EncoderError

IMAGES = pictures.pictures(6)
IDS = ["p/0", "p/1", "p/2", "p/1", "p/4", "p/5", "p/0"]
QUESTIONS = ["what", "red", "what", "what", "blue", "red", "what"]
TASKS = ("colours", "says", "sst2")


@pytest.fixture(scope="module")
def visual(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone, tokenizer: Tokenizer) -> VisualRuns:
    return VisualRuns(tmp_path_factory.mktemp("runs") / "visual", backbone, tokenizer)


@pytest.fixture(scope="module")
def gallery(
    tmp_path_factory: pytest.TempPathFactory, visual: VisualRuns, backbone: Backbone, tokenizer: Tokenizer
) -> str:
    """A registry with the tasks of VISUAL_SPECS and one that reads text alone."""
    folder = tmp_path_factory.mktemp("gallery")
    registry = Registry.open(folder / "registry", create=True)
    for spec in VISUAL_SPECS:
        registry.publish(visual.run(spec))
    registry.publish(make_run(folder / "sst2", backbone, tokenizer, make_spec("sst2")))
    return registry.url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.folder_of(tmp_path_factory.mktemp("images"), IMAGES)


@pytest.fixture
def wanted(ray: Ray, tmp_path: Path, gallery: str, visual: VisualRuns, tiny_t5: Path, folder: Path) -> Wanted:
    return Wanted(
        input=str(write(tmp_path / "rows.parquet", image_id=IDS)),
        output=str(tmp_path / "out"),
        tasks=TASKS,
        registry=gallery,
        backbone=str(tiny_t5),
        images=str(folder),
        vision=str(visual.encoder_folder),
        dtype="float32",
        shard_rows=4,
    )


def write(path: Path, **columns: list[Any]) -> Path:
    """A file of rows: a question, a sentence, and these columns."""
    texts = {"question": QUESTIONS, "sentence": [f"film {row}" for row in range(len(QUESTIONS))]}
    pq.write_table(pa.table(texts | columns), path)
    return path


def answered(wanted: Wanted) -> list[dict[str, Any]]:
    return pq.read_table(wanted.output).to_pylist()


def check(visual: VisualRuns, rows: list[dict[str, Any]]) -> None:
    """Compare with the model's answers to the rows of IDS and QUESTIONS."""
    given = [{"question": text, "image": IMAGES[one]} for text, one in zip(QUESTIONS, IDS, strict=True)]
    for row, answer, text in zip(rows, visual.local(COLOURS, given), visual.local(SAYS, given), strict=True):
        assert isinstance(answer, ClassAnswer)
        assert isinstance(text, TextAnswer)
        assert row["colours.error"] is row["says.error"] is row["sst2.error"] is None
        assert row["colours.scores"] == pytest.approx(answer.scores, abs=1e-4)
        assert row["says.text"] == text.text
        assert row["sst2.label"]


@pytest.mark.parametrize("source", ["folder", "table", "bytes", "struct", "renamed"])
def test_answers_are_the_models(wanted: Wanted, visual: VisualRuns, tmp_path: Path, source: str) -> None:
    values: list[Any] = [IMAGES[one] for one in IDS]
    if source == "table":
        wanted = replace(wanted, images=str(pictures.parquet_of(tmp_path / "images.parquet", IMAGES)))
    elif source == "bytes":
        wanted = replace(wanted, images=None, input=str(write(tmp_path / "bytes.parquet", image=values)))
    elif source == "struct":
        structs = [{"bytes": data, "path": None} for data in values]
        wanted = replace(wanted, images=None, input=str(write(tmp_path / "structs.parquet", image=structs)))
    elif source == "renamed":
        columns = {"photo": IDS, "image": values}
        wanted = replace(wanted, renames={"image": "photo"}, input=str(write(tmp_path / "both.parquet", **columns)))
    summary = run(wanted)
    check(visual, answered(wanted))
    assert summary.counts.images == 3 + 3, "the distinct images of each part"
    assert summary.counts.failures == dict.fromkeys(TASKS, 0)


def test_few_images_are_in_memory_at_a_time(
    wanted: Wanted, visual: VisualRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenized, "IMAGES_AT_ONCE", 2)
    encode = TableEncoder.encode
    encoded: list[int] = []

    def counted(self: Any, files: Any) -> Any:
        encoded.append(len(files))
        return encode(self, files)

    monkeypatch.setattr(TableEncoder, "encode", counted)
    run(replace(wanted, shard_rows=100))
    check(visual, answered(wanted))
    assert encoded[-4:] == [2, 1, 2, 1], "p/0, p/1; p/2, and p/1 is known; p/4, p/5; p/0 again"


def test_rows_with_images_keep_to_the_limit_of_a_pass(
    wanted: Wanted, visual: VisualRuns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    step = Engine.step
    steps: list[int] = []

    def counted(self: Any, rows: Any, *others: Any) -> Any:
        steps.append(len(rows))
        return step(self, rows, *others)

    monkeypatch.setattr(Engine, "step", counted)
    path = write(tmp_path / "one question.parquet", image=[IMAGES[one] for one in IDS], question=["what"] * len(IDS))
    wanted = replace(wanted, tasks=("colours",), images=None, input=str(path), shard_rows=100)
    summary = run_batch(wanted, Replicas(limits=PassLimits(rows=2)))
    assert steps[-3:] == [2, 2, 1], "five images and one question, after the golden examples"
    assert (summary.counts.prompts, summary.counts.passes, summary.counts.images) == (1, 3, 5)


def test_a_task_of_images_alone_reads_two(wanted: Wanted, visual: VisualRuns, tmp_path: Path) -> None:
    columns = {"left_id": IDS, "right": list(reversed(IDS))}
    run(replace(wanted, tasks=("equal",), input=str(write(tmp_path / "pairs.parquet", **columns))))
    pairs = zip(IDS, reversed(IDS), strict=True)
    expected = visual.local(EQUAL, [{"left": IMAGES[left], "right": IMAGES[right]} for left, right in pairs])
    for row, answer in zip(answered(wanted), expected, strict=True):
        assert isinstance(answer, ClassAnswer)
        assert row["equal.scores"] == pytest.approx(answer.scores, abs=1e-4)


def test_a_bad_image_is_an_error_of_its_rows_alone(wanted: Wanted, tmp_path: Path) -> None:
    good = IMAGES["p/1"]
    values = [good, None, b"", good[:60], b"https://example.com/a.png", b"\x00\x01", good]
    run(replace(wanted, images=None, input=str(write(tmp_path / "bad.parquet", image=values))))
    rows = answered(wanted)
    errors = [row["colours.error"] for row in rows]
    assert errors[0] is errors[6] is None
    for error, says in zip(
        errors[1:6], ("null", "empty", "damaged or trunc", "a URL, which", "not an image"), strict=True
    ):
        assert error.startswith("field 'image' is ")
        assert says in error
    assert errors == [row["says.error"] for row in rows]
    assert [row["sst2.error"] for row in rows] == [None] * 7
    assert rows[0]["colours.scores"] is not None
    assert rows[3]["colours.scores"] is None


def test_an_id_without_an_image_is_an_error_of_its_row_alone(wanted: Wanted, tmp_path: Path) -> None:
    ids = ["p/0", "p/99", None, "../p/0", "p/1", "p/2", "p/3"]
    for images in (wanted.images, str(pictures.parquet_of(tmp_path / "images.parquet", IMAGES))):
        run(replace(wanted, images=images, overwrite=True, input=str(write(tmp_path / "ids.parquet", image=ids))))
        errors = [row["colours.error"] for row in answered(wanted)]
        assert [error is None for error in errors] == [True, False, False, False, True, True, True]
        assert "has no image 'p/99'" in errors[1]
        assert errors[2] == "field 'image' names no image; give its id"


def test_a_run_that_was_killed_goes_on(wanted: Wanted, visual: VisualRuns, ray: Ray, folder: Path) -> None:
    ray.dies_at = 1
    with pytest.raises(KeyboardInterrupt):
        run(wanted)
    before = parts(wanted)
    assert list(before) == ["part-00000000.parquet"]
    ray.dies_at = None
    ray.ran = []
    assert "with other --images" in refused(replace(wanted, images=str(folder / "p")), OutputTaken)
    summary = run(wanted)
    assert (ray.ran, summary.done_before) == ([1], 4)
    assert parts(wanted)["part-00000000.parquet"] == before["part-00000000.parquet"]
    check(visual, answered(wanted))


def test_mistakes_are_found_before_the_work(wanted: Wanted, tmp_path: Path) -> None:
    data = str(write(tmp_path / "bytes.parquet", image=[IMAGES[one] for one in IDS]))
    neither = str(write(tmp_path / "neither.parquet"))
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"vision": None}, WrongTask, "colours: reads images; give --vision FOLDER"),
        ({"vision": "/nowhere"}, EncoderError, "/nowhere"),
        ({"vision_layer": 1}, IncompatibleSide, "--vision-layer"),
        ({"images": "/nowhere"}, ImageSourceError, "there is no such folder or file of images"),
        ({"images": None, "renames": {"image": "image_id"}}, WrongTask, "holds string and not the bytes of images"),
        ({"images": None}, MissingColumn, "needs a column 'image'"),
        ({"input": data}, WrongTask, "holds binary and no ids of images; leave --images away"),
        ({"input": neither}, MissingColumn, "--rename image=COLUMN"),
        ({"input": data, "images": None, "format": "jsonl"}, WrongTask, "jsonl cannot hold the images"),
        ({"tasks": ("sst2",)}, WrongTask, "--images: no task reads images"),
    ]
    for changes, kind, says in cases:
        assert says in refused(replace(wanted, **changes), kind), changes
    assert "out" not in names(tmp_path)


def test_an_encoder_that_no_task_needs_is_not_loaded(wanted: Wanted) -> None:
    summary = run(replace(wanted, tasks=("sst2",), images=None, vision="/nowhere"))
    assert (summary.counts.images, summary.counts.failures) == (0, {"sst2": 0})

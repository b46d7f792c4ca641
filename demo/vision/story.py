"""The story of the demo with images, step by step. Every step is a command or a call that a user would type."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from demo.backbone import get_backbone
from demo.commands import Commands, Server
from demo.downloads import cache_folder
from demo.encoders import get_lite2
from demo.folders import DemoError
from demo.report import show_swap
from demo.story import Narrator
from demo.swap import SwapLog, swap_under_load
from demo.vision.asking import PAIR, TASK, Asker, read_counters, row_of
from demo.vision.page import write_page
from demo.vision.questions import (
    SPLITS,
    Question,
    QuestionData,
    by_picture,
    get_questions,
    of_first_pictures,
    read_rows,
    write_rows,
)
from demo.vision.report import show_results
from demo.vision.results import Asked, Results, share_right
from sidecast import Client

TEXT_TASK = Path(__file__).with_name("easy-vqa-text.toml")
"""The same questions without pictures."""
HITS = "sidecast_image_cache_hits_total"
MISSES = "sidecast_image_cache_misses_total"
SWAP_ROWS = 4
"""Questions in each request during the swap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much work the story does. Pictures are the first of their part."""

    pictures: Mapping[str, int]
    """By split."""
    quick_pictures: int = 150
    """Pictures that version 1 is trained on; version 2 is trained on all."""
    quick_epochs: int = 3
    epochs: int = 4
    text_epochs: int = 1
    timed_pictures: int = 21
    """Pictures that two questions are timed about; one more question than that is not counted."""
    page_pictures: int = 24
    stay_s: float = 3.0
    """How long each version serves during the swap, in seconds."""


DEFAULT_SIZES = Sizes(pictures={"train": 1500, "validation": 100, "test": 250})


def quick_sizes(pictures: int) -> Sizes:
    """Return the sizes of a quick look that trains on `pictures` pictures, 64 at least."""
    parts = {"train": pictures, "validation": 32, "test": 32}
    return Sizes(pictures=parts, quick_pictures=pictures // 4, epochs=4, timed_pictures=9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the demo starts from."""

    backbone: Path
    encoder: Path
    data: QuestionData


def get_inputs(narrator: Narrator) -> Inputs:
    """The real backbone's folder, the real vision encoder's, and questions with pictures, from the cache or fetched
    into it.

    Raises:
        DemoError: one of them cannot be had; says why and what to do.
    """
    narrator.step("a real backbone, a real vision encoder, and questions about pictures")
    with Progress(console=narrator.console) as bars:
        cache = cache_folder()
        return Inputs(
            backbone=get_backbone(cache, bars), encoder=get_lite2(cache, bars), data=get_questions(cache, bars)
        )


def tell(
    folder: Path,
    inputs: Inputs,
    sizes: Sizes = DEFAULT_SIZES,
    commands: Commands | None = None,
    narrator: Narrator | None = None,
) -> None:
    """Run the demo in `folder`; finished trainings there are used again.

    Args:
        narrator: goes on with its numbers; None: a new one.

    Raises:
        DemoError: a step failed; says what to do.
    """
    commands = commands or Commands()
    say = narrator or Narrator()
    data = inputs.data
    rows = {split: of_first_pictures(read_rows(data.file(split)), sizes.pictures[split]) for split in SPLITS}
    say.step("train side networks: the backbone and the vision encoder stay frozen")
    runs = train_all(folder, inputs, rows, sizes, commands)
    say.step("publish version 1, which was trained on few pictures")
    registry = folder / "registry"
    shutil.rmtree(registry, ignore_errors=True)  # each telling has a new history; the runs are kept
    commands.run("publish", runs["quick"], "--registry", registry)
    say.step("serve: one process, one backbone, one vision encoder")
    with Server(inputs.backbone, registry, "--vision", inputs.encoder) as server, Client(server.address) as client:
        asker = Asker(client, data)
        say.step("ask: command line and Python")
        ask_two_ways(server.address, data, rows["test"], asker, commands)
        say.step("score version 1 on pictures that were not used for training")
        quick = asker.ask_all(rows["test"])
        print(f"  {share_right(quick):.3f} of {len(quick)} answers are right")
        say.step("publish a better version while clients keep calling, then roll back")
        asked = [row_of(row, data) for row in rows["test"][:SWAP_ROWS]]
        log = swap_under_load(server.address, TASK, runs["all"], registry, asked, sizes.stay_s, commands)
        commands.run("history", TASK, "--server", server.address)
        say.step("score version 2, and time a second question about a picture")
        commands.run("promote", TASK, "2", "--server", server.address)
        answered = asker.ask_all(rows["test"])
        timed = list(by_picture(read_rows(data.file("validation"))))[: sizes.timed_pictures]
        times = asker.time_pairs(timed)
        counters = read_counters(server.metrics, (HITS, MISSES))
    say.step("score a side network that does not see the picture")
    text_only = commands.run_json(
        "evaluate", TEXT_TASK, "--run", runs["text"], "--data", folder / "data" / "test.jsonl"
    )
    results = Results(
        asked=answered,
        train=rows["train"],
        quick_pictures=len(by_picture(of_first_pictures(rows["train"], sizes.quick_pictures))),
        quick_score=share_right(quick),
        text_only_score=text_only["score"],
        times=times,
        swap=log,
        requests=asker.requests + _requests_of(log, SWAP_ROWS),
        hits=counters[HITS],
        misses=counters[MISSES],
    )
    show_results(say.console, results)
    show_swap(say.console, log)
    if log.failures:
        what = f"{len(log.failures)} requests failed during the swap"
        raise DemoError(what, "this must not happen; please report it")
    page = folder / "answers.html"
    write_page(page, results, data, sizes.page_pictures)
    say.console.print(f"\nPictures, questions, answers and scores are in {page}.")
    say.console.print(f"The demo took {say.seconds:.0f} s. Its runs and registry are in {folder}/.")


def train_all(
    folder: Path, inputs: Inputs, rows: Mapping[str, list[Question]], sizes: Sizes, commands: Commands
) -> dict[str, Path]:
    """Train on few pictures (`quick`), on all (`all`), and without pictures (`text`); the folder of each run."""
    files = {split: folder / "data" / f"{split}.jsonl" for split in SPLITS} | {"quick": folder / "data" / "quick.jsonl"}
    for split in SPLITS:
        write_rows(files[split], rows[split])
    write_rows(files["quick"], of_first_pictures(rows["train"], sizes.quick_pictures))
    images = ("--images", inputs.data.images, "--vision", inputs.encoder)
    trainings = {
        "quick": (TASK, files["quick"], sizes.quick_epochs, images),
        "all": (TASK, files["train"], sizes.epochs, images),
        "text": (TEXT_TASK, files["train"], sizes.text_epochs, ()),
    }
    runs = {}
    for name, (task, train, epochs, options) in trainings.items():
        runs[name] = folder / "runs" / name
        words = ("--train", train, "--validation", files["validation"], "--output", runs[name], "--epochs", epochs)
        commands.run("train", task, "--backbone", inputs.backbone, *options, *words)
    return runs


def ask_two_ways(
    address: str, data: QuestionData, rows: list[Question], asker: Asker, commands: Commands
) -> list[Asked]:
    """Ask about one picture through the command line and the Python client."""
    picture = data.picture(rows[0].image_id)
    commands.run("tasks", "--server", address)
    commands.run("predict", TASK, f"question={PAIR[0]}", "--image", picture, "--server", address)
    print(f'>>> Client("{address}").predict("{TASK}", [{{"question": "{PAIR[1]}", "image": Path("{picture}")}}])')
    asked = asker.ask([Question(image_id=rows[0].image_id, question=PAIR[1], answer="")])
    for each in asked:
        print(f"    {each.answer} {each.score:.4f}")
    return asked


def _requests_of(log: SwapLog, rows: int) -> int:
    return sum(log.answers.values()) // rows + len(log.failures)

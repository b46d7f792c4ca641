"""compare_absorb: a whole run on a tiny T5, fine-tuned twice and absorbed by the command."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenizers.processors import TemplateProcessing

from benchmarks.training import compare_absorb
from tests import tiny
from tests.training import toy

pytest.importorskip("peft")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about a name of transformers
def test_both_models_are_absorbed_and_compared(tmp_path: Path) -> None:
    backbone = tiny.make_t5(tmp_path / "backbone")
    tokenizer = tiny.byte_tokenizer()  # with an end token, which this kind of model reads its answer at
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save_pretrained(backbone)
    (tmp_path / "sst2").mkdir()
    for part, count in (("train", 80), ("validation", 16)):
        rows = [
            {"sentence": row["sentence"], "label": "positive" if row["label"] == "aa" else "negative"}
            for row in toy.rows(toy.CLASSES, count, seed=count)
        ]
        toy.write(tmp_path / "sst2" / f"{part}.jsonl", rows)
    words = [
        "--rows",
        "40",
        "--texts",
        "40",
        "--epochs",
        "1",
        "--data",
        str(tmp_path),
        "--folder",
        str(tmp_path / "out"),
    ]
    words += ["--backbone", str(backbone), "--json", "--absorb", "--agreement", "--absorb", "0"]
    ran = CliRunner().invoke(compare_absorb.main, words, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    found = {
        name: {figure: spread["median"] for figure, spread in figures.items()}
        for name, figures in json.loads(ran.stdout.splitlines()[-1])["variants"].items()
    }
    assert {"full, absorbed", "lora, absorbed"} < found.keys()
    assert found["full, absorbed"]["published"] == 1
    before, after = found["before: each model"], found["after: one backbone"]
    assert after["weights_mb"] < before["weights_mb"]
    texts = [json.loads(line) for line in (tmp_path / "out" / "texts.jsonl").read_text().splitlines()]
    assert (len(texts), texts[0].keys()) == (40, {"sentence"})

"""compare_vision: the T5 that reads images, a whole run on a tiny T5, and that a run goes on."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch.testing import assert_close

from benchmarks.training import compare_vision
from benchmarks.training.compare_vision import METHODS, ClipT5, Comparison
from ladder import Images, load_backbone
from ladder.config import VisualConfig

WIDTH, TOKENS = 6, 36
LABELS = ((40, 1), (41, 42, 1), (41, 43, 1))


def test_it_reads_visual_tokens_as_the_backbone_of_fisher_does(tiny_t5: Path) -> None:
    backbone = load_backbone(tiny_t5)
    torch.manual_seed(0)
    visual = VisualConfig(features=WIDTH, images=1, tokens=4)
    model = ClipT5(str(tiny_t5), visual, backbone, LABELS).eval()
    ids = torch.tensor([[70, 80, 90, 1], [71, 1, 0, 0]])
    mask = ids != 0
    images = Images.of(torch.randn(2, 1, 4, WIDTH))
    embedded = model.visual(images)
    start = backbone.config.decoder_start_token_id

    def steps(prefix: list[int], tokens: list[int]) -> torch.Tensor:
        logits = backbone(ids, mask, torch.tensor([[start, *prefix]]).expand(2, -1), embedded)[:, -1]
        return torch.log_softmax(logits[:, tokens], -1)

    first, second = steps([], [40, 41]), steps([41], [42, 43])
    expected = torch.stack([first[:, 0], first[:, 1] + second[:, 0], first[:, 1] + second[:, 1]], 1)
    found = model.log_probabilities(ids, mask, images)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    other = model.log_probabilities(ids, mask, Images.of(torch.randn(2, 1, 4, WIDTH)))
    assert not torch.allclose(found, other, atol=1e-3)


def write(folder: Path) -> list[str]:
    """Pictures whose features tell whether a sentence about them is true. Returns the words of a command."""
    features = {f"p/{number}": torch.randn(TOKENS, WIDTH) + (4.0 if number % 2 else -4.0) for number in range(40)}
    save_file({name: tensor.half() for name, tensor in features.items()}, folder / "features.safetensors")
    for part, numbers in (("train", range(24)), ("validation", range(24, 40))):
        rows = [
            {"image_id": f"p/{n}", "sentence": f"it is {n}", "label": "true" if n % 2 else "false"} for n in numbers
        ]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ["--rows", "24", "--scored", "16", "--epochs", "2", "--batch-rows", "8", "--rank", "2"]
    data = ["--task", "nlvr", "--data", folder, "--features", folder / "features.safetensors"]
    return [str(word) for word in [*data, *sizes, "--output", folder / "result.json", "--json"]]


@pytest.mark.slow
def test_a_run_of_all_methods_goes_on(tmp_path: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    words = ["--backbone", str(tiny_t5), *write(tmp_path)]
    methods = [name for name in METHODS if name != "lora" or importlib.util.find_spec("peft")]
    first = CliRunner().invoke(compare_vision.main, [*words, "--method", "majority"], catch_exceptions=False)
    assert first.exit_code == 0
    chosen = [word for name in methods for word in ("--method", name)]
    ran = CliRunner().invoke(compare_vision.main, [*words, *chosen], catch_exceptions=False)
    assert ran.exit_code == 0
    found = json.loads((tmp_path / "result.json").read_text())["variants"]
    assert list(found) == methods
    assert found["majority"]["score"]["median"] == 0.5
    for name in methods[1:]:
        assert 0 <= found[name]["score"]["median"] <= 1
        assert found[name]["total_gb"]["median"] > 0
    assert found["full"]["trained_percent"]["median"] > found["lst"]["trained_percent"]["median"] > 0
    monkeypatch.setattr(Comparison, "measure", None)  # nothing is measured again
    again = CliRunner().invoke(compare_vision.main, [*words, *chosen], catch_exceptions=False)
    assert json.loads(again.stdout.splitlines()[-1])["variants"] == found

"""Where a side network starts: pruned, at the targets, at the words; and that the trainer starts it there, once."""

import pytest
import torch
from torch.testing import assert_close

from ladder import Embed, SideConfigError, SideNetwork, load_backbone, load_side, load_tokenizer, run_backbone
from ladder.side.structural_init import initialize
from tests.training import toy
from training.errors import RecipeError
from training.fisher import fisher
from training.job import Silent
from training.recipes.initialization import (
    check_start,
    draw_samples,
    start_at_targets,
    start_at_words,
    start_side,
    target_text,
    whitening,
)
from training.recipes.recipe import Recipe
from training.trainer import train


@pytest.fixture(scope="module")
def backbone(tiny_t5):
    return load_backbone(tiny_t5)


@pytest.fixture(scope="module")
def tokenizer(tiny_t5):
    return load_tokenizer(tiny_t5)


class Interrupted(Exception):
    pass


class Watcher(Silent):
    """Notes what the trainer ranks; stops it after its first epoch."""

    def __init__(self) -> None:
        self.ranked: list[tuple[int, int]] = []

    def ranking(self, rows: int, total: int) -> None:
        self.ranked.append((rows, total))

    def validated(self, epoch: int, scores: dict[str, float], best: bool) -> None:
        raise Interrupted


def new_side(job, seed: int = 0) -> SideNetwork:
    torch.manual_seed(seed)
    return SideNetwork(job.recipe.side_config(job.spec).resolve(job.backbone.config), job.backbone.config)


def test_random_leaves_a_side_network_as_it_is(tmp_path, backbone, tokenizer):
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer)
    side, before = new_side(job), new_side(job).state_dict()
    start_side(side, backbone, init="random")
    assert all(torch.equal(tensor, before[name]) for name, tensor in side.state_dict().items())


@pytest.mark.parametrize("order", ["consistent", "reference"])
@pytest.mark.parametrize("spec", [toy.CLASSES, toy.VALUES, toy.TEXTS], ids=lambda spec: spec.kind)
def test_fisher_is_that_of_the_drawn_rows(tmp_path, backbone, tokenizer, spec, order):
    job = toy.job(tmp_path, spec, backbone, tokenizer)
    side, expected = new_side(job), new_side(job)
    examples = job.training.examples
    start_side(
        side, backbone, init="fisher", order=order, spec=spec, tokenizer=tokenizer, examples=examples, samples=9, seed=3
    )
    drawn = draw_samples(spec, tokenizer, examples, 9, 3)
    initialize(expected, backbone, fisher(backbone, drawn), order=order)
    for name, tensor in side.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name


def test_samples_are_rows_as_the_backbone_would_say_them(tmp_path, backbone, tokenizer):
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=30)
    pairs = {
        (tuple(tokenizer.encode(toy.CLASSES.render(row.fields))), tuple(tokenizer.encode(str(row.target))))
        for row in job.training.examples
    }
    drawn = [draw_samples(toy.CLASSES, tokenizer, job.training.examples, count, seed) for count, seed in
             ((12, 0), (12, 0), (12, 1), (99, 0))]  # fmt: skip
    assert [len(samples) for samples in drawn] == [12, 12, 12, 30]
    assert drawn[0] == drawn[1] == drawn[3][:12] != drawn[2]
    assert {(sample.source, sample.target) for sample in drawn[3]} == pairs


@pytest.mark.parametrize(("target", "text"), [("good", "good"), (3.8, "3.8"), (4.0, "4.0"), (2.6666667, "2.7")])
def test_targets_as_text(target, text):
    assert target_text(target) == text


@pytest.mark.parametrize("init", ["magnitude", "fisher"])
def test_trainer_starts_there_once(tmp_path, backbone, tokenizer, init, monkeypatch):
    drawn = {"init_samples": 10} if init == "fisher" else {}
    job = toy.job(tmp_path, toy.CLASSES, backbone, tokenizer, count=16, init=init, learning_rate=1e-30, **drawn)
    watcher = Watcher()
    with pytest.raises(Interrupted):
        train(job, tmp_path / "run", watcher)
    assert watcher.ranked[-1:] == ([(10, 10)] if init == "fisher" else [])
    expected = new_side(job)
    rows = job.training.examples
    start_side(
        expected,
        backbone,
        init=init,
        spec=job.spec,
        tokenizer=tokenizer,
        examples=rows,
        samples=10,
        seed=job.recipe.seed,
    )
    monkeypatch.setattr("training.trainer.start_side", None)  # going on must not start again
    artifact = train(job, tmp_path / "run")
    assert artifact.manifest.provenance["recipe"]["init"] == init
    trained = load_side(tmp_path / "run" / "side_network.safetensors", backbone.config)
    for name, tensor in trained.state_dict().items():
        assert_close(tensor, expected.state_dict()[name], rtol=0, atol=1e-20, msg=name)


def test_pretrained_stays_silent_after_it(tmp_path, backbone, tokenizer):
    job = toy.job(
        tmp_path, toy.TEXTS, backbone, tokenizer, count=8, init="magnitude", start="pretrained", learning_rate=1e-30
    )
    train(job, tmp_path / "run")
    side = load_side(tmp_path / "run" / "side_network.safetensors", backbone.config)
    assert side.upsample.weight.abs().max() < 1e-20
    assert torch.isin(
        side.encoder.rungs[0].block.attention.q.weight, backbone.encoder.blocks[0].attention.q.weight
    ).all()


def test_what_cannot_be_is_told_before_a_folder_is_made(tmp_path, backbone, tokenizer):
    job = toy.job(tmp_path, toy.PAIRS, backbone, tokenizer, init="fisher")
    with pytest.raises(RecipeError, match="random or magnitude for embedding"):
        train(job, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(RecipeError, match="no training rows"):
        start_side(new_side(job), backbone, init="fisher")
    with pytest.raises(SideConfigError, match="order must be"):
        check_start("magnitude", "alphabetical", backbone)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("unused", "rule"),
    [
        ({"init_order": "reference"}, "init must be magnitude or fisher where init_order is reference, got 'random'"),
        ({"init_samples": 9}, "init must be fisher where init_samples is 9, got 'random'"),
        ({"init": "magnitude", "init_samples": 9}, "init must be fisher where init_samples is 9, got 'magnitude'"),
    ],
    ids=str,
)
def test_settings_of_another_start_are_told(unused, rule):
    with pytest.raises(RecipeError, match=rule):
        Recipe(**unused)


@pytest.mark.parametrize("wrong", [{"init": "best"}, {"init_order": "odd"}, {"init_samples": 0}])
def test_settings_out_of_range_say_the_rule(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Recipe(**wrong)


def test_whitened_rows_differ_alike_in_all_directions_where_rows_are_many():
    torch.manual_seed(0)
    rows = torch.randn(4000, 6) @ torch.diag(torch.tensor([9.0, 8.0, 8.0, 7.0, 0.01, 0.01])) @ torch.randn(6, 6)
    rows = rows - rows.mean(0)
    white = rows @ whitening(rows, 3).T
    assert_close(
        white.T @ white / len(rows) * 3, torch.diag(torch.diag(white.T @ white / len(rows) * 3)), atol=1e-2, rtol=0
    )
    deviations = white.std(0)
    assert deviations.max() / deviations.min() < 2
    assert rows.std(0).max() > 5


def test_directions_that_are_not_there_are_zero():
    rows = torch.randn(5, 4)
    weights = whitening(rows - rows.mean(0), 7)
    assert weights.shape == (7, 4)
    assert torch.equal(weights[4:], torch.zeros(3, 4))
    assert torch.isfinite(whitening(torch.zeros(3, 4), 2)).all()


def test_an_embedding_starts_as_the_whitened_mean_of_the_words_alone(backbone, tokenizer):
    side = SideNetwork(Recipe(reduction=4).side_config(toy.PAIRS), backbone.config).eval()
    inputs = [tuple(tokenizer.encode(str(row["sentence"]))) for row in toy.rows(toy.PAIRS, 20)]
    start_at_words(side, backbone, inputs)
    means = torch.stack([backbone.embed(torch.tensor(ids)).mean(0) for ids in inputs])
    center = means.mean(0)
    expected = torch.nn.functional.normalize((means - center) @ whitening(means - center, 8).T, dim=-1)
    vectors = Embed().vectors(run_backbone(backbone, inputs, side.encoder_depth), side)
    assert_close(vectors, expected, atol=1e-4, rtol=1e-4)


def test_only_an_embeddings_linear_head_reads_words():
    assert Recipe().side_config(toy.PAIRS).words
    assert not Recipe(head="mlp").side_config(toy.PAIRS).words
    assert not Recipe().side_config(toy.CLASSES).words


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_regression_head_starts_at_the_mean_target(tmp_path, backbone, tokenizer, head):
    job = toy.job(tmp_path, toy.VALUES, backbone, tokenizer, head=head)
    targets = torch.tensor([float(example.target) for example in job.training.examples])
    side = new_side(job)
    assert start_at_targets(side, job.training.examples) == pytest.approx(targets.std(correction=0).item())
    last = side.head.out if head == "mlp" else side.head
    assert last.bias.item() == pytest.approx(targets.mean().item())
    assert start_at_targets(side, job.training.examples[:1]) == 1

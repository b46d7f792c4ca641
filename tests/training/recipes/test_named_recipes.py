"""Recipes by name: the paper's settings, and what of them depends on the task and the backbone."""

from dataclasses import replace

import pytest

from ladder.config import BackboneConfig
from tests.training import pictures, toy
from training.builtin_tasks import load_task
from training.errors import RecipeError
from training.recipes.named_recipes import named_recipe
from training.recipes.recipe import Recipe

BASE = BackboneConfig(
    d_model=768, d_kv=64, d_ff=3072, num_heads=12, num_layers=12, num_decoder_layers=12, vocab_size=32128
)
LARGE = replace(BASE, num_layers=24, num_decoder_layers=24, d_model=1024, d_ff=4096)


def test_default_is_the_recipe_itself():
    assert named_recipe("default", [toy.CLASSES], {}) == Recipe()
    assert named_recipe("default", [toy.CLASSES], {"seed": 3}, [100], BASE) == Recipe(seed=3)


def test_the_default_of_a_task_with_images_is_what_measured_best_for_them():
    spec = load_task("easy-vqa")
    assert named_recipe("default", [spec], {}) == Recipe(learning_rate=3e-3, dropout=0.0)
    assert named_recipe("default", [spec], {"dropout": 0.1}) == Recipe(learning_rate=3e-3, dropout=0.1)


def test_the_default_of_token_classification_is_what_measured_best_for_it():
    assert named_recipe("default", [toy.NAMES], {}) == Recipe(learning_rate=3e-3)
    assert named_recipe("default", [toy.NAMES], {"learning_rate": 1e-3}) == Recipe()


def test_an_unknown_name_is_named():
    with pytest.raises(RecipeError, match="recipe must be default or paper, got 'papr'"):
        named_recipe("papr", [toy.CLASSES], {})


def test_a_text_task_on_t5_base():
    recipe = named_recipe("paper", [load_task("sst2")], {}, [66_349], BASE)
    assert recipe == Recipe(
        epochs=10,
        batch_rows=100,
        learning_rate=3e-3,
        warmup=500 / 6640,
        optimizer="reference",
        init="fisher",
        init_order="reference",
        init_samples=1024,
        head="text",
        reduction=8,
        encoder_layers=(1, 2, 3, 5, 6, 7, 9, 10, 11),
        decoder_layers=(1, 2, 3, 5, 6, 7, 9, 10, 11),
        tap_norm="none",
        pair="together",
    )


@pytest.mark.parametrize(("task", "epochs"), [("cola", 20), ("rte", 20), ("mnli", 10), ("qnli", 10), ("stsb", 20)])
def test_epochs_are_those_of_the_task(task, epochs):
    assert named_recipe("paper", [load_task(task)], {}).epochs == epochs


def test_layers_are_those_of_the_backbone():
    kept = {
        LARGE: tuple(range(1, 24, 2)),
        replace(LARGE, d_ff=16384, num_heads=32): (23,),
        replace(BASE, num_layers=8, num_decoder_layers=8): "all",
    }
    for backbone, layers in kept.items():
        assert named_recipe("paper", [toy.CLASSES], {}, [100], backbone).encoder_layers == layers
    encoder = replace(BASE, num_decoder_layers=0, model_type="bert")
    recipe = named_recipe("paper", [toy.VALUES], {}, [100], encoder)
    assert (recipe.init, recipe.head, recipe.decoder_layers) == ("random", "auto", None)


def test_tasks_with_images():
    sizes = {}
    for name in ("easy-vqa", "nlvr", "daquar", "flickr8k"):
        recipe = named_recipe("paper", [load_task(name)], {}, [1000], BASE)
        sizes[name] = recipe.batch_rows
        assert (recipe.epochs, recipe.reduction, recipe.weight_decay, recipe.clip) == (20, 4, 0.03, 5.0)
        assert (recipe.warmup, recipe.tap_norm, recipe.image_gate, recipe.head) == (0.1, "none", "damped", "text")
        assert (recipe.init, recipe.init_order) == ("magnitude", "reference")
        assert recipe.encoder_layers == "auto"  # all, for a text head
        recipe.side_config(load_task(name), 2048)
    assert sizes == {"easy-vqa": 300, "nlvr": 100, "daquar": 300, "flickr8k": 250}


def test_tasks_that_share_get_the_smallest_batch_and_the_most_epochs():
    assert named_recipe("paper", [load_task("sst2"), load_task("cola")], {}).epochs == 20
    assert named_recipe("paper", [load_task("flickr8k"), load_task("nlvr")], {}).batch_rows == 100
    two = named_recipe("paper", [load_task("sst2"), load_task("cola")], {}, [10_000, 5_000])
    assert two.warmup == 500 / (20 * 150)


def test_given_settings_win():
    given = {"epochs": 2, "batch_rows": 10, "learning_rate": 1e-3, "init": "random", "encoder_layers": (3,)}
    recipe = named_recipe("paper", [toy.CLASSES], given, [1000], BASE)
    assert {name: getattr(recipe, name) for name in given} == given
    assert recipe.warmup == 1.0  # 200 steps are fewer than the paper's 500 of warmup
    assert recipe.init_order == "consistent"
    assert named_recipe("paper", [toy.CLASSES], {"warmup": 0.2}, [1000]).warmup == 0.2
    assert named_recipe("paper", [pictures.TASK], {"init": "random"}, [9], BASE).init == "random"
    linear = named_recipe("paper", [toy.CLASSES], {"head": "linear"}, [9], BASE)
    assert linear.decoder_layers is None

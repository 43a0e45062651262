"""The shipped recipes: each is accepted by the dry run without a network, and those of SEA are its paper's rows."""

import pytest

from sightline.config import dump, load_recipe, shipped_recipes
from sightline.data.templates import get_template
from sightline.methods.base import Sizes
from sightline.methods.compose import build_methods
from sightline.plan import plan
from sightline.plan.report import GIB
from sightline.train.folder import differences, fixed

CLIP, SIGLIP = "openai/clip-vit-large-patch14-336", "google/siglip-so400m-patch14-384"
LANGUAGE = {
    "gemma-2b": ("google/gemma-2b", "gemma"),
    "phi-3-mini": ("microsoft/Phi-3-mini-4k-instruct", "phi-3"),
    "llama-3-8b": ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3"),
    "13b": ("lmsys/vicuna-13b-v1.5", "vicuna_v1"),
    "7b": ("lmsys/vicuna-7b-v1.5", "vicuna_v1"),
}
TABLE_2 = ("1.5-7b", "gemma-2b", "phi-3-mini", "llama-3-8b", "1.5-13b", "siglip-7b", "s2-7b")
TABLE_3 = ("tuned-tower-7b",)
TABLE_1 = ("gemma-2b", "phi-3-mini", "vicuna-7b", "llama-3-8b", "vicuna-13b")
ROWS = [
    *(f"{sea}llava-{row}" for row in (*TABLE_2, *TABLE_3) for sea in ("", "sea-")),
    *(f"sea-prime-{row}" for row in TABLE_1),
]
SEA = {"methods": [{"name": "sea"}], "trainable": ["connector", "sea"], "weights": {"sea/contrastive": 1.0}}


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_dry_run_accepts_it(name, tmp_path, monkeypatch):
    """Where none of its data and weights are: sizes ship with Sightline, and rows are the recipe's."""
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    planned = plan(recipe, gpus=[8])
    assert planned.recipe == recipe.name == name
    for stage, part in zip(planned.stages, recipe.stages, strict=True):
        assert stage.steps > 0 and not stage.rows.counted
        trained = {row.name for row in stage.parts if row.trained}
        named = {name if name in part.trainable else name.partition(".")[0] for name in trained}
        assert named == {of for of in part.trainable if of != "sea"} | (named & {"sea"})
        if "s2" in name:
            assert (stage.scales, stage.tile, stage.tokens_per_image) == ((1, 2, 3), 336, 576)
        elif {"name": "anyres"} in recipe.methods and not name.startswith("world"):
            assert (stage.image, stage.tokens_per_image) == ((672, 672), 2928), "the stock newline tokens among them"
        elif not name.startswith("world"):
            assert (stage.scales, stage.tokens_per_image) == ((1,), 576 if stage.tile == 336 else 729)
        if name.startswith(("llava-next", "vlsa")):
            longest = stage.gpus[0].longest
            assert longest is not None and longest.total < 80 * GIB, "eight GPUs of 80 GB train it"


@pytest.mark.parametrize("name", ROWS)
def test_the_rows_of_the_sea_paper(name):
    """Yin et al. 2024, section 5.1: LLaVA's hyperparameters, one epoch, AdamW, cosine; the tower tuned at 2e-6."""
    recipe = load_recipe(name)
    assert recipe.model is not None
    pretrain, instruct = recipe.stages
    language, template = LANGUAGE[next(size for size in LANGUAGE if name.endswith(size))]
    prime, tuned = "prime" in name, "prime" in name or "tuned" in name
    assert recipe.model.language == language
    assert recipe.model.vision == (SIGLIP if prime or "siglip" in name else CLIP)
    assert recipe.model.vision_scales == ([1, 2, 3] if "s2" in name else None)
    assert [stage.data[0].template for stage in recipe.stages] == ["plain", template]
    assert get_template(template)
    for stage, lr, rows in ((pretrain, 1e-3, 256), (instruct, 2e-5, 128)):
        assert (stage.lr, stage.batch_size * stage.accumulate, stage.epochs, stage.schedule) == (lr, rows, 1, "cosine")
    assert recipe.methods == (SEA["methods"] if name.startswith("sea-") else [])
    assert (pretrain.trainable, pretrain.lr_by_part) == (
        SEA["trainable"] if name.startswith("sea-") else ["connector"],
        {},
    )
    assert instruct.trainable == [*(["vision"] if tuned else []), "connector", "language"]
    assert instruct.lr_by_part == ({"vision": 2e-6} if tuned else {})
    assert "sea/contrastive" not in instruct.weights
    rows = [(stage.data[0].rows, stage.data[0].about_rows) for stage in recipe.stages]
    assert rows == ([(None, 2_500_000), (None, 7_000_000)] if prime else [(558_128, None), (665_298, None)])
    assert all(stage.data[0].path.startswith("data/cambrian/") == prime for stage in recipe.stages)


@pytest.mark.parametrize("row", [*TABLE_2, *TABLE_3])
def test_a_row_with_sea_differs_by_sea_alone(row):
    """Laid over its baseline, what SEA adds gives the row, key for key."""
    baseline, with_sea = load_recipe(f"llava-{row}"), load_recipe(f"sea-llava-{row}")
    pretrain = baseline.stages[0].model_copy(update={"trainable": SEA["trainable"], "weights": SEA["weights"]})
    changes = {"name": with_sea.name, "methods": SEA["methods"], "stages": [pretrain, baseline.stages[1]]}
    assert baseline.model_copy(update=changes) == with_sea


def test_rough_numbers_are_the_dry_runs_alone(tmp_path):
    """Another one does not make another run; nor does a key that a run was begun without."""
    recipe = load_recipe("world")
    other = load_recipe("world", ["stages.0.data.about_rows=7"])
    assert fixed(recipe) == fixed(other) != fixed(load_recipe("world", ["model.vision_scales=[1, 2]"]))
    begun = tmp_path / "recipe.yaml"
    begun.write_text("\n".join(line for line in dump(other).splitlines() if "vision_scales" not in line))
    assert differences(recipe, begun) == []


ALIGNGPT = {
    "7b": {},
    "13b": {"language": "lmsys/vicuna-13b-v1.5"},
    "llama-2-7b": {"language": "meta-llama/Llama-2-7b-chat-hf", "template": "llama-2"},
    "llama-3-8b": {"language": "meta-llama/Meta-Llama-3-8B-Instruct", "template": "llama-3"},
    "siglip-7b": {"vision": SIGLIP},
    **{f"7b-{levels}-levels": {"levels": levels} for levels in (4, 6, 10)},
    **{f"7b-{mode}": {"mode": mode} for mode in ("local", "global", "average")},
    "7b-fixed": {"mode": "fixed:1"},
}
"""Its models and ablations; 8 levels and mode `both` are the first one's."""


@pytest.mark.parametrize("row", ALIGNGPT)
def test_the_rows_of_the_aligngpt_paper(row):
    """Zhao et al. 2024: LLaVA-1.5's rates and batches; the vectors train in stage 1 and are frozen in stage 2."""
    recipe, asked = load_recipe(f"aligngpt-{row}"), ALIGNGPT[row]
    assert recipe.model is not None
    pretrain, instruct = recipe.stages
    assert recipe.model.language == asked.get("language", "lmsys/vicuna-7b-v1.5")
    assert recipe.model.vision == asked.get("vision", CLIP)
    options = {key: asked[key] for key in ("levels", "mode") if key in asked}
    assert recipe.methods == [{"name": "aligngpt", **options}]
    gate = ["aligngpt.gate"] if asked.get("mode", "local") == "local" else []
    assert pretrain.trainable == ["connector", "aligngpt.levels"]
    assert instruct.trainable == ["connector", "language", *gate]
    assert [stage.data[0].template for stage in recipe.stages] == ["plain", asked.get("template", "vicuna_v1")]
    for stage, lr, rows in ((pretrain, 1e-3, 256), (instruct, 2e-5, 128)):
        assert (stage.lr, stage.batch_size * stage.accumulate, stage.epochs) == (lr, rows, 1)
    assert [stage.data[0].rows for stage in recipe.stages] == [558_128, 665_298]


def test_the_rows_of_vlsas_cognition():
    """Rows 5 and 6 of Table 3 are rows 1 and 4 and the turns, asked for in the stage that trains the language model."""
    turns = {"name": "cognition", "preset": "vlsa_paper"}
    for name, without in (("vlsa-c-llama-3-8b", "llava-next-llama-3-8b"), ("vlsa-llama-3-8b", "vlsa-ab-llama-3-8b")):
        row, base = load_recipe(name), load_recipe(without)
        assert row == base.model_copy(update={"name": name, "methods": [*base.methods, turns]})
        (method,) = build_methods([turns], Sizes(d_vision=1024, d_llm=4096, patches=576, tokens=576)).all
        *before, last = (method.added_tokens(stage) for stage in row.stages)
        assert before == [0.0] * len(before)
        assert (128 + 192) / 4 < last < 120, "a quarter of both windows, and of two questions"


def test_turns_make_rows_longer_in_the_plan():
    """By as much as the method says."""
    turned, before = (plan(load_recipe(name), gpus=[8]) for name in ("vlsa-c-llama-3-8b", "llava-next-llama-3-8b"))
    assert [a.sequence - b.sequence for a, b in zip(turned.stages, before.stages, strict=True)] == [0, 96]
    assert any("adds about 96 tokens" in note for note in turned.notes)

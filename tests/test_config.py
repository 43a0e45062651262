"""The recipe: every error at once, in the words of a recipe, and nothing but `SightlineError` whatever is written."""

import contextlib
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sightline.config import Recipe, apply_override, check, dump, load_recipe
from sightline.errors import SightlineError

RECIPE = """
name: mine
model: {vision: world:clip, language: world:lm}
stages:
  - name: pretrain
    data: {path: captions.json, template: plain}
    trainable: [connector]
  - name: tune
    data: {path: chats.json}
    trainable: [connector, language]
    lr: 2.0e-5
    lr_by_part: {connector: 1.0e-4}
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    """The lines of the error, without its heading."""
    with pytest.raises(SightlineError) as caught:
        load_recipe(path, overrides)
    heading, *lines = str(caught.value).splitlines()
    assert heading == f"{len(lines)} problem{'s' if len(lines) > 1 else ''} in {path}:"
    return [line.removeprefix("  ") for line in lines]


def test_a_recipe_with_its_defaults(recipe):
    loaded = load_recipe(recipe)
    assert loaded.run_folder == Path("runs/mine")
    assert (loaded.seed, loaded.max_length, loaded.blank_images) == (0, 2048, False)
    assert [stage.lr for stage in loaded.stages] == [1e-3, 2e-5]
    assert loaded.stages[0].data[0].template == "plain"
    assert loaded.stages[1].data[0].template == "vicuna_v1"


@pytest.mark.parametrize(
    ("typo", "expected"),
    [
        ("sede=1", "sede: unknown key; did you mean 'seed'?"),
        ("stages.0.lrr=1", "stages.0.lrr: unknown key; did you mean 'lr'?"),
        ("stages.1.data.tempalte=plain", "stages.1.data.tempalte: unknown key; did you mean 'template'?"),
        ("stages.1.validation={path: a, image: b}", "stages.1.validation.image: unknown key; did you mean 'images'?"),
        ("model.visions=x", "model.visions: unknown key; did you mean 'vision'?"),
        ("model.qqqqq=x", "model.qqqqq: unknown key"),
    ],
)
def test_an_unknown_key_names_the_nearest_of_its_place(recipe, typo, expected):
    assert problems(recipe, typo) == [expected]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=-1", "seed: input should be greater than or equal to 0 (got -1)"),
        ("stages.0.batch_size=0", "stages.0.batch_size: input should be greater than 0 (got 0)"),
        ("stages.0.batch_size=many", "stages.0.batch_size: input should be a valid integer"),
        (
            "stages.0.schedule=cosin",
            "stages.0.schedule: input should be 'cosine', 'linear' or 'constant' (got 'cosin')",
        ),
        ("stages.0.trainable=[]", "stages.0.trainable: list should have at least 1 item"),
        ("stages.0.warmup=1.5", "stages.0.warmup: input should be less than or equal to 1 (got 1.5)"),
        ("stages.0.lr=.nan", "stages.0.lr: input should be"),
        ("stages.0.lr=.inf", "stages.0.lr: input should be a finite number (got inf)"),
        ("stages.0.epochs=.inf", "stages.0.epochs: input should be a finite number (got inf)"),
        ("stages.0.weights={answer: .nan}", "stages.0.weights.answer: input should be a finite number (got nan)"),
        ("stages.0.frozen=bf16", "stages.0: frozen=bf16 computes in bfloat16; set precision=bf16, or frozen=fp32"),
        ("stages.1.lora={rank: 0}", "stages.1.lora.rank: input should be greater than 0 (got 0)"),
        ("stages.0.lora={}", "stages.0: lora adapts the language model; add `language` to trainable"),
        ("stages.1.frozen=nf4", "stages.1: frozen=nf4 holds the language model in 4 bits, which cannot train"),
        ("stages.0.name=../x", "stages.0.name: string should match pattern"),
        ("name=a/b", "name: string should match pattern"),
        ("stages=[]", "stages: list should have at least 1 item"),
        ("model.vision_layer=x", "model.vision_layer: input should be a valid integer"),
        ("model=null", "model: missing (or let the first stage start from a saved model with init_from)"),
        ("stages.1.name=pretrain", "two stages share a name: ['pretrain', 'pretrain']"),
        (
            "stages.0.lr_by_part={language: 1}",
            "stages.0: lr_by_part names 'language', which is not in trainable ['connector']",
        ),
        (
            "stages.0.final_weights={answer: 1}",
            "stages.0: final_weights names 'answer', which has no weight to begin with; name it in weights",
        ),
    ],
)
def test_a_value_that_will_not_do(recipe, override, expected):
    lines = problems(recipe, override)
    assert lines[0].startswith(expected)
    assert len(lines) == 1 or "vision_layer" in expected


def test_every_problem_at_once(recipe):
    lines = problems(recipe, "sede=1", "stages.0.lrr=1", "stages.9.lr=1", "model.language", "stages.1.batch_size=0")
    assert [line.split(":")[0] for line in lines] == [
        "stages.9",
        "model.language",
        "stages.0.lrr",
        "stages.1.batch_size",
        "sede",
    ]


def test_missing_keys(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("stages: [{data: {}}]")
    assert set(problems(path)) == {
        "name: missing",
        "stages.0.name: missing",
        "stages.0.data.path: missing",
        "stages.0.trainable: missing",
    }


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("seed=3", lambda r: r.seed, 3),
        ("stages.0.lr=2e-3", lambda r: r.stages[0].lr, 2e-3),
        ("stages.0.lr=2.5E-3", lambda r: r.stages[0].lr, 2.5e-3),
        ("stages.1.trainable=[connector, vision]", lambda r: r.stages[1].trainable, ["connector", "vision"]),
        ("stages.1.trainable.0=vision", lambda r: r.stages[1].trainable, ["vision", "language"]),
        ("stages.1.lr_by_part.language=1e-6", lambda r: r.stages[1].lr_by_part, {"connector": 1e-4, "language": 1e-6}),
        ("stages.0.weights.language=0.5", lambda r: r.stages[0].weights, {"language": 0.5}),
        ("stages.0.validation.path=v.json", lambda r: r.stages[0].validation[0].path, "v.json"),
        ("stages.0.clip_norm=null", lambda r: r.stages[0].clip_norm, None),
        ("stages.0.betas=[0.9, 0.95]", lambda r: r.stages[0].betas, (0.9, 0.95)),
        ("model.vision_layer=[-2, -1]", lambda r: r.model.vision_layer, [-2, -1]),
        ("out=a=b", lambda r: r.out, "a=b"),
        ("methods=[{name: toy, strength: 2}]", lambda r: r.methods, [{"name": "toy", "strength": 2}]),
        ("blank_images=true", lambda r: r.blank_images, True),
    ],
)
def test_an_override_takes_the_place_it_names(recipe, override, where, value):
    if override.startswith("stages.1.trainable"):
        loaded = load_recipe(recipe, ["stages.1.lr_by_part={}", override])
    else:
        loaded = load_recipe(recipe, [override])
    assert where(loaded) == value


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "seed: an override is written key=value, for example stages.0.lr=2e-3"),
        ("=3", "=3: an override is written key=value"),
        ("stages.2.lr=1", "stages.2: there are 2 here, numbered from 0"),
        ("stages.-1.lr=1", "stages.-1: there are 2 here, numbered from 0"),
        ("stages.pretrain.lr=1", "stages.pretrain: there are 2 here, numbered from 0"),
        ("stages.2=1", "stages.2: there are 2 here, numbered from 0"),
        ("stages." + "9" * 5000 + "=1", "stages.999"),
        ("stages." + "9" * 5000 + ".lr=1", "stages.999"),
        ("name.first=x", "name.first: 'name' has no parts of its own"),
        ("name.first.second=x", "name.first: has no parts of its own"),
        ("seed=[1", "seed: the value '[1' is not YAML"),
        ("seed=!!bool maybe", "seed: the value '!!bool maybe' is not YAML"),
        ("seed=!!timestamp x", "seed: the value '!!timestamp x' is not YAML"),
        ("..=1", ": unknown key"),
    ],
)
def test_an_override_that_has_no_place(recipe, override, expected):
    assert problems(recipe, override)[0].startswith(expected)


def test_overrides_follow_each_other(recipe):
    loaded = load_recipe(
        recipe, ["seed=1", "stages.0.validation={path: v.json}", "stages.0.validation.limit=5", "seed=2"]
    )
    assert loaded.seed == 2
    assert (loaded.stages[0].validation[0].path, loaded.stages[0].validation[0].limit) == ("v.json", 5)
    loaded = load_recipe(recipe, ["stages.0.validation=null", "stages.0.validation.path=v.json"])
    assert loaded.stages[0].validation[0].path == "v.json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "should hold a recipe: name, model and stages. It holds list"),
        ("", "It holds NoneType"),
        ("!!bool maybe", "is not YAML"),
        ("a: !!timestamp x", "is not YAML"),
        ("a: !!int ''", "is not YAML"),
        ("a: !!python/object:os.system x", "is not YAML"),
        ("[" * 3000, "is not YAML"),
        ("a: " + "9" * 5000, "is not YAML"),
        ("a: 2020-13-45", "is not YAML"),
        ("{[1]: 2}", "is not YAML"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(SightlineError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(SightlineError, match=r"recipe not found: .*nowhere.yaml\. Give a file, or a shipped one"):
        load_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(SightlineError, match="cannot read"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(SightlineError, match="cannot read"):
        load_recipe(tmp_path / "latin.yaml")


def test_a_dumped_recipe_reads_back(recipe, tmp_path):
    loaded = load_recipe(recipe, ["methods=[{name: toy, strength: 2e-3, deep: {a: [1, null]}}]", "stages.0.steps=7"])
    again = tmp_path / "again.yaml"
    again.write_text(dump(loaded), encoding="utf-8")
    assert load_recipe(again) == loaded
    assert dump(loaded).startswith("name: mine\n"), "in the order of the reference, not of the alphabet"
    assert yaml.safe_load(dump(loaded))["stages"][0]["betas"] == [0.9, 0.999], "every default is spelled out"


names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,8}\Z")
rates = st.floats(0, 1e6)
betas = st.floats(0, 0.9999)
# PyYAML does not read back every control character that it writes.
words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=8)
stage_values = st.fixed_dictionaries(
    {"name": names, "data": st.fixed_dictionaries({"path": words}), "trainable": st.just(["connector", "language"])},
    optional={
        "lr": rates,
        "lr_by_part": st.dictionaries(st.sampled_from(["connector", "language"]), rates),
        "weights": st.dictionaries(words, rates),
        "betas": st.tuples(betas, betas),
        "steps": st.none() | st.integers(1, 9),
        "clip_norm": st.none() | st.floats(1e-9, 9),
        "init_from": st.none() | words,
    },
)


@given(name=names, stage=stage_values, method=st.dictionaries(words, words | rates | st.lists(st.integers())))
def test_any_recipe_survives_its_dump(name, stage, method):
    parts = {"vision": "v", "language": "l"} if stage.get("init_from") is None else None
    values = {"name": name, "model": parts, "stages": [stage], "methods": [method]}
    recipe = Recipe.model_validate(values)
    assert check(yaml.safe_load(dump(recipe))) == recipe


scalars = st.none() | st.booleans() | st.integers() | st.floats() | words | st.dates() | st.binary(max_size=3)
keys = st.sampled_from([*Recipe.model_fields, "lr", "data", "path", "trainable", "weights", "x"]) | scalars
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=4), max_leaves=12)


@settings(max_examples=150)
@given(value=st.dictionaries(keys, values, max_size=5))
@example(value={"stages": [{"lr_by_part": {1: 2}, b"a": 1}], math.nan: 1, "methods": [{None: 1}]})
def test_any_values_give_a_recipe_or_our_error(value):
    try:
        check(value)
    except SightlineError as error:
        assert "problem" in str(error)


@settings(max_examples=150)
@given(data=st.data())
def test_any_text_gives_a_recipe_or_our_error(tmp_path_factory, data):
    """Text with YAML's own characters in it, or bits of a real recipe put together at random."""
    pieces = st.sampled_from([*RECIPE.splitlines(), "!!int", "!!set", "&a", "*a", "<<: *a", "? ", "{", "}", "[", "- "])
    alphabet = st.text(st.sampled_from("!&*<>:?-[]{}#|%@`'\"\n \tab01.e~"), max_size=12)
    text = "\n".join(data.draw(st.lists(pieces | alphabet, max_size=8)))
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(text)
    with contextlib.suppress(SightlineError):
        load_recipe(path, [data.draw(alphabet)])


class TestBase:
    """A file that names a base holds what differs, and reads as if it were written out."""

    def write(self, folder: Path, name: str, text: str) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def test_only_what_differs(self, recipe, tmp_path):
        """Mappings key by key, stages by name, lists and everything else whole; a file relative to its own."""
        text = """
        base: ../recipe.yaml
        name: other
        model: {vision_layer: [-2, -1]}
        stages:
          tune: {lr_by_part: {language: 1e-6}, data: {template: plain}, betas: [0.9, 0.95], validation: {path: v.json}}
        """
        loaded = load_recipe(self.write(tmp_path, "deep/other.yaml", text))
        changes = [
            "name=other",
            "model.vision_layer=[-2, -1]",
            "stages.1.lr_by_part.language=1e-6",
            "stages.1.data.template=plain",
            "stages.1.betas=[0.9, 0.95]",
            "stages.1.validation={path: v.json}",
        ]
        assert loaded == load_recipe(recipe, changes)
        assert loaded.stages[1].lr_by_part == {"connector": 1e-4, "language": 1e-6}
        assert "base" not in yaml.safe_load(dump(loaded))

    def test_a_list_replaces_all_stages(self, recipe, tmp_path):
        text = "{base: recipe.yaml, name: o, stages: [{name: one, data: {path: x}, trainable: [connector]}]}"
        loaded = load_recipe(self.write(tmp_path, "o.yaml", text))
        assert [stage.name for stage in loaded.stages] == ["one"]
        assert loaded.model == load_recipe(recipe).model

    def test_nothing_replaces_a_mapping(self, recipe, tmp_path):
        text = (
            "{base: recipe.yaml, name: o, model: null, stages: {pretrain: {init_from: saved}, tune: {lr_by_part: {}}}}"
        )
        loaded = load_recipe(self.write(tmp_path, "o.yaml", text))
        assert loaded.model is None and loaded.stages[0].init_from == "saved"
        assert loaded.stages[1].lr_by_part == {"connector": 1e-4}, "an empty mapping changes nothing"

    def test_a_chain_and_a_shipped_base(self, tmp_path):
        """Overrides come last; a file of its own named as a shipped recipe comes before it."""
        self.write(tmp_path, "a.yaml", "{base: world, name: a, out: runs/there, seed: 3, max_length: 99}")
        b = self.write(tmp_path, "b.yaml", "{base: a.yaml, name: b, seed: 4, stages: {instruct: {steps: 2}}}")
        loaded = load_recipe(b, ["seed=5", "stages.0.lr=1"])
        assert (loaded.seed, loaded.max_length, loaded.stages[1].steps, loaded.stages[0].lr) == (5, 99, 2, 1)
        assert loaded.out is None, "an own folder"
        assert loaded.stages[0].data == load_recipe("world").stages[0].data
        self.write(tmp_path, "world", "{base: recipes/none.yaml, name: b}")
        with pytest.raises(SightlineError, match=r"world: its base is not there: .*none.yaml\. Name a file"):
            load_recipe(b.with_name("a.yaml"))

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("seed: 1", ["name: missing"]),
            (
                "{name: o, stages: {pretain: {lr: 1}}}",
                ["stages.pretain: no stage of base 'recipe.yaml'; did you mean 'pretrain'? It has: pretrain, tune."],
            ),
            (
                "{name: o, stages: {7: {lr: 1}, tune: 3}, sede: 1}",
                [
                    "stages.7: no stage of base 'recipe.yaml'. It has: pretrain, tune.",
                    "stages.tune: should hold the keys to change of this stage (got 3)",
                    "sede: unknown key; did you mean 'seed'?",
                ],
            ),
            ("{name: o, stages: {tune: {lrr: 1}}}", ["stages.1.lrr: unknown key; did you mean 'lr'?"]),
        ],
    )
    def test_every_problem_at_once(self, recipe, tmp_path, text, expected):
        body = text if text.startswith("{") else f"{{{text}}}"
        assert problems(self.write(tmp_path, "o.yaml", "{base: recipe.yaml, " + body[1:])) == expected

    def test_what_is_no_base(self, recipe, tmp_path):
        assert problems(recipe, "base=world") == ["base: is read from a recipe's file alone; put it there"]
        loose = self.write(tmp_path, "loose.yaml", "{name: o, model: {vision: v, language: l}, stages: {a: {}}}")
        assert problems(loose) == [
            "stages: should be a list; a mapping changes the stages of a `base`, and there is none"
        ]
        assert problems(self.write(tmp_path, "bse.yaml", RECIPE + "bas: world")) == [
            "bas: unknown key; did you mean 'base'?"
        ]

    @pytest.mark.parametrize(
        ("base", "message"),
        [
            ("wrld", r"its base is not there: .*wrld; did you mean 'world'\? Name a file, relative to the recipe, or"),
            ("[world]", r"base should be a recipe's name or file \(got \['world'\]\)"),
            ("null", r"\(got None\)"),
            ("o.yaml", r"o.yaml -> .*o.yaml: a recipe cannot be its own base"),
            ("list.yaml", "should hold a recipe: name, model and stages. It holds list"),
            ('"a\\0b"', "is not YAML"),
            ("a" * 500, "cannot read"),
            (".", "cannot read"),
        ],
    )
    def test_a_base_that_cannot_be_read(self, tmp_path, base, message):
        self.write(tmp_path, "list.yaml", "[]")
        with pytest.raises(SightlineError, match=message) as caught:
            load_recipe(self.write(tmp_path, "o.yaml", f"{{base: {base}, name: o}}"))
        assert "\n" not in str(caught.value)

    def test_a_circle_of_bases(self, tmp_path):
        for name, base in (("start", "a"), ("a", "b"), ("b", "./a")):
            path = self.write(tmp_path, f"{name}.yaml", f"{{base: {base}.yaml, name: {name}}}")
        with pytest.raises(SightlineError, match=r"/a.yaml -> .*/b.yaml -> .*/a.yaml: a recipe cannot be its own base"):
            load_recipe(path.with_name("start.yaml"))

    def test_mappings_that_hold_themselves(self, tmp_path):
        for name, base in (("a", "recipe.yaml"), ("b", "a.yaml")):
            path = self.write(tmp_path, f"{name}.yaml", f"{{base: {base}, name: {name}, model: &m {{x: *m}}}}")
        self.write(tmp_path, "recipe.yaml", RECIPE)
        with pytest.raises(SightlineError, match="hold themselves"):
            load_recipe(path)

    @settings(max_examples=100)
    @given(under=st.dictionaries(keys, values, max_size=4), over=st.dictionaries(keys, values, max_size=4))
    def test_any_values_over_any_base_give_a_recipe_or_our_error(self, tmp_path_factory, under, over):
        folder = tmp_path_factory.getbasetemp()
        self.write(folder, "under.yaml", yaml.safe_dump(under))
        with contextlib.suppress(SightlineError):
            load_recipe(self.write(folder, "over.yaml", yaml.safe_dump({**over, "base": "under.yaml"})))


@pytest.mark.parametrize("text", ["&a {x: *a}", "name: n\nmethods: &a [{name: *a}]", "stages: &s [*s]"])
def test_a_recipe_that_holds_itself(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(SightlineError):
        load_recipe(path)


@settings(max_examples=200)
@given(
    key=st.lists(st.sampled_from(["stages", "0", "1", "lr", "name", "", "data", "²", "٣"]), max_size=4).map(".".join),
    raw=st.text(st.sampled_from("!&*<>:?-[]{}#|%@`'\"\n \tabint01.e~"), max_size=10),
)
def test_any_override_gives_a_problem_or_none(key, raw):
    problem = apply_override(yaml.safe_load(RECIPE), f"{key}={raw}")
    assert problem is None or problem

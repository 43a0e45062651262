"""The recipe: one file that lists stages. Typed, frozen, checked as a whole before anything is loaded.

The diff between two recipes is the experiment, so a run folder holds its resolved recipe, every default spelled out.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from .bases import find_recipe, read_recipe
from .errors import SightlineError, did_you_mean
from .overrides import apply_override

BASE = "A shipped recipe, or a file relative to this one, over which this one is laid; it then holds only what differs."
"""What the key says that a resolved recipe no longer has."""


def _a_number(value: Any) -> Any:
    """YAML's `yes` is a boolean, and would count as 1."""
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, BeforeValidator(_a_number), Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Record(BaseModel):
    """Base of all configuration: frozen, no unknown keys, documented by the docstrings under its fields."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


class Data(Record):
    """Rows to train or validate on."""

    path: str
    """Rows: .json, .jsonl, .csv, .tsv, .parquet, .tar or a folder; relative to where you are."""
    images: str | None = None
    """The folder of the rows' images; by default `images` beside the file if there is one, else the file's folder."""
    template: str = "vicuna_v1"
    """How turns become text: `plain` (captions), `vicuna_v1`, `llama-2`, `llama-3`, `phi-3`, `gemma`, `chatml`."""
    limit: Positive | None = None
    """Use only the first rows."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How often its rows are seen in an epoch: 2 is twice, 0.5 a random half, another half each epoch."""
    rows: Positive | None = None
    """How many rows it should have; another number stops the run. `--dry-run` counts on it where there is no file."""
    about_rows: Positive | None = None
    """Roughly how many rows it has, where `rows` is not known: `--dry-run` counts on it where there is no file."""
    name: str | None = None
    """Of a validation set: it is measured by itself and logged under this name (`text`, say); others together."""


class LoRA(Record):
    """Low-rank adapters on the language model (LoRA, Hu et al. 2021), through peft."""

    rank: Positive = 128
    """Rank of the update; LLaVA-1.5 publishes 128."""
    alpha: Annotated[float, Field(gt=0)] = 256.0
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the update."""
    init: Literal["lora", "pissa"] = "lora"
    """`lora` starts at no change; `pissa` (Meng et al. 2024) at the principal singular directions, which it trains."""
    targets: list[str] | None = None
    """Names of the linear layers to adapt; by default all of the decoder's."""


class Model(Record):
    """The parts that the model is assembled from."""

    vision: str
    """A CLIP, SigLIP or DINOv2: hub id, local folder, or `world:clip`."""
    language: str
    """A causal language model: hub id, local folder, or `world:lm`."""
    connector: Literal["linear", "mlp", "pixel_shuffle", "pool"] = "mlp"
    """`linear` is LLaVA's first, `mlp` LLaVA-1.5's mlp2x_gelu; `pixel_shuffle` and `pool` give fewer tokens,
    and are saved as Sightline's own class."""
    shuffle_factor: Positive | None = None
    """pixel_shuffle: squares of so many patches a side become one token; 2 by default."""
    pooled_grid: Positive | None = None
    """pool: tokens along a side; by default half the tower's grid."""
    vision_layer: int | list[int] = -2
    """Which of the tower's hidden states to take; a list concatenates them."""
    vision_select: Literal["patch", "full"] = "patch"
    """`patch` takes the grid, `full` also the tokens before it (the class token)."""
    vision_scales: list[Positive] | None = None
    """Multiples of the tower's size at which it sees an image, such as [1, 2, 3] (S2): as many tokens, as many times
    wider; saved as Sightline's own class."""
    image_fit: Literal["pad", "crop"] = "pad"
    """How an image that is not square meets the tower: padded to a square, or as the tower's own processor does."""

    @model_validator(mode="after")
    def _options_have_their_connector(self) -> "Model":
        for option, connector in (("shuffle_factor", "pixel_shuffle"), ("pooled_grid", "pool")):
            if getattr(self, option) is not None and self.connector != connector:
                raise ValueError(f"{option} belongs to connector {connector}; remove it, or say connector={connector}")
        if self.connector in ("pixel_shuffle", "pool") and self.vision_select == "full":
            raise ValueError(
                f"connector {self.connector} reads a grid, and vision_select=full has the class token beside it; "
                "say vision_select=patch"
            )
        return self

    @model_validator(mode="after")
    def _scales_ascend_from_one(self) -> "Model":
        scales = self.vision_scales
        if scales is None:
            return self
        if len(scales) < 2 or scales[0] != 1 or any(b <= a for a, b in pairwise(scales)):
            raise ValueError(
                f"vision_scales {scales} should be multiples of the tower's size, ascending from 1, such as [1, 2, 3]; "
                "remove it for the tower's own size alone"
            )
        if self.vision_select == "full":
            raise ValueError(
                "vision_scales merges grids, and vision_select=full has the class token beside them; say "
                "vision_select=patch"
            )
        return self


class Stage(Record):
    """One stage of training. Nothing branches on its name."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What the stage is called in metrics and on the page."""
    data: Annotated[list[Data], Field(min_length=1)]
    """One source of rows, or a list of them, mixed by their weights."""
    validation: list[Data] = []
    """Rows whose loss is measured while training; keys as in `data`."""
    group_by_length: bool = False
    """Put rows of like length into a batch, which saves padding; pure in the seed like any order."""
    bad_images: Literal["raise", "skip"] = "raise"
    """What becomes of a row whose image cannot be read; what is skipped is counted and listed in the run folder."""
    long_rows: Literal["raise", "drop", "shorten"] = "raise"
    """What becomes of a row over `max_length`: `shorten` leaves out its oldest exchanges without an image, and drops it
    if that is not enough. An image is never cut."""
    trainable: list[str] = Field(min_length=1)
    """Parts that train: `vision`, `connector`, `language`, or a method's name."""
    init_from: str | None = None
    """A saved model to start from; by default the previous stage's, or the fresh assembly."""
    save: bool = False
    """Keep the model as it is after this stage, in `stages/<name>/model` of the run folder."""
    lr: Rate = 1e-3
    """Peak learning rate of AdamW."""
    lr_by_part: dict[str, Rate] = {}
    """Learning rates of parts that differ from `lr`."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """What the learning rate does after the warm-up; the first two end at zero."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Share of the steps over which the learning rate rises."""
    weight_decay: Rate = 0.0
    """AdamW's, on matrices; vectors (norms, biases) have none."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the data; parts of one are allowed."""
    steps: Positive | None = None
    """Optimizer steps; overrides `epochs`."""
    batch_size: Positive = 16
    """Rows of one forward pass."""
    accumulate: Positive = 1
    """Forward passes of one optimizer step, over all processes together: a recipe means the same on any number."""
    packing: bool = False
    """Put several rows side by side into one sequence of the language model, each seeing only itself: no padding."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in bfloat16 and keeps trained weights in fp32."""
    frozen: Literal["fp32", "bf16", "nf4"] = "fp32"
    """How weights that the stage does not train are held; nf4 (QLoRA) is for the language model, the rest bf16."""
    lora: LoRA | None = None
    """Train the language model through low-rank adapters instead of its weights."""
    activation_checkpointing: bool = False
    """Compute the decoder's activations again in the backward pass instead of keeping them: less memory, more time."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; null to leave it alone."""
    non_finite: Literal["raise", "skip"] = "raise"
    """What becomes of a step whose loss or gradient is not finite: `skip` leaves the model as it is, and counts it."""
    weights: dict[str, Rate] = {}
    """Weights of losses by name. A method's loss counts in the stages that name it. A kind of token named here gets a
    mean of its own; the others share one."""
    final_weights: dict[str, Rate] = {}
    """What some of these weights are at the end of the stage: they go there in a straight line."""
    validate_every: Positive | None = None
    """Steps between validations, the first before any step; by default ten in a stage."""
    save_every: Positive | None = None
    """Steps between checkpoints to resume from; by default ten in a stage. Its end always is one."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare batches."""

    @field_validator("data", "validation", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict | Data) else value if value is not None else []

    def trains(self, part: str) -> bool:
        """Whether `trainable` names a part, or one that it is in."""
        return any(f"{part}.".startswith(f"{name}.") for name in self.trainable)

    @model_validator(mode="after")
    def _what_is_named_is_there(self) -> "Stage":
        for part in self.lr_by_part:
            if not self.trains(part) and not any(name.startswith(f"{part}.") for name in self.trainable):
                raise ValueError(f"lr_by_part names '{part}', which is not in trainable {self.trainable}")
        if none := [name for name in self.final_weights if not self.weights.get(name)]:
            raise ValueError(f"final_weights names '{none[0]}', which has no weight to begin with; name it in weights")
        return self

    @model_validator(mode="after")
    def _adapters_have_a_part(self) -> "Stage":
        if self.lora is not None and "language" not in self.trainable:
            raise ValueError("lora adapts the language model; add `language` to trainable, or remove lora")
        if self.frozen == "nf4" and "language" in self.trainable and self.lora is None:
            raise ValueError("frozen=nf4 holds the language model in 4 bits, which cannot train; add lora, or use bf16")
        if self.frozen != "fp32" and self.precision == "fp32":
            raise ValueError(f"frozen={self.frozen} computes in bfloat16; set precision=bf16, or frozen=fp32")
        return self


class Recipe(Record):
    """A whole run: parts, methods, stages."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What the run is called."""
    out: str | None = None
    """The run folder; `runs/<name>` by default."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Fixes fresh weights, the order of the data, and dropout: same recipe and seed, same model."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    model: Model | None = None
    """What to assemble; not needed where the first stage starts from a saved model."""
    methods: list[dict[str, Any]] = []
    """Methods of alignment, each `{name: ..., options}`."""
    max_length: Positive = 2048
    """Tokens that a row may have, its visual ones included."""
    blank_images: bool = False
    """Train the blind twin: every image is a grey one of the same size."""
    annotations: str = "annotations"
    """Where `sightline annotate` writes and training looks: features of a frozen tower, columns of methods."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: a whole model in each process (DDP), or its parameters shared out among them (FSDP2)."""
    deterministic: bool = False
    """Refuse operations that give other bits on each call (on a GPU); `--deterministic` sets it."""
    keep_checkpoints: Positive = 2
    """How many of the last checkpoints stay in the run folder."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """Where metrics go beside `metrics.jsonl`."""
    stages: list[Stage] = Field(min_length=1)

    @model_validator(mode="after")
    def _stages_have_their_own_names(self) -> "Recipe":
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages share a name: {names}")
        if self.model is not None and self.stages[0].init_from is not None:
            raise ValueError(
                "model: the first stage starts from a saved model, which has its own parts. Say model=null"
            )
        if self.model is None and self.stages[0].init_from is None:
            raise ValueError("model: missing (or let the first stage start from a saved model with init_from)")
        return self

    @property
    def run_folder(self) -> Path:
        """Where the run writes."""
        return Path(self.out) if self.out else Path("runs") / self.name

    def lineage(self, number: int) -> list[Stage]:
        """The stages whose model a stage has: itself, and those before it back to where a model was loaded."""
        stages = self.stages[: number + 1]
        loaded = max((i for i, stage in enumerate(stages) if stage.init_from is not None), default=0)
        return stages[loaded:]


def shipped_recipes() -> dict[str, Path]:
    """The recipes that ship with Sightline, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe from YAML over its bases, apply dotted overrides such as `stages.0.lr=2e-3`, and check it.

    Args:
        path: a file, or the name of a shipped recipe (`world`).

    Raises:
        SightlineError: with every error at once, each with its place, and the nearest known key for unknown ones.
    """
    shipped = shipped_recipes()
    values, problems = read_recipe(path, shipped)
    problems += [problem for text in overrides if (problem := apply_override(values, text))]
    return check(values, problems, str(find_recipe(path, Path(), shipped)))


def check(values: dict[str, Any], problems: list[str] | None = None, where: str = "recipe") -> Recipe:
    """`values` as a `Recipe`.

    Raises:
        SightlineError: listing `problems` and everything else that is wrong.
    """
    problems = list(problems or [])
    recipe = None
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems += [_describe(e, values) for e in error.errors()]
    if problems or recipe is None:
        lines = "\n".join(f"  {problem}" for problem in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise SightlineError(f"{count} in {where}:\n{lines}")
    return recipe


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; reading it back gives the same recipe."""
    values = recipe.model_dump(mode="json")
    for stage in values["stages"]:
        for key in ("data", "validation"):
            stage[key] = stage[key][0] if len(stage[key]) == 1 else stage[key]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def reference() -> list[tuple[str, str, str]]:
    """Every key of a recipe: its dotted place, its default, what it means. `*` stands for a number or a name."""
    rows: list[tuple[str, str, str]] = [("base", "null", BASE)]

    def walk(record: type[Record], prefix: str) -> None:
        for name, field in record.model_fields.items():
            place = prefix + name
            inner = {"model": Model, "stages": Stage, "data": Data, "validation": Data, "lora": LoRA}.get(name)
            if name == "validation":
                rows.append((place, "[]", " ".join((field.description or "").split())))
            elif name == "lora":
                rows.append((place, "null", " ".join((field.description or "").split())))
                walk(LoRA, f"{place}.")
            elif inner is not None:
                walk(inner, f"{place}.*." if name == "stages" else f"{place}.")
            else:
                default = "required" if field.is_required() else json.dumps(field.default).strip('"')
                rows.append((place, default, " ".join((field.description or "").split())))

    walk(Recipe, "")
    return rows


def _describe(error: Any, values: Any) -> str:
    """One line for one of pydantic's errors, in the words of a recipe and at the place that it has there."""
    place = ".".join(_keys(error["loc"], values))
    kind = error["type"]
    if kind == "extra_forbidden" and error["loc"] == ("base",):
        return "base: is read from a recipe's file alone; put it there"
    if kind == "list_type" and error["loc"] == ("stages",) and isinstance(error["input"], dict):
        return "stages: should be a list; a mapping changes the stages of a `base`, and there is none"
    if kind == "extra_forbidden":
        return f"{place}: unknown key{did_you_mean(str(error['loc'][-1]), _fields_at(error['loc'][:-1]))}"
    if kind == "missing":
        return f"{place}: missing"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if isinstance(error["input"], dict | list) or kind == "value_error" else f" (got {error['input']!r})"
    return f"{place}: {message[0].lower() + message[1:]}{given}" if place else message


def _keys(location: tuple[Any, ...], values: Any) -> list[str]:
    """The keys of a place as they stand in `values`, where one source of data need not be a list."""
    keys = []
    for part in location:
        if _is_branch(part) or (isinstance(part, int) and isinstance(values, dict)):
            continue
        keys.append(str(part))
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
    return keys


def _is_branch(part: Any) -> bool:
    """Whether part of a location is pydantic's name for a branch of a union, not a key of the recipe."""
    return isinstance(part, str) and (part in ("int", "float", "str") or part.startswith("list["))


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    """The keys known at a place in a recipe."""
    record: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        record = {"model": Model, "stages": Stage, "data": Data, "validation": Data, "lora": LoRA}.get(part, record)
    return [*(["base"] if record is Recipe else []), *record.model_fields]

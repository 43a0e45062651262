"""The plan of a comparison: what is claimed, on what, with how many runs. Written before the first of them.

Checked before anything trains: its own keys here, the recipes and files that it names in `checks`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ..config import Positive, Record
from ..errors import did_you_mean

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Setting = list[str]
"""Changes to a recipe, as key=value."""
OURS = ("seed", "out", "name")
"""Keys of a recipe that the comparison sets for each run."""


class Arm(Record):
    """One of the things compared."""

    name: Name
    """What it is called in rows and tables."""
    recipe: str
    """A recipe file, or a shipped recipe's name."""
    overrides: Setting = Field(default_factory=list)
    """Changes to it, as key=value; they count stages as the recipe does, before any is dropped."""
    drop_stages: list[str] = Field(default_factory=list)
    """Names of stages that are left out: `[pretrain]` makes the arm without stage 1."""
    blank_images: Literal["never", "evaluation", "always"] = "never"
    """Grey images when it is evaluated, or in its training too (the blind twin)."""
    settings: list[Setting] | None = None
    """The arm's own settings to try instead of `tuning.settings`, as many as those."""


class Outcome(Record):
    """A score: accuracy on a question file."""

    questions: str
    """The question file; relative to where you are."""
    images: str | None = None
    """The folder of its images; by default `images` beside the file, or its own folder."""
    ability: str | None = None
    """The questions that count; all of them by default."""
    metric: Literal["accuracy"] = "accuracy"
    """Share of right answers."""

    @property
    def file(self) -> str:
        """What rows call the question file."""
        return Path(self.questions).name

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.metric} on {self.file}, {self.ability or 'overall'}"


class Tuning(Record):
    """Settings tried for every arm before the claim's runs; the best mean of the primary outcome's ability is taken."""

    seeds: list[Seed] = Field(min_length=1)
    """Seeds to tune on; none of the claim's."""
    questions: str
    """A question file that is not the claim's: of `validation`."""
    images: str | None = None
    """The folder of its images."""
    settings: list[Setting] = Field(min_length=1)
    """What to try: each a list of key=value."""


class Evaluation(Record):
    """How every run is asked."""

    batch_size: Positive = 32
    """Questions at once."""
    max_new_tokens: Positive = 16
    """Most tokens of an answer."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the weights."""


class Diagnosed(Record):
    """What is measured of every model of the claim's runs: whether a method did to the tokens what it is for."""

    data: str
    """A world folder, or captions in LLaVA's JSON; relative to where you are."""
    split: Literal["validation", "test", "novel"] = "test"
    """Of a world folder."""
    images: Positive = 200
    """Images to look at."""
    scores: list[str] = Field(min_length=1)
    """As `sightline diagnose --out` names them: `words/things/share`."""
    stages: list[str] = Field(default_factory=list)
    """Stages after which a run is looked at too, for arms that have them; they say `save: true`."""


class Plan(Record):
    """A comparison: its arms, seeds, tuning, and the one outcome that it is about."""

    name: Name
    """What the comparison is called; its folder is `comparisons/<name>`."""
    arms: list[Arm] = Field(min_length=2)
    """What is compared."""
    baseline: str | None = None
    """The arm that the others are compared with; the first by default."""
    pairs: list[tuple[str, str]] = Field(default_factory=list)
    """The pairs compared, a minus b; by default each arm minus the baseline."""
    seeds: list[Seed] = Field(min_length=1)
    """The claim's seeds, the same for every arm; a number N stands for 0 to N - 1."""
    primary: Outcome
    """The one outcome that claims are about."""
    split: Literal["test"] = "test"
    """Whose questions those are."""
    smallest_effect: Annotated[float, Field(gt=0, lt=1)]
    """The smallest difference that matters: 0.02 is two points of accuracy."""
    claims: Positive | None = None
    """The number of claims that intervals are corrected for; by default the number of pairs, and never fewer."""
    secondary: list[Outcome] = Field(default_factory=list)
    """Outcomes that are reported and not claimed."""
    diagnostics: Diagnosed | None = None
    """What is measured of the models beside; reported and not claimed."""
    tuning: Tuning | None = None
    """The tuning that every arm gets; none by default."""
    evaluation: Evaluation = Evaluation()
    """How every run is asked."""
    threads: Positive = 1
    """CPU threads of each process; another number may change the last bits."""

    @field_validator("seeds", mode="before")
    @classmethod
    def _a_number_of_seeds(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 0 < value <= 10_000:
                raise ValueError("should be 1 to 10000 seeds, or a list of them")
            return list(range(value))
        return value

    @model_validator(mode="after")
    def _arms_have_their_own_names(self) -> "Plan":
        _once("arms", [arm.name.lower() for arm in self.arms], "rows would overwrite each other")
        _once("seeds", self.seeds, "a run counted twice is not two runs")
        names = [arm.name for arm in self.arms]
        for name in [*([self.baseline] if self.baseline else []), *(name for pair in self.pairs for name in pair)]:
            if name not in names:
                raise ValueError(f"'{name}' is not an arm{did_you_mean(name, names)}. The arms: {', '.join(names)}")
        if any(a == b for a, b in self.pairs):
            raise ValueError("pairs: an arm cannot be compared with itself")
        outcomes = [f"{Path(o.questions)}, {o.ability or 'overall'}" for o in self.outcomes]
        _once("primary and secondary", outcomes, "one outcome would have two intervals, one of them uncorrected")
        _once("pairs", [frozenset(pair) for pair in self.pairs], "one difference would be two claims")
        if self.claims is not None and self.claims < len(self.compared):
            raise ValueError(
                f"claims: {self.claims} are fewer than the {len(self.compared)} pairs compared, so their intervals "
                "would be too narrow. Say as many at least, or compare fewer pairs"
            )
        return self

    @model_validator(mode="after")
    def _runs_belong_to_the_comparison(self) -> "Plan":
        for where, setting in self.all_overrides():
            for text in setting:
                key = text.partition("=")[0].split(".")[0].strip()
                if key in OURS:
                    raise ValueError(f"{where}: {key} is set by the comparison for each run. Leave '{text}' out")
        return self

    @model_validator(mode="after")
    def _tuning_is_apart_and_equal(self) -> "Plan":
        tuning = self.tuning
        for arm in self.arms:
            if arm.settings is None:
                continue
            if tuning is None:
                raise ValueError(f"arm '{arm.name}' has settings and there is no `tuning`. Add it, or leave them out")
            if len(arm.settings) != len(tuning.settings):
                raise ValueError(
                    f"arm '{arm.name}' tries {len(arm.settings)} settings and others {len(tuning.settings)}: more "
                    "tuning is an advantage. Give every arm as many"
                )
        if tuning is None:
            return self
        _once("tuning.seeds", tuning.seeds, "a run counted twice is not two runs")
        both = sorted(set(tuning.seeds) & set(self.seeds))
        if both:
            raise ValueError(
                f"tuning.seeds: {both} are seeds of the claim too, so its runs would have been chosen for their "
                "scores. Tune on other seeds"
            )
        return self

    @property
    def compared(self) -> list[tuple[str, str]]:
        """The pairs, a minus b."""
        baseline = self.baseline or self.arms[0].name
        return self.pairs or [(arm.name, baseline) for arm in self.arms if arm.name != baseline]

    @property
    def num_claims(self) -> int:
        """What intervals are corrected for."""
        return self.claims or len(self.compared)

    @property
    def outcomes(self) -> list[Outcome]:
        """The primary outcome, then the secondary ones."""
        return [self.primary, *self.secondary]

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def settings_of(self, arm: Arm) -> list[Setting]:
        """What tuning tries for an arm; one empty setting where there is no tuning."""
        return [[]] if self.tuning is None else (arm.settings or self.tuning.settings)

    def all_overrides(self) -> list[tuple[str, Setting]]:
        """Every list of overrides with its place."""
        places = [(f"arms.{arm.name}.overrides", arm.overrides) for arm in self.arms]
        places += [(f"arms.{arm.name}.settings", s) for arm in self.arms for s in arm.settings or []]
        return places + [("tuning.settings", s) for s in (self.tuning.settings if self.tuning else [])]


def _once(where: str, values: list[Any], why: str) -> None:
    double = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if double is not None:
        shown = " and ".join(sorted(double)) if isinstance(double, frozenset) else double
        raise ValueError(f"{where}: '{shown}' is there twice; {why}. Leave one out or give it another name")

"""A stage's rows: read from their files, laid out for the model, and tried before anything trains."""

from collections.abc import Callable, Sequence

from ..config import Data, Recipe, Stage
from ..data.dataset import Columns, Head, Mixture, Policies, Rows
from ..data.features import Features
from ..data.sources import open_source
from ..data.templates import get_template
from ..errors import SightlineError
from ..methods.base import Annotation, Reader, Setting
from ..models.assemble import Assembly
from ..models.packing import check_packing
from ..progress import reading_bar
from ..types import Sample
from .objective import Objective
from .setup import set_trainable

Sources = list[Sequence[Sample]]
"""The rows of each source of a stage's data or validation."""


def read_data(sources: Sequence[Data], say: Callable[[str], None] = lambda text: None) -> Sources:
    """The rows of each source of a stage's data: indexed and checked once, read when they are needed.

    Raises:
        SightlineError: if a source cannot be read, or has not as many rows as the recipe says.
    """
    heads: Sources = []
    for data in sources:
        with reading_bar(f"reading {data.path}") as progress:
            source = open_source(data.path, data.images, progress=progress)
        if data.rows is not None and len(source) != data.rows:
            raise SightlineError(
                f"{data.path} has {len(source):,} rows and the recipe expects {data.rows:,}: it may be cut short, or "
                "another version. Fetch it again, or change `rows`."
            )
        if source.notice:
            say(source.notice)
        heads.append(Head(source, data.limit))
    return heads


def lay_out(
    recipe: Recipe,
    stage: Stage,
    data: Sequence[Data],
    sources: Sources,
    assembly: Assembly,
    columns: Columns | None,
    *,
    readers: Sequence[Reader] = (),
    training: bool = True,
    features: Features | None = None,
) -> Mixture:
    """A stage's rows for this model, each source with its template, under the stage's policies; with `features` where
    the tower is not to be run.

    Args:
        columns: values held in memory; those that a stage needs and that are not there come from `readers`.
    """
    asked = assembly.model.model.methods.columns(stage)
    needed = {name: method for name, method in asked.items() if not readers or name in (columns or {})}
    policies = Policies(bad_images=stage.bad_images, long_rows=stage.long_rows)
    parts = []
    for part, samples in zip(data, sources, strict=True):
        processor = assembly.processor(
            get_template(part.template),
            max_length=recipe.max_length,
            blank_images=recipe.blank_images,
            features=features,
        )
        rows = Rows(
            samples,
            processor,
            seed=recipe.seed,
            columns=columns,
            readers=readers,
            needed=needed,
            training=training,
            policies=policies,
        )
        parts.append(rows)
    return Mixture(parts, [part.weight for part in data])


def annotations_of(setting: Setting, columns: Columns | None) -> dict[str, Annotation]:
    """By method, what gives the columns that a stage needs and that are not held in memory."""
    methods = setting.assembly.model.model.methods
    absent = {name: by for name, by in methods.columns(setting.stage).items() if name not in (columns or {})}
    found = {method.name: method.annotation(setting) for method in methods.all if method.name in absent.values()}
    return {name: annotation for name, annotation in found.items() if annotation is not None}


def rehearse(stage: Stage, assembly: Assembly, rows: Mixture, *, world: int = 1) -> None:
    """Find what would stop a stage hours from now: its parts, its weights, the first row of each source.

    Raises:
        SightlineError: for what it finds.
    """
    set_trainable(assembly.model, stage)
    Objective(assembly.model, stage.weights).check_passes(-(-stage.accumulate // world), stage.name)
    if stage.packing:
        check_packing(assembly.model.model.language_model)
    for part in rows.parts:
        for outcome in part.fetch((0, 0)):
            if isinstance(outcome, SightlineError):
                raise outcome

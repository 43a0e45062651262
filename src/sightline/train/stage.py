"""One stage of a run: set up, taken up where it stood, trained, checkpointed, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.resume import Checkpoints, NotWritten, Saved
from ..config import Recipe
from ..data.dataset import Mixture
from ..errors import SightlineError
from ..models.adapters import changed_names, prepare_stage
from ..models.assemble import Assembly
from ..models.modeling import SightlineForConditionalGeneration
from .engine import Engine, outline, put_together
from .folder import fixed, how_to_go_on
from .guards import GradientGuard, NoGradient, assert_unmoved, fingerprint
from .loop import StageRun, tenth, train_stage
from .objective import Objective
from .processes import Processes
from .progress import Reporter
from .setup import build_optimizer, set_trainable
from .signals import Stopped, StopSignal
from .step import NotFinite


@dataclass(frozen=True)
class Desk:
    """What all stages of a run share."""

    recipe: Recipe
    processes: Processes
    reporter: Reporter
    checkpoints: Checkpoints
    stop: StopSignal
    carried: set[str]
    """Names of the parameters that have trained since the model was built: what a checkpoint must hold."""


def run_stage(
    desk: Desk, number: int, assembly: Assembly, rows: Mixture, validation: Mapping[str, Mixture], saved: Saved | None
) -> Assembly:
    """Train one stage to its end, from its start or from a checkpoint in it.

    Args:
        validation: rows to measure on, by the name of their set; "" for those without one.

    Returns:
        The model after it, whole and on the CPU or the device.

    Raises:
        SightlineError: for what stops it; what was done is in a checkpoint wherever that is possible.
        Stopped: if the user asked for it.
    """
    recipe, processes, stage = desk.recipe, desk.processes, desk.recipe.stages[number]
    model = assembly.model
    sharded = processes.several and recipe.parallel == "fsdp"
    prepare_stage(assembly, stage, None if sharded else processes.device, seed=recipe.seed)
    table = set_trainable(model, stage)
    desk.carried.update(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    desk.carried.update(changed_names(model))
    plain = outline(model) if sharded else model
    if not sharded:
        assembly.to(processes.device)
    objective = Objective(model, stage.weights, final_weights=stage.final_weights, packing=stage.packing)
    engine = Engine(objective, stage, processes, recipe.parallel)
    optimizer = build_optimizer(model, table, stage)
    order = rows.order(batch_size=stage.batch_size, accumulate=stage.accumulate, group_by_length=stage.group_by_length)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    guard = GradientGuard(trained, stage.name, past=saved.state["guard"] if saved is not None else None)
    run = StageRun(
        stage, engine, optimizer, rows, validation, order, guard, desk.reporter, processes=processes, stop=desk.stop
    )
    if saved is not None:
        restore(run, saved, desk.carried)
    frozen = fingerprint(model.named_parameters(), processes)
    if saved is not None:
        check_same(saved, {"frozen": frozen, "sizes": list(order.sizes)})

    def keep() -> None:
        desk.reporter.sync()
        tensors = carried_tensors(model, desk.carried)
        state = {
            "recipe": fixed(recipe),
            "stage": number,
            "step": run.step,
            "skipped": run.skipped,
            "samples": run.samples,
            "guard": guard.record(),
            "marks": marks,
            "sizes": list(order.sizes),
            "frozen": frozen,
            "optimized": [name for name, parameter in trained.items() if optimizer.state.get(parameter)],
        }
        desk.checkpoints.save(
            f"{number:02d}-{stage.name}-{run.step:07d}", tensors | optimizer_tensors(optimizer, trained), state
        )

    desk.reporter.start_stage(stage, table, total=run.total, num_rows=sum(order.shares), done=run.step)
    save_every = stage.save_every or tenth(run.total)
    kept = run.step if saved is not None else None
    marks = desk.reporter.mark()  # as of the last step: what is written after it is written again by a run that goes on
    try:
        for step in train_stage(run):
            marks = desk.reporter.mark()
            if step % save_every == 0 or step == run.total:
                keep()
                kept = step
    except (SightlineError, OSError) as error:
        reason = str(error) if isinstance(error, SightlineError) else f"cannot write to the run folder: {error}."
        if isinstance(error, NoGradient):
            raise
        if isinstance(error, NotWritten | OSError) or (processes.several and not isinstance(error, NotFinite)):
            raise SightlineError(f"{reason} Go on: {way_on(desk)}") from None
        if kept != run.step:
            keep()
        raise SightlineError(f"{reason} The first {run.step} steps are safe. Go on: {way_on(desk)}") from None
    if run.step < run.total:
        if kept != run.step:
            keep()
        raise Stopped(
            f"stopped in stage '{stage.name}' after step {run.step} of {run.total}; nothing is lost. "
            f"Go on: {way_on(desk)}",
            desk.stop.signum,
        )
    assert_unmoved(frozen, fingerprint(model.named_parameters(), processes), stage=stage.name)
    desk.reporter.end_stage(run.skipped)
    return replace(assembly, model=put_together(model, plain)) if engine.sharded else assembly


def way_on(desk: Desk) -> str:
    return how_to_go_on(desk.recipe.run_folder)


def carried_tensors(model: SightlineForConditionalGeneration, names: set[str]) -> dict[str, Tensor]:
    """What has trained or been changed since the model was built, and the methods' buffers, by name."""
    wanted = names | {name for name, _ in model.named_buffers() if name.startswith("model.methods.")}
    state = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name in wanted}
    once = {id(tensor): name for name, tensor in reversed(state.items())}  # tied tables have two names
    return {f"model/{name}": state[name].detach() for name in once.values()}


def optimizer_tensors(optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's state (AdamW's moments and step) by the names of the parameters."""
    return {
        f"optimizer/{name}/{key}": value
        for name, parameter in trained.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore(run: StageRun, saved: Saved, carried: set[str]) -> None:
    """Put a stage where a checkpoint says it stood.

    Raises:
        SightlineError: if the checkpoint is not one of this model.
    """
    model, state = run.engine.objective.model, saved.state
    trained = run.guard.named
    for name in state["optimized"]:
        if name not in trained:
            raise SightlineError(f"checkpoint {saved.path} trained '{name}', which this recipe's stage does not.")
        parameter = trained[name]
        fused = any(group.get("fused") for group in run.optimizer.param_groups)
        step = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu")
        moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        run.optimizer.state[parameter] = {"step": step, **moments}
    tensors = carried_tensors(model, carried) | optimizer_tensors(run.optimizer, trained)
    saved.read_into(tensors, several=run.processes.several)
    run.step, run.skipped, run.samples = state["step"], state["skipped"], state["samples"]


def check_same(saved: Saved, now: Mapping[str, Any]) -> None:
    """That what a run rests on is what it was: its recipe, the weights that it does not train, the rows that it reads.

    Raises:
        SightlineError: saying which is another.
    """
    what = {
        "frozen": "the weights that do not train are not those that the run began with: the vision tower or the "
        "language model was replaced, or a library builds it in another way",
        "sizes": "the data has other rows than when the run began",
        "recipe": "it is of a run with another recipe",
    }
    for key, value in now.items():
        if saved.state.get(key) != value:
            raise SightlineError(
                f"checkpoint {saved.path} cannot be gone on with: {what[key]}. Restore what was there, or start in "
                "another folder."
            )

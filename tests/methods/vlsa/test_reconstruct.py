"""Reconstructive training: which images count, where gradients go, what is stored; and that none of it is exported."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from sightline.annotate import images
from sightline.annotate.pictures import IMAGES, SEEDS
from sightline.checkpoints import load_model, save_model, why_not_stock
from sightline.cli import app
from sightline.config import Recipe, check
from sightline.data.collate import collate
from sightline.data.dataset import Rows
from sightline.data.sources import read_llava_json
from sightline.data.templates import get_template
from sightline.errors import SightlineError
from sightline.methods.base import Setting, Sizes
from sightline.methods.compose import build_methods
from sightline.methods.vlsa.reconstruct import LOSS, Reconstruct, draws
from sightline.models.assemble import Assembly, assemble
from sightline.models.diffusion import Latents, load_denoiser, part_config
from sightline.objectives.flow import flow_losses, noised
from sightline.reconstruct import reconstruct as draw
from sightline.train import train
from sightline.train.annotate import annotate_method
from sightline.train.objective import Objective
from sightline.train.run import start
from sightline.train.setup import set_trainable
from sightline.types import Batch
from stores import contents, killed_at_shard

CPU = torch.device("cpu")
SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"
PERCEIVER = {"name": "perceiver"}


def recipe(tiny, pictures: Path, pipeline: Path, folder: Path, *, perceiver=True, weight=1.0, **options) -> Recipe:
    """Two stages of two steps: what stage I of VLSA trains, then all but the VAE."""
    captions = {"path": str(pictures / "captions.json"), "template": "plain"}
    shared = {"batch_size": 4, "steps": 2, "weights": {LOSS: weight}}
    own = ["perceiver"] if perceiver else []
    given = {"name": "reconstruct", "vae": str(pipeline), "denoiser": str(pipeline), "resolution": 16}
    return check(
        {
            "name": "vlsa",
            "out": str(folder / "run"),
            "device": "cpu",
            "annotations": str(folder / "annotations"),
            "model": {"vision": str(tiny["clip"]), "language": str(tiny["llama"])},
            "methods": [PERCEIVER] * perceiver + [given | options],
            "stages": [
                {"name": "one", "data": captions, "trainable": ["connector", *own, "reconstruct.epigone"], "save": True}
                | shared,
                {
                    "name": "two",
                    "data": {"path": str(pictures / "chats.json")},
                    "trainable": ["vision", "connector", "language", *own, "reconstruct"],
                }
                | shared,
            ],
        }
    )


def ready(tiny, pictures, pipeline, folder, *, numbers=(0, 13, 12, 1), epoch=0, **options) -> tuple[Assembly, Batch]:
    """A model that has begun, and a batch of rows: by default one image, none, two images, one."""
    torch.manual_seed(1)
    made = recipe(tiny, pictures, pipeline, folder, **options)
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]), methods=made.methods)
    setting = Setting(made, 0, assembly, CPU)
    method = reconstruct(assembly)
    method.begin(setting)
    rows = Rows(
        read_llava_json(pictures / "chats.json"),
        assembly.processor(get_template("vicuna_v1")),
        seed=0,
        readers=[method.annotation(setting).reader()],
        needed={},
    )
    return assembly, collate([rows[(epoch, row)] for row in numbers], pad_id=rows.processor.pad_id)


def reconstruct(assembly: Assembly) -> Reconstruct:
    method = assembly.model.model.methods["reconstruct"]
    assert isinstance(method, Reconstruct)
    return method


def loss_of(assembly: Assembly, batch: Batch) -> torch.Tensor:
    return reconstruct(assembly).losses(assembly.model.model.trace(batch)[0], batch)[LOSS]


@pytest.mark.parametrize("perceiver", [True, False])
@pytest.mark.parametrize("target", ["clean", "velocity"])
def test_the_loss_is_that_of_a_slow_reference(tiny, pictures, pipeline, tmp_path, perceiver, target):
    """Image by image, from the visual tokens, with the noise that its seed gives."""
    assembly, batch = ready(tiny, pictures, pipeline, tmp_path, perceiver=perceiver, loss=target)
    method, latents = reconstruct(assembly), Latents(str(pipeline))
    epigone, denoiser = method.train_only["epigone"], method.train_only["denoiser"]
    with torch.no_grad():
        trace, _ = assembly.model.model.trace(batch)
        found = method.losses(trace, batch)[LOSS]
        expected = []
        images, seeds = torch.cat(batch.columns[IMAGES]), torch.cat(batch.columns[SEEDS])
        assert len(images) == len(seeds) == 4 and len(set(seeds.tolist())) == 4
        for number in range(4):
            tokens = trace.visual[16 * number : 16 * (number + 1)]
            whole = trace.kept["perceiver/whole"][number] if perceiver else tokens.mean(0)
            prompt, pooled = epigone.prompt(tokens), epigone.pooled(whole)
            clean = latents.encode(images[number : number + 1])
            noise, level = draws(seeds[number : number + 1], clean, 1.0)
            velocity = denoiser(
                hidden_states=noised(clean, noise, level),
                encoder_hidden_states=prompt[None],
                pooled_projections=pooled[None],
                timestep=1000 * level,
            ).sample
            expected.append(flow_losses(velocity, clean, noise, level, target))
    torch.testing.assert_close(found, torch.cat(expected).sum())


def test_images_alone_count(tiny, pictures, pipeline, tmp_path):
    """Rows of text are no images, so they make the mean no smaller; a batch of them alone has a loss of 0."""
    assembly, batch = ready(tiny, pictures, pipeline, tmp_path)
    _, texts = ready(tiny, pictures, pipeline, tmp_path, numbers=(13,))
    _, without = ready(tiny, pictures, pipeline, tmp_path, numbers=(0, 12, 1))
    objective = Objective(assembly.model, {LOSS: 1.0})
    assert [int(objective.counts(each)[LOSS]) for each in (batch, texts, without)] == [4, 0, 4]
    torch.testing.assert_close(loss_of(assembly, batch), loss_of(assembly, without))
    nothing = loss_of(assembly, texts)
    nothing.backward()
    waiting = [p.grad is not None for p in reconstruct(assembly).parameters() if p.requires_grad]
    assert nothing.item() == 0 and all(waiting), "the weights are in its graph, as other processes expect"


def test_a_step_may_be_cut_anywhere(tiny, pictures, pipeline, tmp_path):
    assembly, batch = ready(tiny, pictures, pipeline, tmp_path)
    parts = [ready(tiny, pictures, pipeline, tmp_path, numbers=numbers)[1] for numbers in ((0, 13), (12,), (1,))]
    whole = loss_of(assembly, batch)
    torch.testing.assert_close(whole, torch.stack([loss_of(assembly, part) for part in parts]).sum())
    _, again = ready(tiny, pictures, pipeline, tmp_path)
    assert torch.equal(whole, loss_of(assembly, again)), "a row's noise is its own"
    _, later = ready(tiny, pictures, pipeline, tmp_path, epoch=1)
    assert not torch.allclose(whole, loss_of(assembly, later)), "and another in another epoch"


def test_gradients_reach_what_makes_visual_tokens(tiny, pictures, pipeline, tmp_path):
    assembly, batch = ready(tiny, pictures, pipeline, tmp_path)
    set_trainable(assembly.model, recipe(tiny, pictures, pipeline, tmp_path).stages[0])
    loss_of(assembly, batch).backward()
    reached = {
        name.split(".")[1] if "methods" not in name else name.split(".")[2]
        for name, p in assembly.model.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }
    assert reached == {"multi_modal_projector", "perceiver", "reconstruct"}
    method = reconstruct(assembly)
    assert all(p.grad is None for p in method.train_only["denoiser"].parameters()), "frozen in the first stage"
    assert all(p.grad is not None for p in method.train_only["epigone"].parameters())


def test_stages_train_what_they_name(tiny, pictures, pipeline, tmp_path):
    made = recipe(tiny, pictures, pipeline, tmp_path)
    torch.manual_seed(made.seed)
    before = assemble(str(tiny["clip"]), str(tiny["llama"]), methods=made.methods)
    train(made, quiet=True)
    after = load_model(tmp_path / "run" / "stages" / "one" / "model")
    moved = {
        name.split(".")[2] if "methods" in name else name.split(".")[1]
        for name, p in after.model.named_parameters()
        if ".train_only." not in name and not torch.equal(p, before.model.get_parameter(name))
    }
    assert moved == {"multi_modal_projector", "perceiver"}


def test_nothing_of_it_is_exported(tiny, pictures, pipeline, tmp_path):
    """Alone, its model is a stock checkpoint; and the logits are the same with it and without it."""
    with_it, batch = ready(tiny, pictures, pipeline, tmp_path, perceiver=False)
    assert why_not_stock(with_it.model) == [] == save_model(with_it, tmp_path / "model", get_template("vicuna_v1"))
    without = load_model(tmp_path / "model")
    assert not without.model.model.methods.all
    with_it.model.eval()
    with torch.no_grad():
        a, b = (each.model.model.trace(batch)[0].hidden for each in (with_it, without))
    assert torch.equal(a, b)


def test_a_weight_of_zero_is_the_baseline(tiny, pictures, pipeline, tmp_path):
    """Loss and gradients, bit for bit; and no VAE is loaded."""
    results = []
    for methods in ([], [{"name": "reconstruct", "vae": str(pipeline), "denoiser": str(pipeline), "resolution": 16}]):
        torch.manual_seed(0)
        assembly = assemble(str(tiny["clip"]), str(tiny["llama"]))
        with torch.random.fork_rng():
            other = assemble(str(tiny["clip"]), str(tiny["llama"]), methods=methods)
        other.model.load_state_dict(assembly.model.state_dict(), strict=False)
        _, batch = ready(tiny, pictures, pipeline, tmp_path, perceiver=False)
        objective = Objective(other.model, {LOSS: 0.0} if methods else {})
        loss = objective.total(objective(batch), objective.counts(batch))
        loss.backward()
        results.append((loss.detach(), other.model.model.multi_modal_projector.linear_1.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("target", ["image", "low"])
def test_stored_latents_are_those_of_the_step(tiny, pictures, pipeline, tmp_path, target):
    made = recipe(tiny, pictures, pipeline, tmp_path, latents="stored", target=target)
    with pytest.raises(SightlineError, match=r"no latents of .* images.*annotate RECIPE --method reconstruct"):
        train(made, quiet=True)
    folders = annotate_method(made, "reconstruct", console=Console(quiet=True))
    assert len(folders) == 1, "both stages have the same images"
    online = recipe(tiny, pictures, pipeline, tmp_path, target=target)
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]), methods=made.methods)
    method, latents = reconstruct(assembly), Latents(str(pipeline))
    rows = read_llava_json(pictures / "chats.json")
    stored, pixels = (
        Reconstruct(method.Config(**{k: v for k, v in each.methods[1].items() if k != "name"}), method.sizes)
        .annotation(Setting(each, 1, assembly, CPU, [rows]))
        .reader()
        for each in (made, online)
    )
    for row in (rows[0], rows[12], rows[13]):
        ours, theirs = stored(row, 3), pixels(row, 3)
        assert torch.equal(ours[SEEDS], theirs[SEEDS]) and len(ours[IMAGES]) == len(row.images)
        if row.images:
            torch.testing.assert_close(ours[IMAGES].float(), latents.encode(theirs[IMAGES]), atol=2e-3, rtol=2e-3)
    train(made, quiet=True)
    with pytest.raises(SightlineError, match="encoded in each step"):
        annotate_method(online, "reconstruct", console=Console(quiet=True))


def test_killed_between_shards_the_latents_end_the_same(tiny, pictures, pipeline, tmp_path, monkeypatch):
    """SIGKILL as the second of three shards is written: the first stays, the end is the same bytes."""
    monkeypatch.setattr(images, "SHARD_ROWS", 2)
    made = {n: recipe(tiny, pictures, pipeline, tmp_path / n, latents="stored") for n in ("whole", "killed")}
    store = partial(annotate_method, name="reconstruct", console=Console(quiet=True))
    (whole,) = store(made["whole"])
    killed_at_shard(2, lambda: store(made["killed"]))
    folder = Path(made["killed"].annotations) / whole.name
    first = {path: path.stat().st_ino for path in folder.glob("*-00000.*")}
    assert len(first) == 1 and len(list(folder.glob("*.safetensors"))) == 2, "an index and a shard"
    with pytest.raises(SightlineError, match=r"no latents of .* images.*annotate RECIPE --method reconstruct"):
        train(made["killed"], quiet=True)
    store(made["killed"])
    assert contents(folder) == contents(whole) and len(list(whole.glob("*.safetensors"))) == 4
    assert all(path.stat().st_ino == inode for path, inode in first.items())


def test_the_tower_s_own_tokens_may_be_read(tiny, pictures, pipeline, tmp_path):
    """`reads: vision`: then the reconstruction moves the perceiver, and the connector is the language loss's alone."""
    assembly, batch = ready(tiny, pictures, pipeline, tmp_path, reads="vision")
    loss_of(assembly, batch).backward()
    inner = assembly.model.model
    assert all(p.grad is None for p in inner.multi_modal_projector.parameters())
    assert inner.methods["perceiver"].perceiver.w_o1.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("beside", "reads", "message"),
    [
        ({"name": "anyres"}, "llm", "'anyres' gives images different numbers of visual tokens.*`perceiver`"),
        ({"name": "anyres"}, "vision", "'anyres' gives several there. Say reads=llm"),
        (PERCEIVER | {"space": "llm"}, "vision", "'perceiver' gives several there. Say reads=llm"),
    ],
)
def test_views_that_no_denoiser_can_read_are_refused_before_training(
    tiny, pictures, pipeline, tmp_path, beside, reads, message
):
    made = recipe(tiny, pictures, pipeline, tmp_path, perceiver=False, reads=reads)
    made = made.model_copy(update={"methods": [beside, *made.methods]})
    with pytest.raises(SightlineError, match=message):
        train(made, quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("perceiver", [True, False])
def test_the_whole_image_is_the_perceiver_s_token_or_the_mean(tiny, pictures, pipeline, tmp_path, perceiver):
    assembly, batch = ready(tiny, pictures, pipeline, tmp_path, perceiver=perceiver, reads="vision")
    method = reconstruct(assembly)
    trace = assembly.model.model.trace(batch)[0]
    whole = trace.patches[:, 16] if perceiver else trace.patches.mean(1)
    assert torch.equal(method.condition(trace, batch)[1], method.train_only["epigone"].pooled(whole))


@pytest.mark.parametrize("latents", ["online", "stored"])
def test_its_operations_are_those_that_torch_counts(tiny, pictures, pipeline, tmp_path, latents):
    """The VAE without a way back, and a frozen denoiser with half of one."""
    made = recipe(tiny, pictures, pipeline, tmp_path, latents=latents)
    if latents == "stored":
        annotate_method(made, "reconstruct", console=Console(quiet=True))
    assembly, batch = ready(tiny, pictures, pipeline, tmp_path, latents=latents)
    method = reconstruct(assembly)
    for stage in made.stages:
        set_trainable(assembly.model, stage)
        trace = assembly.model.model.trace(batch)[0]
        trace = replace(trace, visual=trace.visual.detach().requires_grad_())
        trace = replace(trace, kept={name: x.detach().requires_grad_() for name, x in trace.kept.items()})
        with sdpa_kernel(SDPBackend.MATH):  # the one that torch counts on a CPU
            with FlopCounterMode(display=False) as forward:
                loss = method.losses(trace, batch)[LOSS]
            with FlopCounterMode(display=False) as backward:
                loss.backward()
        counted = [x.get_total_flops() / batch.num_images for x in (forward, backward)]
        assert counted == pytest.approx(method.operations((32, 32), 32, stage), rel=0.06), "attention has no weights"
    assert method.operations((32, 32), 32) == (0, 0), "none in generation"


def test_sizes_of_the_paper():
    """Epigone's prompt and pooled prompt as Stable Diffusion 3 takes them; 1.2 kB of config, no weights."""
    with torch.device("meta"):
        (method,) = build_methods(
            [{"name": "reconstruct"}], Sizes(d_vision=1024, d_llm=4096, patches=576, tokens=576)
        ).all
        prompt, pooled = method.train_only["epigone"](torch.zeros(2, 576, 4096), torch.zeros(2, 4096))
    assert prompt.shape == (2, 576, 4096) and pooled.shape == (2, 2048)
    assert 2.0e9 < sum(p.numel() for p in method.train_only["denoiser"].parameters()) < 2.1e9
    assert part_config(SD3, "vae")["scaling_factor"] == 1.5305
    with torch.device("meta"):
        small = build_methods([{"name": "reconstruct", "denoiser": "small"}], method.sizes).all[0]
    assert sum(p.numel() for p in small.train_only["denoiser"].parameters()) < 2e8


def test_a_run_draws_what_its_tokens_keep(tiny, pictures, pipeline, tmp_path):
    """With the parts that training left in the run folder; a stage after it goes on with them."""
    made = recipe(tiny, pictures, pipeline, tmp_path)
    train(made, quiet=True)
    run, images = tmp_path / "run", [pictures / "images" / f"{n}.png" for n in (0, 1)]
    said = CliRunner().invoke(app, ["reconstruct", str(run), *map(str, images), "--out", str(tmp_path / "x.png")])
    assert said.exit_code == 0 and said.stderr.count(" dB") == 2
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.size == (2 * 16 + 8, 2 * 16 + 8)
        assert sheet.getpixel((0, 0)) == (220, 30, 30), "the original, as the model was shown it"
    drawn = draw(run, [Image.open(images[0]).convert("RGB")], steps=3)
    assert torch.equal(drawn.drawn, draw(run, [Image.open(images[0]).convert("RGB")], steps=3).drawn)
    stage = draw(run / "stages" / "one", [Image.open(images[0]).convert("RGB")], steps=3)
    assert not torch.equal(stage.drawn, drawn.drawn), "the first stage left its own"

    loaded = load_model(run)
    assert [record["name"] for record in loaded.model.config.methods] == ["perceiver"], "no denoiser in what is saved"
    left = load_file(run / "train_only.safetensors")
    state = begun_from(run, made)
    assert all(torch.equal(state[name.removeprefix("reconstruct.")], value) for name, value in left.items())

    bad = CliRunner().invoke(app, ["reconstruct", str(run), str(images[0]), "--out", str(tmp_path)])
    assert bad.exit_code == 1 and "cannot be written: the picture is a PNG file" in str(bad.exception)


def begun_from(run: Path, made: Recipe, say=lambda text: None, **options) -> dict[str, torch.Tensor]:
    """What serves training alone, as the next stage has it."""
    dumped = made.model_dump()
    stages = [{**dumped["stages"][1], "init_from": str(run)}]
    methods = [*dumped["methods"][:-1], dumped["methods"][-1] | options]
    onward = check(dumped | {"model": None, "out": str(run) + "-on", "methods": methods, "stages": stages})
    return start(onward, onward.stages[0], None, say).model.model.methods["reconstruct"].state_dict()


def test_a_stage_goes_on_with_a_part_or_begins_it_anew(tiny, pictures, pipeline, tmp_path):
    """Whole or not at all, and not with what the recipe's denoiser is not; what a run has left is asked for nowhere
    else."""
    own = Path(shutil.copytree(pipeline, tmp_path / "own"))
    made = recipe(tiny, pictures, own, tmp_path)
    train(made, quiet=True)
    left, said = load_file(tmp_path / "run" / "train_only.safetensors"), []
    left = {name.removeprefix("reconstruct."): value for name, value in left.items()}
    state = begun_from(tmp_path / "run", made, said.append, denoiser=str(pipeline), rank=3)
    fresh = load_denoiser(str(pipeline)).state_dict()
    assert all(torch.equal(state[f"train_only.denoiser.{name}"], value) for name, value in fresh.items())
    assert state["train_only.epigone.prompt.0.weight"].shape[0] == 3
    assert ["epigone begins anew: what the run left has other sizes" in said[0], len(said)] == [True, 2]
    assert f"denoiser begins anew: the run had it from {own}, and the recipe says {pipeline}" in said[1]
    next((own / "transformer").glob("*.safetensors")).unlink()
    state = begun_from(tmp_path / "run", made)
    assert all(torch.equal(state[name], value) for name, value in left.items())
    assert draw(tmp_path / "run", [Image.new("RGB", (32, 32))], steps=2).drawn.shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "train_only.safetensors").unlink(), "no train_only.safetensors, where the parts that draw"),
        (lambda run: (run / "train_only.safetensors").write_bytes(b"half"), "cannot be read"),
        (lambda run: (run / "recipe.yaml").unlink(), "it has no recipe.yaml"),
    ],
)
def test_a_run_that_cannot_draw_says_why(tiny, pictures, pipeline, tmp_path, spoil, message):
    train(recipe(tiny, pictures, pipeline, tmp_path, perceiver=False), quiet=True)
    spoil(tmp_path / "run")
    with pytest.raises(SightlineError, match=message):
        draw(tmp_path / "run", [Image.new("RGB", (32, 32))])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"resolution": 18}, "resolution=18 is no multiple of 4, the pixels of a denoiser's patch. Use 16"),
        ({"denoiser": SD3}, "works on 16 channels, and VAE .* has 4"),
        ({"vae": "/nowhere"}, "no folder '/nowhere'"),
        ({"loss": "noise"}, "loss"),
        ({"resolution": 64}, "resolution=64 is more than denoiser .* has places for. Use 32 or less"),
        (
            {"vae": "PIPELINE/transformer"},
            "is no vae .* its config is of SD3Transformer2DModel, and diffusers. AutoencoderKL is needed",
        ),
        ({"denoiser": "PIPELINE/vae"}, "is no transformer .* its config is of AutoencoderKL"),
    ],
)
def test_what_does_not_fit_is_refused(pipeline, record, message):
    given = {"name": "reconstruct", "vae": str(pipeline), "denoiser": str(pipeline), "resolution": 16}
    record = {key: str(value).replace("PIPELINE", str(pipeline)) for key, value in record.items()}
    with pytest.raises(SightlineError, match=message), torch.device("meta"):
        build_methods([given | record], Sizes(d_vision=8, d_llm=16, patches=16, tokens=16))

"""Adapters through peft: what they leave alone, what trains, what merging gives, what is refused before training."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sightline.config import LoRA, Stage
from sightline.data.collate import collate
from sightline.data.sources import read_llava_json
from sightline.data.templates import get_template
from sightline.errors import SightlineError
from sightline.models.adapters import changed_names, check_stages, lora_of, merge, prepare_stage
from sightline.models.assemble import Assembly, assemble
from sightline.models.parts import owner_of
from sightline.models.precision import base_linears, is_adapter
from sightline.train.engine import Engine
from sightline.train.objective import Objective
from sightline.train.setup import build_optimizer, set_modes, set_trainable
from sightline.train.step import take_step
from sightline.types import Batch

peft = pytest.importorskip("peft")

LORA = {"rank": 4, "alpha": 8}
PISSA = LORA | {"init": "pissa"}


def stage_of(**changes) -> Stage:
    constant = {"schedule": "constant", "warmup": 0, "lr": 0.01}
    stage = {"name": "s", "data": {"path": "x"}, "trainable": ["connector", "language"]}
    return Stage.model_validate(stage | constant | changes)


def make(tiny, language: str = "llama", **options) -> Assembly:
    torch.manual_seed(0)
    return assemble(str(tiny["clip"]), str(tiny[language]), **options)


def batch_for(assembly: Assembly, pictures: Path) -> Batch:
    process = assembly.processor(get_template("vicuna_v1"))
    return collate([process(sample) for sample in read_llava_json(pictures / "chats.json")[:4]], pad_id=0)


def train_two_steps(assembly: Assembly, stage: Stage, batch: Batch) -> list[float]:
    """Through the loop's own pieces; the losses of both steps."""
    model = assembly.model
    prepare_stage(assembly, stage)
    optimizer = build_optimizer(model, set_trainable(model, stage), stage)
    engine, losses = Engine(Objective(model, {}), stage), []
    for step in (1, 2):
        torch.manual_seed(step)
        set_modes(model, stage)
        losses.append(take_step(engine, [batch], optimizer, stage, step=step).losses["loss"])
    model.eval()
    return losses


def hidden(assembly: Assembly, batch: Batch, *, autocast: bool = False) -> torch.Tensor:
    assembly.model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        trace, _ = assembly.model.model.trace(batch, use_cache=False)
        return assembly.model.lm_head(trace.hidden)


def weights(assembly: Assembly) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in assembly.model.state_dict().items()}


@pytest.mark.parametrize("lora", [LORA, PISSA], ids=["lora", "pissa"])
@pytest.mark.parametrize("language", ["llama", "phi3", "tied", "qwen2"])
def test_adapters_begin_at_the_same_function(language, lora, tiny, pictures):
    """LoRA exactly, PiSSA to rounding: it takes out of the weights what it puts into the adapters."""
    assembly = make(tiny, language)
    batch = batch_for(assembly, pictures)
    before, names = hidden(assembly, batch), {name for name, _ in assembly.model.named_parameters()}
    prepare_stage(assembly, stage_of(lora=lora))
    after = hidden(assembly, batch)
    if lora is PISSA:
        torch.testing.assert_close(after, before, atol=2e-6, rtol=0)
        assert not torch.equal(after, before)
    else:
        assert torch.equal(after, before)
    now = {name for name, _ in assembly.model.named_parameters()}
    assert {name.replace(".base_layer", "") for name in now if not is_adapter(name)} == names
    assert {owner_of(name) for name in now if is_adapter(name)} == {"language"}
    assert lora_of(assembly.model) == LoRA.model_validate(lora)


def test_pissa_begins_at_the_principal_directions(tiny):
    """Meng et al. 2024, section 3: what is left of a weight has its smaller singular values."""
    assembly = make(tiny)
    name = "layers.1.mlp.up_proj"
    weight = assembly.model.model.language_model.get_submodule(name).weight.detach().clone()
    prepare_stage(assembly, stage_of(lora=PISSA))
    left = assembly.model.model.language_model.get_submodule(name).base_layer.weight
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(torch.linalg.svdvals(left.detach())[: -PISSA["rank"]], values[PISSA["rank"] :])


@pytest.mark.parametrize(
    ("lora", "other"),
    [(LORA, {}), (PISSA, {}), (LORA | {"dropout": 0.5}, {}), (LORA, {"precision": "bf16", "frozen": "bf16"})],
    ids=["lora", "pissa", "dropout", "bf16"],
)
def test_training_moves_adapters_and_connector_alone(lora, other, tiny, pictures):
    assembly = make(tiny)
    batch = batch_for(assembly, pictures)
    stage = stage_of(lora=lora, **other)
    prepare_stage(assembly, stage)
    before = weights(assembly)
    losses = train_two_steps(assembly, stage, batch)
    assert losses[1] < losses[0]
    for name, value in assembly.model.state_dict().items():
        moved = name.startswith("model.multi_modal_projector.") or is_adapter(name)
        # A fresh connector's second bias or a fresh A may stay for a step: two are taken.
        assert torch.equal(value, before[name]) != moved, name
    for name, parameter in assembly.model.named_parameters():
        assert parameter.requires_grad == (owner_of(name) == "connector" or is_adapter(name)), name
        whole = parameter.requires_grad or owner_of(name) == "connector" or not other
        assert parameter.dtype == (torch.float32 if whole else torch.bfloat16), name


@pytest.mark.parametrize("lora", [LORA, PISSA], ids=["lora", "pissa"])
def test_merging_computes_the_same(lora, tiny, pictures):
    assembly = make(tiny)
    batch = batch_for(assembly, pictures)
    names = list(assembly.model.state_dict())
    fresh = hidden(assembly, batch)
    train_two_steps(assembly, stage_of(lora=lora), batch)
    trained = hidden(assembly, batch)
    assert not torch.allclose(trained, fresh, atol=1e-3)
    merge(assembly)
    torch.testing.assert_close(hidden(assembly, batch), trained, atol=1e-5, rtol=0)
    assert sorted(assembly.model.state_dict()) == sorted(names)
    assert lora_of(assembly.model) is None
    assert (assembly.model.config.base or {})["trained"] == ["language"]
    train_two_steps(assembly, stage_of(lora=lora), batch)  # others may follow


def test_a_stage_with_the_same_record_goes_on(tiny, pictures):
    assembly = make(tiny)
    batch = batch_for(assembly, pictures)
    train_two_steps(assembly, stage_of(lora=LORA), batch)
    before = weights(assembly)
    prepare_stage(assembly, stage_of(lora=LORA))
    assert all(torch.equal(value, before[name]) for name, value in assembly.model.state_dict().items())


@pytest.mark.parametrize("then", [{}, {"lora": LORA | {"rank": 2}}, {"trainable": ["connector"]}])
def test_a_stage_with_others_or_none_begins_merged(then, tiny, pictures):
    assembly = make(tiny)
    batch = batch_for(assembly, pictures)
    train_two_steps(assembly, stage_of(lora=LORA), batch)
    trained = hidden(assembly, batch)
    prepare_stage(assembly, stage_of(**then))
    torch.testing.assert_close(hidden(assembly, batch), trained, atol=1e-5, rtol=0)
    assert lora_of(assembly.model) == (LoRA.model_validate(then["lora"]) if "lora" in then else None)


def test_targets_choose_layers(tiny):
    assembly = make(tiny)
    prepare_stage(assembly, stage_of(lora=LORA | {"targets": ["q_proj", "layers.2.mlp.up_proj"]}))
    adapted = {name.rpartition(".lora_A.")[0] for name, _ in assembly.model.named_parameters() if ".lora_A." in name}
    inside = "model.language_model.layers"
    assert adapted == {f"{inside}.{i}.self_attn.q_proj" for i in range(3)} | {f"{inside}.2.mlp.up_proj"}


def test_by_default_every_linear_layer_of_the_decoder_is_adapted(tiny):
    assembly = make(tiny, "phi3")
    count = sum(1 for _ in base_linears(assembly.model.model.language_model))
    prepare_stage(assembly, stage_of(lora=LORA))
    adapted = [name for name, _ in assembly.model.named_parameters() if ".lora_A." in name]
    assert len(adapted) == count == 3 * 4


def test_bf16_rounds_what_is_frozen_and_training_returns_to_fp32(tiny, pictures):
    """Rounding is for good; buffers (rotary frequencies) are left in fp32."""
    assembly = make(tiny)
    batch = batch_for(assembly, pictures)
    train_two_steps(assembly, stage_of(trainable=["connector"], precision="bf16", frozen="bf16"), batch)
    kinds = {owner_of(name): p.dtype for name, p in assembly.model.named_parameters()}
    assert kinds == {"vision": torch.bfloat16, "connector": torch.float32, "language": torch.bfloat16}
    assert all(b.dtype == torch.float32 for b in assembly.model.model.language_model.buffers())
    train_two_steps(assembly, stage_of(lora=LORA, precision="bf16", frozen="bf16"), batch)
    for name, parameter in assembly.model.named_parameters():
        if owner_of(name) == "language":
            assert parameter.dtype == (torch.float32 if is_adapter(name) else torch.bfloat16), name
    train_two_steps(assembly, stage_of(precision="bf16", frozen="bf16"), batch)
    kinds = {owner_of(name): p.dtype for name, p in assembly.model.named_parameters()}
    assert kinds == {"vision": torch.bfloat16, "connector": torch.float32, "language": torch.float32}
    assert (assembly.model.config.base or {})["held"] == {
        "vision": ["bf16"],
        "language": ["bf16"],
        "adapted": ["bf16"],
    }


def test_fresh_adapters_depend_on_the_seed_alone(tiny):
    """Not on what was drawn before; and nothing is drawn for others."""
    made = []
    for seed, drawn in ((1, 0), (1, 5), (2, 0)):
        assembly = make(tiny)
        torch.rand(drawn)
        state = torch.random.get_rng_state()
        prepare_stage(assembly, stage_of(lora=LORA), seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        made.append(weights(assembly))
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())
    assert not all(torch.equal(value, made[2][name]) for name, value in made[0].items())


@pytest.mark.parametrize("stages", [({}, {"lora": PISSA}), ({"lora": LORA}, {"lora": PISSA}), ({"lora": PISSA}, {})])
def test_what_changed_and_what_trains_give_back_the_model(stages, tiny, pictures):
    """To take a run up again: a fresh model in the same shape, with those entries of the state dict."""
    first, second = make(tiny), make(tiny)
    batch = batch_for(first, pictures)
    for stage in (stage_of(**values) for values in stages):
        train_two_steps(first, stage, batch)
        prepare_stage(second, stage)
        set_trainable(second.model, stage)
    names = changed_names(first.model) | {name for name, p in first.model.named_parameters() if p.requires_grad}
    assert names == changed_names(second.model) | {n for n, p in second.model.named_parameters() if p.requires_grad}
    state, target = first.model.state_dict(), second.model.state_dict()
    with torch.no_grad():
        for name in names:
            target[name].copy_(state[name])
    assert all(torch.equal(value, state[name]) for name, value in second.model.state_dict().items())
    assert torch.equal(hidden(first, batch), hidden(second, batch))


def test_tied_tables_stay_one(tiny):
    assembly = make(tiny, "tied")
    prepare_stage(assembly, stage_of(lora=LORA, precision="bf16", frozen="bf16"))
    assert assembly.model.lm_head.weight is assembly.model.get_input_embeddings().weight


class TestRefused:
    """Before training, with the fix."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"lora": LORA | {"targets": ["q_prj"]}}, "no linear layer of that name; did you mean 'q_proj'"),
            ({"lora": LORA | {"targets": ["lm_head"]}}, "output layer take no adapters"),
            ({"lora": LORA | {"targets": ["embed_tokens"]}}, "Embeddings and the output"),
            ({"lora": LORA | {"targets": []}}, "lora.targets is empty"),
            ({"lora": PISSA | {"rank": 33}}, "the narrowest has 32. Lower lora.rank"),
        ],
    )
    def test_what_the_model_cannot_do(self, changes, message, tiny):
        assembly = make(tiny)
        before = weights(assembly)
        with pytest.raises(SightlineError, match=message):
            prepare_stage(assembly, stage_of(**changes))
        assert weights(assembly).keys() == before.keys()

    def test_a_quantised_language_model(self, tiny):
        assembly = make(tiny)
        assembly.model.model.language_model.config.quantization_config = {"quant_method": "bitsandbytes"}
        with pytest.raises(SightlineError, match="loaded with weights that are quantised already"):
            prepare_stage(assembly, stage_of(lora=LORA))

    def test_a_decoder_that_cannot_checkpoint(self, tiny, monkeypatch):
        assembly = make(tiny)
        kind = type(assembly.model.model.language_model)
        monkeypatch.setattr(kind, "supports_gradient_checkpointing", False)
        with pytest.raises(SightlineError, match="LlamaModel does not support activation checkpointing"):
            prepare_stage(assembly, stage_of(activation_checkpointing=True))

    @pytest.mark.parametrize(
        ("package", "changes", "command"),
        [
            ("peft", {"lora": LORA}, r"pip install 'sightline\[peft\]'"),
            ("bitsandbytes", {"trainable": ["connector"], "frozen": "nf4", "precision": "bf16"}, r"\[qlora\]"),
        ],
    )
    def test_a_package_that_is_not_there(self, package, changes, command, tiny, monkeypatch):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
        with pytest.raises(SightlineError, match=f"needs {package}, which is not installed. Run: .*{command}"):
            prepare_stage(make(tiny), stage_of(**changes))

    def test_four_bits_are_for_good(self):
        held = stage_of(trainable=["connector"], frozen="nf4", precision="bf16")
        whole, adapted = stage_of(name="two"), stage_of(name="two", lora=LORA, frozen="nf4", precision="bf16")
        pissa = stage_of(name="two", lora=PISSA, frozen="nf4", precision="bf16")
        for fine in ([held, adapted], [whole, held], [pissa, pissa], [held, held]):
            check_stages(fine)
        check_stages([held, whole.model_copy(update={"init_from": "elsewhere"})])
        with pytest.raises(SightlineError, match=r"'two' trains the language model's own .* stage 's' rounds to 4"):
            check_stages([held, held, whole])
        with pytest.raises(SightlineError, match="'two' begins PiSSA"):
            check_stages([held, pissa])


def test_peft_alone_loads_what_a_model_with_adapters_saves(tiny, pictures, tmp_path):
    """A language model and the folder: the same states as ours, for PiSSA through its difference as LoRA."""
    from transformers import AutoModelForCausalLM

    from sightline.checkpoints import save_model

    for lora in (LORA, PISSA):
        assembly = make(tiny)
        train_two_steps(assembly, stage_of(lora=lora), batch_for(assembly, pictures))
        folder = tmp_path / str(lora.get("init"))
        save_model(assembly, folder, get_template("vicuna_v1"))
        ids = torch.arange(2, 20).unsqueeze(0)
        base = AutoModelForCausalLM.from_pretrained(tiny["llama"])
        plain = base(input_ids=ids).logits
        theirs = peft.PeftModel.from_pretrained(base, folder).eval()(input_ids=ids).logits
        ours = assembly.model.eval()(input_ids=ids).logits[..., : theirs.shape[-1]]
        assert not torch.allclose(theirs, plain, atol=1e-3)
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
        ranks = {len(v) for key, v in load_file(folder / "adapter_model.safetensors").items() if "lora_A" in key}
        assert ranks == {4 if lora is LORA else 8}

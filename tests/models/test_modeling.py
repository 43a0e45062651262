"""The forward pass: transformers' own LLaVA wherever it can say the same, and the figure done by hand everywhere."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import parts
from sightline.checkpoints.stock import to_stock, why_not_stock
from sightline.data.collate import collate
from sightline.data.sources import read_llava_json
from sightline.data.templates import get_template
from sightline.errors import SightlineError
from sightline.models.assemble import Assembly, assemble
from sightline.models.modeling import images_per_row
from sightline.types import Batch

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def samples(pictures):
    """Rows with one image, with two images and two exchanges, and with none."""
    rows = {sample.id: sample for sample in read_llava_json(pictures / "chats.json", pictures / "images")}
    return [rows["q1"], rows["two"], rows["text"], rows["q0"]]


def batch_of(assembly: Assembly, samples, side="right") -> Batch:
    process = assembly.processor(get_template("vicuna_v1"))
    return collate([process(sample) for sample in samples], pad_id=process.pad_id, side=side)


def positions(batch: Batch) -> torch.Tensor:
    """As transformers' `generate` numbers left-padded rows: from the first token that is not padding."""
    return (batch.attention_mask.cumsum(1) - 1).clamp(min=0)


def logits(model, batch: Batch, **options) -> torch.Tensor:
    pixels = {"pixel_values": batch.pixel_values} if batch.num_images else {}
    with torch.no_grad():
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **pixels, **options).logits


def by_hand(assembly: Assembly, batch: Batch) -> torch.Tensor:
    """LLaVA's figure with nothing of ours but the weights: encode, select, connect, write row by row, decode."""
    config, inner = assembly.model.config, assembly.model.model
    layers = config.vision_feature_layer
    with torch.no_grad():
        states = inner.vision_tower(batch.pixel_values, output_hidden_states=True).hidden_states
        taken = torch.cat([states[n] for n in ([layers] if isinstance(layers, int) else layers)], dim=-1)
        before = 0 if config.vision_select == "full" else taken.shape[1] - parts.GRID
        visual = inner.multi_modal_projector(taken[:, before:])
        embeds = inner.get_input_embeddings()(batch.input_ids)
        number = 0
        for row, ids in enumerate(batch.input_ids.tolist()):
            places = [at for at, token in enumerate(ids) if token == config.image_token_id]
            while places:
                here, places = places[: visual.shape[1]], places[visual.shape[1] :]
                embeds[row, here] = visual[number]
                number += 1
        assert number == len(visual)
        hidden = inner.language_model(inputs_embeds=embeds, attention_mask=batch.attention_mask).last_hidden_state
        return assembly.model.lm_head(hidden)


def check(assembly: Assembly, samples) -> None:
    batch = batch_of(assembly, samples)
    real = batch.attention_mask.bool()
    ours = logits(assembly.model, batch)
    torch.testing.assert_close(ours[real], by_hand(assembly, batch)[real], atol=TOLERANCE, rtol=0)
    with torch.no_grad():
        trace, _ = assembly.model.model.trace(batch)
    assert torch.equal(assembly.model.lm_head(trace.hidden)[real], ours[real]), "training and serving are one path"
    if not why_not_stock(assembly.model):
        theirs = logits(to_stock(assembly.model), batch)
        torch.testing.assert_close(ours[real], theirs[real], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("vision_layer", [-2, -1, 0, 1, [-2, -1], [0, 2]], ids=str)
@pytest.mark.parametrize("connector", ["linear", "mlp"])
@pytest.mark.parametrize("vision", parts.TOWERS)
def test_every_tower_connector_and_layer(assembled, samples, vision, connector, vision_layer):
    assembly = assembled(vision, "llama", connector=connector, vision_layer=vision_layer)
    check(assembly, samples)
    assert bool(why_not_stock(assembly.model)) == (vision == "registers")


@pytest.mark.parametrize("vision", parts.TOWERS)
def test_with_the_tokens_before_the_patches(assembled, samples, vision):
    """CLIP and DINOv2 put one before the grid, registers four more, SigLIP none."""
    assembly = assembled(vision, "llama", vision_select="full")
    before = {"clip": 1, "dinov2": 1, "registers": 5, "siglip": 0}[vision]
    assert assembly.model.model.sizes.tokens == parts.GRID + before
    check(assembly, samples)
    assert why_not_stock(assembly.model) == []


@pytest.mark.parametrize("language", [*parts.LANGUAGE_MODELS, "tied"])
def test_every_language_model(assembled, samples, language):
    check(assembled("clip", language), samples)


@pytest.mark.parametrize("language", parts.LANGUAGE_MODELS)
def test_padding_changes_nothing(assembled, samples, language):
    """Right-padded as in training, left-padded with the positions of `generate`, and alone: one answer."""
    assembly = assembled("clip", language)
    right, left = (batch_of(assembly, samples, side) for side in ("right", "left"))
    from_right, from_left = logits(assembly.model, right), logits(assembly.model, left, position_ids=positions(left))
    for row, sample in enumerate(samples):
        alone = logits(assembly.model, batch_of(assembly, [sample]))[0]
        torch.testing.assert_close(from_right[row, : len(alone)], alone, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(from_left[row, -len(alone) :], alone, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("language", [*parts.LANGUAGE_MODELS, "tied"])
def test_text_alone_is_the_language_model(tiny, assembled, samples, language):
    """A batch without images gives what the language model gave before anything was put in front of it."""
    assembly = assembled("clip", language)
    batch = batch_of(assembly, [samples[2]])
    plain = AutoModelForCausalLM.from_pretrained(tiny[language])
    expected = logits(plain, batch)
    torch.testing.assert_close(
        logits(assembly.model, batch)[..., : expected.shape[-1]], expected, atol=TOLERANCE, rtol=0
    )


def test_every_image_lands_in_its_own_place(assembled, samples):
    """Exchanging two images of one row changes the answer; exchanging the rows exchanges the answers."""
    assembly = assembled("clip", "llama")
    batch = batch_of(assembly, samples)
    swapped = batch_of(assembly, samples[::-1])
    rows, reverse = logits(assembly.model, batch), logits(assembly.model, swapped).flip(0)
    real = batch.attention_mask.bool()
    torch.testing.assert_close(rows[real], reverse[real], atol=TOLERANCE, rtol=0)

    pair = batch_of(assembly, [samples[1]])
    other = Batch(**{**vars(pair), "pixel_values": pair.pixel_values.flip(0)})
    assert (logits(assembly.model, pair) - logits(assembly.model, other)).abs().max() > 1e-4


@pytest.mark.parametrize("change", [-1, 1])
def test_counts_that_disagree_name_the_rows(assembled, samples, change):
    """One image too few and one too many, each with the numbers: 4 images of 16 tokens are laid out."""
    assembly = assembled("clip", "llama")
    batch = batch_of(assembly, samples)
    pixels = torch.cat([batch.pixel_values, batch.pixel_values[:1]])[: 4 + change]
    wrong = Batch(**{**vars(batch), "pixel_values": pixels})
    message = (
        rf"{16 * (4 + change)} visual tokens for 64 placeholders in samples q1, two, text, q0: .* emits 16 for each"
    )
    with pytest.raises(SightlineError, match=message):
        assembly.model.model.trace(wrong)
    with pytest.raises(SightlineError, match="visual tokens for 64 placeholders in samples prompt 0, prompt 1"):
        assembly.model(input_ids=batch.input_ids, pixel_values=pixels)


def grads(module: nn.Module) -> list[torch.Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


@pytest.fixture
def fresh(tiny) -> Assembly:
    torch.manual_seed(0)
    return assemble(str(tiny["clip"]), str(tiny["llama"]))


@pytest.mark.parametrize("connector", ["linear", "mlp"])
@pytest.mark.parametrize("tower_trains", [False, True])
def test_a_batch_without_images_gives_zero_gradients(tiny, samples, connector, tower_trains):
    """Zero, not none: with several processes every one must reduce the same gradients, or they wait for ever."""
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]), connector=connector, vision_layer=-1)
    inner = assembly.model.model
    inner.vision_tower.requires_grad_(tower_trains)
    trace, _ = inner.trace(batch_of(assembly, [samples[2]]), use_cache=False)
    assert trace.patches.shape == (0, parts.GRID, 32)
    assert trace.visual.shape == (0, 32)
    trace.hidden.square().sum().backward()
    for grad in grads(inner.multi_modal_projector):
        assert grad is not None
        assert not grad.any()
    used = [
        parameter.grad
        for name, parameter in inner.vision_tower.named_parameters()
        if "post_layernorm" not in name  # it makes the pooled output, which nothing reads
    ]
    assert all((grad is not None and not grad.any()) if tower_trains else grad is None for grad in used)
    assert inner.get_input_embeddings().weight.grad.any()


def test_a_frozen_tower_builds_no_graph(fresh, samples):
    inner = fresh.model.model
    inner.vision_tower.requires_grad_(False)
    batch = batch_of(fresh, samples)
    patches = inner.encode(batch.pixel_values)
    assert not patches.requires_grad
    trace, _ = inner.trace(batch, use_cache=False)
    trace.hidden.square().sum().backward()
    assert all(grad is None for grad in grads(inner.vision_tower))
    assert all(grad.any() for grad in grads(inner.multi_modal_projector))


def test_a_training_tower_gets_gradients(fresh, samples):
    inner = fresh.model.model
    trace, _ = inner.trace(batch_of(fresh, samples), use_cache=False)
    assert trace.patches.requires_grad
    trace.hidden.square().sum().backward()
    assert inner.vision_tower.embeddings.patch_embedding.weight.grad.any()


def test_no_graph_without_gradients(fresh, samples):
    """Validation and generation must not build one because a tower trains, not even inside it."""
    tower, seen = fresh.model.model.vision_tower, []
    tower.register_forward_hook(lambda _tower, _inputs, out: seen.append(out.last_hidden_state.requires_grad))
    with torch.no_grad():
        fresh.model.model.encode(batch_of(fresh, samples).pixel_values)
    assert seen == [False]


def test_positions_reach_the_language_model(tiny, samples, tmp_path):
    """Rotary positions are relative, so a shift does not show; GPT-2's are learnt, and padding on the left shows
    unless the positions of `generate` are passed on."""
    words = parts.tokenizer()
    body = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1}
    GPT2LMHeadModel(GPT2Config(**body, tie_word_embeddings=False, initializer_range=0.5)).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    assembly = assemble(str(tiny["clip"]), str(tmp_path))
    left = batch_of(assembly, samples, "left")
    assert left.attention_mask[2, 0] == 0
    alone = logits(assembly.model, batch_of(assembly, [samples[2]]))[0]
    padded = logits(assembly.model, left, position_ids=positions(left))[2, -len(alone) :]
    torch.testing.assert_close(padded, alone, atol=1e-4, rtol=0)
    assert (logits(assembly.model, left)[2, -len(alone) :] - alone).abs().max() > 1e-2


def test_what_a_caller_leaves_out_is_derived(tiny, samples):
    """A server gives ids, mask and pixels; kinds, images of each row and counts are read from them, slots included."""
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]), methods=[{"name": "toy:Toy"}])
    process = assembly.processor(get_template("vicuna_v1"))
    prompts = [process.prompt(sample.images, sample.turns[:1]) for sample in samples]
    batch = collate(prompts, pad_id=process.pad_id, side="left")
    kinds = assembly.model.model.methods.kinds
    assert {kinds[kind] for kind in batch.kinds.unique()} == {"pad", "prompt", "visual", "toy/slot"}
    derived = assembly.model.prefill_batch(batch.input_ids, batch.attention_mask, batch.pixel_values, batch.view_counts)
    for name in ("kinds", "visual_counts", "image_counts", "labels", "view_counts"):
        assert torch.equal(getattr(derived, name), getattr(batch, name)), name
    bare = assembly.model.prefill_batch(batch.input_ids[2:3], None, None, None)
    assert bare.attention_mask.all()
    assert (bare.num_images, bare.image_counts.tolist()) == (0, [0])


def test_labels_give_transformers_loss(assembled, samples):
    """`forward(labels=...)` is what transformers' own tools call: next-token cross-entropy over the labelled tokens."""
    assembly = assembled("clip", "llama")
    batch = batch_of(assembly, samples)
    inputs = {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "pixel_values", "labels")}
    ours, theirs = (model(**inputs).loss for model in (assembly.model, to_stock(assembly.model)))
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def test_images_after_the_prefill_are_refused(assembled, samples):
    assembly = assembled("clip", "llama")
    batch = batch_of(assembly, [samples[0]])
    inputs = {"input_ids": batch.input_ids, "pixel_values": batch.pixel_values}
    with torch.no_grad():
        cache = assembly.model(**inputs, use_cache=True).past_key_values
        with pytest.raises(SightlineError, match="images came after the prefill"):
            assembly.model(**inputs, past_key_values=cache)


def test_images_without_ids_are_refused(assembled, samples):
    """Embeddings are already spliced; taking pixels beside them and dropping them would be silent."""
    assembly = assembled("clip", "llama")
    batch = batch_of(assembly, [samples[0]])
    embeds = assembly.model.get_input_embeddings()(batch.input_ids)
    with pytest.raises(SightlineError, match="inputs_embeds"):
        assembly.model(inputs_embeds=embeds, pixel_values=batch.pixel_values)


@pytest.mark.parametrize(
    ("places", "counts", "expected"),
    [
        ([4, 0, 8], [4, 4, 4], [1, 0, 2]),
        ([3, 5], [3, 5], [1, 1]),
        ([8, 0], [3, 5], [2, 0]),
        ([0, 0], [], [0, 0]),
    ],
)
def test_images_per_row(places, counts, expected):
    """From the placeholders of each row and the lengths of the images, in order."""
    longs = (torch.tensor(values, dtype=torch.long) for values in (places, counts))
    assert images_per_row(*longs).tolist() == expected

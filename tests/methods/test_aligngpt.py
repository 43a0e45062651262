"""AlignGPT: the maths of its slot, and that it is the same in every layout."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sightline.checkpoints import load_model, save_model
from sightline.config import check
from sightline.data.collate import collate
from sightline.data.images import load_image
from sightline.data.templates import get_template
from sightline.errors import SightlineError
from sightline.generation import Assistant
from sightline.methods.aligngpt import GRID, LEVEL, SLOT, AlignGPT, AlignGPTConfig, dot_map, pooled, text_mask
from sightline.methods.base import Setting, Sizes
from sightline.models.assemble import Assembly, assemble, attach_methods
from sightline.models.processing import PROMPT_FIELDS
from sightline.train.objective import Objective
from sightline.train.setup import build_optimizer, set_trainable
from sightline.types import VISUAL, Batch, Example, Sample, Turn

SIZES = Sizes(d_vision=8, d_llm=16, patches=16, tokens=16)


def built(tiny: dict[str, Path], language: str = "llama", **options) -> Assembly:
    """A model with AlignGPT, vectors and gate large enough to be seen in the logits."""
    torch.manual_seed(2)
    assembly = assemble(str(tiny["clip"]), str(tiny[language]), methods=[{"name": "aligngpt", **options}])
    method = method_of(assembly)
    torch.nn.init.normal_(method.levels.weight, std=0.5)
    if method.gate is not None:
        torch.nn.init.normal_(method.gate.first.weight, std=0.02)
        torch.nn.init.normal_(method.gate.last.weight, std=0.3)
    assembly.model.eval()
    return assembly


def method_of(assembly: Assembly) -> AlignGPT:
    method = assembly.model.model.methods["aligngpt"]
    assert isinstance(method, AlignGPT)
    return method


def row(pictures: Path, number: int, *turns: str, images: int = 1) -> Sample:
    """A conversation about pictures: question, answer, question, ..."""
    shown = tuple(pictures / "images" / f"{number + i}.png" for i in range(images))
    texts = ["<image>\n" * images + turns[0], *turns[1:]]
    roles = ["user", "assistant"] * len(texts)
    return Sample(f"r{number}", shown, tuple(Turn(r, t) for r, t in zip(roles, texts, strict=False)))  # pyright: ignore


def laid(assembly: Assembly, *samples: Sample, side: str = "right") -> Batch:
    process = assembly.processor(get_template("vicuna_v1"))
    return collate([process(sample) for sample in samples], pad_id=process.pad_id, side=side)


def logits(assembly: Assembly, batch: Batch) -> torch.Tensor:
    inputs = {name: getattr(batch, name) for name in PROMPT_FIELDS}
    inputs |= {"pixel_values": batch.pixel_values} if batch.num_images else {}
    with torch.no_grad():
        return assembly.model(**inputs).logits


def weights(assembly: Assembly, batch: Batch) -> torch.Tensor:
    """The gate's weights of each row."""
    model, method = assembly.model.model, method_of(assembly)
    with torch.no_grad():
        embeds = model.splice(batch, model.connect(model.encode(batch.pixel_values)))
        return method.weights(embeds, batch)


class TestTheMaths:
    def test_a_gate_that_says_nothing_weighs_all_alike(self):
        """The golden number: E_i = i and alpha = 1/7 give 8 + 28/7 = 12."""
        method = AlignGPT(AlignGPTConfig(), SIZES)
        gate = method.gate
        assert gate is not None and gate.last is not None
        torch.nn.init.zeros_(gate.last.weight)
        torch.nn.init.zeros_(gate.last.bias)
        alpha = gate(torch.randn(3, GRID**2))
        assert torch.allclose(alpha, torch.full((3, 7), 1 / 7))
        table = torch.arange(1.0, 9.0).unsqueeze(1).expand(8, 16)
        assert torch.allclose(alpha @ table[:-1] + table[-1], torch.full((3, 16), 12.0))

    def test_published_sizes(self):
        """149,511 numbers in the published gate and 32,768 in the table of Vicuna 7B."""
        paper = AlignGPT(AlignGPTConfig(preset="aligngpt_paper"), replace(SIZES, d_llm=4096))
        assert paper.gate is not None
        assert sum(p.numel() for p in paper.gate.parameters()) == 149_511
        assert paper.levels.weight.numel() == 32_768
        assert float(paper.levels.weight.detach().std()) == pytest.approx(0.022, abs=5e-4), "xavier"

    @pytest.mark.parametrize("cosine", [True, False])
    def test_the_map_is_that_of_a_slow_reference(self, tiny, pictures, cosine: bool):
        assembly = built(tiny)
        batch = laid(
            assembly,
            row(pictures, 0, "red box cat?", "yes", "and two?", "no"),
            Sample("text", (), (Turn("user", "a box?"), Turn("assistant", "yes"))),
            row(pictures, 1, "two?", "yes", images=2),
        )
        model = assembly.model.model
        with torch.no_grad():
            embeds = model.splice(batch, model.connect(model.encode(batch.pixel_values)))
            words = text_mask(batch, "first_turn", method_of(assembly).kind_ids[SLOT])
            found = dot_map(embeds, batch, words, model.sizes.tokens, cosine=cosine)
        for number in range(len(batch)):
            u = embeds[number][words[number]].mean(0)
            visual = embeds[number][batch.kinds[number] == VISUAL].split(model.sizes.tokens)
            dots = [F.cosine_similarity(view, u.expand_as(view), dim=1) if cosine else view @ u for view in visual]
            maps = [pooled(each.unsqueeze(0))[0] for each in dots if len(each)]
            expected = torch.stack(maps).mean(0) if maps else torch.zeros(GRID**2)
            torch.testing.assert_close(found[number], expected, atol=1e-6, rtol=1e-5)

    def test_a_map_of_24_by_24_stays_and_others_are_pooled(self):
        dots = torch.randn(2, 576)
        assert torch.equal(pooled(dots), dots)
        assert torch.equal(
            pooled(torch.arange(36.0).unsqueeze(0)).view(6, 4, 6, 4).mean((1, 3)).flatten(), torch.arange(36.0)
        )
        assert pooled(torch.randn(1, 729)).shape == pooled(torch.randn(1, 577)).shape == (1, 576)

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"mode": "global"}, lambda table, alpha: table[-1]),
            ({"mode": "average"}, lambda table, alpha: table[:-1].mean(0) + table[-1]),
            ({"mode": "fixed:3"}, lambda table, alpha: table[2]),
            ({"mode": "local"}, lambda table, alpha: alpha @ table[:-1]),
            ({}, lambda table, alpha: alpha @ table[:-1] + table[-1]),
        ],
    )
    def test_modes(self, tiny, pictures, options: dict, expected):
        assembly = built(tiny, **options)
        method, batch = method_of(assembly), laid(assembly, row(pictures, 0, "red box?", "yes"))
        model = assembly.model.model
        with torch.no_grad():
            embeds = model.splice(batch, model.connect(model.encode(batch.pixel_values)))
            alpha = method.weights(embeds, batch)[0] if method.gate is not None else None
            torch.testing.assert_close(method.vectors(embeds, batch)[0], expected(method.levels.weight, alpha))
            with method.forced(5):
                assert torch.equal(method.vectors(embeds, batch)[0], method.levels.weight[4]), "a forced level wins"
            assert method.level is None

    def test_without_the_first_levels_only_the_last_is_left(self, tiny, pictures):
        assembly = built(tiny)
        method, batch = method_of(assembly), laid(assembly, row(pictures, 0, "red box?", "yes"))
        with torch.no_grad():
            method.levels.weight[:-1] = 0
            embeds = assembly.model.model.get_input_embeddings()(batch.input_ids)
            assert torch.equal(method.vectors(embeds, batch)[0], method.levels.weight[-1])


class TestWhatTheGateReads:
    def test_neither_answers_nor_later_turns_move_it(self, tiny, pictures):
        assembly = built(tiny)
        rows = [
            row(pictures, 0, "red box cat?", "yes"),
            row(pictures, 0, "red box cat?", "no table"),
            row(pictures, 0, "red box cat?", "yes", "and a ball?", "two"),
        ]
        each = [weights(assembly, laid(assembly, sample))[0] for sample in rows]
        assert torch.equal(each[0], each[1]) and torch.equal(each[0], each[2])
        other = weights(assembly, laid(assembly, row(pictures, 0, "two balls?", "yes")))[0]
        assert float((other - each[0]).abs().max()) > 1e-3, "another question does"
        short, long = (laid(assembly, rows[0]), laid(assembly, rows[2]))
        same = int((short.kinds != 0).sum()) - 1
        a, b = logits(assembly, short)[0, :same], logits(assembly, long)[0, :same]
        torch.testing.assert_close(a[: same - 1], b[: same - 1], atol=1e-5, rtol=1e-5)

    def test_all_human_turns_and_all_text(self, tiny, pictures):
        longer = row(pictures, 0, "red box?", "yes", "a ball?", "two")
        first, second = row(pictures, 0, "red box?", "yes"), row(pictures, 0, "red box?", "no")
        human, everything = built(tiny, text="human_turns"), built(tiny, preset="aligngpt_paper")
        assert not torch.equal(weights(human, laid(human, longer)), weights(human, laid(human, first)))
        assert torch.equal(weights(human, laid(human, second)), weights(human, laid(human, first)))
        a, b = (weights(everything, laid(everything, sample)) for sample in (first, second))
        assert not torch.equal(a, b), "as published, the answer is in what the gate reads"


class TestLayouts:
    def test_padding_company_and_order_change_nothing(self, tiny, pictures):
        assembly = built(tiny)
        rows = [
            row(pictures, 0, "red?", "yes"),
            Sample("text", (), (Turn("user", "is a cat a table?"), Turn("assistant", "no"))),
            row(pictures, 1, "red box cat two table ball?", "yes", "a?", "no", images=2),
        ]
        alone = [logits(assembly, laid(assembly, sample))[0] for sample in rows]
        for side in ("right", "left"):
            for order in ([0, 1, 2], [2, 1, 0]):
                batch = laid(assembly, *(rows[number] for number in order), side=side)
                together = logits(assembly, batch)
                for place, number in enumerate(order):
                    real = batch.attention_mask[place] == 1
                    torch.testing.assert_close(together[place][real], alone[number], atol=2e-5, rtol=1e-4)

    def test_text_alone_has_no_slot_and_the_language_models_logits(self, tiny):
        assembly = built(tiny)
        batch = laid(assembly, Sample("text", (), (Turn("user", "a cat?"), Turn("assistant", "no"))))
        assert method_of(assembly).kind_ids[SLOT] not in batch.kinds
        with torch.no_grad():
            plain = assembly.model.lm_head(
                assembly.model.model.language_model(input_ids=batch.input_ids).last_hidden_state
            )
        torch.testing.assert_close(logits(assembly, batch), plain)

    def test_a_step_over_text_alone_has_gradients_of_zero(self, tiny):
        assembly = built(tiny)
        batch = laid(assembly, Sample("text", (), (Turn("user", "a cat?"), Turn("assistant", "no"))))
        objective = Objective(assembly.model, {})
        objective.total(objective(batch), objective.counts(batch)).backward()
        method = method_of(assembly)
        for parameter in method.parameters():
            assert parameter.grad is not None and float(parameter.grad.abs().max()) == 0

    def test_generation_with_a_cache_is_the_full_forward(self, tiny, pictures):
        assembly = built(tiny)
        process = assembly.processor(get_template("vicuna_v1"))
        image = pictures / "images" / "0.png"
        prompt: Example = process.prompt([image], [Turn("user", "<image>\nred box?")])
        batch = collate([prompt], pad_id=process.pad_id, side="left")
        inputs = {name: getattr(batch, name) for name in PROMPT_FIELDS} | {"pixel_values": batch.pixel_values}
        options = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
        cached, full = (assembly.model.generate(**inputs, **options, use_cache=cache) for cache in (True, False))
        assert torch.equal(cached, full)

    def test_saved_and_loaded_it_is_the_same(self, tiny, pictures, tmp_path):
        assembly = built(tiny)
        batch = laid(assembly, row(pictures, 0, "red box?", "yes"))
        before = logits(assembly, batch)
        reasons = save_model(assembly, tmp_path / "model", get_template("vicuna_v1"))
        assert reasons == ["method 'aligngpt' changes the forward pass"]
        again = load_model(tmp_path / "model")
        again.model.eval()
        torch.testing.assert_close(logits(again, batch), before)

    def test_training_that_goes_on_keeps_vectors_and_gate_and_takes_other_options(self, tiny, tmp_path):
        assembly = built(tiny)
        save_model(assembly, tmp_path, get_template("vicuna_v1"))
        kept = {name: value.clone() for name, value in method_of(assembly).state_dict().items()}
        for options in ({}, {"mode": "local", "levels": 8}, {"text": "all"}, {"mode": "average"}):
            again = load_model(tmp_path)
            attach_methods(again, [{"name": "aligngpt", **options}])
            method = method_of(again)
            state = method.state_dict()
            assert all(torch.equal(value, kept[name]) for name, value in state.items())
            assert (method.gate is None) == (options.get("mode") == "average") == (len(state) < len(kept))
            assert method.config.mode == options.get("mode", "both") and SLOT in method.kind_ids
            assert again.model.config.methods == [{"name": "aligngpt", **options}]
        for options in ({"levels": 4}, {"gate": "linear"}):
            with pytest.raises(SightlineError, match=r"options need weights that it does not have \(aligngpt\."):
                attach_methods(load_model(tmp_path), [{"name": "aligngpt", **options}])
        with pytest.raises(SightlineError, match="was made with methods"):
            attach_methods(load_model(tmp_path), [])

    @pytest.mark.parametrize("language", ["llama", "qwen2"])
    def test_transformers_own_classes_load_it_and_ask_it(self, tiny, pictures, tmp_path, language: str):
        """`Auto*` classes with Sightline installed: the layout is ours, so is the answer, also in a conversation."""
        assembly = built(tiny, language)
        save_model(assembly, tmp_path / "model", get_template("vicuna_v1"))
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
        processor = AutoProcessor.from_pretrained(tmp_path / "model")
        image = load_image(pictures / "images" / "0.png")
        shown = [{"type": "image", "image": image}, {"type": "text", "text": "red box?"}]
        said = [{"type": "text", "text": "yes"}]
        talk = [
            {"role": "user", "content": shown},
            {"role": "assistant", "content": said},
            {"role": "user", "content": [{"type": "text", "text": "two cats?"}]},
        ]
        found = []
        for messages in (talk[:1], talk):
            inputs = processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
            assert int(inputs["prompt_mask"].sum()) > 0
            with torch.no_grad():
                found.append(model(**inputs).logits[0])
            new = model.generate(**inputs, do_sample=False, max_new_tokens=6)[:, inputs["input_ids"].shape[1] :]
            if messages is not talk:
                asked = Assistant(tmp_path / "model").answers([[image]], ["red box?"], max_new_tokens=6)
                assert processor.batch_decode(new, skip_special_tokens=True)[0].strip() == asked[0]
        same = len(found[0])
        torch.testing.assert_close(found[0], found[1][:same], atol=2e-5, rtol=1e-4)
        ours = laid(assembly, row(pictures, 0, "red box?", "yes", "two cats?", "no"))
        length = min(len(found[1]), ours.input_ids.shape[1])
        torch.testing.assert_close(
            found[1][: length - 2], logits(assembly, ours)[0][: length - 2], atol=2e-5, rtol=1e-4
        )


class TestStages:
    def stage(self, *trainable: str, **more):
        values = {"name": "s", "data": {"path": "x"}, "trainable": [*trainable], **more}
        recipe = {"name": "r", "model": {"vision": "x", "language": "y"}, "stages": [values]}
        return check(recipe)

    def test_a_stage_trains_the_levels_or_the_gate(self, tiny):
        assembly = built(tiny)
        for trains, part in (("aligngpt.levels", "levels."), ("aligngpt.gate", "gate.")):
            recipe = self.stage("connector", trains, lr=1e-4, lr_by_part={trains: 1e-2})
            table = set_trainable(assembly.model, recipe.stages[0])
            moving = {n for n, p in method_of(assembly).named_parameters() if p.requires_grad}
            assert moving == {n for n, _ in method_of(assembly).named_parameters() if n.startswith(part)}
            rates = {
                group["part"]: group["lr"]
                for group in build_optimizer(assembly.model, table, recipe.stages[0]).param_groups
            }
            assert rates == {"connector": 1e-4, trains: 1e-2}
        both = self.stage("aligngpt", lr=1e-4, lr_by_part={"aligngpt.gate": 1e-2}).stages[0]
        rates = {row.part: row.lr for row in set_trainable(assembly.model, both) if row.trainable}
        assert rates == {"aligngpt.levels": 1e-4, "aligngpt.gate": 1e-2}

    def test_a_rate_for_what_does_not_train_is_refused(self):
        with pytest.raises(SightlineError, match=r"lr_by_part names 'aligngpt\.gate'"):
            self.stage("connector", "aligngpt.levels", lr_by_part={"aligngpt.gate": 1e-2})

    def test_each_row_brings_its_level_where_levels_train_alone(self, tiny, pictures):
        assembly, said = built(tiny), []
        method = method_of(assembly)
        recipe = self.stage("connector", "aligngpt.levels")
        assert method.columns(recipe.stages[0]) == (LEVEL,)
        method.begin(Setting(recipe, 0, assembly, torch.device("cpu"), say=said.append))
        assert said == ["stage s: AlignGPT's slot holds each row's own level"]
        batch = laid(assembly, row(pictures, 0, "red?", "yes"), row(pictures, 1, "red?", "yes"))
        batch = replace(batch, columns={LEVEL: (torch.tensor(8), torch.tensor(1))})
        trace, _ = assembly.model.model.trace(batch, use_cache=False)
        slot = batch.kinds == method.kind_ids[SLOT]
        assert torch.equal(trace.embeds[slot], method.levels.weight[[7, 0]])
        gated = self.stage("connector", "language", "aligngpt.gate")
        assert method.columns(gated.stages[0]) == ()
        method.begin(Setting(gated, 0, assembly, torch.device("cpu"), say=said.append))
        assert said[-1] == "stage s: AlignGPT's slot holds mode `both`"


@pytest.mark.parametrize("trains", [("connector", "aligngpt.levels"), ("connector", "language", "aligngpt.gate")])
def test_a_step_takes_at_most_one_percent_more_operations(tiny, tmp_path, trains: tuple[str, ...]):
    """At the published 576 visual tokens: one token more, and a gate over 576 dots. Counted by torch."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=48, patch_size=2
    )
    CLIPVisionModel(vision).save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}).save_pretrained(tmp_path)
    turns = (Turn("user", "<image>\na box?"), Turn("assistant", "red"))
    rows = [Sample(str(number), (Image.new("RGB", (48, 48)),), turns) for number in range(2)]
    operations = {}
    for name, methods in (("without", []), ("with", [{"name": "aligngpt"}])):
        torch.manual_seed(0)
        assembly = assemble(str(tmp_path), str(tiny["llama"]), methods=methods)
        wanted = [part for part in trains if methods or "aligngpt" not in part]
        stage = TestStages().stage(*wanted).stages[0]
        set_trainable(assembly.model, stage)
        batch = laid(assembly, *rows)
        if methods:
            method_of(assembly)._own = method_of(assembly).brings_levels(stage)
            batch = replace(batch, columns={LEVEL: (torch.tensor(3), torch.tensor(8))})
        objective = Objective(assembly.model, {})
        with FlopCounterMode(display=False) as counter:
            objective.total(objective(batch), objective.counts(batch)).backward()
        operations[name] = counter.get_total_flops()
    assert 1 < operations["with"] / operations["without"] < 1.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fixed:9"}, "levels are 1 to 8"),
        ({"mode": "fixed:"}, "is no mode"),
        ({"mode": "most"}, "there are both, local, global, average, and fixed:1"),
        ({"levels": 1}, "greater than or equal to 2"),
    ],
)
def test_options_that_mean_nothing(options: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        AlignGPTConfig(**options)

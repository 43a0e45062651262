"""The processor: what is supervised, what each token is, and that a server would lay it out the same."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import pre_tokenizers, processors

import parts
from sightline.checkpoints.stock import stock_processor
from sightline.data.processor import Processor
from sightline.data.templates import IMAGE, get_template, render
from sightline.data.view import output_size
from sightline.errors import SightlineError
from sightline.methods.base import MethodConfig, Sizes
from sightline.methods.compose import Methods
from sightline.types import ANSWER, IGNORE, PROMPT, VISUAL, Sample, Turn
from toy import Toy, ToyConfig

VICUNA, PLAIN = get_template("vicuna_v1"), get_template("plain")
IMAGES = (Image.new("RGB", (40, 30), (220, 30, 30)), Image.new("RGB", (20, 50), (30, 30, 220)))
SIZES = Sizes(d_vision=32, d_llm=32, patches=parts.GRID, tokens=parts.GRID)


def llama3_like():
    """A byte-level BPE whose offsets leave out leading spaces, as Llama-3's post-processor does."""
    tokenizer = parts.tokenizer()
    trim, bos = processors.ByteLevel(trim_offsets=True), tokenizer.backend_tokenizer.post_processor
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([trim, bos])
    return tokenizer


TOKENIZERS = {
    "bos": lambda: parts.tokenizer(),
    "no-bos": lambda: parts.tokenizer(bos=False),
    "trimmed-offsets": llama3_like,
    "sentencepiece": lambda: parts.sentencepiece_tokenizer(legacy=False),
    "sentencepiece-legacy": lambda: parts.sentencepiece_tokenizer(legacy=True),
}


def equipped(name: str):
    tokenizer = TOKENIZERS[name]()
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": [IMAGE, "<toy>"]})
    return tokenizer


@pytest.fixture(scope="module")
def pixels(assembled):
    return assembled("clip", "llama").image_processor


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def tokenizer(request):
    return equipped(request.param)


@pytest.fixture(scope="module")
def words():
    return equipped("bos")


def sample(*texts: str, images: int | None = None, system: str | None = None) -> Sample:
    """User and assistant turns in alternation, with as many images as there are placeholders."""
    turns = [Turn("system", system)] if system is not None else []
    turns += [Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    count = sum(text.count(IMAGE) for text in texts) if images is None else images
    return Sample("x7", IMAGES[:count], tuple(turns), source="rows.json")


def runs(example) -> list[list[int]]:
    """The ids of each stretch of supervised tokens."""
    found, inside = [], False
    for label in example.labels.tolist():
        if label == IGNORE:
            inside = False
            continue
        if not inside:
            found.append([])
        found[-1].append(label)
        inside = True
    return found


def text_of(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


WHERE = {
    "start": ("<image>\nWhat is this?",),
    "middle": ("Look at <image> and say what it is.",),
    "end": ("What is this? <image>",),
    "alone": ("<image>",),
    "two": ("First <image> then <image>: the same?",),
    "adjacent": ("<image><image>",),
    "none": ("Is snow white?",),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("template", [VICUNA, PLAIN], ids=lambda t: t.name)
def test_supervised_tokens_are_the_answer_and_its_end(tokenizer, pixels, template, where):
    process = Processor(tokenizer, pixels, template, tokens_per_view=parts.GRID)
    question = WHERE[where][0]
    example = process(sample(question, "réd 🎉 box"))
    end = {"plain": "\n", "vicuna_v1": "</s>"}[template.name]
    assert [text_of(tokenizer, ids).removeprefix(" ") for ids in runs(example)] == [f"réd 🎉 box{end}"]
    supervised = example.labels != IGNORE
    assert torch.equal(example.labels[supervised], example.input_ids[supervised])
    assert torch.equal(supervised, example.kinds == ANSWER)


def test_every_answer_is_supervised_and_numbered(tokenizer, pixels):
    process = Processor(tokenizer, pixels, VICUNA, tokens_per_view=parts.GRID)
    example = process(sample("<image>\nWhat?", "a ball", "Sure?", "yes", "Why <image>?", ""))
    assert [text_of(tokenizer, ids).removeprefix(" ") for ids in runs(example)][:2] == ["a ball</s>", "yes</s>"]
    for exchange, answer in enumerate(("a ball</s>", "yes</s>", "</s>")):
        mine = (example.turn_ids == exchange) & (example.labels != IGNORE)
        assert text_of(tokenizer, example.input_ids[mine]).strip() == answer
    assert [int((example.kinds[example.turn_ids == n] == VISUAL).sum()) for n in (0, 1, 2)] == [16, 0, 16]


def test_the_prompt_mask_is_the_users_words(tokenizer, pixels):
    """No system prompt, role names, images or answers; a token belongs to what its last character belongs to."""
    process = Processor(tokenizer, pixels, VICUNA, tokens_per_view=parts.GRID)
    example = process(sample("<image>\nWhat now?", "a ball", "Sure?", "yes", system="Be brief."))
    masked = text_of(tokenizer, example.input_ids[example.prompt_mask])
    assert "".join(masked.split()) == "Whatnow?Sure?"
    assert not (example.prompt_mask & (example.kinds != PROMPT)).any()


def test_what_each_token_is(words, pixels):
    """Laid out by hand, with the byte-level tokenizer: BOS, system, "USER:" and a space, four placeholders, a newline,
    the question, "ASSISTANT:", and then the answer, which alone is supervised."""
    process = Processor(words, pixels, VICUNA, tokens_per_view=4)
    example = process(sample("<image>\nhow?", "two", system="S"))
    tokens = words.convert_ids_to_tokens(example.input_ids)
    assert tokens[:5] == ["<s>", "S", "ĠUSER", ":", "Ġ"]
    assert tokens[5:9] == ["<image>"] * 4
    assert tokens[-1] == "</s>"
    image, newline = 5, 9
    ends = tokens.index("ĠASSISTANT")
    assert "".join(tokens[newline:ends]) == "Ċhow?"
    kinds = [PROMPT] * image + [VISUAL] * 4 + [PROMPT] * (ends + 2 - newline) + [ANSWER] * (len(tokens) - ends - 2)
    assert example.kinds.tolist() == kinds
    assert example.turn_ids.tolist() == [-1, -1] + [0] * (len(tokens) - 2)
    assert torch.nonzero(example.prompt_mask).flatten().tolist() == list(range(newline, ends))


@pytest.mark.parametrize("where", WHERE)
def test_placeholder_counts(words, pixels, where):
    process = Processor(words, pixels, VICUNA, tokens_per_view=7)
    row = sample(*WHERE[where], "yes")
    example = process(row)
    assert int((example.input_ids == process.image_token_id).sum()) == 7 * len(row.images)
    assert example.visual_counts.tolist() == [7] * len(row.images)
    assert example.view_counts.tolist() == [1] * len(row.images)
    assert example.pixel_values.shape == (len(row.images), 3, parts.SIDE, parts.SIDE)
    fields = (example.labels, example.kinds, example.turn_ids, example.prompt_mask)
    assert {len(field) for field in fields} == {len(example)}


texts = st.text(max_size=16).filter(lambda text: "<" not in text)


@pytest.mark.parametrize("template", [VICUNA, PLAIN], ids=lambda t: t.name)
@given(rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=3), pictured=st.booleans())
def test_a_prompt_is_the_beginning_of_its_training_row(tokenizer, pixels, template, rows, pictured):
    """Generation starts exactly where supervision starts: labels are read from one tokenisation, and a prompt is
    another, so a merge over the border would show here."""
    process = Processor(tokenizer, pixels, template, tokens_per_view=3)
    flat = [text for row in rows for text in row]
    # A caption without an image and without BOS has no token that could predict its first.
    pictured = pictured or (template is PLAIN and tokenizer.bos_token is None)
    flat[0] = ("<image>\n" if pictured else "") + flat[0]
    row = sample(*flat)
    example = process(row)
    prompt = process.prompt(row.images, row.turns[:-1])
    assert torch.equal(example.input_ids[: len(prompt)], prompt.input_ids)
    last = example.labels[len(prompt) :]
    assert torch.equal(last, example.input_ids[len(prompt) :])
    own = example.turn_ids[: len(prompt)] == len(rows) - 1
    assert (example.labels[: len(prompt)][own] == IGNORE).all()
    assert (prompt.labels[prompt.turn_ids == len(rows) - 1] == IGNORE).all()


@pytest.mark.parametrize("language", ["llama", "qwen2"])
@pytest.mark.parametrize("vision", ["clip", "siglip"])
@pytest.mark.parametrize("template", [VICUNA, PLAIN], ids=lambda t: t.name)
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_server_lays_out_the_same(assembled, template, vision, language, fit):
    """The processor that a checkpoint carries gives the same ids and the same pixels, row and prompt alike."""
    assembly = assembled(vision, language, image_fit=fit)
    ours, theirs = assembly.processor(template), stock_processor(assembly, template)
    row = sample("<image>\n<image>\nthe same?", "no", "Sure?", "yes")
    content = [{"type": "image", "image": image} for image in row.images] + [{"type": "text", "text": "the same?"}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
    ]

    def ask(messages, **options):
        return theirs.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", **options)

    example, out = ours(row), ask([messages])
    assert torch.equal(out["input_ids"][0], example.input_ids)
    assert torch.equal(out["pixel_values"], example.pixel_values)
    prompt, out = ours.prompt(row.images, row.turns[:-1]), ask([messages[:-1]], add_generation_prompt=True)
    assert torch.equal(out["input_ids"][0], prompt.input_ids)


@pytest.mark.parametrize("where", WHERE)
def test_a_server_given_the_same_text_lays_out_the_same(assembled, where):
    assembly = assembled("clip", "llama")
    row = sample(*WHERE[where], "réd 🎉")
    text, _ = render(VICUNA, row.turns, "</s>")
    theirs = stock_processor(assembly, VICUNA)(
        text=[text], images=list(row.images) if row.images else None, return_tensors="pt"
    )
    assert torch.equal(theirs["input_ids"][0], assembly.processor(VICUNA)(row).input_ids)


class TestSlots:
    @pytest.fixture(params=[("bos", 1), ("no-bos", 0)], ids=["bos", "no-bos"])
    def case(self, request, pixels):
        name, at = request.param
        toy = Methods([Toy(ToyConfig(), SIZES)])
        return Processor(equipped(name), pixels, VICUNA, tokens_per_view=parts.GRID, methods=toy), at

    def test_a_slot_stands_after_bos_or_first(self, case):
        process, at = case
        example = process(sample("<image>\nWhat?", "red"))
        slot = process.slot_token_ids["<toy>"]
        assert torch.nonzero(example.input_ids == slot).flatten().tolist() == [at]
        kind = process.methods.kinds.index("toy/slot")
        assert torch.nonzero(example.kinds == kind).flatten().tolist() == [at]
        marks = (example.labels, example.turn_ids, example.prompt_mask)
        assert [mark[at].item() for mark in marks] == [IGNORE, -1, False]

    def test_all_else_is_as_without_the_method(self, case, pixels):
        process, at = case
        bare = Processor(process.tokenizer, pixels, VICUNA, tokens_per_view=parts.GRID)
        row = sample("<image>\nWhat?", "red")
        example, expected = process(row), bare(row)
        for name in ("input_ids", "labels", "kinds", "turn_ids", "prompt_mask"):
            values = getattr(example, name)
            assert torch.equal(torch.cat([values[:at], values[at + 1 :]]), getattr(expected, name)), name

    def test_only_with_images(self, case):
        process, _ = case
        example = process(sample("Is snow white?", "yes"))
        assert process.slot_token_ids["<toy>"] not in example.input_ids.tolist()

    def test_merged_views_are_laid_out_once(self, case):
        """The toy shows each image twice and merges the views: two views' pixels, one view's placeholders."""
        process, _ = case
        example = process(sample("<image> and <image>?", "red"))
        assert example.view_counts.tolist() == [2, 2]
        assert example.visual_counts.tolist() == [parts.GRID] * 2
        assert len(example.pixel_values) == 4
        single = Processor(process.tokenizer, process.image_processor, VICUNA, tokens_per_view=parts.GRID)
        first = single(sample("<image>", "red", images=1)).pixel_values[0]
        assert torch.equal(example.pixel_values[0], first)
        assert torch.equal(example.pixel_values[1], first.flip(1, 2))

    def test_an_inserted_turn_is_of_its_own_kind(self, case):
        """It is supervised, counted apart, and not the user's words; without a generator there is none."""
        process, _ = case
        row = sample("<image>\nWhat?", "red", "Sure?", "yes")
        example = process(row, rng=np.random.default_rng(0))
        kind = process.methods.kinds.index("toy/answer")
        inserted = example.kinds == kind
        number = str(np.random.default_rng(0).integers(10))
        assert text_of(process.tokenizer, example.input_ids[inserted]) == f" {number}</s>"
        assert torch.equal(example.labels[inserted], example.input_ids[inserted])
        assert set(example.turn_ids[inserted].tolist()) == {1}
        words = text_of(process.tokenizer, example.input_ids[example.prompt_mask])
        assert "".join(words.split()) == "What?Sure?"
        assert not (process(row).kinds == kind).any()

    def test_two_slots(self, pixels):
        """Each is put after BOS in turn, so the last method's stands first; both are there, once."""

        class Second(Toy):
            name = "second"

            @property
            def needs(self):
                full = super().needs
                slot = full.slots[0].__class__("<second>", kind="second/slot", only_with_images=False)
                return full.__class__(slots=(slot,), kinds=())

        tokenizer = equipped("bos")
        tokenizer.add_special_tokens({"additional_special_tokens": ["<second>"]}, replace_extra_special_tokens=False)
        methods = Methods([Toy(ToyConfig(), SIZES), Second(MethodConfig(), SIZES)])
        process = Processor(tokenizer, pixels, VICUNA, tokens_per_view=2, methods=methods)
        with_image, without = process(sample("<image>", "a")), process(sample("b", "a"))
        assert tokenizer.convert_ids_to_tokens(with_image.input_ids[:3]) == ["<s>", "<second>", "<toy>"]
        assert tokenizer.convert_ids_to_tokens(without.input_ids[:2])[1] == "<second>"
        assert "<toy>" not in tokenizer.convert_ids_to_tokens(without.input_ids)


def test_no_supervised_token_is_an_error(words, pixels):
    process = Processor(words, pixels, VICUNA, tokens_per_view=4)
    with pytest.raises(SightlineError, match=r"'x7' \(rows.json\) has no supervised token under template 'vicuna_v1'"):
        process(sample("<image>\nWhat?"))


def test_a_first_token_alone_is_not_supervised(pixels):
    """Nothing stands before it that could predict it: without BOS, a caption of one token trains nothing."""
    process = Processor(equipped("no-bos"), pixels, PLAIN, tokens_per_view=4)
    with pytest.raises(SightlineError, match="has no supervised token under template 'plain'"):
        process(sample("", ""))


def test_an_image_in_an_answer_is_not_supervised(words, pixels):
    """Readers of data refuse it; a sample made by hand may have one."""
    process = Processor(words, pixels, VICUNA, tokens_per_view=4)
    turns = (Turn("user", "Show me."), Turn("assistant", "Here: <image>"))
    example = process(Sample("x7", IMAGES[:1], turns))
    visual = example.input_ids == process.image_token_id
    assert visual.sum() == 4
    assert (example.labels[visual] == IGNORE).all()
    assert (example.kinds[visual] == VISUAL).all()


def test_too_long_is_an_error_with_counts(words, pixels):
    """The length is the whole row with its placeholders: at the limit it passes, one below it does not."""
    row = sample("<image>\nWhat?", "red")
    length = len(Processor(words, pixels, VICUNA, tokens_per_view=16)(row))
    assert len(Processor(words, pixels, VICUNA, tokens_per_view=16, max_length=length)(row)) == length
    tight = Processor(words, pixels, VICUNA, tokens_per_view=16, max_length=length - 1)
    with pytest.raises(
        SightlineError,
        match=rf"'x7' has {length} tokens, 16 of them visual, and max_length is {length - 1}. Raise max_l",
    ):
        tight(row)


def test_counts_of_images_that_disagree_are_an_error(words, pixels):
    process = Processor(words, pixels, VICUNA, tokens_per_view=4)
    with pytest.raises(SightlineError, match="sample 'x7': 1 <image> in its text for 2 images"):
        process(sample("<image> What?", "red", images=2))


def test_blank_images_change_pixels_alone(words, pixels):
    row = sample("<image>\nWhat?", "red")
    seen = Processor(words, pixels, VICUNA, tokens_per_view=4)(row)
    blank = Processor(words, pixels, VICUNA, tokens_per_view=4, blank_images=True)
    example = blank(row)
    assert torch.equal(example.input_ids, seen.input_ids)
    other = Sample("x8", (Image.new("RGB", IMAGES[0].size, "white"),), row.turns)
    assert torch.equal(example.pixel_values, blank(other).pixel_values)
    assert not torch.equal(example.pixel_values, seen.pixel_values)


def test_blank_images_leave_pictures_where_they_are(words, pixels):
    row = sample("<image>\nWhat?", "red")
    before = row.images[0].tobytes()
    Processor(words, pixels, VICUNA, tokens_per_view=4, blank_images=True)(row)
    assert row.images[0].tobytes() == before


def test_a_tokenizer_that_ends_every_text_is_refused(words, pixels):
    ending = copy.deepcopy(words)
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    with pytest.raises(SightlineError, match="add_eos_token=False"):
        Processor(ending, pixels, VICUNA, tokens_per_view=4)


@pytest.mark.parametrize(
    ("lacking", "message"),
    [("eos_token", "no end-of-sequence token"), ("pad_token", "no pad token"), ("image", "no token '<image>'")],
)
def test_a_tokenizer_that_lacks_a_token_is_refused(pixels, lacking, message):
    tokenizer = parts.tokenizer() if lacking == "image" else equipped("bos")
    if lacking == "image":
        tokenizer.pad_token = "</s>"
    else:
        setattr(tokenizer, lacking, None)
    with pytest.raises(SightlineError, match=message):
        Processor(tokenizer, pixels, VICUNA, tokens_per_view=4)


def test_columns_pass_through(words, pixels):
    process = Processor(words, pixels, VICUNA, tokens_per_view=4)
    level = torch.tensor(3)
    assert process(sample("Hi", "Yo"), columns={"toy/level": level}).columns["toy/level"] is level
    assert process(sample("Hi", "Yo")).columns == {}


def test_text_that_begins_with_bos_gets_no_second_one(words, pixels):
    """As transformers' own processors do."""
    process = Processor(words, pixels, VICUNA, tokens_per_view=4)
    example = process(sample("Hi", "Yo", system="<s>S"))
    assert words.convert_ids_to_tokens(example.input_ids[:2]) == ["<s>", "S"]


def test_a_server_sees_a_blank_plain_prompt(assembled):
    """A caption prompt without an image has no words at all; with a tokenizer that has no BOS, no token either."""
    process = assembled("clip", "qwen2").processor(PLAIN)
    prompt = process.prompt((), [Turn("user", "hello")])
    assert len(prompt) == 0
    assert prompt.pixel_values.shape == (0, 3, parts.SIDE, parts.SIDE)


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 3), (3, 3), (1, 200), (2000, 1)])
def test_tiny_and_thin_pictures(words, pixels, size):
    """A height of 1 or 3 can be taken for the channel axis by code that guesses."""
    process = Processor(words, pixels, VICUNA, tokens_per_view=4)
    picture = Image.new("RGB", size, (200, 10, 10))
    example = process(Sample("x7", (picture,), (Turn("user", "<image>"), Turn("assistant", "a"))))
    assert example.pixel_values.shape == (1, 3, parts.SIDE, parts.SIDE)
    red, blue = example.pixel_values[0, 0].max(), example.pixel_values[0, 2].max()
    assert red > blue


def test_output_size_of_processors(assembled):
    for vision in parts.TOWERS:
        for fit in ("pad", "crop"):
            processor = assembled(vision, "llama", image_fit=fit).image_processor
            assert output_size(processor) == (parts.SIDE, parts.SIDE)
            out = processor([IMAGES[0]], return_tensors="pt")["pixel_values"]
            assert out.shape[-2:] == (parts.SIDE, parts.SIDE)


def test_metaspace_is_what_it_says():
    """The new conversion puts a `▁` before the first piece alone; the old one after every special token too."""
    new, old = equipped("sentencepiece"), equipped("sentencepiece-legacy")
    assert isinstance(new.backend_tokenizer.pre_tokenizer, pre_tokenizers.Metaspace)
    assert new.convert_ids_to_tokens(new("<image>a")["input_ids"])[1:] == ["<image>", "a"]
    assert old.convert_ids_to_tokens(old("<image>a")["input_ids"])[1:] == ["<image>", "▁a"]

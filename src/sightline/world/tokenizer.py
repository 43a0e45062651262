"""The tokenizer of the world's backbones: byte-level BPE, small, without unknown tokens.

Every word of the world and of the chat template is one token, with a leading space and without; the words of facts and
distractors are one with a leading space. Anything else falls apart into shorter pieces and at worst into bytes, so that
real sentences can be encoded too. Digits stand alone.
"""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ..data.templates import get_template
from .language import ANSWERS, CAPTION_REQUESTS, NUMBERS, PLACES, TEMPLATES, caption, questions
from .lexicon import CREATURES, DISTRACTORS, FACT_FORMS, FOODS, HOMES, INSTRUMENTS, UNRELATED
from .scene import sample_scene, stream

PAD, IMAGE, BOS, EOS = SPECIAL = ("<pad>", "<image>", "<s>", "</s>")
PAD_ID, IMAGE_ID, BOS_ID, EOS_ID = range(4)
"""CLIP's text tower treats an end-of-sequence id of 2 as a legacy case; 3 avoids it."""

VOCAB_SIZE = 4096
"""An upper bound: training stops earlier, when nothing in the text is left to merge."""
SENTENCES = 400
"""Training scenes whose captions and questions the merges are learned on."""


@cache
def world_words() -> tuple[str, ...]:
    """Every word of the world's captions, questions, answers and requests, without punctuation."""
    texts = [*CAPTION_REQUESTS, *NUMBERS, *PLACES, *(t for texts in TEMPLATES.values() for t in texts)]
    texts += [*(word for words in ANSWERS.values() for word in words), "an", "and", "sign", "shape", "shapes"]
    words = {word.strip(".,?:") for text in texts for word in text.split()}
    return tuple(sorted(word for word in words if word.isalpha()))


@cache
def lexicon_words() -> tuple[str, ...]:
    """The words of facts and distractors; they stand inside sentences, so one token each with a leading space."""
    texts = [*UNRELATED, *(form for forms in FACT_FORMS.values() for form in forms), "the", "repeat"]
    words = {word.strip(".,?:") for text in texts for word in text.split()}
    words |= {*CREATURES, *FOODS, *HOMES, *INSTRUMENTS, *DISTRACTORS}
    return tuple(sorted(word for word in words if word.isalpha()))


def build_tokenizer(*, append_eos: bool = False, max_length: int = 2048) -> PreTrainedTokenizerFast:
    """The tokenizer, trained on the spot in a fraction of a second; the same on every run.

    Args:
        append_eos: end every text with `</s>`, as CLIP's text tower needs it; a language model's is open.
        max_length: the longest text in tokens that the model it is for can take.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}" if append_eos else f"{BOS} $A",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


@cache
def _training_text() -> tuple[str, ...]:
    texts = [f"{word} {word} {word}" for word in world_words() for _ in range(2)]
    texts += [f". {word} {word} {word}" for word in lexicon_words()]
    for i in range(SENTENCES):
        scene = sample_scene(0, "train", i)
        texts.append(caption(scene, stream(0, "train", i, "caption")))
        texts += [q.text for q in questions(scene, "train", i, stream(0, "train", i, "questions"))]
    chat = get_template("vicuna_v1")
    return (*texts, *3 * [f"{chat.system} {chat.user[0]}word{chat.user[1]}{chat.assistant[0]} word"])

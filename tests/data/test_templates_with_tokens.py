"""Templates whose turns end with tokens of their own: what is supervised, and where generation stops."""

from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline.checkpoints import save_model
from sightline.data.templates import TEMPLATES, get_template
from sightline.errors import SightlineError
from sightline.models.assemble import Assembly, assemble
from sightline.models.backbones import add_tokens
from sightline.types import IGNORE, Sample, Turn

SPECIAL = [name for name, template in TEMPLATES.items() if template.tokens and "{eos}" not in template.assistant[1]]


def assembly_for(tiny: dict[str, Path], name: str) -> Assembly:
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]))
    add_tokens(assembly.model, assembly.tokenizer, get_template(name).tokens)
    return assembly


@pytest.mark.parametrize("name", SPECIAL)
def test_the_end_token_is_supervised_and_what_follows_is_not(name: str, tiny: dict[str, Path]) -> None:
    assembly = assembly_for(tiny, name)
    turns = (Turn("user", "Is it red?"), Turn("assistant", "yes"), Turn("user", "Sure?"), Turn("assistant", "no"))
    example = assembly.processor(get_template(name))(Sample("x", (), turns))
    end = get_template(name).tokens[0]
    supervised = assembly.tokenizer.decode(example.input_ids[example.labels != IGNORE])
    assert supervised == f"yes{end}no{end}"
    ends = example.input_ids == assembly.tokenizer.convert_tokens_to_ids(end)
    assert int(ends.sum()) == 4, "one for each turn, each a single token"


@pytest.mark.parametrize("name", SPECIAL)
def test_the_saved_model_stops_at_the_end_token(name: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    assembly = assembly_for(tiny, name)
    save_model(assembly, tmp_path / "model", get_template(name))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "model", backend="pil").tokenizer
    end = tokenizer.convert_tokens_to_ids(get_template(name).tokens[0])
    assert model.generation_config.eos_token_id == [end, tokenizer.eos_token_id]


def test_a_template_of_another_model_is_refused(tiny: dict[str, Path]) -> None:
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]))
    with pytest.raises(SightlineError, match=r"'chatml' needs the token '<\|im_end\|>', which the tokenizer does not"):
        assembly.processor(get_template("chatml"))


def test_an_answer_that_melts_into_the_template_is_refused(tiny: dict[str, Path]) -> None:
    """Qwen's and Llama 3's vocabularies merge newlines: chatml's own and an answer's first would become one token."""
    assembly = assembly_for(tiny, "chatml")
    assembly.tokenizer.add_tokens("\n\n")
    assembly.model.resize_token_embeddings(len(assembly.tokenizer), mean_resizing=False)
    process = assembly.processor(get_template("chatml"))
    with pytest.raises(SightlineError, match=r"sample 'x': an answer begins inside the token '\\n\\n'.*'chatml'"):
        process(Sample("x", (), (Turn("user", "Is it red?"), Turn("assistant", "\nyes"))))
    process(Sample("x", (), (Turn("user", "Is it red?"), Turn("assistant", "yes\n\nsure"))))

"""Constant vectors of methods as embeddings of tokens, so that a stock `llava` checkpoint holds them.

A method that fills its slots with the same vector in every row (AlignGPT in mode `fixed:3`) computes nothing. Its slot
has a token already; export makes the vector this token's embedding, divided by what the language model multiplies
embeddings with (Gemma does), and has the chat template put the token there. Where the output layer shares the table,
the token's logit becomes the vector's too. No other logit moves, and `suppress_tokens` in generation_config.json keeps
`generate` from the token; as a special token it is in no decoded text either way.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import SightlineError
from ..methods.abilities import Levelled
from ..methods.compose import Methods
from ..models.assemble import Assembly
from ..models.modeling import SightlineForConditionalGeneration
from .stock import changes_forward, why_no_stock_trunk, why_not_stock


def hold_constant(model: SightlineForConditionalGeneration, level: str) -> None:
    """Make constant what rows decide, as `--level` says.

    Raises:
        SightlineError: if no method takes it, or the model could be no stock checkpoint even then.
    """
    levelled = model.model.methods.levelled
    if levelled is None:
        raise SightlineError(f"level {level}: no method of this model has levels to hold. Leave --level out.")
    levelled.hold(level)
    if not constant_vectors(model, "the model"):
        reasons = why_not_stock(model, without=levelled) or ["no stock class has both its views and a baked token"]
        raise SightlineError(
            f"level {level} is held for a stock llava checkpoint, and this model can be none: {'; '.join(reasons)}. "
            "Leave --level out."
        )


def constant_vectors(model: SightlineForConditionalGeneration, name: str) -> dict[str, Tensor]:
    """The vectors to bake in, by token; none where the model would be no stock checkpoint with them either.

    Args:
        name: what errors call the model.

    Raises:
        SightlineError: if a method computes its vector for each row, and could hold it constant.
    """
    changing = [method for method in model.model.methods.all if changes_forward(method)]
    given = {method: method.constants() for method in changing}
    if any(not slot.only_with_images for method in changing for slot in method.needs.slots):
        return {}  # the chat template puts tokens before conversations with images alone
    live = [method for method in changing if given[method] is None]
    levelled = [method for method in live if isinstance(method, Levelled)]
    if why_no_stock_trunk(model) or len(levelled) < len(live):
        return {}
    if levelled:
        raise SightlineError(
            f"'{name}': method '{levelled[0].name}' computes what stands in its slot from the question and the image "
            "of each row, and a stock llava checkpoint can only hold one vector for all. Hold it constant, which "
            f"changes what the model computes: --level K ({levelled[0].choices}). Or keep it as it is, in a "
            "model that needs Sightline: --live."
        )
    return {token: vector for vectors in given.values() for token, vector in (vectors or {}).items()}


@torch.no_grad()
def bake(assembly: Assembly, vectors: Mapping[str, Tensor]) -> bool:
    """Make vectors the embeddings of their tokens, and take the methods out.

    Returns:
        Whether the language model reads the very same vectors from its table; a scale of embeddings rounds them.
    """
    model = assembly.model
    table: Any = model.get_input_embeddings()
    exact = True
    ids = {token: assembly.tokenizer.convert_tokens_to_ids(token) for token in vectors}
    for token, vector in vectors.items():
        place = torch.tensor(ids[token], device=vector.device)
        table.weight[place] = 1  # what the table gives is then its scale
        table.weight[place] = vector / table(place)
        exact &= torch.equal(table(place), vector.to(table.weight.dtype))
    model.model.methods = Methods(prefix_tokens=vectors)
    model.config.methods = []
    model.config.prefix_tokens, model.config.slot_token_ids = list(vectors), ids
    settings = model.generation_config
    if settings is not None:
        settings.suppress_tokens = sorted({*(settings.suppress_tokens or []), *ids.values()})
    return exact

"""What the world's language model knows of scenes described in words: the numbers of its card."""

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from .language import caption, questions
from .lm_data import Writer
from .scene import Split, sample_scene, stream
from .tokenizer import BOS_ID


@torch.no_grad()
def measure_lm(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    split: Split = "validation",
    scenes: int = 300,
    seed: int = 0,
    batch: int = 128,
) -> dict[str, float]:
    """Accuracy of the first answer token, by ability, and of colour and shape by the number of things
    (`colour_2`).

    Each question stands alone in a `vicuna_v1` chat with one caption where an image will stand.
    """
    model = model.float().eval()
    writer = Writer(tokenizer)
    asked: list[tuple[list[int], int, list[str]]] = []
    for i in range(scenes):
        scene = sample_scene(seed, split, i)
        told = writer.encode(caption(scene, stream(seed, split, i, "caption")))
        lead = [BOS_ID, *writer.encode(writer.lead), *told, *writer.encode("\n")]
        for q in questions(scene, split, i, stream(seed, split, i, "questions")):
            keys = [q.ability]
            if q.ability in ("colour", "shape"):
                keys.append(f"{q.ability}_{len(scene.things)}")
            ids = [*lead, *writer.encode(q.text + writer.reply)]
            asked.append((ids, writer.encode(f" {q.answer}")[0], keys))

    right: dict[str, list[bool]] = {}
    for start in range(0, len(asked), batch):
        rows = asked[start : start + batch]
        ends = torch.tensor([len(ids) - 1 for ids, _, _ in rows])
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids, _, _ in rows], batch_first=True)
        hidden = model.model(input_ids=ids).last_hidden_state[torch.arange(len(rows)), ends]
        for guess, (_, answer, keys) in zip(model.lm_head(hidden).argmax(-1).tolist(), rows, strict=True):
            for key in keys:
                right.setdefault(key, []).append(guess == answer)
    return {key: round(sum(hits) / len(hits), 4) for key, hits in sorted(right.items())}

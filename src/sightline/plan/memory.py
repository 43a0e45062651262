"""Memory of a process, in bytes, at the moment of a step that takes most.

    weights      what does not train: 4 bytes a number in fp32, 2 in bf16; in nf4 half a byte and 1/16 for the scales
                 (the decoder's linear layers; the rest of the model bf16). What trains: 4 bytes, fp32
    gradients    4 bytes for what trains
    optimizer    8 bytes for what trains: AdamW's two moments
    activations  what autograd keeps from the forward to the backward pass, see `decoder_layer`; under activation
                 checkpointing each layer's input alone
    working      the larger of: the loss (12 bytes for each score in the backward pass), or a layer's backward pass (its
                 gradients, and its activations where they are computed again); with the bf16 copies of fp32 matrices
                 that autocast makes. Under FSDP: the whole weights of two layers and of what stands outside the layers
    libraries    the CUDA context and what kernels claim, about a GiB

Attention is torch's fused one: no memory that grows with the square of the length. FSDP divides weights, gradients and
optimizer by the number of processes; a frozen tower stays whole in each. Not counted: fragmentation, NCCL's buffers,
and padding (the rows are taken at equal length). AdamW is taken to be fused, without temporaries.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from .flops import Rows, Training
from .shapes import Shapes, Stack

LIBRARIES = 2**30
Held = Literal["fp32", "bf16", "nf4"]
BYTES = {"fp32": 4.0, "bf16": 2.0}
NF4 = 0.5 + 4 / 64
"""Bytes of a number in nf4: four bits, and an fp32 scale for each 64."""


@dataclass(frozen=True)
class Setting:
    """How a stage computes and holds, and how many processes share it."""

    precision: Literal["fp32", "bf16"]
    frozen: Held
    parallel: Literal["ddp", "fsdp"]
    processes: int = 1

    @property
    def shards(self) -> int:
        """Over how many processes the model is shared out."""
        return self.processes if self.parallel == "fsdp" else 1

    @property
    def compute(self) -> int:
        """Bytes of a number in matrix products."""
        return 2 if self.precision == "bf16" else 4


@dataclass(frozen=True)
class Memory:
    """Bytes of one process."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    libraries: int = LIBRARIES

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def frozen_bytes(shapes: Shapes, part: str, held: Held) -> int:
    """A part's weights where none of them trains, adapters apart. Connector and methods stay fp32."""
    size = shapes.parameters[part]
    if part not in ("vision", "language"):
        return 4 * size
    if held == "nf4" and part == "language":
        matrices = shapes.language.layers * shapes.language.weights
        return round(NF4 * matrices + 2 * (size - matrices))
    return round(BYTES["bf16" if held == "nf4" else held] * size)


def decoder_layer(shapes: Shapes, setting: Setting, training: Training) -> int:
    """Bytes that autograd saves for each token in a decoder layer, with fused attention.

    With width d, all heads h, feed-forward f, and a the bytes of the compute type:

        4 x 2d                the input of each norm, in fp32
        a x (4h + 3f)         queries, keys, values (repeated for grouped queries) and what attention gives; the gate,
                              its activation and the other factor (2f where there is no gate)
        a x f + norms         where the weights train: the last matrix's input, what each norm gives before its own
                              weights, and after them; the latter again for each matrix that reads it, where autocast
                              copies it from fp32
        a x (inputs + ranks)  where adapters train: what they pass on, and what they read, a copy in each where autocast
                              or dropout makes one (dropout with its mask, a byte a number on GPUs); else 2d + f
    """
    stack, a = shapes.language, setting.compute
    total = 8 * stack.width + a * (4 * stack.attention + (3 if stack.gated else 2) * stack.hidden) + 4 * stack.heads
    if training.whole_language:
        stream = stream_bytes(setting, training)
        total += a * stack.hidden + 2 * stream * stack.width
        total += a * stack.width * (_readers(stack) if stream > a else 2)
    elif training.language and training.lora is not None:
        adapted = stack.adapted(training.lora)
        total += a * training.lora.rank * len(adapted)
        dropout, inputs = training.lora.dropout > 0, sum(layer.inputs for layer in adapted)
        if a < 4 or dropout:
            total += (a + dropout) * inputs
        else:
            total += a * (2 * stack.width + stack.hidden)
    return total


def stream_bytes(setting: Setting, training: Training) -> int:
    """Bytes of a number in the decoder's residual stream: those of its embeddings as they are computed with."""
    if setting.precision == "fp32":
        return 4
    held = "fp32" if training.whole_language else setting.frozen
    return 2 if setting.shards > 1 or held != "fp32" else 4


def tower_layer(stack: Stack, setting: Setting) -> int:
    """Bytes for each token in a layer of a tower that trains: norms in fp32, four projections, two feed-forwards."""
    a = setting.compute
    copies = a * stack.width * _readers(stack) if a < 4 else 8 * stack.width
    return 8 * stack.width + a * (4 * stack.attention + 3 * stack.hidden) + copies + 4 * stack.heads


def _readers(stack: Stack) -> int:
    """Matrices of a layer that read what a norm gives: all but the last of each half."""
    return sum(linear.inputs == stack.width for linear in stack.linears) - (stack.attention == stack.width)


def activations(shapes: Shapes, batch: Rows, setting: Setting, training: Training) -> int:
    """Bytes that autograd keeps after the forward pass of a micro-batch, its logits apart."""
    a, tokens = setting.compute, batch.rows * batch.sequence
    total = pixel_bytes(shapes, batch)
    if training.vision:
        in_tower = batch.views * shapes.tiles * shapes.tower_tokens
        total += shapes.deepest * in_tower * tower_layer(shapes.vision, setting) + tile_bytes(shapes, batch)
    if training.connector or training.into_connector:
        views = batch.views // shapes.views * shapes.connected
        for layer, count in zip(shapes.connector, shapes.connector_tokens, strict=True):
            total += a * views * count * layer.inputs
        hidden = zip(shapes.connector[:-1], shapes.connector_tokens[:-1], strict=True)
        total += sum(a * views * count * layer.outputs for layer, count in hidden)
    total += batch.views // shapes.views * training.methods_kept * a // 4
    if training.through_decoder:
        stack, layer = shapes.language, tokens * decoder_layer(shapes, setting, training)
        kept = tokens * stack.width * stream_bytes(setting, training)
        total += stack.layers * (kept if training.checkpointing else layer)
        total += tokens * stack.width * (4 + (stream_bytes(setting, training) if training.whole_language else 0))
    if training.whole_language:
        total += a * batch.supervised * shapes.language.width
    return total


def pixel_bytes(shapes: Shapes, batch: Rows) -> int:
    """Bytes of the images of a micro-batch, at the largest scale of the tower."""
    return 4 * batch.views * 3 * (shapes.image_size * max(shapes.scales)) ** 2


def tile_bytes(shapes: Shapes, batch: Rows) -> int:
    """Bytes of the tiles that they are cut into; none where the tower sees them as they are."""
    return 4 * batch.views * shapes.tiles * 3 * shapes.image_size**2 if shapes.tiles > 1 else 0


def working(shapes: Shapes, batch: Rows, trained: Mapping[str, int], setting: Setting, training: Training) -> int:
    """What comes and goes within a step, at the largest of its moments."""
    scores = batch.supervised * shapes.vocabulary
    layer = layer_backward(shapes, batch, setting, training)
    every, head, one = copies(shapes, trained, setting, training)
    if not training.checkpointing:
        return every + max(12 * scores, layer)
    # Under checkpointing autocast's copies live until the forward pass ends, with the log-softmax, its logits and no
    # more; in the backward pass only the head's are left, and those of the layer that is computed again.
    return max(every + 8 * scores, head + 12 * scores, one + layer)


def layer_backward(shapes: Shapes, batch: Rows, setting: Setting, training: Training) -> int:
    """Inside one decoder layer's backward pass; or, if larger, all states of the tower in its forward one, with the
    tiles that they are of, less what a frozen tower's forward pass finds not yet there: the activations behind it."""
    tokens, stack = batch.rows * batch.sequence, shapes.language
    layer = tokens * setting.compute * (2 * stack.hidden + 4 * stack.width)
    if training.checkpointing:
        layer += tokens * decoder_layer(shapes, setting, training)
    states = (shapes.vision.layers + 1) * batch.views * shapes.tiles * shapes.tower_tokens * shapes.vision.width
    forward = states * setting.compute + tile_bytes(shapes, batch)
    if not training.vision:
        forward -= activations(shapes, batch, setting, training) - pixel_bytes(shapes, batch)
    return max(layer if training.through_decoder else 0, forward)


def copies(shapes: Shapes, trained: Mapping[str, int], setting: Setting, training: Training) -> tuple[int, int, int]:
    """Weights that a step works with beside those that it holds: all of them, those at the loss, and at a layer."""
    stack, head = shapes.language, 2 * shapes.language.width * shapes.vocabulary
    if setting.shards > 1:
        tower = shapes.vision if training.vision else None
        layers = stack.layers * stack.parameters + (tower.layers * tower.parameters if tower else 0)
        whole = sum(shapes.parameters.values()) - (0 if tower else shapes.parameters["vision"])
        total = setting.compute * (whole - layers + 2 * stack.parameters)
        if training.whole_language:
            total += 4 * stack.parameters + setting.compute * (whole - layers)
        return total, total, total
    if setting.precision == "fp32":
        return 0, 0, 0
    of_trained = 2 * sum(trained.values())
    if training.whole_language:
        return of_trained, head, 2 * stack.parameters
    if setting.frozen == "fp32" and training.through_decoder:
        return of_trained + head + 2 * stack.layers * stack.weights, head, 2 * stack.weights
    return of_trained, 0, 0


def step_memory(
    shapes: Shapes, batch: Rows, trained: Mapping[str, int], training: Training, setting: Setting
) -> Memory:
    """Bytes of one process that trains with micro-batches of `batch`.

    Args:
        trained: how many numbers of each part train; of a language model with adapters, those of the adapters.
    """
    weights = 0.0
    for part, size in shapes.parameters.items():
        if part == "language" and training.language and training.lora is not None:
            held = frozen_bytes(shapes, part, setting.frozen) + 4 * trained[part]
        else:
            held = 4 * size if trained[part] else frozen_bytes(shapes, part, setting.frozen)
        stays = part == "vision" and not training.vision
        weights += held if stays else held / setting.shards
    numbers = sum(trained.values()) / setting.shards
    return Memory(
        weights=round(weights),
        gradients=round(4 * numbers),
        optimizer=round(8 * numbers),
        activations=activations(shapes, batch, setting, training),
        working=working(shapes, batch, trained, setting, training),
    )

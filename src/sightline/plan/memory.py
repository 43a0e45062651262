"""Memory of a process, in bytes, at the two moments when a step takes most: the loss, and a layer's backward pass.

    weights      what does not train: 4 bytes a number in fp32, 2 in bf16; in nf4 half a byte and 1/16 for the scales
                 (the decoder's linear layers; the rest of the model bf16). What trains: 4 bytes, fp32
    gradients    4 bytes for what trains; as much again under DDP, for its buckets
    optimizer    8 bytes for what trains: AdamW's two moments
    copies       bf16 copies of fp32 matrices, which autocast makes and the graph keeps; under FSDP the whole weights of
                 two layers and of what stands outside the layers, with the gradients of one layer and of the latter
    activations  what autograd saves, see `decoder_layer`; under activation checkpointing each layer's input, and one
                 layer
    peak         the logits (bf16, fp32, and their gradient), or the temporaries of a layer's backward pass: the larger
    libraries    the CUDA context and what kernels claim, about a GiB

Attention is torch's fused one: no memory that grows with the square of the length. FSDP divides weights, gradients and
optimizer by the number of processes; a frozen tower stays whole in each. Not counted: fragmentation, NCCL's buffers,
what methods keep, and padding (the rows are taken at equal length).
"""

from dataclasses import asdict, dataclass
from typing import Literal

from .flops import Rows, Training, adapter_weights
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
    copies: int
    activations: int
    peak: int
    libraries: int = LIBRARIES

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def trained_parameters(shapes: Shapes, trainable: tuple[str, ...], training: Training) -> dict[str, int]:
    """How many numbers of each part train."""
    sizes = {part: size if part in trainable else 0 for part, size in shapes.parameters.items()}
    if training.language and training.lora is not None:
        stack = shapes.language
        sizes["language"] = stack.layers * adapter_weights(stack.adapted(training.lora), training.lora)
    return sizes


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
        a x f + norms         where the weights train: the last matrix's input, and what each norm gives, again for each
                              matrix that reads it (autocast makes a copy for each)
        a x (inputs + rank)   for each adapter: its own copy of what the matrix reads, and what it passes on
    """
    stack, a = shapes.language, setting.compute
    total = 8 * stack.width + a * (4 * stack.attention + (3 if stack.gated else 2) * stack.hidden) + 4 * stack.heads
    if training.whole_language:
        stream = stream_bytes(setting, training)
        total += a * stack.hidden + 2 * stream * stack.width
        if stream > a:
            total += a * stack.width * _readers(stack)
    elif training.language and training.lora is not None:
        dropout = training.lora.dropout > 0
        for layer in stack.adapted(training.lora):
            total += (a + dropout) * layer.inputs + a * training.lora.rank
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
    """Bytes that autograd saves in the forward pass of a micro-batch, its logits apart."""
    a, tokens = setting.compute, batch.rows * batch.sequence
    total = 4 * batch.views * 3 * shapes.image_size**2
    if training.vision:
        total += shapes.deepest * batch.views * shapes.tower_tokens * tower_layer(shapes.vision, setting)
    if training.connector or training.into_connector:
        for layer, count in zip(shapes.connector, shapes.connector_tokens, strict=True):
            total += a * batch.views * count * layer.inputs
        hidden = zip(shapes.connector[:-1], shapes.connector_tokens[:-1], strict=True)
        total += sum(a * batch.views * count * layer.outputs for layer, count in hidden)
    if training.through_decoder:
        stack, layer = shapes.language, tokens * decoder_layer(shapes, setting, training)
        if training.checkpointing:
            total += stack.layers * tokens * stack.width * stream_bytes(setting, training) + layer
        else:
            total += stack.layers * layer
        total += tokens * stack.width * (4 + (stream_bytes(setting, training) if training.whole_language else 0))
    if training.whole_language:
        total += a * batch.supervised * shapes.language.width
    return total


def logits(shapes: Shapes, batch: Rows, setting: Setting) -> int:
    """Scores at the labels with what the loss makes of them: log-softmax and its gradient in fp32, that in bf16."""
    return batch.supervised * shapes.vocabulary * (8 + (2 if setting.compute == 2 else 0))


def temporaries(shapes: Shapes, batch: Rows, setting: Setting, training: Training) -> int:
    """Gradients inside one decoder layer's backward pass; or, if larger, all states of the tower in its forward one."""
    layer = batch.rows * batch.sequence * setting.compute * (2 * shapes.language.hidden + 4 * shapes.language.width)
    states = (shapes.vision.layers + 1) * batch.views * shapes.tower_tokens * shapes.vision.width
    return max(layer if training.through_decoder else 0, states * setting.compute)


def copies(shapes: Shapes, trained: dict[str, int], setting: Setting, training: Training) -> int:
    """Copies of weights that a step works with, beside the weights themselves."""
    stack, tower = shapes.language, shapes.vision
    if setting.shards > 1:
        of_tower = shapes.parameters["vision"] if training.vision else 0
        layers = stack.layers * stack.parameters + (tower.layers * tower.parameters if training.vision else 0)
        whole = shapes.parameters["language"] + shapes.parameters["connector"] + of_tower
        outside = whole - layers
        gradient = 4 * stack.parameters + setting.compute * outside if training.whole_language else 0
        return setting.compute * (outside + 2 * stack.parameters) + gradient
    if setting.precision == "fp32":
        return 0
    total = 2 * sum(trained.values())
    if not training.whole_language and setting.frozen == "fp32" and training.through_decoder:
        total += 2 * stack.weights * (1 if training.checkpointing else stack.layers)
        total += 2 * stack.width * shapes.vocabulary
    return total


def step_memory(
    shapes: Shapes, batch: Rows, trainable: tuple[str, ...], training: Training, setting: Setting
) -> Memory:
    """Bytes of one process that trains with micro-batches of `batch`."""
    trained = trained_parameters(shapes, trainable, training)
    weights = 0.0
    for part in shapes.parameters:
        whole_part = part in trainable and not (part == "language" and training.lora is not None)
        held = 0 if whole_part else frozen_bytes(shapes, part, setting.frozen)
        stays = part == "vision" and part not in trainable
        weights += held if stays else held / setting.shards
    numbers = sum(trained.values())
    weights += 4 * numbers / setting.shards
    buckets = setting.parallel == "ddp" and setting.processes > 1
    return Memory(
        weights=round(weights),
        gradients=round(4 * numbers / setting.shards) * (2 if buckets else 1),
        optimizer=round(8 * numbers / setting.shards),
        copies=copies(shapes, trained, setting, training),
        activations=activations(shapes, batch, setting, training),
        peak=max(logits(shapes, batch, setting), temporaries(shapes, batch, setting, training)),
    )

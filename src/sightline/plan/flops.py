"""Floating-point operations of a step, from sizes: a multiplication and an addition count as two.

    linear      2 x tokens x inputs x outputs forward; backward as much again for the gradient of its input, if one is
                asked for, and as much again for that of its weights, if they train
    attention   4 x tokens^2 x heads x head_dim forward (scores and sums, the causal half not left out), twice that
                backward, whether anything in it trains or not

Norms, activations, rotary embeddings, optimizer and loss are left out: they are far below a percent. So are a tower's
pooling head, and what of a method is small beside the model. `torch.utils.flop_counter` counts the same operations of a
real model (tested).
"""

from dataclasses import asdict, dataclass

from ..config import LoRA
from .shapes import Linear, Shapes, Stack


@dataclass(frozen=True)
class Rows:
    """What goes through the model at once."""

    rows: int
    sequence: int
    """Tokens of a row, visual ones included."""
    views: int
    """Views of all rows together."""
    supervised: int
    """Tokens of all rows together that have a label."""


@dataclass(frozen=True)
class Training:
    """What trains, and so where gradients go."""

    vision: bool
    connector: bool
    language: bool
    lora: LoRA | None = None
    patches: bool = False
    """Whether a method that trains changes what the tower gives, or (below) what comes after it."""
    visual: bool = False
    embeds: bool = False
    hidden: bool = False
    checkpointing: bool = False
    """Whether the decoder's activations are computed again in the backward pass."""
    methods: int = 0
    """Operations of methods for an image, forward."""
    methods_kept: int = 0
    """Bytes that they keep for the backward pass, for an image, in fp32."""
    methods_backward: int = 0

    @property
    def whole_language(self) -> bool:
        """Whether the language model's own weights train."""
        return self.language and self.lora is None

    @property
    def into_connector(self) -> bool:
        """Whether the connector's input has a gradient."""
        return self.vision or self.patches

    @property
    def into_decoder(self) -> bool:
        """Whether the decoder's input has a gradient."""
        return self.into_connector or self.connector or self.visual or self.embeds or self.whole_language

    @property
    def through_decoder(self) -> bool:
        """Whether the decoder has a backward pass."""
        return self.into_decoder or self.language


@dataclass(frozen=True)
class Flops:
    """Operations by part, forward and backward."""

    vision: int
    vision_backward: int
    connector: int
    connector_backward: int
    decoder: int
    decoder_backward: int
    recomputed: int
    """The decoder's second forward pass under activation checkpointing."""
    head: int
    head_backward: int
    methods: int = 0
    methods_backward: int = 0

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def times(self, count: int) -> "Flops":
        """As often as `count`."""
        return Flops(**{name: value * count for name, value in asdict(self).items()})


def linear(tokens: int, weights: int) -> int:
    """One pass of `tokens` vectors through matrices of `weights` numbers."""
    return 2 * tokens * weights


def attention(stack: Stack, rows: int, sequence: int) -> int:
    """Scores and weighted sums of one layer."""
    return 4 * rows * sequence**2 * stack.attention


def vision_forward(shapes: Shapes, views: int) -> int:
    """The whole tower on every tile: layers behind the one that is taken run too."""
    stack, tiles = shapes.vision, views * shapes.tiles
    layer = linear(tiles * shapes.tower_tokens, stack.weights) + attention(stack, tiles, shapes.tower_tokens)
    return stack.layers * layer + linear(tiles * shapes.grid, shapes.patch_inputs * stack.width)


def vision_backward(shapes: Shapes, views: int) -> int:
    """A tower that trains: from the layer that is taken to the patches, which ask for no gradient of the pixels."""
    stack, tiles = shapes.vision, views * shapes.tiles
    layer = linear(tiles * shapes.tower_tokens, stack.weights) + attention(stack, tiles, shapes.tower_tokens)
    return 2 * shapes.deepest * layer + linear(tiles * shapes.grid, shapes.patch_inputs * stack.width)


def connector_forward(shapes: Shapes, views: int) -> int:
    """Every view that methods leave through every layer."""
    views = views // shapes.views * shapes.connected
    return sum(linear(views * n, m.weights) for m, n in zip(shapes.connector, shapes.connector_tokens, strict=True))


def connector_backward(shapes: Shapes, views: int, training: Training) -> int:
    """Its weights, if they train, and the way to the tower, if that trains; else no further than its first layer."""
    total, views = 0, views // shapes.views * shapes.connected
    for number, (layer, tokens) in enumerate(zip(shapes.connector, shapes.connector_tokens, strict=True)):
        into = training.into_connector or (training.connector and number > 0)
        total += (training.connector + into) * linear(views * tokens, layer.weights)
    return total


def adapter_weights(linears: tuple[Linear, ...], lora: LoRA) -> int:
    """Numbers in the two matrices of each adapter."""
    return sum(lora.rank * (layer.inputs + layer.outputs) for layer in linears)


def decoder_forward(shapes: Shapes, rows: int, sequence: int, lora: LoRA | None = None) -> int:
    """Prefill of whole rows, as training sees them; without the head."""
    stack = shapes.language
    weights = stack.weights + (adapter_weights(stack.adapted(lora), lora) if lora is not None else 0)
    return stack.layers * (linear(rows * sequence, weights) + attention(stack, rows, sequence))


def decoder_backward(shapes: Shapes, rows: int, sequence: int, training: Training) -> int:
    """The gradient's way through every layer, and that of the weights that train.

    Where adapters train and nothing before them, the first layer asks for no gradient of its input; it is counted.
    """
    stack = shapes.language
    if not training.through_decoder:
        return 0
    layer = linear(rows * sequence, stack.weights) * (2 if training.whole_language else 1)
    layer += 2 * attention(stack, rows, sequence)
    if training.language and training.lora is not None:
        layer += 2 * linear(rows * sequence, adapter_weights(stack.adapted(training.lora), training.lora))
    return stack.layers * layer


def decode_step(shapes: Shapes, rows: int, cached: int) -> int:
    """One new token of each row in generation, with `cached` tokens before it; the head included."""
    stack = shapes.language
    layer = linear(rows, stack.weights) + 4 * rows * (cached + 1) * stack.attention
    return stack.layers * layer + linear(rows, stack.width * shapes.vocabulary)


def step_flops(shapes: Shapes, batch: Rows, training: Training) -> Flops:
    """Forward and backward of one micro-batch; logits only where there are labels."""
    decoder = decoder_forward(shapes, batch.rows, batch.sequence, training.lora if training.language else None)
    head = linear(batch.supervised, shapes.language.width * shapes.vocabulary)
    through = training.through_decoder
    return Flops(
        vision=vision_forward(shapes, batch.views),
        vision_backward=vision_backward(shapes, batch.views) if training.vision else 0,
        connector=connector_forward(shapes, batch.views),
        connector_backward=connector_backward(shapes, batch.views, training),
        decoder=decoder,
        decoder_backward=decoder_backward(shapes, batch.rows, batch.sequence, training),
        recomputed=decoder if training.checkpointing and through else 0,
        head=head,
        head_backward=head * ((through or training.hidden) + training.whole_language),
        methods=batch.views // shapes.views * training.methods,
        methods_backward=batch.views // shapes.views * training.methods_backward,
    )


def prefill_flops(shapes: Shapes, text: int, methods: int) -> int:
    """From one image and `text` tokens to the logits of the first token of an answer.

    Args:
        methods: operations of methods for an image.
    """
    sequence = shapes.tokens + shapes.slots + text
    return (
        vision_forward(shapes, shapes.views)
        + connector_forward(shapes, shapes.views)
        + methods
        + decoder_forward(shapes, 1, sequence)
        + linear(1, shapes.language.width * shapes.vocabulary)
    )

"""The processor of a model that stock LLaVA cannot express: transformers' interface over our own layout of rows.

Slots of methods, views of an image and which words are the user's are laid out by the code that lays out training
rows. After `import sightline`, `AutoProcessor` finds it, and its output goes into the model's `generate` as it is.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from transformers import AutoProcessor, BatchFeature, ProcessorMixin
from transformers.image_transforms import to_pil_image
from transformers.image_utils import load_image

from ..data.collate import collate
from ..data.templates import IMAGE, get_template, read_spans
from ..errors import SightlineError
from ..methods.base import Sizes
from ..methods.compose import Methods, build_methods
from .configuration import SightlineConfig
from .hub import reason

if TYPE_CHECKING:
    from ..data.processor import Processor

PROMPT_FIELDS = ("input_ids", "attention_mask", "kinds", "turn_ids", "prompt_mask", "view_counts", "image_sizes")
"""Of a batch, what `generate` takes beside pixels."""


class SightlineProcessor(ProcessorMixin):
    """Texts and images to inputs of the model, padded on the left."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        template: str = "plain",
        sizes: Mapping[str, int] | None = None,
        methods: Sequence[Mapping[str, Any]] = (),
        prefix_tokens: Sequence[str] = (),
    ) -> None:
        """
        Args:
            template: the name of the template that the model was trained with.
            sizes: of the model, as `Sizes` has them.
            methods: the records of its methods.
            prefix_tokens: those of its config.
        """
        self.template = template
        self.sizes = dict(sizes) if sizes is not None else None
        self.methods = [dict(record) for record in methods]
        self.prefix_tokens = list(prefix_tokens)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @cached_property
    def built(self) -> Methods:
        """The methods, without weights."""
        with torch.device("meta"):
            return build_methods(self.methods, self._sizes, self.prefix_tokens)

    @property
    def layout(self) -> "Processor":
        """What lays out rows, in the template of the moment."""
        from ..data.processor import Processor  # late: its own import of transformers may be what imports this module

        return Processor(
            self.tokenizer,
            self.image_processor,
            get_template(self.template),
            tokens_per_view=self._sizes.tokens,
            methods=self.built,
            max_length=10**9,
        )

    @property
    def _sizes(self) -> Sizes:
        if self.sizes is None:
            raise SightlineError("this processor knows no sizes of a model. Load the one that was saved with a model.")
        return Sizes(**self.sizes)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Inputs of `generate`, with `pixel_values` where there are images.

        Args:
            images: one image, a list of them in the order of their `<image>`, or a list for each text.
            text: one text or several, as the chat template gives them.
            kwargs: what transformers passes on, where it is done in any case: rows are padded on the left to the
                longest, none is cut, `return_tensors` is "pt".

        Raises:
            SightlineError: if images and `<image>` disagree, or for an option that cannot be obeyed.
        """
        taken = {
            "return_tensors": (None, "pt"),
            "padding": (None, True, "longest"),
            "add_special_tokens": (True, False),
        }
        for name, value in kwargs.items():
            if value is not None and (name not in taken or value not in taken[name]):
                raise SightlineError(
                    f"this processor cannot obey {name}={value!r}: it takes texts and images, gives torch's tensors, "
                    "pads rows on the left and cuts none. Leave it out."
                )
        texts = [text] if isinstance(text, str) else list(text or ())
        if not texts:
            raise SightlineError("there is no text. Give what `apply_chat_template` makes of a conversation.")
        layout, eos = self.layout, str(self.tokenizer.eos_token)
        examples = []
        for number, (each, mine) in enumerate(zip(texts, images_by_text(images, texts), strict=True)):
            spans = read_spans(layout.template, each, eos)
            if mine and layout.template.user_text and not any(span.role == "user" for span in spans):
                raise SightlineError(
                    f"text {number} is not in template '{self.template}', so it is not known which words are the "
                    "user's: methods that read them would go without. Give what `apply_chat_template` makes of it."
                )
            examples.append(layout.lay_out(f"text {number}", mine, each, spans, prompt_only=True))
        batch = collate(examples, pad_id=layout.pad_id, side="left")
        inputs = {name: getattr(batch, name) for name in PROMPT_FIELDS}
        return BatchFeature(inputs | ({"pixel_values": batch.pixel_values} if batch.num_images else {}))


def images_by_text(images: Any, texts: Sequence[str]) -> list[list[Any]]:
    """The images of each text, from one image, all of them in order, or a list for each text.

    Raises:
        SightlineError: if their number is not that of `<image>`.
    """
    given = list(images) if isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4 else [images]
    given = [] if images is None else given
    wanted = [text.count(IMAGE) for text in texts]
    nested = [isinstance(mine, list | tuple) for mine in given]
    if given and all(nested):
        rows = [list(mine) for mine in given]
    elif any(nested):
        raise SightlineError("images come as one list, or as a list for each text, and these are mixed.")
    else:
        ends = torch.tensor(wanted).cumsum(0).tolist()
        rows = [given[end - count : end] for end, count in zip(ends, wanted, strict=True)]
        rows[-1] += given[ends[-1] :]
    if [len(mine) for mine in rows] != wanted:
        raise SightlineError(f"the texts hold {wanted} {IMAGE}, and {[len(mine) for mine in rows]} images came.")
    return [[opened(image) for image in mine] for mine in rows]


def opened(image: Any) -> Any:
    """An image as PIL's: from a path or address, as transformers reads them, or from an array of pixels.

    Raises:
        SightlineError: for what is no image, or cannot be read.
    """
    if isinstance(image, Image.Image | Path):
        return image
    try:
        return load_image(image) if isinstance(image, str) else to_pil_image(image)
    except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        what = type(image).__name__
        raise SightlineError(f"an image came as a {what} that cannot be read: {reason(error)}.") from None


AutoProcessor.register(SightlineConfig, SightlineProcessor, exist_ok=True)

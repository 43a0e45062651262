"""VLSA's reconstructive training: an image must be recoverable from its visual tokens, through latent diffusion.

    z_t = (1 - s) z_0 + s e    c = Epigone(V, P)    L = |z_0 - (z_t - s v(z_t, c))|^2

V are an image's visual tokens, as the language model reads them; P stands for the whole image: the SA-Perceiver's own
token, else the mean of V. z_0 are the image's latents by a frozen VAE. It serves training alone: what is exported is
the model without it.

Source: VLSA, section 3.1, equations 3 and 4; deviations in docs/papers.md.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from ...annotate.pictures import IMAGES, SEEDS, Picture, Pictures
from ...config import Stage
from ...data.view import Sight
from ...errors import SightlineError
from ...models.diffusion import Latents, build_part, load_denoiser, part_config, predicted, shrinks_by
from ...models.sampling import sample
from ...objectives.flow import TIMESTEPS, Target, draw_noise_levels, flow_losses, noised
from ...types import Batch, Trace
from ..abilities import Redraws
from ..base import AlignmentMethod, Annotation, LossSpec, MethodConfig, Needs, Setting, Size, Sizes
from .cost import Cost
from .perception import WHOLE, Perception

LOSS = "reconstruct/flow"
PATCH, MOST = 2, 96
"""Latents along a denoiser's patch, and its patches along a picture, where its config is silent, as in diffusers."""
SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"
SMALL = "small"
SMALL_SIZES: dict[str, Any] = {
    "num_layers": 3,
    "num_attention_heads": 16,
    "attention_head_dim": 64,
    "caption_projection_dim": 1024,
    "joint_attention_dim": 1024,
    "pooled_projection_dim": 1024,
}
"""A denoiser for small budgets: three blocks of width 1024, as ROSS (Wang et al. 2024) has them."""


class ReconstructConfig(MethodConfig):
    """Options of reconstructive training."""

    vae: str = SD3
    """What makes latents of pixels: a pipeline's hub id, a folder of diffusers, or `world:vae`."""
    denoiser: str = SD3
    """Of Stable Diffusion 3's kind, by the same names; or `small`, which begins from nothing."""
    resolution: Annotated[int, Field(ge=8)] = 512
    """Pixels along the side of the picture that is to be recovered."""
    target: Literal["image", "low"] = "image"
    """What is recovered: the image at that resolution, or no more of it than its small view shows."""
    loss: Target = "clean"
    """On the latents, as in the paper; or on the velocity, as Stable Diffusion 3 was trained."""
    shift: Annotated[float, Field(gt=0)] = 1.0
    """Of noise levels, towards more noise (Stable Diffusion 3 has 3 at 1024 pixels)."""
    rank: Annotated[int, Field(ge=1)] = 256
    """Width between the two layers of the Epigone."""
    reads: Literal["llm", "vision"] = "llm"
    """What the Epigone reads: tokens in the language model's space, or the tower's before the connector."""
    latents: Literal["online", "stored"] = "online"
    """Computed in each step, or once by `sightline annotate --method reconstruct` (131 kB an image at 512 pixels)."""


class Epigone(nn.Module):
    """Visual tokens to a denoiser's prompt, and the whole image's token to its pooled prompt (equation 4)."""

    def __init__(self, width: int, rank: int, prompt: int, pooled: int) -> None:
        super().__init__()
        self.prompt, self.pooled = (
            nn.Sequential(nn.Linear(width, rank), nn.SiLU(), nn.Linear(rank, out)) for out in (prompt, pooled)
        )

    def forward(
        self, tokens: Float[Tensor, "images tokens d"], whole: Float[Tensor, "images d"]
    ) -> tuple[Float[Tensor, "images tokens prompt"], Float[Tensor, "images pooled"]]:
        return self.prompt(tokens), self.pooled(whole)


class Reconstruct(Redraws):
    """A loss on what visual tokens keep of their image."""

    name = "reconstruct"
    Config = ReconstructConfig
    config: ReconstructConfig

    def __init__(self, config: ReconstructConfig, sizes: Sizes) -> None:
        """
        Raises:
            SightlineError: if the parts' sizes cannot be read, or do not fit one another or the resolution.
        """
        super().__init__(config, sizes)
        vae = part_config(config.vae, "vae")
        self.channels, self.cell = vae["latent_channels"], shrinks_by(vae)
        if config.denoiser == SMALL:
            sizes_of_latents = {"in_channels": self.channels, "out_channels": self.channels}
            parts = SMALL_SIZES | sizes_of_latents | {"pos_embed_max_size": config.resolution // (self.cell * PATCH)}
        else:
            parts = part_config(config.denoiser, "transformer")
        if parts["in_channels"] != self.channels:
            raise SightlineError(
                f"denoiser '{config.denoiser}' works on {parts['in_channels']} channels, and VAE '{config.vae}' has "
                f"{self.channels}. Name two of one pipeline, or denoiser=small."
            )
        square = self.cell * parts.get("patch_size", PATCH)
        if config.resolution % square:
            raise SightlineError(
                f"resolution={config.resolution} is no multiple of {square}, the pixels of a denoiser's patch. Use "
                f"{max(1, config.resolution // square) * square}."
            )
        most = parts.get("pos_embed_max_size", MOST)
        if config.resolution > square * most:
            raise SightlineError(
                f"resolution={config.resolution} is more than denoiser '{config.denoiser}' has places for. Use "
                f"{square * most} or less."
            )
        width = sizes.d_llm if config.reads == "llm" else sizes.d_vision
        self.train_only["epigone"] = Epigone(
            width, config.rank, parts["joint_attention_dim"], parts["pooled_projection_dim"]
        )
        self.train_only["denoiser"] = build_part("transformer", parts)
        self._latents: tuple[Latents, ...] = ()
        """The VAE, in a tuple so that it does not become a submodule: it never trains, and no checkpoint keeps it."""

    @property
    def parts(self) -> tuple[str, ...]:
        return ("epigone", "denoiser")

    @property
    def needs(self) -> Needs:
        return Needs(
            losses=(
                LossSpec(
                    LOSS, count=lambda batch: batch.view_counts.new_tensor(batch.num_images), columns=(IMAGES, SEEDS)
                ),
            )
        )

    @property
    def pretrained(self) -> Mapping[str, str]:
        return {} if self.config.denoiser == SMALL else {"denoiser": self.config.denoiser}

    def load_pretrained(self, part: str) -> None:
        self.train_only[part].load_state_dict(load_denoiser(self.config.denoiser).state_dict())

    def begin(self, setting: Setting) -> None:
        if setting.stage.weights.get(LOSS):
            model = setting.assembly.model
            self._check(model.model.methods.all, model.config.pixels_side)
        online = setting.stage.weights.get(LOSS) and self.config.latents == "online"
        if not online:
            self._latents = ()
        elif not self._latents:  # a rehearsal and each stage begin
            self._latents = (Latents(self.config.vae, setting.device),)

    def annotation(self, setting: Setting) -> Annotation:
        config = self.config
        picture = self.pictures(setting.assembly.sight, blank=setting.recipe.blank_images)
        return Pictures(setting, picture, config.vae if config.latents == "stored" else None)

    def pictures(self, sight: Sight, *, blank: bool = False) -> Picture:
        """What is to be recovered of images."""
        return Picture(sight, self.config.resolution, small=self.config.target == "low", blank=blank)

    def picture(self, sight: Sight, image: Image.Image) -> UInt8[Tensor, "3 side side"]:
        return self.pictures(sight)(image)

    @torch.no_grad()
    def redraw(self, trace: Trace, batch: Batch, *, steps: int, seed: int) -> UInt8[Tensor, "images 3 side side"]:
        latents, denoiser = Latents(self.config.vae, trace.visual.device), self.train_only["denoiser"]
        prompt, pooled = self.condition(trace, batch)
        side = self.config.resolution // self.cell
        shape = (1, self.channels, side, side)
        draw = torch.Generator().manual_seed(seed)
        noise = torch.randn(shape, generator=draw).expand(batch.num_images, *shape[1:]).to(trace.visual)
        return latents.decode(sample(denoiser, noise, prompt, pooled, steps=steps, shift=self.config.shift))

    def losses(self, trace: Trace, batch: Batch) -> Mapping[str, Tensor]:
        if not batch.num_images:
            return {
                LOSS: sum((p.sum() * 0 for p in self.parameters() if p.requires_grad), start=trace.visual.sum() * 0)
            }
        clean = torch.cat(batch.columns[IMAGES])
        clean = self._latents[0].encode(clean) if self._latents else clean.float()
        noise, levels = draws(torch.cat(batch.columns[SEEDS]), clean, self.config.shift)
        velocity = self.velocity(noised(clean, noise, levels), levels, *self.condition(trace, batch))
        return {LOSS: flow_losses(velocity, clean, noise, levels, self.config.loss).sum()}

    def condition(self, trace: Trace, batch: Batch) -> tuple[Tensor, Tensor]:
        """Prompt and pooled prompt of each image of a batch, from what the forward pass saw."""
        if self.config.reads == "llm":
            tokens = trace.visual.unflatten(0, (batch.num_images, -1))
            return self.train_only["epigone"](tokens, trace.kept.get(WHOLE, tokens.mean(1)))
        tokens, own = trace.patches[:, : self.sizes.patches], trace.patches[:, self.sizes.patches :]
        return self.train_only["epigone"](tokens, own[:, 0] if own.shape[1] else tokens.mean(1))

    def _check(self, methods: Iterable[AlignmentMethod], side: int) -> None:
        """That all images have as many tokens where the Epigone reads them."""
        for method in methods:
            views = method.needs.views
            if views is None:
                continue
            sizes = [(side, side), (2 * side, side), (side, 3 * side)]
            if self.config.reads == "llm" and len({views.tokens(size, side, self.sizes.tokens) for size in sizes}) > 1:
                raise SightlineError(
                    f"'{method.name}' gives images different numbers of visual tokens, and a denoiser takes as many "
                    "for each. Use the method `perceiver`, or one view for each image."
                )
            if self.config.reads == "vision" and not (isinstance(method, Perception) and method.tap == "patches"):
                raise SightlineError(
                    f"reads=vision has the Epigone read one view of an image before the connector, and '{method.name}' "
                    "gives several there. Say reads=llm."
                )

    def operations(self, size: Size, side: int, stage: Stage | None = None) -> tuple[int, int]:
        """The VAE has no way back; what is frozen has half of one, for the visual tokens."""
        if stage is None or not stage.weights.get(LOSS):
            return 0, 0
        encoding = self._cost.of_vae if self.config.latents == "online" else 0
        parts = {part: self._cost.of(part).operations for part in self.parts}
        backward = sum(parts[part] * (2 if stage.trains(f"{self.name}.{part}") else 1) for part in self.parts)
        return encoding + sum(parts.values()), backward

    def kept(self, size: Size, side: int, stage: Stage) -> int:
        if not stage.weights.get(LOSS):
            return 0
        return sum(self._cost.of(part, trains=stage.trains(f"{self.name}.{part}")).kept for part in self.parts)

    @cached_property
    def _cost(self) -> Cost:
        config, sizes = self.config, self.sizes
        with torch.device("meta"):
            outline = type(self)(config, sizes).train_only
        tokens, width = (sizes.tokens, sizes.d_llm) if config.reads == "llm" else (sizes.patches, sizes.d_vision)
        return Cost(outline["epigone"], outline["denoiser"], config.vae, config.resolution, tokens, width)

    def velocity(
        self,
        mixed: Float[Tensor, "images channels height width"],
        levels: Float[Tensor, " images"],
        prompt: Float[Tensor, "images tokens d"],
        pooled: Float[Tensor, "images d_pooled"],
    ) -> Float[Tensor, "images channels height width"]:
        """The denoiser's prediction."""
        return predicted(self.train_only["denoiser"], mixed, levels * TIMESTEPS, prompt, pooled)


def draws(
    seeds: Int[Tensor, " images"], like: Float[Tensor, "images ..."], shift: float
) -> tuple[Float[Tensor, "images ..."], Float[Tensor, " images"]]:
    """Noise and its level for each image, by its seed: the same however a step is cut into batches."""
    noises, normals = [], []
    for seed in seeds.tolist():
        draw = torch.Generator().manual_seed(seed)
        normals.append(torch.randn((), generator=draw))
        noises.append(torch.randn(like.shape[1:], generator=draw))
    return torch.stack(noises).to(like), draw_noise_levels(torch.stack(normals), shift).to(like)

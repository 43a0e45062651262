"""What VLSA takes of diffusers: a VAE, a denoiser of Stable Diffusion 3's kind, a VQ model.

Each is named by a folder that diffusers wrote (of the part, or of a whole pipeline), by the hub id of a pipeline, or as
`world:vae`, `world:denoiser` and `world:vq`. Sizes are read from configs alone, so that a dry run needs no weights;
those of Stable Diffusion 3 medium ship with Sightline, in `recipes/diffusers`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..errors import SightlineError
from .backbones import resolve
from .hub import found

Part = Literal["vae", "transformer", "vqvae"]
"""The folder of a part inside a pipeline."""
CLASSES: dict[Part, str] = {"vae": "AutoencoderKL", "transformer": "SD3Transformer2DModel", "vqvae": "VQModel"}
"""Those of diffusers."""

SIZES: dict[Part, dict[str, type]] = {
    "vae": {"block_out_channels": list, "latent_channels": int},
    "transformer": {"in_channels": int, "joint_attention_dim": int, "pooled_projection_dim": int},
    "vqvae": {"block_out_channels": list, "num_vq_embeddings": int},
}
"""What their configs must say."""

ARCHITECTURES = Path(__file__).parents[1] / "recipes" / "diffusers"


def diffusers() -> Any:
    """The library, which is an extra: it is imported when it is needed.

    Raises:
        SightlineError: if it is not installed.
    """
    try:
        import diffusers as library
    except ImportError:
        raise SightlineError(
            "VLSA's training needs diffusers, which is not installed. Run: pip install 'sightline[vlsa]'"
        ) from None
    return library


def part_config(name: str, part: Part) -> dict[str, Any]:
    """The config of a part: of its folder, else the one that ships, else the hub's.

    Raises:
        SightlineError: if there is none, or it is of something else.
    """
    path = Path(resolve(name))
    shipped = ARCHITECTURES / name.replace("/", "--") / part / "config.json"
    if shipped.is_file():
        return json.loads(shipped.read_text(encoding="utf-8"))
    file = next((file for file in (path / part / "config.json", path / "config.json") if file.is_file()), None)
    if file is None and path.is_dir():
        raise SightlineError(f"'{name}' has no {part}/config.json. Give a folder that diffusers wrote.")
    if file is not None:
        config = found(lambda: json.loads(file.read_text(encoding="utf-8")), name)
    else:
        config = found(lambda: _class_of(part).load_config(name, subfolder=part), name)
    its = config.get("_class_name") if isinstance(config, dict) else None
    if its != CLASSES[part]:
        raise SightlineError(
            f"'{name}' is no {part} that VLSA can use: its config is of {its or 'something else'}, and "
            f"diffusers' {CLASSES[part]} is needed. Give the folder of one, or of a pipeline that has one."
        )
    for key, kind in SIZES[part].items():
        if not isinstance(config.get(key), kind):
            raise SightlineError(
                f"the config of '{name}' says {key}={config.get(key)!r}, which is no size of a {part}, so none can be "
                "built. Give a folder that diffusers wrote."
            )
    return config


def build_part(part: Part, config: dict[str, Any]) -> Any:
    """A part of these sizes, with fresh weights."""
    return _class_of(part).from_config(config)


def load_part(name: str, part: Part) -> Any:
    """A part with its weights, in fp32.

    Raises:
        SightlineError: if it cannot be found, or weights are missing.
    """
    path = Path(resolve(name))
    inside = {"subfolder": part} if not path.is_dir() or (path / part / "config.json").is_file() else {}
    place = str(path) if path.is_dir() else name
    try:
        model, info = found(
            lambda: _class_of(part).from_pretrained(
                place, torch_dtype=torch.float32, use_safetensors=True, output_loading_info=True, **inside
            ),
            name,
        )
    except SightlineError as error:
        if "no file named" not in str(error) and "have a file named diffusion_pytorch_model" not in str(error):
            raise
        raise SightlineError(
            f"{error} If it is there as a pickle alone (diffusion_pytorch_model.bin), which Sightline does not read, "
            f"make safetensors of it where you trust the file: diffusers.{CLASSES[part]}.from_pretrained('{name}'"
            f"{f', subfolder={part!r}' if inside else ''}, use_safetensors=False).save_pretrained('DIR/{part}'); then "
            "name DIR."
        ) from None
    for trouble in ("missing_keys", "mismatched_keys"):
        if info[trouble]:
            raise SightlineError(
                f"'{name}' does not hold its whole {part}: {trouble.removesuffix('_keys')} "
                f"{', '.join(map(str, sorted(info[trouble])[:3]))}. Those weights would be random. Use an intact one."
            )
    odd = [key for key, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if odd:
        raise SightlineError(f"'{name}' has a {part} whose {odd[0]} is not finite: all would be. Use an intact one.")
    return model


def load_denoiser(name: str) -> nn.Module:
    """A denoiser with its weights, in fp32.

    Raises:
        SightlineError: if it cannot be found, or weights are missing.
    """
    return load_part(name, "transformer")


class Latents:
    """A frozen VAE: pixels to the latents that a denoiser works on, and back."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        """
        Raises:
            SightlineError: if it cannot be found, or weights are missing.
        """
        self.vae: Any = load_part(name, "vae").requires_grad_(False).eval().to(device)
        self.shift, self.scale = normaliser(self.vae.config)

    @torch.no_grad()
    def encode(self, pixels: UInt8[Tensor, "images 3 side side"]) -> Float[Tensor, "images channels height width"]:
        """The latents' means, shifted and scaled as the denoiser expects; in fp32."""
        with torch.autocast(pixels.device.type, enabled=False):
            moments = self.vae.encode(pixels.float() / 127.5 - 1).latent_dist
            return (moments.mode() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "images channels height width"]) -> UInt8[Tensor, "images 3 side side"]:
        """Pixels of latents."""
        with torch.autocast(latents.device.type, enabled=False):
            pixels = self.vae.decode(latents.float() / self.scale + self.shift).sample
        return in_bytes(pixels)


def in_bytes(pixels: Float[Tensor, "images 3 height width"]) -> UInt8[Tensor, "images 3 height width"]:
    """Pixels from -1 to 1 as bytes."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def predicted(
    denoiser: nn.Module,
    mixed: Float[Tensor, "images channels height width"],
    timesteps: Float[Tensor, " images"],
    prompt: Float[Tensor, "images tokens d"],
    pooled: Float[Tensor, "images d_pooled"],
) -> Float[Tensor, "images channels height width"]:
    """The velocity that a denoiser sees in latents mixed with noise."""
    told = {"encoder_hidden_states": prompt, "pooled_projections": pooled, "timestep": timesteps}
    return denoiser(hidden_states=mixed, **told).sample


def normaliser(config: Mapping[str, Any]) -> tuple[float, float]:
    """What a VAE's latents are shifted by, and then scaled by."""
    return config.get("shift_factor") or 0.0, config.get("scaling_factor") or 1.0


def shrinks_by(config: Mapping[str, Any]) -> int:
    """Pixels along the side of a latent."""
    return 2 ** (len(config["block_out_channels"]) - 1)


def _class_of(part: Part) -> Any:
    return getattr(diffusers(), CLASSES[part])

"""The symmetric contrastive loss (InfoNCE) between matched rows."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def symmetric_info_nce(
    x: Float[Tensor, "pairs d"], t: Float[Tensor, "pairs d"], scale: Float[Tensor, ""] | float
) -> Float[Tensor, ""]:
    """Cross-entropy in nats of finding each row's partner among all rows, by cosine, the mean of both directions.

    The log of as many as there are pairs is chance. Fewer than two pairs have nobody to be told from, so their loss is
    0, with gradients of 0. Computed in fp32 or better.

    Args:
        scale: of the cosines, 1/temperature.

    Source: SEA, equation 9; after CLIP (Radford et al. 2021).
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        x, t = x.to(dtype), t.to(dtype)
        if len(x) < 2:
            return (x.sum() + t.sum()) * 0 + torch.as_tensor(scale, dtype=dtype, device=x.device) * 0
        logits = scale * F.normalize(x, dim=-1) @ F.normalize(t, dim=-1).T
        partner = torch.arange(len(x), device=x.device)
        return (F.cross_entropy(logits, partner) + F.cross_entropy(logits.T, partner)) / 2

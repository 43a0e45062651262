"""The best words for each patch by dot product: exact, with most of the work in bf16.

A word is judged by one formula in fp32, `x.c + x.u`, where x is the patch, c the mean word and u the word less c. What
`top` returns is the n best by this formula, ties to the lower id: a function of the patch and the words alone, however
the patches are batched. Of unit vectors, fp32 rounds scores by less than 1e-6; `torch.topk` of the fp32 product may
order otherwise only words that are closer than that.

bf16 proposes, fp32 decides. With m the mean patch of a call and x = m + r, the words of a patch are ranked by
`m.u + r.u`: the first term is one fp32 vector, cut into three bf16 columns without loss; of the second both sides are
rounded to bf16 (r' and u'), and one product gives the sum. The `k` best by it are scored again in fp32. A word left out
cannot be among the n best if the n-th score exceeds the k-th of bf16 by more than the errors add up to:

    |r - r'| max|u| + |r'| max|u - u'|          rounding of the inputs (norms of the actual residuals; Cauchy-Schwarz)
    a (|r'| max|u'| + max|m.u|)                 accumulation of the product in fp32, on any hardware
    half a unit in the last place of the k-th   rounding of the product; it is monotone, so only the k-th counts
    g |m| max|u| + 2 g |x| max|u|               m.u, and the two fp32 scores that are compared

Centring is what makes this bound small for features in a narrow cone, as CLIP's are: |r| and |u| shrink with the cone,
as do the gaps between scores. Rows without this certificate get a larger k, then the fp32 product, under the same rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import SightlineError
from .products import full_precision, has_fast_bf16

EXTRA = 22
"""Words beyond n that are scored again in fp32: 32 for the ten best. With them random features are all certified."""
WIDER = 8
"""How many times as many for the rows that are not certified."""
PRODUCT_BYTES = 50 * 2**20
"""Scores of patches with all words at once, in memory that the table keeps: 635 patches with 41,242 words in bf16."""
GATHER_BYTES = 28 * 2**20
"""Words scored again at once: no more than malloc keeps for the next time, 32 MiB."""
ON_CUDA = 8
"""How many times as much of both on a GPU."""
FEWEST_ROWS = 64
"""Patches at once however long the list is: fewer would read the whole table for too little work."""


@dataclass(frozen=True)
class Found:
    """The best words of each patch."""

    ids: Int[Tensor, "patches n"]
    """Best first; ties by the lower id."""
    scores: Float[Tensor, "patches n"]
    """fp32."""
    fallbacks: int
    """Rows that needed the full fp32 product."""


class WordTable:
    """The words of a list as unit vectors, made ready once for finding the best of them for many patches.

    One call of `top` at a time: calls share scratch memory and three columns of the table.

    Raises:
        SightlineError: for words that are not finite, or none.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, words: Float[Tensor, "words d"], *, device: torch.device | str | None = None) -> None:
        words = words.to(device or words.device, torch.float32)
        if words.numel() == 0:
            raise SightlineError(f"A word list of shape {tuple(words.shape)} has nothing to choose from. Give words.")
        if bool(not_finite(words).any()):
            row = int(not_finite(words).nonzero()[0, 0])
            raise SightlineError(f"The vector of word {row} is not finite, so no word can be ranked. Encode it again.")
        self.center = words.mean(0, dtype=torch.float64).float()
        self.offsets = words - self.center
        self.longest = self.offsets.norm(dim=1).max()
        self.device = self.offsets.device
        self.unit = (words.shape[1] + 8) * 2**-24
        """Relative error of a dot product in fp32 at most, in whatever order it is summed."""
        self._scratch = self.offsets.new_empty(0, dtype=torch.uint8)
        self._scale = ON_CUDA if self.device.type == "cuda" else 1
        self.prefilter = has_fast_bf16(self.device)
        """Whether bf16 proposes. Without, every row is a fallback; the result is the same."""
        if self.prefilter:
            self._rounded = self.offsets.new_zeros(len(words), words.shape[1] + 3, dtype=torch.bfloat16)
            self._lost = (self.offsets - self._rounded[:, :-3].copy_(self.offsets)).norm(dim=1).max()

    def __len__(self) -> int:
        return len(self.offsets)

    @torch.inference_mode(False)
    @torch.no_grad()
    def top(self, patches: Float[Tensor, "patches d"], n: int) -> Found:
        """The `n` best words of each patch (all of them, if there are fewer). Memory does not grow with the patches.

        `patches` are unit vectors; a sign is the caller's to multiply in.

        Raises:
            SightlineError: for patches that are not finite or of another width, and for `n` below 1.
        """
        mean, n = self._checked(patches, n), min(n, len(self))
        ids = torch.empty(len(patches), n, dtype=torch.int64, device=self.device)
        found = Found(ids=ids, scores=torch.empty(ids.shape, device=self.device), fallbacks=0)
        narrow = [k for k in (n + EXTRA, WIDER * (n + EXTRA)) if 2 * k < len(self)]
        left = torch.arange(len(patches), device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            if self.prefilter and narrow and len(left):
                self._set_mean(mean)
                chunks = self._chunks(left, torch.bfloat16)
                left = torch.cat([self._settle(rows, patches, narrow, found, mean) for rows in chunks])
            for rows in self._chunks(left, torch.float32):
                self._settle(rows, patches, [*narrow, len(self)], found, None)
        return replace(found, fallbacks=len(left))

    def _checked(self, patches: Tensor, n: int) -> Float[Tensor, " d"]:
        """The mean patch, of patches that can be ranked."""
        if n < 1:
            raise SightlineError(f"{n} words for each patch: at least 1 is needed.")
        width = self.offsets.shape[1]
        if patches.ndim != 2 or patches.shape[1] != width:
            shape = tuple(patches.shape)
            raise SightlineError(f"Patches of shape {shape} for words of width {width}: they need one joint space.")
        mean = patches.mean(0, dtype=torch.float32) if len(patches) else self.center
        if not bool(mean.isfinite().all()):
            row = int(not_finite(patches).nonzero()[0, 0])
            raise SightlineError(f"Patch {row} is not finite, so no word can be found for it. Check the tower's dtype.")
        return mean.to(self.device)

    def _chunks(self, rows: Int[Tensor, " rows"], dtype: torch.dtype) -> Sequence[Int[Tensor, " some"]]:
        """Rows in even chunks, whose products with all words fit into the memory for them."""
        most = max(FEWEST_ROWS, PRODUCT_BYTES * self._scale // (len(self) * dtype.itemsize))
        return rows.chunk(-(-len(rows) // most)) if len(rows) else ()

    def _set_mean(self, mean: Float[Tensor, " d"]) -> None:
        """Write `mean . u` into the three last columns of the bf16 table: 24 bits, all that fp32 has."""
        with full_precision():
            rest = self.offsets @ mean
        self._shift = rest.abs().max()
        for column in (-3, -2, -1):
            rest = rest - self._rounded[:, column].copy_(rest)

    def _settle(
        self,
        rows: Int[Tensor, " rows"],
        patches: Float[Tensor, "patches d"],
        widths: list[int],
        found: Found,
        mean: Float[Tensor, " d"] | None,
    ) -> Int[Tensor, " unsettled"]:
        """Fill in the rows of `found` that are certain, with words proposed by bf16 or, without a mean, by fp32.

        Returns the rows that are not.
        """
        mine = patches[rows.to(patches.device)].to(self.device, torch.float32)
        rough, margin = self._in_fp32(mine) if mean is None else self._in_bf16(mine, mean)
        base = (mine * self.center).sum(1, keepdim=True)
        n = found.ids.shape[1]
        for width in widths:
            kth, ids = rough.topk(width, dim=1, sorted=False)
            ids = ids.sort(dim=1).values
            scores, order = (base + self._scores(mine, ids)).sort(dim=1, descending=True, stable=True)
            sure = certain(scores[:, n - 1], kth.amin(1), margin, base[:, 0]) | (width == len(self))
            found.ids[rows[sure]] = ids.gather(1, order[:, :n])[sure]
            found.scores[rows[sure]] = scores[sure, :n]
            if bool(sure.all()):
                return rows[:0]
            rows, mine, rough, margin, base = (each[~sure] for each in (rows, mine, rough, margin, base))
        return rows

    def _in_bf16(
        self, mine: Float[Tensor, "rows d"], mean: Float[Tensor, " d"]
    ) -> tuple[Float[Tensor, "rows words"], Float[Tensor, " rows"]]:
        """`m.u + r.u` of all words, and how much higher a word's fp32 score may be, rounding of the result aside."""
        rest = mine - mean
        rounded = torch.empty(len(mine), rest.shape[1] + 3, dtype=torch.bfloat16, device=self.device)
        rounded[:, -3:] = 1
        kept = rounded[:, :-3].copy_(rest)
        lengths, lost = rest.norm(dim=1), rest.sub_(kept).norm(dim=1)
        inputs = lost * self.longest + (lengths + lost) * self._lost
        # Tensor cores and the CPU's bf16 instructions sum in fp32, truncating at worst: 2^-22 for each term.
        sums = rounded.shape[1] * 2**-22 * ((lengths + lost) * (self.longest + self._lost) + 1.01 * self._shift)
        shift = self.unit * (mean.norm() + lengths) * self.longest
        return self._product(rounded, self._rounded), inputs + sums + shift + self._own_error(mine)

    def _in_fp32(self, mine: Float[Tensor, "rows d"]) -> tuple[Float[Tensor, "rows words"], Float[Tensor, " rows"]]:
        """`x.u` of all words, and how much higher a word's fp32 score may be."""
        return self._product(mine, self.offsets), self.unit * mine.norm(dim=1) * self.longest + self._own_error(mine)

    def _own_error(self, mine: Float[Tensor, "rows d"]) -> Float[Tensor, " rows"]:
        """What two fp32 scores may be off together: sums over d, the last additions, and underflow."""
        relative = 2 * self.unit * self.longest + 2**-21 * (self.longest + self.center.norm())
        return mine.norm(dim=1) * relative + 1e-30

    def _product(
        self, left: Float[Tensor, "rows width"], right: Float[Tensor, "words width"]
    ) -> Float[Tensor, "rows words"]:
        """Their dot products, in memory that is used again: asking the system for it anew costs a tenth of the time."""
        size = len(left) * len(right) * left.itemsize
        if len(self._scratch) < size:
            self._scratch = torch.empty(size, dtype=torch.uint8, device=self.device)
        with full_precision():
            return torch.mm(left, right.t(), out=self._scratch[:size].view(left.dtype).view(len(left), len(right)))

    def _scores(self, mine: Float[Tensor, "rows d"], ids: Int[Tensor, "rows k"]) -> Float[Tensor, "rows k"]:
        """`x.u` in fp32, the same bits wherever the two vectors stand: no matmul, whose kernels differ by place."""
        scores = torch.empty(ids.shape, device=self.device)
        pairs = max(1, GATHER_BYTES * self._scale // (4 * mine.shape[1]))
        across = min(pairs, ids.shape[1])
        for left in range(0, ids.shape[1], across):
            for first in range(0, len(ids), pairs // across):
                at = slice(first, first + pairs // across), slice(left, left + across)
                words = self.offsets.index_select(0, ids[at].flatten()).unflatten(0, ids[at].shape)
                scores[at] = words.mul_(mine[at[0], None]).sum(2)
        return scores


def certain(
    nth: Float[Tensor, " rows"],
    kth: Float[Tensor, " rows"],
    margin: Float[Tensor, " rows"],
    base: Float[Tensor, " rows"],
) -> Bool[Tensor, " rows"]:
    """Whether no word behind the k-th rough score, which its type has rounded, can have the n-th fp32 score.

    Rounding is monotone: such a word was at most half a unit above the k-th. 1.001 covers the rounding of the bounds.
    """
    rough = kth.float()
    half_unit = torch.finfo(kth.dtype).eps / 2 * rough.abs()
    return nth > base + (rough + 1.001 * (half_unit + margin))


def not_finite(vectors: Float[Tensor, "rows d"]) -> Bool[Tensor, " rows"]:
    """Rows that hold an infinity or no number, or are too long for one."""
    return vectors.norm(dim=1, dtype=torch.float32).isfinite().logical_not()

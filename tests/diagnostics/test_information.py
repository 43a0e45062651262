"""Information kept: what tokens tell is drawn, what they do not is not, and SSIM is the field's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from sightline.diagnostics import information
from sightline.diagnostics.diagnose import fitted_and_asked
from sightline.diagnostics.information import SIDE, Budget, fidelity, fitted, measure_information, pictures_of, ssim
from sightline.diagnostics.material import Case, Material
from sightline.errors import SightlineError
from sightline.world.draw import render
from sightline.world.scene import LETTERS, sample_scene

FEW = Budget(steps=150, batch=16, width=32, layers=1)
"""Some seconds."""


def squares(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of one colour each, and nine tokens of which one tells it."""
    draw = torch.Generator().manual_seed(seed)
    colours = torch.rand(count, 3, generator=draw)
    tokens = torch.randn(count, 9, 6, generator=draw)
    tokens[:, 4, :3] = 3 * (colours - 0.5)
    return tokens, colours[:, :, None, None].expand(-1, -1, SIDE, SIDE)


def mean_colour(pictures):
    return pictures.flatten(2).mean(2)


def test_what_tokens_tell_is_drawn():
    known, asked = squares(200), squares(40, seed=1)
    decoder = fitted(*known, FEW, progress=False)
    with torch.no_grad():
        own, wrong = (fidelity(decoder(tokens), asked[1], mean_colour) for tokens in (asked[0], asked[0].roll(1, 0)))
    assert own.psnr.low > wrong.psnr.high + 5, "in dB"
    assert own.features.high < wrong.features.low


def test_what_tokens_do_not_tell_is_not_drawn():
    known, asked = squares(200), squares(40, seed=1)
    empty = [torch.randn(len(tokens), 9, 6) for tokens, _ in (known, asked)]
    decoder = fitted(empty[0], known[1], FEW, progress=False)
    with torch.no_grad():
        own, wrong = (fidelity(decoder(tokens), asked[1], mean_colour) for tokens in (empty[1], empty[1].roll(1, 0)))
    assert own.psnr.low < wrong.psnr.high


def test_the_same_tokens_give_the_same_decoder():
    tokens, pictures = squares(40)
    budget = Budget(steps=3, batch=8, width=16, layers=1, heads=2)
    torch.manual_seed(5)
    once = fitted(tokens, pictures, budget, progress=False)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    again = fitted(tokens, pictures, budget, progress=False)
    assert torch.equal(drawn, torch.rand(1)), "torch's own generator is left where it was"
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), again.parameters(), strict=True))


def test_the_decoder_is_the_same_for_any_tokens():
    """What is not of their number and width begins alike, and sees the same images in the same order."""
    budget = Budget(steps=0, batch=8, width=16, layers=1, heads=2)
    pictures = squares(10)[1]
    a, b = (fitted(torch.randn(10, *shape), pictures, budget, progress=False) for shape in ((9, 6), (36, 12)))
    theirs = dict(b.named_parameters())
    same = [torch.equal(x, theirs[name]) for name, x in a.named_parameters() if not name.startswith(("read", "place"))]
    assert len(same) > 10 and all(same)


def test_what_is_drawn_shows_what_a_small_view_loses():
    """Two pictures of the world that differ in a card's fine letter alone; seen in the low view, they do not."""
    scene = next(scene for n in range(50) if (scene := sample_scene(0, "test", n)).card is not None)
    other = replace(scene, card=replace(scene.card, letter=LETTERS[LETTERS[0] == scene.card.letter]))
    high, low = ([pictures_of([render(s, view)]) for s in (scene, other)] for view in ("high", "low"))
    cells = [(a - b).abs().max() for a, b in (high, low)]
    assert cells[0] > 0.3 and cells[1] < 0.05


def test_too_few_training_images_are_none(tmp_path):
    """A world that was drawn for the occasion has one: then every second image is one to fit on."""
    files = [tmp_path / f"{n}.png" for n in range(8)]
    for n, file in enumerate(files):
        Image.new("RGB", (8, 8), (n, 0, 0)).save(file)
    cases = tuple(Case(id=str(n), image=file, caption="") for n, file in enumerate(files[1:]))
    known, asked = fitted_and_asked(Material("m", cases, known=(files[0],)))
    assert [image.getpixel((0, 0))[0] for image in known] == [1, 3, 5, 7] and len(asked) == 3


def test_ssim_is_the_field_s():
    """scikit-image's, with the Gaussian window of Wang et al., over windows that lie inside."""
    draw = np.random.default_rng(0)
    a = draw.random((2, 40, 40, 3))
    b = np.clip(a + 0.2 * draw.standard_normal(a.shape), 0, 1)
    ours = ssim(*(torch.from_numpy(x).permute(0, 3, 1, 2) for x in (a, b)))
    for number in range(2):
        _, whole = structural_similarity(
            a[number],
            b[number],
            channel_axis=2,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        assert ours[number].item() == pytest.approx(whole[5:-5, 5:-5].mean(), abs=1e-6)
    assert ssim(*[torch.from_numpy(a).permute(0, 3, 1, 2)] * 2).tolist() == pytest.approx([1, 1])


def test_of_a_model(tiny_subject, tiny_joint, monkeypatch):
    colours = [tuple(int(x) for x in rgb) for rgb in np.random.default_rng(0).integers(0, 256, (40, 3))]
    images = [Image.new("RGB", (32, 32), colour) for colour in colours]
    monkeypatch.setattr(information, "watched", lambda items, *_, **__: ([item] for item in items))
    budget = Budget(steps=60, batch=8, width=32, layers=1)
    found = measure_information(tiny_subject, images[:30], images[30:], encoder=str(tiny_joint["clip"]), budget=budget)
    assert found.own.psnr.n == 10 and found.own.psnr.value > found.wrong.psnr.value
    assert 0 <= found.own.features.value <= 2
    with pytest.raises(SightlineError, match="5 images to fit a decoder on and 10 to draw are too few: it needs 8"):
        measure_information(tiny_subject, images[:5], images[30:], encoder=str(tiny_joint["clip"]), budget=budget)

"""The lens: each token's word in its place, on paper and on a page that anyone can open."""

import html.parser
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

import parts
from sightline.checkpoints import save_model
from sightline.data.templates import get_template
from sightline.data.words import read_word_list
from sightline.diagnostics.lens import Cell, Lens, look, vocabulary_words
from sightline.diagnostics.lens_cli import lens as lens_command
from sightline.diagnostics.lens_figure import PLATES, draw
from sightline.diagnostics.lens_page import render
from sightline.diagnostics.material import Case, TokenTruth
from sightline.diagnostics.subject import Subject
from sightline.errors import SightlineError
from sightline.models.assemble import assemble
from sightline.world.make import make_world

WORDS = ("red", "blue", "box", "ball")
HOSTILE = "</script><script>alert(1)</script>\"'><img src=http://evil/x.png>"


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]))
    folder = tmp_path_factory.mktemp("lens")
    save_model(assembly, folder / "model", get_template("vicuna_v1"))
    return folder


@pytest.fixture(scope="module")
def subject(model: Path) -> Subject:
    return Subject(model)


def known(subject: Subject, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """Have the model see words."""
    monkeypatch.setattr(subject, "visual", lambda images: [subject.words(words)])


def test_a_word_stands_where_its_token_does(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    said = [WORDS[(row + column) % 4] for row in range(4) for column in range(4)]
    known(subject, monkeypatch, said)
    seen = look(subject, Image.new("RGB", (40, 40), "red"), WORDS, top=2)
    assert [cell.word for cell in seen.cells] == said
    assert all(len(cell.words) == 2 and cell.words[0][1] == pytest.approx(1, abs=1e-5) for cell in seen.cells)
    assert (seen.grid, seen.image.size, seen.judged) == (4, (960, 960), ())


def test_what_is_padding_is_known_of_an_image_that_is_not_square(subject: Subject):
    seen = look(subject, Image.new("RGB", (40, 20), "red"), WORDS)
    assert [cell.padding for cell in seen.cells] == [True] * 4 + [False] * 8 + [True] * 4
    assert seen.image.getpixel((480, 480)) == (255, 0, 0) != seen.image.getpixel((480, 100))


def test_words_are_judged_where_their_truth_is_plain(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    known(subject, monkeypatch, ["red"] * 16)
    truth = [TokenTruth(("red", "box"), 0, 0.9), TokenTruth(("blue",), -1, 0.0), TokenTruth(("red",), 0, 0.1)]
    truth += [TokenTruth(("owl",), 0, 1.0)] * 13  # a word that is not among those to choose from
    case = Case("a", Path("a.png"), "", tuple(truth))
    seen = look(subject, Image.new("RGB", (32, 32)), WORDS, case=case)
    assert [cell.right for cell in seen.cells[:4]] == [True, False, None, None]
    assert "right on 1 of the 2 tokens" in seen.summary()
    wide = look(subject, Image.new("RGB", (32, 16)), WORDS, case=case)  # the truth is of the image without padding
    assert wide.judged == ()


def made(*cells: Cell) -> Lens:
    return Lens(Image.new("RGB", (960, 960), "white"), 2, cells, 4)


JUDGED = made(
    Cell((("red", 0.9), ("blue", 0.1)), ("red",), True),
    Cell((("blue", 0.8),), ("red",), False),
    Cell((("box", 0.7),)),
    Cell((("ball", -0.2),), padding=True),
)


def test_the_figure_has_a_plate_of_its_colour_on_every_token():
    page = draw(JUDGED, title="a picture")
    top = page.height - 960 - 20 - 31
    quarters = [
        page.crop((20 + 480 * c, top + 480 * r, 500 + 480 * c, top + 480 * r + 480)) for r in (0, 1) for c in (0, 1)
    ]
    for quarter, cell in zip(quarters, JUDGED.cells, strict=True):
        shares = {right: share_of(quarter, plate) for right, plate in PLATES.items()}
        if not cell.padding:
            assert max(shares, key=lambda right: shares[right]) is cell.right and shares[cell.right] > 0.002


def share_of(picture: Image.Image, colour: str) -> float:
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    away = np.abs(np.asarray(picture, dtype=int) - wanted).max(axis=-1)
    return float((away < 45).mean())


@pytest.mark.parametrize("word", ["extraordinarily-long-" * 8, "\u4e2d\u6587", "a\nb\x00", HOSTILE])
def test_any_word_can_be_drawn(word: str):
    assert draw(made(*[Cell(((word, 0.5),))] * 4), title=word).width == 1000


class Reader(html.parser.HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_every_token_can_be_focused_and_says_what_it_is():
    cells = [
        attributes
        for _, attributes in Reader(render(JUDGED, title="a picture")).tags
        if attributes.get("role") == "gridcell"
    ]
    assert [cell["tabindex"] for cell in cells] == ["0"] * 4
    assert [cell["aria-label"] for cell in cells] == [
        "row 1, column 1: red 0.90, blue 0.10; shows red; right",
        "row 1, column 2: blue 0.80; shows red; wrong",
        "row 2, column 1: box 0.70",
        "row 2, column 2: ball -0.20; padding",
    ]


def test_the_page_needs_nothing_and_runs_nothing_else():
    page = render(made(*[Cell(((HOSTILE, 0.5),), (HOSTILE,), True)] * 4), title=HOSTILE)
    tags = Reader(page).tags
    assert [attributes for tag, attributes in tags if tag == "script"] == [{}]
    assert {tag for tag, _ in tags} & {"link", "iframe", "object"} == set()
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == 1 and str(images[0]["src"]).startswith("data:image/")
    assert not [value for _, a in tags for name, value in a.items() if name in ("href", "onclick", "onerror", "srcset")]
    assert "url(" not in page and "@import" not in page
    policy = next(a["content"] for tag, a in tags if tag == "meta" and a.get("http-equiv"))
    assert "default-src 'none'" in str(policy) and "script-src 'sha256-" in str(policy)


@pytest.mark.parametrize(
    "tokenizer", [parts.tokenizer(), parts.sentencepiece_tokenizer(legacy=True)], ids=["byte-level", "sentencepiece"]
)
def test_a_vocabulary_gives_words_and_nothing_else(tokenizer):
    words = vocabulary_words(tokenizer)
    assert {"red", "colour", "there"} & set(words)
    assert all(word.isalpha() and len(word) > 1 for word in words)
    assert len({word.lower() for word in words}) == len(words)


def test_a_vocabulary_without_marks_gives_none():
    class Bare:
        def get_vocab(self) -> dict[str, int]:
            return {"red": 0, "##d": 1}

    with pytest.raises(SightlineError, match="Give one with --words"):
        vocabulary_words(Bare())


def test_a_list_of_words_is_read(tmp_path: Path):
    file = tmp_path / "words.txt"
    file.write_text("\ufeffred\n\n light blue \nred\n", "utf-8")
    assert read_word_list(file) == ("red", "light blue")
    file.write_text("\n \n")
    with pytest.raises(SightlineError, match="holds no words"):
        read_word_list(file)
    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SightlineError, match="not UTF-8"):
        read_word_list(file)
    with pytest.raises(SightlineError, match="No such file"):
        read_word_list(tmp_path / "none.txt")


def test_tokens_that_are_no_grid_have_no_lens(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    known(subject, monkeypatch, ["red"] * 5)
    with pytest.raises(SightlineError, match="no square grid"):
        look(subject, Image.new("RGB", (32, 32)), WORDS)
    with pytest.raises(SightlineError, match="list of words is empty"):
        look(subject, Image.new("RGB", (32, 32)), ())


app = typer.Typer()
app.command()(lens_command)


def test_the_command_writes_both_files(model: Path, pictures: Path, tmp_path: Path):
    out = tmp_path / "deep" / "wide.png"
    done = CliRunner().invoke(app, [str(model), str(pictures / "images" / "1.png"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert out.is_file() and (tmp_path / "deep" / "wide.html").is_file()
    assert "4 x 4 visual tokens" in done.output


def test_the_command_knows_a_worlds_truth(model: Path, tmp_path: Path):
    make_world(tmp_path / "w", train=1, validation=1, test=1, novel=1)
    given = [str(model), "test/000000.png", "--data", str(tmp_path / "w"), "--out", str(tmp_path / "seen")]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert "No word is judged" in done.output  # 4 x 4 tokens, 6 x 6 patches
    assert "nearest of 275 words" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png"], "image not found: none.png"),
        (["{image}", "--words", "none.txt"], "cannot read the words in 'none.txt'"),
        (["{image}", "--data", "none"], "is not an image of 'none'"),
    ],
    ids=["no image", "no words", "no world"],
)
def test_the_commands_errors_are_told(model: Path, pictures: Path, arguments: list[str], message: str):
    given = [argument.format(image=pictures / "images" / "1.png") for argument in arguments]
    error = CliRunner().invoke(app, [str(model), *given]).exception
    assert isinstance(error, SightlineError) and message in str(error)

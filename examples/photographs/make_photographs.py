"""A folder of real photographs in LLaVA's format, from the pictures that the scikit-image wheel carries.

`pip install scikit-image` puts them on disk; nothing is downloaded. `annotations.yaml` beside this file says
which of them to take, how to crop and store them, and what is in them. The same versions of scikit-image and
Pillow give the same bytes each time.
"""

import argparse
import importlib.util
import io
import json
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

ANNOTATIONS = Path(__file__).with_name("annotations.yaml")
SOURCES = Path(__file__).with_name("SOURCES.txt")
CAPTION_PROMPT = "<image>\nDescribe the image briefly."
CHANGES = ("box", "ellipse", "mode", "sideways")
EXIF_ORIENTATION = 0x0112
TURN_CLOCKWISE_TO_VIEW = 6

HELP = """\
Build a small folder of real photographs, with captions, conversations and questions.

DIR is made with:
  images/           photographs of different sizes, shapes, modes and formats
  captions.json     LLaVA JSON, one caption a row: for pre-training the connector
  instruct.json     LLaVA JSON, conversations about one picture, two, or none: for visual instruction tuning
  questions.jsonl   short questions that instruct.json does not ask: for `sightline eval`
  README.txt        where the pictures come from and what is known of their licences
"""
EPILOG = "example: python examples/photographs/make_photographs.py data/photographs"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=HELP, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="the folder to make; new or empty")
    target: Path = parser.parse_args().dir
    try:
        counts = make(target)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{target}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


def make(target: Path) -> dict[str, int]:
    """Write the whole folder, or nothing: it is made beside `target` and moved there when complete.

    Returns:
        How many images, captions, conversations and questions were written.

    Raises:
        ValueError: if `target` holds something already, or scikit-image does not carry a picture.
    """
    target = target.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(
            f"'{target}' exists and is not an empty folder, so writing there could mix with or destroy "
            "what it holds. Name a new folder, or empty this one first."
        )
    annotations = yaml.safe_load(ANNOTATIONS.read_text(encoding="utf-8"))
    wheel = wheel_folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        folder = Path(scratch) / target.name
        (folder / "images").mkdir(parents=True)
        for name, entry in annotations["photographs"].items():
            (folder / "images" / name).write_bytes(image_bytes(wheel, name, entry))
        captions, instruct = caption_rows(annotations), instruct_rows(annotations)
        questions = question_rows(annotations)
        write_json(folder / "captions.json", captions)
        write_json(folder / "instruct.json", instruct)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in questions]
        (folder / "questions.jsonl").write_text("".join(lines), encoding="utf-8")
        (folder / "README.txt").write_text(provenance(annotations["photographs"]), encoding="utf-8")
        if target.exists():
            target.rmdir()
        folder.rename(target)
    return {
        "images": len(annotations["photographs"]),
        "captions": len(captions),
        "conversations": len(instruct),
        "questions": len(questions),
    }


def wheel_folder() -> Path:
    """The folder of pictures in the installed scikit-image, found without importing it."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ValueError(
            "scikit-image is not installed, and the photographs come from its wheel. "
            "Run: pip install 'scikit-image>=0.25' (or `make setup`, which installs it)."
        )
    return Path(spec.origin).parent / "data"


def image_bytes(wheel: Path, name: str, entry: Mapping[str, Any]) -> bytes:
    """The file `name` as its entry describes it: the wheel's own bytes, or a changed picture."""
    source = wheel / entry["source"]
    if not source.is_file():
        raise ValueError(
            f"scikit-image {version('scikit-image')} carries no '{source.name}', so '{name}' cannot be made. "
            "Install a version that does (0.25 and 0.26 do): pip install 'scikit-image==0.26.*'."
        )
    if not any(change in entry for change in CHANGES):
        return source.read_bytes()

    image = Image.open(source)
    exif = Image.Exif()
    if "box" in entry:
        image = image.crop(entry["box"])
    if entry.get("ellipse"):
        mask = Image.new("L", image.size, 0)
        ImageDraw.Draw(mask).ellipse((0, 0, image.width - 1, image.height - 1), fill=255)
        image.putalpha(mask)
    if "mode" in entry:
        image = to_mode(image, entry["mode"])
    if entry.get("sideways"):
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[EXIF_ORIENTATION] = TURN_CLOCKWISE_TO_VIEW
    file = io.BytesIO()
    if Path(name).suffix == ".jpg":
        image.save(file, "JPEG", quality=90, exif=exif)
    else:
        image.save(file, "PNG")
    return file.getvalue()


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """`image` in `mode`. For I;16 0..255 becomes 0..65535: Pillow itself would leave it almost black."""
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode, palette=Image.Palette.ADAPTIVE)


def provenance(photographs: Mapping[str, Any]) -> str:
    """The text of README.txt: sources and licences, then how each picture was made."""
    made = [
        f"  {name:<22} {entry['source']}" + "".join(f", {key} {entry[key]}" for key in CHANGES if key in entry)
        for name, entry in photographs.items()
    ]
    return SOURCES.read_text(encoding="utf-8").format(version=version("scikit-image"), made="\n".join(made))


def caption_rows(annotations: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One LLaVA row for each caption."""
    return [
        llava_row(f"{stem(name)}-caption-{number}", [name], [CAPTION_PROMPT, caption])
        for name, entry in annotations["photographs"].items()
        for number, caption in enumerate(entry["captions"], start=1)
    ]


def instruct_rows(annotations: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One LLaVA row for each conversation: about one picture, then about two, then about none."""
    one = [
        llava_row(f"{stem(name)}-talk-{number}", [name], turns)
        for name, entry in annotations["photographs"].items()
        for number, turns in enumerate(entry["conversations"], start=1)
    ]
    two = [
        llava_row(f"two-images-talk-{number}", pair["images"], pair["turns"])
        for number, pair in enumerate(annotations["pairs"]["conversations"], start=1)
    ]
    none = [
        llava_row(f"no-image-talk-{number}", [], turns)
        for number, turns in enumerate(annotations["text_only"], start=1)
    ]
    return one + two + none


def question_rows(annotations: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each short question, those about one picture first."""
    one = [
        {"id": f"{stem(name)}-{number}", "image": name} | question_fields(question)
        for name, entry in annotations["photographs"].items()
        for number, question in enumerate(entry["questions"], start=1)
    ]
    two = [
        {"id": f"two-images-{number}", "images": pair["images"]} | question_fields(pair["question"])
        for number, pair in enumerate(annotations["pairs"]["questions"], start=1)
    ]
    return one + two


def question_fields(question: list[Any]) -> dict[str, Any]:
    """`answer` where one answer is right, `answers` where one of several is."""
    ability, text, answer = question
    return {"question": text, "answers" if isinstance(answer, list) else "answer": answer, "ability": ability}


def llava_row(row_id: str, images: list[str], turns: list[str]) -> dict[str, Any]:
    """A row as LLaVA stores it: `image` is a name, a list of several, or absent."""
    assert len(turns) % 2 == 0 and "".join(turns[::2]).count("<image>") == len(images), row_id
    image = {} if not images else {"image": images[0] if len(images) == 1 else images}
    speakers = ("human", "gpt") * (len(turns) // 2)
    conversations = [{"from": speaker, "value": text} for speaker, text in zip(speakers, turns, strict=True)]
    return {"id": row_id} | image | {"conversations": conversations}


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def stem(name: str) -> str:
    return Path(name).stem


if __name__ == "__main__":
    main()

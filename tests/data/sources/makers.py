"""The same rows in every format, as the field's own tools write them."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image


def picture(number: int) -> bytes:
    """A small PNG that no other number gives."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 3), (number % 256, number // 256, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def captions(count: int = 7) -> list[dict[str, Any]]:
    """Caption rows. Every awkward thing that a caption may hold is in some row."""
    awkward = ["a box", 'a "red" box, big', "två\nlådor", "tab\there", "  'x' ", "箱 🟥", "\u2028"]
    return [
        {"id": f"c{i}", "image": f"c{i}.png", "caption": awkward[i % len(awkward)] + str(i), "kind": f"k{i}"}
        for i in range(count)
    ]


def chats(count: int = 5) -> list[dict[str, Any]]:
    """LLaVA rows: several exchanges and a system turn in some."""
    rows = []
    for i in range(count):
        turns = [{"from": "human", "value": f"<image>\nWhat is {i}?"}, {"from": "gpt", "value": f'"é{i}"\n'}]
        turns += [{"from": "human", "value": "And?"}, {"from": "gpt", "value": "No."}] * (i % 3)
        turns = [{"from": "system", "value": "Be brief."}] * (i % 2) + turns
        rows.append({"id": f"q{i}", "image": f"q{i}.png", "conversations": turns, "ability": "colour"})
    return rows


def as_messages(row: dict[str, Any]) -> dict[str, Any]:
    """A LLaVA row in the shape of chat messages."""
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    turns = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
    return {key: value for key, value in row.items() if key != "conversations"} | {"messages": turns}


def pictures(folder: Path, rows: Iterable[dict[str, Any]]) -> list[bytes]:
    """Write the images that rows name; their bytes, in order."""
    folder.mkdir(exist_ok=True)
    data = [picture(number) for number, _ in enumerate(rows)]
    for row, encoded in zip(rows, data, strict=True):
        (folder / row["image"]).write_bytes(encoded)
    return data


def json_list(folder: Path, rows: list[dict]) -> Path:
    pictures(folder / "images", rows)
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def json_lines(folder: Path, rows: list[dict]) -> Path:
    pictures(folder / "images", rows)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(folder: Path, rows: list[dict], *, ending: str = "csv") -> Path:
    pictures(folder / "images", rows)
    path = folder / f"rows.{ending}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if ending == "tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def tsv(folder: Path, rows: list[dict]) -> Path:
    return table(folder, rows, ending="tsv")


def dataset(rows: list[dict]):
    """A `datasets` data set with embedded images."""
    import datasets

    embedded = [row | {"image": {"bytes": picture(i), "path": row["image"]}} for i, row in enumerate(rows)]
    return datasets.Dataset.from_list(embedded).cast_column("image", datasets.Image())


def saved(folder: Path, rows: list[dict]) -> Path:
    path = folder / "saved"
    dataset(rows).save_to_disk(path)
    return path


def parquet(folder: Path, rows: list[dict]) -> Path:
    path = folder / "rows.parquet"
    dataset(rows).to_parquet(path)
    return path


def parquet_folder(folder: Path, rows: list[dict]) -> Path:
    """Two shards, cut in row groups of two."""
    path, data = folder / "shards", dataset(rows)
    path.mkdir()
    half = len(rows) // 2
    for number, part in enumerate((range(half), range(half, len(rows)))):
        data.select(part).to_parquet(path / f"train-0000{number}-of-00002.parquet", batch_size=2)
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes | str) -> None:
    data = data if isinstance(data, bytes) else data.encode("utf-8")
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def tar(path: Path, members: Iterable[tuple[str, bytes | str]], mode: str = "w", **options) -> Path:
    with tarfile.open(path, mode, **options) as archive:
        for name, data in members:
            add(archive, name, data)
    return path


def members(rows: list[dict], start: int = 0) -> list[tuple[str, bytes | str]]:
    """Every other sample has its image first."""
    found = []
    for i, row in enumerate(rows, start):
        pair = [(row["image"], picture(i)), (Path(row["image"]).stem + ".json", json.dumps(row))]
        found += pair[:: 1 if i % 2 else -1]
    return found


def shards(folder: Path, rows: list[dict]) -> Path:
    """Three tars, one of them empty, in the formats that tar has."""
    path, third = folder / "shards", len(rows) // 3
    path.mkdir()
    tar(path / "a-0.tar", members(rows[:third]), format=tarfile.PAX_FORMAT, pax_headers={"comment": "é"})
    tar(path / "a-1.tar", [])
    tar(path / "a-2.tar", members(rows[third:], third), format=tarfile.GNU_FORMAT)
    return path


def compressed(folder: Path, rows: list[dict], *, ending: str = "gz") -> Path:
    return tar(folder / f"rows.tar.{ending}", members(rows), f"w:{ending}")


Maker = Callable[[Path, list[dict]], Path]
FORMATS: dict[str, Maker] = {
    "json": json_list,
    "jsonl": json_lines,
    "csv": table,
    "tsv": tsv,
    "datasets": saved,
    "parquet": parquet,
    "parquet folder": parquet_folder,
    "tar": shards,
    "tar.gz": compressed,
}
TABLES = ("csv", "tsv")

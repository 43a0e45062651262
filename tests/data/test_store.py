"""The store: what was written is read, files carry their own hashes, and what is altered shows."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch

from sightline.data.store import Store, intact
from sightline.errors import SightlineError
from stores import contents

KEYS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(7)]


def value(number: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Two tensors of a key; the first has as many rows as the number says, none for 0."""
    generator = torch.Generator().manual_seed(number)
    return {
        "patches": torch.randn(number, 3, 2, generator=generator).to(dtype),
        "level": torch.tensor([number]),
    }


def filled(folder: Path, dtype: torch.dtype = torch.float32) -> Store:
    store = Store(folder)
    store.plan(KEYS, 3)
    for shard in store.missing():
        store.write(shard, [value(KEYS.index(key), dtype) for key in shard.keys])
    store.refresh()
    return store


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reads_what_was_written(tmp_path: Path, dtype: torch.dtype) -> None:
    filled(tmp_path, dtype)
    store = Store(tmp_path)
    assert len(store) == 7 and not store.missing() and [len(s.keys) for s in store.shards] == [3, 3, 1]
    for reader in (store, pickle.loads(pickle.dumps(store))):
        for number in (6, 0, 3, 2, 6):
            read, wrote = reader.read(KEYS[number]), value(number, dtype)
            assert all(torch.equal(read[name], wrote[name]) and read[name].dtype == wrote[name].dtype for name in wrote)
    assert "0" * 64 not in store and "f" * 64 not in store
    with pytest.raises(KeyError):
        store.read("0" * 64)


def test_an_empty_folder_is_an_empty_store(tmp_path: Path) -> None:
    assert len(Store(tmp_path)) == 0 and KEYS[0] not in Store(tmp_path) and Store(tmp_path).damaged() == []


def test_same_values_same_files(tmp_path: Path) -> None:
    """Names, bytes and nothing beside them; the group is named by its keys."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        filled(tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and len(contents(tmp_path / "a")) == 4
    for name, data in contents(tmp_path / "a").items():
        assert hashlib.sha256(data).hexdigest() == name.split(".")[1]


def test_more_keys_are_a_group_of_their_own(tmp_path: Path) -> None:
    store = filled(tmp_path)
    before = contents(tmp_path)
    more = [hashlib.sha256(b"more" + bytes([number])).hexdigest() for number in range(2)]
    store.plan(more, 5)
    assert [shard.keys for shard in store.missing()] == [tuple(more)], "what is planned is not there"
    assert more[0] not in store
    store.write(store.missing()[0], [value(1), value(2)])
    store.refresh()
    assert torch.equal(store.read(more[1])["patches"], value(2)["patches"])
    assert torch.equal(Store(tmp_path).read(KEYS[5])["patches"], value(5)["patches"])
    assert before.items() <= contents(tmp_path).items()


@pytest.mark.parametrize("harm", ["flip", "tear", "grow"])
def test_what_was_altered_shows(tmp_path: Path, harm: str) -> None:
    filled(tmp_path)
    path = sorted(tmp_path.glob("*-00001.*"))[0]
    data = path.read_bytes()
    assert intact(path)
    path.write_bytes(
        {"flip": data[:-1] + bytes([data[-1] ^ 1]), "tear": data[: len(data) // 2], "grow": data + b" "}[harm]
    )
    store = Store(tmp_path)
    assert store.damaged() == [path] == store.damaged([KEYS[4]])
    assert store.damaged([KEYS[0], KEYS[6]]) == [], "only the shards of these keys are read"
    path.unlink()
    store.refresh()
    assert [shard.number for shard in store.missing()] == [1]
    store.write(store.missing()[0], [value(number) for number in (3, 4, 5)])
    assert path.read_bytes() == data


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    path = next(tmp_path.glob("*-index.*"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SightlineError, match=r"is damaged.*Remove it with its shards.*rm .*-\*"):
        Store(tmp_path)


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.plan(KEYS, 4)
    first = store.missing()[0]
    (tmp_path / f".{first.stem}.99.part").write_bytes(b"half of it")
    assert Store(tmp_path).missing()[0] == first, "it is not taken for a shard"
    store.write(first, [value(number) for number in range(4)])
    assert not list(tmp_path.glob(".*"))


def test_many_shards_share_few_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.data.store.OPEN", 2)
    filled(tmp_path)
    store = Store(tmp_path)
    for number in (0, 3, 6, 0, 6, 3):
        assert torch.equal(store.read(KEYS[number])["patches"], value(number)["patches"])
        assert len(store._open) <= 2

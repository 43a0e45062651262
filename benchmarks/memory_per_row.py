"""What a row costs in memory once it is indexed: JSONL and a JSON list, from 10^3 to 10^6 LLaVA rows.

Each size is opened in a process of its own; resident memory is read before and after, with every row checked on the
way and the order of an epoch drawn, as training holds both. The cost of a row is the growth from the smallest to the
largest, over the rows between. The claim is at most 32 bytes a row; the index itself has 21 (offset 8, size 4, images
1, hash of the id 8), the order 4. The highest mark on the way and the time of a random read are shown beside it, and
the time that `json.loads` alone takes for the same lines.

    python benchmarks/memory_per_row.py            # writes benchmarks/results/memory_per_row.json and prints the table
"""

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "memory_per_row.json"
SIZES = (10**3, 10**4, 10**5, 10**6)
LIMIT = 32


def main() -> None:
    """Measure every size of both formats; write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    rows = []
    for ending in ("jsonl", "json"):
        for size in options.sizes:
            with tempfile.TemporaryDirectory() as folder:
                path = write(Path(folder) / f"rows.{ending}", size)
                command = [sys.executable, __file__, "--one", str(path)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append({"format": ending, "rows": size} | json.loads(output))
            print(rows[-1], flush=True)
    cost = {}
    for ending in ("jsonl", "json"):
        first, *_, last = (row for row in rows if row["format"] == ending)
        cost[ending] = round((last["resident"] - first["resident"]) / (last["rows"] - first["rows"]), 1)
    result = {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("sightline", "numpy")},
        "bytes_per_row": cost,
        "limit": LIMIT,
        "rows": rows,
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(rows, cost))
    if max(cost.values()) > LIMIT:
        raise SystemExit(f"more than {LIMIT} bytes a row")


def write(path: Path, size: int) -> Path:
    """LLaVA rows of about 0.6 kB: an image, and two exchanges whose lengths vary."""
    rng = random.Random(0)
    words = ["a", "red", "dog", "on", "the", "grass", "beside", "två", "lådor", "\U0001f7e5"]
    with path.open("w", encoding="utf-8") as file:
        for number in range(size):
            turns = []
            for exchange in range(2):
                question = ("<image>\n" if exchange == 0 else "") + " ".join(rng.choices(words, k=12))
                answer = " ".join(rng.choices(words, k=rng.randint(5, 60)))
                turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            row = {"id": f"{number:09d}", "image": f"coco/train2017/{number:012d}.jpg", "conversations": turns}
            lead = "" if path.suffix == ".jsonl" else "[" if number == 0 else ","
            file.write(lead + json.dumps(row, ensure_ascii=False) + "\n")
        if path.suffix == ".json":
            file.write("]\n")
    return path


def measure(path: Path) -> dict:
    """One size, in this process alone. Bytes and seconds."""
    from sightline.data.order import Order
    from sightline.data.sources import open_source

    before = resident()
    start = time.perf_counter()
    source = open_source(path)
    seconds = time.perf_counter() - start
    epoch = Order(0, (len(source),), batch_size=16).epoch(0)
    after = resident()
    assert len(epoch) == len(source)
    rng = random.Random(1)
    order = [rng.randrange(len(source)) for _ in range(2000)]
    start = time.perf_counter()
    for row in order:
        source[row]
    read = (time.perf_counter() - start) / len(order)
    result = {
        "file": path.stat().st_size,
        "resident": after - before,
        "peak": max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, after) - before,
        "seconds": round(seconds, 2),
        "read_us": round(read * 1e6, 1),
    }
    if path.suffix == ".jsonl":
        start = time.perf_counter()
        with path.open("rb") as file:
            for line in file:
                json.loads(line)
        result["json_seconds"] = round(time.perf_counter() - start, 2)
    return result


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def table(rows: list[dict], cost: dict[str, float]) -> str:
    """The result as a table."""
    lines = [f"{'format':8}{'rows':>9}{'file MB':>9}{'resident kB':>13}{'peak kB':>10}{'seconds':>9}{'read µs':>9}"]
    for row in rows:
        lines.append(
            f"{row['format']:8}{row['rows']:>9}{row['file'] / 1e6:>9.1f}{row['resident'] / 1e3:>13.0f}"
            f"{row['peak'] / 1e3:>10.0f}{row['seconds']:>9.2f}{row['read_us']:>9.1f}"
        )
    return "\n".join([*lines, *(f"{name}: {value} bytes a row (limit {LIMIT})" for name, value in cost.items())])


if __name__ == "__main__":
    main()

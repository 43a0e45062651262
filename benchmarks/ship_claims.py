"""Put the claims of all complete comparisons in `comparisons/` into the package, for `sightline report`.

From this folder: python ship_claims.py
"""

from pathlib import Path

from sightline.compare.claims import read_claims, write_shipped
from sightline.errors import SightlineError


def complete(folders: Path) -> list[Path]:
    """The comparisons below a folder that have results."""
    return sorted(path.parent for path in folders.glob("*/results.md"))


if __name__ == "__main__":
    found = []
    for folder in complete(Path(__file__).parent / "comparisons"):
        try:
            found.append(read_claims(folder))
        except SightlineError as error:
            print(error)
    write_shipped(found)
    print(", ".join(claims.name for claims in found))

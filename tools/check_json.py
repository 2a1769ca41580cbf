"""Every tracked JSON file parses and repeats no key (MONAI's parser takes the last one in silence)."""

import json
import subprocess
import sys
from pathlib import Path


def refuse_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object hook that raises on a key written twice."""
    seen: dict[str, object] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"key {key!r} is written twice")
        seen[key] = value
    return seen


def main() -> int:
    """Print each bad file; the exit status is 1 if there is one."""
    listed = subprocess.run(["git", "ls-files", "-z", "*.json"], check=True, capture_output=True, text=True)
    names = [name for name in listed.stdout.split("\0") if name]
    bad = 0
    for name in names:
        try:
            json.loads(Path(name).read_text(encoding="utf-8"), object_pairs_hook=refuse_repeats)
        except ValueError as error:
            print(f"{name}: {error}")
            bad += 1
    print(f"JSON: {len(names) - bad} of {len(names)} files are sound")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

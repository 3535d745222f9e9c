"""What a report is made of: the files of a run, and one whose names would do harm."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["HOSTILE", "rename_class", "sources"]

HOSTILE = '<img src=x onerror=alert(1)></svg><script>alert(2)</script> $x$ & "q" \' --> 花'


def sources(folder: Path) -> list[Path]:
    return [folder / name for name in ("run", "tiny.prunion", "eval.json", "bench.json")]


def rename_class(run: Path, name: str) -> None:
    record = json.loads((run / "record.json").read_text("utf-8"))
    warm = record["domains"]["warm"]
    old, warm["classes"][0]["name"] = warm["classes"][0]["name"], name
    picture = warm["mistakes"][0]["picture"] if warm["mistakes"] else "data:image/jpeg;base64,AA=="
    warm["mistakes"] = [
        {"image": 0, "truth": name, "answer": old, "confidence": 0.9, "picture": picture},
        {"image": 1, "truth": "a", "answer": name, "confidence": 0.9, "picture": '"><b>'},
    ]
    warm["confusion"] = [[0, 1, 3], [1, 1, 8]]
    (run / "record.json").write_text(json.dumps(record), "utf-8")

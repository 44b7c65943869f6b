"""Recorded agent sessions as one trace of many users, for `simkit plan`.

Input: a folder of `trace_NNNN.json`, one session each, as callanjfox/kv-cache-tester publishes them (@ 94f6046,
`traces/`, Apache-2.0): requests with a time, token counts, and the ids of the 64-token blocks of their prompt. Output:
the schema `simkit.trace/1`. Sessions begin at random over `hours`; a pause of more than `PAUSE_S` within one is cut to
that, or an hour would hold a session's first turns only; a session ends where its prompt outgrows the context, where
the agent would have compacted it. Requests of sub-agents, which have contexts of their own, are left out.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import zstandard

PAUSE_S = 300.0
BLOCK = 64
CONTEXT = 204_800


def main() -> None:
    """Write the trace."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of trace_NNNN.json")
    parser.add_argument("out", type=Path, help="NAME.trace.jsonl.zst")
    parser.add_argument("--sessions", type=int, default=160)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    files = sorted(given.folder.rglob("trace_*.json"))
    chosen = [files[i] for i in sorted(rng.choice(len(files), min(given.sessions, len(files)), replace=False))]
    rows = []
    first_id = 0
    for file in chosen:
        session, ids = requests(file, float(rng.uniform(0, 3600 * given.hours)), first_id)
        rows += session
        first_id += ids + 1
    end_us = round(3.6e9 * given.hours)
    rows = sorted((row for row in rows if row["arrival_us"] < end_us), key=lambda row: row["arrival_us"])
    header = {
        "schema": "simkit.trace/1",
        "name": "claude-code-sessions",
        "source_repo": "callanjfox/kv-cache-tester",
        "license": "Apache-2.0",
        "block_tokens": BLOCK,
    }
    text = "\n".join(json.dumps(row, separators=(",", ":")) for row in [header, *rows]) + "\n"
    given.out.write_bytes(zstandard.ZstdCompressor(level=3).compress(text.encode()))
    print(f"{len(rows)} requests of {len(chosen)} sessions over {given.hours:g} h: {given.out}")


def requests(file: Path, begins_s: float, first_id: int) -> tuple[list[dict[str, object]], int]:
    """(rows of one session, the largest block id in it)."""
    session = json.loads(file.read_text())
    rows: list[dict[str, object]] = []
    at_s, before_s, largest = begins_s, None, 0
    for number, request in enumerate(session["requests"]):
        if request["type"] not in ("n", "s") or request["in"] < 1 or request["out"] < 1:
            continue
        if request["in"] + request["out"] > CONTEXT:
            break
        at_s += 0.0 if before_s is None else min(PAUSE_S, max(0.0, request["t"] - before_s))
        before_s = request["t"]
        ids = request["hash_ids"][: request["in"] // BLOCK]
        largest = max(largest, *ids) if ids else largest
        rows.append(
            {
                "request_id": f"{session['id']}-{number}",
                "session_id": session["id"],
                "arrival_us": round(1e6 * at_s),
                "prompt_tokens": request["in"],
                "output_tokens": request["out"],
                "hash_ids": [first_id + i for i in ids],
            }
        )
    return rows, largest


if __name__ == "__main__":
    main()

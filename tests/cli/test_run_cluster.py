"""`simkit run` with a cluster: what the result says of its pools, links and tiers, and what is refused."""

import html
import json
import re
from pathlib import Path

import pandas as pd
import pytest


def chats(folder: Path) -> Path:
    """Twelve turns of three chats, whose contexts grow by 512 tokens a turn, in the project's own form."""
    head = {"schema": "simkit.trace/1", "name": "chats", "time_origin": "relative", "block_tokens": 256}
    rows = [
        {
            "request_id": str(3 * turn + chat),
            "arrival_us": 2_000_000 * turn + 100_000 * chat,
            "prompt_tokens": 512 * (turn + 1),
            "output_tokens": 20,
            "session_id": f"chat-{chat}",
            "hash_ids": [1000 * chat + i for i in range(2 * (turn + 1))],
        }
        for turn in range(4)
        for chat in range(3)
    ]
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [head, *rows]))
    return path


def words(page: Path) -> str:
    """A page's text, cells apart by bars."""
    body = re.sub(r"<(script|style|svg)[\s\S]*?</\1>", " ", page.read_text(encoding="utf-8"))
    return re.sub(r"(\s*\|\s*)+", " | ", html.unescape(re.sub(r"<[^>]+>", "|", body)))


def test_a_fleet_of_unlike_pools_says_what_each_is(simkit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config, out = tmp_path / "fleet.yaml", tmp_path / "out"
    config.write_text(
        "deployment: {model: llama-3.1-8b, device: h100}\n"
        f"workload: {{trace: {chats(tmp_path)}}}\n"
        "cluster:\n"
        "  pools:\n"
        "    - {name: prefill, replicas: 2}\n"
        "    - {name: decode, deployment: {model: llama-3.1-8b, device: l40s, step_time: uncalibrated}}\n"
        "  disaggregation: {}\n"
        "  tiers: [{name: host, capacity_gib: 10, link: {kind: pcie5}}]\n"
        "  autoscaling: [{pool: decode, most: 3, rule: {kind: queue, target: 50}}]\n"
    )
    done = simkit("run", config, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    assert [(row["pool"], row["replicas"], row["device"]) for row in tree["fleet"]["pools"]] == [
        ("prefill", "2", "h100-sxm"), ("decode", "1 to 3", "l40s"),
    ]  # fmt: skip
    # times of some steps are a roofline's: the whole answer is no better
    assert tree["step_time"]["provenance"] == "uncalibrated"
    assert "memory_bytes" not in tree
    assert tree["fleet"]["pools"][0]["memory_bytes"]["weights"] > 0
    rows = pd.read_csv(out / "requests.csv.gz")
    assert set(rows["prefill_replica"]) <= {0, 1}  # all were prefilled apart
    assert rows["replica"].min() >= 2
    answered = {row["replica"]: row["finished"] for row in tree["fleet"]["replicas"] if row["pool"] == "decode"}
    assert rows["replica"].value_counts().to_dict() == {number: n for number, n in answered.items() if n}
    page = words(out / "report.html")
    assert "2 x llama-3.1-8b on h100-sxm (prefill), 1 to 3 x llama-3.1-8b on l40s (decode): chats" in page
    assert "| KV moved from prefill to decode |" in page
    assert "| KV tiers | tier | prompt tokens read |" in page
    assert "| decode | 1 to 3 | llama-3.1-8b | l40s | 1 |" in page
    # the configuration that is kept with a result gives the same result
    again = simkit("run", out / "config.yaml", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["fleet"] == tree["fleet"]


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ("faults: {schedule: [{at_s: 1, kind: crash, replica: 5}]}", "replica 5 is not there"),
        ("autoscaling: {most: 2, rule: {kind: queue, target: 2}}", "cluster.autoscaling: input should be a valid list"),
        (
            "autoscaling: [{most: 2, rule: {kind: queue, taget: 2}}]",
            "queue.taget: unknown key; did you mean 'target'",
        ),
        ("pools: [{name: a, deployment: {modl: llama-3.1-8b}}]", "deployment.modl: unknown key; did you mean 'model'"),
    ],
)
def test_what_is_wrong_in_a_cluster_is_said_in_a_line(  # type: ignore[no-untyped-def]
    simkit, tmp_path: Path, cluster: str, said: str
) -> None:
    config = tmp_path / "fleet.yaml"
    config.write_text(
        "deployment: {model: llama-3.1-8b, device: h100}\n"
        f"workload: {{trace: {chats(tmp_path)}}}\n"
        f"cluster: {{{cluster}}}\n"
    )
    refused = simkit("run", config, "--json")
    assert refused.returncode == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1

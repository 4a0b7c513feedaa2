"""Traces: what is a request, what is named as bad, and the made-up one."""

import gzip
import json
from pathlib import Path

import pytest

from agent.replay.trace import TraceError, TraceRequest, read_trace, synthetic_sessions

GOOD = {"timestamp": 1500, "input_length": 9, "output_length": 3, "hash_ids": [7, 8]}


def written(folder: Path, *lines: object) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines))
    return path


def test_requests_come_in_time_order_with_seconds_and_text_keys(tmp_path: Path) -> None:
    later = {**GOOD, "timestamp": 2000, "hash_ids": ["a", "b"], "class": "chat"}

    trace = read_trace(written(tmp_path, later, "", GOOD))

    assert trace.requests == [
        TraceRequest(1.5, ("7", "8"), "up_to_8_blocks"),
        TraceRequest(2.0, ("a", "b"), "chat"),
    ]
    assert (trace.bad, trace.bad_total) == ([], 0)


def test_gzip_is_recognised_whatever_the_file_is_called(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode()))

    assert len(read_trace(path).requests) == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param("{not json", "malformed", id="no-json"),
        pytest.param({"hash_ids": [1]}, "timestamp", id="no-time"),
        pytest.param({**GOOD, "timestamp": -1}, "timestamp", id="negative"),
        pytest.param({**GOOD, "hash_ids": []}, "hash_ids is empty", id="no-blocks"),
        pytest.param({**GOOD, "hash_ids": [1.5]}, "hash_ids", id="no-id"),
        pytest.param("[1, 2]", "object", id="no-object"),
        pytest.param("\udcff", "malformed", id="no-text"),
    ],
)
def test_a_bad_line_is_left_out_and_named_by_number(
    tmp_path: Path, line: object, reason: str
) -> None:
    path = tmp_path / "trace.jsonl"
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_bytes(f"{json.dumps(GOOD)}\n{text}\n".encode(errors="surrogateescape"))

    trace = read_trace(path)

    assert len(trace.requests) == 1
    assert trace.bad_total == 1
    assert trace.bad[0][0] == 2
    assert reason.lower() in trace.bad[0][1].lower()


def test_many_bad_lines_are_counted_and_some_are_named(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, GOOD, *["x"] * 50))

    assert (len(trace.bad), trace.bad_total) == (20, 50)


def test_a_file_without_a_request_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"trace\.jsonl: no request in it; line 1: "):
        read_trace(written(tmp_path, "x"))


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode() * 100)[:-12])

    with pytest.raises(TraceError, match=r"cut\.gz: damaged gzip"):
        read_trace(path)


def test_made_up_sessions_are_the_same_each_time_and_share_their_beginnings() -> None:
    trace = synthetic_sessions()

    roots = {request.blocks[0] for request in trace.requests}
    times = [request.at_seconds for request in trace.requests]
    assert trace == synthetic_sessions()
    assert len(roots) <= 5 < len(trace.requests)
    assert times == sorted(times)

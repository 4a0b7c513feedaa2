"""What an upload sends."""

import hashlib
import io

import pytest

from archive.s3_body import LEAST_BYTES, PIECE_BYTES, Body


def test_it_is_read_in_large_pieces_and_as_often_as_asked() -> None:
    content = bytes(range(256)) * (PIECE_BYTES // 256) * 2 + b"tail"
    body = Body(content)

    nothing = body.read(0)
    pieces = [body.read(64 * 1024) for _ in range(4)]
    body.seek(0)
    large = body.read(PIECE_BYTES + 1)

    assert nothing == b""
    assert [len(piece) for piece in pieces] == [PIECE_BYTES, PIECE_BYTES, 4, 0]
    assert b"".join(pieces) == content
    assert len(large) == PIECE_BYTES + 1
    assert large + body.read() == content
    assert body.getvalue() == content


def test_pieces_are_sent_uncopied_but_for_short_ones() -> None:
    short, long, last = b"head", bytes(LEAST_BYTES), b"x" * LEAST_BYTES
    body = Body(short, long, memoryview(last), b"tail")

    sent = [body.read(64 * 1024) for _ in range(4)]

    assert sent == [short + long, last, b"tail", b""]
    assert sent[1] is last
    assert Body(long).read() is long


@pytest.mark.parametrize("piece_bytes", [1, 7, LEAST_BYTES])
def test_it_is_a_file_of_all_its_pieces(piece_bytes: int) -> None:
    content = bytes(range(100))
    body = Body(*(content[first : first + piece_bytes] for first in range(0, 100, piece_bytes)))

    sizes = body.seek(0, io.SEEK_END), body.tell(), len(body.getbuffer()), body.size_bytes
    body.seek(-10, io.SEEK_END)
    end = body.read()
    body.seek(3)
    body.seek(2, io.SEEK_CUR)

    assert sizes == (100, 100, 100, 100)
    assert (end, body.read(10)) == (content[-10:], content[5:])
    assert (body.getvalue(), body.sha256()) == (content, hashlib.sha256(content).hexdigest())
    assert body.read(10) == b""

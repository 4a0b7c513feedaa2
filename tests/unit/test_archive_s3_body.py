"""What an upload sends."""

from archive.s3_body import PIECE_BYTES, Body


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

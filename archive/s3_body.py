"""What an upload sends."""

import io

PIECE_BYTES = 1024 * 1024


class Body(io.BytesIO):
    """Bytes that are sent a MiB for each turn of the event loop.

    aiohttp reads 64 KiB, whatever there is, and then gives way: where each turn takes 10 ms, as
    beside a full stream of evictions, 16 MiB would take 2.5 s.
    """

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, or a MiB where that is more."""
        return super().read(max(size, PIECE_BYTES) if size and size > 0 else size)

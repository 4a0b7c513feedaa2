"""How far each codec of the archive shrinks what, and how fast, in one thread.

`python -m benchmarks.bench_codec [--rounds N]`: text is the source of the running Python's own
library, so every machine has it; tensors are synthetic, and labelled so: normally distributed,
each of 1,024 channels with a scale of its own (log-normal, sigma 0.3), the next token half like
the last. Real attention caches in half precision shrink less. 8 MB each; MB a
second of CPU time, the median of the rounds. `*` marks what the archive chooses by itself.
"""

import argparse
import random
import statistics
import sysconfig
import time
from array import array
from collections.abc import Callable
from pathlib import Path

from archive import codec

SIZE_BYTES = 8_000_000
CHANNELS = 1024
LEVEL = 3


def library_source() -> bytes:
    """The first 8 MB of the Python files of this Python's library, by path."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py")):
        if "site-packages" not in path.parts:
            text += path.read_bytes()
        if len(text) >= SIZE_BYTES:
            break
    return bytes(text[:SIZE_BYTES])


def numbers(width: int) -> bytes:
    """Synthetic fp32 (width 4), or its upper halves: bf16 (width 2)."""
    source = random.Random(1)  # noqa: S311 - the same each run
    scales = [source.lognormvariate(0, 0.3) for _ in range(CHANNELS)]
    token = [0.0] * CHANNELS
    single = array("f")
    while len(single) < SIZE_BYTES // width:
        token = [0.5 * old + source.gauss(0, 1) for old in token]
        single.extend(value * scale for value, scale in zip(token, scales, strict=True))
    content = single.tobytes()
    if width == 4:
        return content[:SIZE_BYTES]
    halves = bytearray(len(content) // 2)
    halves[0::2], halves[1::2] = content[2::4], content[3::4]
    return bytes(halves[:SIZE_BYTES])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print("| data | codec | ratio | compress MB/s | decompress MB/s |")
    print("|---|---|---|---|---|")
    for name, value in (
        ("text: source of Python's library", library_source()),
        ("tensor, synthetic bf16", numbers(2)),
        ("tensor, synthetic fp32", numbers(4)),
        ("noise", random.Random(2).randbytes(SIZE_BYTES)),  # noqa: S311 - as above
    ):
        chosen = codec.compress(value, level=LEVEL, min_ratio=1.1)[0]
        for row in (codec.RAW, *codec.WIDTH_BYTES):
            mark = " *" if row == chosen else ""
            print(f"| {name} | {row}{mark} | {_figures(row, value, rounds)} |")


def _figures(name: str, value: bytes, rounds: int) -> str:
    if name == codec.RAW:  # what finding out costs, where the sample says no
        seconds = _seconds(lambda: codec.compress(value, level=LEVEL, min_ratio=1e9), rounds)
        return f"1.00 | {len(value) / seconds / 1e6:,.0f} | -"
    stored = codec.compress_as(name, value, LEVEL)
    pack = _seconds(lambda: codec.compress_as(name, value, LEVEL), rounds)
    unpack = _seconds(lambda: codec.decompress(name, stored, size_bytes=len(value)), rounds)
    ratio, packed, unpacked = len(value) / len(stored), len(value) / pack, len(value) / unpack
    return f"{ratio:.2f} | {packed / 1e6:,.0f} | {unpacked / 1e6:,.0f}"


def _seconds(work: Callable[[], object], rounds: int) -> float:
    measured = []
    for _ in range(rounds):
        began = time.thread_time()
        work()
        measured.append(time.thread_time() - began)
    return statistics.median(measured)


if __name__ == "__main__":
    main()

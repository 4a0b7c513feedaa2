"""What a stored value is worth, by its score and by how long nobody asked for it.

The cache sets the score when it evicts; the archive ranks by `worth` when room is short.
"""

import math

OFFSET_SECONDS = 5.0
DECAY = 1.5


def worth(score: float, idle_seconds: float) -> float:
    """Score / (idle + 5 s) ^ 1.5: the chance of being asked for falls as a power of the idle time.

    `score` 1 is an ordinary entry; `idle_seconds` since the last access, below 0 counts as 0.
    Worked: score 1, idle 0 → 0.0894; idle 95 → 0.001; score 2.83, idle 195 → 0.001: an entry of
    2.83 times the score may be idle twice as long.
    """
    return score / math.pow(max(idle_seconds, 0.0) + OFFSET_SECONDS, DECAY)


def equal_idle_seconds(score: float, base_seconds: float) -> float:
    """The idle time at which `score` is worth what score 1 is worth after `base_seconds`.

    Worked, base 95: score 1 → 95; 2.83 → 195; 0.125 → 20; 0 → 0.
    """
    return max(0.0, (base_seconds + OFFSET_SECONDS) * math.pow(score, 1 / DECAY) - OFFSET_SECONDS)

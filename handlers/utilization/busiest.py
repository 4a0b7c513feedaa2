"""How busy a machine's busiest disk and network interface are. Pure."""

from math import nan

from schemas.metrics import HostMetrics


def busiest_disk(message: HostMetrics) -> float:
    """The highest share of time in which a disk had a request under way, 0 to 1.

    0.2 and 0.9 → 0.9. NaN: of no disk was it measured.
    """
    most = -1.0
    for disk in message.disks or ():
        busy = disk.busy_ratio
        if busy is not None and busy > most:
            most = busy
    return most if most >= 0.0 else nan


def fullest_network(message: HostMetrics) -> float:
    """The highest use of an interface, 0 to 1: the busier direction by its speed.

    Both directions have the whole speed. 100 MB/s in and 20 MB/s out at 1 Gbit/s → 0.8, as at most
    1: a rate may be a little above what a link has. NaN: no interface has a speed and a rate that
    are known. One whose speed is not known is left out; it is not at 0.
    """
    most = -1.0
    for one in message.network or ():
        speed = one.speed_bits_per_second
        if not speed:
            continue
        received, sent = one.received_bytes_per_second, one.sent_bytes_per_second
        if received is None or (sent is not None and sent > received):
            received = sent
        if received is not None and received > most * speed:
            most = received / speed
    return min(1.0, 8.0 * most) if most >= 0.0 else nan

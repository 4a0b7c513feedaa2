"""Whether what lies in an unmarked store is what the index is of."""

from collections.abc import Mapping, Sequence

from archive import segment
from archive.frame import ArchiveObjectError
from archive.store import StoredObject

SHARE = 0.75
"""Of the objects, of the records and of the sample that have to agree."""
SAMPLE = 64
"""Records that are read, evenly spread over those whose object is there: each is unpacked."""


def agrees(objects: Sequence[StoredObject], records: Mapping[str, bytes]) -> bool:
    """Whether three quarters of the objects are in the index, and of the index's here.

    One object in common proves little: a copy of some of a production bucket in a test bucket, or
    the other way round, has many in common, as names are copied too. So both have to be the same
    for the most part. Objects that only the store has are another's, if they are many: only a few
    of ours have no record, those stored just before a crash or while the bucket did not answer,
    and those cut off. Records that only the index has say that this is a part of the store, or an
    older state of it. Some are left behind where a lifecycle rule removed the object.

    Of those in both, at most `SAMPLE` have to have the length that their record tells, three
    quarters again: files that were emptied, or filled by a restore that did not finish, still
    have their names.

    Worked: 100 objects and 90 records, 80 of them the same: 80 of 100 agree, yes. 1 of 1 and 1:
    yes. 1 object of 500 records, or 1 record and 500 objects: no. Nothing and nothing: no.
    """
    known = sorted((one for one in objects if one.name in records), key=lambda one: one.name)
    if not known or len(known) < SHARE * max(len(objects), len(records)):
        return False
    step = -(-len(known) // SAMPLE)
    sample = known[::step]
    return sum(_has_its_length(one, records[one.name]) for one in sample) >= SHARE * len(sample)


def _has_its_length(found: StoredObject, record: bytes) -> bool:
    try:
        segment.read_record(found.name, record, found.object_bytes)
    except ArchiveObjectError:
        return False
    return True

"""The store that the settings name."""

from collections.abc import Callable
from pathlib import Path

from archive.folder import FolderStore
from archive.settings import ArchiveSettings
from archive.store import ObjectStore
from schemas.protocols import BlockingCalls

FOLDER_THREADS = 4


def make_store(
    settings: ArchiveSettings, folder: Path, make_thread: Callable[[str], BlockingCalls]
) -> ObjectStore:
    """S3, or `folder`, whose calls run in threads of these names."""
    bucket_and_prefix = settings.bucket_and_prefix
    if bucket_and_prefix is None:
        names = (f"archive-store-{number}" for number in range(FOLDER_THREADS))
        return FolderStore(folder, [make_thread(name) for name in names])
    # Takes 0.5 s and 50 MB: only for those who use it.
    from archive.s3 import S3Store  # noqa: PLC0415

    return S3Store(*bucket_and_prefix, settings.s3)

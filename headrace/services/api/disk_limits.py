"""What a tenant may keep on the server's disk, and how much space stays free on it whatever tenants send."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.project import Project
from headrace.runtime.http import CLOSE, Refused
from headrace.services.api.batch_store import BatchFolder, Submitted

FOLDER_BYTES = 64 * 1024
"""What a batch takes beside its rows and answers, at most."""


def is_low(project: Project) -> bool:
    """Whether less than `disk_reserve_bytes` is free."""
    return shutil.disk_usage(_existing(project.state)).free < project.settings.disk_reserve_bytes


def require_space(project: Project) -> None:
    """
    Raises:
        Refused: 507, less than `disk_reserve_bytes` is free.
    """
    if is_low(project):
        reserve = project.settings.disk_reserve_bytes
        message = f"less than {reserve:,} bytes are free on the server's disk (disk_reserve_bytes); nothing of this is kept"
        raise Refused(507, "disk_full", message, {**CLOSE, "retry-after": "60"})


class BatchSizes:
    """The disk space of batches. Those that have ended do not change, and are measured once."""

    def __init__(self) -> None:
        self._ended: dict[str, int] = {}

    def of(self, submitted: Submitted, folder: BatchFolder) -> int:
        """Returns bytes, at least `FOLDER_BYTES`."""
        if (known := self._ended.get(submitted.id)) is not None:
            return known
        if not (progress := folder.progress).has_ended:
            return FOLDER_BYTES + submitted.bytes + progress.answer_bytes
        # Its rows are removed, or are about to be.
        files = [*(part.path for part in folder.parts()), folder.result, folder.table]
        size = self._ended[submitted.id] = FOLDER_BYTES + sum(_size(path) for path in files)
        return size

    def forget(self, batch_id: str) -> None:
        """Drops the size of a batch whose files were removed."""
        self._ended.pop(batch_id, None)


class UploadBudget:
    """Keeps the uploads of a tenant, all of them together, within what its batches may take."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._uploading: Counter[str] = Counter()
        """Bytes of uploads in progress, by tenant."""

    @contextmanager
    def upload(self, tenant: str) -> Iterator[Upload]:
        """Counts an upload while the block runs."""
        upload = Upload(self, tenant)
        try:
            yield upload
        finally:
            upload.grow(0)

    def change(self, tenant: str, size: int) -> None:
        self._uploading[tenant] += size
        if not self._uploading[tenant]:
            del self._uploading[tenant]

    def check(self, tenant: str, used: int, more: int = 0) -> None:
        """Checks the space for the uploads in progress.

        Args:
            used: bytes of the tenant's batches.
            more: bytes that are announced, but not yet received.

        Raises:
            Refused: 413, the batches would exceed `tenant_batch_bytes`; 507, too little space is free.
        """
        require_space(self._project)
        budget = self._project.settings.tenant_batch_bytes
        if used + self._uploading[tenant] + more > budget:
            message = (
                f"the batches of {tenant} take {used:,} of {budget:,} bytes (tenant_batch_bytes), too many for "
                "this file; remove batches that have ended with DELETE /v1/models/NAME/batches/ID (headrace batch cancel)"
            )
            raise Refused(413, "over_budget", message, CLOSE, limit_bytes=budget)


class Upload:
    """The bytes of one upload."""

    def __init__(self, budget: UploadBudget, tenant: str) -> None:
        self._budget, self._tenant, self._size = budget, tenant, 0

    def grow(self, size: int) -> None:
        """Sets the bytes that were received."""
        self._budget.change(self._tenant, size - self._size)
        self._size = size

    def check(self, used: int, size: int, declared: int = 0) -> None:
        """Checks an upload that has `size` bytes now, of at least `declared`.

        Raises:
            Refused: 413 or 507, as `UploadBudget.check`.
        """
        self.grow(size)
        self._budget.check(self._tenant, used, max(0, declared - size))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path

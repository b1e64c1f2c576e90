"""A folder as a destination: each object is a file that appears whole or not at all."""

import contextlib
import errno
import os
from pathlib import Path

from shared.domain.destinations import Answer, Capabilities, DeliveryReason, Destination
from shared.queries.deliveries import DueObject
from worker.delivery.connections import Away, KnownPatient

_FULL = (errno.ENOSPC, errno.EDQUOT)


class FolderConnection:
    """A folder below OSTEON_DELIVERY_FOLDER, which has to exist: one that is not mounted is missing, not empty."""

    def __init__(self, root: Path | None, destination: Destination) -> None:
        if root is None:
            raise Away(Answer(DeliveryReason.NO_FOLDER, words="OSTEON_DELIVERY_FOLDER is not set"))
        self.folder = root / destination.folder
        self.capabilities: Capabilities = {}
        if not self.folder.is_dir():
            raise Away(Answer(DeliveryReason.NO_FOLDER, words="there is no such folder"))

    def refuses(self, due_object: DueObject) -> bool:  # noqa: ARG002 - it takes every class
        """False."""
        return False

    def patient_of(self, study_instance_uid: str) -> KnownPatient | None:  # noqa: ARG002 - it cannot be asked
        """None."""
        return None

    def send(self, due_object: DueObject, content: bytes) -> Answer:
        """Write a file named by its SOP Instance UID; one that is there already is the same, for UIDs are of contents.

        Args:
            due_object: which.
            content: the file.

        Returns:
            The answer.
        """
        self._write(f"{due_object.sop_instance_uid}.dcm", content)
        return Answer(None, "written")

    def test(self) -> Answer:
        """Write an empty file and remove it."""
        name = ".osteon-test"
        self._write(name, b"")
        (self.folder / name).unlink(missing_ok=True)
        return Answer(None, "written")

    def close(self) -> None:
        """Nothing is open."""

    def _write(self, name: str, content: bytes) -> None:
        final, begun = self.folder / name, self.folder / f".{name}.part"
        try:
            with begun.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            begun.replace(final)
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                begun.unlink(missing_ok=True)
            full = error.errno in _FULL
            reason = DeliveryReason.FULL if full else DeliveryReason.NO_FOLDER
            raise Away(Answer(reason, words=error.strerror or type(error).__name__)) from error

"""Input files that are read piece by piece."""

from __future__ import annotations

import os
import stat

from bnfold.errors import ModelReadError, printable

__all__ = ["DataFile"]

#: Descriptors kept open at a time; a model with one file per tensor must not run into the process's limit.
_MOST_OPEN_FILES = 64


class DataFile:
    """A regular file opened for reading, which has to stay the file it was when it was first opened.

    Raises ``OSError`` as ``os.open`` does, and ``ModelReadError`` when the path is not a regular file or has changed.
    """

    _kept_open = 0

    def __init__(self, path: str, *, follow_links: bool = True) -> None:
        self.path = path
        # O_NONBLOCK: opening a pipe must not wait for a writer.
        self._flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
        self._descriptor = -1
        descriptor = os.open(path, self._flags)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ModelReadError(f"{printable(path)}: is {kind}; give the path of a file")
        self.size = status.st_size
        self.identity = (status.st_dev, status.st_ino)
        if DataFile._kept_open < _MOST_OPEN_FILES:
            DataFile._kept_open += 1
            self._descriptor = descriptor
        else:
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            os.close(self._descriptor)
            DataFile._kept_open -= 1
            self._descriptor = -1

    def descriptor(self) -> tuple[int, bool]:
        """Return an open descriptor and whether the caller has to close it."""
        if self._descriptor >= 0:
            return self._descriptor, False
        descriptor = os.open(self.path, self._flags)
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != self.identity:
            os.close(descriptor)
            raise ModelReadError(f"{printable(self.path)}: was replaced while it was in use; run bnfold again")
        return descriptor, True

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes from ``offset`` on; ``ModelReadError`` if there are too few."""
        descriptor, owned = self.descriptor()
        try:
            done = 0
            while done < len(view):
                count = os.preadv(descriptor, [view[done:]], offset + done)
                if count == 0:
                    raise ModelReadError(f"{printable(self.path)}: became shorter while it was read; run bnfold again")
                done += count
        except OSError as error:
            raise ModelReadError(f"{printable(self.path)}: cannot be read: {error.strerror}") from error
        finally:
            if owned:
                os.close(descriptor)

"""The selector that the producer waits with."""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike


class CheapMisses(selectors.DefaultSelector):
    """Says at once that a file is not registered, which kafka-python asks before each wait.

    The standard library's words for it describe the socket twice, with four system calls (6 % of the time of the
    producer's thread at the live exchange's pace).
    """

    def get_key(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        """Return the key of a registered file; KeyError when there is none."""
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        registered = self.get_map()
        if registered is not None and number >= 0 and number not in iter(registered):
            raise KeyError(number)
        return super().get_key(fileobj)

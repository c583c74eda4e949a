"""One named error for every rule of the `.bopt` format."""

from __future__ import annotations

from budgetopt.errors import PackedFileError


class NotAPackedFile(PackedFileError):
    """The first three bytes are not `BOP`."""


class UnsupportedVersion(PackedFileError):
    """The format version is newer than this package."""


class Truncated(PackedFileError):
    """The file ends before what its header declares."""


class ChecksumMismatch(PackedFileError):
    """The CRC-32 at the end does not match: a bit flipped, or bytes are missing or added."""


class BadHeader(PackedFileError):
    """A header field is outside its range."""


class BadPayload(PackedFileError):
    """The coded symbols contradict the header: wrong length, or a symbol outside the levels."""


class TooLarge(PackedFileError):
    """The file, or what it claims to hold, is larger than the format allows."""

"""Headers of tar archives from outside."""

import tarfile
from typing import Self

# Names of files, and what else is said about them: nothing that takes megabytes.
MOST_HEADER_BYTES = 1_000_000
EXTENSIONS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class BoundedHeader(tarfile.TarInfo):
    """A header that says no more about a file than a header may: tarfile reads longer ones whole, whatever their size.

    For the argument tarinfo of tarfile.open. Raises tarfile.ReadError.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in EXTENSIONS and header.size > MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header

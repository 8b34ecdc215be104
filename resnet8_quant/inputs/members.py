"""Named files of a folder or a tar archive, read into memory one by one; nothing is ever extracted to the disk.

In: the path of a folder or .tar.gz, the names wanted, and the size that each may have at most.
Out: pairs of name and bytes, each wanted name exactly once. Archives are hostile until checked: a member with a path
that leads out, a link, a device or a size beyond its limit refuses the whole archive.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from resnet8_quant.errors import ExperimentError

if TYPE_CHECKING:
    import tarfile

# A compressed archive can claim any size: stop before a small file has kept the decompressor busy for hours.
LARGEST_ARCHIVE = 1 << 30


def damaged(where: str, reason: str) -> ExperimentError:
    """The error for a file of a dataset that is not what it should be."""
    return ExperimentError(
        f"{where} {reason}",
        "replace it by an unmodified copy: data.root=FOLDER, or leave data.root out, or data=sample",
    )


def read_folder(folder: Path, limits: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Yield the files of ``folder`` that ``limits`` (name -> bytes at most) names, in that order.

    Raises:
        ExperimentError: a file is missing, too large or unreadable.
    """
    for name, limit in limits.items():
        path = folder / name
        if not path.is_file():
            raise damaged(str(folder), f"lacks {name}; expected {', '.join(limits)}")
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise damaged(str(path), f"cannot be read ({error.strerror or error})") from error
        if len(data) > limit:
            raise damaged(str(path), f"has more than {limit:,} bytes")
        yield name, data


def read_archive(path: Path, prefix: str, limits: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Yield the members ``prefix/NAME`` that ``limits`` (name -> bytes at most) names, in the order of the archive.

    Raises:
        ExperimentError: a member is missing or dangerous, or the archive is damaged.
    """
    import tarfile

    wanted = {f"{prefix}/{name}": name for name in limits}
    total = 0
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                total += member.size
                refuse_dangerous(path, member, total)
                name = wanted.get(member.name)
                if name is None:
                    continue
                if member.size > limits[name]:
                    raise damaged(
                        str(path), f"member {member.name} has {member.size:,} bytes of at most {limits[name]:,}"
                    )
                stream = tar.extractfile(member)
                if stream is None:
                    raise damaged(str(path), f"member {member.name} is not a regular file")
                del wanted[member.name]  # a second member of this name is ignored
                yield name, stream.read(limits[name])
    except EOFError as error:
        raise damaged(str(path), "is truncated: the archive ends too early") from error
    except (tarfile.TarError, zlib.error, OSError) as error:
        raise damaged(str(path), f"is not a readable .tar.gz archive ({error})") from error
    if wanted:
        raise damaged(str(path), f"lacks {', '.join(wanted)}")


def refuse_dangerous(path: Path, member: tarfile.TarInfo, total: int) -> None:
    """Refuse an archive with a member that no dataset has.

    Args:
        path: the archive.
        member: what to judge.
        total: bytes of all members so far, this one included.

    Raises:
        ExperimentError: the member leads out of its folder, is no regular file or folder, or is too large.
    """
    name = PurePosixPath(member.name.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts:
        raise damaged(str(path), f"is refused: member {member.name!r} leads out of the archive's folder")
    if not (member.isreg() or member.isdir()):
        kind = "a link" if member.issym() or member.islnk() else "a device"
        raise damaged(str(path), f"is refused: member {member.name!r} is {kind}, not a regular file")
    if member.size < 0 or total > LARGEST_ARCHIVE:
        raise damaged(str(path), f"is refused: member {member.name!r} brings it to {total:,} bytes")

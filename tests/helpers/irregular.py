"""What stands where a file is expected, and must not be waited for or read without end."""

import os
from pathlib import Path


def put(path: Path, kind: str) -> None:
    """Put a ``pipe``, an endless ``device`` or a ``folder`` there."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        assert kind == "folder"
        path.mkdir()

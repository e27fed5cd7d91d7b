"""The last steps into a container: run by `unshare` in new mount and process namespaces, replaced by the service.

python inside.py '{"root": …, "binds": {path inside: path outside}, "tmpfs": […], "workdir": …, "user": [uid, gid],
                   "environment": {…}, "command": […]}'

The root becomes read-only, the user a plain one without any privilege, the process number 1.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

_PR_SET_NO_NEW_PRIVS = 38


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def main() -> None:
    """Enter the container and become its command."""
    asked = json.loads(sys.argv[1])
    root = asked["root"]
    _mount("--bind", root, root)
    for inside, outside in asked["binds"].items():
        if Path(outside).is_file():
            Path(f"{root}{inside}").touch()
        _mount("--bind", outside, f"{root}{inside}")
    for inside in asked["tmpfs"]:
        _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", f"{root}{inside}")
    _mount("-t", "proc", "proc", f"{root}/proc")
    _mount("--rbind", "/dev", f"{root}/dev")
    _mount("-o", "remount,bind,ro", root)
    os.chroot(root)
    os.chdir(asked["workdir"])
    _become(*asked["user"])
    os.execvpe(asked["command"][0], asked["command"], asked["environment"])  # noqa: S606 - the whole purpose


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(f"no_new_privs could not be set in {Path.cwd()}")


if __name__ == "__main__":
    main()

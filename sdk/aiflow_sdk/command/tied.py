"""Runs a command that ends when its parent does, even when the parent is killed with SIGKILL.

`python -I -S tied.py PARENT_PID COMMAND...` asks Linux for SIGTERM at the parent's death, then
becomes the command. Done here and not in a `preexec_fn`, which may deadlock where there are
threads. Elsewhere than on Linux it only becomes the command.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(sys.argv[1]):
            sys.exit(1)  # it died in between
    try:
        os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - the supervisor's own command line
    except OSError as failure:
        sys.exit(f"{sys.argv[2]} cannot be run: {failure.strerror}")

# SPDX-License-Identifier: Apache-2.0
"""The program at a terminal, for tests that type."""

import os
import pty
import re
import select
import time

from program import BINARY, PATIENCE_SECONDS, command, environment


class Terminal:
    """The program at a terminal of its own."""

    def __init__(self, *arguments):
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            try:
                os.execve(BINARY, command(*arguments), environment(TERM="xterm", LANG="C.UTF-8"))
            finally:
                os._exit(127)  # or this copy of the test would go on
        self.shown = ""

    def type(self, text: str):
        os.write(self.master, text.encode())

    def expect(self, pattern: str):
        """Waits until `pattern` has been shown since the last match."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (match := re.search(pattern, self.shown)):
            if not select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"no {pattern!r} in {self.shown!r}")
            try:
                self.shown += os.read(self.master, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"ended without {pattern!r}: {self.shown!r}") from None
        self.shown = self.shown[match.end():]
        return match

    def wait(self) -> int:
        """The exit status. What is still being shown is read away, or the program could not end."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.05)[0]:
                try:
                    os.read(self.master, 65536)
                except OSError:
                    pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.master)
                return os.waitstatus_to_exitcode(status)
        raise TimeoutError("the program did not end")

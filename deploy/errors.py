"""The ways a command can end, and the exit code of each. Anything else that escapes is a bug (exit code 70)."""

from __future__ import annotations

OK, USER, TOOL, BOUND, BUG = 0, 2, 3, 4, 70


class DeployError(Exception):
    """Base of the expected failures. `str()` is one sentence for the user."""

    code = BUG


class UserError(DeployError):
    """The user's input cannot be used; the sentence says what, where, and the remedy."""

    code = USER


class ToolError(DeployError):
    """An external tool or library failed; the sentence names it, `log` holds its last lines."""

    code = TOOL

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class BoundError(DeployError):
    """A result was produced and missed its bound (parity, accuracy, timing, fit)."""

    code = BOUND

"""The one error that a user meets: what is wrong, where, with which value, and what to do."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in the user's input. The command line prints it as one line and exits with code 2.

    Args:
        what: What is wrong, in the user's words.
        where: The configuration key or the file that holds the mistake.
        value: What was given there; None where the value says nothing more.
        fix: What to do about it, as an instruction.

    Examples:
        >>> print(UserError("must lie in (0, 1]", where="predictor.top_p", value=1.5, fix="use 1.0 to keep all"))
        must lie in (0, 1] in predictor.top_p (1.5); fix: use 1.0 to keep all
    """

    def __init__(self, what: str, *, where: str | None = None, value: object = None, fix: str) -> None:
        self.what, self.where, self.value, self.fix = what, where, value, fix
        place = f" in {where}" if where else ""
        given = f" ({value})" if value is not None else ""
        super().__init__(f"{what}{place}{given}; fix: {fix}")

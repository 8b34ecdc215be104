"""The one error that a user is meant to see."""

from __future__ import annotations


class ExperimentError(Exception):
    """Something that the user can fix.

    Args:
        problem: what is wrong: the field or file, the value found and the valid choices.
        remedy: what to do next, a command to type where there is one.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)  # both in args, so that it pickles across workers
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n  -> {self.remedy}"


def missing_extra(package: str, extra: str) -> ExperimentError:
    """The error for an optional dependency that is not installed."""
    return ExperimentError(
        f"the package `{package}` is not installed",
        f"pip install -c constraints.txt -e '.[{extra}]'",
    )

"""What pydantic found wrong, in a sentence for the person who wrote it."""

from typing import Any

from pydantic_core import ErrorDetails


def sentence(fault: ErrorDetails, name: str) -> str:
    """Says what `name` must be and what it is, such as "--k must be less than or equal to 9, not 12".

    A check of our own (a ValueError) says it all by itself.
    """
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    if fault["type"] == "missing":
        return f"{name} is missing"
    must_be = fault["msg"].replace("Input should be", "must be").replace("should have", "must have").partition(", ")[0]
    return f"{name} {must_be[0].lower()}{must_be[1:]}, not {shown(fault['input'])}"


def shown(value: Any, width: int = 60) -> str:
    """A value as Python writes it, cut to a line's length."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."

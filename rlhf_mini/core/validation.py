"""Turns a pydantic error into a sentence for the person who wrote the value."""

from typing import Any

from pydantic_core import ErrorDetails

# By pydantic's error type, for every type that our options and examples can raise. Names in braces are from its `ctx`.
_SENTENCES = {
    "missing": "is missing",
    "value_error": "{error}",  # from a validator of our own
    "too_short": "must hold {min_length} or more items, not {actual_length}",
    "greater_than": "must be greater than {gt}, not {number}",
    "greater_than_equal": "must be at least {ge}, not {number}",
    "less_than": "must be less than {lt}, not {number}",
    "less_than_equal": "must be at most {le}, not {number}",
    "literal_error": "must be {expected}, not {value}",
    "finite_number": "must be a finite number, not {number}",
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number, not {value}"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number, not {value}"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false, not {value}"),
    "string_type": "must be text, not {value}",
    "list_type": "must be a list [...], not {value}",
    "dict_type": "must be an object {{...}}, not {value}",
}
_BOUNDS = ("gt", "ge", "lt", "le")


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can encode it: it holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def sentence(fault: ErrorDetails, name: str) -> str:
    """Says what `name` must be and what it is, such as "--k must be at most 9, not 12".

    An error of another type keeps pydantic's message.
    """
    value = fault["input"]
    if fault["type"] not in _SENTENCES:
        return f"{name}: {fault['msg']}"
    context = {"value": _shown(value), "number": value, **fault.get("ctx", {})}
    context |= {bound: f"{context[bound]:g}" for bound in _BOUNDS if isinstance(context.get(bound), float)}
    return f"{name} {_SENTENCES[fault['type']].format(**context)}".lstrip()


def _shown(value: Any) -> str:
    """A value as Python writes it, except JSON's words true, false and null; cut to 60 characters."""
    text = repr(value)
    text = {"True": "true", "False": "false", "None": "null"}.get(text, text)
    return text if len(text) <= 60 else text[:57] + "..."

"""What pydantic finds wrong with a value, in plain words: readers of YAML and JSON files need not know pydantic."""

from pydantic_core import ErrorDetails

WHOLE, NUMBER, TRUTH = "needs a whole number", "needs a number", "needs true or false"
PAIRS, LIST = "needs `name: value` pairs", "needs a list"
# By pydantic's name of the fault; what is in braces is in its context.
WORDS = {
    "missing": "is missing",
    "int_type": WHOLE,
    "int_parsing": WHOLE,
    "int_from_float": WHOLE,
    "float_type": NUMBER,
    "float_parsing": NUMBER,
    "finite_number": "needs a finite number",
    "bool_type": TRUTH,
    "bool_parsing": TRUTH,
    "string_type": "needs text",
    "dict_type": PAIRS,
    "model_type": PAIRS,
    "model_attributes_type": PAIRS,
    "tuple_type": LIST,
    "list_type": LIST,
    "too_short": "needs {min_length} or more values",
    "too_long": "needs {max_length} or fewer values",
    "greater_than_equal": "needs at least {ge}",
    "greater_than": "needs more than {gt}",
    "less_than_equal": "needs at most {le}",
    "less_than": "needs less than {lt}",
    "string_pattern_mismatch": "does not fit the pattern {pattern}",
    "literal_error": "needs {expected}",
}


def in_words(fault: ErrorDetails) -> str:
    """A fault as a clause that follows the key: "needs a whole number". A validator's own sentence stays as it is."""
    words = WORDS.get(fault["type"])
    if words is None:
        return fault["msg"].removeprefix("Value error, ")
    return words.format(**fault.get("ctx", {})).replace("'", "")

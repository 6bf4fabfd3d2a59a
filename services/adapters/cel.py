"""The Common Expression Language, by ``common-expression-language`` (`core.matching.Expressions`)."""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, cast

import cel

from services.core.matching import CONTEXT_FIELDS, ExpressionError, Predicate

MAX_EXPRESSION_CHARS: Final = 1_000
# Each macro inside another one multiplies what a call waits for.
MAX_MACROS: Final = 4
MAX_NESTED_MACROS: Final = 2
# The names that the macros over lists bind: tags.exists(tag, tag == "x").
_MACRO_VARIABLE: Final = re.compile(r"\.(?:all|exists|exists_one|map|filter)\(\s*(\w+)\s*,")
_TEXT: Final = re.compile(r""" "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' """, re.VERBOSE | re.DOTALL)
_BRACKET: Final = re.compile(r"(?P<macro>\b(?:all|exists|exists_one|map|filter)\s*)?(?P<opens>\()|\)")
# A call that leaves everything open, and one that leaves nothing: an expression has to give a truth value for one.
_SAMPLES: Final = tuple(
    {name: [text] if name == "tags" and text else [] if name == "tags" else text for name in CONTEXT_FIELDS}
    for text in ("", "sample")
)


class Cel:
    """Compiles expressions; equal ones once."""

    def compile(self, text: str) -> Predicate:
        """See the protocol. Names that are not in the request context are refused here, and what is no condition."""
        return _compile(text)


@lru_cache(maxsize=4_096)
def _compile(text: str) -> Predicate:
    if len(text) > MAX_EXPRESSION_CHARS:
        raise ExpressionError(f"an expression has at most {MAX_EXPRESSION_CHARS} characters, not {len(text)}")
    _check_macros(text)
    try:
        program = cel.compile(text)
        unknown = sorted(set(program.variables()) - CONTEXT_FIELDS - set(_MACRO_VARIABLE.findall(text)))
    except Exception as error:  # it raises whatever its parser does
        raise ExpressionError(_first_line(error)) from error
    if unknown:
        raise ExpressionError(f"unknown name {unknown[0]!r}; known are {', '.join(sorted(CONTEXT_FIELDS))}")
    evaluate = _truth_of(cast(Callable[[cel.Context], object], program.execute))
    failure: ExpressionError | None = None
    for sample in _SAMPLES:
        try:
            evaluate(sample)
        except ExpressionError as error:
            failure = error
        else:
            return evaluate
    assert failure is not None
    raise failure


def _check_macros(text: str) -> None:
    opened: list[bool] = []
    macros = deepest = 0
    for bracket in _BRACKET.finditer(_TEXT.sub("''", text)):
        if bracket["opens"]:
            opened.append(bracket["macro"] is not None)
            macros += opened[-1]
            deepest = max(deepest, sum(opened))
        elif opened:
            opened.pop()
    if macros > MAX_MACROS or deepest > MAX_NESTED_MACROS:
        raise ExpressionError(
            f"all, exists, exists_one, map and filter may be used {MAX_MACROS} times, {MAX_NESTED_MACROS} in each other"
        )


def _truth_of(execute: Callable[[cel.Context], object]) -> Predicate:
    def evaluate(context: Mapping[str, Any]) -> bool:
        try:
            truth = execute(_prepared(context))
        except Exception as error:  # it raises Python's own, of any kind
            raise ExpressionError(_first_line(error)) from error
        if not isinstance(truth, bool):
            raise ExpressionError(f"gives {type(truth).__name__} where true or false is needed")
        return truth

    return evaluate


# All expressions of an org see the same call one after another, and to hand it over costs twenty times what they do.
_last: tuple[Mapping[str, Any], cel.Context] = ({}, cel.Context())


def _prepared(context: Mapping[str, Any]) -> cel.Context:
    global _last
    known, prepared = _last
    if known != context:
        known = {name: list(value) if isinstance(value, list) else value for name, value in context.items()}
        prepared = cel.Context(variables=known)
        _last = known, prepared
    return prepared


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]

"""Conditions on the scans of a catalogue: ``modality == 'T1w' and min_spacing < 3``.

A condition is written in the language of :meth:`pandas.DataFrame.query`, of which a small part is allowed: columns of
the catalogue, numbers, texts, comparisons, ``in`` and ``not in`` with a list, arithmetic, ``and``, ``or``, ``not``, and

- of text columns ``.str.contains('x')`` (a regular expression), ``.str.startswith('x')``, ``.str.endswith('x')`` and
  ``.str.lower()``, after which the others may follow;
- of number columns ``.between(a, b)``, both ends included;
- of both ``.isin([...])``, ``.isna()`` and ``.notna()``.

The expression is read into a tree in which every piece must be one of these and every operand of the right kind; only
what passed is handed to pandas. Regular expressions are those of RE2 (no look-around, no back-reference), whose time
is linear in the text, so that no pattern can hang.

What is unknown is NaN in number columns: it is never smaller, equal or larger, so ``min_spacing < 3`` and
``min_spacing >= 3`` are both false and ``not min_spacing < 3`` and ``min_spacing != 3`` are true; ``.isna()`` finds it.
In text columns it is the empty text: ``modality == ''``.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, NoReturn

import numpy as np
import pandas
import pyarrow
from numpy.typing import NDArray
from pyarrow import compute

from nnssl_mae.catalogue.table import ScanRow
from nnssl_mae.errors import UserError
from nnssl_mae.recipes.words import did_you_mean

_RESULTS = ("rule", "verdict")
_LONGEST, _DEEPEST, _PIECE = 2000, 50, 60


class _Type(Enum):
    NUMBER = "a number"
    TEXT = "a text"
    TRUTH = "true or false"


_COLUMNS = {
    field.name: _Type.TEXT if field.type == "str" else _Type.NUMBER
    for field in fields(ScanRow)
    if field.name not in _RESULTS
}


@dataclass(frozen=True)
class Where:
    """A condition on scans that was found harmless and meaningful."""

    text: str
    """As the user wrote it."""
    expression: str
    """The same, as pandas gets it: rebuilt from the tree that was checked, all numbers as floats."""
    columns: tuple[str, ...]

    def matches(self, rows: pandas.DataFrame) -> NDArray[np.bool_]:
        """(scans,) whether each fulfils the condition.

        Raises:
            UserError: it cannot be worked out, such as a division of constants by zero.
        """
        columns = {name: _evaluated(rows[name], _COLUMNS[name]) for name in self.columns}
        frame = pandas.DataFrame(columns, index=rows.index)
        try:
            with warnings.catch_warnings():
                # Brackets in a pattern and 0 / 0, which is NaN, are meant; pandas and NumPy would warn of them.
                warnings.simplefilter("ignore")
                result = frame.eval(self.expression, engine="python", parser="pandas")
        except Exception as error:  # whatever pandas raises; the text goes to the user
            raise UserError(
                f'The rule "{self.text}" cannot be worked out ({type(error).__name__}: {error}); write it otherwise'
            ) from error
        return np.asarray(pandas.Series(result, index=rows.index).astype(bool))


def parse_where(where: str) -> Where:
    """Reads a condition; nothing of it is evaluated.

    Raises:
        UserError: it cannot be read, or holds something that is not allowed, which the message names.
    """
    text = where.strip()
    if len(text) > _LONGEST:
        raise UserError(f"A rule may have {_LONGEST} characters, this one has {len(text)}; split it into several rules")
    tree = _parsed(text)
    reading = _Reading(text)
    found = reading.visit(tree.body)
    if found is not _Type.TRUTH:
        reading.refuse(tree.body, f"is {found.value}, not a condition", "compare it, as in min_spacing < 3")
    return Where(text, ast.unparse(_FloatNumbers().visit(tree)), tuple(sorted(reading.columns)))


def _evaluated(column: pandas.Series[Any], kind: _Type) -> pandas.Series[Any]:
    """As rules see it: texts in Arrow, for which pandas searches with RE2; numbers as float64, which cannot wrap."""
    if kind is _Type.TEXT:
        return column.fillna("").astype(str).astype(pandas.ArrowDtype(pyarrow.string()))
    return column.astype(np.float64)


def _parsed(text: str) -> ast.Expression:
    try:
        with warnings.catch_warnings():
            # '\d' in a regular expression: Python would warn and keep the backslash, which is what is meant.
            warnings.simplefilter("ignore")
            return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        problem = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise UserError(
            f"The rule \"{text}\" cannot be read ({problem}); write it as in modality == 'T1w' and min_spacing < 3"
        ) from error


class _FloatNumbers(ast.NodeTransformer):
    """Whole numbers become floats, which overflow at once where a tower of powers of whole numbers never ends."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant(float(node.value)) if isinstance(node.value, int) else node


class _Reading(ast.NodeVisitor):
    """Finds what kind of value each piece of a condition is; everything without a method here is refused."""

    def __init__(self, text: str) -> None:
        self.columns: set[str] = set()
        self._text = text
        self._depth = 0

    def visit(self, node: ast.AST) -> _Type:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise UserError(
                f'The rule "{self._text[:_PIECE]}..." is nested more than {_DEEPEST} levels deep; split it into several'
            )
        kind: _Type = super().visit(node)
        self._depth -= 1
        return kind

    def refuse(self, node: ast.AST, problem: str, remedy: str) -> NoReturn:
        """Ends the reading with a sentence that names the piece."""
        piece = ast.get_source_segment(self._text, node) or type(node).__name__
        shown = piece if len(piece) <= _PIECE else piece[:_PIECE] + "..."
        raise UserError(f'The rule "{self._text}": {shown} {problem}; {remedy}')

    def generic_visit(self, node: ast.AST) -> NoReturn:
        self.refuse(
            node,
            "is not allowed",
            "a rule may hold columns, numbers, texts, comparisons, in, arithmetic, and, or, not, and the methods "
            ".str.contains .str.startswith .str.endswith .str.lower .isin .between .isna .notna",
        )

    def visit_Name(self, node: ast.Name) -> _Type:
        if node.id in _RESULTS:
            self.refuse(node, "is what the rules decide", "use another column")
        if node.id not in _COLUMNS:
            near = did_you_mean(node.id, list(_COLUMNS))
            self.refuse(node, "is no column of the catalogue", f"texts stand in quotes{near}")
        self.columns.add(node.id)
        return _COLUMNS[node.id]

    def visit_Constant(self, node: ast.Constant) -> _Type:
        if isinstance(node.value, str):
            if not node.value.isprintable():
                self.refuse(node, "holds a control character", r"write a backslash twice, as in '\\b'")
            return _Type.TEXT
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            self.refuse(node, "is neither a number nor a text", "use a number, a text in quotes, or .isna()")
        if abs(node.value) > 1e300:
            self.refuse(node, "is too large", "use a smaller number")
        return _Type.NUMBER

    def visit_BoolOp(self, node: ast.BoolOp) -> _Type:
        for value in node.values:
            self._expect(value, _Type.TRUTH)
        return _Type.TRUTH

    def visit_UnaryOp(self, node: ast.UnaryOp) -> _Type:
        if isinstance(node.op, ast.Invert):
            self.refuse(node, "uses ~", "write not")
        return self._expect(node.operand, _Type.TRUTH if isinstance(node.op, ast.Not) else _Type.NUMBER)

    def visit_BinOp(self, node: ast.BinOp) -> _Type:
        if isinstance(node.op, ast.BitAnd | ast.BitOr):
            self.refuse(node, "uses & or |", "write and or or between conditions")
        if not isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.FloorDiv | ast.Mod | ast.Pow):
            self.generic_visit(node)
        self._expect(node.left, _Type.NUMBER)
        return self._expect(node.right, _Type.NUMBER)

    def visit_Compare(self, node: ast.Compare) -> _Type:
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(operator, ast.In | ast.NotIn):
                self._check_list(right, self._column_value(left))
            elif isinstance(operator, ast.Is | ast.IsNot):
                self.refuse(node, "uses is", "write == or .isna()")
            else:
                self._check_pair(node, left, right)
            left = right
        return _Type.TRUTH

    def visit_Call(self, node: ast.Call) -> _Type:
        function = node.func
        if node.keywords or not isinstance(function, ast.Attribute):
            self.generic_visit(node)
        if isinstance(function.value, ast.Attribute) and function.value.attr == "str":
            return self._text_method(node, function, function.value.value)
        return self._method(node, function)

    def _method(self, node: ast.Call, function: ast.Attribute) -> _Type:
        if function.attr not in ("isin", "isna", "notna", "between"):
            self.generic_visit(node)
        kind = self._column_value(function.value)
        if function.attr == "isin":
            self._arguments(node, 1, lambda argument: self._check_list(argument, kind))
        elif function.attr == "between":
            self._expect(function.value, _Type.NUMBER)
            self._arguments(node, 2, lambda argument: self._check_literal(argument, _Type.NUMBER))
        else:
            self._arguments(node, 0, self.generic_visit)
        return _Type.TRUTH

    def _text_method(self, node: ast.Call, function: ast.Attribute, value: ast.expr) -> _Type:
        if function.attr not in ("contains", "startswith", "endswith", "lower"):
            self.generic_visit(node)
        self._column_value(value)
        self._expect(value, _Type.TEXT)
        if function.attr == "lower":
            self._arguments(node, 0, self.generic_visit)
            return _Type.TEXT
        self._arguments(node, 1, lambda argument: self._check_literal(argument, _Type.TEXT))
        if function.attr == "contains":
            self._check_expression(node.args[0])
        return _Type.TRUTH

    def _arguments(self, node: ast.Call, count: int, check: Callable[[ast.expr], None]) -> None:
        if len(node.args) != count:
            words = {0: "nothing", 1: "one value", 2: "two numbers"}[count]
            self.refuse(node, f"has {len(node.args)} values in its brackets", f"it takes {words}")
        for argument in node.args:
            check(argument)

    def _column_value(self, node: ast.expr) -> _Type:
        """The kind of a column, or of ``column.str.lower()``: what methods and ``in`` work on."""
        if not isinstance(node, ast.Name | ast.Call):
            self.refuse(node, "is no column", "methods and in work on columns")
        kind = self.visit(node)
        if kind is _Type.TRUTH:
            self.refuse(node, f"is {kind.value}", "methods and in work on columns")
        return kind

    def _expect(self, node: ast.expr, wanted: _Type) -> _Type:
        found = self.visit(node)
        if found is not wanted:
            self.refuse(node, f"is {found.value} where {wanted.value} is needed", "mend that part")
        return found

    def _check_pair(self, node: ast.Compare, left: ast.expr, right: ast.expr) -> None:
        kinds = self.visit(left), self.visit(right)
        if _Type.TRUTH in kinds:
            self.refuse(node, "compares a condition", "join conditions with and, or, not")
        if kinds[0] is not kinds[1]:
            words = " with ".join(kind.value for kind in kinds)
            self.refuse(node, f"compares {words}", "texts stand in quotes and numbers do not")
        if not any(isinstance(part, ast.Name) for side in (left, right) for part in ast.walk(side)):
            self.refuse(node, "holds no column", "compare a column")

    def _check_list(self, node: ast.expr, wanted: _Type) -> None:
        if not isinstance(node, ast.List | ast.Tuple) or not node.elts:
            self.refuse(node, "is no list of values", "write it as in modality in ['T1w', 'T2w']")
        for item in node.elts:
            self._check_literal(item, wanted)

    def _check_literal(self, node: ast.expr, wanted: _Type) -> None:
        number = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else node
        if not isinstance(number, ast.Constant):
            self.refuse(node, "is no plain value", "write a number, or a text in quotes")
        self._expect(node, wanted)

    def _check_expression(self, node: ast.expr) -> None:
        pattern = node.value if isinstance(node, ast.Constant) else None
        try:
            compute.match_substring_regex(pyarrow.array([""]), pattern)
        except pyarrow.ArrowInvalid as error:
            self.refuse(node, f"is no regular expression that can be used ({error})", "mend it, or use .str.startswith")

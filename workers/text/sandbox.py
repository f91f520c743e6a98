"""Where chat templates run: jinja2's sandbox, with bounds on what a template may compute.

Templates come from the Hub: they are programs of strangers. The sandbox keeps them from
reaching outside; the bounds keep a loop without end from holding the work thread, and a text
without end from taking the memory. They see nothing but strings, and get the functions that
transformers promises them (``transformers/utils/chat_template_utils.py``, whose import alone
takes a second).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from types import FrameType
from typing import Any

import jinja2.ext
import jinja2.sandbox
import jinja2.utils
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.parser import Parser
from jinja2.runtime import Context

MOST_CHARACTERS = 16 * 1024 * 1024
"""Of a text that a template makes, and items of a list. Twice what a message can carry."""

MOST_BITS = 4096
_SMALL = 64
"""A number that multiplies a text by no more than this is not looked at."""

_WIDTH = re.compile(r"\d{5}")
"""In a format string: what it makes would be wider than any line."""


class RefusalError(TemplateError):
    """What a template says itself, or we say of it."""


class TemplateBoundError(RefusalError):
    """A template computes more than a conversation can need."""


class _StepsError(BaseException):
    """Not an Exception, because a template's functions may catch those."""


@contextmanager
def bounded_steps(most: int) -> Iterator[None]:
    """Stop what this thread does within the block after ``most`` lines of Python.

    Raises:
        TemplateBoundError: it was stopped.
    """
    left = most

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise _StepsError
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    except _StepsError:
        raise TemplateBoundError(f"it takes more than {most:,} steps") from None
    finally:
        sys.settrace(before)


def make_environment() -> jinja2.Environment:
    """For one template."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.filters = {name: _bounded(filter) for name, filter in environment.filters.items()}
    environment.globals.pop("lipsum")
    environment.globals.update(
        raise_exception=_raise,
        strftime_now=lambda form: datetime.now().strftime(form),
        dict=_Dictionary(),
        namespace=_Namespace,
    )
    return environment


class _CodeGenerator(CodeGenerator):
    """Has ``~`` joined by `_join`, too."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


def _join(parts: Iterable[Any]) -> str:
    texts, length = [], 0
    for part in parts:
        texts.append(str(part))
        length += len(texts[-1])
        _check(length)
    return "".join(texts)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    code_generator_class = _CodeGenerator
    concat = staticmethod(_join)
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            if type(left) is type(right) is str and len(left) + len(right) <= MOST_CHARACTERS:
                return left + right  # most are such: a step, not ten
            _check(_size(left) + _size(right))
        elif operator == "*":
            _check(max(_size(left) * _number(right), _size(right) * _number(left)))
            _check_bits(_bits(left) + _bits(right))
        elif operator == "**":
            _check_bits(_bits(left) * _number(right))
        elif isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        owner = getattr(__obj, "__self__", None)
        texts = [owner] if isinstance(owner, str) else []
        _check_call(getattr(__obj, "__name__", ""), [*texts, *args, *kwargs.values()])
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """For ``str.format``, which the sandbox calls by a function of its own."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, [*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return checked

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if attr in ("translate", "expandtabs"):
            return False
        return super().is_safe_attribute(obj, attr, value)


def _bounded(filter: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(filter)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_call(filter.__name__.removeprefix("do_"), [*args, *kwargs.values()])
        return filter(*args, **kwargs)

    return checked


def _check_call(name: str, given: list[Any]) -> None:
    """Refuse a call whose result would be too long, before it is made."""
    weight = max(1, sum(map(_size, given)))
    _check(max((n * weight for n in map(_number, given) if n > _SMALL), default=0))
    texts = [one for one in given if isinstance(one, str)]
    if name == "join":
        items = [list(one) for one in given if isinstance(one, list | tuple)]
        _check(sum(_size(item) + max(map(len, texts), default=0) for one in items for item in one))
    elif name == "replace" and len(texts) > 2:
        _check(texts[0].count(texts[1]) * len(texts[2]))
    elif name == "format" and texts:
        _check_format(texts[0], given)


def _check_format(form: str, given: Iterable[Any]) -> None:
    if _WIDTH.search(form):
        raise TemplateBoundError("its output is too long")
    longest = max((len(one) for one in given if isinstance(one, str)), default=0)
    _check((form.count("{") + form.count("%")) * longest)


def _check(length: int) -> None:
    if length > MOST_CHARACTERS:
        raise TemplateBoundError("its output is too long")


def _check_bits(bits: int) -> None:
    if bits > MOST_BITS:
        raise TemplateBoundError("it computes a number that is too large")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def _number(value: Any) -> int:
    return abs(value) if isinstance(value, int) else 0


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what a model has said, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 wants it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """Without names that begin with an underscore, as the sandbox has it elsewhere."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, attributes = args[0], dict(*args[1:], **kwargs)
        for name in attributes:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


class _Dictionary:
    """``dict`` as a function: the type itself would be a way out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own would escape HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise RefusalError(message)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a template may not set {name!r}")

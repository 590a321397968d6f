"""Chat templates: Jinja as transformers renders it, in a sandbox, and bounded. Imports no torch.

A template comes with a model that somebody else made, so it is code that nobody has looked at.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

from jinja2 import Environment, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}"""
"""OpenAI's ChatML, as most open models have it."""
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")

MOST_STEPS = 200_000
"""Rounds of loops, and calls, of one rendering."""
MOST_CHARACTERS = 1 << 24
"""Of all that one rendering puts together."""
WITHOUT = ("pprint", "urlize", "wordwrap", "xmlattr")
"""Filters that no chat needs, and that make much of little."""
DAY = datetime(2024, 7, 26)
"""What a template takes for now in training: the date in Llama's template without a clock."""


class ChatError(ValueError):
    """A template is wrong, or does not take these messages."""


class Template:
    """A chat template.

    Args:
        source: in Jinja.
        now: what it takes for the present time; None for the clock's.

    Raises:
        ChatError: it is no Jinja.
    """

    def __init__(self, source: str, *, now: datetime | None = None) -> None:
        self._environment = _Environment(now)
        with _explained():
            self._compiled = self._environment.from_string(source)

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        answering: bool = False,
        names: Mapping[str, str] | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: with role and content.
            answering: end with what an answer of the assistant begins with.
            names: special tokens by name, such as bos_token.

        Raises:
            ChatError: the template refuses the messages, is wrong, or takes too long.
        """
        self._environment.begin()
        plain = [dict(message) for message in messages]
        with _explained():
            return self._compiled.render(
                messages=plain,
                tools=None,
                documents=None,
                add_generation_prompt=answering,
                **dict(names or {}),
            )


class _explained:  # noqa: N801 (as contextlib's)
    """Turn what a template raises into a ChatError."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ChatError) or not isinstance(error, Exception):
            return
        line = getattr(error, "lineno", None)
        place = f"line {line}: " if line else ""
        text = str(error) or type(error).__name__
        raise ChatError(f"the chat template: {place}{text}") from error


class _Generation(Extension):
    """`{% generation %}`, which marks in some templates what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 has it)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """What is between `{% generation %}` and `{% endgeneration %}`, as it is."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Bounding(NodeTransformer):
    """Lets every loop count its rounds, and every `~` the characters that it puts together."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "bounded", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "concatenated", [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    """The environment that transformers has, with bounds."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, now: datetime | None) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=self._put_out,
        )
        self._now, self._steps, self._characters = now, 0, 0
        self.filters |= {"tojson": _tojson}
        self.filters = {name: self._filter(name, each) for name, each in self.filters.items()}
        self.filters |= {"bounded": self._bounded, "concatenated": self._concatenated}
        self.globals |= {
            "raise_exception": _refuse,
            "strftime_now": lambda form: (now or datetime.now()).strftime(form),
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        }
        del self.globals["lipsum"]
        for name in WITHOUT:
            del self.filters[name]

    def begin(self) -> None:
        """Count from zero."""
        self._steps = self._characters = 0

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function of a template, unless there are too many, or one has a huge number."""
        owner = getattr(obj, "__self__", None)
        self._check_call(getattr(obj, "__name__", ""), (owner, *args), kwargs)
        return self._counted(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*` and `**`, unless the result is huge."""
        if operator == "+":
            sizes = [len(value) if isinstance(value, str | list | tuple) else 0
                     for value in (left, right)]  # fmt: skip
            self._take(sum(sizes))
        elif operator == "%" and isinstance(left, str):
            self._check_format(left)
            return self._counted(super().call_binop(context, operator, left, right))
        elif any(isinstance(value, int) and abs(value) > MOST_STEPS for value in (left, right)):
            raise ChatError(f"the chat template: computes {operator} of a huge number")
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    self._take(len(value) * max(times, 0))
        elif operator == "**" and isinstance(right, int) and right > 64:
            raise ChatError("the chat template: computes ** of a huge number")
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """A text's `format` in the sandbox, unless it has a huge width."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        apply = wrapped

        def formatted(*args: Any, **kwargs: Any) -> str:
            self._check_format(str(value.__self__))
            return apply(*args, **kwargs)

        return formatted

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        found: nodes.Template = _Bounding().visit(super()._parse(source, name, filename))
        return found

    def _filter(self, name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that is counted like a call; jinja2 may give it the environment first."""

        @wraps(apply)
        def counted(*args: Any, **kwargs: Any) -> Any:
            own = [arg for arg in args if not isinstance(arg, Environment | Context | EvalContext)]
            self._check_call(name, own, kwargs)
            return self._counted(apply(*args, **kwargs))

        return counted

    def _check_call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Count a call, and refuse it if its numbers or its texts make a huge result."""
        self._step()
        values = [*args, *kwargs.values()]
        for value in values:
            if isinstance(value, int) and value > MOST_STEPS:
                raise ChatError(f"the chat template: calls a function with {value:,}")
        texts = [value for value in values if isinstance(value, str)]
        match name:
            case "replace" if len(texts) > 2:
                text, old, new = texts[:3]
                times = text.count(old) if old else len(text) + 1
                self._take(times * len(new))
            case "join":
                found = [value for value in values if isinstance(value, str | list | tuple)]
                self._take(math.prod(sorted(map(len, found))[-2:]))
                self._take(self._weight([each for each in found if not isinstance(each, str)]))
            case "indent" | "tojson":
                wide = max((value for value in values if isinstance(value, int)), default=0)
                self._take(wide * sum(text.count("\n") + 1 for text in texts))
                self._take(self._weight(values) * max(1, wide))
            case "format" | "format_map":
                for text in texts:
                    self._check_format(text)
            case "expandtabs":
                wide = max((value for value in values if isinstance(value, int)), default=8)
                self._take(wide * sum(text.count("\t") for text in texts))
            case "string" | "sum":
                self._take(self._weight(values))
            case "translate":
                raise ChatError("the chat template: translate is not for templates")

    def _check_format(self, text: str) -> None:
        """Refuse a form with a huge width."""
        if re.search(r"[0-9]{5}|\*|\{[^}]*\{", text):
            raise ChatError("the chat template: formats with a huge width, or one of its own")

    def _counted(self, value: Any) -> Any:
        """The result of a call, whose size counts."""
        if isinstance(value, str | list | tuple | dict):
            self._take(len(value))
        return value

    def _weight(self, value: Any) -> int:
        """Characters that a value has as a text, at least; what is in it twice counts twice."""
        total, left = 0, [value]
        while left:
            item = left.pop()
            total += len(item) if isinstance(item, str | list | tuple | Mapping) else 1
            if total > MOST_CHARACTERS:
                break
            if isinstance(item, Mapping):
                left += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                left += item
        return total

    def _bounded(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._step()
            yield item

    def _concatenated(self, parts: Sequence[Any]) -> str:
        self._take(self._weight(list(parts)))
        return "".join(map(str, parts))

    def _put_out(self, value: Any) -> Any:
        self._take(self._weight(value))
        return value

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise ChatError(f"the chat template: takes more than {MOST_STEPS:,} steps")

    def _take(self, characters: int) -> None:
        self._characters += characters
        if self._characters > MOST_CHARACTERS:
            raise ChatError(
                f"the chat template: puts more than {MOST_CHARACTERS:,} characters together"
            )


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML's escapes, as transformers has it."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> NoReturn:
    raise ChatError(f"the chat template says: {message}")

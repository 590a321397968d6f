"""Templates are code of strangers: what they may do, and that they end."""

import time
from datetime import datetime
from typing import Any

import pytest

from gptkit_chat.template import DAY, ChatError, Template

MESSAGES = [{"role": "user", "content": "é <b>"}]


def render(source: str, **options: Any) -> str:
    return Template(source, **options).render(MESSAGES)


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['__builtins__'] }}",
    "{{ (messages|attr('__class__')).__mro__ }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{% set f = '{0.__class__}'.format %}{{ f(messages) }}",
    "{% do messages.append(1) %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_reaches_nothing_but_the_messages(source: str) -> None:
    before = [dict(message) for message in MESSAGES]
    with pytest.raises(ChatError):
        found = render(source)
        assert found == "", f"no exception, but {found!r}"
        raise ChatError("nothing was shown")
    assert before == MESSAGES


GROWING = "{% set n = namespace(s='a' * 1000) %}{% for i in range(60) %}*{% endfor %}"
"""A loop, in which a star is replaced by what grows."""
ENDLESS = {
    "loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "one list": "{% set r = range(9999)|list %}"
    "{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(99) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "range": "{% for i in range(10**12) %}{% endfor %}",
    "text times": "{{ 'a' * 99999999 }}",
    "times": GROWING.replace("*{%", "{% set n.s = n.s * 9 %}{%"),
    "power": "{{ 9 ** 99999999 }}",
    "powers": "{% set n = namespace(s=9) %}{% for i in range(99) %}{% set n.s = n.s ** 9 %}"
    "{% endfor %}",
    "~": GROWING.replace("*{%", "{% set n.s = n.s ~ n.s %}{%"),
    "+": GROWING.replace("*{%", "{% set n.s = n.s + n.s %}{%"),
    "lists": "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}"
    "{% endfor %}",
    "blocks": GROWING.replace(
        "*{%", "{% set s %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = s %}{%"
    ),
    "padding": "{{ 'a'.ljust(10 ** 7 * 99) }}",
    "output": "{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}",
    "replace": GROWING.replace("*{%", "{% set n.s = n.s.replace('a', 'aa') %}{%"),
    "filter replace": GROWING.replace("*{%", "{% set n.s = n.s|replace('a', 'aa') %}{%"),
    "one replace": "{{ ('a' * 99999).replace('a', 'a' * 99999) }}",
    "%": "{{ '%0999999999d' % 1 }}",
    "% *": "{{ '%*d' % (10 ** 9, 1) }}",
    "format": "{{ '{:999999999}'.format('') }}",
    "nested format": "{{ '{:{}}'.format('', 10 ** 9) }}",
    "nested lists": "{{ [['a' * 999] * 999] * 999 }}",
    "joined": "{{ ('a' * 99999)|join('b' * 99999) }}",
    "lists joined": "{{ ','.join(['a' * 99999] * 9999) }}",
    "centred": "{{ 'a'|center(10 ** 9) }}",
    "indented": "{{ ('a\n' * 99999)|indent(99999) }}",
    "tabs": "{{ ('\t' * 99999).expandtabs(99999) }}",
    "translated": "{{ ('a' * 99999).translate({97: 'a' * 99999}) }}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_template_comes_to_an_end(source: str) -> None:
    begin = time.monotonic()
    with pytest.raises(ChatError, match="the chat template"):
        render(source)
    assert time.monotonic() - begin < 20


def test_a_template_that_is_wrong_says_where() -> None:
    with pytest.raises(ChatError, match=r"the chat template: line 2: .*endfor"):
        Template("\n{% for x in y %}{% endif %}")
    with pytest.raises(ChatError, match="the chat template: 'nothing' is undefined"):
        render("{{ nothing() }}")
    with pytest.raises(ChatError, match="the chat template says: no such role"):
        render("{{ raise_exception('no such role') }}")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages|tojson }}", '[{"role": "user", "content": "é <b>"}]'),
        ("{{ messages[0]|tojson(indent=1) }}", '{\n "role": "user",\n "content": "é <b>"\n}'),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% for i in range(3) %}{{ loop.index }}/{{ loop.length }} {% endfor %}", "1/3 2/3 3/3 "),
        ("{% for i in [1, 2] %}{{ loop.last }}{{ loop.revindex }}{% endfor %}", "False2True1"),
        ("  {% if true %}\na\n  {% endif %}\nb", "a\nb"),
        ("{% generation %}{{ 1 ~ 'a' ~ none ~ nothing }}{% endgeneration %}", "1aNone"),
        ("{{ bos_token }}{{ tools is none }}{{ documents is none }}", "TrueTrue"),
        ("{% set n = namespace(a=1) %}{% set n.a = n.a + 1 %}{{ n.a * 2 }}{{ 2 ** 3 }}", "48"),
        ("{% for x in nothing %}{{ x }}{% else %}none{% endfor %}", "none"),
        (
            "{% for x in [1, [2]] recursive %}{{ loop(x) if x is sequence else x }}{% endfor %}",
            "12",
        ),
        ("{{ dict(a=1).a }}{{ [1] + [2] }}{{ 'a' + 'b' }}", "1[1, 2]ab"),
    ],
)  # fmt: skip
def test_a_template_has_what_transformers_gives_it(source: str, text: str) -> None:
    assert render(source) == text


def test_the_date_is_a_fixed_one_in_training() -> None:
    source = "{{ strftime_now('%d %b %Y') }}"
    assert render(source, now=DAY) == "26 Jul 2024"
    assert render(source) == datetime.now().strftime("%d %b %Y")

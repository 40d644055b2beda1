"""Chat templates that were written to run for days, to fill the memory, or to reach what they should not.

Rendered as they are by jinja's own sandbox, most of these end the process or never end.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from harness.vlm import CHAT_TEMPLATE
from realisr.services.vlm.chat_template import LONGEST_TEMPLATE, render

pytestmark = pytest.mark.timeout(120)

MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a red door, " * 1000}]}
]


def rendered(template: str) -> str:
    return render(template, MESSAGES, {"bos_token": "<s>", "eos_token": "</s>"})


def again(step: str, start: str = "'aaaaaaaaaa'", times: int = 40) -> str:
    """A value that grows `times` times."""
    return f"{{% set a = {start} %}}" + f"{{% set a = {step} %}}" * times + "{{ a }}"


def loop(body: str, times: int = 9999) -> str:
    return f"{{% set t = messages[0].content[1].text %}}{{% for i in range({times}) %}}{body}{{% endfor %}}"


ATTACKS = {
    "a large range": "{% for i in range(10**9) %}x{% endfor %}",
    "loops in loops": "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "loops that skip everything": loop("{% for i in range(9999) if false %}{% endfor %}"),
    "loops over a text": loop("{% for b in t %}{% for c in t %}{% endfor %}{% endfor %}"),
    "loops over a text that skip everything": loop("{% for b in t if false %}{% endfor %}"),
    "a loop that calls itself": "{% for i in [1] recursive %}{{ loop(range(9999)) }}{% endfor %}",
    "a tower of powers": "{{ 10 ** 10 ** 10 }}",
    "a power of a power": again("a * a", "99999"),
    "a long text": "{{ 'a' * 10 ** 10 }}",
    "a long text, from a constant": "{{ 'a' * 10000000000 }}",
    "a long list": "{{ ([1] * 1000000000) | length }}",
    "a wide number": "{{ '%1000000000d' % 1 }}",
    "a wide format": "{{ '{:>10000000000}'.format(1) }}",
    "a wide format, by its name": "{% set f = '{:>10000000000}'['format'] %}{{ f(1) }}",
    "the filter format": "{{ '%1000000000d' | format(1) }}",
    "the filter center": "{{ 'a' | center(10000000000) }}",
    "the filter indent": "{{ 'a\n' | indent(10000000000, true) }}",
    "the filter batch": "{{ [1] | batch(10000000000, 'x') | list }}",
    "the filter wordwrap": "{{ 'a b' | wordwrap(1, wrapstring='x') }}",
    "a filter by the name of a filter": "{{ ['a'] | map('center', 10000000000) | list }}",
    "the method center": "{{ 'a'.center(10000000000) }}",
    "the method ljust": "{{ 'a'.ljust(10000000000) }}",
    "the method zfill": "{{ 'a'.zfill(10000000000) }}",
    "the method expandtabs": "{{ '\t'.expandtabs(10000000000) }}",
    "the method to_bytes": "{{ (1).to_bytes(10000000000, 'big') }}",
    "texts that double": again("a ~ a"),
    "texts that double, added": again("a + a"),
    "texts that double, in a loop": "{% set n = namespace(s='a') %}" + loop("{% set n.s = n.s ~ n.s %}", 99),
    "texts that double, as a block": "{% set a %}aaaa{% endset %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60,
    "texts from a macro": "{% macro m(x) %}" + "{{ x }}" * 1000 + "{% endmacro %}{{ m(m(m(m(m('aaaaaaaaaa'))))) }}",
    "lists that double": again("[a, a]", "[1]", 30),
    "tables that double": again("{'a': a, 'b': a}", "{}", 30),
    "lists that double, compared": again("[a, a]", "[1]", 30) + "{{ a == a }}",
    "replaced by more": again("a | replace('a', 'aaaaaaaaaa')"),
    "replaced by more, a method": again("a.replace('a', 'aaaaaaaaaa')"),
    "put between all characters": again("a.replace('', a)"),
    "a long text put between its characters": "{% set t = messages[0].content[1].text * 15 %}{{ t.replace('', t) }}",
    "joined by itself": again("a | join(a)"),
    "joined by itself, by name": again("a | join(d=a)"),
    "joined by itself, a method": again("a.join(a)"),
    "joined by itself, from a generator": again("a | map('upper') | join(a)"),
    "two calls in each": "{% macro m(n) %}{% if n %}{{ m(n - 1) ~ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a block that calls itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "the same text searched": loop("{{ t in t }}"),
    "the same text cut": loop("{% set u = t[1:] %}"),
    "the same text split": loop("{% set u = t.split() %}"),
    "numbers from a text": "{{ ('9' * 4000) | int * 2 }}",
    "words for nothing": "{{ lipsum(n=1000000) }}",
    "a long template": "a" * (LONGEST_TEMPLATE + 1),
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "brackets": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "conditions": "{% if a %}" * 3000 + "{% endif %}" * 3000,
    "signs": "{{ " + "-" * 20000 + "1 }}",
    "sums": "{{ 1" + "+1" * 20000 + " }}",
    "no end": "{% for",
    "no jinja": "{{ messages[ }}",
    "a file": "{% include '/etc/passwd' %}",
    "a module": "{% import 'os' as os %}{{ os }}",
    "Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "Python, by name": "{{ (''|attr('__class__')).mro() }}",
    "a division by nothing": "{{ 1 // 0 }}",
    "its own error": "{{ raise_exception('x' * 5000) }}",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_an_error_in_words(name: str):
    with pytest.raises(ValueError, match="chat template in the model's folder") as error:
        rendered(ATTACKS[name])
    assert len(str(error.value)) < 400
    assert not re.search("MemoryError|OverflowError", str(error.value)), "it was tried"


HONEST = {
    CHAT_TEMPLATE: None,
    "{{ bos_token }}{% if tools %}{{ tools | tojson(indent=4) | indent(4) }}{% endif %}": "<s>",
    "{%- for m in messages[::-1] -%}{{ m.role | upper }}{{ loop.index0 % 2 == 0 }}{%- endfor -%}": "USERTrue",
    "{% set s = namespace(n=0) %}{% for p in messages[0].content %}{% set s.n = s.n + 1 %}{% endfor %}{{ s.n }}": "2",
    "{{ messages[0].content | selectattr('type', 'equalto', 'text') | map(attribute='text') | first | length }}": (
        "12000"
    ),
    "{% for k, v in {'a': 1}.items() %}{{ k ~ '=' ~ v }}{% endfor %}": "a=1",
    "{% macro say(x) %}{{ x.strip() }}{% endmacro %}{{ say('  hi ') }}": "hi",
    "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}": "01",
    "{% generation %}{{ eos_token }}{% endgeneration %}": "</s>",
    "{{ '-' * 3 }}{{ {'a': ['<é>']} | tojson }}": '---{"a": ["<é>"]}',
    "{% if messages[0].content is string %}s{% elif messages[0].content is iterable %}i{% endif %}": "i",
    "{{ 'a</think>b'.split('</think>')[-1] }}{{ x is defined }}{{ x | default('d') }}": "bFalsed",
}


@pytest.mark.parametrize("template", HONEST)
def test_what_published_templates_do_works(template: str):
    written = rendered(template)
    assert written == (HONEST[template] if HONEST[template] is not None else written)
    assert written


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, *list(HONEST)[2:8], list(HONEST)[9]])
def test_as_transformers_renders_it(template: str):
    pytest.importorskip("transformers")
    from transformers.utils.chat_template_utils import render_jinja_template

    options = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    written, _ = render_jinja_template(conversations=[MESSAGES], chat_template=template, **options)
    assert rendered(template) == written[0]

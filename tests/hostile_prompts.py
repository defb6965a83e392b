"""Templates that try to run code or to take time and memory without end; run as a program, each must be refused.

A process of its own, so that its memory can be bounded: `python -m tests.hostile_prompts`.
"""

import resource
import sys

from jinja2.exceptions import SecurityError, TemplateSyntaxError

from t0jax.data.metering import LimitError
from t0jax.data.templates import Template, TemplateError

DOUBLE = "{% set n = namespace(x=X) %}{% for i in range(60) %}{% set n.x = Y %}{% endfor %}"


def doubling(start: str, step: str, end: str) -> str:
    return DOUBLE.replace("X", start).replace("Y", step) + end


DEEP = "{% set n = namespace(x=['a']) %}{% for i in range(20000) %}{% set n.x = Y %}{% endfor %}"
BIG = "{% set s = 'a' * 1000000 %}"
PAIR = doubling("[1]", "[n.x, n.x]", "")
NESTED = "{% set f = '{:{}' ~ '}' %}{{ f.format(1, WIDTH) }}"  # `}}` is the end of an expression to prompts
TUPLES = doubling("(1,)", "(n.x, n.x)", "")

REACHING_OUT = {
    "class": "{{ ''.__class__ }}",
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "mro by item": "{{ ''['__class__']['__mro__'] }}",
    "globals of a function": "{{ dict.__globals__ }}",
    "globals of range": "{{ range.__init__.__globals__['os'].popen('id').read() }}",
    "format": "{{ '{0.__class__.__mro__}'.format(field) }}",
    "format item": "{{ '{0[__class__]}'.format(field) }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "format held": "{% set f = '{0.__class__}'.format %}{{ [1] | map(f) | list }}",
    "map attribute": "{{ [field] | map(attribute='__class__') | first }}",
    "attr filter": "{{ field | attr('__class__') }}",
    "self": "{{ self.__init__.__globals__ }}",
    "undefined": "{{ absent.__init__.__globals__ }}",
    "undefined attribute": "{{ field.absent.__class__ }}",
    "namespace": "{{ namespace().__class__ }}",
    "globals of namespace": "{{ namespace.__globals__ }}",
    "loop": "{% for i in [1] %}{{ loop.__class__ }}{% endfor %}",
    "loop inside": "{% for i in [1] %}{{ loop._iterator }}{% endfor %}",
    "class of dict": "{{ dict.__class__ }}",
    "class method": "{{ dict.fromkeys([1]) }}",
    "class method of a value": "{{ {}.fromkeys([1]) }}",
    "bytes": "{{ field.encode().decode() }}",
    "translate": "{{ field.translate({97: 'b' * 1000}) }}",
    "to_bytes": "{{ (1).to_bytes(1000000000, 'little') | length }}",
    "cycler": "{{ cycler.__init__ }}",
    "globals of lipsum": "{{ lipsum.__globals__['os'] }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "extends": "{% extends '/etc/passwd' %}",
    "calling data": "{{ field() }}",
}

WITHOUT_END = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "long body": "{% for i in range(99999) %}" + "{% set a = 1 + 2 * i %}" * 1000 + "{% endfor %}",
    "long text": "{% set t %}{% for i in range(99999) %}"
    + "t" * 30000
    + "{% endfor %}{% endset %}",
    "growing list": "{% set l = [1] %}{% for i in l %}{% set _ = l.append(i) %}{% endfor %}",
    "list into itself": "{% set l = [1] %}{{ l.extend(l | select) }}",
    "list into itself by map": "{% set l = ['a'] %}{{ l.extend(l | map('upper')) }}",
    "list into itself by zip": "{% set l = [1] %}{{ l.extend(zip(l, l)) }}",
    "list into itself by rounds": "{% set l = [[1]] %}{{ l.extend(l | map('pay rounds', -1000)) }}",
    "allowance by nan": "{{ [[1]] | map('pay rounds', 'nan' | float) | list }}",
    "width by nan": "{{ 'a' | center('nan' | float) }}",
    "range": "{{ range(10 ** 12) | list }}",
    "range lists": "{% for i in range(9) %}{{ (range(99999) | list + range(99999) | list) | length }}"
    "{% endfor %}",
    "range sum": "{% for i in range(99) %}{{ range(99999) | sum }}{% endfor %}",
    "string product": "{{ ('a' * 10 ** 10) }}",
    "reversed product": "{{ (10 ** 10 * 'a') }}",
    "list product": "{{ ([0] * 10 ** 9) }}",
    "nested product": "{{ (['a' * 10000] * 100000) }}",
    "string doubling": doubling("'a'", "n.x + n.x", "{{ n.x }}"),
    "string doubling by ~": doubling("'a'", "n.x ~ n.x", "{{ n.x }}"),
    "string doubling by format": doubling("'a'", "'{0}{0}'.format(n.x)", "{{ n.x }}"),
    "string doubling by %": doubling("'a'", "'%s%s' % (n.x, n.x)", "{{ n.x }}"),
    "string doubling by join": doubling("'a'", "[n.x, n.x] | join", "{{ n.x }}"),
    "string doubling by join method": doubling("'a'", "''.join([n.x, n.x])", "{{ n.x }}"),
    "string doubling by replace": doubling("'a'", "n.x.replace('a', 'aa')", "{{ n.x }}"),
    "string doubling by set": DOUBLE.replace("X", "'a'").replace(
        "{% set n.x = Y %}", "{% set n.x %}{{ n.x }}{{ n.x }}{{ n.x }}{{ n.x }}{% endset %}"
    )
    + "{{ (n.x * 4000) }}",
    "list doubling": doubling("[1]", "n.x + n.x", "{{ n.x }}"),
    "list doubling by extend": "{% set l = [1] %}{% for i in range(60) %}{{ l.extend(l) }}{% endfor %}",
    "shared list printed": PAIR + "{{ n.x }}",
    "shared list as a choice": PAIR + "{{ [n.x] | join('|||') }}",
    "shared list by ~": PAIR + "{{ (n.x ~ '') }}",
    "shared list by %": PAIR + "{{ ('%s' % n.x) }}",
    "shared list by format": PAIR + "{{ '{}'.format(n.x) }}",
    "shared list compared": PAIR + "{% set a = n.x %}" + PAIR + "{{ (a == n.x) }}",
    "shared list compared in a chain": PAIR + "{% set a = n.x %}" + PAIR + "{{ (a == n.x == 1) }}",
    "shared list searched": PAIR + "{% set a = n.x %}" + PAIR + "{{ (a in [n.x]) }}",
    "shared list counted": PAIR + "{% set a = n.x %}" + PAIR + "{{ [n.x].index(a) }}",
    "shared list sorted": PAIR + "{% set a = n.x %}" + PAIR + "{{ [a, n.x] | sort }}",
    "shared list tested": PAIR + "{% set a = n.x %}" + PAIR + "{{ (a is eq n.x) }}",
    "shared list selected": PAIR
    + "{% set a = n.x %}"
    + PAIR
    + "{{ [a] | select('==', n.x) | list }}",
    "shared list in a namespace": PAIR + "{{ namespace(y=n.x) }}{{ [n] | string }}{{ n.x }}",
    "shared list called": PAIR + "{{ n.x() }}",
    "shared list through an alias": "{% set l = [] %}" + doubling("[l]", "[n.x, n.x]", "{{ n.x }}"),
    "shared tuple as a key": TUPLES + "{{ {n.x: 1} }}",
    "shared tuple as an index": TUPLES + "{{ {}[n.x] }}",
    "shared tuple unique": TUPLES + "{{ [n.x] | unique | list }}",
    "shared tuple counted": TUPLES + "{{ [n.x] | most_frequent }}",
    "shared dict": doubling("{}", "{'a': n.x, 'b': n.x}", "{{ n.x }}"),
    "cycle": "{% set l = [1] %}{{ l.append(l) }}{{ (l == [l]) }}{{ l | string }}",
    "colliding keys": "{% set d = {} %}{% for i in range(50000) %}"
    "{{ d.update({i * 2305843009213693951: 1}) }}{% endfor %}",
    "colliding keys by setdefault": "{% set d = {} %}{% for i in range(50000) %}"
    "{{ d.setdefault(i * 2305843009213693951, 1) }}{% endfor %}",
    "colliding items": "{% set l = [] %}{% for i in range(20000) %}"
    "{{ l.append(i * 2305843009213693951) }}{% endfor %}{{ l | unique | list }}",
    "colliding pairs": "{% set l = [] %}{% for i in range(20000) %}"
    "{{ l.append((i * 2305843009213693951, 1)) }}{% endfor %}{{ dict(l) }}",
    "power": "{{ (10 ** (10 ** 10)) }}",
    "power by filter": "{{ [10] | map('round', -1000000000) | list }}",
    "squaring": doubling("3", "n.x * n.x", "{{ n.x }}"),
    "round": "{{ 2.5 | round(1000000000) }}",
    "round down": "{{ 25 | round(-1000000000, 'floor') }}",
    "hexadecimal": "{{ ('f' * 1000000) | int(base=16) }}",
    "width of %": "{{ ('%1000000000d' % 1) }}",
    "width of % of a float": "{{ ('%50000000d' % 1.5) | length }}",
    "precision of % of a float": "{{ ('%.50000000f' % 1.5) | length }}",
    "star of % of a float": "{{ ('%*f' % (50000000, 1.5)) | length }}",
    "width of format filter of a float": "{{ ('%50000000f' | format(1.5)) | length }}",
    "width of format of a float": "{{ '{:50000000.1f}'.format(1.5) | length }}",
    "precision of %": "{{ ('%.1000000000f' % 1) }}",
    "star of %": "{{ ('%*d' % (1000000000, 1)) }}",
    "width behind a key": "{{ ('%((a))1000000000d' % {'(a)': 1}) }}",
    "width behind a key with %": "{{ ('%(a%b)1000000000d' % {'a%b': 1}) }}",
    "width of format filter": "{{ '%1000000000d' | format(1) }}",
    "width of format": "{{ '{:1000000000}'.format(1) }}",
    "nested width of format": NESTED.replace("WIDTH", "1000000000"),
    "nested width as text": NESTED.replace("WIDTH", "'1000000000'"),
    "many fields": BIG + "{{ ('{0}' * 1000).format(s) }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "center method": "{{ 'a'.center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "expandtabs": "{{ '\t\t'.expandtabs(1000000000) }}",
    "indent": "{{ 'a\nb' | indent(1000000000) }}",
    "indent by a string": BIG + "{{ ('a\n' * 1000) | indent(s) }}",
    "negative indent": "{{ ('a\n' * 1000) | indent(-1000000000) }}{{ ('a' * 100000000) }}",
    "replace": BIG + "{{ s | replace('a', s) }}",
    "replace nothing": BIG + "{{ s.replace('', s) }}",
    "join": BIG + "{{ range(99999) | join(s) }}",
    "join method": BIG + "{{ s.join(s) }}",
    "join of one attribute": BIG
    + "{% set n = namespace(y=s) %}{{ ([n] * 99999) | join(attribute='y') }}",
    "join of a default": BIG + "{{ range(99999) | map(attribute='y', default=s) | join }}",
    "batch": "{{ [1] | batch(1000000000, 0) | list }}",
    "slice": "{{ [1] | slice(1000000000) | list }}",
    "sum of lists": "{{ ([[0] * 500] * 500) | sum(start=[]) }}",
    "slices": "{% set l = [0] * 100000 %}{% for i in range(99999) %}{% if l[:] %}{% endif %}{% endfor %}",
    "differences": "{% set d = dict(zip(range(50000), range(50000))) %}"
    "{% for i in range(99999) %}{% if d.keys() - [1] %}{% endif %}{% endfor %}",
    "pops": "{% set l = [0] * 200000 %}{% for i in range(99999) %}{% if l.pop(0) %}{% endif %}{% endfor %}",
    "inserts": "{% set l = [0] * 200000 %}{% for i in range(99999) %}{{ l.insert(0, 1) }}{% endfor %}",
    "searching backwards": "{% set p = 'ab' + 'a' * 500000 %}{{ ('a' * 1000000).rfind(p) }}",
    "splitting backwards": "{% set p = 'ab' + 'a' * 500000 %}{{ ('a' * 1000000).rsplit(p) }}",
    "splitting by name": "{{ ('a' * 200000).split(sep='ab' + 'a' * 100000) | length }}",
    "splitting backwards by name": "{{ ('a' * 200000).rsplit(sep='ab' + 'a' * 100000) | length }}",
    "sorting by a method": "{{ ([1000000] * 1000).sort(key='a'.center) }}",
    "stripping": "{{ ('a' * 1000000).strip('b' * 1000000 + 'a') }}",
    "trimming": "{{ ('a' * 1000000) | trim('b' * 1000000 + 'a') }}",
    "characters": "{% set s = '\u4e00' * 4000000 %}{{ s | list | length }}",
    "characters as arguments": "{% set s = '\u4e00' * 4000000 %}{{ zip(*s) | list }}",
    "characters as filter arguments": "{% set s = '\u4e00' * 4000000 %}{{ 'a' | replace(*s) }}",
    "characters by extend": "{% set s = '\u4e00' * 4000000 %}{{ [].extend(s) }}",
    "characters by +": "{% set s = '\u4e00' * 4000000 %}{{ ([] + s | list) | length }}",
    "words": "{% set s = 'a ' * 3000000 %}{{ s.split() | length }}",
    "deep iterators": DEEP.replace("Y", "n.x | map('upper')") + "{{ n.x | list }}",
    "deep iterators let go": DEEP.replace("Y", "n.x | map('upper')"),
    "deep zips": DEEP.replace("Y", "zip(n.x)") + "{{ n.x | list }}",
    "deep list": DEEP.replace("Y", "[n.x]") + "{{ n.x }}",
    "deep list compared": DEEP.replace("Y", "[n.x]")
    + "{% set a = n.x %}"
    + DEEP.replace("Y", "[n.x]")
    + "{{ (a == n.x) }}",
    "deep tuple as a member": DEEP.replace("Y", "(n.x,)") + "{{ (n.x in {}) }}",
    "deep tuple unique": DEEP.replace("Y", "(n.x,)") + "{{ [n.x] | unique | length }}",
    "deep tuple unique by attribute": DEEP.replace("Y", "(n.x,)")
    + "{{ [{'a': n.x}] | unique(attribute='a') | list | length }}",
    "deep tuple counted": DEEP.replace("Y", "(n.x,)") + "{{ [n.x] | most_frequent | length }}",
    "macro": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for i in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "long source": "{{ 1 }}" * 100000,
    "deep source": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep statements": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "long sum": "{{ (1" + " + 1" * 8000 + ") }}",
    "many parts": "{% for i in range(999) %}{{ ('|||' * 200000) }}{% endfor %}",
    "characters in all": "{% for i in range(999) %}{{ ('a' * 2000) }}{% endfor %}",
}

PATHS = {
    "map": "map(attribute=p)",
    "selectattr": "selectattr(p)",
    "rejectattr": "rejectattr(p)",
    "groupby": "groupby(p)",
    "groupby by name": "groupby(attribute=p)",
    "sort": "sort(attribute=p)",
    "sort without a name": "sort(false, false, p)",
    "min": "min(attribute=p)",
    "max without a name": "max(false, p)",
    "unique": "unique(attribute=p)",
    "unique without a name": "unique(false, p)",
    "sum": "sum(attribute=p)",
    "sum without a name": "sum(p)",
    "join": "join(attribute=p)",
    "join without a name": "join('', p)",
    "map of selectattr": "map('selectattr', p) | map('list') | list",
}
LONG_PATHS = {
    f"{kind} of {name}": f"{{% set p = {path} %}}{{{{ [dict(a=1)] | {use} | string | length }}}}"
    for name, use in PATHS.items()
    for kind, path in {
        "long path": "'a' * 300",
        "path of many parts": "'a.' * 9 + 'a'",
        "path of many names": "'a,' * 9 + 'a'",
        "tuple as a path": "('a',)",
    }.items()
}
"""Looked up in one item alone here: what is not refused is rendered."""

AS_CHOICES = ("globals of range", "range", "string doubling", "shared list as a choice", "cycle")

REFUSALS = (
    LimitError,
    SecurityError,
    TemplateSyntaxError,
    OverflowError,
    RecursionError,
    ValueError,
)
"""Anything else, above all MemoryError, is a failure: of the sandbox, or of an attack that did not get to its point."""


def attack(name: str, jinja: str, choices: str | None = None) -> str:
    """What was wrong with how an attack ended, or ''."""
    template = Template(id=name, name=name, jinja=jinja, answer_choices=choices)
    try:
        shown = template.apply({"field": "abc", "list": [1, 2]})
    except TemplateError as error:
        refused = error.__cause__ is None or isinstance(error.__cause__, REFUSALS)
        return "" if refused else f"{name}: {error.__cause__!r}"
    return f"{name}: rendered {str(shown)[:100]}"


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    attacks = REACHING_OUT | WITHOUT_END | LONG_PATHS
    ends = [attack(name, source) for name, source in attacks.items()]
    ends += [attack(f"{name} as choices", "a|||b", attacks[name]) for name in AS_CHOICES]
    wrong = [*filter(None, ends)]
    print("\n".join([f"{len(ends)} attacks", *wrong]))
    sys.exit(1 if wrong else 0)

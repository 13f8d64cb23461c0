"""Small templates, one construct each."""

CONTEXT = {
    "s": "Hello, World", "empty": "", "u": "Grüße 世界 ß🙂é", "n": 7, "f": 2.5,
    "t": True, "none_value": None, "l": [3, 1, 2],
    "words": ["b", "A", "c", "a"], "d": {"b": 1, "a": [1, {"x": None}],
                                         "items": "key", "C": "see"},
    "rows": [{"k": "x", "v": 1, "o": {"p": 5}}, {"k": "y", "v": 0},
             {"k": "X", "v": 2, "o": {"p": 4}}],
    "lines": " one\n\n two \r\nthree", "space": "\u00a0 \tx\u2003\n",
    "html": "<a href='x'>\"&\u2028\u0001\u007f</a>",
}

_EXPRESSIONS = """
1 + 2 * 3 - 4
7 // 2
-7 // 2
7 % 3
-7 % 3
7 % -3
-7 // -2
7 / 2
6 / 2
2 ** 10
2 ** -1
2 ** 3 ** 2
-2 ** 2
- 3 | abs
1.5 + 1
7.5 // 2
-7.5 // 2
-7.5 % 2
7.5 % -2
1 / 3
0.1 + 0.2
1e16
1e15
123456789012345680.0
1e22
1.5e-5
0.0001
1e-4
1.0
100.0
-0.0
1_000
0x1F
0o17
0b101
1 / 0
1 // 0
1 % 0
1.0 / 0
'a' + 'b'
'a' ~ 1 ~ none ~ true ~ 1.0 ~ missing
'a' + 1
1 + 'a'
'ab' * 3
3 * 'ab'
'ab' * -1
[1] * 3
[1, 2] + [3]
(1,) + (2,)
[1] + (2,)
'%s-%d-%%' % ('x', 3)
'%s' % 'x'
'%s %s' % 'x'
'%d' % 'x'
'x' % 3
[1] - [1]
true + true
true == 1
1 == 1.0
'1' == 1
none == false
[1, 2] == [1, 2]
[1, 2] == (1, 2)
{'a': 1} == {'a': 1.0}
{'a': 1} != {'a': 2}
1 < 2 < 3
1 < 3 < 2
3 > 2 >= 2 != 1
1 < 'a'
'a' < 'b'
'B' < 'a'
'é' > 'z'
[1, 2] < [1, 3]
[1] < [1, 2]
none < 1
9007199254740993 == 9007199254740992.0
true and 'x'
false and 'x'
'' or 'y'
'x' or missing.y
not ''
not 1
not not 1
not 1 == 2
1 if true else 2
1 if false else 2
1 if false
1 if true else 2 if false else 3
(1 if none else 2) + 1
'el' in s
'x' in s
'x' not in s
1 in s
1 in l
5 not in l
'b' in d
'z' in d
1 in d
[] in d
1 in 5
'x' in missing
'' in ''
missing
missing.x
missing['x']
missing + 1
missing ~ 'x'
missing == missing
missing | length
missing is defined
missing is undefined
missing.x is defined
d.missing is defined
d.missing.x is defined
missing is none
none_value is none
missing()
-missing
+missing
+true
-true
-'a'
[]
()
(1,)
(1, 2)
[1, 'a', none, true, 1.5, [], {}]
{}
{'a': 1, 'b': {'c': [1]}}
{'a': 1, 'a': 2}
[1, 2,]
{'a': 1,}
'it\\'s'
["it's"]
['say "hi"']
['it\\'s "x"']
['a\\nb\\t\\\\ \\x01 \\x7f é \\u2028 🙂']
'\\x41\\u00e9\\101\\q'
'a' 'b' "c"
s[0]
s[-1]
s[100]
s[1:3]
s[:-1]
s[::-1]
s[::2]
s[-3:]
s[5:2]
s[1:100:3]
s[-100:3]
s[100:0:-3]
s[::0]
s['x']
s[none:2]
s['a':]
u[1]
u[-3]
u[2:5]
u[::-1]
u | length
l[0]
l[-1]
l[5]
l[5] is defined
l[1:]
l[::-1]
l['x']
l[true]
l[1.0]
(1, 2, 3)[1:]
range(5)[2]
range(5)[1:3] | list
d['b']
d.b
d.items
d['items']
d.items is defined
d['get'] is defined
d.get('b')
d.get('z')
d.get('z', 5)
d.a[1].x
d.a.0
d['a'][1]['x']
d.keys() | list
d.values() | list
d.items() | list
d.keys()
d.items() | length
d.items()[0]
d | list
d | length
d | first
d | last
d[1:]
d[1]
none_value.x
none_value['x']
n.x
n.x.y
5.x
s.upper
s.nothing
[].append(1)
l.append(4)
l.pop()
d.update({})
d.pop('b')
l.index(1)
l.index(9)
l.count(1)
(1, 2).index(2)
(1, 2).append(2)
s is string
n is string
n is number
f is number
t is number
t is integer
n is integer
f is float
t is boolean
t is true
1 is true
t is false
false is false
d is mapping
l is mapping
l is sequence
s is sequence
d is sequence
n is sequence
none is sequence
missing is sequence
l is iterable
s is iterable
d is iterable
n is iterable
none is iterable
missing is iterable
range is callable
s is callable
none is sameas none
true is sameas true
1 is sameas true
3 is odd
4 is odd
4 is even
9 is divisibleby 3
9 is divisibleby(2)
'x' is odd
'abc' is lower
'aBc' is lower
'ABC' is upper
'1' is upper
1 is eq 1
1 is equalto(2)
1 is ne 2
1 is lt 2
1 is ge 2
1 is gt(0)
1 is in [1]
1 is not in [1]
2 is not defined
n is defined and n is number
n is not string
not n is string
'upper' is filter
'nope' is filter
'odd' is test
n is string or n is number
s | upper
s | lower
u | upper
u | lower
s | title
"it's a-b (c) <d> x" | title
'hELLO wORLD' | capitalize
n | upper
none | upper
s | replace('l', 'L')
s | replace('l', 'L', 1)
s | replace('', '-')
s | replace('', '-', 2)
n | replace(7, 8)
' x ' | trim
space | trim
space.strip() | length
'xxaxx' | trim('x')
none | trim
n | string
none | string
l | string
s | length
l | length
n | length
none | length
l | count
l | first
l | last
[] | first
[] | last
[] | first is defined
s | first
s | last
l | join
l | join(', ')
l | join(1)
rows | join('/', attribute='k')
none | join
s | join('-')
l | sort
l | sort(reverse=true)
words | sort
words | sort(case_sensitive=true)
words | sort(true)
rows | sort(attribute='v') | map(attribute='k') | list
rows | sort(attribute='k') | map(attribute='k') | list
rows | sort(attribute='missing') | length
[1, 'a'] | sort
l | min
l | max
words | min
[] | max
words | unique | list
words | unique(case_sensitive=true) | list
l | reverse | list
s | reverse
u | reverse
l | reverse
l | sum
rows | sum(attribute='v')
rows | sum(attribute='v', start=10)
words | sum
[[1], [2]] | sum(start=[])
[] | sum
d | dictsort
d | dictsort(true)
d | dictsort(reverse=true) | length
{'a': 2, 'b': 1} | dictsort(by='value')
{'a': 2, 'b': 1} | dictsort(false, 'value', true)
l | dictsort
d | items | list
missing | items | list
l | items | list
l | list
s | list
n | list
'abc' | batch(2)
rows | map(attribute='k') | list
rows | map(attribute='o.p') | list
rows | map(attribute='o.p', default=0) | list
rows | map(attribute='o') | map(attribute='p', default='none') | list
words | map('upper') | list
words | map('replace', 'a', 'z') | list
words | map('upper') | join('')
words | map('upper') | length
(words | map('upper'))[0]
words | map('upper') | first
words | map('upper') | last
words | map | list
rows | sort(attribute='k,v') | map(attribute='v') | list
'a b  c '.split()
' a  b '.split(none, 2)
' a  b '.split(none, 5)
' a  b '.rsplit(none, 2)
rows | selectattr('v') | map(attribute='k') | list
rows | selectattr('k', 'equalto', 'x') | list | length
rows | selectattr('k', '==', 'x') | list | length
rows | rejectattr('k', 'in', ['x', 'y']) | map(attribute='k') | list
rows | selectattr('o') | list | length
rows | selectattr('o', 'defined') | list | length
rows | selectattr('o.p', 'gt', 4) | list | length
rows | rejectattr('v') | map(attribute='k') | list
l | select('odd') | list
l | reject('odd') | list
l | select('gt', 1) | list
[0, 1, '', 'a'] | select | list
[0, 1, '', 'a'] | reject | list
'yes' if l | select('gt', 100) else 'no'
'yes' if l | select('gt', 100) | list else 'no'
(l | select('gt', 1)) is iterable
(l | select('gt', 1)) is sequence
missing | default('x')
none | default('x')
none | default('x', true)
'' | default('x', true)
missing | default
missing | d('y')
d.missing | default(d.b)
missing.x | default('x')
'3' | int
'3.7' | int
'x' | int
'x' | int(5)
'x' | int(default=6)
none | int
3.9 | int
-3.9 | int
true | int
' 12 ' | int
'ff' | int(0, 16)
missing | int
'2.5' | float
'x' | float
'x' | float(1.5)
3 | float
'inf' | float
'1e3' | float
2.5 | round
3.5 | round
2.675 | round(2)
2.5 | round(0, 'ceil')
2.4 | round(method='floor')
5 | round
1234 | round(-2)
0.15 | round(1)
'x' | round
-5 | abs
-2.5 | abs
'x' | abs
'a' | safe
html | tojson
html | safe
d | tojson
d | tojson(indent=2)
d | tojson(indent=0)
l | tojson(indent=4)
[] | tojson(indent=2)
{} | tojson(indent=2)
u | tojson
u | tojson(ensure_ascii=true)
d | tojson(sort_keys=true)
d | tojson(separators=(',', ':'))
d | tojson(true, 2, ('; ', '= '), true)
(1, 2) | tojson
none | tojson
true | tojson
1.0 | tojson
1e100 | tojson
'a/b' | tojson
missing | tojson
range(2) | tojson
d.items() | tojson
words | map('upper') | tojson
'a\\nb\\n\\nc' | indent
'a\\nb\\n\\nc' | indent(2, true)
'a\\nb\\n\\nc\\n' | indent(2, blank=true)
'a\\nb' | indent('> ')
n | indent
'%s is %d' | format('x', 3)
'%s' | format
'{} {1}' | format(1)
s.upper()
s.lower()
s.title()
"it's a-b x1y" .title()
s.capitalize()
u.upper()
u.capitalize()
' x '.strip()
'xyaxy'.strip('yx')
'xyaxy'.lstrip('xy')
'xyaxy'.rstrip('xy')
' x '.strip(none) | length
s.split(', ')
s.split()
'  a  b c '.split()
'  a  b c '.split(none, 1)
'  a  b c '.rsplit(none, 1)
'a,b,c'.split(',', 1)
'a,b,c'.rsplit(',', 1)
'a,b,c'.split(',', maxsplit=1)
'aaaa'.rsplit('aaa')
'aaaa'.split('aa')
''.split(',')
''.split()
'a'.split('')
'x</t>y</t>z'.split('</t>')[-1]
'abc'.startswith('ab')
'abc'.startswith(('x', 'a'))
'abc'.startswith(['a'])
'abc'.endswith('bc')
'abc'.startswith(1)
'abc'.replace('b', 'x')
'abab'.replace('b', 'x', 1)
'abc'.replace('b', 1)
'abcabc'.find('c')
'abcabc'.rfind('c')
'abc'.find('z')
'abc'.rfind('')
u.find('世')
u.rfind('🙂')
'abc'.index('z')
'abab'.count('ab')
'aaa'.count('aa')
'abc'.count('')
'-'.join(words)
'-'.join(l)
'-'.join('abc')
'{} {} {}'.format(1, 'a', none)
'{0}{1}{0}'.format('a', 'b')
'{x}'.format(x=1)
'{{}}'.format()
'{}'.format()
'{'.format()
'a-b-c'.partition('-')
'a-b-c'.rpartition('-')
'abc'.partition('-')
'abc'.rpartition('-')
'abc'.removeprefix('a')
'abc'.removesuffix('c')
'abc'.removeprefix('x')
lines.splitlines()
'abc'.isalpha()
'ab1'.isalpha()
''.isalpha()
'123'.isdigit()
'12a'.isdigit()
'ab1'.isalnum()
' \\t'.isspace()
'ABC'.isupper()
'A1'.isupper()
'abc'.islower()
range(3) | list
range(1, 4) | list
range(5, 0, -2) | list
range(0)
range(3) | length
range(3, step=2)
range('x')
range(100001)
range(100000) | length
dict(a=1, b='x')
dict({'a': 1}, b=2)
namespace(a=1).a
namespace({'a': 1}).a
namespace().b
namespace().b is defined
raise_exception('no ' ~ n)
raise_exception(none)
strftime_now('%Y-%m-%d %H:%M:%S')
strftime_now('%d %b %Y')
strftime_now('%A %B %j %%')
strftime_now('')
strftime_now is defined
raise_exception is defined
missing_function is defined
loop is defined
1 is defined
s|upper|lower|title
(s | upper)[0]
s.split(',')[1].strip() | upper
1, 2
'a' 'b' ~ 'c'
"a" if n > 5 and s.startswith('H') else "b"
n in [1, 7] and n not in (2, 3)
{'a': [1, 2]}.a[0]
{'a': 1}['a']
[1, 2, 3][1]
'abc'[1]
('a', 'b')[1] ~ ('x')
d['a', 'b']
s.upper().lower()
true
True
None
none
false is none
s if s else none
[1, [2, [3]]] | tojson
[[]] * 2
3 is divisibleby 0
s == 'Hello, World'
s != s
l == [3, 1, 2]
words[-1] == 'a'
words[1:3] + ['z']
9223372036854775807
"tab\\there"
1 ** 2
2 * 3 ~ 'x'
1 + 1 ~ 'x'
'x' ~ 1 + 1
10 - 5 - 2
100 / 10 / 2
1 - -1
n * f
""".strip("\n").split("\n")

_TEMPLATES = [
    "", "text", "\n", "a\n", "a\n\n", "a\r\nb\rc\r\n", "{{ 1 }}\n",
    "{{ 1 }}\n\n", "{% if true %}\nx\n{% endif %}\ny", "  {% if true %}\n  x\n"
    "  {% endif %}  \ny", "a {%- if true -%} b {%- endif %} c",
    "a\n  {{- 1 -}}\n  b", "a {{ 1 }} b", "a\n  {{ 1 }}\n  b",
    "  {%+ if true %}x{% endif %}", "{% if true +%}\nx{% endif %}",
    "x  {% if true %}y{% endif %}", "{# c #}\nx", "  {# c #}\nx",
    "a {#- c -#} b", "a\n{#- c +#}\nb", "{# a {{ b }} {% c %} #}",
    "{#-#}x", "{#\n\n#}\nx", "{% raw %}\n {{ x }}\n{% endraw %}\nx",
    "a {%- raw -%} {{ x }} {%- endraw -%} b", "{% raw %}{% raw %}{% endraw %}",
    "{{ '}}' }}", "{{ '%}' }}{% set x = '%}' %}{{ x }}", "{{ {'a': {}} }}",
    "{{ {'a': {'b': 1}}['a']['b'] }}", "{ {", "{", "}}", "%}", "#}", "{{", "{%",
    "{#", "{{ 1", "{{ 'a }}", "{{ 1 }", "{% if %}", "{% if true %}",
    "{% endif %}", "{% else %}", "{% nothing %}", "{{ }}", "{{ 1 + }}",
    "{{ (1 }}", "{{ 1) }}", "{{ [1 }}", "{{ a b }}", "{{ 1 2 }}", "{{ | upper }}",
    "{{ a. }}", "{{ a.b. }}", "{{ .5 }}", "{{ 1. }}", "{{ 'a' 1 }}", "{{ $ }}",
    "{{ a ? b }}", "{{ a && b }}", "{{ !a }}", "{{ a is }}", "{{ a is not }}",
    "{{ 1 is defined is defined }}", "{{ f(a=1, 2) }}", "{{ x | upper( }}",
    "{% for %}{% endfor %}", "{% for x %}{% endfor %}",
    "{% for x in %}{% endfor %}", "{% for 1 in l %}{% endfor %}",
    "{% for x in l %}{% endif %}", "{% set 1 = 2 %}", "{% set x %}",
    "{% set x = %}", "{% set x.y = 1 %}", "{% set none = 1 %}",
    "{% macro %}{% endmacro %}", "{% macro f %}{% endmacro %}",
    "{% macro f(a=1, b) %}{% endmacro %}", "{% macro f(1) %}{% endmacro %}",
    "{% break %}", "{% for x in l %}{% macro f() %}{% break %}{% endmacro %}"
    "{% endfor %}", "{% call 1 %}{% endcall %}", "{% filter %}{% endfilter %}",
    "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}",
    "{% do x %}", "{{ x | nothing }}", "{{ x is nothing }}",
    "{{ l | map('nothing') | list }}", "{{ l | select('nothing') | list }}",
    "{{ s.__class__ }}", "{{ s['__class__'] }}", "{{ s.__class__.__mro__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ s.format.__self__ }}",
    "{{ '{0.__class__}'.format(s) }}", "{{ range.__globals__ }}",
    "{{ namespace.__init__ }}", "{{ (1).__add__(2) }}",
    "{% for x in l %}{{ x }}{% endfor %}",
    "{% for x in l %}{{ x }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% for x in [] %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in l if x > 5 %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.index }}{{ loop.length }}{% endfor %}",
    "{% for x in l %}{{ loop.index }} {{ loop.index0 }} {{ loop.revindex }} "
    "{{ loop.revindex0 }} {{ loop.first }} {{ loop.last }} {{ loop.length }} "
    "{{ loop.depth }} {{ loop.depth0 }} {{ loop.previtem }} "
    "{{ loop.nextitem }};{% endfor %}",
    "{% for x in l %}{{ loop['index'] }}{{ loop.nothing }}{% endfor %}",
    "{% for x in l %}{{ loop.previtem is defined }}"
    "{{ loop.nextitem is defined }}{% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}",
    "{% for x in 5 %}{% endfor %}", "{% for x in none %}{% endfor %}",
    "{% for x in missing %}{% else %}empty{% endfor %}",
    "{% for x in 'abé' %}{{ x }}.{% endfor %}",
    "{% for k in d %}{{ k }}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in d | items %}{{ loop.length }}{{ k }}={{ v }};{% endfor %}",
    "{% for a, b in [(1, 2), [3, 4], 'xy'] %}{{ a }}{{ b }};{% endfor %}",
    "{% for a, b in [(1, 2, 3)] %}{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for x in l %}{% for y in l %}{{ loop.index }}{% endfor %}"
    "{{ loop.index }};{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}"
    "{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% else %}e"
    "{% endfor %}", "{% for x in range(3) %}{{ x }}{% endfor %}{{ x }}",
    "{% for x in 1, 2 %}{{ x }}{% endfor %}",
    "{% for x in l | sort | reverse %}{{ x }}{% endfor %}",
    "{% set g = l | select('odd') %}{{ g | list }}{{ g | list }}",
    "{% set g = l | map('string') %}{{ g | first }}{{ g | list }}",
    "{% set x = 1 %}{% for i in l %}{{ x }}{% set x = x + 1 %}{% endfor %}"
    "{{ x }}",
    "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% if false %}{% set y = 2 %}{% endif %}{{ y is defined }}",
    "{% set ns = namespace(x=1) %}{% for i in l %}{% set ns.x = ns.x + i %}"
    "{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=1) %}{% set ns.y = [ns.x] %}{{ ns.y }}{{ ns['x'] }}"
    "{{ ns.z is defined }}",
    "{% set d2 = {'a': 1} %}{% set d2.a = 2 %}{{ d2 }}",
    "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = [1] %}",
    "{% set ns = namespace() %}{% set ns.a, b = 1, 2 %}{{ ns.a }}{{ b }}",
    "{% set a = 1, 2 %}{{ a }}", "{% set a = b = 1 %}",
    "{% set x %}a{{ n }}{% endset %}{{ x }}",
    "{% set x | upper | replace('A', 'z') %}ab{% endset %}{{ x }}",
    "{% set x %}{% set y = 1 %}{% endset %}{{ y is defined }}",
    "{% if 0 %}a{% elif '' %}b{% elif n %}c{% else %}d{% endif %}",
    "{% if l is defined and l %}y{% endif %}", "{% if n == 7: %}y{% endif %}",
    "{% macro f(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, 3) }}"
    "{{ f(b=4, a=5) }}{{ f() }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(c=2) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, a=2) }}",
    "{% macro f(a, b=a ~ '!') %}{{ b }}{% endmacro %}{{ f('x') }}",
    "{% macro f(a) %}{{ a is defined }}{% endmacro %}{{ f() }}",
    "{% macro f(a) %}{{ a.b }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(5) }}",
    "{% macro f() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ f() }}"
    "{% set x = 2 %}{{ f() }}",
    "{% macro f() %}{% set x = 5 %}{{ x }}{% endmacro %}{% set x = 1 %}"
    "{{ f() }}{{ x }}",
    "{% macro f() %}a{% endmacro %}{{ f() | upper }}{{ f() ~ 'b' }}"
    "{{ f() is string }}",
    "{% macro f() %}[{{ caller() }}]{% endmacro %}{% call f() %}x{% endcall %}",
    "{% macro f() %}[{{ caller(1, b=2) }}]{% endmacro %}"
    "{% call(a, b, c=3) f() %}{{ a }}{{ b }}{{ c }}{% endcall %}",
    "{% macro f() %}x{% endmacro %}{% call f() %}y{% endcall %}",
    "{% macro f() %}{{ caller is defined }}{% endmacro %}{{ f() }}",
    "{% macro f() %}{{ caller() }}{% endmacro %}{{ f() }}",
    "{% macro f() %}a\n{% endmacro %}\n{{ f() }}b",
    "{% filter upper %}a{{ s }}{% endfilter %}",
    "{% filter trim | length %} abc {% endfilter %}",
    "{% with %}{% set x = 1 %}{{ x }}{% endwith %}{{ x is defined }}",
    "{% with a = n, b = 2 %}{{ a }}{{ b }}{% endwith %}",
    "{% set a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "{% for x in l %}{% with y = x %}{% if y == 1 %}{% break %}{% endif %}"
    "{{ y }}{% endwith %}{% endfor %}",
    "{% generation %}a{% set x = 1 %}{% endgeneration %}{{ x is defined }}",
    "{% generation %}\n  a\n{% endgeneration %}\nb",
    "{% set loop = 1 %}{{ loop }}", "{{ n }}{{- n -}} {{ n }}",
    "{{ 'a' if missing is defined else 'b' }}",
    "{{ ('a' if missing.x is defined else 'b') if n is defined else 'c' }}",
    "{{ raise_exception() }}", "{{ raise_exception('a', 'b') }}",
    "{% if not (n is defined and n is not none) %}a{% else %}b{% endif %}",
    "{{ (n) }}{{ ((n)) }}", "{{n}}{{-n}}{{ -n }}", "{{ n-1 }}{{ n -1 }}",
    "{{+n}}", "{%if n%}x{%endif%}", "{%- if n -%}\n x \n{%- endif -%}\n",
    "\n\n  {%- set x = 1 %}\n  {{ x }}", "a\n\n  {% set x = 1 %}\n\nb",
    "\u3000{% if n %}x{% endif %}", "x\u00a0{%- if n %}y{% endif %}",
    "{{ \"a\\\nb\" }}", "{{ 'a\nb' }}", "{{ 'a\r\nb' }}",
    "{{ s }}" * 50, "{{ '' }}{{ none }}{{ true }}{{ 1.0 }}{{ [] }}",
    "{{ d.a[1] }}{{ d.a.1 }}{{ d.a.1.x }}", "{{ 1.0.x }}", "{{ l.0.1 }}",
    "{{ 'A' < 'a' < 'b' }}", "{{ n is not none and n > 5 }}",
    "{{ not n in l }}", "{{ not n is none }}", "{{ -n | abs }}{{ (-n) | abs }}",
    "{{ n | default(1) + 1 }}", "{{ [n] + l | sort }}", "{{ 'x' ~ l | length }}",
    "{{ l is iterable and l is not string and l is not mapping }}",
    "{{ range(l | length) | list }}", "{% set _ = 1 %}{{ _ }}",
    "{{ dict(a=namespace(b=1)).a.b }}", "{{ [namespace] | length }}",
    "{% set f = s.upper %}{{ f() }}", "{{ s.upper is callable }}",
]

EXPRESSIONS = ["{{ " + e + " }}" for e in _EXPRESSIONS] + _TEMPLATES

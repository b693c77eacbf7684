"""Describe every public name of a package in Markdown, for the documentation site.

    python tests/site_reference.py FOLDER OUT.json     the package named in FOLDER/settings.ini

OUT.json holds, of each name, its description (signature, docstring, a table of its arguments; of a
class its public methods too), the first line of its docstring and the notebook it stands in. What an
argument means is what `help()` says: the comments beside the parameters, read by `xmodal.explain`.
tests/make_site.py runs this in a process of its own, because it imports the whole package.
"""

import dataclasses
import enum
import importlib
import inspect
import json
import pkgutil
import re
import sys
from configparser import ConfigParser
from pathlib import Path

WIDTH = 88  # columns of a signature in one line
LONGEST = 60  # characters of a default
KNOWN = re.compile(r'^( {4}| {8})(\*{0,2}\w+): ?(.*)$')  # a line of `Args:`
FENCES = re.compile(r'(```.*?```|``.+?``|`[^`]+`)', re.S)


def plain(text) -> str:
    "Prose of a docstring or a comment as Markdown: stars and angles are only characters."
    parts = FENCES.split(text)
    parts[::2] = [re.sub(r'([*<])', r'\\\1', part).replace('$', '\\$') for part in parts[::2]]
    return ''.join(parts)


def in_table(text) -> str:
    "A text that fits into one cell of a Markdown table."
    return ' '.join(text.split()).replace('|', '\\|')


def split_doc(thing) -> tuple:
    "The prose of a docstring; what it says about each argument; what it says is returned."
    doc = inspect.cleandoc(thing.__doc__ or '')
    prose, _, back = doc.partition('\nReturns:\n')
    prose, _, listed = prose.partition('\nArgs:\n')
    known, name = {}, None
    for line in listed.split('\n'):
        if found := KNOWN.match(line):
            name = found[2]
            known[name] = found[3]
        elif name:
            known[name] += ' ' + line.strip()
    return prose.strip(), known, ' '.join(back.split())


def meanings(thing) -> dict:
    "What the arguments of a function or class mean, from its source; 'return' is what comes back."
    try:
        from xmodal.explain import comments_of, meanings_of
    except ImportError:  # another package: it has no words of this kind
        return {}
    if isinstance(thing, type) and hasattr(thing, '_fields'):  # a named tuple
        return comments_of(thing)
    return meanings_of(thing)


def written(function) -> str:
    "A function without a name as it stands behind its parameter, alone in its line."
    try:
        found = re.search(r'\blambda\b.*?(?=,?\s*(?:#|$))', inspect.getsource(function).strip())
    except (OSError, TypeError):
        found = None
    return found[0] if found else 'function'


def said_briefly(value) -> str:
    "A record by what differs from its own defaults, as `SampleOptions()`; '' if it is no record."
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return ''
    told = []
    for f in dataclasses.fields(value):
        made = f.default_factory is not dataclasses.MISSING
        usual, is_now = f.default_factory() if made else f.default, getattr(value, f.name)
        if usual is dataclasses.MISSING or repr(usual) != repr(is_now):
            told.append(f'{f.name}={is_now!r}')
    return f'{type(value).__name__}({", ".join(told)})'


def default_of(value) -> str:
    "The default of an argument, short enough to be read."
    if inspect.isroutine(value) or isinstance(value, type):
        return written(value) if value.__name__ == '<lambda>' else value.__name__
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, slice) and value == slice(None):
        return 'slice(None)'
    if as_made := said_briefly(value):
        return as_made
    text = re.sub(r'<function (?:[\w.<>]+\.)?(\w+) at 0x\w+>', r'\1', repr(value))
    text = re.sub(r'<(?:[\w.]+\.)?(\w+)(?: object)? at 0x\w+>', r'<\1>', text)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + '...'


def type_of(annotation) -> str:
    "The type of an argument in words of Python, without the modules it comes from."
    if annotation is inspect.Parameter.empty:
        return ''
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r'\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])', '', text)


def own_init(thing):
    "Where a class says what it is made of: itself for a record, else the `__init__` of the package."
    if dataclasses.is_dataclass(thing) or hasattr(thing, '_fields'):
        return thing
    package = thing.__module__.partition('.')[0]
    for base in thing.__mro__:
        if base.__module__.partition('.')[0] == package and '__init__' in vars(base):
            return base.__init__
    return None


def parameters_of(thing) -> list:
    "The parameters that a caller gives."
    if isinstance(thing, type) and issubclass(thing, enum.Enum):
        return []
    source = own_init(thing) if isinstance(thing, type) else thing
    if source is None:
        return []
    try:
        found = list(inspect.signature(source).parameters.values())
    except (TypeError, ValueError):
        return []
    bound = isinstance(thing, type) and source is not thing
    return found[1:] if bound else found


def result_of(thing) -> str:
    "The type of what a function returns."
    if isinstance(thing, type):
        return ''
    try:
        return type_of(inspect.signature(thing).return_annotation)
    except (TypeError, ValueError):
        return ''


def shown_default(p, factories=()) -> str:
    "The default of a parameter as a word; of a record's factory, what it makes."
    if is_passed_on(p):
        return 'depends'
    made = dict(factories).get(p.name)
    value = made() if made else p.default
    if made and hasattr(value, 'tolist'):
        return str(value.tolist())
    return default_of(value)


def factories_of(thing) -> dict:
    "Field -> what makes its default anew for every record."
    if not dataclasses.is_dataclass(thing):
        return {}
    found = {f.name: f.default_factory for f in dataclasses.fields(thing)}
    return {k: v for k, v in found.items() if v is not dataclasses.MISSING}


def is_passed_on(p) -> bool:
    "An option that a function hands on: what holds without it depends on another one."
    return type(p.default).__name__ == 'Unsaid'


def signature(name, parameters, result, factories=()) -> str:
    "The call as a person writes it, in one line if it fits."
    shown, named = [], False
    for p in [p for p in parameters if not is_passed_on(p)]:
        star = {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '')
        if p.kind == p.KEYWORD_ONLY and not named:  # what follows is given by name
            shown.append('*')
        named = named or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        kind = type_of(p.annotation)
        text = f'{star}{p.name}' + f': {kind}' * bool(kind)
        if p.default is not p.empty:
            text += (' = ' if kind else '=') + shown_default(p, factories)
        shown.append(text)
    tail = f' -> {result}' * bool(result)
    line = f'{name}({", ".join(shown)}){tail}'
    if len(line) <= WIDTH:
        return line
    return f'{name}(\n    ' + ',\n    '.join(shown) + f',\n){tail}'


def arguments(thing, parameters, known) -> list:
    "Rows of the table of arguments: name with its stars, default, meaning."
    source = (own_init(thing) or thing) if isinstance(thing, type) else thing
    words = {**meanings(source), **split_doc(source)[1], **known}
    rows = []
    for p in parameters:
        star = {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '')
        said = words.get(star + p.name) or words.get(p.name) or ''
        default = '' if p.default is p.empty else shown_default(p, factories_of(thing))
        rows.append((star + p.name, default, said))
    return rows


def described(thing, name) -> dict:
    "Signature, prose, table of arguments and result of one function, method or class."
    parameters = parameters_of(thing)
    if not isinstance(thing, type) and '.' in name and parameters[:1]:
        parameters = parameters[parameters[0].name in ('self', 'cls') :]
    prose, known, back = split_doc(thing)
    rows = arguments(thing, parameters, known)
    back = back or meanings(thing).get('return', '')
    call = signature(name, parameters, result_of(thing), factories_of(thing))
    text = f'```python\n{call}\n```\n\n{plain(prose)}\n\n'
    if rows:
        cells = [(f'`{n}`', f'`{d}`' if d else '', plain(said)) for n, d, said in rows]
        lines = ['| ' + ' | '.join(map(in_table, cell)) + ' |' for cell in cells]
        text += '\n'.join(['| argument | default | meaning |', '| --- | --- | --- |', *lines, '\n'])
    if back:
        text += f'Returns: {plain(back)}\n\n'
    return dict(text=text, rows=[(n, bool(said)) for n, _, said in rows])


def methods_of(thing) -> dict:
    "The public methods and properties that a class itself defines, as functions."
    found = {}
    for name, value in vars(thing).items():
        value = value.fget if isinstance(value, property) else getattr(value, '__func__', value)
        public = name == '__call__' or not name.startswith('_')
        if public and inspect.isfunction(value) and value.__module__ == thing.__module__:
            found[name] = value
    return found


def inherited(thing) -> str:
    "A line that names the methods which a class has from others of the package."
    package = thing.__module__.partition('.')[0]
    lines = []
    for base in thing.__mro__[1:]:
        names = [n for n in methods_of(base) if n not in vars(thing)]
        if base.__module__.partition('.')[0] == package and names:
            shown = ', '.join(f'`{base.__name__}.{n}`' for n in names)
            lines.append(f'From `{base.__name__}`: {shown}.\n\n')
    return ''.join(lines)


def place(thing) -> int:
    "The line of the source where a function or class begins; 0: not known."
    try:
        return inspect.getsourcelines(inspect.unwrap(thing))[1]
    except (OSError, TypeError):
        return 0


def first_line(thing) -> str:
    return (inspect.cleandoc(thing.__doc__ or '').split('\n\n')[0]).replace('\n', ' ')


def is_property(thing, name) -> bool:
    return isinstance(vars(thing).get(name), property)


def entry(thing, name) -> dict:
    "All that the site shows of one public name."
    found = described(thing, name) | dict(line=first_line(thing), at=place(thing), methods={})
    if isinstance(thing, type):
        # a record that has no docstring gets its signature as one
        if found['line'].startswith(f'{name}('):
            found['line'] = ''
        found['text'] += inherited(thing)
        for method, function in methods_of(thing).items():
            full = f'{name}.{method}'
            one = described(function, full) | dict(line=first_line(function), at=place(function))
            if is_property(thing, method):
                one['text'] = one['text'].replace(f'{full}()', full, 1)
            found['methods'][method] = one
    return found


def other_meanings(package) -> set:
    "Words that name an argument, a method or a field somewhere: as code they may mean that."
    found = set()
    for thing in package:
        found |= {p.name for p in parameters_of(thing)}
        if isinstance(thing, type):
            found |= set(vars(thing)) | set(getattr(thing, '__annotations__', ()))
            for method in methods_of(thing).values():
                found |= set(inspect.signature(method).parameters)
    return found


def modules(package) -> list:
    "Every module of a package, imported."
    top = importlib.import_module(package)
    names = [m.name for m in pkgutil.walk_packages(top.__path__, f'{package}.')]
    return [importlib.import_module(n) for n in names if not n.endswith('._modidx')]


def reference(root) -> dict:
    "name -> what the site says about it, and words that are no names alone."
    parser = ConfigParser(delimiters=['='])
    parser.read(root / 'settings.ini', encoding='utf-8')
    package = parser['DEFAULT']['lib_name']
    names, things = {}, []
    for module in modules(package):
        source = Path(module.__file__).read_text(encoding='utf-8')
        made = re.search(r'^# AUTOGENERATED.*?nbs/(\S+\.ipynb)', source, re.M)
        if not made:
            continue
        for name in getattr(module, '__all__', ()):
            thing = getattr(module, name)
            where = dict(page=made[1], module=module.__name__)
            called = inspect.unwrap(thing) if callable(thing) else thing  # perhaps cached
            defined = inspect.isfunction(called) and called.__name__ == name  # not a lambda
            if not (defined or isinstance(thing, type)):
                constant = dict(text='', line='', methods={}, kind=type(thing).__name__)
                names.setdefault(name, where | constant)  # a function of that name comes first
            elif getattr(thing, '__module__', '') == module.__name__:
                things.append(thing)
                kind = 'class' if isinstance(thing, type) else 'function'
                names[name] = entry(thing, name) | where | dict(kind=kind)
    table = getattr(sys.modules.get(f'{package}.methods'), 'methods', {})
    return dict(names=names, words=sorted(other_meanings(things) | set(table)))


if __name__ == '__main__':
    found = reference(Path(sys.argv[1]).resolve())
    Path(sys.argv[2]).write_text(json.dumps(found, ensure_ascii=False), encoding='utf-8')

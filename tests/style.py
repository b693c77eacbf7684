"""House rules that can be counted. Each count may only fall; tests/style.json holds where it stands.

    python tests/style.py            print every count, with the three worst places
    python tests/style.py --write    lower the counts in tests/style.json; refuses to raise one

Notebooks and modules are read as text; nothing of the project is run.
"""

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = Path(__file__).with_name('style.json')
COLUMNS = 100  # longest line
STATEMENTS = 40  # most statements of an exported cell
FUNCTION = 40  # most lines of a function, signature and docstring included
PARAMETERS = 8  # most parameters of a function
SHOWN = 1500  # most characters of a shown check cell
LINES = 60  # most lines of an exported cell
WORDS = 2  # fewest words of prose for an exported line
OURS = {'den', 'bridge', 'net', 'mix'}  # objects whose abilities are declared, never guessed
IMPORTS = (ast.Import, ast.ImportFrom)


def code_cells(root):
    "Yields (notebook, source) of every code cell; records of what was run are left out."
    for path in sorted((root / 'nbs').rglob('*.ipynb')):
        if {'results', '.ipynb_checkpoints'} & set(path.parts):
            continue
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            if cell['cell_type'] == 'code':
                yield path.relative_to(root / 'nbs').as_posix(), ''.join(cell['source'])


def modules(root):
    "Yields (module, source) of the exported package."
    for path in sorted((root / 'xmodal').rglob('*.py')):
        if path.name not in ('_modidx.py', '__init__.py'):
            yield path.relative_to(root / 'xmodal').as_posix(), path.read_text(encoding='utf-8')


def has_directive(source, names) -> bool:
    return bool(re.search(rf'^#\s*\|\s*({names})\b', source, re.M))


def parsed(source):
    "The syntax tree of a cell without its magic commands."
    return ast.parse(re.sub(r'^\s*[%!].*', 'pass', source, flags=re.M))


def is_constant_table(source) -> bool:
    "A cell that only assigns strings, numbers and containers of them."
    body = parsed(source).body
    allowed = (ast.Assign, ast.AnnAssign)
    calls = any(isinstance(n, (ast.Call, ast.Lambda)) for n in ast.walk(ast.Module(body, [])))
    return bool(body) and all(isinstance(n, allowed) for n in body) and not calls


def long_lines(source) -> int:
    return sum(len(line) > COLUMNS and 'http' not in line for line in source.splitlines())


def crowded_lines(source) -> int:
    "Lines with several statements; a semicolon at the end of a cell only hides its output."
    lines, found = source.splitlines(), set()
    for token in tokenize.generate_tokens(io.StringIO(source + '\n').readline):
        row = token.start[0]
        if token.type == tokenize.OP and token.string == ';':
            if not lines[row - 1].rstrip().endswith(';'):
                found.add(row)
    return len(found)


def nested_conditionals(tree) -> int:
    found = [n for n in ast.walk(tree) if isinstance(n, ast.IfExp)]
    return sum(any(isinstance(m, ast.IfExp) for m in ast.walk(n) if m is not n) for n in found)


def conditional_keywords(tree) -> int:
    "Calls with **(... if ... else ...)."
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    return sum(
        k.arg is None and any(isinstance(m, ast.IfExp) for m in ast.walk(k.value))
        for call in calls
        for k in call.keywords
    )


def mixed_imports(source, tree) -> bool:
    "Imports and other code in one shown cell: the documentation build would compute with it."
    if has_directive(source, 'export|exporti|exports|exec_doc') or 'nbdev_export()' in source:
        return False
    nodes = list(ast.walk(tree))
    imports = any(isinstance(n, IMPORTS) for n in nodes)
    return imports and any(not isinstance(n, IMPORTS) for n in tree.body)


def count_cells(root, add):
    "Rules about cells."
    for name, source in code_cells(root):
        exported = has_directive(source, 'export|exporti|exports')
        hidden = has_directive(source, 'hide|default_exp')
        kind = 'exported' if exported else 'shown'
        tree = parsed(source)
        add(f'lines over {COLUMNS} columns, {kind}', name, long_lines(source))
        add(f'lines with several statements, {kind}', name, crowded_lines(source))
        add('conditional inside a conditional', name, nested_conditionals(tree))
        add('keywords that depend on a condition', name, conditional_keywords(tree))
        add('imports and code in one cell', name, mixed_imports(source, tree))
        if exported:
            statements = sum(isinstance(n, ast.stmt) for n in ast.walk(tree))
            add(f'exported cell over {STATEMENTS} statements', name, statements > STATEMENTS)
        elif not hidden:
            add(f'shown cell over {SHOWN} characters', name, len(source) > SHOWN)


def prose_words(cells) -> int:
    "Words of the Markdown cells, without code, formulas, targets of links and tags."
    text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    noise = r'```.*?```|\$\$.*?\$\$|\$[^$\n]+\$|`[^`\n]*`|\]\([^)]*\)|<[^>]+>'
    return len(re.findall(r"[^\W\d_][\w'’-]*", re.sub(noise, ' ', text, flags=re.S)))


def exported_lines(cells) -> list:
    "Lines of every exported cell that are not blank, without its directives."
    code = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    code = [s for s in code if has_directive(s, 'export|exporti|exports')]
    kept = [[line for line in s.split('\n') if not re.match(r'#\s*\|', line)] for s in code]
    return [sum(bool(line.strip()) for line in lines) for lines in kept]


def count_prose(root, add):
    "Rules about prose beside the code."
    for path in sorted((root / 'nbs').rglob('*.ipynb')):
        if {'results', '.ipynb_checkpoints'} & set(path.parts):
            continue
        name = path.relative_to(root / 'nbs').as_posix()
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        lines = exported_lines(cells)
        lacking = WORDS * sum(lines) - prose_words(cells)
        add(f'words of prose lacking, {WORDS} for an exported line', name, max(0, lacking))
        add(f'exported cell over {LINES} lines', name, sum(n > LINES for n in lines))


def guesses(tree) -> int:
    "hasattr and getattr on a bridge, a denoiser, a network or a field."
    found = 0
    for node in ast.walk(tree):
        name = getattr(node.func, 'id', '') if isinstance(node, ast.Call) else ''
        if name in ('hasattr', 'getattr'):
            found += bool(OURS & set(ast.unparse(node.args[0]).split('.')))
    return found


def function_lines(function) -> int:
    "Lines of a function from its `def` to its last one, as a stranger counts them."
    return function.end_lineno - function.lineno + 1


def parameters(function) -> int:
    a = function.args
    names = [p.arg for p in a.posonlyargs + a.args + a.kwonlyargs]
    return len([n for n in names if n not in ('self', 'cls')])


def count_modules(root, add):
    "Rules about the exported package."
    homes = defaultdict(set)
    for module, source in modules(root):
        tree = ast.parse(source)
        add('guesses what an object of ours can do', module, guesses(tree))
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                homes[node.name].add(module)
            if isinstance(node, ast.FunctionDef) and node.args.args:
                outside = node.args.args[0].arg == 'self'
                add('function outside a class that takes self', module, outside)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                place = f'{module} {node.name}'
                add(f'function over {FUNCTION} lines', place, function_lines(node) > FUNCTION)
                add(f'function over {PARAMETERS} parameters', module, parameters(node) > PARAMETERS)
    for name, where in homes.items():
        add('one name in several modules', f'{name}: {" ".join(sorted(where))}', len(where) > 1)


def count(root=ROOT) -> dict:
    "rule -> Counter of places."
    found = defaultdict(Counter)

    def add(rule, place, n):
        found[rule][place] += int(n)

    count_cells(root, add)
    count_prose(root, add)
    count_modules(root, add)
    return {rule: +places for rule, places in sorted(found.items())}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--write', action='store_true', help='lower the counts that are kept')
    parser.add_argument('--root', type=Path, default=ROOT, help='the project (default: this one)')
    args = parser.parse_args(argv)
    found = count(args.root)
    for rule, places in found.items():
        worst = ', '.join(f'{place} {n}' for place, n in places.most_common(3))
        print(f'{places.total():6d}  {rule:48s} {worst}')
    if args.write:
        kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        now = {rule: places.total() for rule, places in found.items()}
        raised = [rule for rule, n in now.items() if n > kept.get(rule, n)]
        if raised:
            print('these rose, nothing is written: ' + '; '.join(raised), file=sys.stderr)
            return 1
        KEPT.write_text(json.dumps(now, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())

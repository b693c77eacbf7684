"""What the site makes of the cells of experiments and results: results first, code folded away."""

import ast
import posixpath
import re

import nbformat

OBJECT = re.compile(r'\[?(<[A-Za-z_][\w.]*(?: object)?(?: at 0x[0-9a-f]+)?>[,\s]*)+\]?')
HELPERS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def is_repr(data) -> bool:
    "Whether an output only says that there is an object, as `<matplotlib.legend.Legend>`."
    text = ''.join(data.get('text/plain', '')).strip()
    return set(data) == {'text/plain'} and bool(OBJECT.fullmatch(text))


def is_helper(source) -> bool:
    "A cell of imports, functions, classes and settings: nothing in it computes a result."
    try:
        body = ast.parse(re.sub(r'^\s*[%!].*', 'pass', source, flags=re.M)).body
    except SyntaxError:
        return False
    settings = [n for n in body if isinstance(n, ast.Assign)]
    plain = all(isinstance(n, (*HELPERS, ast.Assign)) for n in body)
    return plain and not any(isinstance(m, ast.Call) for n in settings for m in ast.walk(n))


def box(sources):
    "The code of neighbouring cells in one box that opens."
    source = '\n\n\n'.join(sources)
    lines = source.count('\n') + 1
    ticks = '`' * (4 if '```' in source else 3)
    said = 'Code, 1 line' if lines == 1 else f'Code, {lines} lines'
    head = f'<details class="code"><summary>{said}</summary>'
    return nbformat.v4.new_markdown_cell(
        f'{head}\n\n{ticks}python\n{source}\n{ticks}\n\n</details>'
    )


def folded(cells) -> list:
    """The cells of an experiment with helpers folded; where results are stored, all code that shows
    none.
    """
    results = any(c.get('outputs') for c in cells)
    out, waiting = [], []
    for cell in cells:
        code = cell.cell_type == 'code' and 'remove_input' not in cell.metadata.get('tags', ())
        quiet = results and not cell.get('outputs')
        hidden = code and (quiet or is_helper(cell.source))
        if hidden:
            waiting.append(cell.source)
            cell.metadata = {'tags': ['remove_input']}
        if waiting and (not hidden or cell.get('outputs')):
            out.append(box(waiting))
            waiting = []
        if not hidden or cell.get('outputs'):
            out.append(cell)
    return out + ([box(waiting)] if waiting else [])


def lead(cells, name, pages) -> list:
    "The cells of an experiment that stores no output, with a line that says where its results are."
    stem = posixpath.basename(name)[:-6]
    if '/results/' in name or any(c.get('outputs') for c in cells):
        return cells
    found = sorted(p for p in pages if re.match(rf'experiments/results/{stem}(-[^/]*)?\.ipynb$', p))
    links = [f'[{posixpath.basename(p)[:-6]}](results/{posixpath.basename(p)})' for p in found]
    text = f'Results: {", ".join(links)}.' if links else 'Not run at full size: this page shows'
    line = nbformat.v4.new_markdown_cell(text if links else f'{text} the code.')
    at = next((i for i, c in enumerate(cells) if c.source.startswith('# ')), 0)
    return [*cells[: at + 1], line, *cells[at + 1 :]]

"""The house rules that need no prose: exports in sync, notebooks clean, imports that point downwards, no traces of somebody's machine.

Every rule is a function that takes the root of a project and returns a list of complaints. It is asked twice: once about this project, where the list has to be
empty, and once about a small made project in which that very rule is broken, where it must not be. So no rule can rot into one that never complains.
"""

import ast, json, os, re, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAPERMILL = ('train.ipynb', 'evaluate.ipynb', 'translate.ipynb', 'experiments/*.ipynb')
MIN_WORDS, MAX_BYTES = 2, 1_500_000


# ---- reading a project


def tracked(root) -> list:
    """Files of the project as paths relative to `root`: what git has or would take; every file
    where there is no git.
    """
    if not (root / '.git').exists():
        return sorted(
            p.relative_to(root)
            for p in root.rglob('*')
            if p.is_file() and '__pycache__' not in p.parts
        )
    cmd = [
        'git',
        '-c',
        'safe.directory=*',
        'ls-files',
        '-z',
        '--cached',
        '--others',
        '--exclude-standard',
    ]
    done = subprocess.run(cmd, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, f'git ls-files failed in {root}: {done.stderr}'
    return sorted({Path(p) for p in done.stdout.split('\0') if p and (root / p).is_file()})


def copy_project(root, to) -> Path:
    for p in tracked(root):
        (to / p).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / p, to / p)
    return to


def tool(name, root):
    """Run one of nbdev's commands in `root`, with this interpreter's own nbdev and the modules of
    that project.
    """
    exe = Path(sys.executable).with_name(name)
    assert exe.is_file(), f'{exe} is missing: install the development requirements with `make env`'
    done = subprocess.run(
        [exe], cwd=root, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(root)}
    )
    assert done.returncode == 0, f'{name} failed:\n{done.stderr[-2000:]}'


def notebooks(root) -> list:
    return [p for p in tracked(root) if p.suffix == '.ipynb']


def load(path) -> dict:
    return json.loads(path.read_text(encoding='utf-8'))


def source(cell) -> str:
    return ''.join(cell['source'])


def exported(nb) -> list:
    "Sources of the exported cells, without their directive lines."
    cells = [source(c) for c in nb['cells'] if c['cell_type'] == 'code']
    cells = [s for s in cells if re.search(r'^#\s*\|\s*(export|exporti|exports)\b', s, re.M)]
    return [
        '\n'.join(l for l in s.split('\n') if not re.match(r'#\s*\|', l)).strip('\n') for s in cells
    ]


def module_of(nb):
    "The module a notebook exports to, or None."
    for c in nb['cells']:
        m = (
            re.search(r'^#\s*\|\s*default_exp\s+(\S+)', source(c), re.M)
            if c['cell_type'] == 'code'
            else None
        )
        if m:
            return m[1]


def words(nb) -> int:
    "Words of prose: markdown without code, formulas, links' targets and tags."
    text = '\n'.join(source(c) for c in nb['cells'] if c['cell_type'] == 'markdown')
    for noise in (
        r'```.*?```',
        r'\$\$.*?\$\$',
        r'\$[^$\n]+\$',
        r'`[^`\n]*`',
        r'\]\([^)]*\)',
        r'<[^>]+>',
    ):
        text = re.sub(noise, ' ', text, flags=re.S)
    return len(re.findall(r"[^\W\d_][\w'’-]*", text))


def papermill_notebooks(root) -> list:
    return sorted(p for pattern in PAPERMILL for p in (root / 'nbs').glob(pattern))


def tagged(nb) -> int:
    return sum('parameters' in c['metadata'].get('tags', []) for c in nb['cells'])


def imports(code, known) -> set:
    """Modules of this package that a piece of exported code imports, at its top or inside a
    function: `known` ones as they are called, others as they are written.
    """
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {a.name[7:] for a in node.names if a.name.startswith('xmodal.')}
        elif isinstance(node, ast.ImportFrom):
            inside = ['xmodal'] * bool(node.level) + [node.module] * bool(node.module)
            path = '.'.join(inside)
            if path == 'xmodal':
                found |= {a.name for a in node.names}
            elif path.startswith('xmodal.'):
                # from xmodal.data import cards: the module, if there is one of that name
                names = {f'{path[7:]}.{a.name}' for a in node.names}
                found |= (names & known) or {path[7:]}
    return found


# ---- the rules


def export_in_sync(root, tmp):
    """Exporting again gives the same xmodal/*.py, byte for byte; a module that no notebook exports
    would be missed.
    """
    copy = copy_project(root, tmp / 'copy')
    read = lambda r: {p.relative_to(r): p.read_bytes() for p in (r / 'xmodal').rglob('*.py')}
    for p in (copy / 'xmodal').rglob('*.py'):
        p.unlink()
    tool('nbdev_export', copy)
    old, new = {p: b for p, b in read(root).items() if p in tracked(root)}, read(copy)
    return [
        f'{p} is not what the notebooks export: run nbdev_export, and edit only notebooks'
        for p in sorted(old.keys() | new.keys())
        if old.get(p) != new.get(p)
    ]


def notebooks_clean(root, tmp):
    "nbdev_clean finds nothing to clean."
    copy = copy_project(root, tmp / 'copy')
    tool('nbdev_clean', copy)
    return [
        f'{p} is not clean: run nbdev_clean'
        for p in notebooks(root)
        if (root / p).read_bytes() != (copy / p).read_bytes()
    ]


def readme_in_sync(root, tmp):
    "README.md is what make_readme.py makes of the index."
    done = subprocess.run(
        [sys.executable, ROOT / 'tests/make_readme.py', '--check', '--root', root],
        capture_output=True,
        text=True,
    )
    return [done.stderr.strip()] if done.returncode else []


def imports_point_down(root, tmp):
    "Exported cells import only modules that a notebook with a lower number exports."
    number, complaints = {}, []
    numbered = re.compile(r'nbs/([a-z]+/)?\d\d_[^/]*$')
    nbs = {p: load(root / p) for p in notebooks(root) if numbered.match(p.as_posix())}
    for p, nb in nbs.items():
        module = module_of(nb)
        if module in number:
            complaints.append(f'{p}: module {module} is exported by another notebook too')
        if int(p.name[:2]) in number.values():
            complaints.append(f'{p}: another notebook has the number {p.name[:2]} too')
        if module:
            number[module] = int(p.name[:2])
    for p, nb in nbs.items():
        used_here = set().union(*(imports(code, set(number)) for code in exported(nb)))
        for used in sorted(used_here - {'__version__'}):  # nbdev writes it into __init__.py
            if used not in number:
                complaints.append(f'{p} imports xmodal.{used}, which no numbered notebook exports')
            elif number[used] >= int(p.name[:2]):
                complaints.append(
                    f'{p} imports xmodal.{used} of notebook {number[used]:02d}: only lower'
                    ' numbers may be imported'
                )
    return complaints


def papermill_ready(root, tmp):
    """Notebooks that papermill runs have one cell tagged `parameters`, else its -p is silently
    ignored, and the kernel python3.
    """
    complaints = []
    for path in papermill_notebooks(root):
        nb, name = load(path), path.relative_to(root)
        if tagged(nb) != 1:
            complaints.append(
                f'{name} has {tagged(nb)} cells tagged `parameters`, needs exactly one'
            )
        kernel = nb['metadata'].get('kernelspec', {}).get('name')
        if kernel != 'python3':
            complaints.append(f'{name} names the kernel {kernel!r}, needs python3')
    return complaints


def notebooks_parse(root, tmp):
    "Every code cell is Python (papermill notebooks are not run by nbdev_test)."
    complaints = []
    for p in notebooks(root):
        for c in load(root / p)['cells']:
            code = '\n'.join('' if re.match(r'\s*[%!]', l) else l for l in source(c).split('\n'))
            try:
                c['cell_type'] == 'code' and ast.parse(code)
            except SyntaxError as e:
                complaints.append(f'{p}: {e.msg} in the cell {source(c)[:50]!r}')
    return complaints


def imports_stand_alone(root, tmp):
    """No shown cell imports and computes: the documentation build runs every cell that imports, and
    would compute with it.
    """
    complaints = []
    for p in notebooks(root):
        for c in load(root / p)['cells']:
            if c['cell_type'] != 'code' or re.search(
                r'^#\s*\|\s*(export|exporti|exports|exec_doc)\b|^#\s*\|\s*eval:\s*false',
                source(c),
                re.M,
            ):
                continue
            if 'nbdev_export()' in source(c):
                continue  # the documentation build leaves it out
            code = '\n'.join(
                '' if re.match(r'\s*[%!]', line) else line for line in source(c).split('\n')
            )
            kinds = {type(node) for node in ast.walk(ast.parse(code))}
            if kinds & {ast.Import, ast.ImportFrom} and kinds & {ast.Expr, ast.Assign}:
                complaints.append(f'{p}: imports and other code in one cell: {source(c)[:50]!r}')
    return complaints


def parameters_survive(root, tmp):
    "nbdev_clean keeps the tag `parameters`: settings.ini allows it, and it is seen to."
    ini = ConfigParser(delimiters=['='])
    ini.read(root / 'settings.ini', encoding='utf-8')
    allowed = ini['DEFAULT'].get('allowed_cell_metadata_keys', '').split()
    complaints = (
        []
        if 'tags' in allowed
        else [f'settings.ini: allowed_cell_metadata_keys = {" ".join(allowed)} must hold tags']
    )
    copy = copy_project(root, tmp / 'copy')
    probe = notebook(('code', 'steps = 5', ['parameters']))
    (copy / 'nbs' / 'probe.ipynb').write_text(json.dumps(probe), encoding='utf-8')
    before = {
        p: tagged(load(p)) for p in [*papermill_notebooks(copy), copy / 'nbs' / 'probe.ipynb']
    }
    tool('nbdev_clean', copy)
    return complaints + [
        f'{p.relative_to(copy)} loses its tag `parameters` in nbdev_clean'
        for p, n in before.items()
        if tagged(load(p)) != n
    ]


def cells_have_names(root, tmp):
    "No two cells of a notebook share their id."
    complaints = []
    for p in notebooks(root):
        ids = [c.get('id') for c in load(root / p)['cells']]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        complaints += [f'{p}: two cells have the id {i}' for i in twice]
    return complaints


def figures_whole(root, tmp):
    """A figure is drawn in one cell: the notebook shows it at the end of the cell that opens it,
    and what a later cell adds is never seen.
    """
    complaints = []
    for p in notebooks(root):
        for c in load(root / p)['cells']:
            if c['cell_type'] != 'code':
                continue
            code = '\n'.join('' if re.match(r'\s*[%!]', l) else l for l in source(c).split('\n'))
            nodes = list(ast.walk(ast.parse(code)))
            parts = [n for n in nodes if isinstance(n, (ast.Attribute, ast.Subscript))]
            used = {n.value.id for n in parts if isinstance(n.value, ast.Name)}
            own = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            own |= {n.arg for n in nodes if isinstance(n, ast.arg)}
            if used & {'ax', 'axes', 'fig'} - own:
                complaints.append(f'{p}: goes on with the figure of another cell: {code[:50]!r}')
    return complaints


def literate(root, tmp):
    "Prose beside the code, and notebooks that GitHub still draws; test_style counts long cells."
    complaints = []
    for p in notebooks(root):
        nb, size = load(root / p), (root / p).stat().st_size
        n = sum(bool(l.strip()) for code in exported(nb) for l in code.split('\n'))
        if words(nb) < MIN_WORDS * n:
            complaints.append(
                f'{p}: {words(nb)} words of prose for {n} exported lines, at least'
                f' {MIN_WORDS} for each'
            )
        if size > MAX_BYTES:
            complaints.append(
                f'{p}: {size / 1e6:.1f} MB, at most {MAX_BYTES / 1e6} MB: draw figures at a'
                ' lower dpi'
            )
    return complaints


def no_traces(root, tmp):
    "No tracked file holds an absolute path of a machine on which the project was built."
    # spelt so that this file does not accuse itself
    places = '|'.join(['work', 'root', 'tmp' + '/w'])
    trace = re.compile(rf'(?<![\w./-])/(?:{places})/[\w.-]*')
    complaints = []
    for p in tracked(root):
        found = trace.search((root / p).read_bytes().decode('utf-8', errors='ignore'))
        if found:
            complaints.append(f'{p} holds the path {found[0]} of a build machine')
    return complaints


def test_cards_in_sync():
    "data/NAME.md are what the pages of the cards say."
    done = subprocess.run(
        [sys.executable, ROOT / 'tests/make_cards.py', '--check'], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


LIST_CARDS = """
import json, xmodal
from xmodal.data.cards import cards
print(json.dumps([xmodal.__file__, {k: card.markdown(k) for k, card in cards.items()}]))
"""


def test_wheel_holds_the_cards(tmp_path):
    "The pages travel in the wheel, and are found there even when it is not unpacked."
    copy = copy_project(ROOT, tmp_path / 'copy')  # so that no old build folder takes part
    cmd = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index']
    done = subprocess.run([*cmd, '-w', tmp_path, copy], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob('*.whl')
    pages = {p.name: p.read_bytes() for p in (ROOT / 'xmodal/data/pages').glob('*.md')}
    with zipfile.ZipFile(wheel) as z:
        held = {n: z.read(n) for n in z.namelist() if n.startswith('xmodal/data/pages/')}
    assert pages and held == {f'xmodal/data/pages/{name}': text for name, text in pages.items()}
    done = subprocess.run(
        [sys.executable, '-c', LIST_CARDS],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(wheel)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    where, texts = json.loads(done.stdout)
    assert where.startswith(str(wheel)) and {f'{name}.md' for name in texts} == set(pages)
    for name, text in texts.items():
        assert (ROOT / f'data/{name}.md').read_text(encoding='utf-8').endswith('-->\n\n' + text)


RULES = [
    export_in_sync,
    notebooks_clean,
    readme_in_sync,
    imports_point_down,
    papermill_ready,
    notebooks_parse,
    imports_stand_alone,
    cells_have_names,
    figures_whole,
    parameters_survive,
    literate,
    no_traces,
]


@pytest.mark.parametrize('rule', RULES, ids=lambda r: r.__name__)
def test_rule_holds(rule, tmp_path):
    complaints = rule(ROOT, tmp_path)
    assert not complaints, '\n' + '\n'.join(complaints)


# ---- light imports: the command line answers at once

HEAVY = ('torch', 'torchvision', 'diffusers', 'matplotlib', 'pandas')
HELP = """
sys.argv = ['xmodal', '--help']
try: runpy.run_module('xmodal.cli', run_name='__main__')
except SystemExit as e: assert not e.code, e.code
"""


def light(code, root=ROOT):
    """Run `code` in a fresh interpreter that sees the modules of `root`; it fails if anything heavy
    was imported.
    """
    code = (
        f'import runpy, sys\n{code}\nheavy = sorted(set({HEAVY}) & set(sys.modules)); assert not'
        ' heavy, heavy'
    )
    return subprocess.run(
        [sys.executable, '-c', code],
        cwd=root,
        env={**os.environ, 'PYTHONPATH': str(root)},
        capture_output=True,
        text=True,
    )


def test_import_is_light():
    done = light('import xmodal')
    assert done.returncode == 0, done.stderr


needs_cli = pytest.mark.skipif(
    not (ROOT / 'xmodal/cli.py').is_file(), reason='xmodal/cli.py does not exist yet'
)


@needs_cli
def test_import_cli_is_light():
    done = light('import xmodal, xmodal.cli')
    assert done.returncode == 0, done.stderr


@needs_cli
def test_help_is_light():
    done = light(HELP)
    assert done.returncode == 0, done.stderr
    assert 'usage' in done.stdout.lower(), f'--help printed no usage: {done.stdout[:300]!r}'


@pytest.mark.parametrize('heavy', ['', 'torch', 'diffusers'])
def test_a_heavy_import_is_noticed(heavy, tmp_path):
    (tmp_path / 'xmodal').mkdir()
    (tmp_path / 'xmodal/__init__.py').write_text('')
    if heavy:
        (tmp_path / f'{heavy}.py').write_text('')  # a stand-in: only its name counts
    (tmp_path / 'xmodal/cli.py').write_text(f"""
def main():
    import argparse, {heavy or 'sys'}
    argparse.ArgumentParser().parse_args()
if __name__ == '__main__': main()
""")
    assert light('import xmodal, xmodal.cli', tmp_path).returncode == 0  # only main() imports it
    done = light(HELP, tmp_path)
    assert (done.returncode != 0) == bool(heavy) and heavy in done.stderr and 'usage' in done.stdout
    (tmp_path / 'xmodal/__init__.py').write_text(f'import {heavy or "sys"}')
    assert (light('import xmodal', tmp_path).returncode != 0) == bool(heavy)


# ---- every rule seen red: a small project that keeps them all, and one way to break each


def notebook(*cells, kernel='python3') -> dict:
    "A notebook of (kind, source[, tags]) cells in the form that nbdev_clean leaves behind."
    made = []
    for i, (kind, text, *tags) in enumerate(cells):
        cell = dict(
            cell_type=kind,
            id=f'{i:08x}',
            metadata=dict(tags=tags[0]) if tags else {},
            source=text.splitlines(True),
        )
        made.append({**cell, **(dict(execution_count=None, outputs=[]) if kind == 'code' else {})})
    spec = dict(display_name=kernel, language='python', name=kernel)
    return dict(cells=made, metadata=dict(kernelspec=spec), nbformat=4, nbformat_minor=5)


PROSE = (
    'This sentence is here so that there are more words than lines of code, which it takes quite a'
    ' few of.'
)


def write(root, name, *cells, **kw):
    (root / 'nbs' / name).write_text(json.dumps(notebook(*cells, **kw)), encoding='utf-8')


def module(root, name, code, prose=PROSE):
    write(
        root,
        name,
        ('markdown', f'# {name}\n\n> One line.\n\n{prose}'),
        ('code', f'#| default_exp {name[3:-6]}'),
        ('code', f'#| export\n{code}'),
    )


@pytest.fixture(scope='session')
def template(tmp_path_factory):
    "Two modules, an index, a papermill notebook; exported, cleaned, with a README."
    root = tmp_path_factory.mktemp('template')
    (root / 'nbs/images').mkdir(parents=True)
    (root / 'xmodal').mkdir()
    for f in ('settings.ini', 'setup.py'):
        shutil.copyfile(ROOT / f, root / f)
    (root / 'nbs/images/a.png').write_bytes(b'not really')
    module(root, '00_low.ipynb', 'def one(): return 1')
    module(root, '10_high.ipynb', 'from xmodal.low import one\ndef two(): return one() + one()')
    write(
        root,
        'index.ipynb',
        ('markdown', '# small\n\nSee [low](00_low.ipynb#small) and ![a](images/a.png).'),
        ('code', '#| hide\nsecret = 1'),
        ('code', '#| eval: false\nshown = 2'),
    )
    write(root, 'train.ipynb', ('code', 'steps = 5', ['parameters']), ('code', 'print(steps)'))
    tool('nbdev_export', root)
    tool('nbdev_clean', root)
    subprocess.run([sys.executable, ROOT / 'tests/make_readme.py', '--root', root], check=True)
    return root


@pytest.fixture
def small(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / 'small'))


def edit(path, old, new):
    text = path.read_text(encoding='utf-8')
    assert old in text, f'{old!r} is not in {path}'
    path.write_text(text.replace(old, new), encoding='utf-8')


def set_metadata(path, **md):
    nb = load(path)
    nb['cells'][0]['metadata'].update(md)
    path.write_text(json.dumps(nb, indent=1) + '\n', encoding='utf-8')


BREAKS = [
    (export_in_sync, 'low.py', lambda r: edit(r / 'xmodal/low.py', 'return 1', 'return 2')),
    (
        export_in_sync,
        'high.py',
        lambda r: edit(r / 'nbs/10_high.ipynb', 'one() + one()', '2*one()'),
    ),
    (export_in_sync, 'orphan.py', lambda r: (r / 'xmodal/orphan.py').write_text('x = 1\n')),
    (export_in_sync, 'low.py', lambda r: (r / 'xmodal/low.py').unlink()),
    (
        notebooks_clean,
        '00_low.ipynb',
        lambda r: set_metadata(r / 'nbs/00_low.ipynb', scrolled=True),
    ),
    (
        notebooks_clean,
        'train.ipynb',
        lambda r: edit(r / 'nbs/train.ipynb', '"execution_count": null', '"execution_count": 7'),
    ),
    (readme_in_sync, 'out of date', lambda r: edit(r / 'nbs/index.ipynb', 'See', 'Look at')),
    (readme_in_sync, 'out of date', lambda r: edit(r / 'README.md', 'See', 'Look at')),
    (readme_in_sync, 'out of date', lambda r: (r / 'README.md').unlink()),
    (
        readme_in_sync,
        'there is no nbs/01_gone.ipynb',
        lambda r: edit(r / 'nbs/index.ipynb', '00_low.ipynb', '01_gone.ipynb'),
    ),
    (
        imports_point_down,
        'xmodal.high of notebook 10',
        lambda r: module(r, '00_low.ipynb', 'from xmodal.high import two'),
    ),
    (
        imports_point_down,
        'xmodal.high of notebook 10',
        lambda r: module(r, '00_low.ipynb', 'def f():\n    import xmodal.high as h\n    return h'),
    ),
    (
        imports_point_down,
        'xmodal.high of notebook 10',
        lambda r: module(r, '00_low.ipynb', 'def f():\n    from . import high\n    return high'),
    ),
    (
        imports_point_down,
        'xmodal.high of notebook 10',
        lambda r: module(r, '10_high.ipynb', 'from .high import two'),
    ),
    (
        imports_point_down,
        'no numbered notebook',
        lambda r: module(r, '10_high.ipynb', 'from xmodal import nowhere'),
    ),
    (
        imports_point_down,
        'another notebook too',
        lambda r: shutil.copyfile(r / 'nbs/10_high.ipynb', r / 'nbs/11_high.ipynb'),
    ),
    (papermill_ready, '0 cells tagged', lambda r: write(r, 'train.ipynb', ('code', 'steps = 5'))),
    (
        papermill_ready,
        '2 cells tagged',
        lambda r: write(r, 'evaluate.ipynb', *[('code', 'steps = 5', ['parameters'])] * 2),
    ),
    (
        papermill_ready,
        "kernel 'conda-me'",
        lambda r: write(r, 'translate.ipynb', ('code', 'x = 1', ['parameters']), kernel='conda-me'),
    ),
    (
        papermill_ready,
        'experiments',
        lambda r: (
            (r / 'nbs/experiments').mkdir(),
            write(r, 'experiments/table1.ipynb', ('code', 'steps = 5')),
        ),
    ),
    (
        notebooks_parse,
        'train.ipynb',
        lambda r: write(r, 'train.ipynb', ('code', "steps = f'a\n'", ['parameters'])),
    ),
    (
        imports_stand_alone,
        '20_x.ipynb: imports and other code',
        lambda r: write(r, '20_x.ipynb', ('code', 'import os\nx = os.sep')),
    ),
    (
        imports_stand_alone,
        '20_x.ipynb: imports and other code',
        lambda r: write(r, '20_x.ipynb', ('code', '#| hide\nimport os\nprint(os.sep)')),
    ),
    (
        cells_have_names,
        '20_x.ipynb: two cells have the id',
        lambda r: (
            write(r, '20_x.ipynb', ('code', 'x = 1'), ('code', 'y = 2')),
            edit(r / 'nbs/20_x.ipynb', '"00000001"', '"00000000"'),
        ),
    ),
    (
        figures_whole,
        '20_x.ipynb: goes on with the figure of another cell',
        lambda r: write(
            r, '20_x.ipynb', ('code', 'fig, ax = made()'), ('code', "ax.set(xlabel='dB')")
        ),
    ),
    (
        parameters_survive,
        'must hold tags',
        lambda r: edit(
            r / 'settings.ini', 'allowed_cell_metadata_keys = tags', 'allowed_cell_metadata_keys ='
        ),
    ),
    (
        parameters_survive,
        'train.ipynb loses',
        lambda r: edit(r / 'settings.ini', 'allowed_cell_metadata_keys = tags', ''),
    ),
    (
        literate,
        'words of prose for 40',
        lambda r: module(r, '00_low.ipynb', '\n'.join(f'x{i} = {i}' for i in range(40))),
    ),
    (literate, 'MB', lambda r: write(r, '00_low.ipynb', ('markdown', 'x' * 1_600_000))),
    (
        no_traces,
        'build machine',
        lambda r: (r / 'notes.txt').write_text('loaded /wo' + 'rk/main/model.pt'),
    ),
    (
        no_traces,
        'build machine',
        lambda r: write(r, '20_x.ipynb', ('code', 'open("/ro' + 'ot/x.txt")')),
    ),
]


@pytest.mark.parametrize(
    'rule, says, harm', BREAKS, ids=[f'{r.__name__}-{i}' for i, (r, _, _) in enumerate(BREAKS)]
)
def test_broken_rule_is_noticed(rule, says, harm, small, tmp_path):
    harm(small)
    complaints = rule(small, tmp_path)
    assert any(says in c for c in complaints), complaints


def test_small_project_keeps_every_rule(small, tmp_path):
    for rule in RULES:
        assert rule(small, tmp_path / rule.__name__) == []


def test_readme_text(small):
    text = (small / 'README.md').read_text(encoding='utf-8')
    assert '[low](nbs/00_low.ipynb#small)' in text and '![a](nbs/images/a.png)' in text
    assert 'secret' not in text and '#|' not in text and '```python\nshown = 2\n```' in text


PICTURE = dict(
    output_type='display_data',
    metadata={},
    data={'image/png': 'aGVsbG8=', 'text/plain': ['<Figure>']},
)
FAILURE = dict(output_type='error', ename='KeyError', evalue='x', traceback=[])
TABLE = dict(
    output_type='execute_result',
    execution_count=None,
    metadata={},
    data={'text/html': ['<style scoped>\n.a {}\n</style>\n<table></table>'], 'text/plain': ['t']},
)
PROGRESS = dict(output_type='stream', name='stderr', text=['50%'])


@pytest.mark.parametrize(
    'source, output, says',
    [
        ('plot()', PICTURE, 'save it under nbs/images/'),
        ('fail()', FAILURE, 'ended with KeyError'),
        ('#| hide\nplot()', PICTURE, ''),
        ('#| output: false\nplot()', PICTURE, ''),
    ],
)
def test_readme_outputs(source, output, says, small, tmp_path):
    nb = notebook(
        ('markdown', '# small'),
        ('code', source),
        ('code', 'a = 1'),
        ('code', '#| echo: false\nb = 2'),
    )
    nb['cells'][1]['outputs'] = [output]
    nb['cells'][2]['outputs'] = [PROGRESS, TABLE]
    nb['cells'][3]['outputs'] = [dict(output_type='stream', name='stdout', text=['seen'])]
    (small / 'nbs/index.ipynb').write_text(json.dumps(nb))
    done = subprocess.run(
        [sys.executable, ROOT / 'tests/make_readme.py', '--root', small],
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == bool(says)
        and says in done.stderr
        and len(done.stderr.splitlines()) == bool(says)
    )
    if says:
        return
    text = (small / 'README.md').read_text(encoding='utf-8')
    assert '<table>' in text and '    seen' in text
    assert not any(s in text for s in ('style', '50%', 'b = 2', 'hello', 'png', '#|'))


def test_urls_are_not_accused(small, tmp_path):
    (small / 'notes.txt').write_text(
        'https://example.org/work/paper, home/root/x and net' + 'work/y'
    )
    assert no_traces(small, tmp_path) == []

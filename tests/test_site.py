"""The documentation: nbdev's own stage over all notebooks, and a site made of a small project, seen red in every way it can fail.

The whole site is built by `make html`; here the slow half of it, the stage, runs on a copy of this project, and mkdocs on a small one.
"""

import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import numpy as np
import pytest

from xmodal.explain import passes_on

sys.path.insert(0, str(Path(__file__).resolve().parent))

import make_site
import site_cells
import site_reference
from make_readme import Problem
from test_project import ROOT, copy_project, template, write  # noqa: F401  (template is a fixture)


@pytest.fixture
def small(template, tmp_path):  # noqa: F811
    return Path(shutil.copytree(template, tmp_path / 'small'))


def test_the_documentation_stage_runs_over_all_notebooks(tmp_path):
    copy, docs = copy_project(ROOT, tmp_path / 'copy'), tmp_path / 'docs'
    docs.mkdir()
    nav = make_site.pages(copy, docs)  # stops if a cell raises, mixes, or a link is dead
    made = {p.relative_to(docs) for p in docs.rglob('*.ipynb')}
    read = {
        p.relative_to(ROOT / 'nbs')
        for p in (ROOT / 'nbs').rglob('*.ipynb')
        if '.ipynb_checkpoints' not in p.parts
    }
    assert made == read | {Path('reference.ipynb')}  # the list of names is made, not read
    assert [next(iter(chapter)) for chapter in nav][:4] == [
        'Start',
        'Guide',
        'Basics',
        'Bridges',
    ]
    text = (docs / 'bridges/10_bridge.ipynb').read_text(encoding='utf-8')
    assert 'id=\\"diffuse\\"' in text and '#|' not in text and '_modidx' not in text


def mixed(root):
    write(
        root,
        '20_x.ipynb',
        ('markdown', '# x'),
        ('code', '#| export\ny = 1'),
        ('code', 'import os\nz = os.sep'),
    )


def raises(root):
    write(root, '20_x.ipynb', ('markdown', '# x'), ('code', '#| export\ny = 1/0'))


def dead(root):
    write(
        root,
        '20_x.ipynb',
        ('markdown', '# x\n\n> x\n\ntext'),
        ('markdown', '[gone](21_gone.ipynb)'),
    )


def homeless(root):
    write(root, 'stray.ipynb', ('markdown', '# stray'), ('code', '1'))


HARMS = [
    (mixed, 'mixes imports and other code'),
    (raises, 'y = 1/0'),
    (dead, 'there is no nbs/21_gone.ipynb'),
    (homeless, 'in no chapter of the site'),
]


@pytest.mark.parametrize('harm, says', HARMS, ids=[h.__name__ for h, _ in HARMS])
def test_a_fault_stops_the_documentation(harm, says, small, tmp_path):
    harm(small)
    (tmp_path / 'docs').mkdir()
    with pytest.raises(Problem, match=re.escape(says)):
        make_site.pages(small, tmp_path / 'docs')


def test_a_small_site_stands_by_itself(small):
    cells = [('code', '#| hide\nsecret = 1'), ('code', '#| eval: false\nshown = 2')]
    write(
        small,
        'index.ipynb',
        ('markdown', '# small\n\nSee [low](00_low.ipynb) and ![a](images/a.png): $x^2$.'),
        *cells,
    )
    make_site.build(small, small / '_docs')
    page = (small / '_docs/00_low.html').read_text(encoding='utf-8')
    start = (small / '_docs/index.html').read_text(encoding='utf-8')
    assert (small / '_docs/mathjax/MathJax.js').is_file() and 'mathjax/MathJax.js?config=' in page
    assert '>one' in page and '#|' not in page and 'secret' not in start and 'shown' in start
    assert 'href="00_low.html"' in start and (small / '_docs/images/a.png').is_file()
    assert (small / '_docs/search/search_index.json').is_file()
    # MathJax's copy for screen readers would ask for fonts under names that are not here
    assert 'math [mathvariant]' in (small / '_docs/more.css').read_text(encoding='utf-8')
    assert 'api.github.com' not in page and 'data-md-component="source"' not in page
    (small / '_docs/10_high.html').unlink()
    assert any(
        '10_high.html: there is no such file' in c for c in make_site.dead_links(small / '_docs')
    )
    shutil.copyfile(small / '_docs/00_low.html', small / '_docs/10_high.html')
    with open(small / '_docs/10_high.html', 'a', encoding='utf-8') as f:
        f.write('<script src="https://cdn.example.org/x.js"></script><a href="#nowhere">x</a>')
    found = '\n'.join(make_site.dead_links(small / '_docs'))
    assert (
        'loads https://cdn.example.org/x.js' in found
        and '#nowhere: there is no such place' in found
    )


@pytest.mark.parametrize('path', sorted((ROOT / 'nbs').rglob('*.ipynb')), ids=lambda p: p.stem)
def test_no_page_has_a_heading_twice(path):
    "Of two equal headings the site knows one place only, and its list of contents links to both."
    heads, fenced = [], False
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        for line in ''.join(cell['source']).splitlines() if cell['cell_type'] == 'markdown' else ():
            fenced ^= line.startswith('```')
            if not fenced and (head := re.match(r'#+ (.*)', line)):
                heads.append(re.sub(r'\W+', '-', head[1].lower()).strip('-'))
    assert len(heads) == len(set(heads)), heads


# --- what the site says about names


class Sample:
    "A thing."

    def __init__(
        self,
        size: int = 3,  # of its side | in pixels
    ):
        self.size = size

    def grow(
        self,
        by,  # factor of `size`
        *more,  # further *factors*
    ) -> float:  # the new size
        "Make it larger."
        return self.size * by

    @classmethod
    def of(
        cls,
        text,  # its size
    ):
        "Read one."
        return cls(int(text))

    def _hidden(self):
        "Not shown."


class Larger(Sample):
    "One that has its methods from another."


def test_every_argument_and_every_public_method_is_described():
    text = site_reference.entry(Sample, 'Sample')['text']
    assert 'Sample(size: int = 3)\n' in text
    assert '| `size` | `3` | of its side \\| in pixels |' in text
    methods = site_reference.entry(Sample, 'Sample')['methods']
    assert list(methods) == ['grow', 'of'] and methods['of']['line'] == 'Read one.'
    grow = methods['grow']['text']
    assert 'Sample.grow(by, *more) -> float\n' in grow and '| `by` |  | factor of `size` |' in grow
    assert '| `*more` |  | further \\*factors\\* |' in grow and 'Returns: the new size' in grow
    larger = site_reference.entry(Larger, 'Larger')
    assert 'Larger(size: int = 3)' in larger['text']
    assert 'From `Sample`: `Sample.grow`, `Sample.of`.' in larger['text']


def test_options_that_are_handed_on_stand_in_the_table_and_not_in_the_call():
    def inner(
        width=2,  # of a line
    ):
        "Draw."

    @passes_on(inner, {'tone': 'of the line'})
    def outer(
        name,  # of a picture
        **options,  # of `inner`
    ):
        "Draw by name."

    text = site_reference.described(outer, 'outer')['text']
    assert 'outer(name, *, width=2, **options)\n' in text and '...' not in text
    assert (
        '| `width` | `2` | of a line |' in text and '| `tone` | `depends` | of the line |' in text
    )
    assert 'Args:' not in text and '| `**options` |  | of `inner` |' in text


@dataclass
class Record:
    "Has a default of every kind."

    names: dict = field(default_factory=dict)  # name -> text
    places: object = field(default_factory=lambda: np.zeros(2))  # mm
    size: int = 3  # pixels


def test_a_default_that_is_made_anew_is_shown_as_what_it_is():
    def work(
        first=Record(),  # one
        second=Record(size=5),  # another
        change=lambda v: v,  # of a value
        part=slice(None),  # of the lines
    ):
        "Do it."

    text = site_reference.described(Record, 'Record')['text']
    assert 'names: dict = {}, places: object = [0.0, 0.0], size: int = 3)' in text
    assert '| `names` | `{}` | name -> text |' in text
    text = site_reference.described(work, 'work')['text']
    assert '| `first` | `Record()` |' in text and '| `second` | `Record(size=5)` |' in text
    assert '| `change` | `lambda v: v` |' in text and '| `part` | `slice(None)` |' in text


@pytest.fixture(scope='module')
def found():
    return make_site.reference(ROOT)


def test_the_arguments_of_the_package_have_words(found):
    names = found['names']
    parts = {n: one for n, one in names.items()}
    parts |= {f'{n}.{m}': p for n, one in names.items() for m, p in one['methods'].items()}
    rows = [(name, a, said) for name, p in parts.items() for a, said in p.get('rows', ())]
    lacking = [f'{name}: {argument}' for name, argument, said in rows if not said]
    assert len(rows) > 8000 and not lacking, lacking
    translate = names['Translator']['methods']['translate']['text']
    assert '| `samples` | `1` | so many translations' in translate
    empty = re.compile(r': Unsaid| at 0x|<factory>|<lambda>|` \| `new` \|')
    assert not [name for name, p in parts.items() if empty.search(p['text'])]
    said = make_site.Links(ROOT, make_site.notebooks(ROOT), found).said
    assert {'Translator', 'make_bridge', 'Translator.translate'} <= said
    everyday = {'residual', 'linear', 'folds', 'scratch', 'small', 'mean_spread', 'at', 'At.x'}
    assert not said & everyday


def test_a_list_of_names_leads_to_each(found):
    links = make_site.Links(ROOT, make_site.notebooks(ROOT), found)
    text = '\n'.join(c.source for c in make_site.list_of_names(links).cells)
    assert '#class-difficulty)' in text and '#difficulty)' in text
    assert '- [`Translator.maps`](use/85_translate.html#translator.maps): ' in text
    assert all(f'- [`{name}`](' in text for name in found['names'])


# --- links


@pytest.fixture
def links():
    one = dict(text='x', line='x', methods={'go': dict(text='', line='')}, module='xmodal.low')
    names = {n: one | dict(page='basics/00_low.ipynb') for n in ('Job', 'two_words', 'small')}
    pages = ['basics/00_low.ipynb', 'use/81_job.ipynb', 'index.ipynb']
    return make_site.Links(ROOT, pages, dict(names=names, words=['residual']))


def test_only_words_that_are_names_become_links(links):
    text = 'A `Job`, `two_words()`, `Job.go`, `small`, `residual`'
    made = links.with_names('use/81_job.ipynb', text)
    there = '../basics/00_low.html'
    assert f'[`Job`]({there}#job)' in made and f'[`Job.go`]({there}#job.go)' in made
    assert f'[`two_words()`]({there}#two_words)' in made and made.endswith('`small`, `residual`')
    for page in ('index.ipynb', 'guide/data.ipynb', 'experiments/results/x-y.ipynb'):
        assert links.with_names(page, text) == text
    links.twins.update(['job'])  # a function `job` beside the class
    assert f'[`Job`]({there}#class-job)' in links.with_names('use/81_job.ipynb', text)
    own = '[`Job`](81_job.html) and [the `Job` here](x.html)\n\n## `Job`\n\n```\n`Job`\n```'
    assert links.with_names('use/81_job.ipynb', own) == own


def test_a_link_shown_as_text_and_a_question_to_another_machine_are_found(tmp_path):
    (tmp_path / 'a.html').write_text('<p>See [Job](81_job.html).</p><script>"](x.html)"</script>')
    asks = '<a href="https://code.example.org/x" data-md-component="source">x</a>'
    (tmp_path / 'b.html').write_text(f'<p>{asks}</p>')
    assert make_site.dead_links(tmp_path) == [
        'a.html shows a link as text: [Job](81_job.html)',
        'b.html loads https://code.example.org/x',
    ]


# --- cells


def code(source, *outputs):
    return nbformat.v4.new_code_cell(source, outputs=list(outputs))


def shown(text):
    return nbformat.v4.new_output('display_data', {'text/plain': text})


def test_outputs_that_only_name_an_object_go():
    assert site_cells.is_repr({'text/plain': '<matplotlib.legend.Legend at 0x7f00>'})
    assert site_cells.is_repr({'text/plain': '[<matplotlib.lines.Line2D>]'})
    assert not site_cells.is_repr({'text/plain': '<b>3</b>'})
    assert not site_cells.is_repr({'text/plain': '<Figure>', 'image/png': ''})
    out = nbformat.v4.new_output('display_data', {'text/plain': '<matplotlib.legend.Legend>'})
    assert make_site.tidy_output(out) is None


def test_code_of_an_experiment_is_folded_where_it_shows_nothing():
    helper, quiet = code('import os\ndef f(): return 1'), code('x = f()\ny = x')
    result = code('print(x)', shown('1'))
    made = site_cells.folded([helper, quiet, result])
    assert [c.cell_type for c in made] == ['markdown', 'code']  # neighbours share a box
    assert '<summary>Code, 6 lines</summary>\n\n```python\nimport os' in made[0].source
    assert made[1].source == 'print(x)' and not made[1].metadata.get('tags')
    made = site_cells.folded([code('a = 3  # parameter'), code('x = f()')])  # nothing was run
    assert [c.cell_type for c in made] == ['markdown', 'code']


def test_an_experiment_without_output_says_where_its_results_are():
    title, pages = nbformat.v4.new_markdown_cell('# x'), ['experiments/results/two-el.ipynb']
    pages += ['experiments/two.ipynb', 'experiments/results/two_more-el.ipynb']
    lines = site_cells.lead([title, code('1')], 'experiments/two.ipynb', pages)
    assert lines[1].source == 'Results: [two-el](results/two-el.ipynb).'
    lines = site_cells.lead([title, code('1')], 'experiments/one.ipynb', pages)
    assert lines[1].source == 'Not run at full size: this page shows the code.'
    kept = [title, code('1', shown('1'))]
    assert site_cells.lead(kept, 'experiments/two.ipynb', pages) == kept


def test_figures_are_named_after_the_heading_above():
    lacks = '<img alt="No description has been provided for this image" src="x"/>'
    text = f'<h2 id="a">Draws &amp; <code>a</code><a href="#a">¶</a></h2>{lacks}<h2>B</h2>{lacks}'
    made = make_site.with_alt_texts(text)
    assert 'alt="Draws &amp; a: figure"' in made and 'alt="B: figure"' in made


def test_the_front_page_leads_to_what_was_measured():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert '[shipped](nbs/experiments/results/shipped-brain-t1w-t2w.ipynb)' in text


# --- in a browser

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser'))), None)
MEASURE = """
<script>
const wide = s => [...document.querySelectorAll(s)].map(e => [
  e.scrollWidth > e.clientWidth + 1, getComputedStyle(e).overflowX, getComputedStyle(e).whiteSpace,
  getComputedStyle(e).wordBreak])
const say = () => parent.postMessage(JSON.stringify({
  page: document.documentElement.scrollWidth, output: wide('.jp-RenderedText pre'),
  word: wide('td code'), table: wide('.md-typeset__scrollwrap, .jp-RenderedMarkdown table'),
  formula: wide('.MathJax_Display')}), '*')
MathJax.Hub.Queue(say)
</script>
"""


def measured(page, width) -> dict:
    "What MEASURE says about a page of a site in a window of this width."
    text = page.read_text(encoding='utf-8')
    page.write_text(text.replace('</body>', f'{MEASURE}</body>'), encoding='utf-8')
    frame = page.with_name('frame.html')
    takes = '<body><script>onmessage = e => { document.body.title = e.data }</script>'
    frame.write_text(f'{takes}<iframe src="{page.name}" width="{width}" height="900"></iframe>')
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--allow-file-access-from-files']
    flags += ['--virtual-time-budget=60000', f'--user-data-dir={page.parent / "browser"}']
    cmd = [CHROMIUM, *flags, '--dump-dom', frame.as_uri()]
    said = subprocess.run(cmd, capture_output=True, text=True, timeout=300).stdout
    return json.loads(html.unescape(re.search(r'<body title="([^"]*)"', said)[1]))


@pytest.mark.skipif(not CHROMIUM, reason='no Chromium found')
def test_what_is_wider_than_a_telephone_scrolls_inside_the_page(small):
    words = ' | '.join(f'`a_long_name_{i}`' for i in range(9))
    table = f'| {words} |\n|{" --- |" * 9}\n| {words} |'
    formula = '$$' + ' + '.join(f'a_{{{i}}}' for i in range(99)) + '$$'
    stored = dict(nbformat.v4.new_output('execute_result', {'text/plain': 'word ' * 99}))
    prose = ('markdown', f'# small\n\n{table}\n\n{formula}')
    write(small, 'index.ipynb', prose, ('code', '#| eval: false\nshown = 2'))
    path = small / 'nbs/index.ipynb'
    nb = json.loads(path.read_text(encoding='utf-8'))
    nb['cells'][1]['outputs'] = [stored | dict(execution_count=None)]
    path.write_text(json.dumps(nb), encoding='utf-8')
    make_site.build(small, small / '_docs')
    seen = measured(small / '_docs/index.html', 390)
    assert seen['page'] <= 390, seen
    assert seen['output'] == [[True, 'auto', 'pre', 'normal']]
    assert all(word[2:] == ['nowrap', 'normal'] for word in seen['word']) and seen['word']
    # Material puts a box around a table, which scrolls in its place
    assert [True, 'auto'] in [t[:2] for t in seen['table']], seen
    assert [f[:2] for f in seen['formula']] == [[True, 'auto']]

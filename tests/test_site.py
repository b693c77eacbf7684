"""The documentation: nbdev's own stage over all notebooks, and a site made of a small project, seen red in every way it can fail.

The whole site is built by `make html`; here the slow half of it, the stage, runs on a copy of this project, and mkdocs on a small one.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import make_site
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
    assert made == {
        p.relative_to(ROOT / 'nbs')
        for p in (ROOT / 'nbs').rglob('*.ipynb')
        if '.ipynb_checkpoints' not in p.parts
    }
    assert [next(iter(chapter)) for chapter in nav][:4] == [
        'Start',
        'Guide',
        'Basics',
        'Bridges',
    ]
    text = (docs / 'bridges/10_bridge.ipynb').read_text(encoding='utf-8')
    assert '### diffuse' in text and '#|' not in text and '_modidx' not in text


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

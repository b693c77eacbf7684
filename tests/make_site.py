"""Make the documentation site: every notebook as a page, formulas and search without a network.

    python tests/make_site.py            build _docs/ (open _docs/index.html)
    python tests/make_site.py --stage    only nbdev's documentation stage and the check of the links between notebooks

First nbdev's own stage runs (`proc_nbs`): imports and exported cells are executed, `show_doc` describes what is exported, hidden
cells go. Then mkdocs with mkdocs-jupyter draws the pages. MathJax comes from a Python package and lies in the site; a page never
asks another machine for anything. A link that leads nowhere, inside a notebook or in a finished page, ends the build.
"""

import argparse
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from importlib.metadata import files
from pathlib import Path
from urllib.parse import unquote

import nbformat
import yaml

from make_readme import CODE, DIRECTIVE, LINKS, Problem, directives

GUIDE = [
    'translating',
    'training',
    'data',
    'metadata',
    'evaluation',
    'methods',
    'results',
    'gallery',
    'claims',
    'notebooks',
]
CHAPTERS = [  # title, folder of the notebooks
    ('Guide', 'guide'),
    ('Basics', 'basics'),
    ('Bridges', 'bridges'),
    ('Simulators', 'simulators'),
    ('Data', 'data'),
    ('Networks', 'networks'),
    ('Metadata', 'metadata'),
    ('Training', 'training'),
    ('Evaluation', 'evaluation'),
    ('Use', 'use'),
]
MATHJAX = 'mathjax-of-this-site'
FONT = (
    '<script type="text/x-mathjax-config">MathJax.Hub.Config({"HTML-CSS": {availableFonts: [],'
    ' imageFont: null, '
    # the fonts that the package brings
    'preferredFont: null, webFont: "STIX-Web"}})</script>\n'
)
ENTRY = ['train.ipynb', 'evaluate.ipynb', 'translate.ipynb']
PAGES = {'Evaluation': ['evidence.ipynb']}  # pages of a chapter that have no number
MORE_CSS = """
.md-typeset .jp-RenderedHTMLCommon th, .md-typeset table:not([class]) th { min-width: 0 }
.md-typeset table:not([class]) th, .md-typeset table:not([class]) td { padding: .35em .7em }
.jupyter-wrapper .jp-RenderedText pre { white-space: pre; overflow-x: auto }
.jupyter-wrapper .jp-OutputArea-output td { white-space: nowrap }
.md-grid { max-width: 76rem }
.jupyter-wrapper .jp-RenderedHTMLCommon, .jupyter-wrapper .jp-Cell { max-width: 100% }
.jupyter-wrapper .jp-OutputArea-output { overflow-x: auto; max-height: none }
.jupyter-wrapper .jp-RenderedMarkdown { overflow-x: auto; overflow-y: hidden }
.MathJax, .MathJax *, .MathJax_Display * { box-sizing: content-box }
.jupyter-wrapper img { max-width: 100%; height: auto }
.jupyter-wrapper .MathJax_Display, .jupyter-wrapper .MJXc-display { overflow-x: auto; overflow-y: hidden }
.jupyter-wrapper .jp-RenderedHTMLCommon table { display: block; overflow-x: auto; width: fit-content; max-width: 100% }
"""


def settings(root) -> dict:
    "settings.ini as nbdev reads it."
    from fastcore.foundation import Config

    return Config(root, 'settings.ini').d


def stage(root):
    """nbdev's documentation stage over all notebooks of `root`, always from the beginning; the
    folder it wrote.
    """
    code = (
        'from nbdev.serve import proc_nbs\n'
        'if __name__ == "__main__": proc_nbs("nbs", n_workers=2, force=True)\n'
    )
    env = {**os.environ, 'PYTHONPATH': str(root), 'MPLBACKEND': 'agg', 'OMP_NUM_THREADS': '1'}
    with tempfile.TemporaryDirectory() as tmp:
        script = Path(tmp) / 'stage.py'
        script.write_text(code, encoding='utf-8')
        done = subprocess.run(
            [sys.executable, script], cwd=root, env=env, capture_output=True, text=True
        )
    if done.returncode:
        raise Problem(f'the documentation stage failed:\n{done.stderr[-3000:]}')
    if 'Found cells containing imports' in done.stderr:
        raise Problem(f'a cell mixes imports and other code:\n{done.stderr[-3000:]}')
    return root / '_proc'


def front(cell) -> dict:
    "The front matter that nbdev makes of a notebook's title and description."
    text = cell.source.strip()
    return (
        yaml.safe_load(text.strip('-'))
        if cell.cell_type == 'raw' and text.startswith('---')
        else {}
    )


def shown_doc(text) -> str:
    "The description of one function, without what only Quarto understands."
    text = re.sub(r'\A---\s*', '', text)
    return re.sub(r'(\[source\]\([^)]*\))\{[^}]*\}', r'\1', text)


def tidy_output(out):
    "An output as a page shows it, or None: no progress bars, no sliders."
    if out.output_type == 'stream':
        return None if out.name == 'stderr' else out
    data = out.get('data', {})
    if 'application/vnd.jupyter.widget-view+json' in data:
        return None
    if 'text/markdown' in data:
        data['text/markdown'] = shown_doc(''.join(data['text/markdown']))
    return out


def tidy_cell(cell):
    "A processed cell as a page shows it, or None."
    if cell.cell_type == 'raw' or cell.source.startswith('<!-- WARNING: THIS FILE'):
        return None
    if cell.cell_type != 'code':
        return cell
    marks = directives(cell)
    if 'hide' in marks or marks.get('include') == 'false':
        return None
    cell.source = '\n'.join(l for l in cell.source.split('\n') if not DIRECTIVE.match(l)).strip(
        '\n'
    )
    quiet = marks.get('output') == 'false'
    cell.outputs = [] if quiet else [o for o in map(tidy_output, cell.outputs) if o is not None]
    tags = ['remove_input'] if marks.get('echo') == 'false' else []
    cell.metadata = {'tags': tags}
    return cell if cell.outputs or (cell.source and not tags) else None


class Links:
    """Where the links of the notebooks lead: to pages, to files that are copied, or to the
    repository.
    """

    def __init__(self, root, pages):
        cfg = settings(root)
        self.root = root
        self.pages = set(pages)  # 'experiments/compare.ipynb'
        self.files = set()  # pictures to be copied
        self.home = f'{cfg["doc_host"] % cfg if "%" in cfg["doc_host"] else cfg["doc_host"]}{cfg["doc_baseurl"]}/'
        self.git = cfg['git_url']
        self.branch = cfg['branch']
        self.api = {re.sub(r'(^|/)\d\d_', r'\1', p)[:-6] + '.html': p for p in pages}

    def target(self, page, target) -> str:
        "The link as it stands in the finished page."
        here = posixpath.dirname(page) or '.'
        if target.startswith(self.home):  # nbdev's own link to a function's description
            path, _, anchor = target.removeprefix(self.home).partition('#')
            if path not in self.api:
                raise Problem(f'nbs/{page} links to {target}, which no notebook describes')
            name = anchor.lower().partition('.')[0]  # a method is described with its class
            return posixpath.relpath(self.api[path][:-6] + '.html', here) + f'#{name}' * bool(name)
        if re.match(r'[a-zA-Z][\w+.-]*:|//|/', target):
            return target
        path, _, anchor = target.partition('#')
        anchor = f'#{anchor.lower()}' * bool(anchor)
        if not path:
            return anchor
        path = posixpath.normpath(posixpath.join(here, unquote(path)))
        if path in self.pages:
            return posixpath.relpath(path[:-6] + '.html', here) + anchor
        found = self.root / 'nbs' / path
        if not found.exists():
            raise Problem(f'nbs/{page} links to {target}, but there is no nbs/{path}')
        if found.is_file() and not path.startswith('..'):
            self.files.add(path)
            return target
        kind = 'tree' if found.is_dir() else 'blob'
        place = posixpath.normpath(posixpath.join('nbs', path))
        return f'{self.git}/{kind}/{self.branch}/{place}'

    def text(self, page, text) -> str:
        "A piece of Markdown with its links rewritten; code is left alone."

        def one(match):
            return match[1] + self.target(page, match[2])

        parts = CODE.split(text)
        for link in LINKS:
            parts[::2] = [link.sub(one, part) for part in parts[::2]]
        return ''.join(parts)


def page_of(path, name, links):
    "A processed notebook as mkdocs-jupyter gets it, and its title."
    written = nbformat.read(links.root / 'nbs' / name, as_version=4)
    # not valid yet: nbdev's own marks
    nb = nbformat.from_dict(json.loads(path.read_text(encoding='utf-8')))
    for cell in nb.cells:
        cell.source = ''.join(cell.source)
        cell.pop('has_sd', None)
    head = next((f for f in map(front, nb.cells) if f), {})
    title = str(head.get('title', Path(name).stem))
    cells = [c for c in map(tidy_cell, nb.cells) if c is not None]
    for cell in cells:
        if cell.cell_type == 'markdown':
            cell.source = links.text(name, cell.source)
        for out in cell.get('outputs', []):
            if 'text/markdown' in out.get('data', {}):
                out.data['text/markdown'] = links.text(name, out.data['text/markdown'])
    if not any(c.cell_type == 'markdown' and c.source.startswith('# ') for c in cells):
        heads = [
            c.source
            for c in written.cells
            if c.cell_type == 'markdown' and c.source.startswith('# ')
        ]
        first = (heads or [f'# {title}'])[0]
        # nbdev drops the text below a title
        cells.insert(0, nbformat.v4.new_markdown_cell(links.text(name, first)))
    nb.cells = cells
    nb.metadata = {
        'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'},
        'language_info': {'name': 'python'},
    }
    return nb, title


def navigation(titles) -> list:
    """Chapters by the folders of the notebooks, with those that papermill runs; experiments,
    results.
    """
    left = dict(titles)

    def take(names, label=lambda name, title: title):
        return [{label(n, left.pop(n)): n} for n in names if n in left]

    nav = take(['index.ipynb'], lambda name, title: 'Start')
    flat = take(sorted(n for n in left if re.match(r'\d\d_[^/]*$', n)))
    nav += [{'Notebooks': flat}] * bool(flat)  # numbered ones outside of every chapter's folder
    for chapter, folder in CHAPTERS:
        inside = sorted(n for n in left if n.startswith(f'{folder}/'))
        ordered = [f'guide/{name}.ipynb' for name in GUIDE] if folder == 'guide' else []
        pages = take(ordered) + take([n for n in inside if n not in ordered])
        if chapter == 'Use':
            pages = take(ENTRY) + pages
        pages += take(PAGES.get(chapter, []))
        if pages:
            nav.append({chapter: pages})
    results = sorted(n for n in left if n.startswith('experiments/results/'))
    executed = take(results, lambda name, title: f'{title} ({Path(name).stem.rpartition("-")[2]})')
    experiments = take(sorted(n for n in left if n.startswith('experiments/')))
    nav += [{'Experiments': experiments}] * bool(experiments) + [{'Results': executed}] * bool(
        executed
    )
    if left:
        raise Problem(
            f'in no chapter of the site (tests/make_site.py, CHAPTERS): {", ".join(sorted(left))}'
        )
    return nav


def pages(root, to) -> list:
    "Write the pages of the stage's notebooks into `to`; the navigation."
    processed = stage(root)
    names = sorted(
        p.relative_to(root / 'nbs').as_posix()
        for p in (root / 'nbs').rglob('*.ipynb')
        if not any(part[0] in '._' for part in p.relative_to(root).parts)
    )
    links = Links(root, names)
    titles = {}
    for name in names:
        nb, titles[name] = page_of(processed / name, name, links)
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, to / name)
    for name in links.files:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / 'nbs' / name, to / name)
    (to / 'more.css').write_text(MORE_CSS, encoding='utf-8')
    return navigation(titles)


def configuration(root, docs, site, nav) -> dict:
    "What mkdocs is told: facts from settings.ini, no fonts or scripts of other machines."
    cfg = settings(root)
    jupyter = dict(
        include=['*.ipynb'],
        cache=False,
        ignore_h1_titles=True,
        no_prompt=True,
        allow_errors=False,
        custom_mathjax_url=MATHJAX,
        remove_tag_config=dict(remove_input_tags=['remove_input']),
    )
    theme = dict(
        name='material',
        font=False,
        features=['navigation.footer', 'navigation.top', 'toc.follow', 'search.highlight'],
    )
    return dict(
        site_name=cfg['title'],
        site_description=cfg['description'],
        copyright=cfg['copyright'],
        docs_dir=str(docs),
        site_dir=str(site),
        use_directory_urls=False,
        theme=theme,
        nav=nav,
        extra_css=['more.css'],
        plugins=['search', {'mkdocs-jupyter': jupyter}],
        repo_url=cfg['git_url'],
        extra=dict(generator=False),
    )


class Page(HTMLParser):
    "Links, anchors and what a browser would load of one page."

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.loads = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids |= {v for k, v in attrs if k in ('id', 'name') and v}
        if tag == 'a' and values.get('href'):
            self.links.append(values['href'])
        if tag in ('script', 'img', 'iframe', 'source') and values.get('src'):
            self.loads.append(values['src'])
        if (
            tag == 'link'
            and values.get('href')
            and values.get('rel') not in ('canonical', 'prev', 'next')
        ):
            self.loads.append(values['href'])


def dead_links(site) -> list:
    """Complaints about links of a finished site that lead nowhere, and about what would be fetched
    from elsewhere.
    """
    read = {
        p: Page(p.read_text(encoding='utf-8'))
        for p in sorted(site.rglob('*.html'))
        if p.name != '404.html'
    }
    outside = re.compile(r'[a-zA-Z][\w+.-]*:|//')
    complaints = []
    for path, page in read.items():
        name = path.relative_to(site)
        complaints += [
            f'{name} loads {t}'
            for t in page.loads
            if outside.match(t) and not t.startswith('data:')
        ]
        for target in [*page.links, *page.loads]:
            if outside.match(target):
                continue
            file, _, anchor = target.partition('#')
            at = (
                Path(os.path.normpath(path.parent / unquote(file.partition('?')[0])))
                if file
                else path
            )
            at = at / 'index.html' if at.is_dir() else at
            if not at.is_file():
                complaints.append(f'{name} links to {target}: there is no such file')
            elif anchor and at in read and unquote(anchor) not in read[at].ids:
                complaints.append(f'{name} links to {target}: there is no such place on that page')
    return sorted(set(complaints))


def finish(site):
    "Put MathJax into the site and point every page at it."
    for file in files('jupyter-server-mathjax'):
        inside = file.as_posix().partition('jupyter_server_mathjax/static/')[2]
        if inside:
            (site / 'mathjax' / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), site / 'mathjax' / inside)
    for path in site.rglob('*.html'):
        here = os.path.relpath(site / 'mathjax', path.parent)
        text = path.read_text(encoding='utf-8')
        text = text.replace(f'<script src="{MATHJAX}"', f'{FONT}<script src="{MATHJAX}"')
        text = text.replace(
            f'src="{MATHJAX}"', f'src="{here}/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full,Safe"'
        )
        path.write_text(text, encoding='utf-8')


def build(root, site):
    "The whole site of the project `root` in the folder `site`, which is replaced."
    with tempfile.TemporaryDirectory() as tmp:
        docs, made = Path(tmp) / 'docs', Path(tmp) / 'site'
        docs.mkdir()
        config = configuration(root, docs, made, pages(root, docs))
        (Path(tmp) / 'mkdocs.yml').write_text(
            yaml.safe_dump(config, sort_keys=False), encoding='utf-8'
        )
        cmd = [
            sys.executable,
            '-m',
            'mkdocs',
            'build',
            '--strict',
            '--quiet',
            '--config-file',
            str(Path(tmp) / 'mkdocs.yml'),
        ]
        env = {**os.environ, 'NO_MKDOCS_2_WARNING': '1'}
        done = subprocess.run(cmd, cwd=tmp, capture_output=True, text=True, env=env)
        if done.returncode:
            raise Problem(f'mkdocs failed:\n{done.stderr[-3000:]}')
        finish(made)
        complaints = dead_links(made)
        if complaints:
            raise Problem('\n'.join(complaints))
        shutil.rmtree(site, ignore_errors=True)
        shutil.move(made, site)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--stage', action='store_true', help="only nbdev's stage and the links between notebooks"
    )
    parser.add_argument(
        '--root',
        type=Path,
        default=Path(__file__).resolve().parent.parent,
        help='the project (default: this one)',
    )
    args = parser.parse_args(argv)
    root = args.root.resolve()
    try:
        if args.stage:
            with tempfile.TemporaryDirectory() as tmp:
                pages(root, Path(tmp))
            return 0
        site = root / settings(root)['doc_path']
        build(root, site)
    except Problem as e:
        print(e, file=sys.stderr)
        return 1
    print(
        f'written: {site.name}/ ({len(list(site.rglob("*.html")))} pages; open'
        f' {site.name}/index.html)'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())

"""Make the documentation site: every notebook as a page, formulas and search without a network.

    python tests/make_site.py            build _docs/ (open _docs/index.html)
    python tests/make_site.py --stage    only nbdev's documentation stage and the check of the links between notebooks
    python tests/make_site.py --only 10_bridge,training     a site of these notebooks alone, to look at

First nbdev's own stage runs (`proc_nbs`): imports and exported cells are executed, hidden cells go. What is exported is
described by tests/site_reference.py, and a page "Reference" lists it. Then mkdocs with mkdocs-jupyter draws the pages. MathJax comes from a Python package and lies in the site; a page never
asks another machine for anything. A link that leads nowhere, inside a notebook or in a finished page, ends the build.
"""

import argparse
import html
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from html.parser import HTMLParser
from importlib.metadata import files
from pathlib import Path
from urllib.parse import unquote

import nbformat
import yaml

from make_readme import CODE, DIRECTIVE, LINKS, Problem, directives
from site_cells import folded, is_repr, lead

GUIDE = [
    'translating',
    'training',
    'brain_scans',
    'ct_from_mr',
    'radar_to_optical',
    'inspection',
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
# pages whose code words get no automatic links: there they are options, rows and columns of tables
UNLINKED = r'guide/|experiments/|index\.ipynb'
SPOKEN = re.compile(  # code words; fences, headings, links and tags come first and stay as they are
    r'^(?:```|~~~).*?^(?:```|~~~)[^\n]*$|^#+ [^\n]*$|!?\[(?:`[^`]*`|[^\]`])*\]\([^)]*\)'
    r'|<(?:a|h\d)\b.*?</(?:a|h\d)>|``.+?``|`(?P<name>[A-Za-z_][\w.]*)(?:\(\))?`',
    re.M | re.S,
)
SHOWN = re.compile(r'^show_doc\(([\w.]+)\)', re.M)
FONT = (
    '<script type="text/x-mathjax-config">MathJax.Hub.Config({"HTML-CSS": {availableFonts: [],'
    ' imageFont: null, '
    # the fonts that the package brings
    'preferredFont: null, webFont: "STIX-Web"}})</script>\n'
)
ENTRY = ['train.ipynb', 'evaluate.ipynb', 'translate.ipynb']
PAGES = {'Evaluation': ['evidence.ipynb']}  # pages of a chapter that have no number
MORE_CSS = """
.md-grid { max-width: 76rem }
.md-typeset .jp-RenderedHTMLCommon th, .md-typeset table:not([class]) th { min-width: 0 }
.md-typeset table:not([class]) th, .md-typeset table:not([class]) td { padding: .35em .7em }
.md-typeset td code, .md-typeset th code { white-space: nowrap; word-break: normal }
.md-typeset .jupyter-wrapper .jp-Cell pre, .md-typeset .jupyter-wrapper .jp-Cell pre code {
  white-space: pre; word-break: normal; overflow-wrap: normal; overflow-x: auto }
.jupyter-wrapper .jp-RenderedHTMLCommon, .jupyter-wrapper .jp-Cell { max-width: 100% }
.jupyter-wrapper .jp-Cell-inputWrapper, .jupyter-wrapper .jp-InputArea { min-width: 0 }
.jupyter-wrapper .jp-OutputArea-output { overflow-x: auto; max-height: none }
.jupyter-wrapper .jp-OutputArea-output td { white-space: nowrap }
.jupyter-wrapper .jp-RenderedMarkdown { overflow-x: auto; overflow-y: hidden; min-width: 0 }
.jupyter-wrapper img { max-width: 100%; height: auto }
.jupyter-wrapper .CodeMirror { padding-right: 2rem }
.jupyter-wrapper .celltoolbar { display: none }
.jupyter-wrapper details.code { margin: .6em 0; box-shadow: none; overflow: hidden }
.jupyter-wrapper h3.api { border-top: 1px solid #0002; padding-top: .8em; margin-top: 1.6em }
.jupyter-wrapper h4.api { margin-top: 1.4em }
.jupyter-wrapper .api .source { font-size: .7rem; font-weight: 400; float: right }
.MathJax, .MathJax *, .MathJax_Display * { box-sizing: content-box }
math [mathvariant] { font-family: inherit !important }
.jupyter-wrapper .MathJax_Display, .jupyter-wrapper .MJXc-display {
  overflow-x: auto; overflow-y: hidden; max-width: 100% }
.jupyter-wrapper .jp-RenderedHTMLCommon table {
  display: block; overflow-x: auto; width: fit-content; max-width: 100% }
"""


def settings(root) -> dict:
    "settings.ini as nbdev reads it."
    from fastcore.foundation import Config

    return Config(root, 'settings.ini').d


def run_python(root, script, *arguments):
    "Run a script with the modules of the project `root`; Problem if it fails, else what it said."
    env = {**os.environ, 'PYTHONPATH': str(root), 'MPLBACKEND': 'agg', 'OMP_NUM_THREADS': '1'}
    cmd = [sys.executable, script, *arguments]
    done = subprocess.run(cmd, cwd=root, env=env, capture_output=True, text=True)
    if done.returncode:
        raise Problem(f'{Path(script).name} failed:\n{done.stderr[-3000:]}')
    return done.stderr


def stage(root, only=()):
    """nbdev's documentation stage over all notebooks of `root`, or those with the stems `only`,
    always from the beginning; the folder it wrote.
    """
    left = f'^[_.]|^(?!({"|".join(map(re.escape, only))})[.]ipynb$)' if only else '^[_.]'
    code = (
        'from nbdev.serve import proc_nbs\n'
        'if __name__ == "__main__":\n'
        f'    proc_nbs("nbs", n_workers=2, force=True, skip_file_re={left!r})\n'
    )
    with tempfile.TemporaryDirectory() as tmp:
        script = Path(tmp) / 'stage.py'
        script.write_text(code, encoding='utf-8')
        said = run_python(root, script)
    if 'Found cells containing imports' in said:
        raise Problem(f'a cell mixes imports and other code:\n{said[-3000:]}')
    return root / '_proc'


def reference(root) -> dict:
    "What tests/site_reference.py says about the package of `root`."
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp) / 'reference.json'
        run_python(root, Path(__file__).with_name('site_reference.py'), root, out)
        return json.loads(out.read_text(encoding='utf-8'))


def front(cell) -> dict:
    "The front matter that nbdev makes of a notebook's title and description."
    text = cell.source.strip()
    return (
        yaml.safe_load(text.strip('-'))
        if cell.cell_type == 'raw' and text.startswith('---')
        else {}
    )


def tidy_output(out):
    "An output as a page shows it, or None: no progress bars, no sliders, no bare objects."
    if out.output_type == 'stream':
        return None if out.name == 'stderr' else out
    data = out.get('data', {})
    if 'application/vnd.jupyter.widget-view+json' in data or is_repr(data):
        return None
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

    def __init__(self, root, pages, found):
        cfg = settings(root)
        self.root = root
        self.pages = set(pages)  # 'experiments/compare.ipynb'
        self.files = set()  # pictures to be copied
        self.git = cfg['git_url']
        self.branch = cfg['branch']
        self.names = found['names']
        methods = [f'{c}.{m}' for c, one in self.names.items() for m in one['methods']]
        taken = set(found['words']) | {re.sub(r'^\d\d_', '', Path(p).stem) for p in pages}
        self.twins = Counter(name.lower() for name in self.names)
        self.said = set(methods) | {n for n in self.names if is_name(n) and n not in taken}

    def target(self, page, target) -> str:
        "The link as it stands in the finished page."
        here = posixpath.dirname(page) or '.'
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
        return self.with_names(page, ''.join(parts))

    def anchor(self, name) -> str:
        "The place of a name on its page; a class beside a function of the same letters says so."
        twin = self.twins[name.partition('.')[0].lower()] > 1 and name[0].isupper()
        return 'class-' * twin + name.lower()

    def place(self, page, name) -> str:
        "The link from a page to the description of a name."
        owner = name.partition('.')[0]
        there = posixpath.relpath(
            f'{self.names[owner]["page"][:-6]}.html', posixpath.dirname(page) or '.'
        )
        described = self.names[owner]['text']
        return there + f'#{self.anchor(name)}' * bool(described)

    def with_names(self, page, text) -> str:
        """A piece of Markdown where code that can only mean a public name leads to its description.

        No guide, experiment or result gets such links, and no heading and no link of an author.
        """
        if re.match(UNLINKED, page):
            return text

        def one(match):
            name = match['name']
            known = name in self.said
            return f'[{match[0]}]({self.place(page, name)})' if known else match[0]

        return SPOKEN.sub(one, text)

    def description(self, page, name) -> str:
        "The Markdown that describes a public name, of a class with its public methods."
        one = self.names[name]
        if not one['text']:
            raise Problem(f'nbs/{page} shows {name}, which tests/site_reference.py cannot describe')
        parts = [(3, name, one)]
        parts += [(4, f'{name}.{method}', m) for method, m in one['methods'].items()]
        text = ''
        for level, full, part in parts:
            place = f'{one["module"].replace(".", "/")}.py#L{part["at"]}'
            source = f'<a class="source" href="{self.git}/blob/{self.branch}/{place}">source</a>'
            head = f'<h{level} id="{self.anchor(full)}" class="api">{full} {source}</h{level}>'
            text += f'{head}\n\n{part["text"]}'
        return self.with_names(page, text)


def is_name(word) -> bool:
    "Whether a code word looks like a name of the package rather than like an everyday word."
    return '_' in word.strip('_') or word != word.lower()


def titled(cells, written, title) -> list:
    "The cells with a title: nbdev drops the text below one."
    marked = [c for c in cells if c.cell_type == 'markdown']
    if any(c.source.startswith('# ') for c in marked):
        return cells
    heads = [c.source for c in written.cells if c.cell_type == 'markdown']
    heads = [text for text in heads if text.startswith('# ')]
    first = (heads or [f'# {title}'])[0]
    return [nbformat.v4.new_markdown_cell(first), *cells]


def with_links(cell, name, links):
    "A cell whose links lead to pages; in the place of `show_doc` stands the description."
    shown = SHOWN.search(cell.source) if cell.cell_type == 'code' else None
    if shown and shown[1] in links.names:
        return nbformat.v4.new_markdown_cell(links.description(name, shown[1]))
    if cell.cell_type == 'markdown':
        cell.source = links.text(name, cell.source)
    for out in cell.get('outputs', []):
        if 'text/markdown' in out.get('data', {}):
            text = ''.join(out.data['text/markdown'])
            out.data['text/markdown'] = links.text(name, text)
    return cell


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
    cells = titled(cells, written, title)
    if name.startswith('experiments/'):
        cells = lead(cells, name, links.pages)
    cells = [with_links(c, name, links) for c in cells]
    if name.startswith('experiments/'):
        cells = folded(cells)
    nb.cells = cells
    nb.metadata = {
        'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'},
        'language_info': {'name': 'python'},
    }
    return nb, title


def list_of_names(links):
    "The page that lists every public name, with the first line of its docstring."
    lines = {}
    for name, one in links.names.items():
        kinds = {name: one} | {f'{name}.{m}': part for m, part in one['methods'].items()}
        for full, part in kinds.items():
            said = part['line'] or f'({one["kind"]} of {one["module"]})'
            place = links.place('reference.ipynb', full)
            said = re.sub(r'([*<$])', r'\\\1', said)
            line = f'- [`{full}`]({place}): {said}'
            lines.setdefault(full.lstrip('_')[:1].upper(), []).append((full.lower(), line))
    about = 'Every public name of the package, and of classes their public methods.'
    texts = [f'# Reference\n\n> {about}']
    for letter in sorted(lines):
        texts.append(f'## {letter}\n\n' + '\n'.join(line for _, line in sorted(lines[letter])))
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(text) for text in texts],
        metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')),
    )


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
    nav += take(['reference.ipynb'])
    if left:
        raise Problem(
            f'in no chapter of the site (tests/make_site.py, CHAPTERS): {", ".join(sorted(left))}'
        )
    return nav


def notebooks(root) -> list:
    "The notebooks of a project, as 'bridges/10_bridge.ipynb'."
    return sorted(
        p.relative_to(root / 'nbs').as_posix()
        for p in (root / 'nbs').rglob('*.ipynb')
        if not any(part[0] in '._' for part in p.relative_to(root).parts)
    )


def pages(root, to, only=()) -> list:
    "Write the pages of the stage's notebooks into `to`; the navigation."
    processed = stage(root, only)
    names = notebooks(root)
    links = Links(root, names, reference(root))
    titles = {}
    for name in [n for n in names if not only or Path(n).stem in only]:
        nb, titles[name] = page_of(processed / name, name, links)
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, to / name)
    nbformat.write(list_of_names(links), to / 'reference.ipynb')
    titles['reference.ipynb'] = 'Reference'
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
        # a link, not `repo_url`: for that one Material asks another machine for stars and releases
        extra=dict(
            generator=False,
            social=[dict(icon='fontawesome/brands/git-alt', link=cfg['git_url'], name='Source')],
        ),
    )


class Page(HTMLParser):
    "Links, anchors and what a browser would load of one page."

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.loads, self.raw = [], set(), [], []
        self.inside = ''
        self.feed(text)

    def handle_data(self, data):
        if self.inside not in ('script', 'style'):
            self.raw += re.findall(r'\S*\]\([^)\s]*\.html[^)\s]*\)', data)

    def handle_endtag(self, tag):
        self.inside = ''

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.inside = tag
        if values.get('data-md-component') == 'source' and values.get('href'):
            self.loads.append(values['href'])  # Material asks that machine for facts
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
        complaints += [f'{name} shows a link as text: {text}' for text in page.raw]
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


def with_alt_texts(text) -> str:
    "A page whose figures are named after the heading above them, for whoever does not see them."
    heading = ['']

    def one(match):
        if match['head']:
            heading[0] = re.sub(r'<[^>]+>|¶|&para;|&#182;', '', match['head']).strip()
            return match[0]
        return f'alt="{html.escape(f"{html.unescape(heading[0])}: figure".lstrip(": "))}"'

    lacks = r'<h[1-6][^>]*>(?P<head>.*?)</h[1-6]>|alt="No description has been provided[^"]*"'
    return re.sub(lacks, one, text, flags=re.S)


def finish(site):
    "Put MathJax into the site and point every page at it; name figures; no empty heads of tables."
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
        text = re.sub(r'<thead>\s*<tr>\s*(?:<th[^>]*>\s*</th>\s*)+</tr>\s*</thead>', '', text)
        path.write_text(with_alt_texts(text), encoding='utf-8')


def run_mkdocs(config, folder):
    "Let mkdocs draw the pages; Problem if it complains."
    file = folder / 'mkdocs.yml'
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding='utf-8')
    cmd = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet']
    env = {**os.environ, 'NO_MKDOCS_2_WARNING': '1'}
    cmd += ['--config-file', str(file)]
    done = subprocess.run(cmd, cwd=folder, capture_output=True, text=True, env=env)
    if done.returncode:
        raise Problem(f'mkdocs failed:\n{done.stderr[-3000:]}')


def build(root, site, only=()):
    """The whole site of the project `root` in the folder `site`, which is replaced; with `only`
    pages of these notebooks, whose links to others lead nowhere.
    """
    with tempfile.TemporaryDirectory() as tmp:
        docs, made = Path(tmp) / 'docs', Path(tmp) / 'site'
        docs.mkdir()
        config = configuration(root, docs, made, pages(root, docs, only))
        run_mkdocs(config, Path(tmp))
        finish(made)
        complaints = dead_links(made)
        if only:
            complaints = [c for c in complaints if 'there is no such file' not in c]
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
    parser.add_argument(
        '--only', default='', help='build pages of these notebooks alone, as 10_bridge,training'
    )
    args = parser.parse_args(argv)
    root, only = args.root.resolve(), [stem for stem in args.only.split(',') if stem]
    try:
        if args.stage:
            with tempfile.TemporaryDirectory() as tmp:
                pages(root, Path(tmp), only)
            return 0
        site = root / settings(root)['doc_path']
        build(root, site, only)
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

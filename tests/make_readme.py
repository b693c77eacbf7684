"""Make README.md from nbs/index.ipynb.

    python tests/make_readme.py            write README.md
    python tests/make_readme.py --check    exit 1 with one line if README.md is not what would be written

The notebook stands in nbs/, the README in the root, so every relative link is carried over: `10_bridge.ipynb` becomes
`nbs/bridges/10_bridge.ipynb`, `images/brain.png` becomes `nbs/images/brain.png`, `../LICENSE` becomes `LICENSE`. Outputs are taken as they are
stored in the notebook; nothing is run, so the same notebook always gives the same bytes.
"""

import argparse, os, posixpath, re, sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
from nbconvert import MarkdownExporter

DIRECTIVE = re.compile(r'^#[ \t]*\|[ \t]*(\w+)[ \t]*:?[ \t]*(.*?)[ \t]*$', re.M)
# left alone when links are rewritten
CODE = re.compile(r'(^(?:```|~~~).*?^(?:```|~~~)[^\n]*$|``.+?``|`[^`\n]+`)', re.M | re.S)
LINKS = [
    re.compile(r'(\]\(\s*<?)([^)\s>]+)'),  # [text](target), ![text](target "title")
    re.compile(r'((?:src|href)\s*=\s*["\'])([^"\']+)'),  # <img src="target">
    re.compile(r'(^\s{0,3}\[[^\]]+\]:\s*<?)([^\s>]+)', re.M),
]  # [label]: target
HEAD = '<!-- Made from nbs/index.ipynb by tests/make_readme.py: edit the notebook. -->\n\n'


class Problem(Exception):
    "The notebook cannot become a README; the text says why."


def directives(cell) -> dict:
    "The `#| name: value` lines of a code cell."
    return dict(DIRECTIVE.findall(cell.source)) if cell.cell_type == 'code' else {}


def relink(text, folder, root):
    """Rewrite relative links of a notebook in `folder` (such as 'nbs') so that they hold from the
    root; Problem if one leads nowhere.
    """

    def one(m):
        target = m[2]
        # a URL, or a place on this page
        if re.match(r'[a-zA-Z][\w+.-]*:|//|/|#', target):
            return m[0]
        path, *anchor = re.split(r'(?=[#?])', target, maxsplit=1)
        path = posixpath.normpath(posixpath.join(folder, path))
        if not (root / unquote(path)).exists():
            raise Problem(f'{folder}/index.ipynb links to {target}, but there is no {path}')
        return m[1] + path + ''.join(anchor)

    def plain(part):
        for link in LINKS:
            part = link.sub(one, part)
        return part

    return ''.join(p if i % 2 else plain(p) for i, p in enumerate(CODE.split(text)))


def tidy_output(out, number):
    "An output as a README can show it, or None; Problem for a picture, which would be lost."
    if out.output_type == 'stream':
        if out.name == 'stderr':
            return None  # progress bars and warnings
        out.text = re.sub(r'\x1b\[[0-9;]*m', '', out.text)
        return out
    if out.output_type == 'error':
        raise Problem(
            f'nbs/index.ipynb: cell {number} ended with {out.ename}: run the notebook again'
        )
    data = out.get('data', {})
    if any(k.startswith('image/') for k in data):
        raise Problem(
            f'nbs/index.ipynb: cell {number} shows a picture as its output; save it under'
            ' nbs/images/ and link to it, or mark the cell `#| hide`'
        )
    if 'application/vnd.jupyter.widget-view+json' in data:
        return None  # a slider is not a text
    if 'text/html' in data:
        data['text/html'] = re.sub(r'<style.*?</style>\s*', '', data['text/html'], flags=re.S)
    return out


def tidy_cell(cell, number):
    "A cell as a README can show it, or None if it is hidden."
    marks = directives(cell)
    if (
        cell.cell_type == 'raw'
        or 'hide' in marks
        or marks.get('include') == 'false'
        or 'default_exp' in marks
    ):
        return None
    if cell.cell_type == 'code':
        cell.source = '\n'.join(l for l in cell.source.split('\n') if not DIRECTIVE.match(l)).strip(
            '\n'
        )
        silent = marks.get('output') == 'false'
        cell.outputs = (
            []
            if silent
            else [o for o in (tidy_output(o, number) for o in cell.outputs) if o is not None]
        )
        if marks.get('echo') == 'false':
            cell.metadata['transient'] = {'remove_source': True}
        if not cell.source and not cell.outputs:
            return None
    return cell


def readme(root) -> str:
    "The text of README.md for the project in `root`."
    path = root / 'nbs' / 'index.ipynb'
    if not path.is_file():
        raise Problem(f'{path.relative_to(root)} does not exist')
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in (tidy_cell(c, i) for i, c in enumerate(nb.cells)) if c is not None]
    for c in nb.cells:
        if c.cell_type == 'markdown':
            c.source = relink(c.source, 'nbs', root)
    # nbdev_clean drops it, the code fences need it
    nb.metadata['language_info'] = {'name': 'python'}
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = '\n'.join(
        l.rstrip() if not l.endswith('  ') or not l.strip() else l.rstrip() + '  '
        for l in text.split('\n')
    )
    return HEAD + re.sub(r'\n{3,}', '\n\n', text).strip('\n') + '\n'


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--check', action='store_true', help='write nothing; exit 1 if README.md is out of date'
    )
    parser.add_argument(
        '--root',
        type=Path,
        default=Path(__file__).resolve().parent.parent,
        help='the project (default: this one)',
    )
    args = parser.parse_args(argv)
    out = args.root / 'README.md'
    try:
        text = readme(args.root)
    except Problem as e:
        print(e, file=sys.stderr)
        return 1
    if args.check:
        if out.is_file() and out.read_bytes() == text.encode():
            return 0
        print('README.md is out of date: run python tests/make_readme.py', file=sys.stderr)
        return 1
    part = out.with_name(f'.{os.getpid()}.part.README.md')
    part.write_bytes(text.encode())
    os.replace(part, out)
    return 0


if __name__ == '__main__':
    sys.exit(main())

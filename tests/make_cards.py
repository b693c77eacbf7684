"""Make data/NAME.md from the cards, which are the pages xmodal/data/pages/NAME.md, and the figure
of all layouts that the guide shows from the output of its cell in 36_layouts.

python tests/make_cards.py            write the files
python tests/make_cards.py --check    exit 1 with one line if a file is not what would be written
"""

import base64
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = '<!-- Made by tests/make_cards.py: edit the page xmodal/data/pages/{name}.md. -->\n\n'


def text_of(name, card) -> str:
    "What data/NAME.md holds."
    return HEAD.format(name=name) + card.markdown(name)


def stale(root=ROOT) -> list:
    "Names of cards whose file differs from the page's text."
    from xmodal.data.cards import cards

    return [
        name
        for name, card in cards.items()
        if not (root / 'data' / f'{name}.md').is_file()
        or (root / 'data' / f'{name}.md').read_text(encoding='utf-8') != text_of(name, card)
    ]


def figure_of_layouts(root=ROOT) -> bytes:
    "The picture of one pair of every layout, as its notebook holds it."
    book = json.loads((root / 'nbs/data/36_layouts.ipynb').read_text(encoding='utf-8'))
    outputs = next(c['outputs'] for c in book['cells'] if c['id'] == 'd71c99b1')
    found = [o['data']['image/png'] for o in outputs if 'image/png' in o.get('data', {})]
    return base64.b64decode(''.join(found[0]))


def update_figure(check, root=ROOT):
    "Write the figure of the guide; with `check` exit with one line if it is another."
    path, now = root / 'nbs/images/layouts.png', figure_of_layouts(root)
    if path.is_file() and path.read_bytes() == now:
        return
    if check:
        sys.exit(f'{path.name} is not the figure of 36_layouts: run .venv/bin/python {sys.argv[0]}')
    path.write_bytes(now)
    print('nbs/images/layouts.png')


if __name__ == '__main__':
    old = stale()
    update_figure('--check' in sys.argv[1:])
    if '--check' in sys.argv[1:]:
        sys.exit(
            f'data/{old[0]}.md is not what its page xmodal/data/pages/{old[0]}.md says:'
            ' run .venv/bin/python tests/make_cards.py'
            if old
            else 0
        )
    from xmodal.data.cards import cards

    for name in old:
        (ROOT / 'data' / f'{name}.md').write_text(text_of(name, cards[name]), encoding='utf-8')
        print(f'data/{name}.md')

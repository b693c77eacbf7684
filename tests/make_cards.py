"""Make data/NAME.md from the cards, which are the pages xmodal/data/pages/NAME.md.

python tests/make_cards.py            write the files
python tests/make_cards.py --check    exit 1 with one line if a file is not what would be written
"""

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


if __name__ == '__main__':
    old = stale()
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

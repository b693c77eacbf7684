"""The pictures of the gallery, taken out of the stored notebooks, so that each is one that a run has made.

    python tests/make_gallery.py            write nbs/images/gallery/ for every picture that nbs/guide/gallery.ipynb shows
    python tests/make_gallery.py --check    say what is missing or other than in its notebook; exit code 1 then

A picture is named after where it comes from: NOTEBOOK.CELL.N.png is the picture number N (from 0) of a cell of
nbs/experiments/NOTEBOOK.ipynb, or of nbs/experiments/results/NOTEBOOK.ipynb.
"""

import base64
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOWN = re.compile(r'\]\(\.\./images/gallery/([\w-]+)\.(\w+)\.(\d+)\.png\)')


def pictures_of(root=ROOT):
    "Yields (file name, notebook, cell, number) of every picture of the gallery."
    page = json.loads((root / 'nbs/guide/gallery.ipynb').read_text(encoding='utf-8'))
    for cell in page['cells']:
        for name, at, number in SHOWN.findall(''.join(cell['source'])):
            yield f'{name}.{at}.{number}.png', name, at, int(number)


def picture(root, name, at, number):
    "The bytes of a picture in a stored notebook; raises ValueError if it is not there."
    for folder in ('results', '.'):
        path = root / 'nbs' / 'experiments' / folder / f'{name}.ipynb'
        if not path.is_file():
            continue
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        data = [o.get('data', {}) for c in cells if c.get('id') == at for o in c.get('outputs', [])]
        found = [d['image/png'] for d in data if 'image/png' in d]
        if number < len(found):
            return base64.b64decode(''.join(found[number]))
    raise ValueError(f'{name}.{at}.{number}: no notebook holds that picture')


def main(root=ROOT, check=False):
    "Write or check; the faults."
    folder, faults, wanted = root / 'nbs/images/gallery', [], set()
    folder.mkdir(parents=True, exist_ok=True)
    for file, *where in pictures_of(root):
        wanted.add(file)
        try:
            now = picture(root, *where)
        except ValueError as e:
            faults.append(str(e))
            continue
        if check and not ((folder / file).is_file() and (folder / file).read_bytes() == now):
            faults.append(f'{file}: is not what its notebook shows; run tests/make_gallery.py')
        if not check:
            (folder / file).write_bytes(now)
    for file in sorted(folder.glob('*.png')):
        if file.name not in wanted:
            faults += [f'{file.name}: the gallery does not show it'] if check else []
            if not check:
                file.unlink()
    return faults


if __name__ == '__main__':
    found = main(check='--check' in sys.argv)
    print('\n'.join(found) or 'the gallery is as its notebooks are')
    sys.exit(bool(found))

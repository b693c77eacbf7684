"Lists that are written for people name every method, data set and notebook."

import json
import re
from pathlib import Path

import pytest

from xmodal.cli import make_parser
from xmodal.data.cards import cards
from xmodal.data.layouts import datasets, simulated_root
from xmodal.job import meanings
from xmodal.methods import methods

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = 'Zero One Two Three Four Five Six Seven Eight Nine Ten Eleven Twelve Thirteen Fourteen Fifteen Sixteen'.split()


def source(name):
    "Texts of a notebook's cells."
    nb = json.loads((ROOT / 'nbs' / f'{name}.ipynb').read_text(encoding='utf-8'))
    return '\n'.join(''.join(c['source']) for c in nb['cells'])


def lines(text, begin):
    "The lines that begin so."
    return '\n'.join(line for line in text.splitlines() if line.startswith(begin))


def lacking(names, text):
    "The names that are no word of the text."
    return sorted(n for n in names if not re.search(rf'(?<![\w-]){re.escape(n)}(?![\w-])', text))


def test_the_guide_has_every_method():
    table = lines(source('guide/methods'), '|')
    assert not lacking(methods, table), 'add to the table in nbs/guide/methods'


def test_the_index_counts_right():
    text = source('index')
    assert f'{len(methods)} rows of [one table]' in text, f'there are {len(methods)} methods'
    assert f'{NUMBERS[len(datasets)]} layouts are read' in text, f'there are {len(datasets)}'


def test_help_of_check_names_every_layout(capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(['data', 'check', '--help'])
    assert not lacking(datasets, capsys.readouterr().out), 'add to the help in nbs/use/98_cli'


@pytest.mark.parametrize(
    'where, text',
    [
        ('help of --dataset, nbs/use/81_job', meanings['dataset']),
        ('nbs/train', lines(source('train'), '# phantom')),
        ('nbs/guide/data', lines(source('guide/data'), 'xmodal data list')),
    ],
)
def test_every_layout_is_named(where, text):
    assert not lacking(datasets, text), f'add to {where}'


def test_every_layout_has_a_card():
    assert set(cards) == set(datasets)


def test_a_forgotten_name_is_noticed():
    assert lacking(['bids', 'bid', 'cdtsde'], 'bids, cdtsde_any') == ['bid', 'cdtsde']


def test_a_layout_without_a_stand_in_is_refused():
    from xmodal.core import InputError

    with pytest.raises(InputError, match='no simulated data in the layout of no_such_set'):
        simulated_root('no_such_set')


def test_the_guide_has_every_notebook():
    found = {p.stem for p in (ROOT / 'nbs').glob('*/*.ipynb') if p.parent.name != 'guide'}
    linked = re.findall(r'/(\w+)\.ipynb\)', source('guide/notebooks'))
    assert not found - set(linked), 'add to nbs/guide/notebooks'

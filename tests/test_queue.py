"""The queue of the stored experiments: its entries can be run and cover every stored result; what is done is
not done again, what fails is named, and what needs it is left out.
"""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / 'nbs' / 'experiments'
sys.path.insert(0, str(HERE))

from run_queue import read_queue  # noqa: E402

# made by hand, by other commands, or of machines: their notebooks say how
OTHERWISE = {'brain-metrics', 'phantom-metrics', 'check_calibration', 'check_thresholds'}
OTHERWISE |= {'lesions_kept', 'scene_memory', 'slice_steps', 'tile_borders', 'tile_borders_24'}
OTHERWISE |= {'compare-sar', 'difficulty_gains'}


def test_every_entry_can_be_run():
    assert len(read_queue()) > 20  # names, notebooks and parameters are checked in reading


def test_every_stored_result_is_in_the_queue():
    names = {e['name'] for e in read_queue()}
    stored = {f.stem for f in (HERE / 'results').iterdir()}
    of_entry = lambda k: any(k == n or k.startswith(f'{n}-') for n in names)
    assert not {k for k in stored - OTHERWISE if not of_entry(k)}


@pytest.mark.parametrize(
    'entry, words',
    [
        (dict(name='b', run='toy.ipynb', steps=3), 'keys are'),
        (dict(name='a', run='toy.ipynb'), 'stands twice'),
        (dict(name='b', run='none.ipynb'), 'no notebook'),
        ({'name': 'b', 'run': 'toy.ipynb', 'with': dict(stepz=3)}, 'no parameter stepz'),
        (dict(name='b', run='toy.ipynb', after=['c']), 'comes after c'),
    ],
)
def test_a_wrong_entry_is_refused(toys, entry, words):
    with pytest.raises(ValueError, match=words):
        read_queue(written(toys, dict(name='a', run='toy.ipynb'), entry))


@pytest.fixture
def toys(tmp_path):
    "A notebook that adds a line to a file, and fails if it is told to."
    code = "import time\nwith open(where, 'a') as f:\n    f.write(f'{word} begins\\n')\ntime.sleep(0.3)\n"
    code += "assert word != 'bad'\nwith open(where, 'a') as f:\n    f.write(f'{word} ends\\n')"
    values = nbformat.v4.new_code_cell("where = ''\nword = ''\nsmoke = False")
    values.metadata['tags'] = ['parameters']
    book = nbformat.v4.new_notebook(cells=[values, nbformat.v4.new_code_cell(code)])
    book.metadata['kernelspec'] = dict(display_name='python3', language='python', name='python3')
    for name in ('toy', 'other'):
        nbformat.write(book, tmp_path / f'{name}.ipynb')
    return tmp_path


def written(folder, *entries):
    "A queue of entries."
    path = folder / 'queue.yaml'
    path.write_text(yaml.safe_dump(list(entries)))
    return path


def run(folder, *words):
    "The queue of a folder, run."
    command = [sys.executable, str(HERE / 'run_queue.py'), '--queue', str(folder / 'queue.yaml')]
    command += ['--out', str(folder / 'out'), *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_what_is_done_stays_done_and_what_fails_is_named(toys):
    said = toys / 'said'
    entry = lambda name, book, **more: {
        'name': name,
        'run': f'{book}.ipynb',
        'with': dict(where=str(said), word=name),
        **more,
    }
    one, bad = entry('one', 'toy'), entry('bad', 'other')
    written(toys, one, bad, entry('two', 'toy'), entry('three', 'other', after=['bad']))
    done = run(toys, '--workers', '2')
    assert done.returncode == 1
    assert 'bad: failed' in done.stdout and 'three: left out' in done.stdout
    lines = [v for v in said.read_text().splitlines() if not v.startswith('bad')]
    assert lines == ['one begins', 'one ends', 'two begins', 'two ends']  # never side by side
    assert json.loads((toys / 'out' / 'one.done').read_text())['minutes'] >= 0
    again = run(toys, '--only', 'one,two')
    assert again.returncode == 0 and said.read_text().count('one begins') == 1
    assert 'one' in run(toys, '--list').stdout
    assert run(toys, '--only', 'four').returncode == 2

"Every experiment that has a smoke mode, run by papermill in it: all of them that have the parameter, so a new one needs no line here."

import json, re, shutil
from pathlib import Path

import pytest

# papermill without a kernel of its own: imports are paid for once
from run_rows import execute, unpainted
from small_model import with_made_people

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted(
    f.stem
    for f in (ROOT / 'nbs' / 'experiments').glob('*.ipynb')
    if re.search(r'"smoke = False', f.read_text())
)


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_an_experiment_runs_in_its_smallest_form(name, tmp_path):
    with_made_people(tmp_path)
    notebook = ROOT / 'nbs' / 'experiments' / f'{name}.ipynb'
    named = dict(name=f'test-{name}') if re.search(r'"name = ', notebook.read_text()) else {}
    try:
        with unpainted():  # what a training paints is looked at in test_rows
            figures = execute(notebook, cwd=tmp_path, smoke=True, **named)
    finally:
        shutil.rmtree(ROOT / 'runs' / f'test-{name}', ignore_errors=True)
    assert figures >= 1  # it ends with figures, not with silence


@pytest.mark.parametrize('path', sorted((ROOT / 'nbs').glob('**/*.ipynb')), ids=lambda p: p.stem)
def test_stored_parameters_give_way_to_what_is_asked_for(path):
    "papermill replaces a cell of parameters only if it carries the tag; else the stored ones win."
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        stored = ''.join(cell['source']).startswith('# Parameters') and 'outputs' in cell
        if stored and 'results' not in path.parts:
            assert 'injected-parameters' in cell['metadata'].get('tags', []), cell['id']

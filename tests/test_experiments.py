"Every experiment that has a smoke mode, run by papermill in it: all of them that have the parameter, so a new one needs no line here."
import os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MORE = dict(compare=['-p', 'methods', 'all'])                                            # every row, although the default compares a selection
EXPERIMENTS = sorted(f.stem for f in (ROOT/'nbs'/'experiments').glob('*.ipynb') if re.search(r'"smoke = False', f.read_text()))


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_an_experiment_runs_in_its_smallest_form(name, tmp_path):
    notebook = ROOT/'nbs'/'experiments'/f'{name}.ipynb'
    named = ['-p', 'name', f'test-{name}'] if re.search(r'"name = ', notebook.read_text()) else []
    words = [str(Path(sys.executable).parent/'papermill'), str(notebook), str(tmp_path/'out.ipynb'), '--no-progress-bar', '--log-level', 'ERROR', '-p', 'smoke', 'True', *named, *MORE.get(name, [])]
    try: r = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=900, env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)})
    finally: shutil.rmtree(ROOT/'runs'/f'test-{name}', ignore_errors=True)
    assert r.returncode == 0, r.stderr[-3000:]
    assert (tmp_path/'out.ipynb').read_text().count('"image/png"') >= 1                   # it ends with figures, not with silence

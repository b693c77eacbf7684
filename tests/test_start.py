"""What a command brings into memory before it works. Seconds depend on the machine; names of modules
do not.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from PIL import Image

from small_model import IMAGE, TINY, VOLUME, trained_by_command, xmodal
from xmodal.job import nothing_left, parser_of_jobs
from xmodal.nets.build import build
from xmodal.simulate.brain import write_bids
from xmodal.training.model_folder import save_model

# the command in this process, then the packages that lie in memory
CODE = """
import sys
from xmodal.cli import main
sys.argv[0] = 'xmodal'
try:
    main()
finally:
    print('LOADED', *sorted(name for name in sys.modules if name.count('.') < 2))
"""


def loaded(code, *words, cwd=None):
    "Call a command in a process of its own; what it printed, and the modules that it has imported."
    cmd = [sys.executable, '-W', 'ignore', '-c', code, *map(str, words)]
    done = subprocess.run(cmd, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr[-2000:]
    said, _, names = done.stdout.rpartition('LOADED')
    return said, set(names.split())


def packages(*words):
    "Call the command xmodal in a process of its own; the modules that it has imported."
    return loaded(CODE, *words)[1]


def test_help_needs_neither_torch_nor_numpy():
    found = packages('--help')
    assert 'xmodal.cli' in found
    assert not found & {'torch', 'numpy', 'diffusers', 'scipy', 'pandas', 'matplotlib', 'nibabel'}


def test_a_scan_is_translated_without_what_only_trainings_and_reports_need(tmp_path):
    save_model(tmp_path / 'model', build(**TINY), TINY, VOLUME, {}, '# A model of tests\n')
    scan = np.random.default_rng(0).uniform(0, 1000, (20, 20, 2)).astype('float32')
    nib.save(nib.Nifti1Image(scan, np.diag([3.0, 3, 3, 1])), tmp_path / 'in.nii.gz')
    found = packages(
        'translate', tmp_path / 'model', tmp_path / 'in.nii.gz', tmp_path / 'out.nii.gz', '--force'
    )
    assert (tmp_path / 'out.nii.gz').exists() and {'torch', 'diffusers'} <= found
    heavy = {'transformers', 'torchvision', 'torchmetrics', 'open_clip', 'monai', 'sympy'}
    heavy |= {'torch._dynamo', 'pandas', 'matplotlib', 'skimage', 'scipy.stats', 'scipy.optimize'}
    assert not found & heavy


def test_a_picture_that_fits_needs_nothing_to_resize_it(tmp_path):
    save_model(tmp_path / 'model', build(**TINY), TINY, IMAGE, {}, '# A model of tests\n')
    grey = np.random.default_rng(0).integers(0, 255, (32, 32)).astype('uint8')
    Image.fromarray(grey).save(tmp_path / 'in.png')
    found = packages('translate', tmp_path / 'model', tmp_path / 'in.png', tmp_path / 'out.png')
    assert (tmp_path / 'out.png').exists() and 'torch' in found
    assert not found & {'skimage', 'scipy', 'transformers', 'torchvision', 'pandas', 'matplotlib'}


# xmodal.train as a program, as a launcher starts it
PROGRAM = """
import runpy, sys
sys.argv[0] = 'xmodal.train'
try:
    runpy.run_module('xmodal.train', run_name='__main__')
finally:
    print('LOADED', *sorted(name for name in sys.modules if name.count('.') < 2))
"""

TRAINED = '--smoke --steps 2 --no-baseline --no-check --dataset bids --root scans --source T1w'


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    "A folder with scans and with a run, `mine`, that has come to its end."
    here = tmp_path_factory.mktemp('finished').resolve()
    write_bids(here / 'scans', n=4, voxel=6.0)
    trained_by_command(here, 'mine', TRAINED)
    return here


def words_of_run(more='--resume'):
    return f'--name mine {TRAINED} {more}'.split()


def is_left(here, more='--resume'):
    "Would the command find that nothing is left to do?"
    with contextlib.chdir(here), contextlib.redirect_stdout(io.StringIO()):
        return nothing_left(parser_of_jobs().parse_args(words_of_run(more)))


@pytest.mark.parametrize('code, verb', [(CODE, ['train']), (PROGRAM, [])])
def test_a_finished_run_is_seen_before_anything_is_imported(code, verb, finished):
    before = {f: f.stat().st_mtime_ns for f in finished.rglob('*')}
    said, found = loaded(code, *verb, *words_of_run(), cwd=finished)
    assert {'xmodal.job', 'xmodal.run_folder'} <= found
    assert not found & {'torch', 'numpy', 'nibabel', 'pandas', 'matplotlib', 'xmodal.data'}
    assert said.count('\n') == 1 and 'runs/mine is finished' in said
    assert all(w in said for w in ('metrics.json', 'figures', 'delete runs/mine/finished.json'))
    assert before == {f: f.stat().st_mtime_ns for f in finished.rglob('*')}


@pytest.mark.parametrize(
    'more',
    ['', '--resume --overwrite', '--resume --seed 1', '--resume --steps 3', '--resume --lr x'],
)
def test_other_words_are_another_job(more, finished):
    assert is_left(finished) and not is_left(finished, more)


def add_a_person(scans):
    shutil.copytree(scans / 'sub-001', scans / 'sub-101')


CHANGES = {
    'metrics damaged': ('runs/mine', lambda p: (p / 'metrics.json').write_text('{')),
    'metrics gone': ('runs/mine', lambda p: (p / 'metrics.json').unlink()),
    'weights gone': ('runs/mine', lambda p: (p / 'model' / 'model.safetensors').unlink()),
    'model gone': ('runs/mine', lambda p: shutil.rmtree(p / 'model')),
    'figure gone': ('runs/mine', lambda p: (p / 'figures' / 'panels.png').unlink()),
    'in training': ('runs/mine', lambda p: (p / '.lock').touch()),
    'record damaged': ('runs/mine', lambda p: (p / 'finished.json').write_text('[1')),
    'another person': ('scans', add_a_person),
    'a person less': ('scans', lambda p: shutil.rmtree(p / 'sub-001')),
    'another scan': ('scans', lambda p: os.utime(next(p.rglob('*T1w.nii.gz')))),
    'another sidecar': ('scans', lambda p: next(p.rglob('*.json')).write_text('{"EchoTime": 1}')),
}


@pytest.mark.parametrize('change', CHANGES)
def test_what_has_changed_since_is_seen(change, finished):
    place, work = CHANGES[change]
    kept = finished / 'kept'
    shutil.copytree(finished / place, kept)  # with its times
    try:
        assert is_left(finished)
        work(finished / place)
        assert not is_left(finished)
    finally:
        shutil.rmtree(finished / place)
        kept.rename(finished / place)
    assert is_left(finished)


def test_another_version_or_folder_is_another_job(finished, monkeypatch):
    assert is_left(finished)
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert not is_left(finished)
    monkeypatch.delenv('WORLD_SIZE')
    monkeypatch.setattr(sys, 'version', '2.7')
    assert not is_left(finished)


def test_a_run_that_changed_is_measured_again_and_finished_again(finished):
    metrics = finished / 'runs' / 'mine' / 'metrics.json'
    metrics.write_text('{')
    done = xmodal('train', *words_of_run(), cwd=finished)
    assert done.returncode == 0, done.stderr
    assert 'nothing is done' not in done.stdout and json.loads(metrics.read_text())['scores']
    assert is_left(finished)


def test_a_run_that_goes_on_is_not_finished(finished):
    done = xmodal('train', *words_of_run('--resume --lr 0.5'), cwd=finished)
    assert done.returncode == 2 and 'this run was started with lr' in done.stderr
    assert not (finished / 'runs' / 'mine' / 'finished.json').exists()
    assert not is_left(finished)  # another training was begun here, and has not come to its end

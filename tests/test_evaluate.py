"Evaluation as a user types it: xmodal evaluate, xmodal report, papermill nbs/evaluate.ipynb."

import json, os, re, shutil, subprocess, sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from small_model import xmodal

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}'}


def started(*words):
    return subprocess.run(
        [sys.executable, '-m', 'xmodal.cli', *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=ENV,
    )


def here(capsys, *words):
    """The command in this process (no import of torch each time): exit code, output, and the lines
    of error without notes and progress.
    """
    from xmodal.cli import main

    code = main([*map(str, words)])
    done = capsys.readouterr()
    return code, done.out, re.findall(r'xmodal: (?!note)[^\n]*', done.err)


# what a segmenter may be: a program that is called with a scan and the label file to write
SEGMENTER = """
import sys, nibabel as nib, numpy as np
im = nib.load(sys.argv[1])
v = im.get_fdata()
top = np.percentile(v, 99)
labels = (v > 0.3 * top).astype(np.uint8) + (v > 0.7 * top).astype(np.uint8)
nib.save(nib.Nifti1Image(labels, im.affine), sys.argv[2])
"""


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Made brains: truth, a noisy translation under the names of the sources, a half-bright one,
    tissue labels.
    """
    from xmodal.data.layouts import find_records

    here, rng = tmp_path_factory.mktemp('eval'), np.random.default_rng(0)
    for d in ('good', 'dark', 'truth', 'labels'):
        (here / d).mkdir()
    for r in find_records('phantom', n=4, voxel=6.0):
        t = nib.load(r.target)
        v = t.get_fdata(dtype=np.float32)
        top = np.percentile(v, 99)
        nib.save(
            nib.Nifti1Image(
                (v + 0.03 * top * rng.standard_normal(v.shape)).astype(np.float32), t.affine
            ),
            here / 'good' / r.source.name,
        )
        nib.save(
            nib.Nifti1Image((v / 2).astype(np.float32), t.affine), here / 'dark' / r.source.name
        )
        nib.save(
            nib.Nifti1Image(
                (v > 0.3 * top).astype(np.uint8) + (v > 0.7 * top).astype(np.uint8), t.affine
            ),
            here / 'labels' / f'{r.name}_dseg.nii.gz',
        )
        shutil.copy(r.target, here / 'truth')
    return here


def test_numbers_carry_their_protocol(folders, tmp_path):
    r = started('evaluate', folders / 'good', folders / 'truth', '--out', tmp_path / 'run')
    assert r.returncode == 0, r.stderr
    lines = r.stdout.splitlines()
    at = next(i for i, l in enumerate(lines) if l.startswith('psnr'))
    line = '; '.join(lines[at - 1 : at + 1])  # the protocol stands above its numbers
    for word in (
        'dB',
        '4 subjects',
        'protocol fixed',
        'range -1 to 1',
        'no mask',
        'per slice',
        'percentile of each truth',
    ):
        assert word in line, line
    m = json.loads((tmp_path / 'run' / 'metrics.json').read_text())
    assert (
        25 < m['scores']['good']['psnr']['mean'] < 45
        and m['scores']['good']['psnr']['n_subjects'] == 4
        and 'protocol fixed' in m['protocol']
    )
    assert (
        len((tmp_path / 'run' / 'rows.csv').read_text().splitlines())
        == m['scores']['good']['psnr']['n_images'] + 1
    )


def test_a_half_bright_copy_is_not_perfect(folders):
    "It is under the protocol that rescales each prediction by itself, and there a warning says so."
    db = lambda r: float(next(l for l in r.stdout.splitlines() if l.startswith('psnr')).split()[1])
    fixed, own = (
        xmodal('evaluate', folders / 'dark', folders / 'truth'),
        xmodal('evaluate', folders / 'dark', folders / 'truth', '--protocol', 'syndiff'),
    )
    assert (
        db(fixed) < 25
        and (db(own) > 60 or db(own) == np.inf)
        and 'rescales each prediction' in own.stderr
        and 'NORMALISED' in own.stdout
        and own.stderr.count('.py') == 0
    )


@pytest.mark.parametrize(
    'harm, words',
    [
        (lambda d: next(d.iterdir()).unlink(), ['has no translation', 'must not leave the mean']),
        (
            lambda d: shutil.copy(next(d.iterdir()), d / 'sub-999_T1w.nii.gz'),
            ['sub-999', 'has no truth'],
        ),
        (lambda d: change(d, lambda v, a: (v[:-1], a)), ['shape', '--onto truth']),
        (
            lambda d: change(d, lambda v, a: (v, a + np.outer([5, 0, 0, 0], [0, 0, 0, 1]))),
            ['5.00 mm away'],
        ),
        (lambda d: change(d, lambda v, a: (v * 10, a)), ['values span', 'another unit']),
        (lambda d: change(d, lambda v, a: (np.where(v > 0, np.inf, v), a)), ['infinite']),
        (lambda d: [p.write_bytes(p.read_bytes()[:-100]) for p in d.iterdir()], ['damaged']),
        (lambda d: [p.unlink() for p in d.iterdir()], ['holds no']),
    ],
    ids=['missing', 'extra', 'shape', 'affine', 'range', 'infinite', 'damaged', 'empty'],
)
def test_folders_that_do_not_match(harm, words, folders, tmp_path, capsys):
    shutil.copytree(folders / 'good', tmp_path / 'pred')
    harm(tmp_path / 'pred')
    code, _, lines = here(
        capsys, 'evaluate', tmp_path / 'pred', folders / 'truth', '--out', tmp_path / 'run'
    )
    assert code == 1 and len(lines) == 1
    for w in words:
        assert w in lines[0], lines[0]
    assert not (tmp_path / 'run').exists()


def change(folder, f):
    for p in folder.iterdir():
        img = nib.load(p)
        v, a = f(img.get_fdata(dtype=np.float32), img.affine)
        nib.save(nib.Nifti1Image(np.asarray(v, np.float32), a), p)


def test_image_kinds_must_agree(tmp_path, capsys):
    for d, dtype in (('a', np.uint8), ('b', np.uint16)):
        (tmp_path / d).mkdir()
        Image.fromarray((np.arange(1024).reshape(32, 32) % 200).astype(dtype)).save(
            tmp_path / d / 'x_1.png'
        )
    code, _, lines = here(capsys, 'evaluate', tmp_path / 'a', tmp_path / 'b')
    assert code == 1 and len(lines) == 1 and 'uint16' in lines[0] and 'uint8' in lines[0]


def test_masks(tmp_path, capsys):
    "A missed crack is a zero and a diagonal, not a NaN that leaves the mean."
    for d in 'pt':
        (tmp_path / d).mkdir()
    for i in range(3):
        m = np.zeros((40, 40), np.uint8)
        m[10 + i, 5:35] = 255
        Image.fromarray(m).save(tmp_path / 't' / f'm{i}_1.png')
        Image.fromarray(m if i else 0 * m).save(tmp_path / 'p' / f'm{i}_1.png')
    code, out, _ = here(
        capsys, 'evaluate', tmp_path / 'p', tmp_path / 't', '--masks', '--group', '^(m.)_'
    )
    dice = next(l for l in out.splitlines() if l.startswith('dice'))
    hd = next(l for l in out.splitlines() if l.startswith('hd95'))
    assert (
        code == 0
        and '0.667' in dice
        and '1 missed' in dice
        and float(hd.split()[1]) == pytest.approx(np.hypot(40, 40) / 3, abs=1e-3)
    )


def test_notebook_on_folders_and_report(folders):
    "Table, statistics, worst cases, error by class; then every run in one table."
    name = 'test-evaluation'
    run = ROOT / 'runs' / name
    shutil.rmtree(run, ignore_errors=True)
    (folders / 'seg.py').write_text(SEGMENTER)
    words = dict(
        segmenter=f'{sys.executable} {folders / "seg.py"} {{in}} {{out}}',
        predictions=folders / 'good',
        truth=folders / 'truth',
        labels=folders / 'labels',
        label_names='0:air,1:grey,2:bright',
        others=f'half={folders / "dark"}',
        protocol='all',
        name=name,
    )
    r = subprocess.run(
        [
            str(BIN / 'papermill'),
            str(ROOT / 'nbs' / 'evaluate.ipynb'),
            '--no-progress-bar',
            '--log-level',
            'ERROR',
            *[x for k, v in words.items() for x in ('-p', k, str(v))],
        ],
        cwd=ROOT / 'tests',
        capture_output=True,
        text=True,
        env=ENV,
    )
    try:
        assert r.returncode == 0, r.stderr[-3000:]
        m = json.loads((run / 'metrics.json').read_text())
        regional = {k for k in m['scores'] if k.startswith('translation ')}
        assert regional == {
            *(f'translation in {k}' for k in ('air', 'grey', 'bright')),
            *(f'translation segmented, {k}' for k in ('air', 'grey', 'bright')),
        }
        assert m['scores']['translation segmented, grey']['dice_kept']['mean'] > 0.8
        assert (
            set(m['scores']) - regional == {'translation', 'half'}
            and m['scores']['translation']['psnr']['mean'] > m['scores']['half']['psnr']['mean'] + 3
        )
        assert {p.name for p in (run / 'figures').iterdir()} == {
            'comparison.png',
            'subjects.png',
            'sharpness.png',
            'worst.png',
            'classes.png',
        }
        out = xmodal('report', run)
        assert (
            out.returncode == 0
            and 'protocol fixed' in out.stdout
            and {'report.md', 'report.csv', 'report.tex'} <= {p.name for p in run.iterdir()}
        )
    finally:
        shutil.rmtree(run, ignore_errors=True)
    r = xmodal('report', folders)
    assert r.returncode == 1 and 'metrics.json' in r.stderr and r.stderr.count('\n') == 1


def test_options_with_a_minus_and_runs_that_must_not_be_overwritten(folders, tmp_path, capsys):
    code, out, lines = here(
        capsys, 'evaluate', folders / 'good', folders / 'truth', '--window', '-1:2000'
    )
    assert code == 0 and 'scaled by -1:2000' in out, lines
    (tmp_path / 'run' / 'model').mkdir(parents=True)
    code, _, lines = here(
        capsys, 'evaluate', folders / 'good', folders / 'truth', '--out', tmp_path / 'run'
    )
    assert (
        code == 1
        and 'holds a training run' in lines[0]
        and not (tmp_path / 'run' / 'metrics.json').exists()
    )

"""What is left of a translation downstream: a segmenter run on both scans, metrics inside regions,
intervals over people, and a segmenter of one's own, as a user types it.
"""

import json
import re
import sys
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_model import xmodal

from xmodal.core import InputError
from xmodal.downstream import region_rows, run_words, segment_cases, segmenter_asked
from xmodal.evaluation.cohort import match

PROGRAM = """
import sys, numpy as np
path, out, *words = sys.argv[1:]
if path.endswith('png'):
    from PIL import Image
    v = np.asarray(Image.open(path))
    Image.fromarray((v > 180).astype(np.uint8)).save(out)
else:
    import nibabel as nib
    img = nib.load(path)
    if 'fail' in words and 'sub-02' in path and '/pred/' in path:
        sys.exit('no memory left')
    if 'wait' in words:
        import subprocess
        child = "import time; time.sleep(8); open('%s', 'w').write('still here')" % words[1]
        subprocess.run([sys.executable, '-c', child])
    nib.save(nib.Nifti1Image((img.get_fdata() > 200).astype(np.uint8), img.affine), out)
"""
BRIGHT = (slice(8, 14), slice(8, 14), slice(1, 4))  # 108 voxels of 0.02 ml


def scan(path, bright=250.0, where=BRIGHT):
    path.parent.mkdir(parents=True, exist_ok=True)
    v = np.zeros((24, 24, 5), np.float32)
    v[3:21, 3:21] = 150
    v[where] = bright
    nib.save(nib.Nifti1Image(v, np.diag([2.0, 2, 5, 1])), path)


@pytest.fixture
def cohort(tmp_path):
    "Six people; the translation of sub-00 lost the bright region, that of sub-01 moved it by half."
    for k in range(6):
        scan(tmp_path / 'truth' / f'sub-{k:02d}_T2w.nii.gz')
        moved = (slice(11, 17), *BRIGHT[1:]) if k == 1 else BRIGHT
        scan(tmp_path / 'pred' / f'sub-{k:02d}_T2w.nii.gz', 150.0 if k == 0 else 250.0, moved)
        mask = np.zeros((24, 24, 5), np.uint8)
        mask[BRIGHT] = 255 if k < 5 else 0
        (tmp_path / 'mask').mkdir(exist_ok=True)
        where = tmp_path / 'mask' / f'sub-{k:02d}_mask.nii.gz'
        nib.save(nib.Nifti1Image(mask, np.diag([2.0, 2, 5, 1])), where)
    (tmp_path / 'seg.py').write_text(PROGRAM)
    return tmp_path


def command(cohort, *words):
    return ' '.join([sys.executable, str(cohort / 'seg.py'), '{in}', '{out}', *words])


def evaluate(cohort, *words):
    folders = cohort / 'pred', cohort / 'truth'
    return xmodal('evaluate', *folders, '--window', '0:250', '--out', cohort / 'run', *words)


def test_a_command_is_run_on_both_scans(cohort):
    done = evaluate(cohort, '--segmenter', command(cohort), '--reference', cohort / 'mask')
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(cohort / 'run' / 'segmented.csv').set_index('subject')
    assert rows.dice_kept.tolist() == [0, 0.5, 1, 1, 1, 1]
    # sub-05 has no reference lesion, and one is drawn in both scans
    assert rows.dice_real.tolist() == [1, 1, 1, 1, 1, 0]
    assert rows.dice_lost.tolist() == [1, 0.5, 0, 0, 0, 0]
    assert rows.volume_real.to_numpy() == pytest.approx(108 * 0.02)
    assert rows.volume_difference.to_numpy() == pytest.approx([-2.16, 0, 0, 0, 0, 0])
    line = next(v for v in done.stdout.splitlines() if v.startswith('mask dice_kept'))
    assert '0.75 ± 0.418 [' in line and 'n = 6 subjects' in line
    assert sum('labels by' in v and 'seg.py' in v for v in done.stdout.splitlines()) == 1
    assert 'mask: 6 files, in the translation 1 missed, 0 invented, 0 empty' in done.stdout
    stats = json.loads((cohort / 'run' / 'metrics.json').read_text())['scores']
    kept = stats['pred segmented, mask']['dice_kept']
    assert kept['mean'] == 0.75 and 0 < kept['low'] < 0.75 < kept['high'] <= 1
    there = sorted(p.name for p in (cohort / 'run' / 'labels' / 'translated').iterdir())
    assert len(there) == 6 and len(list((cohort / 'run' / 'labels' / 'real').iterdir())) == 6
    people = pd.read_csv(cohort / 'run' / 'segmented_people.csv')
    assert people.subject.nunique() == 6 and people.dice_kept.mean() == 0.75


def test_a_case_that_fails_is_named_and_no_mean_is_silent(cohort):
    done = evaluate(cohort, '--segmenter', command(cohort, 'fail'))
    assert done.returncode == 1
    assert 'left out: sub-02_T2w: the translated scan' in done.stderr
    assert 'exit code 1; it said: no memory left' in done.stderr
    assert '1 OF 6 FILES FAILED AND ARE LEFT OUT' in done.stdout
    assert len(pd.read_csv(cohort / 'run' / 'segmented.csv')) == 5
    notes = json.loads((cohort / 'run' / 'metrics.json').read_text())['notes']
    assert any('no memory left' in n for n in notes)


def test_a_program_that_takes_too_long_is_ended_with_its_children(cohort):
    said = cohort / 'child.txt'
    cases = match(cohort / 'pred', cohort / 'truth')[:1]
    slow = segmenter_asked(command(cohort, 'wait', str(said)), 3)
    start = time.monotonic()
    with pytest.raises(InputError, match='longer than 3 s'):
        segment_cases(cases, slow, cohort / 'labels', False)
    assert time.monotonic() - start < 8
    time.sleep(max(0, 12 - (time.monotonic() - start)))
    assert not said.exists()


def test_no_shell_looks_at_the_words(cohort):
    (cohort / 'a b;c').mkdir()
    (cohort / 'pred').rename(cohort / 'a b;c' / 'pred')
    touched = cohort / 'touched'
    words = ['--window', '0:250', '--segmenter', f'{command(cohort)} "; touch {touched}"']
    done = xmodal('evaluate', cohort / 'a b;c' / 'pred', cohort / 'truth', *words)
    assert done.returncode == 0, done.stderr
    assert 'dice_kept' in done.stdout and not touched.exists()
    assert run_words(['echo', '$HOME'], 5) == '; it said: $HOME'


def test_inside_regions(cohort):
    done = evaluate(cohort, '--roi', cohort / 'mask', '--classes', '255:lesion')
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(cohort / 'run' / 'regions.csv').set_index('subject')
    # 100 of 250 too dark in all of it, in half of it, and nowhere
    assert rows.mae.tolist()[:5] == pytest.approx([0.4, 0.2, 0, 0, 0], abs=1e-6)
    assert rows.bias.tolist()[:5] == pytest.approx([-0.4, -0.2, 0, 0, 0], abs=1e-6)
    assert rows.psnr['sub-00'] == pytest.approx(-20 * np.log10(0.4), abs=1e-4)
    assert rows.pixels.tolist() == [108] * 5 + [0] and np.isnan(rows.psnr['sub-05'])
    assert 'note: lesion: absent in 1 of 6 files' in done.stdout
    # a whole head hardly notices
    whole = pd.read_csv(cohort / 'run' / 'rows.csv').groupby('subject').mae.mean()
    assert whole['sub-00'] < 0.1 * rows.mae['sub-00']
    stats = json.loads((cohort / 'run' / 'metrics.json').read_text())['scores']
    assert stats['pred in lesion']['mae']['n_subjects'] == 5


def test_a_mask_and_holes_belong_to_no_region(cohort):
    half = nib.load(cohort / 'mask' / 'sub-00_mask.nii.gz').get_fdata()
    half[:11] = 0
    for k in range(6):
        where = cohort / 'half' / f'sub-{k:02d}.nii.gz'
        where.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image((half > 0).astype(np.uint8), np.diag([2.0, 2, 5, 1])), where)
    folders = dict(labels=cohort / 'mask', mask=cohort / 'half')
    rows = region_rows(match(cohort / 'pred', cohort / 'truth', **folders), window='0:250')
    assert rows.pixels.tolist() == [54] * 5 + [0]


@pytest.mark.parametrize(
    'words, said',
    [
        (['--segmenter', 'no_such_tool {in} {out}'], 'no program no_such_tool'),
        (['--segmenter', 'ls {in}'], 'lacks {out}'),
        (['--segmenter', 'ls {in} {out} {gpu}'], 'does not know {gpu}'),
        (['--segmenter', 'ls {in} {out}', '--timeout', '0'], 'positive number of seconds'),
        (['--others', 'a=b'], '--others belongs to --rigid'),
        (['--others', 'a', '--rigid'], 'name=folder'),
        (['--rigid'], 'give their folder as --source'),
        (['--segmenter', 'ls {in} {out}', '--timeout', '-1'], 'positive number of seconds'),
        (['--segmenter', 'true {in} {out}'], 'wrote no sub-00_T2w.nii.gz'),
        (['--reference', 'MASK'], '--reference belongs to --segmenter'),
        (['--timeout', '5'], '--timeout belongs to --segmenter'),
        (['--classes', '1:a'], '--masks, --roi or --segmenter'),
        (['--masks', '--roi', 'MASK'], '--roi looks at images'),
        (['--roi', 'MASK', '--classes', '1:a'], 'holds the value 255'),
    ],
)
def test_what_cannot_be_done_is_one_line(words, said, cohort):
    words = [str(cohort / 'mask') if w == 'MASK' else w for w in words]
    window = [] if '--masks' in words else ['--window', '0:250']
    done = xmodal('evaluate', cohort / 'pred', cohort / 'truth', *window, *words)
    lines = re.findall(r'xmodal: (?!note)[^\n]*', done.stderr)
    assert done.returncode == 1 and len(lines) == 1 and said in lines[0], done.stderr


def test_intervals_stand_beside_every_number(cohort):
    done = evaluate(cohort)
    line = next(v for v in done.stdout.splitlines() if v.startswith('mae'))
    assert ' [' in line.split(' (')[0] and 'interval of the mean over 6 subjects' in done.stdout
    s = json.loads((cohort / 'run' / 'metrics.json').read_text())['scores']['pred']['mae']
    assert s['low'] < s['mean'] < s['high']
    for path in [*(cohort / 'pred').iterdir(), *(cohort / 'truth').iterdir()]:
        if path.name[:6] > 'sub-01':
            path.unlink()
    done = evaluate(cohort)
    assert 'three are needed' in done.stdout and ' [' not in done.stdout.split(' (')[0]


def test_pictures(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(4):
        for side in ('pred', 'truth'):
            v = rng.integers(0, 100, (32, 32)).astype(np.uint8)
            v[8:16, 8 : 16 + 4 * (side == 'pred')] = 220
            (tmp_path / side).mkdir(exist_ok=True)
            Image.fromarray(v).save(tmp_path / side / f'scene-{k}.png')
    (tmp_path / 'seg.py').write_text(PROGRAM)
    words = ['--segmenter', command(tmp_path), '--out', tmp_path / 'run']
    done = xmodal('evaluate', tmp_path / 'pred', tmp_path / 'truth', *words)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / 'run' / 'segmented.csv')
    assert rows.dice_kept.tolist() == [0.8] * 4 and rows.volume_difference.tolist() == [32] * 4
    assert 'volumes in pixels' in done.stdout


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
    "A data set of bright balls, and a segmenter that the command has learned from it."
    root = tmp_path_factory.mktemp('balls')
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in (48, 48, 3)], indexing='ij'))
    for k in range(8):
        rng = np.random.default_rng(k)
        middle = np.array([*rng.uniform(16, 32, 2), 1])[:, None, None, None]
        ball = ((grid - middle) ** 2).sum(0) < 40
        body = ((grid[:2] - 24) ** 2).sum(0) < 400
        for name, v in dict(T1w=200.0 * body, FLAIR=300 * body + 400 * ball).items():
            v = (v + 15 * rng.random(v.shape)).astype(np.float32)
            where = root / 'set' / f'sub-{k:02d}' / 'anat' / f'sub-{k:02d}_{name}.nii.gz'
            where.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(v, np.diag([-2.0, 2, 4, 1])), where)
        mask = nib.Nifti1Image(ball.astype(np.uint8), np.diag([-2.0, 2, 4, 1]))
        nib.save(mask, where.with_name(f'sub-{k:02d}_mask.nii.gz'))
    words = ['--root', root / 'set', '--source', 'T1w', '--target', 'FLAIR', '--classes', '1:ball']
    words += ['--labels', '{subject}/anat/{name}_mask.nii.gz', '--crop', 48, '--width', 8]
    words += ['--steps', 60, '--batch', 4, '--train-subjects', 'sub-00,sub-01,sub-02,sub-03']
    words += ['--test-subjects', 'sub-06,sub-07']
    done = xmodal('segmenter', 'train', root / 'seg', *words)
    assert done.returncode == 0, done.stderr
    return root, done


def test_a_segmenter_of_ones_own(learned, tmp_path):
    root, done = learned
    assert '4 people trained, 2 validated' in done.stdout
    for k in (6, 7, 0):
        name = f'sub-{k:02d}_FLAIR.nii.gz'
        img = nib.load(root / 'set' / f'sub-{k:02d}' / 'anat' / name)
        for side, v in dict(truth=img.get_fdata(), pred=np.minimum(img.get_fdata(), 330)).items():
            (tmp_path / side).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(v.astype(np.float32), img.affine), tmp_path / side / name)
        mask = root / 'set' / f'sub-{k:02d}' / 'anat' / f'sub-{k:02d}_mask.nii.gz'
        (tmp_path / 'mask').mkdir(exist_ok=True)
        nib.save(nib.load(mask), tmp_path / 'mask' / f'sub-{k:02d}_mask.nii.gz')
    out = tmp_path / 'labels'
    assert xmodal('segmenter', 'apply', root / 'seg', tmp_path / 'truth', out).returncode == 0
    assert sorted(p.name for p in out.iterdir())[0] == 'sub-00_FLAIR.nii.gz'
    assert xmodal('segmenter', 'apply', root / 'seg', tmp_path / 'truth', out).returncode == 1
    words = ['--segmenter', root / 'seg', '--reference', tmp_path / 'mask', '--out', tmp_path / 'o']
    done = xmodal('evaluate', tmp_path / 'pred', tmp_path / 'truth', *words)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / 'o' / 'segmented.csv')
    assert (rows.label == 'ball').all() and (rows.dice_real > 0.8).all()
    assert (rows.dice_lost > 0.3).all(), rows
    assert 'learned from 1 of these subjects (sub-00)' in done.stdout


def test_its_encoder_serves_a_training(learned):
    import torch

    from xmodal.training.terms import Terms, weights_of

    terms = Terms('features:1', learned[0] / 'seg' / 'encoder.pt')
    x = torch.rand(2, 1, 48, 48)
    assert torch.all(terms(x, x) < 1e-6) and torch.all(terms(x, -x) > 1e-2)
    by_folder = Terms('features:1', learned[0] / 'seg')
    assert torch.equal(by_folder(x, -x), terms(x, -x))
    assert weights_of(learned[0] / 'seg').name == 'segmenter.safetensors'


def test_damaged_segmenters_are_refused(learned, tmp_path):
    import shutil

    for name, harm, said in [
        ('a', lambda d: (d / 'segmenter.safetensors').write_bytes(b'x' * 99), 'damaged'),
        ('b', lambda d: (d / 'segmenter.json').write_text('{}'), 'lacks format'),
        ('c', lambda d: (d / 'segmenter.json').write_text('{'), 'cannot be read'),
        ('d', lambda d: (d / 'segmenter.json').unlink(), 'no segmenter.json'),
    ]:
        shutil.copytree(learned[0] / 'seg', tmp_path / name)
        harm(tmp_path / name)
        with pytest.raises(InputError, match=said):
            segmenter_asked(str(tmp_path / name))

"""LPIPS and a Fréchet distance with weights that are at hand, and how far scores and the order of
methods depend on the registration of the truth, as a user types it.
"""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter, shift
from small_model import xmodal

from xmodal.core import mend_torchvision

AFFINE = np.diag([2.0, 2, 2, 1])


def head(k):
    "A smooth head with an inside that is this person's own, (40, 48, 36)."
    rng = np.random.default_rng(k)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (40, 48, 36)], indexing='ij'))
    body = (grid**2).sum(0) < 0.7
    inner = gaussian_filter(rng.normal(size=body.shape), 2)
    return np.where(body, 100 + 60 * inner / inner.std(), 0).clip(0).astype(np.float32)


@pytest.fixture(scope='module')
def heads(tmp_path_factory):
    "Four people: truths 4 mm beside their sources, a sharp, a soft and a noisy translation."
    root = tmp_path_factory.mktemp('heads')
    for k in range(4):
        v, rng = head(k), np.random.default_rng(100 + k)
        noise = rng.normal(size=v.shape).astype(np.float32)
        sides = dict(source=200 - v * (v > 0), truth=shift(v, (2, 0, 0), order=1))
        sides |= dict(sharp=v + 2 * noise, soft=gaussian_filter(v, 1.5), noisy=v + 30 * noise)
        for side, x in sides.items():
            (root / side).mkdir(exist_ok=True)
            img = nib.Nifti1Image(x.astype(np.float32), AFFINE)
            nib.save(img, root / side / f'sub-{k}.nii.gz')
    return root


def test_registration_changes_scores_and_says_how_far(heads, tmp_path):
    others = f'soft={heads / "soft"},noisy={heads / "noisy"}'
    words = ['--source', heads / 'source', '--rigid', '--others', others, '--out', tmp_path / 'run']
    done = xmodal('evaluate', heads / 'sharp', heads / 'truth', *words)
    assert done.returncode == 0, done.stderr
    motions = pd.read_csv(tmp_path / 'run' / 'motions.csv')
    assert motions.mm.to_numpy() == pytest.approx(4, abs=0.7) and motions.degrees.max() < 3
    table = pd.read_csv(tmp_path / 'run' / 'registrations.csv').set_index('method')
    assert list(table.index) == ['sharp', 'soft', 'noisy']
    # what lies where it should gains most
    assert table['diff']['sharp'] > 10 > table['diff'][['soft', 'noisy']].max()
    assert table['diff'].min() > 0
    assert table.low['sharp'] <= table['diff']['sharp'] <= table.high['sharp']
    # beside their truths the soft one is best, on them the sharp one
    assert table.given['soft'] > table.given['sharp']
    assert table.moved['sharp'] > table.moved['soft']
    assert 'tau of the methods 0.33' in done.stdout
    assert len(list((tmp_path / 'run' / 'registered').iterdir())) == 4


def test_lpips_of_one_translation_each(heads, tmp_path):
    mend_torchvision()
    from torchvision.models import alexnet

    torch.manual_seed(0)
    torch.save(alexnet().state_dict(), tmp_path / 'alex.pth')
    for side in ('soft', 'truth'):
        (tmp_path / side).mkdir()
        for p in sorted((heads / side).iterdir())[:3]:
            v = nib.load(p).get_fdata()[..., 16:19].repeat(2, 0).repeat(2, 1)
            v = nib.Nifti1Image(v.astype(np.float32), np.diag([1.0, 1, 2, 1]))
            nib.save(v, tmp_path / side / p.name)
    words = ['--lpips', tmp_path / 'alex.pth', '--out', tmp_path / 'run']
    done = xmodal('evaluate', tmp_path / 'soft', tmp_path / 'truth', *words)
    assert done.returncode == 0, done.stderr
    s = json.loads((tmp_path / 'run' / 'metrics.json').read_text())['scores']['soft']['lpips']
    assert 0 < s['low'] <= s['mean'] <= s['high'] and s['n_subjects'] == 3
    rows = pd.read_csv(tmp_path / 'run' / 'lpips.csv')
    assert len(rows) == 9 and rows.lpips.mean() == pytest.approx(s['mean'])
    assert 'lpips ' in done.stdout and 'AlexNet, alex.pth' in done.stdout


def test_a_distance_with_any_network(heads, tmp_path):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3))
    torch.jit.trace(net, torch.zeros(1, 3, 16, 16)).save(str(tmp_path / 'net.ts'))
    found = {}
    for side in ('sharp', 'noisy'):
        words = ['--features', tmp_path / 'net.ts', '--out', tmp_path / side]
        done = xmodal('evaluate', heads / side, heads / 'truth', *words)
        assert done.returncode == 0, done.stderr
        assert 'features of net.ts, 6 of' in done.stdout and 'one half of the people' in done.stdout
        scores = json.loads((tmp_path / side / 'metrics.json').read_text())['scores']
        found[side] = scores[side]['frechet']['mean']
    assert 0 < found['sharp'] < 0.5 * found['noisy']
    assert xmodal('report', tmp_path).returncode == 0


@pytest.mark.parametrize(
    'words, said',
    [
        (['--features', 'absent.pth'], 'absent.pth: no such file'),
        (['--lpips', 'absent.pth'], 'absent.pth: no such file'),
        (['--features', __file__], 'no file of weights'),
        (['--rigid', '--source', 'SOURCE', '--others', 'sharp=x'], 'sharp is the first folder'),
        (['--rigid', '--source', 'SOURCE', '--others', 'a=x,a=y'], 'name=folder'),
        (['--rigid', '--source', 'SOURCE', '--others', 'a=x'], 'x: no such file or folder'),
    ],
)
def test_what_cannot_be_done_is_one_line(words, said, heads):
    words = [str(heads / 'source') if w == 'SOURCE' else w for w in words]
    done = xmodal('evaluate', heads / 'sharp', heads / 'truth', *words)
    lines = [v for v in done.stderr.splitlines() if v.startswith('xmodal: ') and 'note' not in v]
    assert done.returncode == 1 and len(lines) == 1 and said in lines[0], done.stderr

"A check of many pairs: the same findings with pictures read again, and with fewer comparisons."

import numpy as np
import pytest
from PIL import Image

from xmodal.core import InputError
from xmodal.data import check as checking

rng = np.random.default_rng(0)


def pairs(folder, n=14):
    "Pictures of blobs; pair 3 is mirrored, 5 shifted, source 7 is a copy of source 1."
    for side in 'yx':
        (folder / side).mkdir()
    first = None
    for k in range(n):
        low = Image.fromarray(rng.integers(0, 256, (6, 6)).astype(np.uint8))
        y = np.asarray(low.resize((64, 64), Image.BICUBIC))
        first = y if k == 1 else first
        y = first if k == 7 else y
        x = 255 - y
        x = x[:, ::-1] if k == 3 else np.roll(x, 6, 1) if k == 5 else x
        Image.fromarray(y).save(folder / 'y' / f's{k:02d}.png')
        Image.fromarray(np.ascontiguousarray(x)).save(folder / 'x' / f's{k:02d}.png')
    return dict(root=folder, source='y', target='x', progress=False)


def test_pictures_that_are_read_again_change_no_finding(tmp_path, monkeypatch):
    how = pairs(tmp_path)
    wanted = checking.check('folder', **how)
    assert {'flip', 'shift', 'duplicate'} <= {f.what for f in wanted.findings}
    monkeypatch.setattr(checking, 'KEPT', 2)
    found = checking.check('folder', **how)
    assert found.lines() == wanted.lines() and found.table == wanted.table
    assert sum('y' in d for d in found.looked) == 2 and sum('fine' in d for d in found.looked) == 2
    assert found.figure() is not None
    found.worst()['r'].source.unlink()
    with pytest.raises(InputError, match='no such file'):
        found.figure()


@pytest.mark.parametrize('n', [2, 5, 8])
def test_the_median_of_all_others_comes_from_one_sorting(n):
    x = rng.integers(0, 4, (n, 3, 2)) / 7
    wanted = [np.median(np.delete(x, k, 0), 0) for k in range(n)]
    np.testing.assert_array_equal(checking.left_out_median(x), wanted)


def test_a_tree_finds_the_close_pictures_that_all_comparisons_find():
    smooth = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 256))
    D = np.concatenate([smooth, smooth[::30] + 0.1 * rng.normal(size=(10, 256))])
    D = ((D - D.mean(1, keepdims=True)) / D.std(1, keepdims=True)).astype(np.float32)
    subject = np.arange(len(D))
    wanted, typical = checking.nearest_pictures(D, subject)
    found, about = checking.nearest_pictures(D, subject, most=100)
    assert [v[:2] for v in found] == [v[:2] for v in wanted] and len(wanted) >= 10
    np.testing.assert_allclose([v[2] for v in found], [v[2] for v in wanted], atol=1e-3)
    assert abs(about / typical - 1) < 0.2

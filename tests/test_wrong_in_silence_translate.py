"No wrong answer without a word in translation: cuts, labels, number types, arrays, notes, headers, and files that must not stop a cohort."

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import small_model
from small_model import IMAGE, TINY, echo

from xmodal.core import InputError
from xmodal.data import images
from xmodal.data.cache import prepare
from xmodal.data.records import Record
from xmodal.data.volumes import header_concerns
from xmodal.folders import companion_path, translate_paths
from xmodal.nets.build import build
from xmodal.training.model_folder import save_model
from xmodal.data.units import units_note
from xmodal.translate import Changed, Translator, target_units


VOLUME = dict(small_model.VOLUME, target_dtype='float32')


def said(call):
    "What a call returns, and its warnings as (category, text)."
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        got = call()
    return got, [(v.category, str(v.message)) for v in w]


def quietly(call):
    return said(call)[0]


def picture(path, shape=(20, 24), seed=0, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    top = 1 if dtype == bool else np.iinfo(dtype).max
    a = (np.random.default_rng(seed).random(shape) * top).round().astype(dtype)
    Image.fromarray(a).save(path) if path.suffix == '.png' else tifffile.imwrite(path, a)
    return a


def scan(path, seed=0, shape=(14, 16, 6), dtype=np.int16, top=900, zooms=(3.0, 3, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    v = (np.random.default_rng(seed).random(shape) * top).astype(dtype)
    img = nib.Nifti1Image(v, np.diag([*zooms, 1]))
    img.set_sform(img.affine, 1)
    nib.save(img, path)
    return path


# --- 1: how images are cut


def test_a_model_of_patches_takes_patches():
    "At full resolution: padded as in training, or in tiles of its size."
    tr = echo(IMAGE, fit='patch')
    for shape in ((32, 32), (20, 24), (32, 9)):
        a = (np.random.default_rng(1).random(shape) * 255).astype(np.uint8)
        got, words = said(lambda: tr.translate(a))
        assert np.array_equal(got, a) and not words
        seen = []
        tr.den.net.register_forward_hook(lambda m, args, out: seen.append(args[2]))
        tr.translate(a)
        # in the corner
        assert np.allclose(seen[-1][0, 0, : shape[0], : shape[1]], a / 127.5 - 1, atol=1e-5)
        assert (seen[-1][0, 0, shape[0] :] == -1).all()
    big = (np.random.default_rng(2).random((70, 45)) * 255).astype(np.uint8)
    got, words = said(lambda: tr.translate(big))
    assert np.array_equal(got, big) and not words  # nothing is shrunk
    assert len(seen[-1]) > 1 and seen[-1].shape[-2:] == (32, 32)  # in tiles of the training's size


def test_what_is_shrunk_is_said(tmp_path):
    "One line for a picture and for planes of another pixel size; none where nothing is changed."
    tr = echo(IMAGE)
    picture(tmp_path / 'a.png', (48, 64))
    words = said(lambda: tr.translate(tmp_path / 'a.png'))[1]
    assert [t for c, t in words if c is Changed] == [
        f'{tmp_path / "a.png"}: is shrunk from 64 x 48 to 32 x 24 pixels for the model'
    ]
    assert not said(lambda: tr.translate(picture(tmp_path / 'b.png')))[1]
    tr = echo(VOLUME)
    words = said(
        lambda: tr.translate(scan(tmp_path / 'fine.nii.gz', zooms=(1.5, 1.5, 4), shape=(30, 30, 4)))
    )[1]
    assert any(
        c is Changed and 'planes of 1.5 x 1.5 mm are resampled to 3 mm' in t for c, t in words
    )
    assert not said(lambda: tr.translate(scan(tmp_path / 'same.nii.gz')))[1]


def test_patches_of_volumes_are_refused(tmp_path):
    f = scan(tmp_path / 'v.nii.gz')
    with pytest.raises(InputError, match='fit patch cuts images'):
        prepare([Record('s', 's', f, f)], 16, fit='patch', cache=tmp_path / 'cache', progress=False)
    assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize(
    'base, lack, word', [(IMAGE, 'fit', 'taken as shrunk'), (VOLUME, 'target_dtype', 'float32')]
)
def test_older_model_folders_are_read_and_the_assumption_said(base, lack, word, tmp_path):
    save_model(tmp_path / 'm', build(**TINY), TINY, {k: v for k, v in base.items() if k != lack})
    _, words = said(lambda: Translator.from_pretrained(tmp_path / 'm', 'cpu'))
    assert len(words) == 1 and word in words[0][1]
    save_model(tmp_path / 'n', build(**TINY), TINY, base)
    assert not said(lambda: Translator.from_pretrained(tmp_path / 'n', 'cpu'))[1]


# --- 2: labels

LABELS = dict(target_window=[0.0, 3.0], target_window_rule='labels:0:3')


def test_labels_stay_labels_on_the_way_back():
    """Between a 0 and a 3 on the model's grid, a finer or rotated grid shows no 1 and no 2; a mask
    has two values.
    """
    half = np.full((1, 16, 16), -1.0, np.float32)
    half[:, :, 7:] = 1.0
    tr = echo(IMAGE, size=16, **LABELS)
    tr.den.net.forward = lambda x, t, y, ctx=None: torch.from_numpy(half)[None]
    assert np.unique(tr.translate(np.eye(50, dtype=np.uint8) * 200)).tolist() == [0, 3]
    tr.data = replace(tr.data, target_window_rule='binary', target_window=(0.0, 255.0))
    assert np.unique(tr.translate(np.eye(50, dtype=np.uint8) * 200)).tolist() == [0, 255]
    tr = echo(VOLUME, size=16, **LABELS)
    tr.den.net.forward = lambda x, t, y, ctx=None: torch.from_numpy(half)[None].expand(
        len(y), -1, -1, -1
    )
    a = np.deg2rad(20)
    A = np.array(
        [[np.cos(a), -np.sin(a), 0, 0], [np.sin(a), np.cos(a), 0, 0], [0, 0, 4, 0], [0, 0, 0, 1.0]]
    )
    img = nib.Nifti1Image((np.random.default_rng(0).random((40, 44, 3)) * 900).astype(np.uint8), A)
    assert np.unique(quietly(lambda: tr.translate(img)).get_fdata()).tolist() == [0, 3]


@pytest.mark.parametrize('dtype', [np.uint8, np.int16, np.float32])
def test_labels_in_nifti_have_no_scale(dtype, tmp_path):
    "Whole numbers inside LO..HI whatever the source's type, even if the network leaves the window."
    tr = echo(VOLUME, **LABELS, source_window='20:200')
    nib.save(
        quietly(lambda: tr.translate(scan(tmp_path / 'a.nii.gz', dtype=dtype, top=255))),
        tmp_path / 'o.nii.gz',
    )
    got = nib.load(tmp_path / 'o.nii.gz')
    assert got.get_data_dtype() == np.int16 and (got.dataobj.slope, got.dataobj.inter) == (1, 0)
    assert set(np.unique(got.get_fdata())) == {0, 1, 2, 3}


def test_most_draws_decide_a_label():
    "Draws of 0, 3, 3 give 3 and not their mean; their spread is still written."
    tr = echo(IMAGE, **LABELS)
    draws = torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1, 1)  # small: all in one batch
    tr.den.net.forward = lambda x, t, y, ctx=None: draws.expand_as(y)
    got = quietly(lambda: tr.maps(np.full((8, 8), 9, np.uint8), samples=3))
    assert (got['mean'] == 3).all() and got['std'].min() > 1
    assert 'commonest label of 3' in units_note(target_units(tr.data), 3)['Of']


# --- 3: the target decides

REACH = dict(target_reach=[-1000.0, 1900.0])


@pytest.mark.parametrize(
    'base, more, dtype, lo, hi',
    [
        (
            VOLUME,
            dict(
                target_window_rule='-1000:2000',
                target_window=[-1000.0, 2000.0],
                target_dtype='int16',
                **REACH,
            ),
            'int16',
            -1000,
            2000,
        ),
        (
            VOLUME,
            dict(target='CT', target_window_rule='hu', target_window=[-1000.0, 1000.0], **REACH),
            'int16',
            -1000,
            1900,
        ),
        (
            VOLUME,
            dict(
                target='CT',
                target_window_rule='hu',
                target_window=[-1000.0, 1000.0],
                target_reach=[-3024.0, 9.0],
            ),
            'int16',
            -1024,
            1000,
        ),
        (VOLUME, dict(target='CT', target_window=[-1000.0, 1000.0]), 'int16', -1024, 3071),
        (VOLUME, dict(target_dtype='uint16', target_window=[0.0, 500.0]), 'uint16', 0, None),
        (VOLUME, dict(target_dtype='int16', target_reach=[0.0, 700.0]), 'int16', 0, None),
        (VOLUME, dict(target_dtype='float64', target_reach=[-3.0, 700.0]), 'float32', None, None),
        (
            VOLUME,
            dict(
                target_window_rule='-25:0', target_window=[-25.0, 0.0], target_reach=[-20.0, -1.0]
            ),
            'float32',
            -25,
            0,
        ),
        (IMAGE, dict(), 'uint8', 0, 255),
        (
            IMAGE,
            dict(
                target_dtype='int16',
                target_window=[-99.0, 99.0],
                target_window_rule='-99:99',
                target_reach=[0.0, 5.0],
            ),
            'int16',
            -99,
            99,
        ),
        (
            IMAGE,
            dict(target_window_rule='binary', target_dtype='bool', target_window=[0.0, 1.0]),
            'bool',
            0,
            1,
        ),
    ],
)
@pytest.mark.parametrize('source', [np.uint8, np.int16])
def test_type_and_limits_are_those_of_the_target(base, more, dtype, lo, hi, source, tmp_path):
    """Answers far outside the window (-5 and 5, scaled): clipped where the table of 85_translate
    says so, and nowhere else.
    """
    tr, image = echo(base, **more), base['kind'] == 'image'
    if image and source is not np.uint8:
        pytest.skip('images have the dtype rule')
    tr.den.net.forward = lambda x, t, y, ctx=None: torch.where(y > 0, 5.0, -5.0).to(y)
    tr.data = replace(tr.data, source_window='dtype' if image else '0:200')
    given = (
        picture(tmp_path / 'a.png') if image else scan(tmp_path / 'a.nii.gz', dtype=source, top=200)
    )
    got = quietly(lambda: tr.translate(given))
    values = got if image else got.get_fdata()
    assert (got.dtype if image else got.get_data_dtype()) == np.dtype(dtype)
    lo_, hi_ = tr.data.target_window
    far = [lo_ - 2 * (hi_ - lo_), hi_ + 2 * (hi_ - lo_)]
    for is_, limit, free in ((values.min(), lo, far[0]), (values.max(), hi, far[1])):
        assert np.isclose(is_, free if limit is None else limit, atol=1)
    if image:
        return
    nib.save(got, tmp_path / 'o.nii.gz')
    kept = nib.load(tmp_path / 'o.nii.gz')
    assert (kept.dataobj.slope, kept.dataobj.inter) == (1, 0) and np.array_equal(
        kept.get_fdata(), values
    )


# --- 4: same pixels, same answer


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, bool])
def test_files_arrays_and_pictures_agree(dtype, tmp_path):
    tr = echo(IMAGE)
    a = picture(tmp_path / 'a.png', dtype=dtype)
    want = tr.translate(tmp_path / 'a.png')
    opened = Image.open(tmp_path / 'a.png')
    for same in (a, opened, opened.convert('I') if dtype == np.uint16 else opened):
        assert np.array_equal(tr.translate(same), want)


def test_floating_point_is_the_file_or_refused(tmp_path):
    """With the rule dtype nobody knows what is white; with another rule it is a TIFF of these
    numbers.
    """
    a = picture(tmp_path / 'a.png') / 255.0
    for x in (a, a.astype('f4'), np.stack([a] * 3, -1), (a * 255).astype(int)):
        tr = echo(IMAGE)
        tr.data = replace(tr.data, channels=(x.ndim * 2 - 3, 1))
        with pytest.raises(InputError, match='give uint8 or uint16'):
            tr.translate(x)
    tr = echo(IMAGE, source_window='0:1', target_dtype='float32')
    tifffile.imwrite(tmp_path / 'a.tif', a.astype('f4'))
    want = tr.translate(tmp_path / 'a.tif')
    for same in (a.astype('f4'), Image.fromarray(a.astype('f4'))):
        assert np.array_equal(tr.translate(same), want)
    for wrong in (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((4, 4), complex)):
        with pytest.raises(InputError, match=r'\(H, W\) or \(H, W, C\)'):
            tr.translate(wrong)
    with pytest.raises(InputError, match='4 channels; this model takes images of 1'):
        tr.translate(np.zeros((3, 5, 4)))


@pytest.mark.parametrize('mode', ['P', 'PA', 'LA', 'RGBA', 'CMYK', 'HSV', 'YCbCr', 'LAB', 'RGBa'])
def test_modes_that_are_no_grey_values(mode):
    with pytest.raises(InputError, match=f'mode {mode}'):
        echo(IMAGE).translate(Image.new(mode, (8, 8)))


def test_slices_are_the_volume_they_come_from(tmp_path):
    """Rows from front to back, at the model's pixel size: the same numbers as from NIfTI, for sizes
    that need padding, too.
    """
    tr = echo(VOLUME, source_window='percentile')
    # knows left from right
    tr.den.net.forward = lambda x, t, y, ctx=None: (
        y * torch.linspace(0.3, 1, y.shape[-1]) * torch.linspace(1, 0.5, y.shape[-2])[:, None]
    )
    for shape in ((14, 16, 6), (32, 32, 3), (40, 20, 2)):
        f = scan(tmp_path / 'v.nii.gz', shape=shape, zooms=(3, 3, 3))
        a = np.asarray(nib.load(f).dataobj)[::-1, ::-1].T  # (S, back, left)
        want = np.asarray(quietly(lambda: tr.translate(f)).dataobj)[::-1, ::-1].T
        for same in (a, a.astype(float)):
            assert np.array_equal(quietly(lambda: tr.translate(same)), want)
    assert quietly(lambda: tr.translate(a[0])).shape == a[0].shape
    assert quietly(lambda: tr.maps(a, mix=True))['mix'].shape == (len(a), 2, *a.shape[1:])


def test_a_source_of_labels_is_not_blurred():
    "As in training: the nearest label, for images and planes."
    tr, seen = echo(IMAGE, source_window='labels:0:3'), []
    tr.den.net.register_forward_hook(lambda m, args, out: seen.append(args[2]))
    quietly(lambda: tr.translate(np.repeat([[0] * 30 + [3] * 35], 65, 0).astype(np.uint8)))
    assert set(np.unique(seen[-1])) == {-1.0, 1.0}


# --- 7: notes of pictures


def folder_of(tmp_path, n=3):
    for k in range(n):
        picture(tmp_path / 'in' / f's{k}.png', seed=k)
    return tmp_path / 'in', tmp_path / 'out'


def go(tr, *words, **kw):
    return quietly(lambda: translate_paths(tr, *words, progress=False, **kw))


def test_a_replaced_picture_is_named(tmp_path):
    """Another source under its old name, a cut or changed output: that file is named, the others
    are finished; --overwrite mends it.
    """
    a, b = folder_of(tmp_path)
    tr = echo(IMAGE)
    assert go(tr, a, b) == [] == go(tr, a, b)
    picture(a / 's1.png', seed=9)
    ((path, why),) = go(tr, a, b)
    assert path.name == 's1.png' and 'made from another s1.png' in why
    assert go(tr, a, b, overwrite=True) == [] == go(tr, a, b)
    kept = (b / 's2.png').read_bytes()
    for spoilt in (kept[:-20], kept[:-30] + bytes(30), b''):
        (b / 's2.png').write_bytes(spoilt)
        ((path, why),) = go(tr, a, b)
        assert path.name == 's2.png' and 'changed or damaged' in why
    (b / 's2.png').unlink()
    assert go(tr, a, b) == [] and (b / 's2.png').read_bytes() == kept


def test_a_single_picture_has_notes_and_older_folders_are_read(tmp_path):
    a, b = folder_of(tmp_path, 1)
    tr, one = echo(IMAGE), tmp_path / 'one.png'
    go(tr, a / 's0.png', one)
    note = json.loads(companion_path(one, 'json').read_text())
    assert (
        note['Output'] == dict(Type='uint8', Holds='values', Limits=[0, 255])
        and note['OutputDigest']
        and note['Source'] == 's0.png'
    )
    go(tr, a / 's0.png', one)  # finished
    picture(a / 's0.png', seed=5)
    with pytest.raises(InputError, match='made from another'):
        go(tr, a / 's0.png', one)
    b.mkdir()
    shutil.copy(a / 's0.png', b / 's0.png')
    assert 'nothing says' in go(tr, a, b)[0][1]
    (b / 'xmodal.json').write_text(json.dumps(dict(xmodal=note['xmodal'])))
    assert go(tr, a, b) == []
    assert 'made otherwise' in go(tr, a, b, seed=3)[0][1]
    assert go(tr, a, b, temperature=0.5, overwrite=True) == []
    assert 'made otherwise (temperature 0.5, now 1.0)' in go(tr, a, b)[0][1]


def test_damaged_volumes_are_found(tmp_path):
    "A finished volume of which a bit was changed, and its map."
    scan(tmp_path / 'in' / 'v.nii')
    tr = echo(VOLUME)
    assert (
        go(tr, tmp_path / 'in', tmp_path / 'out', samples=2)
        == []
        == go(tr, tmp_path / 'in', tmp_path / 'out', samples=2)
    )
    for name in ('v.nii', 'v_std.nii'):
        b = bytearray((tmp_path / 'out' / name).read_bytes())
        b[-5] ^= 1
        (tmp_path / 'out' / name).write_bytes(b)
        assert 'changed or damaged' in go(tr, tmp_path / 'in', tmp_path / 'out', samples=2)[0][1]
        b[-5] ^= 1
        (tmp_path / 'out' / name).write_bytes(b)


# --- 11: headers


def headed(affine=(2, 2, 5), s=1, q=1, pixdim=None, unit=2, shift=0.0, shear=0.0):
    A = np.diag([*affine, 1.0])
    A[0, 1] = shear
    img = nib.Nifti1Image((np.random.default_rng(0).random((12, 10, 8)) * 900).astype(np.int16), A)
    Q = np.diag([*(pixdim or affine), 1.0])
    Q[0, 3] = shift
    img.set_qform(Q, q)
    img.set_sform(A, s)
    img.header['xyzt_units'] = unit
    return img


@pytest.mark.parametrize(
    'img, refused, word',
    [
        (headed((1, 1, 1), pixdim=(2, 2, 5)), True, 'pixdim says voxels of 2 x 2 x 5'),
        (headed((1, 1, 1), s=2, pixdim=(2, 2, 5)), True, 'pixdim'),
        (headed((2.2, 2, 5), s=4, pixdim=(2, 2, 5)), False, 'pixdim'),
        (headed(shift=4.0), True, 'corner 4 mm apart'),
        (headed(s=4, shift=4.0), False, 'corner 4 mm apart'),
        (headed(unit=1), True, 'metres'),
        (headed(unit=3), True, 'micrometres'),
        (headed(unit=1 + 8), True, 'metres'),
        (headed((6, 1, 1)), False, 'sagittal slices 6 mm'),
        (headed((1, 6, 1)), False, 'coronal'),
        (headed((1e-5, 2, 2), s=0), True, 'voxel size'),
        (headed((900, 2, 2), s=0), True, 'voxel size'),
        (headed(), None, ''),
        (headed(q=0), None, ''),
        (headed(s=0), None, ''),
        (headed(unit=0), None, ''),
        (headed(shift=0.4), None, ''),
        (headed(q=0, shear=0.1), None, ''),
        (headed((1, 1, 6)), None, ''),
    ],
)
def test_headers_that_contradict_themselves(img, refused, word, tmp_path):
    found = header_concerns(img)
    assert bool(found) == (refused is not None) and (
        not found or found[0][0] is refused and word in found[0][1]
    )
    tr = echo(VOLUME, spacing=2.0)
    nib.save(img, tmp_path / 'a.nii.gz')
    if not refused:
        quietly(lambda: tr.translate(tmp_path / 'a.nii.gz'))
    else:
        with pytest.raises(InputError, match='force'):
            quietly(lambda: tr.translate(tmp_path / 'a.nii.gz'))


# --- 13: a cohort must not fall


def test_one_bad_file_stops_no_other(tmp_path):
    """A broken sidecar, a name of 250 letters, a folder and a pipe with the names of scans, an
    output that is a folder.
    """
    a, b = tmp_path / 'in', tmp_path / 'out'
    for n in ('good', 'told', 'last', 'n' * 243):
        scan(a / f'{n}.nii.gz')
    (a / 'told.json').write_text('{')
    (a / 'box.nii.gz').mkdir()
    os.mkfifo(a / 'pipe.nii.gz')
    (b / 'last.nii.gz').mkdir(parents=True)
    for n in ('._good.nii.gz', '.DS_Store', 'Thumbs.db', 'desktop.ini', '__MACOSX'):
        (a / n).write_bytes(b'\0')
    bad = dict((p.name.split('.')[0][:9], why) for p, why in go(echo(VOLUME), a, b))
    assert (b / 'good.nii.gz').is_file() and {'told', 'box', 'pipe', 'last'} <= set(bad) <= {
        'told',
        'box',
        'pipe',
        'last',
        'n' * 9,
    }
    for n, word in dict(
        told='not valid JSON', box='a folder', pipe='a pipe', last='a folder'
    ).items():
        assert word in bad[n], bad[n]


def test_bids_goes_on(tmp_path):
    """A broken sidecar, numbers that no JSON reader takes, a pipe, and a broken description of the
    data set.
    """
    root = tmp_path / 'raw'
    for k in range(4):
        scan(root / f'sub-{k}' / 'anat' / f'sub-{k}_T1w.nii.gz')
    (root / 'sub-1' / 'anat' / 'sub-1_T1w.json').write_text('{"a": ')
    (root / 'sub-2' / 'anat' / 'sub-2_T1w.json').write_text('{"EchoTime": ' + '9' * 5000 + '}')
    (root / 'sub-3' / 'anat' / 'sub-3_T1w.nii.gz').unlink()
    os.mkfifo(root / 'sub-3' / 'anat' / 'sub-3_T1w.nii.gz')
    (root / 'dataset_description.json').write_text('[')
    bad = go(echo(VOLUME), root, tmp_path / 'out', bids=True)
    assert [p.name[:5] for p, _ in bad] == ['sub-1', 'sub-2', 'sub-3']
    assert [p.name for p in (tmp_path / 'out').rglob('*.nii.gz')] == ['sub-0_desc-synth_T2w.nii.gz']


def test_a_pipe_is_never_opened(tmp_path):
    """As the source, as an output that is there, as its notes: a line and no hang, in a process of
    its own with a limit.
    """
    f = scan(tmp_path / 'a.nii.gz')
    for n in ('p.nii.gz', 'out.nii.gz', 'note.json'):
        os.mkfifo(tmp_path / n)
    save_model(tmp_path / 'm', build(**TINY), TINY, VOLUME)
    lines = [
        f'go({str(tmp_path / a)!r}, {str(tmp_path / b)!r})'
        for a, b in (
            ('p.nii.gz', 'x.nii.gz'),
            ('a.nii.gz', 'out.nii.gz'),
            ('a.nii.gz', 'note.nii.gz'),
        )
    ]
    code = f"""
from xmodal.translate import Translator
from xmodal.folders import translate_paths
from xmodal.core import InputError
tr = Translator.from_pretrained({str(tmp_path / 'm')!r}, "cpu")
def go(a, b):
    try: print(translate_paths(tr, a, b, progress=False))
    except InputError as e: print(e)
"""
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    r = subprocess.run(
        [sys.executable, '-c', code + '\n'.join(lines)],
        capture_output=True,
        text=True,
        timeout=120,
        env=env,
    )
    assert r.returncode == 0 and r.stdout.count('is a pipe') == 2 and 'nothing says' in r.stdout, (
        r.stdout + r.stderr
    )


# --- georeference, DICOM


def test_a_georeference_is_left_with_a_word(tmp_path, monkeypatch):
    """Without the extra `geo`. Said once for a folder, kept in every note; pixels of the file's own nodata value are no
    measurements.
    """
    monkeypatch.setattr(images.importlib.util, 'find_spec', lambda name: None)
    tags = [(33550, 'd', 3, (10.0, 10.0, 0.0)), (42113, 's', 0, '-9999')]
    rng = np.random.default_rng(0)
    (tmp_path / 'in').mkdir()
    for k in range(3):
        tifffile.imwrite(
            tmp_path / 'in' / f's{k}.tif', rng.random((16, 16), np.float32), extratags=tags
        )
    tr = echo(IMAGE, source_window='0:1', target_dtype='float32')
    got, words = said(
        lambda: translate_paths(tr, tmp_path / 'in', tmp_path / 'out', progress=False)
    )
    (line,) = [t for _, t in words if 'georeference (pixel scale, nodata)' in t]
    assert got == [] and 's0.tif and 2 more' in line
    notes = [json.loads((tmp_path / 'out' / f's{k}.tif.json').read_text()) for k in range(3)]
    assert all(
        'georeference' in n['Changes'][0] and not n['Doubts'] and not n['Forced'] for n in notes
    )
    a = rng.random((16, 16), np.float32)
    a[:4] = -9999
    tifffile.imwrite(tmp_path / 'hole.tif', a, extratags=tags)
    got, words = said(lambda: tr.translate(tmp_path / 'hole.tif'))
    assert np.isnan(got[:4]).all() and np.isfinite(got[4:]).all()
    assert any('nodata value -9999 count as not measured' in t for _, t in words)


def test_a_dicom_series_is_one_volume(tmp_path):
    pydicom = pytest.importorskip('pydicom')
    from pydicom.dataset import FileDataset, FileMetaDataset

    (tmp_path / 's').mkdir()
    for k in range(4):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
            pydicom.uid.MRImageStorage,
            f'1.2.{k + 1}',
        )
        d = FileDataset(str(k), {}, file_meta=meta, preamble=b'\0' * 128)
        d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID = (
            meta.MediaStorageSOPClassUID,
            f'1.2.{k + 1}',
            '1.2.9',
        )
        d.Rows, d.Columns, d.PixelSpacing, d.SliceThickness = 16, 18, [3, 3], 4
        d.ImagePositionPatient, d.ImageOrientationPatient = [0, 0, 4 * k], [1, 0, 0, 0, 1, 0]
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation, d.SamplesPerPixel = (
            16,
            16,
            15,
            0,
            1,
        )
        d.PhotometricInterpretation = 'MONOCHROME2'
        d.PixelData = (np.random.default_rng(k).random((16, 18)) * 900).astype(np.uint16).tobytes()
        d.save_as(tmp_path / 's' / f'{k}.dcm')
    tr = echo(VOLUME)
    go(tr, tmp_path / 's', tmp_path / 'o.nii.gz')
    assert (
        nib.load(tmp_path / 'o.nii.gz').shape == (18, 16, 4)
        and json.loads((tmp_path / 'o.json').read_text())['Source'] == 's'
    )
    go(tr, tmp_path / 's', tmp_path / 'o.nii.gz')
    (tmp_path / 's' / '0.dcm').write_bytes((tmp_path / 's' / '0.dcm').read_bytes()[:-2] + b'\1\1')
    with pytest.raises(InputError, match='made from another s'):
        go(tr, tmp_path / 's', tmp_path / 'o.nii.gz')
    with pytest.raises(InputError, match='must end in .nii'):
        go(tr, tmp_path / 's', tmp_path / 'x.dcm')


@pytest.mark.parametrize(
    'number, stops', [('EACCES', False), ('EIO', False), ('ENOSPC', True), ('EROFS', True)]
)
def test_one_output_that_cannot_be_written(number, stops, tmp_path, monkeypatch):
    """Permission denied for one file: named, the others are there.

    A full disk would not treat the next file better: it ends the run.
    """
    import errno

    import xmodal.folders as folders

    a, b = folder_of(tmp_path)
    save, code = folders.save_translation, getattr(errno, number)

    def refuses(result, path, ready=None, names=()):
        if path.name == 's0.png':
            raise OSError(code, os.strerror(code), str(path))
        save(result, path, ready, names)

    monkeypatch.setattr(folders, 'save_translation', refuses)
    if not stops:
        ((path, why),) = go(echo(IMAGE), a, b)
        assert path.name == 's0.png' and os.strerror(code) in why and (b / 's2.png').is_file()
        return
    with pytest.raises(OSError):
        go(echo(IMAGE), a, b)
    assert not (b / 's1.png').exists()

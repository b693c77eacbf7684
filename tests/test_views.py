"A volume looked at from three sides: the same slices in training and in use, and back to the file."

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from small_model import VOLUME, echo, trained_by_command

from xmodal.core import InputError
from xmodal.data.cache import prepare
from xmodal.data.frames import VolumeFrame
from xmodal.data.records import APART, Record
from xmodal.data.volumes import planes_of
from xmodal.tiles import PLANES, Around, Views
from xmodal.translate import SampleOptions, Translator, from_sides


def head(seed, shape=(24, 24, 24), zooms=(2.0, 2.0, 2.0), contrast=1.0):
    "A volume without any symmetry, bright in an ellipse."
    z = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing='ij'))
    values = np.clip(400 + 2000 * z, 1, None) ** contrast * ((grid**2).sum(0) < 1.2)
    return nib.Nifti1Image(values.astype(np.float32), np.diag([*zooms, 1.0]))


def saved(folder, name, **how):
    path = folder / name / 'anat' / f'{name}_T1w.nii.gz'
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(head(**how), path)
    target = Path(str(path).replace('T1w', 'T2w'))
    nib.save(head(**how, contrast=0.9), target)
    return Record(name, name, path, target)


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    "Three people with cubes for voxels and one with thick slices."
    folder = tmp_path_factory.mktemp('sides')
    thick = dict(shape=(24, 24, 9), zooms=(2.0, 2.0, 5.0))
    return [saved(folder, f'sub-{k}', seed=k, **(thick if k == 3 else {})) for k in range(4)]


class Seen:
    "What a frame asks of a model of all planes, for a cache of `people`."

    kind, dataset, fit, source_window, source_values = 'volume', 'test', 'shrink', 'percentile', {}
    tile, context, step, further, plane = None, 1, 2.0, None, 'all'
    depth = None
    size, spacing = 24, 2.0


def test_from_every_side_the_network_sees_what_it_was_trained_on(people, tmp_path):
    data = prepare(people, 0, plane='all', context=1, min_foreground=0.0, cache=tmp_path)
    assert data.index['params']['spacing'] == 2.0
    first = {k: v[0] for k, v in data.index['records'][1]['planes'].items()}
    assert first == dict(axial=0, coronal=24 + APART, sagittal=2 * (24 + APART))
    assert list(data.index['records'][3]['planes']) == ['axial']  # thick: one plane makes sense
    frame = VolumeFrame(people[1].source, SeenAt(data), 1)
    y = torch.from_numpy(frame.cut())
    around, side = Around(y, None, 1), y.shape[-1]
    assert y.shape == (1, 1, side, side, side)
    mine = {data.info(k)['slice']: k for k in range(len(data)) if data.info(k)['record'] == 'sub-1'}
    for plane, axis in PLANES.items():
        seen = 0
        for k in range(24):
            at = np.flatnonzero(inside(y[0, 0], axis))[23 - k]  # the other way round
            index = tuple(int(at) if d == axis else slice(None) for d in range(3))
            item = data[mine[first[plane] + k]]
            np.testing.assert_allclose(item['y'][0], y[0, 0][index], atol=1e-5)
            if 0 < k < 23:
                np.testing.assert_allclose(item['side'], around.part(0, index), atol=1e-5)
                seen += float(item['side'].std()) > 0.1
        assert seen > 15, plane


def inside(v, axis):
    "Which slices along an axis belong to the field of view."
    n = v.shape[axis]
    at = np.arange(n)
    return (at >= (n - 24) // 2 + (n - 24) % 2) & (at < (n + 24) // 2 + (n - 24) % 2)


class SeenAt(Seen):
    def __init__(self, data):
        self.size, self.spacing = data.shape[-1], data.index['params']['spacing']


def test_neighbours_do_not_reach_into_another_plane(people, tmp_path):
    data = prepare(people, 0, plane='all', context=32, cache=tmp_path, progress=False)
    numbers = np.array([data.info(k)['slice'] // (24 + APART) for k in range(len(data))])
    own = [data.info(k)['record'] for k in range(len(data))]
    for k, i in enumerate(data.items):
        rows = [data.index['slices'][j] for j in data.beside[i]]
        assert {v['slice'] // (24 + APART) for v in rows} == {numbers[k]}
        assert {v['record'] for v in rows} == {own[k]}


@pytest.mark.parametrize('code', ['RAS', 'LPI', 'SAL', 'PIR'])
def test_a_volume_comes_back_from_all_sides_to_its_own_voxels(code, tmp_path):
    axes = nib.orientations
    turn = axes.ornt_transform(axes.axcodes2ornt('RAS'), axes.axcodes2ornt(code))
    img = head(5, shape=(22, 26, 19)).as_reoriented(turn)
    nib.save(img, tmp_path / 'a.nii.gz')
    how = dict(plane='all', spacing=2.0, size=32, target_window=[0.0, 1000.0])
    tr = echo(VOLUME, **how, source_window='0:1000', target_dtype='float32', tile=16)
    got = tr.translate(tmp_path / 'a.nii.gz')
    assert got.shape == img.shape and np.array_equal(got.affine, img.affine)
    want = np.asarray(img.dataobj)
    scale = np.abs(np.asarray(got.dataobj)).max() / want.max()
    np.testing.assert_allclose(got.dataobj, scale * want, atol=2)


def test_which_planes_make_sense():
    assert planes_of(head(0)) == ('axial', 'coronal', 'sagittal')
    assert planes_of(head(0), 'coronal') == ('coronal',)
    assert planes_of(head(0, zooms=(2, 2, 5.0))) == ('axial',)
    assert planes_of(head(0, shape=(24, 24, 5))) == ('axial',)  # a strip from the other sides
    turned = head(0, shape=(24, 24, 5)).as_reoriented(np.array([[2, 1], [0, 1], [1, 1]]))
    assert planes_of(turned) == ('axial',)


@pytest.fixture(scope='module')
def trained(people, tmp_path_factory):
    "A model of all planes, with one neighbour, a field and crops, after two steps."
    root = tmp_path_factory.mktemp('run')
    words = (
        f'--dataset bids --root {people[0].source.parents[2]} --source T1w --target T2w --size 0 '
        '--plane all --patch 16 --context 1 --steps 2 --batch 2 --ch 8 --mults 1,2 --check False '
        '--baseline False --method cdtsde --sample_steps 2'
    )
    model, said = trained_by_command(root, 'sides', words)
    assert 'planes: axial, coronal and sagittal' in said
    return model


def test_a_trained_model_looks_from_all_sides(people, trained, monkeypatch):
    tr = Translator.from_pretrained(trained, 'cpu')
    assert (tr.data.plane, tr.data.context, tr.data.step) == ('all', 1, 2.0)
    path = people[0].source
    got = tr.maps(path, batch=24, mix=True, progress=True)
    assert got['mean'].shape == (24, 24, 24) and got['mix'].shape == (24, 24, 24, 3)
    again = np.asarray(tr.translate(path, batch=5).dataobj)
    np.testing.assert_allclose(got['mean'].dataobj, again, atol=0.02)  # batches: rounding
    alone = np.asarray(tr.translate(path, batch=24, planes='axial').dataobj)
    assert np.abs(alone - again).max() > 0
    with pytest.raises(InputError, match='oblique'):
        tr.translate(path, planes='oblique')
    other = np.asarray(tr.translate(path, batch=24, seed=1).dataobj)
    assert np.abs(other - again).max() > 0


def test_neighbours_lie_at_one_distance_in_all_planes(people, tmp_path):
    "One head of 2 mm among stacks of 5 mm: its neighbours are taken two slices away."
    thick = [replace(people[3], name=f'sub-{k}', subject=f'sub-{k}') for k in (3, 4)]
    data = prepare([people[0], *thick], 0, plane='all', context=2, cache=tmp_path, progress=False)
    at = {(s['record'], s['slice']): i for i, s in enumerate(data.index['slices'])}
    starts = [v[0] for v in data.index['records'][0]['planes'].values()]
    for start in starts:
        wanted = [at['sub-0', start + 12 + 2 * o] for o in range(-2, 3)]
        assert data.beside[at['sub-0', start + 12]].tolist() == wanted
    wanted = [at['sub-3', 4 + o] for o in range(-2, 3)]
    assert data.beside[at['sub-3', 4]].tolist() == wanted


def test_thick_slices_are_looked_at_in_their_plane(people, trained):
    tr = Translator.from_pretrained(trained, 'cpu')
    with pytest.warns(UserWarning) as said:
        got = tr.translate(people[3].source, batch=9)
    said = ' '.join(str(w.message) for w in said)
    assert 'axial slices alone' in said and 'farther away' in said
    assert got.shape == (24, 24, 9)
    with pytest.raises(InputError, match='plane'):
        tr.translate(people[3].source, planes='coronal')


def test_views_get_stride_and_planes_from_the_model(trained):
    tr = Translator.from_pretrained(trained, 'cpu')
    object.__setattr__(tr.data, 'step', 6.0)
    views = from_sides(tr.den, tr.data, SampleOptions(planes='axial', batch=2))
    assert isinstance(views, Views) and views.stride == 3 and views.context == 1
    assert views.planes == ('axial',)


def test_sides_take_turns_at_a_third_of_the_cost(people, trained):
    tr, asked, got = Translator.from_pretrained(trained, 'cpu'), {}, {}
    seen = []
    hook = tr.den.net.register_forward_pre_hook(
        lambda net, a, kw: seen.append(len(a[0])), with_kwargs=True
    )
    for views in ('average', 'turn', 'turn'):
        seen.clear()
        got[views] = tr.translate(people[0].source, steps=3, batch=24, views=views).get_fdata()
        asked[views] = sum(seen)
    hook.remove()
    assert asked['average'] == 3 * asked['turn'] > 0
    assert np.abs(got['turn'] - got['average']).max() > 0 and np.isfinite(got['turn']).all()
    for wrong, word in ((dict(steps=2), '3 steps or more'), (dict(views='trun'), 'turn')):
        with pytest.raises(InputError, match=word):
            tr.translate(people[0].source, **dict(dict(steps=3, views='turn'), **wrong))


def test_a_thick_stack_has_the_distance_of_its_own_plane(tmp_path):
    pair = [saved(tmp_path, 'sub-c', seed=6, shape=(24, 9, 24), zooms=(2.0, 5.0, 2.0))]
    data = prepare(pair, 0, plane='all', context=1, cache=tmp_path / 'c', progress=False)
    assert list(data.index['records'][0]['planes']) == ['coronal']
    assert data.index['params']['step'] == 5.0 and data.index['params']['spacing'] == 2.0

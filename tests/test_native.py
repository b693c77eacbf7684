"Native resolution: crops, neighbouring slices and further sources, the same in training and use."

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from small_model import trained_by_command

from xmodal.core import InputError
from xmodal.data.cache import native_grid, prepare
from xmodal.data.frames import VolumeFrame
from xmodal.data.records import Record
from xmodal.engine import Sampling, measure_images, select_parts, translations
from xmodal.folders import translate_paths
from xmodal.metadata.context import WithContext
from xmodal.methods import get_method
from xmodal.nets.build import build
from xmodal.training.loop import Draws, validate
from xmodal.translate import Translator


def head(seed, contrast=1.0, shape=(24, 28, 9), zooms=(2.0, 2.0, 5.0)):
    "A smooth volume in an ellipse, as a nibabel image."
    rng = np.random.default_rng(seed)
    z = gaussian_filter(rng.normal(size=shape), 2)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing='ij'))
    inside = (grid**2).sum(0) < 1.2
    values = np.clip(300 + 2000 * z, 1, None) ** contrast * inside
    affine = np.diag([*zooms, 1.0])
    affine[:3, 3] = -np.array(shape) * zooms / 2
    return nib.Nifti1Image(values.astype(np.float32), affine)


@pytest.fixture(scope='module')
def people(tmp_path_factory):
    "Records of four people with a source, a further source and a target."
    folder, records = tmp_path_factory.mktemp('people'), []
    for k in range(4):
        paths = {}
        for name, contrast in dict(T1w=1.0, FLAIR=0.8, T2w=0.9).items():
            paths[name] = folder / f'sub-{k}' / 'anat' / f'sub-{k}_{name}.nii.gz'
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            nib.save(head(k, contrast), paths[name])
        more = (paths['FLAIR'],)
        records.append(
            Record(f'sub-{k}', f'sub-{k}', paths['T1w'], paths['T2w'], more_sources=more)
        )
    return records


def test_native_grid_takes_voxels_over_as_they_are(people, tmp_path):
    data = prepare(people, 0, cache=tmp_path, progress=False)
    assert data.index['params']['spacing'] == 2.0
    assert data.shape[2:] == (32, 32)  # 28 voxels, rounded up to a multiple of 8
    truth = np.asarray(nib.as_closest_canonical(nib.load(people[0].target)).dataobj)
    item, window = data[0], data.index['records'][0]['windows'][1]
    scaled = 2 * (truth - window['lo']) / (window['hi'] - window['lo']) - 1
    own = scaled[:, :, data.info(0)['slice']].clip(-1.5, 1.5)[::-1, ::-1].T
    got = item['x0'][0].numpy()
    rows, columns = (np.flatnonzero((got > -1).any(a)) for a in (1, 0))
    kept = got[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    mine = own[(own > -1).any(1)][:, (own > -1).any(0)]
    np.testing.assert_allclose(kept, mine, atol=1e-4)  # not one voxel is interpolated


def test_pictures_are_not_shrunk(tmp_path):
    shown = []
    for k in range(2):
        shown.append(np.random.default_rng(k).integers(0, 255, (40 + 9 * k, 61), dtype=np.uint8))
        Image.fromarray(shown[k]).save(tmp_path / f's{k}.png')
    records = [Record(f's{k}', f's{k}', *[tmp_path / f's{k}.png'] * 2) for k in range(2)]
    assert native_grid(records, image=True) == (64, None, 'patch')
    data = prepare(records, 0, cache=tmp_path / 'cache', progress=False)
    for k, pixels in enumerate(shown):
        h, w = pixels.shape
        got = (data[k]['x0'][0, :h, :w].numpy() + 1) / 2 * 255
        np.testing.assert_allclose(got, pixels, atol=1e-3)  # pixel on pixel, padded beside them


def test_crops_hang_on_the_number_of_the_sample(people, tmp_path):
    data = prepare(people, 0, cache=tmp_path, progress=False)
    draws, again = (Draws(data, seed=3, patch=16) for _ in range(2))
    forward = [draws[n]['y'] for n in range(12)]
    backward = [again[n]['y'] for n in reversed(range(12))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward))
    assert {tuple(v.shape) for v in forward} == {(1, 16, 16)}
    assert not torch.equal(draws[0]['y'], draws[len(data)]['y'])
    pair = draws[5]
    assert torch.equal(Draws(data, seed=3)[5]['t'], pair['t'])  # a crop changes nothing else


def test_what_stands_beside_a_slice_is_the_same_in_training_and_use(people, tmp_path):
    data = prepare(people, 0, cache=tmp_path, context=2, min_foreground=0.0, progress=False)
    spec = FromFolder(data)
    frame = VolumeFrame(people[1].source, spec, 1)
    y = frame.cut()
    side = frame.side([people[1].more_sources[0]])
    mine = [k for k in range(len(data)) if data.info(k)['subject'] == 'sub-1']
    assert len(mine) == len(y) and side.shape[1] == 2 * 5 - 1
    for k, seen, beside in zip(mine, y, side):
        np.testing.assert_allclose(data[k]['y'], seen, atol=1e-5)
        np.testing.assert_allclose(data[k]['side'], beside, atol=1e-5)


class FromFolder:
    "What a frame asks of a model, for a cache of `people`."

    kind, dataset, fit, source_window, source_values = 'volume', 'test', 'shrink', 'percentile', {}
    tile, context, step, further, plane = None, 2, 5.0, 1, 'axial'
    depth = None

    def __init__(self, data):
        self.size, self.spacing = data.shape[-1], data.index['params']['spacing']


def test_neighbours_are_a_distance_not_a_number(people, tmp_path):
    data = prepare(people, 0, cache=tmp_path, progress=False)
    spec = FromFolder(data)
    fine = VolumeFrame(head(0, shape=(24, 28, 18), zooms=(2, 2, 2.5)), spec, 1)
    assert any('slices 2 apart' in words for _, words in fine.concerns())
    fine.cut()
    below = fine.side([fine.source])[9][0]  # two neighbours below: 10 mm, four slices
    np.testing.assert_array_equal(below, fine.grey[5])
    coarse = VolumeFrame(head(0, zooms=(2, 2, 9.0)), spec, 1)
    assert any('farther away' in words for _, words in coarse.concerns())


@pytest.fixture(scope='module')
def trained(people, tmp_path_factory):
    "A model of two sources, one neighbour and crops, after three steps."
    root = tmp_path_factory.mktemp('run')
    words = (
        f'--dataset bids --root {people[0].source.parents[2]} --source T1w,FLAIR, --target T2w, --size 0 --patch 16 '
        '--context 1 --drop_sources 0.5 --steps 3 --batch 2 --ch 8 --mults 1,2 --check False '
        '--baseline False --method cdtsde --sample_steps 2'
    )
    return trained_by_command(root, 'two', words)[0]


def test_a_model_of_two_sources_finds_the_second_beside_the_first(people, trained):
    tr = Translator.from_pretrained(trained, 'cpu')
    assert (tr.data.tile, tr.data.context, tr.data.further, tr.data.step) == (16, 1, 1, 5.0)
    assert (tr.data.source, tr.data.target) == ('T1w,FLAIR', 'T2w')  # not as they were typed
    path, second = people[3].source, people[3].more_sources[0]
    found = tr.translate(path, batch=3)
    given = tr.translate(path, more=[second], batch=3)
    np.testing.assert_array_equal(found.dataobj, given.dataobj)
    with pytest.warns(UserWarning, match='without source 2'):
        alone = tr.translate(path, more=[None])
    assert np.abs(np.asarray(alone.dataobj) - np.asarray(given.dataobj)).max() > 0
    with pytest.raises(InputError, match='takes 2 sources'):
        tr.translate(path, more=[second, second])


def test_a_missing_source_is_refused_unless_it_was_learned(people, trained, tmp_path):
    tr = Translator.from_pretrained(trained, 'cpu')
    object.__setattr__(tr.data, 'may_lack', False)
    lonely = tmp_path / 'sub-9_T1w.nii.gz'
    nib.save(head(9), lonely)
    with pytest.raises(InputError, match='source 2 of 2'):
        tr.translate(lonely)


class Watched(torch.nn.Module):
    "A network that answers with the source and remembers the sizes that it was shown."

    def __init__(self):
        super().__init__()
        self.weight, self.shown = torch.nn.Parameter(torch.ones(1)), []

    def forward(self, x, t, y, ctx=None, **more):
        self.shown.append(tuple(y.shape[-2:]))
        return self.weight * y


def watched():
    den = build('regression', 1, net=dict(ch=8, mults=[1, 2], layers=1))
    den.net = Watched()
    return den.eval()


def test_validation_and_measurement_see_tiles_of_the_trainings_size(people, tmp_path):
    data = prepare(people, 0, cache=tmp_path, progress=False)
    den = watched()
    validate(den, None, data, get_method('regression'), tile=16)
    assert set(den.net.shown) == {(16, 16)}
    den = watched()
    translations(den, data, Sampling('regression', 1, tile=16), items=[0])
    assert set(den.net.shown) == {(16, 16)}
    validate(den, None, data, get_method('regression'))
    assert (32, 32) in den.net.shown


def test_a_job_of_crops_measures_in_tiles(people, tmp_path, monkeypatch):
    "The plan's patch reaches recipe, sampling and model description."
    from xmodal import train

    p = train.plan(train.Job(method='regression', size=0, patch=16, name='x-crops', ch=8))
    assert train.recipe_of(p, 'regression').patch == 16
    asked = []
    monkeypatch.setattr(train, 'translations', lambda d, t, how, *a, **k: asked.append(how) or [])
    monkeypatch.setattr(train, 'scores_of', lambda *a: {})
    d = JobStub(prepare(people, 0, cache=tmp_path, progress=False))
    train.measure(p, d, {'regression': (None,)})
    assert [how.tile for how in asked] == [16]


class JobStub:
    "What `train.measure` asks of the data of a job."

    def __init__(self, data):
        self.test = data


def test_notes_name_every_source_and_a_change_of_the_second_is_noticed(people, trained, tmp_path):
    tr = Translator.from_pretrained(trained, 'cpu')
    for path in (people[3].source, *people[3].more_sources):
        shutil.copy(path, tmp_path / path.name)
    first, second = (tmp_path / p.name for p in (people[3].source, *people[3].more_sources))
    out = tmp_path / 'out.nii.gz'
    translate_paths(tr, first, out, progress=False)
    notes = json.loads((tmp_path / 'out.json').read_text())
    named = [notes['Source'], *(v['Source'] for v in notes['FurtherSources'])]
    assert named == [first.name, second.name]
    translate_paths(tr, first, out, progress=False)  # finished already
    nib.save(head(77), second)
    with pytest.raises(InputError, match=f'from another {second.name}'):
        translate_paths(tr, first, out, progress=False)
    del notes['FurtherSources']  # as older versions wrote them
    (tmp_path / 'out.json').write_text(json.dumps(notes))
    translate_paths(tr, first, out, progress=False)


def test_some_slices_without_tissue_are_learned_at_native_resolution(tmp_path, people):
    "A network that never saw an empty slice makes a haze of it; one with tissue on one side is no pair."
    whole, upper = np.full((20, 20, 40), 600, np.float32), np.zeros((20, 20, 40), np.float32)
    whole[:, :, :20], upper[5:15, 5:15, 24:] = 0, 700
    whole[:5] = whole[:, :5] = 0
    paths = [tmp_path / 'a.nii.gz', tmp_path / 'b.nii.gz']
    for path, v in zip(paths, (whole, upper)):
        nib.save(nib.Nifti1Image(v, np.diag([2.0, 2, 2, 1])), path)
    pair = [Record('sub-a', 'sub-a', *paths)]
    kept = lambda **how: [
        s['slice'] for s in prepare(pair, cache=tmp_path, progress=False, **how).index['slices']
    ]
    assert kept(size=0) == [
        4,
        12,
        *range(24, 40),
    ]  # every 8th of 20 bare ones; 20 to 23 are no pair
    assert kept(size=0, air=0) == kept(size=32) == list(range(24, 40))
    assert kept(size=32, air=4) == [2, 6, 10, 14, 18, *range(24, 40)]


def test_slices_of_air_are_learned_and_are_no_test_images(tmp_path, capsys):
    "Source and target are equal there, and one infinite PSNR would be the mean of the identity."
    whole = np.zeros((20, 20, 40), np.float32)
    whole[5:15, 5:15, 20:] = np.random.default_rng(0).uniform(500, 900, (10, 10, 20))
    records = []
    for name in 'abc':
        paths = [tmp_path / f'{name}_{side}.nii.gz' for side in ('T1w', 'T2w')]
        for path, v in zip(paths, (whole, whole.clip(0, 800))):
            nib.save(nib.Nifti1Image(v, np.diag([2.0, 2, 2, 1])), path)
        records.append(Record(name, name, *paths))
    data = prepare(records, 0, cache=tmp_path / 'cache', progress=False)
    table = {name: torch.zeros(1, 3, 4) for name in 'abc'}
    for whole_set in (data, WithContext(data, table)):
        parts = select_parts(whole_set, dict(train=['a'], val=['b'], test=['c']))
        assert [len(v) for v in parts.values()] == [22, 20, 20]
        assert '2 in val, 2 in test are left out' in capsys.readouterr().out
        assert type(parts['test']) is type(whole_set)
    test = parts['test']
    rows = measure_images(np.stack([v['y'].numpy() for v in test]), test)
    assert np.isfinite(rows.psnr).all() and len(rows) == 20
